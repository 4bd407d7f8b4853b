"""True cameras and depth of rendered photos, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import holds_more_than, make_folder, write_whole
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.text import filled_lines
from edm_hloc.synthetic.cameras import Cameras

MARKER = "miniature.txt"
_MADE_BY = "Rendered by edm-hloc"
TRUE_MODEL_FILES = tuple(
    f"truth/{part}.txt" for part in ("rigs", "cameras", "frames", "images", "points3D")
)
"""What `write_true_model` writes into the folder `truth` of a miniature."""


@dataclass(frozen=True)
class PhotoTruth:
    """The truth about one rendered photo.

    Attributes:
        name: of the photo, relative to the folder of all photos, with "/".
        K: (3, 3) float64 intrinsics in pixels; the centre of the top-left pixel is (0, 0).
        cam_from_world: (4, 4) float64.
        size: (width, height) in pixels.
        depth: (H, W) float32, metres along the optical axis, 0 for the sky.
    """

    name: str
    K: np.ndarray
    cam_from_world: np.ndarray
    size: tuple[int, int]
    depth: np.ndarray

    @classmethod
    def of(cls, name: str, camera: Cameras, size: tuple[int, int], depth: np.ndarray) -> PhotoTruth:
        """The truth from the renderer's single-precision camera, a batch of one view."""
        K = camera.K[0, 0].double().numpy()
        T = camera.cam_from_world[0, 0].double().numpy()
        U, _, Vt = np.linalg.svd(T[:3, :3])  # a rotation to double precision
        T[:3, :3] = U @ Vt
        return cls(name, K, T, size, depth)

    @property
    def depth_name(self) -> str:
        """Name of the file of its depth, in the folder of all that is rendered."""
        return Path("depth", self.name).with_suffix(".npy").as_posix()

    @property
    def colmap_params(self) -> list[float]:
        """Focal length and principal point in COLMAP's pixel frame: SIMPLE_PINHOLE's parameters."""
        return [float(self.K[0, 0]), *to_colmap(self.K[:2, 2]).tolist()]


def claim_miniature(folder: Path) -> None:
    """Removes what was rendered into the folder of a miniature, and nothing else that lies there.

    Miniatures have the folders of the datasets, and may only replace each other. `MARKER` lists the
    files, see `note_rendered`.

    Raises:
        EdmHlocError: the folder holds something else and no miniature, or cannot be written.
    """
    make_folder(folder)
    marker = folder / MARKER
    lines = filled_lines(marker, "list of a miniature's files") if marker.exists() else []
    head, *rendered = [line for _, line in lines] or [""]
    if not head.startswith(_MADE_BY):
        if holds_more_than(folder, MARKER):
            raise EdmHlocError(
                f"{folder} is not empty, and what it holds was not rendered by edm-hloc: choose "
                "another folder for the miniature."
            )
    elif not rendered and any(path.is_dir() for path in folder.iterdir()):
        raise EdmHlocError(
            f"{marker} lists no files, as that of an earlier version of edm-hloc, so that what was "
            f"rendered cannot be told from what was not: remove {folder}, or choose another folder."
        )
    for name in rendered:
        if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
            raise EdmHlocError(
                f"{marker} lists {name}, which is not in {folder}: choose another folder for the "
                "miniature."
            )
    try:
        for name in rendered:
            _remove(folder, name)
    except OSError as error:
        raise EdmHlocError(
            f"Cannot remove the earlier miniature in {folder}: {error.strerror or error}."
        ) from error
    write_whole(marker, f"{_MADE_BY}, which removes these files for the next miniature here:\n")


def _remove(folder: Path, name: str) -> None:
    """Removes a file, and the folders of it that are empty then. Raises OSError."""
    path = folder / name
    if path.is_file() or path.is_symlink():  # the last line may have been cut off by a kill
        path.unlink()
    for parent in list(Path(name).parents)[:-1]:
        try:
            (folder / parent).rmdir()
        except OSError:  # it is gone already, or holds something else
            break


def note_rendered(folder: Path, *names: str) -> None:
    """Lists files of a miniature before they are written, for the next `claim_miniature`.

    Args:
        folder: of the miniature.
        names: of the files, relative to it, with "/".

    Raises:
        EdmHlocError: the list cannot be written.
    """
    try:
        with (folder / MARKER).open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in names)
    except OSError as error:
        raise EdmHlocError(f"Cannot write {folder / MARKER}: {error.strerror or error}.") from error


def write_photo(path: Path, pixels: np.ndarray) -> None:
    """Write a JPEG of quality 95.

    Args:
        path: the file; its folder is made if necessary.
        pixels: (H, W) grey or (H, W, 3) in OpenCV's order of colours, uint8.
    """
    # imencode, since cv2.imwrite fails on some non-ASCII paths
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])
    write_whole(path, encoded.tobytes())


def write_depth(folder: Path, photo: PhotoTruth) -> None:
    """Write `folder/depth/NAME.npy`, (H, W) float32, with NAME the photo's without its suffix."""
    path = folder / photo.depth_name
    make_folder(path.parent)
    np.save(path, photo.depth)


def write_true_model(folder: Path, photos: Sequence[PhotoTruth]) -> None:
    """Write a COLMAP model in text form with the cameras of photos and without points.

    Photos with equal intrinsics share a SIMPLE_PINHOLE camera.
    """
    import pycolmap  # here, so that rendering needs torch, NumPy and OpenCV only

    model = pycolmap.Reconstruction()
    numbers: dict[tuple, int] = {}
    for k, photo in enumerate(photos, start=1):
        (width, height), params = photo.size, photo.colmap_params
        camera_id = numbers.setdefault((width, height, *params), len(numbers) + 1)
        if not model.exists_camera(camera_id):
            camera = pycolmap.Camera(
                model="SIMPLE_PINHOLE",
                width=width,
                height=height,
                params=params,
                camera_id=camera_id,
            )
            model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=photo.name, camera_id=camera_id, image_id=k)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(photo.cam_from_world[:3]))
    make_folder(folder)
    model.write_text(folder)


def write_query_poses(folder: Path, groups: Mapping[str, Sequence[PhotoTruth]]) -> None:
    """Write the true poses of each group of queries to `folder/GROUP.txt`.

    A line is: name qw qx qy qz tx ty tz, of cam_from_world.
    """
    import pycolmap

    from edm_hloc.localization.poses import write_poses

    for group, queries in groups.items():
        poses = {query.name: pycolmap.Rigid3d(query.cam_from_world[:3]) for query in queries}
        write_poses(folder / f"{group}.txt", poses)

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
from edm_hloc.synthetic.cameras import Cameras

MARKER = "miniature.txt"


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
    def colmap_params(self) -> list[float]:
        """Focal length and principal point in COLMAP's pixel frame: SIMPLE_PINHOLE's parameters."""
        return [float(self.K[0, 0]), *to_colmap(self.K[:2, 2]).tolist()]


def claim_miniature(folder: Path) -> None:
    """Marks a folder as that of a miniature, before anything is rendered into it.

    Miniatures have the folders of the datasets, and may only replace each other.

    Raises:
        EdmHlocError: it holds something else, or cannot be written.
    """
    make_folder(folder)
    ours = (folder / MARKER).exists() or (folder / "truth" / "queries").is_dir()
    if not ours and holds_more_than(folder, MARKER):
        raise EdmHlocError(
            f"{folder} is not empty, and what it holds was not rendered by edm-hloc: choose "
            "another folder for the miniature."
        )
    write_whole(folder / MARKER, "Rendered by edm-hloc, which may write over all that is here.\n")


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
    """Write `folder/NAME.npy`, (H, W) float32, with NAME the photo's without its suffix."""
    path = (folder / photo.name).with_suffix(".npy")
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

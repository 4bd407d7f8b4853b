"""Which format a file of poses has, and the COLMAP model without points that it becomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import camera_text
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import require_file, scratch_folder
from edm_hloc.base.log import warn_once
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.sizes import Scaled, camera_for_network, warn_of_scaled
from edm_hloc.interop.poses.bundler import read_bundler
from edm_hloc.interop.poses.colmap import colmap_folder, read_colmap
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand
from edm_hloc.interop.poses.llff import read_llff
from edm_hloc.interop.poses.meshroom import read_meshroom
from edm_hloc.interop.poses.metashape import read_metashape
from edm_hloc.interop.poses.nerfstudio import read_nerfstudio, write_nerfstudio
from edm_hloc.interop.poses.opensfm import read_opensfm
from edm_hloc.interop.poses.realitycapture import read_realitycapture
from edm_hloc.interop.poses.trajectory import read_trajectory

_LEAST = 3  # posed photos that can be refined together
_IN_FOLDERS = (
    "transforms.json",
    "reconstruction.json",
    "cameras.sfm",
    "bundle.out",
    "poses_bounds.npy",
)
"""Files that programs always name so, so that their folder may be given: the first it holds."""


@dataclass(frozen=True)
class PoseFormat:
    """A kind of files of poses.

    Attributes:
        name: what people call it.
        suffix: of its files, in lower case; empty for folders.
        read: reads a file; photos that it does not find among those at hand are left out.
        write: writes a file again with the poses of a model in place of its own; None: not made.
    """

    name: str
    suffix: str
    read: Callable[[Path, PhotosAtHand], list[GivenPose]]
    write: Callable[[Path, Path, pycolmap.Reconstruction, PhotosAtHand], None] | None = None


_COLMAP = PoseFormat("COLMAP", "", read_colmap)
_NERFSTUDIO = PoseFormat("nerfstudio's transforms.json", ".json", read_nerfstudio, write_nerfstudio)
_OPENSFM = PoseFormat("OpenSfM's reconstruction.json", ".json", read_opensfm)
_MESHROOM = PoseFormat("Meshroom's cameras.sfm", ".sfm", read_meshroom)
FORMATS = (
    _NERFSTUDIO,
    _OPENSFM,
    _MESHROOM,
    PoseFormat("Metashape's XML", ".xml", read_metashape),
    PoseFormat("RealityCapture's CSV", ".csv", read_realitycapture),
    PoseFormat("Bundler's bundle.out", ".out", read_bundler),
    PoseFormat("LLFF's poses_bounds.npy", ".npy", read_llff),
    PoseFormat("a trajectory", ".txt", read_trajectory),
)
"""The formats that the suffix of a file tells, and for those in JSON its content."""


@dataclass(frozen=True)
class GivenPoses:
    """The poses of photos, as read.

    Attributes:
        format: what the file was taken for.
        source: the file or folder that was read.
        model: COLMAP model of the posed photos, without points, in the file's world; cameras are
            for the photos as they are stored.
        photos: the photos at hand.
        unposed: those of the photos to use that the file has no pose for.
    """

    format: PoseFormat
    source: Path
    model: pycolmap.Reconstruction
    photos: PhotosAtHand
    unposed: tuple[str, ...]

    def write_again(self, model: pycolmap.Reconstruction, out: Path) -> None:
        """Writes the file again with the poses of a model, where the format can be written.

        Raises:
            EdmHlocError: the format has no such cameras, or the file cannot be written.
        """
        if self.format.write is not None:
            self.format.write(self.source, out, model, self.photos)

    def can_be_written(self) -> bool:
        """Whether `write_again` takes cameras as the given ones; warns if only they prevent it."""
        if self.format.write is None:
            return False
        with scratch_folder() as folder:
            try:
                self.write_again(self.model, folder / "poses")
            except EdmHlocError as error:
                warn_once(f"The refined poses will not be written as {self.format.name}: {error}")
                return False
        return True


def format_of(path: Path) -> tuple[PoseFormat, Path]:
    """The format of a file or folder of poses, and the file or folder to read.

    Raises:
        EdmHlocError: there is no such path, or its kind is not known.
    """
    path = Path(path)
    if not path.exists():
        raise EdmHlocError(f"No poses at {path}: give the file or folder that holds them.")
    if colmap_folder(path) is not None:
        return _COLMAP, path
    if path.is_dir():
        held = next((name for name in _IN_FOLDERS if (path / name).is_file()), None)
        if held is None:
            raise EdmHlocError(
                f"{path} holds neither a COLMAP model (images.txt or .bin) nor one of "
                f"{', '.join(_IN_FOLDERS)}: give the file of the poses itself."
            )
        path = path / held
    for known in FORMATS:
        if path.suffix.lower() == known.suffix:
            require_file(path)
            return (_in_json(path) if known.suffix == ".json" else known), path
    raise EdmHlocError(
        f"{path}: poses are read from {', '.join(f'{f.name} ({f.suffix})' for f in FORMATS)} or a "
        "COLMAP model; name the file as one of these."
    )


def _in_json(path: Path) -> PoseFormat:
    """The format of a JSON file: OpenSfM's is a list, and only Meshroom's has poses by number.

    One that is neither is left to the reader of nerfstudio's, which says what it lacks.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)  # a list may hold millions of points
            if start.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").startswith(b"["):
                return _OPENSFM
            return _MESHROOM if b'"poseId"' in start + file.read() else _NERFSTUDIO
    except OSError as error:
        raise EdmHlocError(f"Cannot read {path}: {error.strerror or error}.") from error


def read_given_poses(
    path: Path,
    photos: PhotosAtHand,
    known: Mapping[str, pycolmap.Camera] | None = None,
    listed: Collection[str] | None = None,
) -> GivenPoses:
    """Reads poses for photos, with intrinsics from the file, from `known`, or from EXIF data.

    Args:
        path: the file or folder, of any of the formats.
        photos: the photos at hand.
        known: intrinsics by the photo's name, which count before those of the file.
        listed: the photos to use, whose poses are kept; None for all.

    Raises:
        EdmHlocError: the file is damaged, of another kind or of other photos; a photo has two
            poses; intrinsics are missing or for another photo; all photos are at one place.
    """
    kind, file = format_of(path)
    chosen = frozenset(photos.names if listed is None else listed)
    used = [name for name in photos.names if name in chosen]
    given = [pose for pose in _read(kind, file, photos) if pose.name in chosen]
    if len(given) < _LEAST:
        example = used[0] if used else "none"
        raise EdmHlocError(
            f"{file} ({kind.name}) has poses for {len(given)} of the {len(used)} photos in "
            f"{photos.root}, and {_LEAST} are needed: are the names the same? The first photo is "
            f"{example!r}."
        )
    if known is not None:
        given = [replace(pose, camera=known.get(pose.name, pose.camera)) for pose in given]
    posed = _with_cameras(file, photos, given)
    if len(posed) < _LEAST:
        raise EdmHlocError(
            f"{len(posed)} of the {len(given)} photos in {photos.root} that {file} has poses for "
            f"can be read, and {_LEAST} are needed: copy them again."
        )
    centres = np.array([pose.cam_from_world.inverse().translation for pose in posed])
    if np.ptp(centres, axis=0).max() <= 1e-9 * np.abs(centres).max():
        raise EdmHlocError(
            f"{file} ({kind.name}) has all {len(posed)} photos at one place: positions of the "
            "cameras are needed. To find them without any: edm-hloc reconstruct."
        )
    names = {pose.name for pose in posed}
    unposed = tuple(name for name in used if name not in names)
    return GivenPoses(kind, file, _model(posed), photos, unposed)


def read_poses_alone(path: Path, photos: PhotosAtHand) -> dict[str, pycolmap.Rigid3d]:
    """cam_from_world by the photo's name, from a file of any of the formats.

    Raises:
        EdmHlocError: the file is damaged, or of another kind; a photo has two poses.
    """
    kind, file = format_of(path)
    return {pose.name: pose.cam_from_world for pose in _read(kind, file, photos)}


def _read(kind: PoseFormat, file: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """The poses of a file in the order of the photos' names, each photo once."""
    given = kind.read(file, photos)
    photos.report(file)
    counts = Counter(pose.name for pose in given)
    twice = {name for name, count in counts.items() if count > 1}
    if twice:
        raise EdmHlocError(f"{file} has two poses for {min(twice)}: remove one of them.")
    return sorted(given, key=lambda pose: pose.name)


def _with_cameras(file: Path, photos: PhotosAtHand, given: Sequence[GivenPose]) -> list[GivenPose]:
    """The poses with cameras for the photos as they are stored."""
    bare = [pose.name for pose in given if pose.camera is None]
    found: dict[str, pycolmap.Camera] = {}
    if bare:
        found, _ = photo_cameras(photos.root, bare, CameraOptions(model="SIMPLE_RADIAL"))
        guessed = [name for name, camera in found.items() if not camera.has_prior_focal_length]
        if guessed:
            raise EdmHlocError(
                f"{file} has no intrinsics, and the EXIF data of {guessed[0]} tell no focal length "
                f"(nor do those of {len(guessed) - 1} more photos): give them by --known."
            )
    posed, scaled = [], []
    fitted: dict[tuple[str, tuple[int, int]], pycolmap.Camera] = {}
    for pose in given:
        try:
            size = photos.size(pose.name)
        except ImageError as error:
            warn_once(f"Skipping a photo: {error}")
            continue
        camera = pose.camera or found.get(pose.name)
        if camera is None:
            continue
        key = camera_text(camera), size
        if key not in fitted:
            where = photos.root / pose.name
            fitted[key] = camera_for_network(camera, size, where, f"the poses {file}")
        if size != (camera.width, camera.height):
            scaled.append(Scaled(pose.name, camera, fitted[key]))
        posed.append(replace(pose, camera=fitted[key]))
    warn_of_scaled(scaled, f"the poses {file}")
    return posed


def _model(posed: Sequence[GivenPose]) -> pycolmap.Reconstruction:
    """A model with a camera for each set of equal intrinsics."""
    model = pycolmap.Reconstruction()
    ids: dict[str, int] = {}
    for number, pose in enumerate(posed, start=1):
        assert pose.camera is not None
        text = camera_text(pose.camera)
        if text not in ids:
            ids[text] = len(ids) + 1
            camera = pycolmap.Camera(pose.camera.todict())
            camera.camera_id = ids[text]
            model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=pose.name, camera_id=ids[text], image_id=number)
        model.add_image_with_trivial_frame(image, pose.cam_from_world)
    return model

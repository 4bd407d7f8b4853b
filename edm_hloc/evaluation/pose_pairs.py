"""Pairs of photos with their true relative pose, from the formats in which they are published."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap

from edm_hloc.base.colmap import is_model, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import to_colmap
from edm_hloc.images.decode import photo_size
from edm_hloc.images.sizes import fit_model
from edm_hloc.pairs.index_files import (
    SCANNET_DEPTH_SIZE,
    ScanNetIntrinsics,
    read_megadepth_index,
    read_scannet_index,
    read_scannet_pose,
)
from edm_hloc.pairs.with_truth import read_pairs_with_gt

logger = logging.getLogger(__name__)

_INTRINSICS = "intrinsics.npz"  # beside ScanNet's index files


@dataclass(frozen=True)
class PosePair:
    """Two photos with their cameras and their relative pose.

    Attributes:
        name0, name1: paths of the photos, relative to their folder.
        camera0, camera1: cameras at the size in whose pixels the thresholds of the evaluation are
            measured, which may differ from the size of the photos.
        size0, size1: (width, height) of the photos.
        T_0to1: (4, 4), from the coordinates of camera 0 to those of camera 1.
    """

    name0: str
    name1: str
    camera0: pycolmap.Camera
    camera1: pycolmap.Camera
    size0: tuple[int, int]
    size1: tuple[int, int]
    T_0to1: np.ndarray

    @property
    def rotation(self) -> float:
        """Angle of the relative rotation in degrees."""
        return float(rotation_angle(self.T_0to1[:3, :3]))


def rotation_angle(R: np.ndarray) -> np.ndarray:
    """Angles of (…, 3, 3) rotation matrices in degrees."""
    # The Frobenius norm of R − I is accurate for small angles, where the trace has lost them to
    # rounding.
    chord = np.linalg.norm(R - np.eye(3), axis=(-2, -1))
    return np.degrees(2 * np.arcsin(np.minimum(1.0, chord / np.sqrt(8))))


def read_pose_pairs(truth: Path, images: Path, resize_max: int) -> list[PosePair]:
    """Reads pairs with their relative pose; the format is recognised by what `truth` is.

    - A text file: SuperGlue's `pairs_with_gt`. A folder with a COLMAP model: all pairs of its
      images. Both are evaluated in pixels of the photos reduced to a longest side of `resize_max`,
      as in SuperGlue.
    - An `*.npz` file or a folder of them: LoFTR's index files. With `intrinsics.npz` beside them
      they are ScanNet's, evaluated at 640 × 480 px, otherwise MegaDepth's, evaluated in pixels of
      the photos at full size; both as in LoFTR.

    Args:
        images: folder of the photos; for LoFTR's index files the root of the data set.
        resize_max: longest side in pixels; not used with LoFTR's index files.

    Raises:
        EdmHlocError: a file or folder is missing, or malformed.
    """
    for path, what in ((truth, "file or folder"), (images, "folder of photos")):
        if not path.exists():
            raise EdmHlocError(f"There is no {what} {path}.")
    if truth.is_dir() and is_model(truth):
        return _from_model(truth, images, resize_max)
    data = index_of(truth)
    if data is None:
        return _from_list(truth, images, resize_max)
    folder = truth if truth.is_dir() else truth.parent
    paths = sorted(truth.glob("[!.]*.npz")) if truth.is_dir() else [truth]
    intrinsics = folder / _INTRINSICS
    paths = [path for path in paths if path != intrinsics]
    if not paths:
        raise EdmHlocError(
            f"{truth} holds neither a COLMAP model (cameras, images and points3D) nor *.npz "
            "index files as LoFTR has them."
        )
    if data == "scannet":
        K_of_scans = ScanNetIntrinsics(intrinsics)
        return [pair for path in paths for pair in _scannet(path, K_of_scans, images)]
    return [pair for path in paths for pair in _megadepth(path, images)]


def index_of(truth: Path) -> Literal["megadepth", "scannet"] | None:
    """The data set of LoFTR's that a file or folder is an index of; None for other known poses."""
    if truth.suffix != ".npz" and (not truth.is_dir() or is_model(truth)):
        return None
    folder = truth if truth.is_dir() else truth.parent
    return "scannet" if (folder / _INTRINSICS).is_file() else "megadepth"


def _from_list(path: Path, images: Path, resize_max: int) -> list[PosePair]:
    listed = read_pairs_with_gt(path)
    names = [name for pair in listed for name in (pair.name0, pair.name1)]
    sizes = _sizes(images, names, path)
    pairs = []
    for pair in listed:
        if pair.rotation0 or pair.rotation1:
            raise EdmHlocError(
                f"{path}: {pair.name0}, {pair.name1} have an EXIF rotation, which is not "
                "supported: turn the photos and their intrinsics upright."
            )
        size0, size1 = sizes[pair.name0], sizes[pair.name1]
        camera0 = _resized(_pinhole(pair.K0, size0), resize_max)
        camera1 = _resized(_pinhole(pair.K1, size1), resize_max)
        pairs.append(PosePair(pair.name0, pair.name1, camera0, camera1, size0, size1, pair.T_0to1))
    return pairs


def _from_model(path: Path, images: Path, resize_max: int) -> list[PosePair]:
    model, _ = fit_model(read_model(path), images, f"the model {path}")
    posed = []
    for name, image in posed_images(model).items():
        if not (images / name).is_file():
            logger.warning("%s of the model %s is not in %s.", name, path, images)
            continue
        camera = _resized(pycolmap.Camera(model.cameras[image.camera_id].todict()), resize_max)
        posed.append((name, camera, _matrix(image.cam_from_world())))
    if len(posed) < 2:
        raise EdmHlocError(f"{images} has fewer than two of the photos of the model {path}.")
    sizes = _sizes(images, [name for name, _, _ in posed], path)
    return [
        PosePair(a, b, camera0, camera1, sizes[a], sizes[b], pose1 @ np.linalg.inv(pose0))
        for i, (a, camera0, pose0) in enumerate(posed)
        for b, camera1, pose1 in posed[i + 1 :]
    ]


def _megadepth(path: Path, root: Path) -> list[PosePair]:
    index = read_megadepth_index(path)
    names = {i: index.image_path(i) for pair in index.pairs for i in pair}
    sizes = _sizes(root, names.values(), path)
    cameras = {i: _pinhole(index.K(i), sizes[name]) for i, name in names.items()}
    pairs = []
    for i, j in index.pairs:
        a, b = names[i], names[j]
        T = index.T_0to1(i, j)
        pairs.append(PosePair(a, b, cameras[i], cameras[j], sizes[a], sizes[b], T))
    return pairs


def _scannet(path: Path, intrinsics: ScanNetIntrinsics, root: Path) -> list[PosePair]:
    pairs = []
    for scan, *frames in read_scannet_index(path).pairs:
        a, b = (f"{scan}/color/{frame}.jpg" for frame in frames)
        sizes = _sizes(root, [a, b], path)
        pose0, pose1 = (read_scannet_pose(root / scan, frame) for frame in frames)
        camera = _pinhole(intrinsics.K(scan), SCANNET_DEPTH_SIZE)
        T = pose1 @ np.linalg.inv(pose0)
        pairs.append(PosePair(a, b, camera, camera, sizes[a], sizes[b], T))
    return pairs


def _sizes(images: Path, names: Iterable[str], truth: Path) -> dict[str, tuple[int, int]]:
    """(width, height) of the photos that `truth` names, from their headers."""
    names = sorted(set(names))
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise EdmHlocError(
            f"{len(missing)} of the photos of {truth} are not in {images}, such as {missing[0]}: "
            "give the folder that these names are relative to."
        )
    return {name: photo_size(images / name) for name in names}


def _pinhole(K: np.ndarray, size: tuple[int, int]) -> pycolmap.Camera:
    """A camera with the intrinsics K in hloc's pixel frame, for photos of (width, height)."""
    params = [K[0, 0], K[1, 1], *to_colmap(K[:2, 2])]
    return pycolmap.Camera(model="PINHOLE", width=size[0], height=size[1], params=params)


def _resized(camera: pycolmap.Camera, resize_max: int) -> pycolmap.Camera:
    """The same camera for photos reduced to a longest side of `resize_max` pixels."""
    scale = min(1.0, resize_max / max(camera.width, camera.height))
    camera.rescale(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
    return camera


def _matrix(pose: pycolmap.Rigid3d) -> np.ndarray:
    return np.vstack([pose.matrix(), [0, 0, 0, 1]])

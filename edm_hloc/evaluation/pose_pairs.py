"""Pairs of photos with their true relative pose, from the formats in which they are published."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import is_model, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.decode import photo_size
from edm_hloc.pairs.with_truth import read_index, read_pairs_with_gt, read_scannet_pose

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PosePair:
    """Two photos and how the second camera stands to the first.

    Attributes:
        name0, name1: of the photos, relative to their folder.
        camera0, camera1: their size is the pixel frame in which thresholds of the evaluation
            count; it may be another one than that of the photos.
        size0, size1: (width, height) of the photos.
        T_0to1: (4, 4) from camera 0 to camera 1.
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
        """Angle between the two cameras in degrees."""
        return float(rotation_angle(self.T_0to1[:3, :3]))


def rotation_angle(R: np.ndarray) -> np.ndarray:
    """Angles of (…, 3, 3) rotations in degrees."""
    # The chord gives small angles exactly, where the trace has lost them to rounding.
    chord = np.linalg.norm(R - np.eye(3), axis=(-2, -1))
    return np.degrees(2 * np.arcsin(np.minimum(1.0, chord / np.sqrt(8))))


def read_pose_pairs(truth: Path, images: Path, resize_max: int) -> list[PosePair]:
    """Read pairs in whichever of the known formats `truth` is.

    A file of lines: SuperGlue's `pairs_with_gt`. A folder with a COLMAP model: all pairs of its
    images. Either is evaluated in pixels of the photos at a longest side of `resize_max`, as
    SuperGlue does.
    A folder of `*.npz` files, or one of them: an index of LoFTR's. With `intrinsics.npz` beside
    it is one of ScanNet, evaluated in pixels of the depth maps (640×480), else one of MegaDepth,
    evaluated in pixels of the photos as they are; both as LoFTR does.

    Args:
        images: folder of the photos; for LoFTR's indices their root.

    Raises:
        EdmHlocError: there is no such thing, or it is malformed.
    """
    for path, what in ((truth, "file or folder"), (images, "folder of photos")):
        if not path.exists():
            raise EdmHlocError(f"There is no {what} {path}.")
    if truth.is_dir() and is_model(truth):
        return _from_model(truth, images, resize_max)
    if truth.suffix == ".npz" or truth.is_dir():
        folder = truth if truth.is_dir() else truth.parent
        paths = sorted(truth.glob("*.npz")) if truth.is_dir() else [truth]
        intrinsics = folder / "intrinsics.npz"
        paths = [path for path in paths if path != intrinsics]
        if not paths:
            raise EdmHlocError(
                f"{truth} holds neither a COLMAP model (cameras, images and points3D) nor *.npz "
                "index files as LoFTR has them."
            )
        if intrinsics.is_file():
            return [pair for path in paths for pair in _scannet(path, intrinsics, images)]
        return [pair for path in paths for pair in _megadepth(path, images)]
    return _from_list(truth, images, resize_max)


def _from_list(path: Path, images: Path, resize_max: int) -> list[PosePair]:
    listed = read_pairs_with_gt(path)
    sizes = _sizes(images, [name for pair in listed for name in (pair.name0, pair.name1)])
    pairs = []
    for pair in listed:
        if pair.rotation0 or pair.rotation1:
            raise EdmHlocError(
                f"{path}: {pair.name0}, {pair.name1} have an EXIF rotation, which is not "
                "supported: turn the photos and their intrinsics upright."
            )
        size0, size1 = sizes[pair.name0], sizes[pair.name1]
        camera0 = _resized(_pinhole(pair.K0, *size0), resize_max)
        camera1 = _resized(_pinhole(pair.K1, *size1), resize_max)
        pairs.append(PosePair(pair.name0, pair.name1, camera0, camera1, size0, size1, pair.T_0to1))
    return pairs


def _from_model(path: Path, images: Path, resize_max: int) -> list[PosePair]:
    model = read_model(path)
    views = []
    for name, image in posed_images(model).items():
        if not (images / name).is_file():
            logger.warning("%s of the model %s is not in %s.", name, path, images)
            continue
        camera = _resized(pycolmap.Camera(model.cameras[image.camera_id].todict()), resize_max)
        views.append((name, camera, _matrix(image.cam_from_world())))
    if len(views) < 2:
        raise EdmHlocError(f"{images} has fewer than two of the photos of the model {path}.")
    sizes = _sizes(images, [name for name, _, _ in views])
    return [
        PosePair(a, b, camera0, camera1, sizes[a], sizes[b], pose1 @ np.linalg.inv(pose0))
        for i, (a, camera0, pose0) in enumerate(views)
        for b, camera1, pose1 in views[i + 1 :]
    ]


def _megadepth(path: Path, root: Path) -> list[PosePair]:
    index = read_index(path, "image_paths", "intrinsics", "poses", "pair_infos")
    numbers = [tuple(int(v) for v in info[0]) for info in index["pair_infos"]]
    names = {i: str(index["image_paths"][i]) for pair in numbers for i in pair}
    sizes = _sizes(root, list(names.values()))
    cameras = {
        i: _pinhole(np.asarray(index["intrinsics"][i], float), *sizes[name])
        for i, name in names.items()
    }
    pairs = []
    for i, j in numbers:
        pose0, pose1 = (np.asarray(index["poses"][k], float) for k in (i, j))
        a, b, T = names[i], names[j], pose1 @ np.linalg.inv(pose0)
        pairs.append(PosePair(a, b, cameras[i], cameras[j], sizes[a], sizes[b], T))
    return pairs


def _scannet(path: Path, intrinsics: Path, root: Path) -> list[PosePair]:
    index = read_index(path, "name")
    cameras: dict[str, pycolmap.Camera] = {}
    pairs = []
    for scene, scan, *frames in index["name"]:
        folder = f"scene{int(scene):04d}_{int(scan):02d}"
        if folder not in cameras:
            K = np.asarray(read_index(intrinsics, folder)[folder], float).reshape(-1)
            K = K.reshape(4, 4)[:3, :3] if K.size == 16 else K.reshape(3, 3)
            cameras[folder] = _pinhole(K, 640, 480)
        pose0, pose1 = (read_scannet_pose(root / folder, int(frame)) for frame in frames)
        a, b = (f"{folder}/color/{int(frame)}.jpg" for frame in frames)
        sizes = _sizes(root, [a, b])
        camera, T = cameras[folder], pose1 @ np.linalg.inv(pose0)
        pairs.append(PosePair(a, b, camera, camera, sizes[a], sizes[b], T))
    return pairs


def _sizes(images: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(width, height) of photos, from their headers."""
    return {name: photo_size(images / name) for name in set(names)}


def _pinhole(K: np.ndarray, width: int, height: int) -> pycolmap.Camera:
    """A camera from intrinsics where the top-left pixel's centre is (0, 0); COLMAP: (½, ½)."""
    params = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5]
    return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params)


def _resized(camera: pycolmap.Camera, resize_max: int) -> pycolmap.Camera:
    scale = min(1.0, resize_max / max(camera.width, camera.height))
    camera.rescale(max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
    return camera


def _matrix(pose: pycolmap.Rigid3d) -> np.ndarray:
    return np.vstack([pose.matrix(), [0, 0, 0, 1]])

"""InLoc's laser scans as the source of 3D points."""

from __future__ import annotations

import io
import logging
import math
import shutil
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pycolmap
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.images.decode import photo_size
from edm_hloc.keypoints.h5 import FeatureReader

logger = logging.getLogger(__name__)

CUTOUT_FOV = math.radians(60)  # of the cutouts of the panoramas, across
_SMOOTH = 0.1  # neighbours in a scan whose distances differ by more do not lie on one surface
_CACHED_IMAGES = 256
_WARNED = 5  # images without a scan that are named
_POSE_GRID = 20  # pixels on each axis that give the pose of a cutout


def read_scan(path: Path) -> np.ndarray:
    """The points of a scan: (H, W, 3) in the scanner's own frame, NaN where there are none.

    Raises:
        EdmHlocError: there is no such file, or it does not hold XYZcut.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise EdmHlocError(f"No scan {path}: unpack the .mat files of the cutouts.")
    try:
        if h5py.is_hdf5(path):  # saved again by a newer MATLAB, whose axes come in reverse
            with h5py.File(path) as file:
                scan = np.asarray(file["XYZcut"]).T
        else:
            scan = np.asarray(loadmat(path)["XYZcut"])
    except Exception as error:  # of whatever kind scipy meets
        raise EdmHlocError(
            f"{path} is damaged or no scan of InLoc ({error}): get it again."
        ) from error
    if scan.ndim != 3 or scan.shape[2] != 3:
        raise EdmHlocError(f"{path}: XYZcut is {scan.shape}, not (height, width, 3).")
    return scan


def scan_points(scan: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """The points of a scan at (N, 2) pixels, hloc's frame: (N, 3) float64, NaN where unknown.

    Interpolated between the four pixels around a keypoint where they lie on one surface, else the
    nearest one.
    """
    height, width = scan.shape[:2]
    x, y = np.asarray(keypoints, np.float64).T
    inside = (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)
    x, y = np.where(inside, x, 0).clip(0, width - 1), np.where(inside, y, 0).clip(0, height - 1)
    left = np.minimum(x.astype(int), max(0, width - 2))
    top = np.minimum(y.astype(int), max(0, height - 2))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    corners = np.stack(
        [scan[r, c] for r, c in ((top, left), (top, right), (bottom, left), (bottom, right))]
    ).astype(np.float64)
    a, b = x - left, y - top
    weights = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    distance = np.linalg.norm(corners, axis=2)  # the scanner stands in its frame's origin
    smooth = distance.max(axis=0) <= (1 + _SMOOTH) * distance.min(axis=0)  # not so for NaN
    nearest = scan[np.rint(y).astype(int), np.rint(x).astype(int)].astype(np.float64)
    points = np.where(smooth[:, None], np.einsum("kn,knd->nd", weights, corners), nearest)
    points[~inside | ~np.isfinite(points).all(axis=1)] = np.nan
    return points


def scan_alignment(dataset: Path, name: str) -> np.ndarray:
    """(4, 4) world_from_scan of the scan behind a database image.

    Raises:
        EdmHlocError: the file is missing or not as expected.
    """
    path = alignment_path(dataset, name)
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()[7:11]
        matrix = np.array([[float(word) for word in line.split()] for line in lines])
    except OSError as error:
        raise EdmHlocError(
            f"Cannot read the alignment {path} ({error.strerror}): unpack the dataset's alignments."
        ) from error
    except ValueError:
        matrix = np.zeros(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise EdmHlocError(f"{path}: lines 8 to 11 are not a 4 × 4 matrix.")
    return matrix


def alignment_path(dataset: Path, name: str) -> Path:
    """Of the image .../FLOOR/SCAN/BUILDING_cutout_….jpg."""
    floor, scan, file = ("", "", *name.split("/"))[-3:]
    folder = dataset / "database" / "alignments" / floor / "transformations"
    return folder / f"{file[:3]}_trans_{scan}.txt"


class ScanPoints:
    """The points behind the keypoints of database images, looked up once and kept in files.

    Args:
        dataset: InLoc's folder.
        folder: of the files of points.
        names: database images that have a file there.
    """

    def __init__(self, dataset: Path, folder: Path, names: Collection[str]) -> None:
        self.dataset, self.folder = dataset, folder
        self._names = sorted(names)
        self._known = frozenset(names)
        self._cached_points = lru_cache(_CACHED_IMAGES)(self._points)

    def names(self) -> list[str]:
        return self._names

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def points(self, name: str) -> np.ndarray:
        return self._cached_points(name)

    def _points(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise EdmHlocError(f"Cannot read {path} ({error}): delete it and run again.") from error

    def clusters(self, names: Sequence[str]) -> list[list[str]]:
        """Images of one floor see each other's points, for all that is known."""
        floors: dict[str, list[str]] = {}
        for name in names:
            floors.setdefault("/".join(name.split("/")[:-2]), []).append(name)
        return sorted(floors.values(), key=len, reverse=True)

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        """Of a cutout, which the dataset does not state: found by PnP from its own scan."""
        try:
            scan = read_scan(self.dataset / f"{name}.mat")
            T = scan_alignment(self.dataset, name)
        except EdmHlocError:
            return None
        height, width = scan.shape[:2]
        x, y = np.meshgrid(
            np.linspace(0, width - 1, _POSE_GRID).round(),
            np.linspace(0, height - 1, _POSE_GRID).round(),
        )
        pixels = np.stack([x.ravel(), y.ravel()], axis=1)
        points = scan_points(scan, pixels)
        known = np.isfinite(points).all(axis=1)
        if np.count_nonzero(known) < 10:
            return None
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac.random_seed = 0
        camera = pycolmap.Camera.create_from_model_name(
            1, "SIMPLE_PINHOLE", width / 2 / math.tan(CUTOUT_FOV / 2), width, height
        )
        world = points[known] @ T[:3, :3].T + T[:3, 3]
        found = pycolmap.estimate_and_refine_absolute_pose(
            pixels[known] + 0.5, world, camera, options
        )
        return found["cam_from_world"] if found else None


def look_up_points(dataset: Path, features: Path, names: Sequence[str], folder: Path) -> list[str]:
    """Writes the points behind the keypoints of each image; gives the images without a scan.

    Each scan is read once. The points of an interrupted call are kept unless `features` changed;
    scans that were missing are looked for again.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    stamp = folder / ".features"
    made_of = str(features.stat().st_mtime_ns)
    missing = []
    try:
        if folder.is_dir() and not (stamp.is_file() and stamp.read_text() == made_of):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(made_of)
    except OSError as error:
        raise EdmHlocError(f"Cannot write into {folder}: {error.strerror}.") from error
    with FeatureReader(features) as reader:
        for name in tqdm(names, desc="Looking up scans", unit="scan", disable=None):
            path = folder / f"{name}.npy"
            if path.is_file() or name not in reader:
                continue
            keypoints = reader.keypoints(name)
            try:
                points = _world_points(dataset, name, keypoints)
            except EdmHlocError as error:
                missing.append(name)
                if len(missing) <= _WARNED:
                    logger.warning("%s gives no points. %s", name, error)
                continue
            file = io.BytesIO()
            np.save(file, points)
            write_whole(path, file.getvalue())
    if len(missing) > _WARNED:
        logger.warning("%d more images give no points.", len(missing) - _WARNED)
    return missing


def _world_points(dataset: Path, name: str, keypoints: np.ndarray) -> np.ndarray:
    T = scan_alignment(dataset, name)
    scan = read_scan(dataset / f"{name}.mat")
    size = photo_size(dataset / name)
    height, width = scan.shape[:2]
    scale = np.array([width, height]) / np.array(size)  # 1 in the dataset itself
    points = scan_points(scan, (keypoints + 0.5) * scale - 0.5)
    return points @ T[:3, :3].T + T[:3, 3]

"""InLoc's laser scans: reading them, and the 3D points behind the keypoints of its cutouts.

A cutout is a perspective photo cut out of a panorama. Beside each, the dataset has a scan with one
3D point a pixel in the scanner's own frame, and for each scanner an alignment with the world.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.fingerprint import file_stamp, fingerprint_of
from edm_hloc.base.frames import from_colmap, inside, to_colmap
from edm_hloc.base.progress import track
from edm_hloc.images.decode import photo_size
from edm_hloc.keypoints.h5 import FeatureReader

logger = logging.getLogger(__name__)

CUTOUT_FOV = math.radians(60)  # horizontal field of view of the cutouts
_SURFACE_TOLERANCE = 0.1  # largest relative difference in range of neighbours on one surface
_CACHED_IMAGES = 256  # images whose points stay in memory: 24 bytes a keypoint
_NAMED_IMAGES = 5  # images without points that are named in a warning each
_POSE_GRID = 20  # points along each axis of a scan that the pose of a cutout is computed from
_MIN_POSE_POINTS = 10
_RECORD = ".features"  # of what the points were made from; it marks their folder as made here
_RIGID = 0.01  # by which the numbers of an alignment may be off a rotation, as they are rounded
_RULES = 3  # raised when scans are read in another way, so that earlier points are made anew


def read_scan(path: Path) -> np.ndarray:
    """Reads a scan: (H, W, 3) points in the scanner's own frame, NaN where there are none.

    Zeros count as none: no scanner measures the place where it stands, and programs that cannot
    write NaN write zero.

    Args:
        path: a .mat file of MATLAB's format 5 or 7.3 with the key XYZcut.

    Raises:
        EdmHlocError: there is no such file, or it does not hold a scan with points.
    """
    from scipy.io import loadmat

    with _scan_errors(path):
        if h5py.is_hdf5(path):  # format 7.3, whose axes come in reverse
            with h5py.File(path) as file:
                scan = np.asarray(file["XYZcut"]).T
        else:
            scan = np.asarray(loadmat(path)["XYZcut"])
    _check_form(path, scan.shape, str(scan.dtype))
    known = np.isfinite(scan).all(axis=2) & scan.any(axis=2)
    if not known.any():
        raise EdmHlocError(
            f"{path}: XYZcut, {scan.shape}, holds no point, only zeros or NaN: get it again."
        )
    return np.where(known[..., None], scan, np.nan)


def check_scan(dataset: Path, name: str) -> None:
    """Checks the alignment of a cutout and the shape of its scan, of which no point is read.

    Raises:
        EdmHlocError: one of them is missing or damaged, or the scan is not of the photo's shape.
    """
    from scipy.io import whosmat

    scan_alignment(dataset, name)
    path = scan_path(dataset, name)
    with _scan_errors(path):
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                shape, kind = file["XYZcut"].shape[::-1], str(file["XYZcut"].dtype)
        else:
            shape, kind = {variable: form for variable, *form in whosmat(path)}["XYZcut"]
    _check_form(path, shape, kind)
    _check_shape(path, shape[:2], photo_size(dataset / name))


def _check_form(path: Path, shape: tuple[int, ...], kind: str) -> None:
    """Raises EdmHlocError if an array is not (height, width, 3) of a kind of real numbers."""
    if len(shape) != 3 or shape[2] != 3 or not re.match("u?int|float|single|double", kind):
        raise EdmHlocError(
            f"{path}: XYZcut is {shape} of {kind}, not (height, width, 3) of real numbers: get it "
            "again."
        )


@contextlib.contextmanager
def _scan_errors(path: Path) -> Iterator[None]:
    """Raises EdmHlocError in place of what reading a scan raises, and where there is none."""
    if not path.is_file():
        raise EdmHlocError(f"No scan {path}: unpack the .mat files of the cutouts.")
    try:
        yield
    except Exception as error:  # scipy raises almost anything on damaged files
        raise EdmHlocError(
            f"{path} is damaged or no scan of InLoc ({error}): get it again."
        ) from error


def scan_points(scan: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """The 3D points of a scan at keypoints: (N, 3) float64, NaN where unknown.

    Interpolated bilinearly between the four pixels around a keypoint where these lie on one
    surface (their ranges differ by at most 10 %), else taken from the nearest pixel.

    Args:
        scan: (H, W, 3) in the scanner's frame.
        keypoints: (N, 2) in pixels of the scan, hloc's frame.
    """
    height, width = scan.shape[:2]
    keypoints = np.asarray(keypoints, np.float64)
    within = inside(keypoints, width, height, margin=0.5)
    x, y = np.where(within, keypoints.T, 0)
    x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    left = np.minimum(x.astype(int), max(0, width - 2))
    top = np.minimum(y.astype(int), max(0, height - 2))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    corners = np.stack(
        [scan[r, c] for r, c in ((top, left), (top, right), (bottom, left), (bottom, right))]
    ).astype(np.float64)
    a, b = x - left, y - top
    weights = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    ranges = np.linalg.norm(corners, axis=2)  # distances from the scanner, the frame's origin
    # false where a range is NaN
    one_surface = ranges.max(axis=0) <= (1 + _SURFACE_TOLERANCE) * ranges.min(axis=0)
    nearest = scan[np.rint(y).astype(int), np.rint(x).astype(int)].astype(np.float64)
    points = np.where(one_surface[:, None], np.einsum("kn,knd->nd", weights, corners), nearest)
    points[~within | ~np.isfinite(points).all(axis=1)] = np.nan
    return points


def scan_path(dataset: Path, name: str) -> Path:
    """The file with the scan of a cutout."""
    return dataset / f"{name}.mat"


def alignment_path(dataset: Path, name: str) -> Path:
    """The file with the alignment of the cutout …/FLOOR/SCAN/BUILDING_cutout_….jpg."""
    floor, scan, file = ("", "", *name.split("/"))[-3:]
    folder = dataset / "database" / "alignments" / floor / "transformations"
    return folder / f"{file[:3]}_trans_{scan}.txt"


def scan_alignment(dataset: Path, name: str) -> np.ndarray:
    """Reads world_from_scan (4, 4) of the scan of a cutout.

    Raises:
        EdmHlocError: the file is missing, or its lines 8 to 11 are not a rigid transformation.
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
    R = matrix[:3, :3]
    turns = np.abs(R @ R.T - np.eye(3)).max() < _RIGID and np.linalg.det(R) > 0
    if not turns or np.abs(matrix[3] - [0, 0, 0, 1]).max() > _RIGID:
        raise EdmHlocError(
            f"{path}: lines 8 to 11 are not a rotation with a translation in the last column and "
            "0 0 0 1 below: get the file again."
        )
    return matrix


class ScanPoints:
    """The 3D points behind the keypoints of cutouts, from the files of `write_scan_points`.

    Args:
        dataset: InLoc's folder.
        folder: folder of the files of points.
        names: cutouts that have a file there.
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
        path = _points_path(self.folder, name)
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise EdmHlocError(f"Cannot read {path} ({error}): delete it and run again.") from error

    def clusters(self, names: Sequence[str]) -> list[list[str]]:
        """Groups of cutouts on the same floor: which of them are covisible is not known."""
        floors: dict[str, list[str]] = {}
        for name in names:
            floors.setdefault("/".join(name.split("/")[:-2]), []).append(name)
        return sorted(floors.values(), key=len, reverse=True)

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        """cam_from_world of a cutout, which the dataset does not state: PnP from its own scan."""
        try:
            scan, _ = _scan_of_photo(self.dataset, name)
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
        if np.count_nonzero(known) < _MIN_POSE_POINTS:
            return None
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac.random_seed = 0
        camera = pycolmap.Camera.create_from_model_name(
            1, "SIMPLE_PINHOLE", width / 2 / math.tan(CUTOUT_FOV / 2), width, height
        )
        found = pycolmap.estimate_and_refine_absolute_pose(
            to_colmap(pixels[known]), _to_world(T, points[known]), camera, options
        )
        return found["cam_from_world"] if found else None

    def fingerprint(self) -> str:
        stamps = {
            name: [
                file_stamp(_points_path(self.folder, name)),
                file_stamp(scan_path(self.dataset, name)),
                file_stamp(alignment_path(self.dataset, name)),
            ]
            for name in self._names
        }
        return fingerprint_of(["scans", stamps])


def write_scan_points(
    dataset: Path, features: Path, names: Sequence[str], folder: Path
) -> list[str]:
    """Writes the 3D points behind the keypoints of cutouts, a file each that `ScanPoints` reads.

    Each scan is read once. The files of an earlier call are kept unless `features`, the scan or its
    alignment changed since. Scans that were missing are looked for again.

    Args:
        dataset: InLoc's folder.
        features: H5 file of the cutouts' keypoints, hloc's frame.
        names: cutouts; those without keypoints are left out.
        folder: gets NAME.npy with (N, 3) world coordinates, NaN where unknown.

    Returns:
        The cutouts whose scan or alignment is missing or damaged, or whose scan does not fit the
        photo; a warning names the first.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    record = folder / _RECORD
    features_version = f"{_RULES} {features.stat().st_mtime_ns}"
    missing = []
    try:
        made_from = _read_record(record, features_version)
        if made_from is None:
            _remove_points(folder)
            folder.mkdir(parents=True, exist_ok=True)
            record.write_text(f"{features_version}\n")
    except OSError as error:
        raise EdmHlocError(f"Cannot write into {folder}: {error.strerror}.") from error
    with FeatureReader(features) as reader, record.open("a", encoding="utf-8") as log:
        for name in track(names, "Looking up scans", "scan"):
            path = _points_path(folder, name)
            stamps = [
                *(file_stamp(scan_path(dataset, name)) or ()),
                *(file_stamp(alignment_path(dataset, name)) or ()),
            ]
            kept = path.is_file() and made_from is not None and made_from.get(name) == stamps
            if kept or name not in reader:
                continue
            keypoints = reader.keypoints(name)
            try:
                points = _world_points(dataset, name, keypoints)
            except EdmHlocError as error:
                missing.append(name)
                if len(missing) <= _NAMED_IMAGES:
                    logger.warning("%s gives no points. %s", name, error)
                continue
            file = io.BytesIO()
            np.save(file, points)
            write_whole(path, file.getvalue())
            log.write(json.dumps([name, stamps]) + "\n")
            log.flush()
    if len(missing) > _NAMED_IMAGES:
        logger.warning("%d more images give no points.", len(missing) - _NAMED_IMAGES)
    return missing


def _read_record(path: Path, features_version: str) -> dict[str, list[int]] | None:
    """Stamps of scan and alignment that each file of points was made from, by the cutout's name.

    None if they were made from other keypoints, or there is no record that can be read. The end of
    the record may be missing, where a run was killed.
    """
    if not path.is_file():
        return None
    version, *lines = path.read_text("utf-8", errors="replace").split("\n")
    if version != features_version or not lines:
        return None
    found = {}
    for line in lines[:-1]:
        try:
            name, stamps = json.loads(line)
        except (ValueError, TypeError):
            continue
        found[name] = stamps
    return found


def _remove_points(folder: Path) -> None:
    """Removes the files of other keypoints, and nothing else that lies in the folder.

    Raises:
        EdmHlocError: the folder holds arrays, but this program has not marked it as its own.
    """
    points = list(folder.rglob("*.npy"))
    if points and not (folder / _RECORD).is_file():
        raise EdmHlocError(
            f"{folder} holds files that were not made here, such as {points[0].name}: move them or "
            "choose another output folder."
        )
    for path in points:
        path.unlink()


def _points_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _world_points(dataset: Path, name: str, keypoints: np.ndarray) -> np.ndarray:
    """World coordinates (N, 3) of a cutout's keypoints, NaN where unknown."""
    T = scan_alignment(dataset, name)
    scan, size = _scan_of_photo(dataset, name)
    height, width = scan.shape[:2]
    scale = np.array([width, height]) / np.array(size)  # 1 in the dataset itself
    # in COLMAP's frame, resizing is a multiplication
    return _to_world(T, scan_points(scan, from_colmap(to_colmap(keypoints) * scale)))


def _scan_of_photo(dataset: Path, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    """The scan of a cutout, and the width and height of the photo.

    Raises:
        EdmHlocError: one of them cannot be read, or they are not of the same shape.
    """
    path = scan_path(dataset, name)
    scan, size = read_scan(path), photo_size(dataset / name)
    _check_shape(path, scan.shape[:2], size)
    return scan, size


def _check_shape(path: Path, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Raises EdmHlocError if a scan of (rows, columns) is not of a photo of (width, height)."""
    (rows, columns), (width, height) = shape, size
    # either may be the other one resized, each side rounded to whole pixels
    rounding = max(width + height, columns + rows)
    if abs(columns * height - rows * width) <= rounding:
        return
    swapped = abs(columns * width - rows * height) <= rounding
    reason = ", with its first two axes swapped" if swapped else ""
    raise EdmHlocError(
        f"{path}: XYZcut has {rows} × {columns} points, but the photo {height} × {width} pixels "
        f"(height × width){reason}: get it again."
    )


def _to_world(world_from_scan: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.asarray(points @ world_from_scan[:3, :3].T + world_from_scan[:3, 3])

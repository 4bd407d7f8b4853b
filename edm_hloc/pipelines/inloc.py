"""InLoc, from the dataset's folder to a file that can be submitted; its laser scans as 3D points.

Published settings (hloc's) are the defaults. In the output folder, beside the files of
`edm_hloc.pipelines.localize`:

    scan_points/NAME.npy   (N, 3) world coordinates of an image's keypoints, NaN in holes
    InLoc_*.txt            the submission
"""

from __future__ import annotations

import io
import logging
import math
import shutil
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
import pycolmap
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import write_whole
from edm_hloc.images.decode import photo_size
from edm_hloc.images.find import find_images
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.queries import PoseOptions, QueryPose
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.from_retrieval import RetrievalOptions, check_retrieval, retrieve
from edm_hloc.pipelines.localize import find_poses, match_queries, submit
from edm_hloc.pipelines.run import Run, fingerprint_of

logger = logging.getLogger(__name__)

SOURCE = (
    "The dataset is at https://data.ciirc.cvut.cz/public/projects/2020VisualLocalization/InLoc/ "
    "(see https://www.visuallocalization.net/datasets)."
)
QUERY_FOCAL = 28 / 36  # of a query's longer side: 28 mm on a film 36 mm wide
CUTOUT_FOV = math.radians(60)  # of the cutouts of the panoramas, across
_SMOOTH = 0.1  # neighbours in a scan whose distances differ by more do not lie on one surface
_CACHED_IMAGES = 256
_WARNED = 5  # images without a scan that are named
_POSE_GRID = 20  # pixels on each axis that give the pose of a cutout


@dataclass(frozen=True)
class InLocOptions:
    """Settings of the pipeline.

    Attributes:
        retrieval: database images of each query.
        quantization: keypoints of all images. Scans have a point for every pixel, so points are
            merged within a pixel only.
        pose: of the queries.
    """

    retrieval: RetrievalOptions = field(default_factory=lambda: RetrievalOptions(number=40))
    quantization: QuantizationConfig = field(
        default_factory=lambda: QuantizationConfig(
            max_error=1.0, cell_size=1.0, max_kps=None, position="mean"
        )
    )
    pose: PoseOptions = field(default_factory=lambda: PoseOptions(max_error=48.0, min_matches=20))


# --------------------------------------------------------------------------- scans


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


# --------------------------------------------------------------------------- the dataset


@dataclass(frozen=True)
class InLocDataset:
    """Where things are in the dataset's folder."""

    root: Path

    def queries(self) -> list[str]:
        return [f"query/iphone7/{name}" for name in find_images(self.root / "query" / "iphone7")]

    def database(self) -> list[str]:
        cutouts = self.root / "database" / "cutouts"
        return [f"database/cutouts/{name}" for name in find_images(cutouts)]

    def problems(self) -> list[str]:
        """What is missing for a run, each with where to get it; nothing if all is there."""
        if not self.root.is_dir():
            return [
                f"No such folder: {self.root}. Give the folder of InLoc, with database and query "
                f"in it. {SOURCE}"
            ]
        needed = {
            "query/iphone7": "queries/iphone7.tar.gz",
            "database/cutouts": "cutouts.tar.gz",
            "database/alignments": "the alignments",
        }
        found = [
            f"{self.root / folder}/ is missing: unpack {archive} there."
            for folder, archive in needed.items()
            if not (self.root / folder).is_dir()
        ]
        return [*found, SOURCE] if found else []

    def missing_scans(self) -> list[str]:
        """Database images without their .mat file or their alignment, with what is missing."""
        missing = []
        for name in self.database():
            for path in (self.root / f"{name}.mat", alignment_path(self.root, name)):
                if not path.is_file():
                    missing.append(f"{name}: {path} is missing")
        return missing


def query_camera(width: int, height: int) -> pycolmap.Camera:
    """The phone of the queries: a focal length of 4032 · 28 / 36 px at 4032 × 3024."""
    focal = max(width, height) * QUERY_FOCAL
    params = [focal, width / 2, height / 2]
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=width, height=height, params=params)
    camera.has_prior_focal_length = True
    return camera


def localize_inloc(
    dataset: Path,
    out: Path,
    matcher: Matcher,
    options: InLocOptions | None = None,
    dense: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> tuple[Run, list[QueryPose], Path]:
    """Localizes all queries; a run that is in `out` already is continued.

    Returns:
        The record of the run, the answers, and the submission's path.

    Raises:
        EdmHlocError: something is missing in the dataset, or a step fails; what was computed is
            kept. A query that fails and a scan that is missing raise nothing.
    """
    options = options or InLocOptions()
    data = InLocDataset(Path(dataset))
    problems = data.problems()
    if problems:
        raise EdmHlocError("\n".join(problems))
    queries, database = data.queries(), data.database()
    check_retrieval(options.retrieval, queries, database)
    settings = {
        "command": "inloc",
        "dataset": str(dataset),
        "options": asdict(options),
    }
    with Run.begin(out, settings, matcher, overwrite=overwrite) as run:
        cameras, bad = {}, {}
        for query in queries:
            try:
                cameras[query] = query_camera(*photo_size(data.root / query))
            except ImageError as error:
                bad[query] = str(error)
        found = retrieve(run, options.retrieval, data.root, queries, database, matcher.device)
        matched = match_queries(
            run, data.root, found, matcher, options.quantization, dense, None, overwrite=overwrite
        )
        used = sorted(
            {image for images in found.values() for image in images}.intersection(database)
        )
        folder = out / "scan_points"
        missing = look_up_points(data.root, out / "features.h5", used, folder)
        run.results["missing_scans"] = missing
        points = ScanPoints(data.root, folder, set(used) - set(missing))
        matched = fingerprint_of([matched, missing])
        answers = find_poses(run, matched, queries, cameras, bad, found, points, options.pose)
        label = f"{options.retrieval.label}{options.retrieval.number}"
        submission = out / f"InLoc_{matcher.name}_{label}.txt"
        submit(submission, answers, points)
        return run, answers, submission

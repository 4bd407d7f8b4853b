"""Queries → camera poses: PnP over all matches of a query with known 3D points.

The points are those of a COLMAP model (`ModelPoints`) or of laser scans
(`edm_hloc.pipelines.inloc`). Every query leaves one line of JSON in a log as soon as it is done,
so that an interrupted run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pycolmap
from tqdm import tqdm

from edm_hloc.base.colmap import posed_images, quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import write_whole
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.decode import photo_size
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchReader
from edm_hloc.mapping.sfm import to_colmap

logger = logging.getLogger(__name__)

Status = Literal["localized", "closest", "failed"]

_BATCH = 32  # queries whose matches are in memory at a time
_CACHED_IMAGES = 1024  # database images whose points stay in memory: 24 bytes a keypoint
_SURE_INLIERS, _SURE_RATIO = 100, 0.1
_SURE_ROTATION = 0.2  # degrees: inliers by chance lie in one place, or are far off


@dataclass(frozen=True)
class PoseOptions:
    """How poses are found.

    Attributes:
        max_error: of an inlier's reprojection, pixels of the original photo.
        min_inliers: with fewer the query counts as not localized.
        min_matches: database images with fewer matches to the query are left out.
        clusters: localize against each group of retrieved images that share points, and keep the
            pose with most inliers: for places that look alike.
        seed: of RANSAC; the same seed gives the same poses, whatever the number of threads.
        threads: -1 for all cores.
    """

    max_error: float = 12.0
    min_inliers: int = 10
    min_matches: int = 0
    clusters: bool = False
    seed: int = 0
    threads: int = -1


@dataclass(frozen=True)
class QueryPose:
    """What became of one query.

    Attributes:
        query: its name.
        status: "localized"; "closest": no pose was found and `cam_from_world` is that of the
            database image ranked first; "failed": there is not even that.
        reason: why it is not localized.
        cam_from_world: qw, qx, qy, qz, tx, ty, tz, COLMAP's convention.
        camera: model, width, height and parameters that the pose was found with.
        retrieved: database images asked for.
        matched: those with matches that count.
        matches: of all of them.
        correspondences: distinct pairs of a 2D and a 3D point.
        inliers: those that agree with the pose.
        median_error: of the inliers' reprojection, pixels.
        position_deviation: standard deviation of the position in the world's unit, from the
            inliers' residuals as if they were independent: a lower bound.
        rotation_deviation: degrees, likewise.
        inliers_of: how many inliers each database image gave.
        seconds: spent on RANSAC and refinement.
    """

    query: str
    status: Status
    reason: str = ""
    cam_from_world: tuple[float, ...] | None = None
    camera: str = ""
    retrieved: int = 0
    matched: int = 0
    matches: int = 0
    correspondences: int = 0
    inliers: int = 0
    median_error: float | None = None
    position_deviation: float | None = None
    rotation_deviation: float | None = None
    inliers_of: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def confidence(self) -> str:
        """ "high", "low" or "none": high with 100 inliers that are a tenth of what was matched and
        that leave the rotation no more than 0.2° uncertain."""
        if self.status != "localized":
            return "none"
        enough = self.inliers >= max(_SURE_INLIERS, _SURE_RATIO * self.correspondences)
        known = self.rotation_deviation is not None and self.rotation_deviation <= _SURE_ROTATION
        return "high" if enough and known else "low"

    @property
    def pose(self) -> pycolmap.Rigid3d | None:
        return None if self.cam_from_world is None else to_rigid(self.cam_from_world)


@dataclass(frozen=True)
class LocalizationSummary:
    """How many queries ended how, and where the answers are thin.

    Attributes:
        queries, localized, closest, failed: numbers of queries.
        inliers_median: of the localized ones.
        problems: the reason of each query that was not localized.
    """

    queries: int
    localized: int
    closest: int
    failed: int
    inliers_median: float
    problems: dict[str, str]

    @staticmethod
    def of(poses: Iterable[QueryPose]) -> LocalizationSummary:
        poses = list(poses)
        number = Counter(pose.status for pose in poses)
        inliers = [pose.inliers for pose in poses if pose.status == "localized"]
        return LocalizationSummary(
            queries=len(poses),
            localized=number["localized"],
            closest=number["closest"],
            failed=number["failed"],
            inliers_median=float(np.median(inliers)) if inliers else 0.0,
            problems={pose.query: pose.reason for pose in poses if pose.status != "localized"},
        )


# --------------------------------------------------------------------------- where the points are


class PointSource(Protocol):
    """The 3D points behind the keypoints of database images."""

    def names(self) -> list[str]:
        """All database images, sorted."""

    def __contains__(self, name: str) -> bool: ...

    def points(self, name: str) -> np.ndarray:
        """(N, 3) world coordinates of the image's keypoints in their order, NaN where unknown."""

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        """cam_from_world of the image, for queries that cannot be localized; None if unknown."""

    def clusters(self, names: Sequence[str]) -> list[list[str]]:
        """Groups of images that see the same points, the largest first."""


class ModelPoints:
    """The points of a COLMAP model.

    Args:
        folder: of the model.
        prefix: put before the names of its images.

    Raises:
        EdmHlocError: the folder holds no model, or one without points.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self.folder = Path(folder)
        self.model = read_model(self.folder)
        if not self.model.num_points3D():
            raise EdmHlocError(
                f"The model in {folder} has no 3D points, so nothing can be localized against it. "
                f"Make them first: edm-hloc triangulate {folder} IMAGES OUT"
            )
        posed = posed_images(self.model)
        self.images = {prefix + name: image for name, image in posed.items()}
        self._cached_points = lru_cache(_CACHED_IMAGES)(self._points)

    def names(self) -> list[str]:
        return list(self.images)

    def __contains__(self, name: str) -> bool:
        return name in self.images

    def points(self, name: str) -> np.ndarray:
        return self._cached_points(name)

    def _points(self, name: str) -> np.ndarray:
        places, ids = self._observations(name)
        points = np.full((self.images[name].num_points2D(), 3), np.nan)
        if ids:
            points[places] = [self.model.points3D[i].xyz for i in ids]
        return points

    def cameras(self, names: Iterable[str]) -> dict[str, pycolmap.Camera]:
        """Cameras of images by name."""
        return {name: self.model.cameras[self.images[name].camera_id] for name in names}

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        return self.images[name].cam_from_world() if name in self.images else None

    def clusters(self, names: Sequence[str]) -> list[list[str]]:
        left = {name: set(self._observations(name)[1]) for name in names if name in self.images}
        groups: list[list[str]] = []
        while left:
            first = next(iter(left))
            seen, group = left.pop(first), [first]
            while near := [name for name, ids in left.items() if not seen.isdisjoint(ids)]:
                for name in near:
                    seen |= left.pop(name)
                group += near
            groups.append(group)
        return sorted(groups, key=len, reverse=True)

    def _observations(self, name: str) -> tuple[np.ndarray, list[int]]:
        """Numbers of the keypoints that have a 3D point, and its ids."""
        image = self.images[name]
        places = np.asarray(image.get_observation_point2D_idxs(), np.int64)
        return places, [point.point3D_id for point in image.get_observation_points2D()]


def write_model_keypoints(points: ModelPoints, names: Iterable[str], path: Path) -> None:
    """Writes the keypoints that images of a model have there as an H5 file, hloc's frame.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    with FeatureWriter(path, {"model": str(points.folder)}) as features:
        for name in tqdm(sorted(set(names)), desc="Model keypoints", unit="photo", disable=None):
            found = points.images[name].points2D
            keypoints = np.array([point.xy for point in found]).reshape(-1, 2) - 0.5
            features.add(name, keypoints, np.ones(len(keypoints)))


# --------------------------------------------------------------------------- queries


def query_cameras(
    root: Path, names: Sequence[str], known: Mapping[str, pycolmap.Camera]
) -> tuple[dict[str, pycolmap.Camera], dict[str, str]]:
    """Cameras of queries, and why those that get none do not.

    Args:
        root: folder of the queries.
        names: the queries.
        known: their cameras where calibrated; the others' come from the EXIF data, or have no
            `has_prior_focal_length`.
    """
    unknown = [name for name in names if name not in known]
    cameras, problems = photo_cameras(root, unknown, CameraOptions("per-image", "SIMPLE_RADIAL"))
    for name in names:
        if name not in known:
            continue
        camera = known[name]
        try:
            size = photo_size(root / name)
        except ImageError as error:
            problems[name] = str(error)
            continue
        if size == (camera.width, camera.height):
            cameras[name] = camera
        else:
            problems[name] = (
                f"The intrinsics of {name} are for {camera.width} × {camera.height} pixels, but "
                f"{root / name} has {size[0]} × {size[1]}."
            )
    return cameras, problems


def localize_queries(
    queries: Sequence[str],
    cameras: Mapping[str, pycolmap.Camera],
    retrieval: Mapping[str, Sequence[str]],
    features: Path,
    matches: Path,
    points: PointSource,
    log: Path,
    options: PoseOptions | None = None,
    *,
    problems: Mapping[str, str] | None = None,
    uncalibrated: Collection[str] = (),
    fingerprint: str = "",
) -> list[QueryPose]:
    """Finds the pose of each query; a query that fails is reported and never ends the run.

    Args:
        queries: names, in the order of the answers.
        cameras: of the queries.
        retrieval: database images of each query, best first.
        features: H5 file with the queries' keypoints, hloc's frame.
        matches: H5 file of matches between queries and database images.
        points: the 3D points of the database images' keypoints.
        log: one line of JSON a query (`QueryPose`), after a first line with the fingerprint. The
            queries of a log with the same fingerprint are not done again.
        options: how poses are found.
        problems: why queries cannot be localized at all, such as photos that cannot be read.
        uncalibrated: queries whose focal length and distortion are refined, the former estimated
            first where the camera has no `has_prior_focal_length`.
        fingerprint: of everything that decides the answers.

    Raises:
        EdmHlocError: a file cannot be read or written, or files do not belong together.
    """
    options, problems = options or PoseOptions(), problems or {}
    done = _resume(log, fingerprint)
    todo = [query for query in queries if query not in done]
    threads = options.threads if options.threads > 0 else os.cpu_count() or 1

    with (
        FeatureReader(features) as keypoints,
        MatchReader(matches) as pairs,
        log.open("a", encoding="utf-8") as out,
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(todo), desc="Localizing", unit="query", disable=None) as progress,
        quiet_colmap(),
    ):

        def estimate(job: tuple[str, list[_Matched]]) -> QueryPose:
            query, groups = job
            free = query in uncalibrated
            try:
                found = [_estimate(query, cameras[query], m, options, free) for m in groups]
            except Exception as error:  # whatever COLMAP meets in one query is not fatal
                return QueryPose(query, "failed", f"{type(error).__name__}: {error}")
            return max(found, key=lambda pose: (pose.status == "localized", pose.inliers))

        for start in range(0, len(todo), _BATCH):
            batch = todo[start : start + _BATCH]
            jobs = []
            for query in batch:
                retrieved = list(dict.fromkeys(retrieval.get(query, ())))
                reason = problems.get(query) or _reason(query, retrieved, cameras, points)
                if reason:
                    done[query] = QueryPose(query, "failed", reason, retrieved=len(retrieved))
                    continue
                groups = points.clusters(retrieved) if options.clusters else [retrieved]
                jobs.append(
                    (query, [_gather(query, g, keypoints, pairs, points, options) for g in groups])
                )
            done |= {pose.query: pose for pose in pool.map(estimate, jobs)}
            for query in batch:
                done[query] = _or_closest(done[query], retrieval.get(query, ()), points)
                out.write(json.dumps(asdict(done[query])) + "\n")
                progress.update()
            out.flush()
    return [done[query] for query in queries]


@dataclass(frozen=True)
class _Matched:
    """2D–3D correspondences of a query with a group of database images."""

    pixels: np.ndarray  # (N, 2) COLMAP's frame
    points: np.ndarray  # (N, 3)
    sources: list[tuple[str, np.ndarray]]  # database image and the correspondences it gave
    retrieved: int
    matches: int


def _reason(
    query: str, retrieved: Sequence[str], cameras: Mapping[str, object], points: PointSource
) -> str:
    """Why a query cannot even be tried, or nothing."""
    if not retrieved:
        return "The retrieval lists no database image for it."
    if query not in cameras:
        return "Its intrinsics are not known."
    if not any(name in points for name in retrieved):
        return f"None of its {len(retrieved)} retrieved images, such as {retrieved[0]}, is known."
    return ""


def _gather(
    query: str,
    retrieved: Sequence[str],
    features: FeatureReader,
    matches: MatchReader,
    points: PointSource,
    options: PoseOptions,
) -> _Matched:
    """All correspondences of a query; equal ones, from several images of a point, count once."""
    rows, names, number = [np.zeros((0, 5))], [], 0
    keypoints = to_colmap(features.keypoints(query)) if query in features else np.zeros((0, 2))
    for name in retrieved:
        if name not in points or (query, name) not in matches:
            continue
        found = matches.matches(query, name)[0]
        if not len(found) or len(found) < options.min_matches:
            continue
        known = points.points(name)
        if found[:, 0].max() >= len(keypoints) or found[:, 1].max() >= len(known):
            raise EdmHlocError(
                f"The matches of {query} and {name} in {matches.path} are of other keypoints than "
                "those at hand: take the files of one run, or run again with --overwrite."
            )
        number += len(found)
        row = np.hstack([keypoints[found[:, 0]].astype(np.float64), known[found[:, 1]]])
        rows.append(row[np.isfinite(row).all(axis=1)])
        names.append(name)
    unique, place = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    ends = np.cumsum([len(row) for row in rows[1:]])[:-1]
    sources = list(zip(names, np.split(place.reshape(-1), ends), strict=True)) if names else []
    return _Matched(unique[:, :2], unique[:, 2:], sources, len(retrieved), number)


def _estimate(
    query: str, camera: pycolmap.Camera, matched: _Matched, options: PoseOptions, free: bool
) -> QueryPose:
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.ransac.max_error = options.max_error
    estimation.ransac.random_seed = options.seed
    estimation.estimate_focal_length = free and not camera.has_prior_focal_length
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = refinement.refine_extra_params = free
    camera = pycolmap.Camera(camera.todict())  # COLMAP changes it
    start = time.monotonic()
    found = None
    if len(matched.pixels) >= 4:
        found = pycolmap.estimate_and_refine_absolute_pose(
            matched.pixels, matched.points, camera, estimation, refinement, True
        )
    answer = QueryPose(
        query,
        "failed",
        retrieved=matched.retrieved,
        matched=len(matched.sources),
        matches=matched.matches,
        correspondences=len(matched.pixels),
        inliers=found["num_inliers"] if found else 0,
        seconds=round(time.monotonic() - start, 4),
    )
    if found is None or answer.inliers < options.min_inliers:
        reason = f"{answer.inliers} of {answer.correspondences} correspondences agree with a pose"
        return replace(answer, reason=f"{reason}; {options.min_inliers} are needed.")
    pose, inlier = found["cam_from_world"], found["inlier_mask"]
    # of the camera that was refined, on the points that count
    seen = camera.img_from_cam(pose * matched.points[inlier])
    error = np.linalg.norm(np.asarray(seen) - matched.pixels[inlier], axis=1)
    position, rotation = _deviations(pose, found["covariance"], error)
    return replace(
        answer,
        status="localized",
        cam_from_world=to_numbers(pose),
        camera=" ".join(
            [camera.model_name, str(camera.width), str(camera.height)]
            + [repr(float(p)) for p in camera.params]
        ),
        median_error=float(np.median(error)),
        position_deviation=position,
        rotation_deviation=rotation,
        inliers_of={
            name: int(n)
            for name, places in matched.sources
            if (n := np.count_nonzero(inlier[places]))
        },
    )


def _deviations(
    pose: pycolmap.Rigid3d, covariance: np.ndarray | None, errors: np.ndarray
) -> tuple[float | None, float | None]:
    """Standard deviations of the position, and of the rotation in degrees.

    COLMAP gives the covariance for keypoints with a deviation of 1 px an axis, of half the rotation
    vector (Ceres's quaternion manifold) and of the translation.
    """
    if covariance is None:
        return None, None
    noise = float(np.median(errors)) / 1.1774  # the median of a Rayleigh distribution
    covariance = np.diag([2.0] * 3 + [1.0] * 3) @ covariance @ np.diag([2.0] * 3 + [1.0] * 3)
    R, (x, y, z) = pose.rotation.matrix(), pose.translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    J = -R.T @ np.hstack([cross, np.eye(3)])  # of the centre -Rᵀ t
    position = noise * np.sqrt(np.trace(J @ covariance @ J.T))
    rotation = noise * np.sqrt(np.trace(covariance[:3, :3]))
    return float(position), float(np.degrees(rotation))


def _or_closest(answer: QueryPose, retrieved: Sequence[str], points: PointSource) -> QueryPose:
    """For a query without a pose that of the best database image that has one."""
    if answer.status == "failed":
        for name in retrieved:
            pose = points.pose(name)
            if pose is not None:
                return replace(answer, status="closest", cam_from_world=to_numbers(pose))
    return answer


# --------------------------------------------------------------------------- the log


def read_log(path: Path) -> list[QueryPose]:
    """The queries in a log of `localize_queries`.

    Raises:
        EdmHlocError: it cannot be read or is something else.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        return [_parse(line) for line in lines[1:]]
    except (OSError, ValueError, TypeError) as error:
        raise EdmHlocError(f"Cannot read the log {path}: {error}.") from error


def _parse(line: str) -> QueryPose:
    record = json.loads(line)
    if record["cam_from_world"] is not None:
        record["cam_from_world"] = tuple(record["cam_from_world"])
    return QueryPose(**record)


def _resume(log: Path, fingerprint: str) -> dict[str, QueryPose]:
    """The queries that are done; leaves a log of whole lines that more can be appended to."""
    done: dict[str, QueryPose] = {}
    header = json.dumps({"run": fingerprint})
    if log.is_file():
        lines = log.read_text("utf-8", errors="replace").splitlines()
        for line in lines[1:] if lines and lines[0] == header else []:
            try:
                pose = _parse(line)
            except (ValueError, TypeError, KeyError):
                break  # cut off by a kill
            done[pose.query] = pose
    records = [json.dumps(asdict(pose)) for pose in done.values()]
    write_whole(log, "\n".join([header, *records]) + "\n")
    return done


# --------------------------------------------------------------------------- files of poses


def to_numbers(pose: pycolmap.Rigid3d) -> tuple[float, ...]:
    """qw, qx, qy, qz, tx, ty, tz with a unit quaternion, qw not negative."""
    quaternion = np.roll(pose.rotation.quat, 1)
    quaternion = quaternion / np.linalg.norm(quaternion)
    if quaternion[0] < 0:
        quaternion = -quaternion
    return tuple(float(number) for number in (*quaternion, *pose.translation))


def to_rigid(numbers: Sequence[float]) -> pycolmap.Rigid3d:
    """The pose of `to_numbers`."""
    quaternion = np.roll(np.array(numbers[:4]), -1)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(quaternion), np.array(numbers[4:7]))


def write_poses(
    path: Path, poses: Mapping[str, pycolmap.Rigid3d], *, basenames: bool = False
) -> None:
    """Writes one pose a line: name qw qx qy qz tx ty tz, camera from world.

    Args:
        path: the file.
        poses: by name.
        basenames: write names without their folders, as the benchmarks want them.

    Raises:
        EdmHlocError: two names are the same without folders, or the file cannot be written.
    """
    lines: dict[str, str] = {}
    for name, pose in poses.items():
        short = name.rpartition("/")[2] if basenames else name
        if short in lines:
            raise EdmHlocError(f"Two queries are called {short}: the benchmark needs other names.")
        lines[short] = " ".join([short, *map(repr, to_numbers(pose))])
    write_whole(path, "".join(f"{line}\n" for line in lines.values()))


def read_poses(path: Path) -> dict[str, pycolmap.Rigid3d]:
    """Reads a file of `write_poses`, or a benchmark's submission.

    Raises:
        EdmHlocError: it cannot be read, or a line is something else.
    """
    poses = {}
    for number, line in _lines(path):
        name, numbers, problem = _parse_pose(line)
        if problem:
            raise EdmHlocError(f"{path}, line {number}: {problem}.")
        poses[name] = to_rigid(numbers)
    return poses


def check_submission(path: Path, queries: Iterable[str]) -> list[str]:
    """What is wrong with a submission: a sentence for each problem, none if it is right.

    Raises:
        EdmHlocError: the file cannot be read.
    """
    missing = {query.rpartition("/")[2]: query for query in queries}
    wanted, problems, seen = set(missing), [], set()
    for number, line in _lines(path):
        name, numbers, problem = _parse_pose(line)
        where = f"line {number}, {name}: "
        if problem:
            problems.append(where + problem)
        elif abs(float(np.linalg.norm(numbers[:4])) - 1) > 1e-6:
            problems.append(f"{where}the quaternion's length is {np.linalg.norm(numbers[:4]):.6g}")
        if name in seen:
            problems.append(where + "a second pose of the same query")
        elif name not in wanted:
            short = name.rpartition("/")[2]
            hint = "; names go without folders" if short in wanted else ""
            problems.append(f"{where}no such query{hint}")
        seen.add(name)
        missing.pop(name, None)
    if missing:
        some = ", ".join(sorted(missing.values())[:5])
        problems.append(f"{len(missing)} of {len(wanted)} queries have no pose, e.g. {some}")
    return problems


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EdmHlocError(f"Cannot read the poses {path}: {reason}.") from error
    lines = enumerate(text.split("\n"), start=1)
    return [(n, s) for n, line in lines if (s := line.strip()) and not s.startswith("#")]


def _parse_pose(line: str) -> tuple[str, list[float], str]:
    """Name, seven numbers, and what is wrong."""
    words = line.rsplit(maxsplit=7)
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        numbers = []
    if len(numbers) != 7:
        return words[0], numbers, "expected 'name qw qx qy qz tx ty tz'"
    if not np.isfinite(numbers).all() or not any(numbers[:4]):
        return words[0], numbers, "not a pose: numbers must be finite and the quaternion not zero"
    return words[0], numbers, ""

"""Queries → camera poses: PnP over all matches of a query with known 3D points.

The points are those of a COLMAP model (`ModelPoints`) or of laser scans
(`edm_hloc.pipelines.inloc`). Every query leaves one line of JSON in a log as soon as it is done,
so that an interrupted run goes on.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pycolmap
from tqdm import tqdm

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import ImageError
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.decode import photo_size
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.localization.log import resume
from edm_hloc.localization.pnp import Correspondences, PoseOptions, estimate_pose, gather
from edm_hloc.localization.points import PointSource
from edm_hloc.localization.poses import to_numbers
from edm_hloc.localization.results import QueryPose

logger = logging.getLogger(__name__)


_BATCH = 32  # queries whose matches are in memory at a time


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
    done = resume(log, fingerprint)
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

        def estimate(job: tuple[str, list[Correspondences]]) -> QueryPose:
            query, groups = job
            free = query in uncalibrated
            try:
                found = [estimate_pose(query, cameras[query], m, options, free) for m in groups]
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
                    (query, [gather(query, g, keypoints, pairs, points, options) for g in groups])
                )
            done |= {pose.query: pose for pose in pool.map(estimate, jobs)}
            for query in batch:
                done[query] = _or_closest(done[query], retrieval.get(query, ()), points)
                out.write(json.dumps(asdict(done[query])) + "\n")
                progress.update()
            out.flush()
    return [done[query] for query in queries]


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


def _or_closest(answer: QueryPose, retrieved: Sequence[str], points: PointSource) -> QueryPose:
    """For a query without a pose that of the best database image that has one."""
    if answer.status == "failed":
        for name in retrieved:
            pose = points.pose(name)
            if pose is not None:
                return replace(answer, status="closest", cam_from_world=to_numbers(pose))
    return answer


# --------------------------------------------------------------------------- the log


# --------------------------------------------------------------------------- files of poses

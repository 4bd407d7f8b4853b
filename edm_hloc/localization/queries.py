"""Queries → camera poses, by PnP over the matches of a query with known 3D points.

The points are those of a COLMAP model (`points.ModelPoints`), of laser scans (`scans.ScanPoints`),
or of another `points.PointSource`. The result of every query is written to a log as soon as it is
known, so that an interrupted run resumes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import camera_text, quiet_colmap
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.fingerprint import file_stamp, fingerprint_of
from edm_hloc.base.grid import blocks
from edm_hloc.base.log import first_few
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.exif import read_header
from edm_hloc.images.sizes import Scaled, camera_for_size, warn_of_scaled
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.localization.fit import Lens
from edm_hloc.localization.log import append_to_log, resume_log
from edm_hloc.localization.photo_alignment import PhotoAligner
from edm_hloc.localization.pnp import (
    Align,
    Correspondences,
    PoseOptions,
    estimate_pose,
    find_correspondences,
)
from edm_hloc.localization.points import ModelPoints, PointSource
from edm_hloc.localization.poses import to_numbers
from edm_hloc.localization.results import QueryPose
from edm_hloc.localization.rival import inliers_elsewhere

logger = logging.getLogger(__name__)

# Inliers and median reprojection error, of those with estimated intrinsics, up to which given ones
# explain a query as well: two numbers fewer are fitted to hundreds of matches.
_AS_MANY, _AS_EXACT = 0.95, 1.05
_BATCH = 32  # queries whose matches are in memory at a time


@dataclass(frozen=True)
class Queries:
    """The photos to localize, and what is known of each.

    Attributes:
        names: in the order of the results.
        cameras: intrinsics by query; a query without any cannot be localized.
        retrieved: database images that each query is matched with, the most similar first.
        problems: by query, why it cannot be localized at all, such as a photo that cannot be read.
        uncalibrated: queries whose focal length and distortion are refined with the pose, and whose
            principal point, if the matches tell it. The focal length is estimated first unless the
            camera `has_prior_focal_length`.
        photos: of the queries that are aligned to the photos of the database, the files; needs
            `ModelPoints`, with the folder of the photos.
        perhaps: intrinsics that uncalibrated queries may have, as those of the database; several
            of a query are tried in their order. A query gets them where they explain its matches as
            well as those that are estimated with the pose, which are less exact by far.
    """

    names: Sequence[str]
    cameras: Mapping[str, pycolmap.Camera]
    retrieved: Mapping[str, Sequence[str]]
    problems: Mapping[str, str] = field(default_factory=dict)
    uncalibrated: Collection[str] = ()
    photos: Mapping[str, Path] = field(default_factory=dict)
    perhaps: Mapping[str, Sequence[pycolmap.Camera]] = field(default_factory=dict)

    def pairs(self) -> list[tuple[str, str]]:
        """Every query with each of its retrieved images."""
        return [(query, image) for query, images in self.retrieved.items() for image in images]


def query_cameras(
    root: Path, names: Sequence[str], known: Mapping[str, pycolmap.Camera]
) -> tuple[dict[str, pycolmap.Camera], dict[str, str]]:
    """Cameras of queries by name, and by name why a query has none.

    Args:
        root: folder of the queries.
        names: the queries, relative to it.
        known: cameras of the calibrated queries, which are scaled for photos of another size with
            a warning (see `images.sizes`). The focal length of the others comes from the EXIF
            data; where these do not tell, the camera has no `has_prior_focal_length`.
    """
    unknown = [name for name in names if name not in known]
    cameras, problems = photo_cameras(root, unknown, CameraOptions("per-image", "SIMPLE_RADIAL"))
    scaled = []
    for name in names:
        if name not in known:
            continue
        camera = known[name]
        try:
            size = read_header(root / name).size
            cameras[name] = camera_for_size(camera, size, root / name, "the known intrinsics")
        except (ImageError, EdmHlocError) as error:
            problems[name] = str(error)
            continue
        if cameras[name] is not camera:
            scaled.append(Scaled(name, camera, cameras[name]))
    warn_of_scaled(scaled, "the known intrinsics")
    return cameras, problems


def localize_queries(
    queries: Queries,
    features: Path,
    matches: Path,
    points: PointSource,
    log: Path,
    options: PoseOptions | None = None,
) -> list[QueryPose]:
    """Estimates the pose of every query; one that fails gets a reason and never ends the run.

    Args:
        queries: names, cameras and retrieved database images.
        features: H5 file of the queries' keypoints, hloc's frame.
        matches: H5 file of the matches between queries and database images.
        points: the 3D points of the database images' keypoints.
        log: file of one JSON object a query (see `log`). Queries in it are not localized again if
            it was made from the same settings, cameras, retrieved images, files and points, by the
            same versions of this package and of pycolmap.
        options: settings of the pose estimation.

    Returns:
        One result for each of `queries.names`, in this order.

    Raises:
        EdmHlocError: a file cannot be read or written, or files do not belong together.
    """
    options = options or PoseOptions()
    done = resume_log(log, fingerprint_of_poses(queries, features, matches, points, options))
    todo = [query for query in queries.names if query not in done]
    threads = options.threads if options.threads > 0 else os.cpu_count() or 1

    aligner = None
    if queries.photos and todo and isinstance(points, ModelPoints):
        aligner = PhotoAligner(points)
    estimator = _Estimator(queries, options, aligner)

    with (
        FeatureReader(features) as keypoints,
        MatchReader(matches) as pairs,
        log.open("a", encoding="utf-8") as out,
        ThreadPoolExecutor(threads) as pool,
        StepProgress(
            "Localizing", "query", len(queries.names), before=len(queries.names) - len(todo)
        ) as progress,
        quiet_colmap(),
    ):
        for block in blocks(len(todo), _BATCH):
            jobs: list[_Job] = []
            for query in todo[block]:
                retrieved = list(dict.fromkeys(queries.retrieved.get(query, ())))
                reason = _cannot_be_localized(query, retrieved, queries, points)
                if reason:
                    jobs.append(QueryPose(query, "failed", reason, retrieved=len(retrieved)))
                    continue
                groups = points.clusters(retrieved) if options.clusters else [retrieved]
                matched = [
                    find_correspondences(query, g, keypoints, pairs, points, options.min_matches)
                    for g in groups
                ]
                jobs.append((query, matched))
            for pose in pool.map(estimator.pose, jobs):
                done[pose.query] = _or_closest(pose, queries.retrieved.get(pose.query, ()), points)
                append_to_log(out, done[pose.query])
                progress.update()
    answers = [done[query] for query in queries.names]
    _warn_of_focal_lengths(answers, queries.cameras)
    return answers


_Job = tuple[str, list[Correspondences]] | QueryPose  # of each group of images; or a result


@dataclass(frozen=True)
class _Estimator:
    """Estimates the poses of single queries, in any thread.

    Attributes:
        queries: what is known of them.
        options: settings of the pose estimation.
        aligner: of the queries that have `photos`; None without any.
    """

    queries: Queries
    options: PoseOptions
    aligner: PhotoAligner | None

    def pose(self, job: _Job) -> QueryPose:
        """The pose of a query; a job that is a result already stays as it is."""
        if isinstance(job, QueryPose):
            return job
        query, groups = job
        try:
            answer = self._estimated(query, groups)
            if answer.confidence != "high":
                return answer
            return replace(answer, elsewhere=inliers_elsewhere(answer, groups, self.options))
        except Exception as error:  # COLMAP may raise anything for one query
            return QueryPose(query, "failed", f"{type(error).__name__}: {error}")

    def _estimated(self, query: str, groups: Sequence[Correspondences]) -> QueryPose:
        """The pose with the camera that fits best: the query's, or one that it may have."""
        align = None
        if self.aligner is not None and query in self.queries.photos:
            align = partial(self.aligner.align, self.queries.photos[query])
        best = partial(self._best, query, groups)
        camera = self.queries.cameras[query]
        lens: Lens = "told" if query in self.queries.uncalibrated else "known"
        if lens == "told" and query in self.queries.perhaps:
            own = best(camera, "centred")
            for other in self.queries.perhaps[query]:
                given = best(other, "known")
                # The estimate has the principal point in the middle, which the given camera may
                # make up for: its own focal length has to be the best one, too.
                if _fits_as_well(given, own) and _fits_as_well(
                    given, best(_as_prior(other), "centred")
                ):
                    if align is None:
                        return given
                    camera, lens = other, "known"
                    break
        return best(camera, lens, align)

    def _best(
        self,
        query: str,
        groups: Sequence[Correspondences],
        camera: pycolmap.Camera,
        lens: Lens,
        align: Align | None = None,
    ) -> QueryPose:
        """The pose of the group of database images with the most inliers."""
        found = [
            estimate_pose(query, camera, group, self.options, lens=lens, align=align)
            for group in groups
        ]
        return max(found, key=lambda pose: (pose.status == "localized", pose.inliers))


def _warn_of_focal_lengths(
    answers: Sequence[QueryPose], cameras: Mapping[str, pycolmap.Camera]
) -> None:
    doubtful = [
        f"{a.query} ({cameras[a.query].mean_focal_length():,.0f} px is known, "
        f"{a.better_focal:,.0f} px fits)"
        for a in answers
        if a.better_focal is not None
    ]
    if doubtful:
        logger.warning(
            "Other focal lengths than the known ones explain the matches of %d of %d queries far "
            "better: %s. Correct these intrinsics, or do without them where they can be estimated, "
            "as edm-hloc localize does for queries that --known does not name.",
            len(doubtful),
            len(answers),
            ", ".join(first_few(doubtful, "queries")),
        )


def fingerprint_of_poses(
    queries: Queries, features: Path, matches: Path, points: PointSource, options: PoseOptions
) -> str:
    """Fingerprint of everything that decides the results of `localize_queries`."""
    cameras = {
        name: [camera_text(camera), camera.has_prior_focal_length]
        for name, camera in queries.cameras.items()
    }
    return fingerprint_of(
        [
            pycolmap.__version__,
            asdict(replace(options, threads=-1)),  # their number does not change a pose
            cameras,
            {query: list(images) for query, images in queries.retrieved.items()},
            dict(queries.problems),
            sorted(queries.uncalibrated),
            *sorted(queries.photos),
            *([name, *map(camera_text, c)] for name, c in sorted(queries.perhaps.items())),
            file_stamp(features),
            file_stamp(matches),
            points.fingerprint(),
        ]
    )


def _as_prior(camera: pycolmap.Camera) -> pycolmap.Camera:
    """A camera whose focal length is refined and not estimated anew."""
    prior = pycolmap.Camera(camera.todict())
    prior.has_prior_focal_length = True
    return prior


def _fits_as_well(given: QueryPose, estimated: QueryPose) -> bool:
    """Whether given intrinsics explain a query as well as those that were estimated with a pose."""
    if given.status != "localized" or estimated.status != "localized":
        return given.status == "localized"
    assert given.median_error is not None
    assert estimated.median_error is not None
    return (
        given.inliers >= _AS_MANY * estimated.inliers
        and given.median_error <= _AS_EXACT * estimated.median_error
    )


def _cannot_be_localized(
    query: str, retrieved: Sequence[str], queries: Queries, points: PointSource
) -> str:
    """Why the pose of a query cannot be estimated; empty if it can."""
    if reason := queries.problems.get(query):
        return reason
    if not retrieved:
        return "The retrieval lists no database image for it."
    if query not in queries.cameras:
        return "Its intrinsics are not known."
    if not any(name in points for name in retrieved):
        return f"None of its {len(retrieved)} retrieved images, such as {retrieved[0]}, is known."
    return ""


def _or_closest(answer: QueryPose, retrieved: Sequence[str], points: PointSource) -> QueryPose:
    """Gives a query without a pose that of the highest-ranked database image that has one."""
    if answer.status == "failed":
        for name in retrieved:
            pose = points.pose(name)
            if pose is not None:
                return replace(answer, status="closest", cam_from_world=to_numbers(pose))
    return answer

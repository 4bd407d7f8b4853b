"""Localization of photos in a COLMAP model, and the steps that the benchmarks share with it.

OUT/pairs-query-HOWk.txt    database images of each query, the most similar first (hloc's list)
OUT/scores-query-HOWk.txt   the same with similarities, where these were computed
OUT/raw_matches/            what the matcher found, crash-safe
OUT/features.h5             keypoints of the queries, as hloc writes them
OUT/matches.h5              matches of queries and database images, as hloc writes them
OUT/queries.jsonl           result of each query, one JSON object a line
OUT/poses.txt               name qw qx qy qz tx ty tz, camera from world
OUT/poses_earlier.txt       those of an earlier run, if this one has failed or not come so far;
                            likewise queries_earlier.jsonl
OUT/run.json                settings, versions, times and results
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pycolmap

from edm_hloc.base.colmap import camera_text
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import cameras_of_others, possible_cameras
from edm_hloc.images.find import find_images, image_stamps
from edm_hloc.images.roots import JoinedFolders, root_text
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints, PointSource, write_model_keypoints
from edm_hloc.localization.poses import write_poses
from edm_hloc.localization.queries import Queries, localize_queries, query_cameras
from edm_hloc.localization.results import LocalizationSummary, QueryPose
from edm_hloc.localization.shards import QueryFiles
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.retrieval import RetrievalOptions, check_retrieval
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.pipelines.matching import MATCHING_FILES, PairsToMatch, match_and_quantize
from edm_hloc.pipelines.retrieval import retrieve
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.run_entries import earlier_name
from edm_hloc.pipelines.spreading import spread_poses

logger = logging.getLogger(__name__)

# All keypoints of a query are kept apart, as only its own pose depends on them. Each is moved by as
# much as the point that it was matched to is away from the database image's keypoint.
QUERY_KEYPOINTS = QuantizationConfig(
    max_error=2.0, cell_size=8.0, max_kps=None, position="adjusted"
)


POSES_FILES = ("queries.jsonl",)
"""Names of the files that `find_poses` writes, for `Run.begin`."""

MODEL_KEYPOINTS = "model-keypoints.h5"
"""Name of the file that `model_keypoints` writes."""


def find_poses(
    run: Run, queries: Queries, points: PointSource, options: PoseOptions
) -> list[QueryPose]:
    """Localizes queries by the `features.h5` and `matches.h5` of a run.

    The results are logged in `queries.jsonl` and summarized in the run's record. A photo that the
    retrieval or the matching could not read counts among the `problems`.

    Raises:
        EdmHlocError: a file cannot be read or written.
    """
    run.claim(*POSES_FILES)
    for name in POSES_FILES:  # the log of an interrupted run goes on, if it is of the same input
        if (run.out / earlier_name(name)).is_file():
            (run.out / earlier_name(name)).replace(run.out / name)
    start = time.monotonic()
    skipped: dict[str, str] = run.results["matching"]["skipped"]
    skipped = skipped | run.results.get("retrieval", {}).get("skipped", {})
    unreadable = {name: skipped[name] for name in queries.names if name in skipped}
    queries = replace(queries, problems={**unreadable, **queries.problems})
    files = QueryFiles(run.out / "features.h5", run.out / "matches.h5", points)
    if run.shards:
        spread_poses(run, queries, files, options)
    answers = localize_queries(
        queries,
        files.features,
        files.matches,
        points,
        run.out / "queries.jsonl",
        options,
    )
    run.results["localized"] = asdict(LocalizationSummary.of(answers))
    run.measure("localization", start)
    run.write()
    return answers


def set_poses_aside(run: Run, poses: str) -> None:
    """Renames the results of an earlier run, so that they are not taken for those of this one.

    Args:
        run: a run that has just begun.
        poses: name of the file of poses that it is going to write.

    Raises:
        EdmHlocError: a file was not made by a run.
    """
    for key in ("localized", "sfm", "missing_scans"):
        run.results.pop(key, None)
    for name in (*POSES_FILES, poses):
        if (run.out / name).is_file():
            run.claim(name, earlier_name(name))
            (run.out / name).replace(run.out / earlier_name(name))
    run.write()


def _write_result(
    run: Run, name: str, poses: Mapping[str, pycolmap.Rigid3d], *, basenames: bool = False
) -> None:
    """Writes a run's file of poses, and removes that of an earlier run."""
    run.claim(name, earlier_name(name))
    write_poses(run.out / name, poses, basenames=basenames)
    (run.out / earlier_name(name)).unlink(missing_ok=True)


def write_submission(
    run: Run, path: Path, answers: Sequence[QueryPose], points: PointSource
) -> None:
    """Writes a benchmark's submission into the folder of a run: a pose for every query.

    A query without any pose gets that of the first database image, an arbitrary one.

    Raises:
        EdmHlocError: two queries have the same name without folders, or the file cannot be written.
    """
    arbitrary = next((pose for name in points.names() if (pose := points.pose(name))), None)
    poses = {a.query: a.pose or arbitrary for a in answers}
    found = {query: pose for query, pose in poses.items() if pose}
    _write_result(run, path.name, found, basenames=True)


def check_any_localized(run: Run) -> None:
    """Raises EdmHlocError if no query was localized: an error of commands and scripts."""
    summary = run.results["localized"]
    if not summary["localized"]:
        raise EdmHlocError(
            f"None of the {summary['queries']} queries was localized: check that they show what "
            "the model does, look at the matches in the report, or retrieve more photos for each."
        )


# --------------------------------------------------------------------------- one's own photos


@dataclass(frozen=True)
class LocalizationConfig:
    """Settings of `localize_photos`.

    Attributes:
        retrieval: which photos of the model each query is matched with, 20 by default. Of a model
            with no more photos than that, all are taken and nothing is computed.
        matching: memory and threads of the matching; does not change the matches.
        poses: thresholds of the pose estimation.
        known_cameras: intrinsics of the calibrated queries by name. Other queries that were taken
            by a camera of the model, by their EXIF data, have that camera's intrinsics; so do those
            without EXIF data, of the size of its photos, that it explains as well. The focal
            length of the rest comes from the EXIF data and is refined, or is estimated.
        refine_tracks: align each query to the photos of the model in which it was localized.
        queries: names of the queries, relative to their folder; None for all photos in it.
        overwrite: match and compute everything again, whatever the output folder holds.
    """

    retrieval: RetrievalOptions = field(default_factory=lambda: RetrievalOptions(number=20))
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    poses: PoseOptions = field(default_factory=PoseOptions)
    known_cameras: Mapping[str, pycolmap.Camera] = field(default_factory=dict)
    refine_tracks: bool = False
    queries: Sequence[str] | None = None
    overwrite: bool = False


def localize_photos(
    model: Path,
    image_root: Path,
    query_root: Path,
    out: Path,
    matcher: Matcher,
    config: LocalizationConfig | None = None,
) -> tuple[Run, list[QueryPose]]:
    """Estimates where photos were taken, in the world of a COLMAP model made by any program.

    Args:
        model: folder of the model, which has 3D points.
        image_root: folder of the model's photos.
        query_root: folder of the photos to localize.
        out: output folder; a run that is there is continued. See the module for its files.
        matcher: finds the matches of a pair.
        config: settings of every step.

    Returns:
        The record of the run, and the result of each query in the order of their names, which are
        relative to `query_root`.

    Raises:
        EdmHlocError: bad input, such as photos that are not the model's; what was computed is kept.
            A query that fails raises nothing.
    """
    config = config or LocalizationConfig()
    points = ModelPoints(model, prefix="database/", image_root=image_root)
    found = find_images(query_root, [out]) if config.queries is None else config.queries
    names = [f"query/{name}" for name in dict.fromkeys(found)]
    if not names:
        raise EdmHlocError("There is nothing to localize: the list of queries is empty.")
    database = _photos_of_model(points, model, image_root)
    check_retrieval(config.retrieval, names, database)
    settings = {
        "command": "localize",
        "model": str(model.resolve()),
        "images": root_text(image_root),
        "queries": root_text(query_root),
        "retrieval": asdict(config.retrieval),
        "pose": asdict(config.poses),
        "tracks": config.refine_tracks,
    }
    files = (*MATCHING_FILES, *POSES_FILES, MODEL_KEYPOINTS, "poses.txt")
    with Run.begin(
        out, settings, matcher, files, overwrite=config.overwrite, shards=config.matching.shards
    ) as run:
        set_poses_aside(run, "poses.txt")
        run.results["model_poses"] = points.fingerprint_of_poses()
        root = JoinedFolders({"database": image_root, "query": query_root})
        known = {f"query/{name}": camera for name, camera in config.known_cameras.items()}
        of_database = points.cameras(database)
        of_others = cameras_of_others(
            root, [name for name in names if name not in known], of_database
        )
        given = sum(name in known for name in names)
        known |= of_others
        unknown = [name for name in names if name not in known]
        cameras, problems = _query_cameras(query_root, names, known)
        usable = [name for name in names if name not in problems]
        images = RetrievalImages(root, usable, database)
        queries = Queries(
            names,
            cameras,
            retrieve(run, config.retrieval, images, matcher),
            problems,
            uncalibrated=unknown,
            perhaps=possible_cameras(root, unknown, of_database),
            photos={name: root / name for name in usable} if config.refine_tracks else {},
        )
        features = model_keypoints(run, points, database)
        match_and_quantize(
            run,
            PairsToMatch(
                root, pairs_with_keypoints(queries, features), reference_features=features
            ),
            matcher,
            QUERY_KEYPOINTS,
            config.matching,
            overwrite=config.overwrite,
        )
        poses = find_poses(run, queries, points, config.poses)
        of_model = len(of_others) + sum(
            answer.camera in map(camera_text, queries.perhaps.get(answer.query, ()))
            for answer in poses
        )
        run.results["cameras"] = {
            "given": given,
            "of_the_model": of_model,
            "estimated": len(names) - given - of_model,
        }
        run.write()
        answers = [replace(pose, query=pose.query.removeprefix("query/")) for pose in poses]
        localized = {a.query: a.pose for a in answers if a.status == "localized" and a.pose}
        _write_result(run, "poses.txt", localized)
        return run, answers


def _photos_of_model(points: ModelPoints, model: Path, image_root: Path) -> list[str]:
    """Names of the photos of a model that are in the folder of its photos.

    Raises:
        EdmHlocError: there are none.
    """
    in_model = [name.removeprefix("database/") for name in points.names()]
    database = [f"database/{name}" for name in image_stamps(image_root, in_model)]
    if not database:
        raise EdmHlocError(
            f"None of the photos of {model} is in {image_root}; it knows names like "
            f"{in_model[0]!r}."
        )
    if len(database) < len(in_model):
        missing = min(set(points.names()) - set(database)).removeprefix("database/")
        logger.warning(
            "%d of the %d photos of %s are not in %s, such as %s: no query is matched with them.",
            len(in_model) - len(database),
            len(in_model),
            model,
            image_root,
            missing,
        )
    return database


def _query_cameras(
    root: Path, queries: Sequence[str], known: Mapping[str, pycolmap.Camera]
) -> tuple[dict[str, pycolmap.Camera], dict[str, str]]:
    """`query_cameras` of the photos under `root`, whose names in the run begin with "query/".

    Raises:
        EdmHlocError: none of the queries has a camera.
    """
    name_of = {query.removeprefix("query/"): query for query in queries}
    cameras, problems = query_cameras(
        root, list(name_of), {name: known[q] for name, q in name_of.items() if q in known}
    )
    for reason in problems.values():
        logger.warning("Skipping a query: %s", reason)
    if not cameras:
        raise EdmHlocError(
            f"None of the {len(queries)} queries can be used: {next(iter(problems.values()))}"
        )
    return (
        {name_of[name]: camera for name, camera in cameras.items()},
        {name_of[name]: reason for name, reason in problems.items()},
    )


def pairs_with_keypoints(queries: Queries, features: Path) -> list[Pair]:
    """The pairs of queries and retrieved images that have keypoints: matches with others, without
    3D points or unknown to the model, would give no correspondence.

    Args:
        queries: with the retrieved images.
        features: H5 file of the keypoints of the database.

    Raises:
        EdmHlocError: the file cannot be read.
    """
    with FeatureReader(features) as reader:
        known = {image for image in names_in(queries.pairs()) if image in reader}
    return [pair for pair in queries.pairs() if pair[1] in known]


def model_keypoints(run: Run, points: ModelPoints, database: Sequence[str]) -> Path:
    """The model's keypoints of the database images as an H5 file; a step of the run.

    Those without a 3D point have the score 0 in it, and get no matches.
    """
    path = run.out / MODEL_KEYPOINTS
    stamps = sorted((p.name, p.stat().st_mtime_ns) for p in points.folder.iterdir())

    def write() -> dict[str, Any]:
        write_model_keypoints(points, database, path)
        return {}

    depends_on = [stamps, database, *points.scaled.items(), "have points"]
    run.step("model keypoints", depends_on, [path], write)
    return path

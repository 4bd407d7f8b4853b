"""Steps that every localization shares, and the localization of one's own photos.

OUT/pairs-query-HOWk.txt    database images of each query, best first (hloc's list)
OUT/scores-query-HOWk.txt   the same with scores, where they were computed
OUT/raw_matches/            what the matcher found, crash-safe
OUT/features.h5             keypoints of the queries, as hloc writes them
OUT/matches.h5              matches of queries and database, as hloc writes them
OUT/queries.jsonl           how each query was localized, a line each
OUT/poses.txt               name qw qx qy qz tx ty tz, camera from world
OUT/run.json                settings, versions, times and results
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import cameras_by_exif
from edm_hloc.images.find import find_images, image_stamps
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints, PointSource, write_model_keypoints
from edm_hloc.localization.poses import write_poses
from edm_hloc.localization.queries import localize_queries, query_cameras
from edm_hloc.localization.results import LocalizationSummary, QueryPose
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.retrieval import RetrievalOptions, check_retrieval
from edm_hloc.pipelines.matching import PairsToMatch, match_and_quantize
from edm_hloc.pipelines.retrieval import retrieve
from edm_hloc.pipelines.run import Run, fingerprint_of

logger = logging.getLogger(__name__)

# Keypoints of queries are not merged: nothing but their own poses hangs on them. They move as far
# as the points that they were matched to are from the keypoints those belong to.
QUERY_KEYPOINTS = QuantizationConfig(
    max_error=2.0, cell_size=8.0, max_kps=None, position="adjusted"
)


def match_queries(
    run: Run,
    image_root: Path,
    retrieval: Mapping[str, Sequence[str]],
    matcher: Matcher,
    quantization: QuantizationConfig,
    dense: MatchingConfig | None,
    reference_features: Path | None,
    *,
    overwrite: bool,
) -> str:
    """Matches every query with its retrieved images into `features.h5` and `matches.h5`."""
    pairs = [(query, image) for query, images in retrieval.items() for image in images]
    return match_and_quantize(
        run,
        PairsToMatch(image_root, pairs, reference_features=reference_features),
        matcher,
        quantization,
        dense,
        overwrite=overwrite,
    )


def find_poses(
    run: Run,
    matched: str,
    queries: Sequence[str],
    cameras: Mapping[str, pycolmap.Camera],
    problems: Mapping[str, str],
    retrieval: Mapping[str, Sequence[str]],
    points: PointSource,
    options: PoseOptions,
    *,
    uncalibrated: Sequence[str] = (),
) -> list[QueryPose]:
    """The pose of each query, logged in `queries.jsonl`, summed up in the run's record."""
    start = time.monotonic()
    fingerprint = fingerprint_of(
        [
            matched,
            {query: list(images) for query, images in retrieval.items()},
            {query: str(camera.todict()) for query, camera in cameras.items()},
            sorted(uncalibrated),
            dict(problems),
            asdict(options),
        ]
    )
    skipped = run.results["matching"]["skipped"]
    answers = localize_queries(
        queries,
        cameras,
        retrieval,
        run.out / "features.h5",
        run.out / "matches.h5",
        points,
        run.out / "queries.jsonl",
        options,
        problems={**skipped, **problems},
        uncalibrated=uncalibrated,
        fingerprint=fingerprint,
    )
    run.results["localized"] = asdict(LocalizationSummary.of(answers))
    run.measure("localization", start)
    run.write()
    return answers


def submit(path: Path, answers: Sequence[QueryPose], points: PointSource) -> None:
    """Writes the submission: every query once, those without any pose with that of an image.

    The benchmarks want every query; a query of which nothing is known gets the pose of the first
    database image, as good as any.
    """
    fallback = next((pose for name in points.names() if (pose := points.pose(name))), None)
    poses = {a.query: a.pose or fallback for a in answers}
    write_poses(path, {query: pose for query, pose in poses.items() if pose}, basenames=True)


# --------------------------------------------------------------------------- one's own photos


def localize_photos(
    model: Path,
    image_root: Path,
    query_root: Path,
    out: Path,
    matcher: Matcher,
    *,
    known: Mapping[str, pycolmap.Camera] | None = None,
    retrieval: RetrievalOptions | None = None,
    pose: PoseOptions | None = None,
    dense: MatchingConfig | None = None,
    overwrite: bool = False,
) -> tuple[Run, list[QueryPose]]:
    """Finds where photos were taken, in the world of a COLMAP model made by anyone.

    Args:
        model: folder of the model, with points.
        image_root: folder of the model's photos.
        query_root: folder of the photos to localize.
        out: output folder; a run that is there is continued. See the module for its files.
        matcher: with what.
        known: cameras of the queries that are calibrated. Others that were taken by a camera of the
            model, as their EXIF data tell, have its intrinsics; else the focal length comes from
            the EXIF data and is refined, or is estimated.
        retrieval: which photos of the model each query is matched with; all of a small model.
        pose: how poses are found.
        dense: memory and threads of the matching.
        overwrite: do everything again.

    Raises:
        EdmHlocError: bad input; what was computed is kept. A query that fails raises nothing.
    """
    points = ModelPoints(model, prefix="database/")
    queries = [f"query/{name}" for name in find_images(query_root)]
    known = {f"query/{name}": camera for name, camera in (known or {}).items()}
    retrieval = retrieval or RetrievalOptions(number=20)
    pose = pose or PoseOptions()
    in_database = [name.removeprefix("database/") for name in points.names()]
    there = [f"database/{name}" for name in image_stamps(image_root, in_database)]
    if not there:
        raise EdmHlocError(
            f"None of the photos of {model} is in {image_root}; it knows names like "
            f"{in_database[0]!r}."
        )
    check_retrieval(retrieval, queries, there)
    settings = {
        "command": "localize",
        "model": str(model),
        "images": str(image_root),
        "queries": str(query_root),
        "retrieval": asdict(retrieval),
        "pose": asdict(pose),
    }
    with Run.begin(out, settings, matcher, overwrite=overwrite) as run:
        root = _one_root(out / "images", {"database": image_root, "query": query_root})
        in_model = cameras_by_exif(
            root, [q for q in queries if q not in known], points.cameras(there)
        )
        run.results["cameras"] = {
            "given": len(known),
            "of_the_model": len(in_model),
            "estimated": len(queries) - len(known) - len(in_model),
        }
        known |= in_model
        cameras, problems = _query_cameras(query_root, queries, known)
        usable = [query for query in queries if query not in problems]
        found = retrieve(run, retrieval, RetrievalImages(root, usable, there), matcher)

        keypoints = out / "model-keypoints.h5"
        stamps = sorted((p.name, p.stat().st_mtime_ns) for p in Path(model).iterdir())

        def write_keypoints() -> dict[str, Any]:
            write_model_keypoints(points, there, keypoints)
            return {}

        run.step("model keypoints", [str(model), stamps, there], [keypoints], write_keypoints)
        matched = match_queries(
            run, root, found, matcher, QUERY_KEYPOINTS, dense, keypoints, overwrite=overwrite
        )
        free = [query for query in queries if query not in known]
        answers = find_poses(
            run, matched, queries, cameras, problems, found, points, pose, uncalibrated=free
        )
        inside = str(root / "query")  # as decoders name photos that end too early
        answers = [
            replace(
                a,
                query=a.query.removeprefix("query/"),
                reason=a.reason.replace(inside, str(query_root)),
            )
            for a in answers
        ]
        localized = {a.query: a.pose for a in answers if a.status == "localized" and a.pose}
        write_poses(out / "poses.txt", localized)
        return run, answers


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


def _one_root(folder: Path, roots: Mapping[str, Path]) -> Path:
    """A folder with links to several, for steps that take one folder of images."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, root in roots.items():
            link = folder / name
            if link.is_symlink():
                link.unlink()
            link.symlink_to(root.resolve(), target_is_directory=True)
    except OSError as error:
        raise EdmHlocError(f"Cannot make links in {folder}: {error.strerror}.") from error
    return folder

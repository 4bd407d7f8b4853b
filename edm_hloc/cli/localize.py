"""`edm-hloc localize`: camera poses of photos in a COLMAP model; options the benchmarks share."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc.cli import options, summaries, workers
from edm_hloc.cli.report import reporting

if TYPE_CHECKING:
    from edm_hloc.localization.pnp import PoseOptions
    from edm_hloc.pairs.retrieval import RetrievalOptions

_RETRIEVAL_HELP = (
    "database photos of each query: sift, edm or edm+sift (computed here), megaloc (torch.hub), "
    "hloc's list of pairs, or an H5 file of global descriptors"
)


def register(command: options.AddCommand) -> None:
    sub = command("localize", _localize, "estimate the camera poses of photos in a COLMAP model")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model with 3D points")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of the model's photos")
    sub.add_argument("queries", type=Path, metavar="QUERIES", help="folder of the other photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the poses and all else")
    sub.add_argument(
        "--known",
        type=Path,
        metavar="INTRINSICS",
        help="known intrinsics of the queries: a COLMAP model or its cameras.txt, a list with "
        "'name MODEL width height parameters' a line, OpenCV's calibration, or 'MODEL width "
        "height parameters' for all",
    )
    workers.add_workers(sub)
    workers.add_shards(sub)
    add_localization(sub, retrieved=20, max_error=12.0)
    options.add_tracks(sub, what=options.ALIGNED_QUERIES)


def add_localization(sub: argparse.ArgumentParser, *, retrieved: int, max_error: float) -> None:
    """Adds the options of retrieval and pose estimation, with defaults for these two."""
    group = sub.add_argument_group("retrieval and poses")
    group.add_argument("--retrieval", default="edm+sift", metavar="HOW", help=_RETRIEVAL_HELP)
    group.add_argument(
        "--retrieved",
        type=options.between(int, 1),
        default=retrieved,
        help="database photos a query",
    )
    group.add_argument(
        "--ransac",
        type=options.between(float, 1e-3),
        default=max_error,
        help="largest reprojection error of an inlier, px of the query photo",
    )
    group.add_argument(
        "--min-inliers",
        type=options.between(int, 4),  # of fewer, all agree with some pose
        default=10,
        help="minimum inliers of a localized query",
    )
    group.add_argument(
        "--clusters",
        action="store_true",
        help="estimate a pose from each group of covisible photos, and keep the best",
    )
    group.add_argument("--seed", type=options.SEED, default=0, help="seed of RANSAC")
    options.add_matcher(sub)
    options.add_overwrite(sub)


def retrieval_options(args: argparse.Namespace) -> RetrievalOptions:
    """Raises EdmHlocError if a given file is missing."""
    from edm_hloc.pairs.retrieval import RetrievalOptions

    retrieval = RetrievalOptions(args.retrieval, args.retrieved)
    retrieval.check()
    return retrieval


def pose_options(args: argparse.Namespace) -> PoseOptions:
    from edm_hloc.localization.pnp import PoseOptions

    return PoseOptions(args.ransac, args.min_inliers, clusters=args.clusters, seed=args.seed)


def _localize(args: argparse.Namespace) -> None:
    from edm_hloc.base.colmap import check_model
    from edm_hloc.images.find import find_images
    from edm_hloc.images.intrinsics import load_intrinsics
    from edm_hloc.pipelines.localize import (
        LocalizationConfig,
        check_any_localized,
        localize_photos,
    )

    start = time.monotonic()
    retrieval, pose = retrieval_options(args), pose_options(args)
    check_model(args.model)
    find_images(args.images, [args.out])  # an error before the weights are loaded
    names = find_images(args.queries, [args.out])
    known = load_intrinsics(args.known, names) if args.known is not None else {}
    config = LocalizationConfig(
        retrieval,
        options.matching_config(args),
        pose,
        known,
        refine_tracks=args.tracks == "refine",
        queries=names,
        overwrite=args.overwrite,
    )
    with reporting(args.out):
        matcher = options.make_matcher(args)
        run, answers = localize_photos(
            args.model, args.images, args.queries, args.out, matcher, config
        )
        given, same, estimated = run.results["cameras"].values()
        print(f"Cameras     {given} given, {same} as in the model, {estimated} estimated")
        for answer in answers:
            if answer.pose is not None and answer.status == "localized":
                x, y, z = answer.pose.inverse().translation
                print(
                    f"{answer.query}  at {x:.4f} {y:.4f} {z:.4f}, {answer.inliers:,} inliers of "
                    f"{answer.correspondences:,}, confidence {answer.confidence}"
                )
        summaries.print_localization(run, answers, time.monotonic() - start, submitted=False)
        poses, log = run.out / "poses.txt", run.out / "queries.jsonl"
        print(f"Written     {poses} and, with all details, {log}")
    check_any_localized(run)

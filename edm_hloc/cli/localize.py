"""`edm-hloc localize`, `aachen`, `inloc` and what belongs to them: from queries to camera poses."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_lines
from edm_hloc.cli import options
from edm_hloc.cli.report import end_quietly, reporting

if TYPE_CHECKING:
    from edm_hloc.keypoints.quantization import QuantizationConfig
    from edm_hloc.localization.pnp import PoseOptions
    from edm_hloc.localization.results import QueryPose
    from edm_hloc.pairs.retrieval import RetrievalOptions
    from edm_hloc.pipelines.run import Run

_RETRIEVAL_HELP = (
    "database photos of each query: sift or edm (computed here), megaloc (torch.hub), hloc's list "
    "of pairs, or an H5 file of global descriptors"
)


def register(command: options.AddCommand) -> None:
    sub = command("localize", _localize, "find where photos were taken, in the world of a model")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model with points")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of its photos")
    sub.add_argument("queries", type=Path, metavar="QUERIES", help="folder of the other photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the poses and all else")
    sub.add_argument(
        "--known",
        type=Path,
        metavar="INTRINSICS",
        help="known intrinsics of the queries: a COLMAP model or its cameras.txt, or a list with "
        "'name MODEL width height parameters' a line",
    )
    _add_pose(sub, retrieved=20, max_error=12.0)

    sub = command("aachen", _aachen, "localize the queries of Aachen Day-Night v1.1")
    _add_dataset(sub)
    sub.add_argument("--covisible", type=int, default=20, help="partners of a database photo")
    _add_keypoints(sub, max_error=2.0, cell_size=8.0, max_keypoints=8192)
    _add_pose(sub, retrieved=50, max_error=12.0)

    sub = command("inloc", _inloc, "localize the queries of InLoc")
    _add_dataset(sub)
    sub.add_argument("--min-matches", type=int, default=20, help="pairs with fewer are left out")
    _add_keypoints(sub, max_error=1.0, cell_size=1.0, max_keypoints=0)
    _add_pose(sub, retrieved=40, max_error=48.0)

    sub = command("check-submission", _check, "say what is wrong with a file of poses")
    sub.add_argument("file", type=Path, metavar="FILE")
    sub.add_argument(
        "--queries",
        type=Path,
        nargs="+",
        required=True,
        help="lists with a query's name first in each line, or a folder of queries",
    )

    sub = command("evaluate-poses", _evaluate, "compare a file of poses with the truth")
    sub.add_argument("file", type=Path, metavar="FILE")
    sub.add_argument("truth", type=Path, metavar="TRUTH", help="folder with a GROUP.txt each group")
    sub.add_argument("--benchmark", choices=("aachen", "inloc"), default="aachen")

    sub = command("synth", _synth, "render a miniature of a benchmark, with the truth")
    sub.add_argument("benchmark", choices=("aachen", "inloc"))
    sub.add_argument("out", type=Path, metavar="DIR")
    sub.add_argument("--views", type=int, help="photos of the database")
    sub.add_argument("--queries", type=int, default=8)
    sub.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("W", "H"))
    sub.add_argument("--seed", type=options.SEED, default=0)

    sub = command("retrieve", _retrieve, "list the database photos most similar to each query")
    sub.add_argument("descriptors", type=Path, metavar="H5", help="global descriptors, as hloc's")
    sub.add_argument("out", type=Path, metavar="OUT", help="hloc's list of pairs, to be written")
    sub.add_argument("--number", type=int, default=50, help="database photos a query")
    for side in ("query", "database"):
        sub.add_argument(f"--{side}-prefix", nargs="+", default=(), help=f"names of the {side}")
        sub.add_argument(f"--{side}-list", type=Path, help="instead: a file, a name a line")


def _add_dataset(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dataset", type=Path, metavar="DATASET", help="folder of the dataset")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the submission and all else")
    sub.add_argument(
        "--dry-run", action="store_true", help="only say what is missing and where to get it"
    )


def _add_keypoints(
    sub: argparse.ArgumentParser, *, max_error: float, cell_size: float, max_keypoints: int
) -> None:
    group = sub.add_argument_group("keypoints of the database (lengths in px of its photos)")
    group.add_argument("--max-error", type=float, default=max_error, help="how far points merge")
    group.add_argument("--cell-size", type=float, default=cell_size, help="one keypoint a cell")
    group.add_argument(
        "--max-keypoints", type=int, default=max_keypoints, help="a photo; 0: no limit"
    )


def _add_pose(sub: argparse.ArgumentParser, *, retrieved: int, max_error: float) -> None:
    group = sub.add_argument_group("retrieval and poses")
    group.add_argument("--retrieval", default="sift", metavar="HOW", help=_RETRIEVAL_HELP)
    group.add_argument("--retrieved", type=int, default=retrieved, help="database photos a query")
    group.add_argument(
        "--ransac", type=float, default=max_error, help="inliers' error, px of the query photo"
    )
    group.add_argument("--min-inliers", type=int, default=10, help="with fewer there is no pose")
    group.add_argument(
        "--clusters", action="store_true", help="one pose for each group that shares points"
    )
    group.add_argument("--seed", type=options.SEED, default=0, help="of RANSAC")
    options.add_matcher(sub)
    options.add_overwrite(sub)


def _retrieval_options(args: argparse.Namespace) -> RetrievalOptions:
    from edm_hloc.pairs.retrieval import RetrievalOptions

    retrieval = RetrievalOptions(args.retrieval, args.retrieved)
    retrieval.check()
    return retrieval


def _pose_options(args: argparse.Namespace) -> PoseOptions:
    from edm_hloc.localization.pnp import PoseOptions

    if not args.ransac > 0:
        raise EdmHlocError("--ransac must be more than 0 px.")
    return PoseOptions(args.ransac, args.min_inliers, clusters=args.clusters, seed=args.seed)


def _keypoints(args: argparse.Namespace, preset: QuantizationConfig) -> QuantizationConfig:
    try:
        return replace(
            preset,
            max_error=args.max_error,
            cell_size=args.cell_size,
            max_kps=args.max_keypoints or None,
        )
    except ValueError as error:
        raise EdmHlocError(f"Wrong quantization: {error}.") from None


def _localize(args: argparse.Namespace) -> None:
    end_quietly()
    from edm_hloc.base.colmap import check_model
    from edm_hloc.images.find import find_images
    from edm_hloc.images.intrinsics import load_intrinsics
    from edm_hloc.pipelines.localize import LocalizationConfig, localize_photos

    start = time.monotonic()
    retrieval, pose = _retrieval_options(args), _pose_options(args)
    check_model(args.model)
    find_images(args.images)  # told before the weights are loaded
    names = find_images(args.queries)
    known = load_intrinsics(args.known, names) if args.known is not None else {}
    config = LocalizationConfig(
        retrieval, options.dense_config(args), pose, known, overwrite=args.overwrite
    )
    with reporting(args.out):
        run, answers = localize_photos(
            args.model,
            args.images,
            args.queries,
            args.out,
            options.make_matcher(args),
            config,
        )
        given, same, estimated = run.results["cameras"].values()
        print(f"Cameras     {given} given, {same} as in the model by EXIF, {estimated} estimated")
        for answer in answers:
            if answer.pose is not None and answer.status == "localized":
                x, y, z = answer.pose.inverse().translation
                print(
                    f"{answer.query}  at {x:.4f} {y:.4f} {z:.4f}, {answer.inliers:,} inliers of "
                    f"{answer.correspondences:,}, confidence {answer.confidence}"
                )
        _print_answers(run, answers, time.monotonic() - start, submitted=False)
        poses, log = run.out / "poses.txt", run.out / "queries.jsonl"
        print(f"Written     {poses} and, with all details, {log}")
    _stop_without_poses(run)


def _aachen(args: argparse.Namespace) -> None:
    end_quietly()
    from edm_hloc.pipelines.aachen import AachenDataset, AachenOptions, localize_aachen

    start = time.monotonic()
    if args.covisible < 1:
        raise EdmHlocError("--covisible must be at least 1.")
    keypoints = _keypoints(args, AachenOptions().quantization)
    settings = AachenOptions(
        args.covisible, _retrieval_options(args), keypoints, pose=_pose_options(args)
    )
    data = AachenDataset(args.dataset)
    if args.dry_run:
        problems = data.problems()
        missing = [] if problems else data.missing_photos()
        _report_check(args.dataset, problems, "photos of the model or the queries", missing)
        print(f"            {len(data.queries())} queries")
        return
    _stop_at(data.problems())
    matcher = options.make_matcher(args)
    dense = options.dense_config(args)
    with reporting(args.out):
        run, answers, submission = localize_aachen(
            args.dataset, args.out, matcher, settings, dense, overwrite=args.overwrite
        )
        _print_answers(run, answers, time.monotonic() - start)
        print(f"Written     {submission}")
    _stop_without_poses(run)


def _inloc(args: argparse.Namespace) -> None:
    end_quietly()
    from edm_hloc.pipelines.inloc import InLocDataset, InLocOptions, localize_inloc

    start = time.monotonic()
    keypoints = _keypoints(args, InLocOptions().quantization)
    pose = replace(_pose_options(args), min_matches=args.min_matches)
    settings = InLocOptions(_retrieval_options(args), keypoints, pose)
    data = InLocDataset(args.dataset)
    if args.dry_run:
        problems = data.problems()
        missing = [] if problems else data.missing_scans()
        _report_check(args.dataset, problems, "scans or alignments", missing)
        print(f"            {len(data.queries())} queries, {len(data.database())} cutouts")
        return
    _stop_at(data.problems())
    matcher = options.make_matcher(args)
    dense = options.dense_config(args)
    with reporting(args.out):
        run, answers, submission = localize_inloc(
            args.dataset, args.out, matcher, settings, dense, overwrite=args.overwrite
        )
        if run.results["missing_scans"]:
            number = len(run.results["missing_scans"])
            print(
                f"Scans       {number} cannot be used, e.g. of {run.results['missing_scans'][0]}; "
                "run again with them"
            )
        _print_answers(run, answers, time.monotonic() - start)
        print(f"Written     {submission}")
    _stop_without_poses(run)


def _stop_without_poses(run: Run) -> None:
    summary = run.results["localized"]
    if not summary["localized"]:
        raise EdmHlocError(
            f"None of the {summary['queries']} queries was localized: check that they show what "
            "the model does, look at the matches in the report, or try a larger --retrieved."
        )


def _stop_at(problems: Sequence[str]) -> None:
    if problems:
        raise EdmHlocError("\n".join(problems))


def _report_check(
    dataset: Path, problems: Sequence[str], what: str, missing: Sequence[str]
) -> None:
    _stop_at(problems)
    if missing:
        some = "\n".join(f"  {line}" for line in missing[:5])
        more = f"\n  and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise EdmHlocError(f"Missing in {dataset}: {len(missing)} {what}\n{some}{more}")
    print(f"Complete    {dataset} has everything a run needs")


def _print_answers(
    run: Run, answers: Sequence[QueryPose], seconds: float, *, submitted: bool = True
) -> None:
    """`submitted`: whether queries without a pose get that of a database photo."""
    from edm_hloc.base.process import format_duration

    summary = run.results["localized"]
    print(
        f"Localized   {summary['localized']} of {summary['queries']} queries, "
        f"{summary['inliers_median']:,.0f} inliers (median)"
    )
    found = [answer for answer in answers if answer.status != "localized"]
    if found:
        text = ", which get the pose of a database photo" if submitted else ""
        print(f"Not found   {len(found)} of {summary['queries']}{text}:")
        for answer in found[:10]:
            print(f"            {answer.query}: {answer.reason}")
        if len(found) > 10:
            print(f"            and {len(found) - 10} more, see queries.jsonl")
    print(f"Time        {format_duration(seconds)}")


def _check(args: argparse.Namespace) -> None:
    from edm_hloc.images.find import find_images
    from edm_hloc.localization.submission import check_submission

    queries: list[str] = []
    for path in args.queries:
        queries += find_images(path) if path.is_dir() else _names(path)
    problems = check_submission(args.file, queries)
    if problems:
        more = f"\n… and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise EdmHlocError(f"{args.file}:\n" + "\n".join(problems[:20]) + more)
    print(f"Right       {args.file} has one pose for each of {len(queries)} queries")


def _names(path: Path) -> list[str]:
    return [line.split()[0] for _, line in read_lines(path, "list of names")]


def _evaluate(args: argparse.Namespace) -> None:
    from edm_hloc.evaluation.localization import (
        AACHEN_THRESHOLDS,
        INLOC_THRESHOLDS,
        evaluate,
        read_truth,
        table,
    )
    from edm_hloc.localization.poses import read_poses

    thresholds = AACHEN_THRESHOLDS if args.benchmark == "aachen" else INLOC_THRESHOLDS
    print(table(evaluate(read_poses(args.file), read_truth(args.truth), thresholds), thresholds))


def _synth(args: argparse.Namespace) -> None:
    from edm_hloc.synthetic.aachen_miniature import make_aachen
    from edm_hloc.synthetic.inloc_miniature import make_inloc

    size = (args.size[0], args.size[1])
    if min(size) < 64 or args.queries < 2 or (args.views is not None and args.views < 4):
        raise EdmHlocError(
            "A miniature needs 4 views, 2 queries and photos of 64 × 64 px at least."
        )
    if args.benchmark == "aachen":
        night = args.queries // 2
        views = args.views or 16
        make_aachen(args.out, views, (args.queries - night, night), size, args.seed)
    else:
        make_inloc(args.out, args.views or 32, args.queries, size, args.seed)
    # InLoc's 48 px are meant for photos 4,032 px wide
    more = "" if args.benchmark == "aachen" else f" --ransac {max(2, 48 * max(size) / 4032):.0f}"
    file = "Aachen" if args.benchmark == "aachen" else "InLoc"
    print(f"Written     {args.out}; try: edm-hloc {args.benchmark} {args.out} OUT{more}, then")
    print(
        f"            edm-hloc evaluate-poses OUT/{file}*.txt {args.out / 'truth' / 'queries'} "
        f"--benchmark {args.benchmark}"
    )


def _retrieve(args: argparse.Namespace) -> None:
    from edm_hloc.pairs.descriptors import DescriptorReader
    from edm_hloc.pairs.files import write_pairs, write_scores
    from edm_hloc.pairs.retrieval import most_similar, select_names

    with DescriptorReader(args.descriptors) as reader:
        names = reader.names()
    lists = [_names(path) if path else None for path in (args.query_list, args.database_list)]
    queries = select_names(names, args.query_prefix, lists[0])
    database = select_names(names, args.database_prefix, lists[1])
    found = most_similar(args.descriptors, queries, database, args.number)
    write_pairs(args.out, [(query, image) for query, image, _ in found])
    scores = args.out.with_name(f"scores-{args.out.name}")
    write_scores(scores, found)
    print(f"Written     {args.out}, {len(found):,} pairs of {len(queries)} queries; {scores}")

"""`edm-hloc aachen`, `inloc` and what belongs to them: checks, evaluation and miniatures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from edm_hloc.base.errors import EdmHlocError, raise_any
from edm_hloc.base.files import make_folder
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_lines
from edm_hloc.cli import options, summaries, workers
from edm_hloc.cli.localize import (
    add_localization,
    pose_options,
    retrieval_options,
)
from edm_hloc.cli.report import reporting

if TYPE_CHECKING:
    from edm_hloc.keypoints.quantization import QuantizationConfig
    from edm_hloc.localization.results import QueryPose
    from edm_hloc.pipelines.aachen import AachenOptions
    from edm_hloc.pipelines.inloc import InLocOptions
    from edm_hloc.pipelines.run import Run

_PRINTED_PROBLEMS = 20  # of a submission


def register(command: options.AddCommand) -> None:
    sub = command("aachen", _aachen, "localize the queries of Aachen Day-Night v1.1")
    _add_dataset(sub)
    sub.add_argument(
        "--covisible",
        type=options.between(int, 1),
        default=20,
        help="partners of a database photo",
    )
    _add_keypoints(sub, max_error=2.0, cell_size=8.0, max_keypoints=8192)
    options.add_tracks(
        sub,
        what=f"refine the triangulated points in all their photos, then {options.ALIGNED_QUERIES}",
    )
    add_localization(sub, retrieved=50, max_error=12.0)

    sub = command("inloc", _inloc, "localize the queries of InLoc")
    _add_dataset(sub)
    sub.add_argument(
        "--min-matches",
        type=options.between(int, 0),
        default=20,
        help="pairs with fewer are left out",
    )
    _add_keypoints(sub, max_error=1.0, cell_size=1.0, max_keypoints=0)
    add_localization(sub, retrieved=40, max_error=48.0)

    sub = command("check-submission", _check, "say what is wrong with files of poses")
    _add_poses(sub)
    sub.add_argument(
        "--queries",
        type=Path,
        nargs="+",
        required=True,
        help="lists with a query's name first in each line, or a folder of queries",
    )

    sub = command("evaluate-poses", _evaluate, "compare files of poses with the true ones")
    _add_poses(sub)
    sub.add_argument(
        "truth",
        type=Path,
        metavar="TRUTH",
        help="folder with the true poses, a file GROUP.txt for each group of queries",
    )
    sub.add_argument(
        "--benchmark",
        choices=("aachen", "inloc"),
        default="aachen",
        help="whose thresholds of position and rotation to count by",
    )

    sub = command("synth", _synth, "render a miniature of a benchmark, with the true poses")
    sub.add_argument("benchmark", choices=("aachen", "inloc"), help="whose layout to render")
    sub.add_argument("out", type=Path, metavar="DIR", help="folder for the miniature")
    sub.add_argument(
        "--views",
        type=options.between(int, 4, 1001),
        help="photos of the database; by default 16 of Aachen, 32 of InLoc",
    )
    sub.add_argument(
        "--queries",
        type=options.between(int, 2, 1001),
        default=8,
        help="photos to localize; of Aachen half of them are at night",
    )
    side = options.between(int, 64, 4097)
    sub.add_argument(
        "--size",
        type=side,
        nargs=2,
        default=(640, 480),
        metavar=("W", "H"),
        help="width and height of the photos, px",
    )
    sub.add_argument("--seed", type=options.SEED, default=0, help="another one, another place")


def _add_poses(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="poses, a query a line: name qw qx qy qz tx ty tz",
    )


def _add_dataset(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("dataset", type=Path, metavar="DATASET", help="folder of the dataset")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the submission and all else")
    sub.add_argument(
        "--dry-run", action="store_true", help="only say what is missing or cannot be read"
    )
    workers.add_workers(sub)
    workers.add_shards(sub)


def _add_keypoints(
    sub: argparse.ArgumentParser, *, max_error: float, cell_size: float, max_keypoints: int
) -> None:
    group = sub.add_argument_group("keypoints of the database (lengths in px of its photos)")
    group.add_argument("--max-error", type=float, default=max_error, help="how far points merge")
    group.add_argument(
        "--cell-size",
        type=float,
        default=cell_size,
        help="one keypoint a cell, no less than --max-error",
    )
    group.add_argument(
        "--max-keypoints", type=int, default=max_keypoints, help="a photo; 0: no limit"
    )


def _keypoints(args: argparse.Namespace, preset: QuantizationConfig) -> QuantizationConfig:
    return replace(
        preset,
        max_error=args.max_error,
        cell_size=args.cell_size,
        max_kps=args.max_keypoints or None,
    )


def _aachen(args: argparse.Namespace) -> None:
    from edm_hloc.pipelines.aachen import AachenDataset, AachenOptions, localize_aachen

    if args.covisible < 1:
        raise EdmHlocError("--covisible must be at least 1.")
    keypoints = _keypoints(args, AachenOptions().quantization)
    settings = AachenOptions(
        args.covisible,
        retrieval_options(args),
        keypoints,
        pose=pose_options(args),
        refine_tracks=args.tracks == "refine",
    )
    data = AachenDataset(args.dataset)
    raise_any(data.problems())
    if args.dry_run:
        unusable = data.unusable_photos()
        _report_check(args.dataset, "photos of the model or the queries", unusable)
        print(f"            {len(data.queries())} queries")
    else:
        _localize(args, localize_aachen, settings)


def _inloc(args: argparse.Namespace) -> None:
    from edm_hloc.pipelines.inloc import InLocDataset, InLocOptions, localize_inloc

    keypoints = _keypoints(args, InLocOptions().quantization)
    pose = replace(pose_options(args), min_matches=args.min_matches)
    settings = InLocOptions(retrieval_options(args), keypoints, pose)
    data = InLocDataset(args.dataset)
    raise_any(data.problems())
    if args.dry_run:
        queries, database = data.queries(), data.database()
        _report_check(args.dataset, "queries, scans or alignments", data.unusable_files())
        print(f"            {len(queries)} queries, {len(database)} cutouts")
    else:
        _localize(args, localize_inloc, settings)


def _localize(
    args: argparse.Namespace,
    localize: Callable[..., tuple[Run, list[QueryPose], Path]],
    settings: AachenOptions | InLocOptions,
) -> None:
    """Runs `localize_aachen` or `localize_inloc` and prints what came out."""
    from edm_hloc.pipelines.localize import check_any_localized

    start = time.monotonic()
    matcher, matching = options.make_matcher(args), options.matching_config(args)
    with reporting(args.out):
        run, answers, submission = localize(
            args.dataset, args.out, matcher, settings, matching, overwrite=args.overwrite
        )
        missing = run.results.get("missing_scans")
        if missing:
            print(
                f"Scans       {len(missing)} cannot be used, e.g. of {missing[0]}; get them and "
                "run again"
            )
        summaries.print_localization(run, answers, time.monotonic() - start)
        print(f"Written     {submission}")
    check_any_localized(run)


def _report_check(dataset: Path, what: str, unusable: Sequence[str]) -> None:
    """Prints that a dataset is complete, or raises EdmHlocError with what is not."""
    if unusable:
        some = "\n".join(f"  {line}" for line in unusable[:5])
        more = f"\n  and {len(unusable) - 5} more" if len(unusable) > 5 else ""
        raise EdmHlocError(f"Missing or damaged in {dataset}: {len(unusable)} {what}\n{some}{more}")
    print(f"Complete    {dataset} has everything a run needs")


def _check(args: argparse.Namespace) -> None:
    from edm_hloc.images.find import find_images
    from edm_hloc.images.intrinsics import listed_name
    from edm_hloc.localization.submission import check_submission

    queries: list[str] = []
    for path in args.queries:
        if path.is_dir():
            queries += find_images(path)
        else:
            listed = [listed_name(line) for _, line in read_lines(path, "list of queries")]
            if not listed:
                raise EdmHlocError(f"The list of queries {path} is empty: give one name a line.")
            queries += listed
    wrong = []
    for file in args.files:
        _warn_of_earlier(file)
        if problems := check_submission(file, queries):
            hidden = len(problems) - _PRINTED_PROBLEMS
            more = [f"… and {hidden} more"] if hidden > 0 else []
            wrong += [f"{file}:", *problems[:_PRINTED_PROBLEMS], *more]
        else:
            print(f"Right       {file} has one pose for each of {len(set(queries))} queries")
    if wrong:
        raise EdmHlocError("\n".join(wrong))


def _warn_of_earlier(file: Path) -> None:
    from edm_hloc.pipelines.run_entries import is_earlier_name

    if is_earlier_name(file.name):
        warn_once(
            f"{file} is of an earlier run, not of the last one in that folder, which has failed or "
            "not come so far."
        )


def _evaluate(args: argparse.Namespace) -> None:
    from edm_hloc.evaluation.localization import (
        AACHEN_THRESHOLDS,
        INLOC_THRESHOLDS,
        evaluate,
        other_form,
        poses_of_no_query,
        read_truth,
        table,
    )
    from edm_hloc.localization.poses import read_pose_lines, read_poses

    thresholds = AACHEN_THRESHOLDS if args.benchmark == "aachen" else INLOC_THRESHOLDS
    for file in args.files:
        _warn_of_earlier(file)
        truth = read_truth(args.truth, [line.name for line in read_pose_lines(file)])
        poses = read_poses(file, [name for group in truth.values() for name in group])
        if not poses:
            raise EdmHlocError(f"{file} holds no poses: run the localization again.")
        if len(args.files) > 1:
            print(f"{file}:")
        errors = evaluate(poses, truth, thresholds)
        if unknown := poses_of_no_query(poses, truth):
            warn_once(
                f"{len(unknown)} of the {len(poses)} poses in {file} count for nothing, as they "
                f"are of no query in {args.truth}, such as {unknown[0]!r}: compare the names."
            )
        if other := other_form(poses, truth):
            form, of_truth = other
            which = " or ".join(str(args.truth if true else file) for true in of_truth)
            warn_once(
                f"{which} seems to hold {form}. So read, {file} fits {args.truth} far better; the "
                "errors below are of lines with 'name qw qx qy qz tx ty tz', camera from world."
            )
        print(table(errors, thresholds))


def _synth(args: argparse.Namespace) -> None:
    from edm_hloc.synthetic.aachen_miniature import make_aachen
    from edm_hloc.synthetic.inloc_miniature import make_inloc

    size = (args.size[0], args.size[1])
    make_folder(args.out)
    if args.benchmark == "aachen":
        night = args.queries // 2
        views = args.views or 16
        make_aachen(args.out, views, (args.queries - night, night), size, args.seed)
    else:
        make_inloc(args.out, args.views or 32, args.queries, size, args.seed)
    # InLoc's 48 px are meant for photos 4,032 px wide
    more = "" if args.benchmark == "aachen" else f" --ransac {max(2, 48 * max(size) / 4032):.0f}"
    file = "Aachen" if args.benchmark == "aachen" else "InLoc"
    out, truth = (quote(str(path)) for path in (args.out, args.out / "truth" / "queries"))
    print(f"Written     {args.out}; try: edm-hloc {args.benchmark} {out} OUT{more}, then")
    print(
        f"            edm-hloc evaluate-poses OUT/{file}*.txt {truth} --benchmark {args.benchmark}"
    )

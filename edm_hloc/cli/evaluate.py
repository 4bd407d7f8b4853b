"""`edm-hloc evaluate pose`: relative-pose accuracy on pairs with known poses, and of baselines."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder
from edm_hloc.cli import options
from edm_hloc.cli.report import end_quietly


def register(command: options.AddCommand) -> None:
    sub = command(
        "evaluate", _evaluate, "evaluate relative poses on pairs with known poses, as papers do"
    )
    sub.add_argument("what", choices=("pose",), help="what to evaluate")
    sub.add_argument(
        "truth",
        type=Path,
        metavar="TRUTH",
        help="the known poses: a list in SuperGlue's pairs_with_gt format, a COLMAP model, or "
        "LoFTR's index files (folder of *.npz) of MegaDepth or ScanNet",
    )
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of the photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for pose.json and the matches")
    sub.add_argument(
        "--max-rotation",
        type=options.between(float, 0, 361),
        default=180.0,
        metavar="DEGREES",
        help="leave out pairs with a larger relative rotation",
    )
    sub.add_argument(
        "--no-sift", action="store_true", help="do not evaluate COLMAP's SIFT as a baseline"
    )
    sub.add_argument(
        "--aliked",
        type=Path,
        metavar="WEIGHTS",
        help="weights of ALIKED-n16, to evaluate it as a baseline",
    )
    options.add_matcher(sub)
    sub.set_defaults(resize=640)


def _evaluate(args: argparse.Namespace) -> None:
    end_quietly()
    from edm_hloc.evaluation.baselines import ALIKEDMatcher, SIFTMatcher
    from edm_hloc.evaluation.pose import evaluate_pose, summarise, table
    from edm_hloc.evaluation.pose_pairs import read_pose_pairs
    from edm_hloc.matchers.base import Matcher

    make_folder(args.out)
    pairs = read_pose_pairs(args.truth, args.images, args.resize)
    chosen = [pair for pair in pairs if pair.rotation <= args.max_rotation]
    if not chosen:
        raise EdmHlocError(
            f"None of the {len(pairs)} pairs of {args.truth} is left to evaluate: raise "
            "--max-rotation."
        )
    print(f"Pairs       {len(chosen)} of {args.truth}, photos of {args.resize} px")
    matcher = options.make_matcher(args)
    matchers: dict[str, Matcher] = {matcher.info.name: matcher}
    if not args.no_sift:
        matchers["sift"] = SIFTMatcher(args.resize)
    if args.aliked is not None:
        matchers["aliked"] = ALIKEDMatcher(args.aliked, args.resize)
    dense = options.matching_config(args)
    results = evaluate_pose(chosen, args.images, matchers, args.out, dense)
    print(table([s for name, found in results.items() for s in summarise(name, found)]))
    print(f"Written     {args.out / 'pose.json'}, and beside it the matches")

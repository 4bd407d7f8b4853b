"""Compare EDM and COLMAP's SIFT on rendered pairs that are difficult in one respect each.

    python benchmarks/conditions.py OUT [--pairs 40] [--textures PHOTOS] [--weights WEIGHTS]

Prints a Markdown table of relative-pose errors; OUT keeps the photos, the matches and a pose.json
for each condition. Without --textures the scenes have procedural textures, so that the numbers can
be reproduced anywhere.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.evaluation.colmap_features import COLMAPMatcher
from edm_hloc.evaluation.pose import PoseSummary, evaluate_pose, table
from edm_hloc.evaluation.pose_pairs import read_pose_pairs
from edm_hloc.refinement.load import load_matcher
from edm_hloc.synthetic.conditions import CONDITIONS, write_condition
from edm_hloc.synthetic.textures import TextureBank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=40, help="number of each condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--textures", type=Path, help="folder of photos to cut textures from")
    parser.add_argument("--weights", help="name or path; by default the best on this computer")
    args = parser.parse_args()

    bank = TextureBank.from_folder(args.textures) if args.textures else TextureBank.procedural()
    edm = load_matcher("edm", weights=args.weights)
    matchers = {"edm": edm, "sift": COLMAPMatcher()}
    whole: dict[str, list[PoseSummary]] = {}
    for condition in CONDITIONS:
        folder = args.out / condition
        truth = write_condition(condition, folder, args.pairs, bank, seed=args.seed)
        pairs = read_pose_pairs(truth, folder / "images", 1024)
        summaries = evaluate_pose(pairs, folder / "images", matchers, folder)
        whole[condition] = [next(s for s in summaries if s.matcher == name) for name in matchers]
    lines = table([s for found in whole.values() for s in found]).splitlines()
    labels = ["condition", "---", *(c for c, found in whole.items() for _ in found)]
    for label, line in zip(labels, lines, strict=True):
        print(f"| {label} {line}")


if __name__ == "__main__":
    main()

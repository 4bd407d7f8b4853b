"""How well the network's scores tell right matches from wrong ones, on rendered pairs.

    python benchmarks/reliability.py [--weights A B …] [--pairs 16] [--textures PHOTOS] [--seed 0]

Prints two Markdown tables for each kind of scene, as in training and with repeated tiles that
overlap little: precision and recall of the coarse matches above some thresholds, and the share of
right matches in bins of the score. Without --textures the scenes have procedural textures, on which
the shipped weights were not trained.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor

from edm_hloc.base.progress import track
from edm_hloc.models import weights as weights_of
from edm_hloc.models.edm import EDM
from edm_hloc.synthetic.pairs import TILED, PairOptions, PairSampler
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.sources import SyntheticSource
from edm_hloc.training.step import PairBatch
from edm_hloc.training.validation import JudgedMatches, judge_matches

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
BINS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SIZE = (480, 640)  # (height, width)
DIFFICULTY = (0.05, 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", nargs="+", default=["edm_s"], help="names or paths")
    parser.add_argument("--pairs", type=int, default=16, help="of each kind")
    parser.add_argument("--textures", type=Path, help="folder of photos to cut textures from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    bank = TextureBank.from_folder(args.textures) if args.textures else TextureBank.procedural()
    models = {name: weights_of.load(name)[0] for name in args.weights}
    kinds = {"as in training": (bank, PairOptions()), "repeated tiles": (bank.of_tiles(), TILED)}
    for kind, (textures, options) in kinds.items():
        source = SyntheticSource(PairSampler(textures, options=options), DIFFICULTY, 0.05)
        judged: dict[str, list[JudgedMatches]] = {name: [] for name in models}
        for number in track(range(args.pairs), f"Matching ({kind})", "pair"):
            batch = source.batch(1, *SIZE, seed=1_000_003 * (args.seed + 1) + number)
            for name, model in models.items():
                judged[name].append(_judge(model, batch))
        print(
            f"\n{kind}, {args.pairs} pairs\n\n| weights | threshold | precision, recall | ", end=""
        )
        print("matches | wrong |\n|---|---|---|---|---|")
        for name in models:
            _print_thresholds(name, judged[name])
        print(
            "\n| score | "
            + " | ".join(f"right of {Path(n).parent.name or n}" for n in models)
            + " |"
        )
        print("|---" * (1 + len(models)) + "|")
        for low, high in itertools.pairwise(BINS):
            print(
                f"| {low:.2f}–{high:.2f} | "
                + " | ".join(_bin(judged[n], low, high) for n in models)
                + " |"
            )


def _judge(model: EDM, batch: PairBatch) -> JudgedMatches:
    return judge_matches(model, batch, THRESHOLDS[0])


def _joined(judged: list[JudgedMatches]) -> tuple[Tensor, Tensor, Tensor, int]:
    """Confidence and correctness of matches; confidence of those found, of so many true ones."""
    confidence, near, found = (
        torch.cat([getattr(j, part) for j in judged]) for part in ("confidence", "near", "found")
    )
    return confidence, near, found, sum(j.known for j in judged)


def _print_thresholds(name: str, judged: list[JudgedMatches]) -> None:
    confidence, near, found, known = _joined(judged)
    for threshold in THRESHOLDS:
        kept = near[confidence > threshold]
        recall = float((found > threshold).sum()) / max(known, 1)
        precision = float(kept.float().mean()) if len(kept) else float("nan")
        mean, wrong = len(kept) / len(judged), int((~kept).sum()) / len(judged)
        print(
            f"| {name} | {threshold} | {precision:.3f}, {recall:.3f} | {mean:.0f} | {wrong:.1f} |"
        )


def _bin(judged: list[JudgedMatches], low: float, high: float) -> str:
    """Share of right matches with a confidence above `low` and up to `high`, and their number."""
    confidence, near, _, _ = _joined(judged)
    inside = near[(confidence > low) & (confidence <= high)]
    return f"{float(inside.float().mean()):.2f} of {len(inside):,}" if len(inside) else "–"


if __name__ == "__main__":
    main()

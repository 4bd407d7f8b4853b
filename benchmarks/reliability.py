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
from typing import NamedTuple

import torch
from torch import Tensor

from edm_hloc.base.progress import track
from edm_hloc.models import weights as weights_of
from edm_hloc.synthetic.pairs import TILED, PairOptions, PairSampler
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.sources import SyntheticSource
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
                judged[name].append(judge_matches(model, batch, THRESHOLDS[0]))
        print(f"\n{kind}, {args.pairs} pairs\n")
        _print_tables({Path(name).parent.name or name: _join(j) for name, j in judged.items()})


class _Matches(NamedTuple):
    """All matches of one network, as in `JudgedMatches`, of so many pairs."""

    confidence: Tensor
    near: Tensor
    wrong: Tensor
    found: Tensor
    known: int
    pairs: int


def _join(judged: list[JudgedMatches]) -> _Matches:
    confidence, near, wrong, found = (
        torch.cat([getattr(j, part) for j in judged])
        for part in ("confidence", "near", "wrong", "found")
    )
    return _Matches(confidence, near, wrong, found, sum(j.known for j in judged), len(judged))


def _print_tables(networks: dict[str, _Matches]) -> None:
    _print_row("weights", "threshold", "precision", "recall", "matches", "surely wrong")
    _print_row(*["---"] * 6)
    for label, found in networks.items():
        for threshold in THRESHOLDS:
            _print_row(label, threshold, *_above(found, threshold))
    print()
    _print_row("score", *(f"right, {label}" for label in networks))
    _print_row(*["---"] * (1 + len(networks)))
    for low, high in itertools.pairwise(BINS):
        shares = (_share(found, low, high) for found in networks.values())
        _print_row(f"{low:.2f}–{high:.2f}", *shares)


def _print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def _above(found: _Matches, threshold: float) -> tuple[str, str, str, str]:
    """Precision, recall, matches and surely wrong matches a pair, above a threshold."""
    chosen = found.confidence > threshold
    kept = found.near[chosen]
    recall = float((found.found > threshold).sum()) / max(found.known, 1)
    precision = float(kept.float().mean()) if len(kept) else float("nan")
    wrong = int(found.wrong[chosen].sum()) / found.pairs
    return f"{precision:.3f}", f"{recall:.3f}", f"{len(kept) / found.pairs:.0f}", f"{wrong:.1f}"


def _share(found: _Matches, low: float, high: float) -> str:
    """Share of right matches with a confidence above `low` and up to `high`, and their number."""
    near = found.near[(found.confidence > low) & (found.confidence <= high)]
    return f"{float(near.float().mean()):.2f} of {len(near):,}" if len(near) else "–"


if __name__ == "__main__":
    main()

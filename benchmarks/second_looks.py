"""Count the pairs of a collection that the network matches too thinly, and that need a second look.

    python benchmarks/second_looks.py IMAGES [--pairs LIST] [--limit N] [--weights A B …]

A pair needs one if it has fewer matches than a quarter of the smaller photo's cells of 8 px
(`SecondLookConfig.min_confident_share`). Prints a row of a Markdown table for each of the weights:
the number of pairs, of those that need a second look, and the median number of matches as a share
of the cells.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edm_hloc.base.grid import CELL
from edm_hloc.base.progress import track
from edm_hloc.images.find import find_images
from edm_hloc.images.load import load_image
from edm_hloc.matchers.base import Matcher, Preprocessing
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.rules import Pair, exhaustive
from edm_hloc.refinement.load import load_matcher
from edm_hloc.refinement.second_look import SecondLookConfig


def densities(matcher: Matcher, images: Path, pairs: list[Pair], resize: int) -> np.ndarray:
    """Confident matches of each pair, as a share of the smaller photo's cells.

    Args:
        matcher: a network without refinement.
        images: folder of the photos.
        pairs: of their names.
        resize: longest side for matching, pixels.
    """
    encoded: dict[str, tuple] = {}
    found = []
    for pair in track(pairs, "Matching", "pair"):
        for name in pair:
            if name not in encoded:
                photo = load_image(images / name, resize_max=resize, divisor=32)
                encoded[name] = matcher.encode(photo), photo.tensor[0].numel() // CELL**2
        (first, cells0), (second, cells1) = (encoded[name] for name in pair)
        confident = matcher.match(first, second).scores >= matcher.info.confident
        found.append(confident.sum() / min(cells0, cells1))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("--pairs", type=Path, help="list of pairs; by default all")
    parser.add_argument("--limit", type=int, help="use only so many pairs, evenly spaced")
    parser.add_argument("--resize", type=int, default=640, help="longest side, px")
    parser.add_argument("--weights", nargs="+", default=["edm_s"], help="names or paths")
    args = parser.parse_args()

    pairs = read_pairs(args.pairs) if args.pairs else exhaustive(find_images(args.images))
    if args.limit is not None and args.limit < len(pairs):
        chosen = np.linspace(0, len(pairs) - 1, args.limit).round().astype(int)
        pairs = [pairs[i] for i in chosen]
    print("| weights | pairs | need a second look | matches, of the cells |\n|---|---|---|---|")
    for weights in args.weights:
        matcher = load_matcher(
            refine="none", weights=weights, preprocessing=Preprocessing(resize_max=args.resize)
        )
        share = densities(matcher, args.images, pairs, args.resize)
        few = int((share < SecondLookConfig().min_confident_share).sum())
        print(
            f"| {weights} | {len(pairs):,} | {few:,} ({few / len(pairs):.0%}) | "
            f"{np.median(share):.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

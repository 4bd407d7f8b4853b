"""Count the second looks at the pairs of a collection, and what they cost.

    python benchmarks/second_looks.py IMAGES [--pairs LIST] [--limit N] [--weights A B …]

Prints a row of a Markdown table for each of the weights: the number of pairs, of those with too few
matches (`SecondLookConfig.min_confident_share`), of those that asked for thumbnails, and how often
two of these were matched; of the pairs that were matched again with a photo warped, and of those in
which that found more; then the CPU time of the first look and of the second, a pair, and the
median number of matches as a share of the smaller photo's cells of 8 px. Photos are encoded once,
which is in neither of the times; their thumbnails are in that of the second look.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from reconstruct_rows import heading

from edm_hloc.base.grid import CELL
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import track
from edm_hloc.images.find import find_images
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Features, Matcher, Preprocessing
from edm_hloc.matchers.registry import make_matcher
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.rules import Pair, exhaustive
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig


@dataclass(frozen=True)
class Looks:
    """How a pair was looked at.

    Attributes:
        share: confident matches of the first look, as a share of the smaller photo's cells.
        thumbnails: number of pairs of thumbnails that were matched.
        again: matched once more, with a photo warped.
        more: that found more.
        first: CPU time of the first look, in seconds.
        second: of the second look.
    """

    share: float
    thumbnails: int
    again: bool
    more: bool
    first: float
    second: float


class Counting(Matcher):
    """A matcher that remembers what it was asked for.

    Args:
        network: does the work.

    Attributes:
        found: matches of photos, whole or warped, one element for each pair asked for.
        thumbnails: number of pairs of thumbnails.
        seconds: CPU time of the first of `found`.
    """

    def __init__(self, network: Matcher) -> None:
        self.network = network
        self.info = network.info
        self.start()

    def start(self) -> None:
        """Forgets what was asked for so far."""
        self.found: list[Matches] = []
        self.thumbnails = 0
        self.seconds = 0.0

    @property
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        return self.network.provenance

    def encode(self, image: NetworkImage) -> Features:
        return self.network.encode(image)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        start = time.process_time()
        found = self.network.match_pixels(pairs)
        if not self.found:
            self.seconds = time.process_time() - start
        self.found += found
        return found

    def match_cells(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        self.thumbnails += len(pairs)
        return self.network.match_cells(pairs)


def looks_at(network: Matcher, images: Path, pairs: Sequence[Pair], resize: int) -> list[Looks]:
    """How each pair is looked at.

    Args:
        network: without a second look, and without refinement.
        images: folder of the photos.
        pairs: of their names.
        resize: longest side for matching, pixels.
    """
    counting = Counting(network)
    matcher = RefinedMatcher(counting, second_look=SecondLookConfig())
    encoded: dict[str, tuple[Features, int]] = {}
    looks: list[Looks] = []
    for pair in track(pairs, "Matching", "pair"):
        for name in pair:
            if name not in encoded:
                photo = load_image(images / name, resize_max=resize, divisor=32)
                encoded[name] = matcher.encode(photo), photo.tensor[0].numel() // CELL**2
        (first, cells0), (second, cells1) = (encoded[name] for name in pair)
        if not looks:  # what is done once, such as compiling, is not counted
            counting.match_pixels([(first.data.views.whole.features,) * 2])
        counting.start()
        start = time.process_time()
        (found,) = matcher.match_pixels([(first, second)])
        both = time.process_time() - start
        confident, in_all = (
            int((m.scores >= network.info.confident).sum()) for m in (counting.found[0], found)
        )
        looks.append(
            Looks(
                share=confident / min(cells0, cells1),
                thumbnails=counting.thumbnails,
                again=len(counting.found) > 1,
                more=in_all > confident,
                first=counting.seconds,
                second=both - counting.seconds,
            )
        )
    return looks


def row(looks: Sequence[Looks]) -> str:
    """The counts and times as cells of a table."""
    fewest = SecondLookConfig().min_confident_share
    counts = (
        [look.share < fewest for look in looks],
        [look.thumbnails > 0 for look in looks],
        [look.thumbnails for look in looks],
        [look.again for look in looks],
        [look.more for look in looks],
    )
    first, second = (
        1e3 * float(np.mean([getattr(look, name) for look in looks]))
        for name in ("first", "second")
    )
    share = float(np.median([look.share for look in looks]))
    cells = [f"{len(looks):,}", *(f"{sum(c):,}" for c in counts)]
    return " | ".join([*cells, f"{first:.0f}", f"{second:.0f}", f"{share:.0%}"])


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
    columns = (
        "weights", "pairs", "few matches", "thumbnails asked", "these matched", "matched again",
        "found more", "first look, ms", "second look, ms", "matches, of the cells",
    )  # fmt: skip
    print(heading(columns))
    for weights in args.weights:
        network = make_matcher(
            "edm",
            weights=weights,
            preprocessing=Preprocessing(resize_max=args.resize),
            candidates=True,  # as for refinement, which most pairs are matched for
        )
        looks = looks_at(network, args.images, pairs, args.resize)
        print(f"| {weights} | {row(looks)} |", flush=True)


if __name__ == "__main__":
    main()

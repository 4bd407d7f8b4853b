"""Compares the forms of the coarse search on a CPU: milliseconds a pair, and their results.

    python benchmarks/coarse_forms.py IMAGES [--weights NAME] [--photos N] [--cpu-time]

Each photo of a folder is matched with the next one, at 640 and 1,024 px, at the thresholds 0.05 and
0.2, on one thread: by PyTorch alone in fp32 (`coarse.confident_columns`), and by the compiled
search (`coarse_compiled.compiled_columns`) with the products of PyTorch, of vector registers (AVX2)
and of tile registers (AMX), where the CPU has them, which have to give the same bits. Of each the
fastest of four calls counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from refined_pairs import instructions
from torch import Tensor

from edm_hloc.images.load import load_image
from edm_hloc.matchers.base import Preprocessing
from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig
from edm_hloc.models.coarse import confident_columns
from edm_hloc.models.coarse_compiled import available_products, compiled_columns

THRESHOLDS = 0.05, 0.2


def milliseconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    best = float("inf")
    for _ in range(4):
        start = clock()
        call()
        best = min(best, clock() - start)
    return 1e3 * best


def coarse_maps(matcher: EDMMatcher, photos: list[Path], side: int) -> list[tuple[Tensor, Tensor]]:
    """Of each photo and the next one, flattened."""
    images = [load_image(path, resize_max=side, divisor=32) for path in photos]
    features = [matcher.model.encode(image.tensor[None]) for image in images]
    pairs = []
    for a, b in itertools.pairwise(features):
        first, second = matcher.model.interact(a, b)
        pairs.append((first.flatten(2).mT, second.flatten(2).mT))
    return pairs


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights", default="edm_s")
    parser.add_argument("--photos", type=int, default=5, help="how many of the folder's")
    parser.add_argument("--cpu-time", action="store_true", help="for a busy computer")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if args.cpu_time else time.perf_counter
    matcher = EDMMatcher(EDMMatcherConfig(args.weights, Preprocessing(resize_max=640)))
    temperature = matcher.model.config.temperature
    photos = sorted(p for p in args.images.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    forms = available_products()[::-1]
    print(f"The CPU has {instructions()}; compiled products: {', '.join(forms[1:]) or 'none'}")
    for side in (640, 1024):
        matches = one_only = other_column = 0
        away = []
        pairs = coarse_maps(matcher, photos[: args.photos], side)
        for first, second in pairs:
            for threshold in THRESHOLDS:
                call = first, second, temperature, threshold
                value, column = confident_columns(*call)
                plain, *others = (compiled_columns(*call, products=form) for form in forms)
                for other in others:
                    assert torch.equal(plain[0], other[0])
                    assert torch.equal(plain[1], other[1])
                both = (value > threshold) & (plain[0] > threshold)
                matches += int((value > threshold).sum())
                one_only += int(((value > threshold) != (plain[0] > threshold)).sum())
                other_column += int((column != plain[1])[both].sum())
                away.append((value - plain[0])[both].abs())
        call = *pairs[0], temperature, THRESHOLDS[-1]
        times = [milliseconds(partial(confident_columns, *call), clock)]
        times += [
            milliseconds(partial(compiled_columns, *call, products=form), clock) for form in forms
        ]
        told = ", ".join(
            f"{form} {ms:.1f} ms" for form, ms in zip(["PyTorch alone", *forms], times, strict=True)
        )
        difference = torch.cat(away)
        print(
            f"{side} px: {told}. Of {matches:,} matches {one_only} are in one result only and "
            f"{other_column} have another column; probabilities differ by "
            f"{difference.median():.1g} (median) and {difference.max():.2g} (largest)."
        )


if __name__ == "__main__":
    main()

"""Match photos with the next ones of their folder, these rotated by any angle.

    python benchmarks/rotated_pairs.py IMAGES... [--pairs 3] [--resize 1024] [--refine none]

The second photo of each pair is rotated about its centre and cut to the square that all angles
fill. A match is right if those of the pair as it is, within 8 px in the first photo, lead to the
same place within 10 px. Prints a row of a Markdown table for each angle: the mean number of right
matches as a share of those at 0°, and in how many pairs there is less than a fifth. Pairs with
fewer than 200 right matches at 0° are left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import track
from edm_hloc.images.find import find_images
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Matcher
from edm_hloc.refinement.load import load_matcher

ANGLES = (0, 30, 45, 60, 90, 135, 160, 225)
_FEWEST = 200  # right matches at 0°
_NEAR, _SAME = 8.0, 10.0  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path, nargs="+", help="folders of photos")
    parser.add_argument("--pairs", type=int, default=3, help="of each folder, evenly spaced")
    parser.add_argument("--resize", type=int, default=1024, help="longest side, px")
    parser.add_argument("--refine", choices=("photometric", "none"), default="photometric")
    args = parser.parse_args()
    matcher = load_matcher("edm", args.refine)
    pairs = [pair for folder in args.images for pair in _pairs(folder, args.pairs)]
    found = [_right(matcher, *pair, args.resize) for pair in track(pairs, "Matching", "pair")]
    right = np.array([row for row in found if row[0] >= _FEWEST])
    if not len(right):
        sys.exit(f"None of the {len(found)} pairs has {_FEWEST} right matches at 0°.")
    print(f"{len(right)} pairs\n\n| angle | of those at 0° | lost |\n|---|---|---|")
    for angle, column in zip(ANGLES, (right / right[:, :1]).T, strict=True):
        print(f"| {angle}° | {column.mean():.0%} | {(column < 0.2).sum()} |")


def _pairs(folder: Path, number: int) -> Iterator[tuple[Path, Path]]:
    names = find_images(folder)
    for i in np.linspace(0, len(names) - 2, number).round().astype(int):
        yield folder / names[i], folder / names[i + 1]


def _right(matcher: Matcher, first: Path, second: Path, resize: int) -> list[int]:
    """Number of right matches at each angle."""
    photo, other = (load_image(path, resize_max=resize).tensor for path in (first, second))
    encoded = matcher.encode(_image(photo))
    upright = matcher.match(encoded, matcher.encode(_image(other)))
    if len(upright) < _FEWEST:
        return [0] * len(ANGLES)
    numbers = []
    for angle in ANGLES:
        square, onto = _rotated(other.numpy()[0], angle)
        matches = matcher.match(encoded, matcher.encode(_image(torch.from_numpy(square)[None])))
        numbers.append(_number_right(matches, upright, onto))
    return numbers


def _image(pixels: torch.Tensor) -> NetworkImage:
    height, width = pixels.shape[1:]
    return NetworkImage(pixels, PixelTransform((1.0, 1.0)), (width, height))


def _rotated(pixels: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """The square, with sides of whole cells of 32 px, and the (2, 3) map onto it."""
    height, width = pixels.shape
    side = 32 * int(min(height, width) / math.sqrt(2) / 32)
    onto: np.ndarray = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    onto[:, 2] -= np.array([width - side, height - side]) / 2
    return cv2.warpAffine(pixels, onto, (side, side)), onto


def _number_right(matches: Matches, upright: Matches, onto: np.ndarray) -> int:
    if not len(matches):
        return 0
    away, nearest = cKDTree(upright.keypoints0).query(matches.keypoints0)
    there = upright.keypoints1[nearest] + matches.keypoints0 - upright.keypoints0[nearest]
    expected = there @ onto[:, :2].T + onto[:, 2]
    off = np.linalg.norm(expected - matches.keypoints1, axis=1)
    return int(((away < _NEAR) & (off < _SAME)).sum())


if __name__ == "__main__":
    main()

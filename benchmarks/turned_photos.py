"""Reconstruct a folder of photos that are rotated against each other.

    python benchmarks/turned_photos.py IMAGES OUT [--any-angle] [--pairs PAIRS]

A third of the photos is rotated by 90 and a third by 180 degrees. With --any-angle each is rotated
about its centre by 137.5 degrees more than the one before, and cut to a square that all angles
fill. OUT/images holds the rotated photos, without EXIF data, and OUT/run what `edm-hloc
reconstruct` makes of them with one camera for all photos of the same size.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from PIL import Image

from edm_hloc import cli
from edm_hloc.images.find import find_images

TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180)
ANGLE = 180 * (3 - math.sqrt(5))  # the golden angle: no two of many photos have the same


def turned(photo: Image.Image, number: int) -> Image.Image:
    """A photo rotated by a multiple of a quarter turn."""
    turn = TURNS[number % len(TURNS)]
    return photo if turn is None else photo.transpose(turn)


def rotated(photo: Image.Image, number: int) -> Image.Image:
    """The square in the middle of a photo, rotated by a multiple of the golden angle."""
    side = int(min(photo.size) / math.sqrt(2))
    x, y = photo.width / 2, photo.height / 2
    turn = photo.rotate(ANGLE * number, Image.Resampling.BICUBIC, center=(x, y))
    left, top = round(x - side / 2), round(y - side / 2)
    return turn.crop((left, top, left + side, top + side))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--any-angle", action="store_true", help="and not quarter turns only")
    parser.add_argument("--pairs", default="auto", help="as of edm-hloc reconstruct")
    args = parser.parse_args()
    for number, name in enumerate(find_images(args.images)):
        path = args.out / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(args.images / name) as photo:
            pixels = (rotated if args.any_angle else turned)(photo.convert("RGB"), number)
            pixels.save(path, quality=95)
    command = ["reconstruct", str(args.out / "images"), str(args.out / "run")]
    raise SystemExit(cli.main([*command, "--camera-mode", "single", "--pairs", args.pairs]))


if __name__ == "__main__":
    main()

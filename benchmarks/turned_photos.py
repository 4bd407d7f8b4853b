"""Reconstruct a folder of photos of which a third is rotated by 90 and a third by 180 degrees.

    python benchmarks/turned_photos.py IMAGES OUT

OUT/images holds the rotated photos, without EXIF data, and OUT/run what `edm-hloc reconstruct`
makes of them with one camera for all photos of the same size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from edm_hloc import cli
from edm_hloc.images.find import find_images

TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    for number, name in enumerate(find_images(args.images)):
        path = args.out / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(args.images / name) as photo:
            turn = TURNS[number % len(TURNS)]
            pixels = photo.convert("RGB") if turn is None else photo.convert("RGB").transpose(turn)
            pixels.save(path, quality=95)
    command = ["reconstruct", str(args.out / "images"), str(args.out / "run")]
    raise SystemExit(cli.main([*command, "--camera-mode", "single"]))


if __name__ == "__main__":
    main()

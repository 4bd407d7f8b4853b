"""Thumbnails of photos, upright."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edm_hloc.base.errors import ImageError
from edm_hloc.base.frames import turned_upright, upright_size
from edm_hloc.base.progress import track
from edm_hloc.images.decode import exif_orientation, open_image
from edm_hloc.images.load import load_image

_SIDES = (640, 520, 420, 340, 280, 230, 190, 160)  # px, longest side
# Size of a WebP file per pixel of the square on its longest side, measured on photos of buildings.
_BYTES_PER_PIXEL = 0.11
_QUALITY = 70  # of WebP, 0 to 100


@dataclass(frozen=True)
class Thumbnail:
    """A reduced copy of a photo.

    Attributes:
        webp: content of a WebP file.
        photo_size: (width, height) of the photo as stored, pixels.
        orientation: EXIF's, 1 (stored upright) to 8; the copy is upright.
    """

    webp: bytes
    photo_size: tuple[int, int]
    orientation: int = 1


def side_for(number: int, budget: int) -> int:
    """The longest side in pixels at which `number` thumbnails take about `budget` bytes."""
    for side in _SIDES:
        if number * side * side * _BYTES_PER_PIXEL <= budget:
            return side
    return _SIDES[-1]


def make_thumbnails(
    photos: Mapping[str, Path], side: int
) -> tuple[dict[str, Thumbnail], dict[str, str]]:
    """Makes the thumbnails of many photos in parallel.

    Args:
        photos: files by name.
        side: longest side in pixels.

    Returns:
        Thumbnails by name, and by name the reason why another could not be made.
    """
    made, failed = {}, {}

    def one(item: tuple[str, Path]) -> tuple[str, Thumbnail | str]:
        try:
            return item[0], make_thumbnail(item[1], side)
        except ImageError as error:
            return item[0], str(error)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = pool.map(one, photos.items())
        for name, result in track(results, "Report", "photo", len(photos)):
            if isinstance(result, str):
                failed[name] = result
            else:
                made[name] = result
    return made, failed


def make_thumbnail(path: Path, side: int) -> Thumbnail:
    """A thumbnail, upright, whose longest side has at most `side` pixels.

    Raises:
        ImageError: the photo cannot be read.
    """
    pixels, size, orientation = _read(path, side)
    scale = min(1.0, side / max(size))
    width, height = upright_size(size, orientation)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(np.ascontiguousarray(pixels), target, interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".webp", small[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, _QUALITY])
    if not ok:
        raise ImageError(f"Cannot make a thumbnail of {path}.")
    return Thumbnail(data.tobytes(), size, orientation)


def _read(path: Path, side: int) -> tuple[np.ndarray, tuple[int, int], int]:
    """(H, W, 3) uint8 RGB of the upright photo, at least as large as the thumbnail.

    And the photo's (width, height) as stored, and its EXIF orientation.
    """
    try:
        image = open_image(io.BytesIO(path.read_bytes()), path)
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            size = image.size
            image.draft("RGB", (2 * side, 2 * side))  # decodes at 1/2, 1/4 or 1/8 of the size
            orientation = exif_orientation(image)
            return turned_upright(np.asarray(image.convert("RGB")), orientation), size, orientation
    except Exception as error:  # decoders raise almost anything on damaged files
        raise ImageError(f"Cannot read image {path}: {error}.") from error
    loaded = load_image(path, resize_max=2 * side, divisor=1, grayscale=False)
    pixels = (loaded.tensor.numpy() * 255).round().astype(np.uint8)
    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return pixels, loaded.original_size, loaded.exif_orientation

"""Photos of more than 8 bits → 8 bits: which of their values become black and white.

Many 16-bit files do not fill 16 bits: sensors give 10 to 14, thermal cameras a few hundred values
around the temperature of the room. Such photos would be black, or grey, for a network. Their values
are stretched, all photos of a folder alike, so that a surface keeps its brightness from photo to
photo.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from edm_hloc.base.errors import ImageError
from edm_hloc.base.grid import evenly
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import decode

_SAMPLED_PHOTOS = 12  # of a folder, evenly over its names
_SAMPLED_VALUES = 40_000  # of each of these
_OUTSIDE = 0.1  # percent of the values that become black, and as many white
_FILLED = 4  # values that span less than 1/4 of what the file can hold do not fill it
_SUFFIXES = (".tif", ".tiff", ".png", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpx")

_lock = threading.Lock()


class Levels(NamedTuple):
    """The values that become black and white."""

    black: float
    white: float


class FolderLevels(NamedTuple):
    """How the photos of one type in a folder become 8 bits.

    Attributes:
        folder: of the photos.
        kind: of the values in their files, such as "uint16".
        levels: that are stretched to black and white; None if the values fill their range.
    """

    folder: Path
    kind: str
    levels: Levels | None


def levels_of(pixels: np.ndarray, path: Path) -> FolderLevels | None:
    """How a photo becomes 8 bits, which its folder tells; None if it has 8 already.

    Args:
        pixels: of `decode`.
        path: of the photo.
    """
    if pixels.dtype == np.uint8:
        return None
    folder = path.resolve().parent
    return FolderLevels(folder, pixels.dtype.name, _stretched(folder, pixels.dtype.str))


def levels_in(folder: Path, kind: str) -> FolderLevels:
    """How the photos of one type in a folder become 8 bits.

    Args:
        folder: of the photos, with its absolute path.
        kind: of their values, as in `FolderLevels`.
    """
    return FolderLevels(folder, kind, _stretched(folder, np.dtype(kind).str))


def to_eight_bits(pixels: np.ndarray, of: FolderLevels | None, grayscale: bool) -> np.ndarray:
    """The pixels of a photo in [0, 255]: uint8, or float32 where the file has more bits.

    Args:
        pixels: of `decode`.
        of: `levels_of` the photo.
        grayscale: one channel instead of RGB.

    Returns:
        (H, W) or (H, W, 3).
    """
    if of is None:
        return pixels
    levels = of.levels
    if pixels.ndim == 3 and levels is None:  # as Pillow reads them
        eight = np.right_shift(pixels, 8).astype(np.uint8)
        return cv2.cvtColor(eight, cv2.COLOR_RGB2GRAY) if grayscale else eight
    values = np.nan_to_num(pixels.astype(np.float32), posinf=0.0, neginf=0.0)
    black, white = levels or Levels(0.0, _full_scale(values.max(), pixels.dtype))
    values = np.clip((values - np.float32(black)) * np.float32(255 / (white - black)), 0, 255)
    if grayscale:
        return cv2.cvtColor(values, cv2.COLOR_RGB2GRAY) if values.ndim == 3 else values
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


def _full_scale(brightest: float, kind: np.dtype) -> float:
    """The value of white in photos of 16 or 32 bits that fill their range."""
    if kind == np.uint16:
        return 65535.0
    # 32-bit TIFFs do not say: the smallest usual value that no pixel exceeds
    scales = [255.0, 65535.0, 2.0**31] if kind.kind == "i" else [1.0, 255.0, 65535.0]
    return next((scale for scale in scales if brightest <= scale), float(brightest))


def _stretched(folder: Path, kind: str) -> Levels | None:
    """The levels of the photos of one type in a folder; None if they fill their range.

    Says so once for each folder.
    """
    with _lock:  # photos are loaded in several threads, and one of them looks
        try:
            modified = folder.stat().st_mtime_ns
        except OSError:
            return None
        return _levels_of(folder, kind, modified)


@functools.lru_cache(64)
def _levels_of(folder: Path, kind: str, modified: int) -> Levels | None:
    """See `_stretched`; looks again when the folder was modified."""
    samples = list(_samples(folder, np.dtype(kind)))
    if not samples:
        return None
    values = np.concatenate(samples)
    low, high = np.percentile(values, (_OUTSIDE, 100 - _OUTSIDE))
    scale = _full_scale(values.max(), np.dtype(kind))
    if not 0 < high - low < scale / _FILLED:
        return None
    # round values, so that a photo that is added to the folder changes nothing
    step = 2.0 ** np.floor(np.log2((high - low) / 16))
    levels = Levels(float(np.floor(low / step) * step), float(np.ceil(high / step) * step))
    bits = "16-bit photos" if kind == np.dtype(np.uint16).str else "32-bit photos"
    warn_once(
        f"The {bits} in {folder} use only the values {levels.black:.6g} to {levels.white:.6g} of "
        f"0 to {scale:.6g}: these are stretched to black and white, in all of them alike."
    )
    return levels


def _samples(folder: Path, kind: np.dtype) -> Iterator[np.ndarray]:
    """Values of some photos of this type in a folder."""
    names = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())
    found = 0
    for path in _spread(names):
        try:
            pixels, _ = decode(path, grayscale=True)
        except ImageError:
            continue  # whoever needs the photo says so
        if pixels.dtype == kind:
            flat = pixels.reshape(-1)
            flat = flat[:: max(1, flat.size // _SAMPLED_VALUES)].astype(np.float32)
            yield flat[np.isfinite(flat)]
            found += 1
            if found == _SAMPLED_PHOTOS:
                return


def _spread(paths: list[Path]) -> Iterator[Path]:
    """As many paths as are wanted, evenly over the list; then others, always closer together, as
    some may be of another type."""
    closer = (evenly(paths, times * _SAMPLED_PHOTOS) for times in (1, 2, 4))
    yield from dict.fromkeys(itertools.chain.from_iterable(closer))

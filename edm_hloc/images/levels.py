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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from edm_hloc.base.errors import ImageError
from edm_hloc.base.grid import evenly
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import decode, may_be_deep

_SAMPLED_PHOTOS = 12  # of a folder, evenly over its names
_SAMPLED_VALUES = 40_000  # of each of these
_OUTSIDE = 0.1  # percent of the values that become black, and as many white
_FILLED = 4  # values that span less than 1/4 of what the file can hold do not fill it
_NARROW = 16  # photos that span at most 1/16 of the values of all are nearly of one grey

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
    values = pixels.astype(np.float32)
    missing = levels.black if levels else 0.0
    values = np.nan_to_num(values, copy=False, nan=missing, posinf=missing, neginf=missing)
    black, white = levels or Levels(0.0, _full_scale(values.max(), pixels.dtype))
    with np.errstate(over="ignore"):  # of values that stand for "no data", which are clipped
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
    samples = dict(_samples(folder, np.dtype(kind)))
    if not samples:
        return None
    values = np.concatenate(list(samples.values()))
    kept = _without_no_data(values)
    low, high = _ends(kept)
    scale = _full_scale(kept.max(), np.dtype(kind))
    if not low < high:
        return None
    levels, bits = None, "16-bit" if kind == np.dtype(np.uint16).str else "32-bit"
    if high - low < scale / _FILLED or low < 0 or values.max() > scale:
        # round values, so that a photo that is added to the folder changes nothing
        step = 2.0 ** np.floor(np.log2((high - low) / 16))
        levels = Levels(float(np.floor(low / step) * step), float(np.ceil(high / step) * step))
        warn_once(
            f"Nearly all values of the {bits} photos in {folder} are {levels.black:.6g} to "
            f"{levels.white:.6g}: these are stretched to black and white, in all of them alike."
        )
    _warn_of_narrow(samples, levels or Levels(0.0, scale), f"{bits} photos in {folder}")
    return levels


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The values that the darkest and the brightest few pixels are beyond."""
    low, high = np.percentile(values, (_OUTSIDE, 100 - _OUTSIDE))
    return float(low), float(high)


def _without_no_data(values: np.ndarray) -> np.ndarray:
    """Values without the least and the greatest if these are far from all others: files have such
    numbers, as −9999, 0 or −3.4e38, where nothing was measured."""
    distinct = np.unique(values).astype(np.float64)
    if len(distinct) < 4:
        return values
    least, first, last, greatest = distinct[[0, 1, -2, -1]]
    far = 2 * (last - first)
    kept = values[(values > least) | (first - least <= far)]
    return kept[(kept < greatest) | (greatest - last <= far)]


def _warn_of_narrow(samples: Mapping[Path, np.ndarray], levels: Levels, photos: str) -> None:
    """Warns of photos that become nearly black, or of one grey, beside the others of a folder."""
    narrow = {}
    for path, values in samples.items():
        low, high = _ends(_without_no_data(values))
        if high - low <= (levels.white - levels.black) / _NARROW:
            narrow[path] = f"with nearly all values from {low:.6g} to {high:.6g}"
    if narrow:
        path, told = next(iter(narrow.items()))
        warn_once(
            f"The {photos} share the values {levels.black:.6g} to {levels.white:.6g} from black "
            f"to white, of which {len(narrow)} of {len(samples)} use a sixteenth or less, such as "
            f"{path.name} {told}: hardly anything is seen in them. Photos of another depth in "
            "bits, or in another unit, belong in a folder of their own."
        )


def _samples(folder: Path, kind: np.dtype) -> Iterator[tuple[Path, np.ndarray]]:
    """Some photos of this type in a folder, with some of their values."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    found = 0
    for path in filter(may_be_deep, _spread(paths)):
        try:
            pixels, _ = decode(path, grayscale=True)
        except ImageError:
            continue  # whoever needs the photo says so
        if pixels.dtype == kind:
            flat = pixels.reshape(-1)
            flat = flat[:: max(1, flat.size // _SAMPLED_VALUES)].astype(np.float32)
            flat = flat[np.isfinite(flat)]
            if flat.size:
                yield path, flat
                found += 1
            if found == _SAMPLED_PHOTOS:
                return


def _spread(paths: list[Path]) -> Iterator[Path]:
    """As many paths as are wanted, evenly over the list; then the others, always closer together,
    as some may be of another type."""
    closer = (evenly(paths, times * _SAMPLED_PHOTOS) for times in (1, 2, 4))
    yield from dict.fromkeys(itertools.chain(*closer, paths))

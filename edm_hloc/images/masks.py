"""Leaves out the matches in masked parts of photos: people, cars, clouds, a watermark.

Masks are as COLMAP's: for the photo NAME an image MASKS/NAME.png that is black where nothing
counts. Matching does without them, so that other masks need no other matches.
"""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.matches import Matches
from edm_hloc.images.decode import open_image, photo_size
from edm_hloc.matching.reader import RawMatchReader

_RESOLUTION = 1024  # of the longest side at most, which is also that of matching
_REMEMBERED = 4096  # masks of up to 131 kB each
_REMEDY = "Make this mask again, or take it away."


def find_masks(folder: Path | None, names: Sequence[str], images: Path) -> dict[str, Path]:
    """The masks in a folder of the photos `names`, by name; none without a folder.

    The mask of `a/b.jpg` is `a/b.jpg.png`, or else `a/b.png`.

    Raises:
        EdmHlocError: there is no such folder, none of the photos under `images` has a mask in it,
            or a mask's header cannot be read or tells another shape than its photo's.
    """
    if folder is None:
        return {}
    if not folder.is_dir():
        raise EdmHlocError(f"No such folder of masks: {folder}. Check the path.")
    found = {}
    for name in names:
        for path in (folder / f"{name}.png", (folder / name).with_suffix(".png")):
            if path.is_file():
                found[name] = path
                break
    if not found:
        example = f", such as {folder / names[0]}.png" if names else ""
        raise EdmHlocError(f"{folder} has masks for none of the {len(names)} photos{example}.")
    for name, mask in found.items():
        try:
            size = photo_size(mask)
        except ImageError as error:
            raise EdmHlocError(f"{error} {_REMEDY}") from error
        with contextlib.suppress(ImageError):  # of the photo, which is skipped in its turn
            _size_beneath(mask, size, images / name)
    return found


def _size_beneath(mask: Path, size: tuple[int, int], photo: Path) -> tuple[int, int]:
    """The size of a mask's photo. Raises EdmHlocError if the mask has another shape."""
    width, height = photo_size(photo)
    if abs(np.log(size[0] / width * height / size[1])) > 0.01:
        raise EdmHlocError(
            f"The mask {mask} has {size[0]} × {size[1]} pixels, the photo {photo} "
            f"{width} × {height}: a mask has the shape of its photo as it is stored, before any "
            "rotation that EXIF data ask for."
        )
    return width, height


class _Mask(NamedTuple):
    """Where a photo counts: bits (h, ⌈w / 8⌉) of (h, w) pixels, and pixels of those each of the
    photo's is, (x, y)."""

    bits: np.ndarray
    size: tuple[int, int]
    scale: np.ndarray

    def shows(self, points: np.ndarray) -> np.ndarray:
        """(M,) bool, whether points (M, 2), pixels of the photo, are where it counts."""
        last = np.array(self.size) - 1
        x, y = ((points + 0.5) * self.scale).astype(np.int64).clip(0, last).T
        shown: np.ndarray = (self.bits[y, x >> 3] >> (7 - (x & 7))) & 1 == 1
        return shown


def _read_mask(mask: Path, photo: Path) -> _Mask:
    try:
        grey = np.asarray(open_image(io.BytesIO(mask.read_bytes())).convert("L"))
    except Exception as error:  # decoders meet garbage with almost any exception
        reason = getattr(error, "strerror", None) or error
        raise EdmHlocError(f"Cannot read image {mask}: {reason}. {_REMEDY}") from error
    beneath = _size_beneath(mask, grey.shape[::-1], photo)
    counts = np.where(grey > 0, np.uint8(255), np.uint8(0))
    scale = _RESOLUTION / max(counts.shape)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in counts.shape[::-1])
        counts = cv2.resize(counts, size, interpolation=cv2.INTER_AREA)
    size = counts.shape[1], counts.shape[0]
    # what is black in part is black
    return _Mask(np.packbits(counts == 255, axis=1), size, np.divide(size, beneath))


class MaskedMatchReader(RawMatchReader):
    """Reads raw matches, but for those where a mask of either photo is black.

    Args:
        path: of the raw matches.
        masks: the mask of each photo that has one.
        images: folder of the photos.

    Attributes:
        shown, hidden: whether any match that was read is where photos count, and where not.
    """

    def __init__(self, path: Path, masks: Mapping[str, Path], images: Path) -> None:
        super().__init__(path)
        self.masks, self.images = masks, images
        self.shown = self.hidden = False
        self._remembered: OrderedDict[str, _Mask] = OrderedDict()

    def read(self, name0: str, name1: str) -> Matches:
        """As of the base class. Raises EdmHlocError if a mask is damaged or has another shape."""
        matches = super().read(name0, name1)
        shown = np.ones(len(matches.scores), bool)
        for name, points in ((name0, matches.keypoints0), (name1, matches.keypoints1)):
            if name in self.masks:
                shown &= self._mask(name).shows(points)
        self.shown |= bool(shown.any())
        self.hidden |= not shown.all()
        return matches[shown]

    def _mask(self, name: str) -> _Mask:
        if name not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.popitem(last=False)
            self._remembered[name] = _read_mask(self.masks[name], self.images / name)
        self._remembered.move_to_end(name)
        return self._remembered[name]

"""Masks of photos, in COLMAP's convention: MASKS/NAME.png is black where photo NAME is ignored."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.images.decode import open_image, photo_size

_RESOLUTION = 1024  # px of a mask's longer side at most: photos are matched at no more by default
_REMEDY = "Make this mask again, or take it away."


def find_masks(folder: Path | None, names: Sequence[str], images: Path) -> dict[str, Path]:
    """Finds the masks of photos. The mask of `a/b.jpg` is `a/b.jpg.png`, or else `a/b.png`.

    Args:
        folder: of the masks; None for no masks.
        names: of the photos, relative to `images`.
        images: folder of the photos.

    Returns:
        Paths of masks by photo name; photos without a mask are left out.

    Raises:
        EdmHlocError: there is no such folder, it has a mask for none of the photos, or a mask's
            header cannot be read or has another aspect ratio than its photo.
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
        with contextlib.suppress(ImageError):  # of the photo, which matching reports and skips
            _photo_size_of(mask, size, images / name)
    return found


def _photo_size_of(mask: Path, size: tuple[int, int], photo: Path) -> tuple[int, int]:
    """(width, height) of a mask's photo. Raises EdmHlocError if the aspect ratios differ."""
    width, height = photo_size(photo)
    if abs(np.log(size[0] / width * height / size[1])) > 0.01:
        raise EdmHlocError(
            f"The mask {mask} has {size[0]} × {size[1]} pixels, the photo {photo} "
            f"{width} × {height}: a mask has the shape of its photo as it is stored, before any "
            "rotation that EXIF data ask for."
        )
    return width, height


class Mask(NamedTuple):
    """Which pixels of a photo are not masked.

    Attributes:
        bits: (h, ⌈w / 8⌉) uint8, one bit for each of the (h, w) pixels of the mask, which may be
            smaller than the photo; 1 where the photo is visible.
        size: (w, h) of the mask in pixels.
        scale: (2,) pixels of the mask per pixel of the photo, along x and y.
    """

    bits: np.ndarray
    size: tuple[int, int]
    scale: np.ndarray

    def visible(self, points: np.ndarray) -> np.ndarray:
        """(M,) bool, whether points (M, 2) are outside the masked parts.

        Points are pixels of the photo, with the centre of the top-left pixel at (0, 0).
        """
        last = np.array(self.size) - 1
        x, y = ((points + 0.5) * self.scale).astype(np.int64).clip(0, last).T
        visible: np.ndarray = (self.bits[y, x >> 3] >> (7 - (x & 7))) & 1 == 1
        return visible


def read_mask(mask: Path, photo: Path) -> Mask:
    """Reads the mask of a photo, reduced to at most 1024 px.

    Raises:
        EdmHlocError: the mask is damaged or has another aspect ratio than its photo.
        ImageError: the photo's size cannot be read.
    """
    try:
        grey = np.asarray(open_image(io.BytesIO(mask.read_bytes())).convert("L"))
    except Exception as error:  # decoders raise almost any exception on a damaged file
        reason = getattr(error, "strerror", None) or error
        raise EdmHlocError(f"Cannot read image {mask}: {reason}. {_REMEDY}") from error
    photo_width_height = _photo_size_of(mask, grey.shape[::-1], photo)
    white = np.where(grey > 0, np.uint8(255), np.uint8(0))
    scale = _RESOLUTION / max(white.shape)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in white.shape[::-1])
        white = cv2.resize(white, size, interpolation=cv2.INTER_AREA)
    size = white.shape[1], white.shape[0]
    # a reduced pixel is visible only if all the pixels it covers are
    return Mask(np.packbits(white == 255, axis=1), size, np.divide(size, photo_width_height))

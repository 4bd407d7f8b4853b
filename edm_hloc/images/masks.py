"""Masks of photos, as COLMAP's: MASKS/NAME.png is black (or transparent) where NAME is ignored."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.images.decode import loaded_as_stored, open_header, open_image, photo_size

_RESOLUTION = 1024  # px of a mask's longer side at most: photos are matched at no more by default
_MAX_PIXELS = 200_000_000  # a mask need not have the size of its photo
_LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
_SUFFIXES = (".png", *_LOSSY_SUFFIXES, ".tif", ".tiff", ".bmp", ".pgm", ".pbm")
_REMEDY = "Make this mask again, or take it away."


def find_masks(masks: Path | None, names: Sequence[str], images: Path) -> dict[str, Path]:
    """Finds the masks of photos.

    The mask of `a/b.jpg` is `a/b.jpg.png`, as for COLMAP, or else `a/b.png`, `a/b_mask.png` or
    `a/b.jpg_mask.png`, or one of these with the ending of another kind of image, in upper or lower
    case. A photo is not its own mask unless it has an alpha channel.

    Args:
        masks: their folder, or one file that is the mask of all photos; None for no masks.
        names: of the photos, relative to `images`.
        images: folder of the photos.

    Returns:
        Paths of masks by photo name; photos without a mask are left out.

    Raises:
        EdmHlocError: there is no such folder, it has a mask for none of the photos, or a mask's
            header cannot be read or has another aspect ratio than its photo.
    """
    if masks is None:
        return {}
    if masks.is_file():
        found = dict.fromkeys(names, masks)
    elif masks.is_dir():
        found = _masks_in(masks, names, images)
    else:
        raise EdmHlocError(f"No such folder of masks: {masks}. Check the path.")
    sizes: dict[Path, tuple[int, int]] = {}
    for mask in dict.fromkeys(found.values()):
        try:
            size = sizes[mask] = photo_size(mask)
        except ImageError as error:
            raise EdmHlocError(f"{error} {_REMEDY}") from error
        if size[0] * size[1] > _MAX_PIXELS:
            raise EdmHlocError(
                f"The mask {mask} has {size[0]} × {size[1]} pixels: shrink it. A mask need "
                "not have the size of its photo."
            )
    for name, mask in found.items():
        with contextlib.suppress(ImageError):  # of the photo, which matching reports and skips
            photo = images / name
            _check_shape(mask, sizes[mask], photo, photo_size(photo))
    return found


def _masks_in(folder: Path, names: Sequence[str], images: Path) -> dict[str, Path]:
    """The masks in a folder by the photos' names. Raises EdmHlocError if there are none."""
    listed: dict[Path, dict[str, Path]] = {}
    found = {}
    for name in names:
        directory = (folder / name).parent
        if directory not in listed:
            listed[directory] = _files_by_name(directory)
        for candidate in _mask_names(Path(name)):
            mask = listed[directory].get(candidate)
            if mask is not None and _is_mask(mask, images / name):
                found[name] = mask
                break
    if not found:
        example = f", such as {folder / names[0]}.png" if names else ""
        one = " One mask for all photos is given as a file instead of the folder."
        files = sum(path.is_file() for path in folder.glob("[!.]*"))
        raise EdmHlocError(
            f"{folder} has masks for none of the {len(names)} photos{example}."
            f"{one if files == 1 else ''}"
        )
    return found


def _files_by_name(directory: Path) -> dict[str, Path]:
    """The files of a folder by their names in lower case; empty if it cannot be read."""
    try:
        return {path.name.lower(): path for path in sorted(directory.iterdir()) if path.is_file()}
    except OSError:
        return {}


def _mask_names(photo: Path) -> Iterator[str]:
    """Names, in lower case, that the mask of a photo may have, the usual ones first."""
    whole, stem = photo.name.lower(), photo.stem.lower()
    for suffix in _SUFFIXES:
        for start in (whole, stem, f"{stem}_mask", f"{whole}_mask", f"{stem}.mask", f"{stem}-mask"):
            yield f"{start}{suffix}"


def _is_mask(mask: Path, photo: Path) -> bool:
    """Whether a file may be the mask of a photo: it is another one, or has an alpha channel."""
    try:
        if not mask.samefile(photo):
            return True
        with open_header(mask) as image:
            return "A" in image.getbands()
    except (OSError, ImageError):
        return True  # whatever is wrong with it is said when it is read


def _check_shape(
    mask: Path, size: tuple[int, int], photo: Path, photo_size: tuple[int, int]
) -> None:
    """Raises EdmHlocError if the aspect ratios of a mask and its photo differ."""
    width, height = photo_size
    if abs(np.log(size[0] / width * height / size[1])) > 0.01:
        raise EdmHlocError(
            f"The mask {mask} has {size[0]} × {size[1]} pixels, the photo {photo} "
            f"{width} × {height}: a mask has the shape of its photo as it is stored, before any "
            "rotation that EXIF data ask for."
        )


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


def mask_pixels(mask: Path) -> np.ndarray:
    """(h, w) uint8 of a mask at its own size: 255 where the photo is visible, else 0.

    Raises:
        EdmHlocError: the mask is damaged.
    """
    try:
        grey = _grey_of(loaded_as_stored(open_image(io.BytesIO(mask.read_bytes()), mask)))
    except Exception as error:  # decoders raise almost any exception on a damaged file
        reason = getattr(error, "strerror", None) or error
        raise EdmHlocError(f"Cannot read image {mask}: {reason}. {_REMEDY}") from error
    # lossy kinds have dark grey beside black
    black = 127 if mask.suffix.lower() in _LOSSY_SUFFIXES else 0
    return np.where(grey > black, np.uint8(255), np.uint8(0))


def read_mask(mask: Path, photo: Path, size: tuple[int, int] | None = None) -> Mask:
    """Reads the mask of a photo, reduced to at most 1024 px.

    Args:
        mask: its file.
        photo: the photo.
        size: (width, height) of the photo in whose pixels points are; None: as it is stored.

    Raises:
        EdmHlocError: the mask is damaged or has another aspect ratio than its photo.
        ImageError: the photo's size cannot be read.
    """
    white = mask_pixels(mask)
    of_photo = size or photo_size(photo)
    _check_shape(mask, white.shape[::-1], photo, of_photo)
    scale = _RESOLUTION / max(white.shape)
    if scale < 1:
        reduced = tuple(max(1, round(side * scale)) for side in white.shape[::-1])
        white = cv2.resize(white, reduced, interpolation=cv2.INTER_AREA)
    own = white.shape[1], white.shape[0]
    # a reduced pixel is visible only if all the pixels it covers are
    return Mask(np.packbits(white == 255, axis=1), own, np.divide(own, of_photo))


def _grey_of(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a mask: black where it is transparent, or if it is not, where it is black."""
    if image.mode.startswith(("I", "F")):  # Pillow would clip 16 bits
        return np.where(np.asarray(image) > 0, np.uint8(255), np.uint8(0))
    if "A" in image.getbands() or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if alpha.min() < alpha.max():
            return np.where(alpha > 127, np.uint8(255), np.uint8(0))
    return np.asarray(image.convert("L"))

"""Decoding of photos in every supported format: their pixels, or only their headers."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.errors import ImageError

HEIC_REMEDY = "pip install 'edm_hloc[heic]'"
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM")  # Pillow's names
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_MAX_PIXELS = 500_000_000  # more than any camera gives in one exposure; guards the memory


def decode(path: Path, grayscale: bool) -> tuple[np.ndarray, int]:
    """Decodes a photo without applying its EXIF orientation.

    Args:
        path: of the photo.
        grayscale: one channel (of a JPEG the stored luma) instead of RGB.

    Returns:
        The pixels as stored, (H, W) or (H, W, 3), uint8, or float32 in [0, 255] where the file has
        more than 8 bits; and the EXIF orientation, 1 (upright) to 8.

    Raises:
        ImageError: the file is missing, empty, damaged, too large, or not a photo.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"Cannot read image {path}: {error.strerror or error}.") from error
    if not data:
        raise ImageError(f"Cannot read image {path}: the file is empty.")
    try:
        with open_image(io.BytesIO(data)) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise ValueError(f"{image.width} × {image.height} pixels are too many: shrink it")
            if grayscale:
                image.draft("L", image.size)  # the stored luma of a JPEG, which OpenCV uses too
            orientation = _orientation(image)
            image.load()
            # Pillow applies the orientation of a TIFF while loading it, and drops the tag
            turned = orientation != 1 and _orientation(image) == 1
            upright = image.transpose(_TURN_BACK[orientation]) if turned else image
            return _pixels(upright, grayscale), orientation
    # Decoders raise almost any exception on a damaged file; no photo may end a run.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"Cannot read image {path}: {reason}.") from error


# What undoes an EXIF orientation
_TURN_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def open_image(file: IO[bytes]) -> ImageFile.ImageFile:
    """Opens a photo for reading, as `PIL.Image.open` but without its limit on the size.

    That limit is a global setting, below the size of photos that phones take.

    Raises:
        ValueError: not one of the supported formats.
    """
    Image.init()
    start = file.read(16)
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        try:
            if accept is None or accept(start) is True:
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        reader = heic_reader()
        if reader is None:
            raise ValueError(f"HEIC, which needs pillow-heif: {HEIC_REMEDY}, or convert it")
        file.seek(0)
        return reader(file)
    raise ValueError("not a JPEG, PNG, TIFF, WebP, BMP, PPM or HEIC image, or damaged")


@functools.cache
def heic_reader() -> Callable[[IO[bytes]], ImageFile.ImageFile] | None:
    """What opens HEIC files; None if pillow-heif is not installed."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


@contextlib.contextmanager
def open_header(path: Path) -> Iterator[Image.Image]:
    """Opens a photo to read its header, not its pixels.

    Raises:
        ImageError: it cannot be opened.
    """
    with contextlib.ExitStack() as opened:
        try:
            image = open_image(opened.enter_context(path.open("rb")))
        except Exception as error:  # decoders raise almost any exception on a damaged file
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"Cannot read image {path}: {reason}.") from error
        yield image


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened photo's pixels as stored, before any EXIF rotation."""
    if image.format != "TIFF":
        return image.size
    exif = image.getexif()  # Pillow gives the size of a TIFF after its EXIF rotation
    return exif[ExifTag.ImageWidth], exif[ExifTag.ImageLength]


def photo_size(path: Path) -> tuple[int, int]:
    """`stored_size` of a file, of which only the header is read.

    Raises:
        ImageError: it cannot be opened.
    """
    with open_header(path) as image:
        try:
            return stored_size(image)
        except Exception:  # damaged EXIF data is no reason to do without the photo
            return image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none."""
    try:
        value = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # damaged EXIF data is no reason to do without the photo
        return 1
    return value if value in _TURN_BACK else 1


def _pixels(image: Image.Image, grayscale: bool) -> np.ndarray:
    """The pixels of a loaded photo, as `decode` returns them."""
    if image.mode.startswith(("I", "F")):  # one channel of 16 or 32 bits: Pillow would clip it
        grey = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
        grey = np.clip(grey * np.float32(255 / _full_scale(image, grey)), 0, 255)
        return grey if grayscale else np.repeat(grey[..., None], 3, axis=2)
    image.info.pop("transparency", None)  # else Pillow warns that it is lost
    mode = "L" if grayscale else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _full_scale(image: Image.Image, grey: np.ndarray) -> float:
    """The value of white in a photo of 16 or 32 bits a pixel."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 65535.0
    # 32-bit TIFFs do not say: the smallest usual value that no pixel exceeds
    brightest = float(grey.max())
    scales = [255.0, 65535.0, 2.0**31] if image.mode == "I" else [1.0, 255.0, 65535.0]
    return next((scale for scale in scales if brightest <= scale), brightest)

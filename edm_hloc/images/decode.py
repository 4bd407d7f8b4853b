"""Decoding of photos in every supported format: their pixels, or only their headers."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, features
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.errors import ImageError
from edm_hloc.base.files import require_file
from edm_hloc.base.frames import mirrors, turned_upright

HEIC_REMEDY = "pip install 'edm_hloc[heic]'"
# Pillow's names; TGA files have no signature, and are opened only under their name
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF")
_TGA_SUFFIXES = (".tga", ".icb", ".vda", ".vst")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_MAX_PIXELS = 500_000_000  # more than any camera gives in one exposure; guards the memory
_LARGE = 100_000_000  # pixels of a photo that is decoded while no other large one is
_LARGE_PIXELS_PER_BYTE = 60  # photos have at most about 20, flat pictures 80 to 1,000
_one_large_photo = threading.Lock()


def decode(path: Path, grayscale: bool) -> tuple[np.ndarray, int]:
    """Decodes a photo without applying its EXIF orientation.

    Args:
        path: of the photo.
        grayscale: one channel (of a JPEG the stored luma) instead of RGB.

    Returns:
        The pixels as stored, (H, W) or (H, W, 3): uint8; or where the file has more bits, its own
        values in uint16, int32 or float32 (see `levels.to_eight_bits`), of which grey photos have
        (H, W) whatever `grayscale` is. And the EXIF orientation, 1 (upright) to 8.

    Raises:
        ImageError: the file is missing, empty, damaged, too large, or not a photo.
    """
    try:
        require_file(path)
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"Cannot read image {path}: {error.strerror or error}.") from error
    try:
        with open_image(io.BytesIO(data), path) as image, _memory_for(image, len(data)):
            deep = _sixteen_bit_colours(image, data)
            if deep is not None:
                return deep, exif_orientation(image)
            if grayscale:
                image.draft("L", image.size)  # the stored luma of a JPEG, which OpenCV uses too
            orientation = exif_orientation(image)
            return _pixels(loaded_as_stored(image), grayscale), orientation
    # Decoders raise almost any exception on a damaged file; no photo may end a run.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"Cannot read image {path}: {reason}.") from error


# In what Pillow says of how the pixels are stored; of PPM also for fewer than 8 bits
_SIGNS_OF_DEEP_COLOURS = {"PNG": ";16", "TIFF": ";16", "PPM": "'ppm"}
# Tags of TIFF, and what their kinds of numbers are called
_BITS, _COMPRESSION, _SAMPLES, _SAMPLE_FORMAT = 258, 259, 277, 339
_NUMBERS = {1: "integers", 2: "signed integers", 3: "floating-point numbers", 6: "complex numbers"}
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


@contextlib.contextmanager
def _memory_for(image: Image.Image, num_bytes: int) -> Iterator[None]:
    """Large photos are decoded one at a time, which bounds the memory whatever the threads.

    Raises:
        ValueError: more pixels than any photo has, or many in a file too small to hold a photo.
    """
    width, height = image.size
    if width * height > _MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels are too many: shrink it")
    if width * height <= _LARGE:
        yield
        return
    if width * height > _LARGE_PIXELS_PER_BYTE * num_bytes:
        raise ValueError(
            f"{width} × {height} pixels in a file of {num_bytes:,} bytes are no photo: shrink it"
        )
    with _one_large_photo:
        yield


def open_image(file: IO[bytes], path: Path | None = None) -> ImageFile.ImageFile:
    """Opens a photo for reading, as `PIL.Image.open` but without its limit on the size.

    That limit is a global setting, below the size of photos that phones take.

    Args:
        file: the photo.
        path: its name, which matters for TGA alone.

    Raises:
        ValueError: empty, not one of the supported formats, or a kind of it that is not read.
    """
    Image.init()
    start = file.read(16)
    if not start:
        raise ValueError("the file is empty")
    tga = path is not None and path.suffix.lower() in _TGA_SUFFIXES
    for name in (*_FORMATS, "TGA") if tga else _FORMATS:
        if name not in Image.OPEN:  # AVIF, of old versions of Pillow
            continue
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
    if start[:2] in (b"II", b"MM") and (kind := _kind_of_tiff(file)):
        raise ValueError(f"{kind}, which is not read: convert it to one of 8 or 16 bits")
    if start[4:12] == b"ftypavif" and "avif" not in features.get_supported():
        raise ValueError("AVIF, which needs Pillow 11.3 or newer: pip install -U pillow")
    raise ValueError(
        "not a JPEG, PNG, TIFF, WebP, BMP, PPM, JPEG 2000, TGA, AVIF or HEIC image, or damaged"
    )


def _kind_of_tiff(file: IO[bytes]) -> str | None:
    """What a whole TIFF holds that Pillow does not open; None if it is damaged."""
    try:
        file.seek(0)
        header = file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        channels, bits = tags.get(_SAMPLES, 1), tags[_BITS][0]
        numbers = _NUMBERS.get(tags.get(_SAMPLE_FORMAT, (1,))[0], "numbers")
        compression = tags.get(_COMPRESSION, 1)
    except Exception:  # almost any on a damaged file
        return None
    if compression not in TiffImagePlugin.COMPRESSION_INFO:
        return f"a TIFF of the compression {compression}"
    some = "a channel" if channels == 1 else f"{channels} channels"
    return f"a TIFF with {some} of {bits}-bit {numbers}"


def loaded_as_stored(image: Image.Image) -> Image.Image:
    """An opened photo with its pixels, to which no EXIF orientation is applied."""
    orientation = exif_orientation(image)
    image.load()
    # Pillow applies the orientation of a TIFF while loading it, and drops the tag
    turned = orientation != 1 and exif_orientation(image) == 1
    return image.transpose(_TURN_BACK[orientation]) if turned else image


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
            require_file(path)
            image = open_image(opened.enter_context(path.open("rb")), path)
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


def photo_orientation(path: Path) -> int:
    """`exif_orientation` of a file, of which only the header is read; 1 if it cannot be opened."""
    try:
        with open_header(path) as image:
            return exif_orientation(image)
    except ImageError:
        return 1


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened photo, 1 to 8; 1 where there is none."""
    try:
        value = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # damaged EXIF data is no reason to do without the photo
        return 1
    return value if value in _TURN_BACK else 1


def check_not_mirrored(path: Path, orientation: int) -> None:
    """Raises ImageError if an EXIF orientation mirrors a photo.

    Its stored pixels, in which keypoints and cameras are, are a mirror image of what it shows: no
    rotation of the camera explains them, and a pose that seems to is far from the true one.

    Args:
        path: of the photo.
        orientation: EXIF's, 1 to 8.
    """
    if mirrors(orientation):
        raise ImageError(
            f"Cannot use image {path}: its EXIF orientation ({orientation}) mirrors it, so that "
            "its stored pixels are a mirror image of the scene. Store it as it is shown, for "
            "instance with mogrify -auto-orient."
        )


def may_be_deep(path: Path) -> bool:
    """Whether a file may hold a photo of more than 8 bits; only its header is read."""
    try:
        with open_header(path) as image:
            return image.mode.startswith(("I", "F")) or _names_deep_colours(image)
    except ImageError:
        return False


def _names_deep_colours(image: Image.Image) -> bool:
    sign = _SIGNS_OF_DEEP_COLOURS.get(image.format or "")
    return sign is not None and sign in str(getattr(image, "tile", ""))


def _sixteen_bit_colours(image: Image.Image, data: bytes) -> np.ndarray | None:
    """(H, W, 3) uint16 RGB of a PNG, TIFF or PPM that has them, which Pillow would cut to 8 bits.

    As stored, like all of `decode`. None of all other files, and of those that only Pillow reads.
    """
    if image.mode not in ("RGB", "RGBA", "LA", "RGBX") or not _names_deep_colours(image):
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] < 3:
        return None
    if image.format == "TIFF":  # which OpenCV gives upright whatever it is told; not a PNG
        orientation = exif_orientation(image)
        pixels = turned_upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))
    same = pixels.shape[:2] == stored_size(image)[::-1]
    return np.ascontiguousarray(pixels[..., 2::-1]) if same else None


def _pixels(image: Image.Image, grayscale: bool) -> np.ndarray:
    """The pixels of a loaded photo, as `decode` returns them."""
    if image.mode.startswith(("I", "F")):  # one channel of 16 or 32 bits: Pillow would clip it
        values = np.asarray(image)
        sixteen = image.mode.startswith("I;16") or image.format in ("PNG", "PPM", "JPEG2000")
        if sixteen and values.dtype.kind != "f":
            return values.clip(0, 65535).astype(np.uint16)
        return values
    image.info.pop("transparency", None)  # else Pillow warns that it is lost
    mode = "L" if grayscale else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))

"""Finds photos, decodes them and brings them to the network's size, with the map back."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import cv2
import numpy as np
import torch
from PIL import Image, ImageFile
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.errors import EdmHlocError, ImageError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".ppm", ".pgm")
HEIC_SUFFIXES = (".heic", ".heif")  # of phones; read where pillow-heif is installed
_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")
_UNREAD_SUFFIXES = (".avif", ".jxl", ".gif", ".psd", *_RAW_SUFFIXES)
_HEIC_REMEDY = "pip install 'edm_hloc[heic]'"
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")
_MAX_PIXELS = 500_000_000  # more than any camera gives in one exposure


# --------------------------------------------------------------------------- finding


def find_images(root: Path) -> list[str]:
    """The names of all images below a folder: paths relative to it, with "/", sorted.

    Images are known by their suffix (`IMAGE_SUFFIXES`, in any case; `HEIC_SUFFIXES` too, if
    pillow-heif is installed). Hidden files and folders are
    left out. Linked folders are followed unless the link leads back to a folder it lies in. A name
    that a list of pairs or an H5 file cannot hold (tabs, line breaks, not valid Unicode) is left
    out with a warning, and so are photos of kinds that are not read.

    Raises:
        EdmHlocError: there is no such folder, it cannot be read, or it holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise EdmHlocError(f"No such folder of images: {root}. Check the path.")
    names, others = [], Counter[str]()
    readable = IMAGE_SUFFIXES if _heic_reader() is None else IMAGE_SUFFIXES + HEIC_SUFFIXES
    for name in _walk(root, "", frozenset()):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix not in readable:
            if suffix in _UNREAD_SUFFIXES + HEIC_SUFFIXES:
                others[suffix] += 1
            continue
        try:
            name.encode("utf-8")
            holdable = name.splitlines() == [name] and "\t" not in name
        except UnicodeEncodeError:
            holdable = False
        if holdable:
            names.append(name)
        else:
            logger.warning("Image %r in %s is left out: rename it first.", name, root)
    unread = ""
    if others:
        kinds = ", ".join(sorted(others))
        unread = f"{others.total()} files ({kinds}) are of a kind that is not read: "
        unread += "convert them to JPEG."
        if not others.keys().isdisjoint(HEIC_SUFFIXES):
            unread += f" HEIC: {_HEIC_REMEDY}."
    if not names:
        raise EdmHlocError(
            f"No images in {root}: there must be files ending in {', '.join(IMAGE_SUFFIXES)} in it "
            f"or in its subfolders. {unread}".rstrip()
        )
    if unread:
        _warn_once(f"In {root} {unread}")
    return sorted(names)


def _walk(root: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Files below the folder root/prefix; `above` are the identities of the folders it lies in."""
    folder = root / prefix
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if not prefix:
            raise EdmHlocError(f"Cannot read the folder {folder}: {error.strerror}.") from error
        logger.warning("The folder %s is left out: %s.", folder, error.strerror)
        return
    for entry in visible:
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _walk(root, f"{name}/", above | {identity})
        else:
            yield name


def image_stamps(root: Path, names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(size in bytes, modification time in ns) of each image; one that is missing is left out."""
    stamps = {}
    for name in names:
        try:
            status = (Path(root) / name).stat()
        except OSError:
            continue
        stamps[name] = (status.st_size, status.st_mtime_ns)
    return stamps


# --------------------------------------------------------------------------- pixel frames


@dataclass(frozen=True)
class PixelTransform:
    """The map between the pixels of the network's input and of the original image.

    In both frames the centre of the top-left pixel is (0, 0), so resizing by s maps x to
    (x + 0.5)·s − 0.5.
    """

    scale: tuple[float, float]  # original size / network size, (x, y)

    def to_original(self, keypoints: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) of the network's input → the original image, same float type."""
        return self._map(keypoints, np.array(self.scale))

    def to_network(self, keypoints: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) of the original image → the network's input, same float type."""
        return self._map(keypoints, 1.0 / np.array(self.scale))

    @staticmethod
    def _map(keypoints: np.ndarray, scale: np.ndarray) -> np.ndarray:
        if keypoints.shape[-1:] != (2,):
            raise ValueError(f"keypoints must have shape (N, 2), got {keypoints.shape}")
        mapped = (keypoints + 0.5) * scale - 0.5
        kind = keypoints.dtype if keypoints.dtype.kind == "f" else np.float64
        return mapped.astype(kind, copy=False)


def inside(points: np.ndarray, image: torch.Tensor) -> np.ndarray:
    """Which points (N, 2), as (x, y), lie within the outermost pixel centres of (…, H, W)."""
    height, width = image.shape[-2:]
    beyond: np.ndarray = np.maximum(-points, points - [width - 1, height - 1]).max(axis=1)
    return beyond <= 0


@dataclass(frozen=True)
class NetworkImage:
    """An image as a network takes it."""

    tensor: torch.Tensor  # (C, H, W) float32 in [0, 1], C = 1 grey or 3 RGB
    transform: PixelTransform
    original_size: tuple[int, int]  # (width, height) of the stored pixels
    exif_orientation: int = 1  # 1 upright … 8; ignored, for the caller to report


def network_size(
    width: int, height: int, *, resize_max: int | None = 1024, divisor: int = 32
) -> tuple[int, int]:
    """The (width, height) at which the network sees an image.

    The longest side is brought down to `resize_max` (never up), then each side to the nearest
    multiple of `divisor`, at least one and not above `resize_max`.
    """
    if resize_max is not None and resize_max < divisor:
        raise EdmHlocError(f"Images cannot be resized to {resize_max} px: {divisor} is the least.")
    scale = 1.0 if resize_max is None else min(1.0, resize_max / max(width, height))

    def fit(side: int) -> int:
        cells = max(1, int(side * scale / divisor + 0.5))
        return divisor * (cells if resize_max is None else min(cells, resize_max // divisor))

    return fit(width), fit(height)


# --------------------------------------------------------------------------- decoding


def load_image(
    path: Path, *, resize_max: int | None = 1024, divisor: int = 32, grayscale: bool = True
) -> NetworkImage:
    """Reads an image at the network's size, resampled once from the stored pixels.

    The EXIF orientation is ignored, as hloc and COLMAP do, so that pixels agree with theirs; a
    warning says so at the first photo that carries one. Transparency is ignored. Safe in threads.

    Args:
        path: JPEG, PNG, TIFF, WebP, BMP, PPM or HEIC; of several frames the first. HEIC, which
            says itself how to turn its pixels, comes upright.
        resize_max: longest side in pixels, None for no limit; smaller images are not enlarged.
        divisor: both sides of the result are multiples of it.
        grayscale: (1, H, W), else RGB, (3, H, W).

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or has an unknown pixel format.
    """
    path = Path(path)
    pixels, orientation = _decode(path, grayscale)
    if orientation != 1:
        _warn_once("EXIF orientations are ignored: pixels are used as photos store them.")
    height, width = pixels.shape[:2]
    size = network_size(width, height, resize_max=resize_max, divisor=divisor)
    resized = _resize(pixels, size)
    channels = resized[None] if grayscale else resized.transpose(2, 0, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(channels, np.float32) / np.float32(255))
    transform = PixelTransform((width / size[0], height / size[1]))
    return NetworkImage(tensor, transform, (width, height), orientation)


@functools.cache  # however often a photo is loaded, or a folder listed
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (width, height): first the axes that shrink, averaging, then those that grow, linearly."""
    smaller = (min(pixels.shape[1], size[0]), min(pixels.shape[0], size[1]))
    # both keep the half-pixel rule of PixelTransform
    for step, method in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if step != (pixels.shape[1], pixels.shape[0]):
            pixels = cv2.resize(pixels, step, interpolation=method)
    return pixels


def _decode(path: Path, grayscale: bool) -> tuple[np.ndarray, int]:
    """Pixels as stored, (H, W) or (H, W, 3), uint8 or float32 in [0, 255]; and EXIF orientation."""
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
                image.draft("L", image.size)  # the luma of a JPEG as stored, as OpenCV takes it
            orientation = _orientation(image)
            image.load()
            # Pillow turns TIFFs upright while it loads them, and forgets the orientation
            turned = orientation != 1 and _orientation(image) == 1
            upright = image.transpose(_TURN_BACK[orientation]) if turned else image
            return _pixels(upright, grayscale), orientation
    # Decoders meet garbage with almost any exception; no photo may end a run.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"Cannot read image {path}: {reason}.") from error


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
    """`PIL.Image.open` without its limit on the size, which is global and below today's phones'."""
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
        reader = _heic_reader()
        if reader is None:
            raise ValueError(f"HEIC, which needs pillow-heif: {_HEIC_REMEDY}, or convert it")
        file.seek(0)
        return reader(file)
    raise ValueError("not a JPEG, PNG, TIFF, WebP, BMP, PPM or HEIC image, or damaged")


@functools.cache
def _heic_reader() -> Callable[[IO[bytes]], ImageFile.ImageFile] | None:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        return None
    return HeifImageFile


@contextlib.contextmanager
def open_header(path: Path) -> Iterator[Image.Image]:
    """A photo of which only the header is read. Raises ImageError if it cannot be."""
    with contextlib.ExitStack() as opened:
        try:
            image = open_image(opened.enter_context(path.open("rb")))
        except Exception as error:  # decoders meet garbage with almost any exception
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"Cannot read image {path}: {reason}.") from error
        yield image


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the pixels as they are stored, before any rotation."""
    if image.format != "TIFF":
        return image.size
    exif = image.getexif()  # Pillow gives the size of a TIFF as the orientation turns it
    return exif[ExifTag.ImageWidth], exif[ExifTag.ImageLength]


def photo_size(path: Path) -> tuple[int, int]:
    """`stored_size` of a photo, of which only the header is read. Raises ImageError."""
    with open_header(path) as image:
        try:
            return stored_size(image)
        except Exception:  # damaged EXIF data is no reason to do without the photo
            return image.size


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTag.Orientation, 1)
    except Exception:  # damaged EXIF data is no reason to do without the photo
        return 1
    return value if value in _TURN_BACK else 1


def _pixels(image: Image.Image, grayscale: bool) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # one channel of 16 or 32 bits: Pillow would clip it
        grey = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
        grey = np.clip(grey * np.float32(255 / _full_scale(image, grey)), 0, 255)
        return grey if grayscale else np.repeat(grey[..., None], 3, axis=2)
    image.info.pop("transparency", None)  # else Pillow warns that it is lost
    mode = "L" if grayscale else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _full_scale(image: Image.Image, grey: np.ndarray) -> float:
    """The value that stands for white."""
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        return 65535.0
    # 32-bit TIFFs do not say: the least of the usual ones that holds every pixel
    brightest = float(grey.max())
    scales = [255.0, 65535.0, 2.0**31] if image.mode == "I" else [1.0, 255.0, 65535.0]
    return next((scale for scale in scales if brightest <= scale), brightest)

"""Loading a photo upright at the size of the network's input, with the map between the frames."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import PixelTransform, turned_upright
from edm_hloc.images.decode import check_not_mirrored, decode
from edm_hloc.images.levels import FolderLevels, levels_of, to_eight_bits


@dataclass(frozen=True)
class NetworkImage:
    """A photo, turned upright and resized to the network's input.

    Attributes:
        tensor: (C, H, W) float32 in [0, 1]; C is 1 (grey) or 3 (RGB).
        transform: between the pixels of the photo as stored and of `tensor`.
        original_size: (width, height) of the photo in pixels as stored.
        exif_orientation: 1 (stored upright) to 8; `tensor` is upright.
        levels: of a photo of more than 8 bits, how its folder's values became 8.
        path: of the photo; None where the pixels are not of a file.
    """

    tensor: torch.Tensor
    transform: PixelTransform
    original_size: tuple[int, int]
    exif_orientation: int = 1
    levels: FolderLevels | None = None
    path: Path | None = None


def network_size(
    width: int, height: int, *, resize_max: int | None = 1024, divisor: int = 32
) -> tuple[int, int]:
    """The (width, height) of the network's input for a photo.

    The scale that brings the longest side down to `resize_max` is applied to both sides (photos
    are never enlarged); each side is then rounded to a multiple of `divisor`, at least one and not
    above `resize_max`.

    Args:
        width, height: of the photo in pixels.
        resize_max: longest side of the input in pixels; None for no limit.
        divisor: both sides of the input are multiples of it.

    Raises:
        EdmHlocError: `resize_max` is below `divisor`.
    """
    if resize_max is not None and resize_max < divisor:
        raise EdmHlocError(f"Images cannot be resized to {resize_max} px: {divisor} is the least.")
    scale = 1.0 if resize_max is None else min(1.0, resize_max / max(width, height))

    def fit(side: int) -> int:
        cells = max(1, int(side * scale / divisor + 0.5))
        return divisor * (cells if resize_max is None else min(cells, resize_max // divisor))

    return fit(width), fit(height)


def stored_pixels(path: Path) -> np.ndarray:
    """The colours of a photo as it is stored, whatever its EXIF orientation.

    Args:
        path: as for `load_image`.

    Returns:
        (H, W, 3) RGB in [0, 255]: uint8, or float32 where the file has more bits.

    Raises:
        ImageError: the file is missing, empty, damaged, or not a photo.
    """
    pixels = decode(path, grayscale=False)[0]
    return to_eight_bits(pixels, levels_of(pixels, path), grayscale=False)


def colours_at(pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours (M, 3) of a photo (H, W, 3) at points (M, 2) in hloc's frame, bilinearly."""
    last = np.array(pixels.shape[1::-1]) - 1
    points = np.clip(points, 0, last)
    left_top = np.minimum(points.astype(int), np.maximum(last - 1, 0))
    (x, y), (u, v) = left_top.T, (points - left_top).T[..., None]
    right, below = np.minimum(x + 1, last[0]), np.minimum(y + 1, last[1])
    above = (1 - u) * pixels[y, x] + u * pixels[y, right]
    under = (1 - u) * pixels[below, x] + u * pixels[below, right]
    return np.asarray((1 - v) * above + v * under)


def load_image(
    path: Path, *, resize_max: int | None = 1024, divisor: int = 32, grayscale: bool = True
) -> NetworkImage:
    """Reads a photo, turns it upright and resizes it to the network's input (see `network_size`).

    The EXIF orientation is applied to what the network sees alone: `NetworkImage.transform` leads
    back to the pixels as stored, in which points agree with hloc's and COLMAP's. Transparency is
    ignored. Values of more than 8 bits that do not fill
    their range are stretched, in all photos of a folder alike. May be called from several threads.

    Args:
        path: JPEG, PNG, TIFF, WebP, BMP, PPM, JPEG 2000, TGA, AVIF or HEIC; the first frame if
            there are several. HEIC, whose rotation is part of the format, comes upright.
        resize_max: longest side of the result in pixels; None for no limit.
        divisor: both sides of the result are multiples of it.
        grayscale: one channel instead of RGB.

    Raises:
        ImageError: the file is missing, empty, damaged, or not a photo.
        EdmHlocError: `resize_max` is below `divisor`.
    """
    path = Path(path)
    pixels, orientation = decode(path, grayscale)
    levels = levels_of(pixels, path)
    pixels = to_eight_bits(pixels, levels, grayscale)
    stored = pixels.shape[1], pixels.shape[0]
    pixels = np.ascontiguousarray(turned_upright(pixels, orientation))
    height, width = pixels.shape[:2]
    size = network_size(width, height, resize_max=resize_max, divisor=divisor)
    resized = _resize(pixels, size)
    channels = resized[None] if grayscale else resized.transpose(2, 0, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(channels, np.float32) / np.float32(255))
    scale = width / size[0], height / size[1]
    transform = PixelTransform(scale, orientation, stored)
    return NetworkImage(tensor, transform, stored, orientation, levels, path)


def load_photo(
    path: Path, *, resize_max: int | None = 1024, divisor: int = 32, grayscale: bool = True
) -> NetworkImage:
    """`load_image` of a photo whose camera is sought.

    Raises:
        ImageError: as `load_image`, or the EXIF orientation mirrors the photo.
        EdmHlocError: as `load_image`.
    """
    image = load_image(path, resize_max=resize_max, divisor=divisor, grayscale=grayscale)
    check_not_mirrored(path, image.exif_orientation)
    return image


def reduced(image: NetworkImage, resize_max: int, divisor: int) -> NetworkImage:
    """A loaded photo, reduced further; `image` itself where it is small enough.

    Args:
        image: as `load_image` returns it.
        resize_max: longest side of the result in pixels.
        divisor: both sides of the result are multiples of it.

    Raises:
        EdmHlocError: `resize_max` is below `divisor`.
    """
    channels, height, width = image.tensor.shape
    size = network_size(width, height, resize_max=resize_max, divisor=divisor)
    if max(width, height) <= resize_max:
        return image
    pixels = np.ascontiguousarray(image.tensor.numpy().transpose(1, 2, 0))
    small = _resize(pixels, size).reshape(size[1], size[0], channels)
    tensor = torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))
    x, y = image.transform.scale
    scale = x * width / size[0], y * height / size[1]
    return replace(image, tensor=tensor, transform=replace(image.transform, scale=scale))


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (width, height): area averaging along axes that shrink, else linearly."""
    smaller = (min(pixels.shape[1], size[0]), min(pixels.shape[0], size[1]))
    # both interpolations map pixel centres as PixelTransform does
    for step, method in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if step != (pixels.shape[1], pixels.shape[0]):
            pixels = cv2.resize(pixels, step, interpolation=method)
    return pixels

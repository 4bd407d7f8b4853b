"""Loads a photo at the size a network sees it, with the transform between the two pixel frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import decode


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
    pixels, orientation = decode(path, grayscale)
    if orientation != 1:
        warn_once("EXIF orientations are ignored: pixels are used as photos store them.")
    height, width = pixels.shape[:2]
    size = network_size(width, height, resize_max=resize_max, divisor=divisor)
    resized = _resize(pixels, size)
    channels = resized[None] if grayscale else resized.transpose(2, 0, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(channels, np.float32) / np.float32(255))
    transform = PixelTransform((width / size[0], height / size[1]))
    return NetworkImage(tensor, transform, (width, height), orientation)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To (width, height): first the axes that shrink, averaging, then those that grow, linearly."""
    smaller = (min(pixels.shape[1], size[0]), min(pixels.shape[0], size[1]))
    # both keep the half-pixel rule of PixelTransform
    for step, method in ((smaller, cv2.INTER_AREA), (size, cv2.INTER_LINEAR)):
        if step != (pixels.shape[1], pixels.shape[0]):
            pixels = cv2.resize(pixels, step, interpolation=method)
    return pixels

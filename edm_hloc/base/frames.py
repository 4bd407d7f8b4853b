"""Pixel frames: between a photo and its resized copy, and between hloc's frame and COLMAP's.

Everywhere but inside pycolmap's calls, points are in hloc's frame: (x, y), the centre of the
top-left pixel at (0, 0). COLMAP's frame has that centre at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Origin = Literal["centre", "corner"]
"""Where (0, 0) of a network's frame lies: at the centre or at the outer corner of the top-left
pixel. It belongs to the weights: MegaDepth's intrinsics, on which most matchers were trained, have
the principal point of a 1,600 px photo at 800.0, which is the corner frame."""


def origin_shift(origin: Origin) -> float:
    """What to subtract from coordinates of a network's frame to get hloc's frame, in pixels."""
    return 0.5 if origin == "corner" else 0.0


def to_colmap(points: np.ndarray | Sequence[float]) -> np.ndarray:
    """(…, 2) points or a principal point, hloc's frame → COLMAP's; the float type is kept."""
    return np.asarray(points) + 0.5


def from_colmap(points: np.ndarray | Sequence[float]) -> np.ndarray:
    """(…, 2) points or a principal point, COLMAP's frame → hloc's; the float type is kept."""
    return np.asarray(points) - 0.5


def inside(points: Any, width: int, height: int, margin: float = 0.0) -> Any:
    """Which points lie in an image; for NumPy arrays and tensors alike.

    Args:
        points: (…, 2) as (x, y), the centre of the top-left pixel at (0, 0).
        width, height: of the image in pixels.
        margin: tolerance beyond the outermost pixel centres, in pixels; 0.5 includes the whole of
            the outermost pixels, negative values exclude a border.

    Returns:
        (…) bool.
    """
    x, y = points[..., 0], points[..., 1]
    return (x >= -margin) & (x <= width - 1 + margin) & (y >= -margin) & (y <= height - 1 + margin)


def resizing_matrix(size: tuple[int, int], resized: tuple[int, int]) -> np.ndarray:
    """(3, 3) matrix from homogeneous pixels of an image to those of its resized copy.

    Its product with K is the copy's K, both in hloc's frame.

    Args:
        size: (width, height) of the image.
        resized: (width, height) of the copy.
    """
    sx, sy = resized[0] / size[0], resized[1] / size[1]
    return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1.0]])


@dataclass(frozen=True)
class PixelTransform:
    """The map between the pixels of a photo and of its resized copy, the network's input.

    In both frames the centre of the top-left pixel is (0, 0), so resizing by s maps x to
    (x + 0.5)·s − 0.5.

    Attributes:
        scale: size of the photo over size of its copy, (x, y).
    """

    scale: tuple[float, float]

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

"""Pixel frames: between a photo and its upright, resized copy; between hloc's and COLMAP's.

Everywhere but inside pycolmap's calls, points are in hloc's frame: (x, y), the centre of the
top-left pixel at (0, 0). COLMAP's frame has that centre at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

_Number = TypeVar("_Number", int, float)

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


class _Turn(NamedTuple):
    """From a photo turned upright to the photo as stored: axes exchanged, then mirrored.

    Attributes:
        exchanged: whether x of the stored photo runs along y of the upright one.
        mirrored: whether x, and whether y, of the stored photo runs the other way.
    """

    exchanged: bool
    mirrored: tuple[bool, bool]


_TURNS = {
    1: _Turn(False, (False, False)),
    2: _Turn(False, (True, False)),
    3: _Turn(False, (True, True)),
    4: _Turn(False, (False, True)),
    5: _Turn(True, (False, False)),
    6: _Turn(True, (False, True)),
    7: _Turn(True, (True, True)),
    8: _Turn(True, (True, False)),
}
"""By EXIF orientation: 3 is half a turn, 6 and 8 are quarter turns, the others but 1 mirror."""


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of a photo's pixels as its EXIF orientation shows it.

    Args:
        pixels: (H, W, …) as stored.
        orientation: EXIF's, 1 (stored upright) to 8.

    Returns:
        (H, W, …), or (W, H, …) for the orientations 5 to 8.
    """
    exchanged, (mirror_x, mirror_y) = _TURNS[orientation]
    turned = pixels[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return turned.swapaxes(0, 1) if exchanged else turned


def upright_size(size: tuple[_Number, _Number], orientation: int) -> tuple[_Number, _Number]:
    """(width, height) after `turned_upright` of a photo stored as (width, height)."""
    return (size[1], size[0]) if _TURNS[orientation].exchanged else size


def upright_axes(orientation: int) -> np.ndarray:
    """(3, 3) map of directions from the camera of the upright photo to that of the stored one.

    Both cameras look along z, with x to the right and y down in their photo. A rotation, or for
    the orientations that mirror, a reflection.
    """
    exchanged, mirrored = _TURNS[orientation]
    axes = np.diag([-1.0 if mirror else 1.0 for mirror in (*mirrored, False)])
    return axes[:, [1, 0, 2]] if exchanged else axes


def mirrors(orientation: int) -> bool:
    """Whether an EXIF orientation mirrors the photo, whatever else it does."""
    return bool(np.linalg.det(upright_axes(orientation)) < 0)


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
    """The map between the pixels of a photo as stored and of its copy, the network's input.

    The copy was turned upright by the photo's EXIF orientation, then resized. In both frames the
    centre of the top-left pixel is (0, 0), so resizing by s maps x to (x + 0.5)·s − 0.5.

    Attributes:
        scale: size of the upright photo over size of its copy, (x, y).
        orientation: EXIF's, 1 (stored upright) to 8.
        size: (width, height) of the photo as stored; needed where `orientation` is not 1.
    """

    scale: tuple[float, float]
    orientation: int = 1
    size: tuple[int, int] = (0, 0)

    def to_original(self, keypoints: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) of the network's input → the original image, same float type."""
        exchanged, mirrored = _TURNS[self.orientation]
        outer = (_points(keypoints) + 0.5) * np.array(self.scale)
        outer = outer[..., ::-1] if exchanged else outer
        return _like(keypoints, np.where(mirrored, self.size - outer, outer) - 0.5)

    def to_network(self, keypoints: np.ndarray) -> np.ndarray:
        """(N, 2) points (x, y) of the original image → the network's input, same float type."""
        exchanged, mirrored = _TURNS[self.orientation]
        outer = _points(keypoints) + 0.5
        outer = np.where(mirrored, self.size - outer, outer)
        outer = outer[..., ::-1] if exchanged else outer
        return _like(keypoints, outer * (1.0 / np.array(self.scale)) - 0.5)


def _points(keypoints: np.ndarray) -> np.ndarray:
    if keypoints.shape[-1:] != (2,):
        raise ValueError(f"keypoints must have shape (N, 2), got {keypoints.shape}")
    return keypoints


def _like(keypoints: np.ndarray, mapped: np.ndarray) -> np.ndarray:
    """Mapped points in the float type of the given ones."""
    kind = keypoints.dtype if keypoints.dtype.kind == "f" else np.float64
    return mapped.astype(kind, copy=False)

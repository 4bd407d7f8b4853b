"""Square lattices over an image: which square a point is in, and equal squares numbered.

The squares of a lattice of side s have their centres at (k·s − 0.5, l·s − 0.5) for whole k and l,
in pixels with the centre of the top-left pixel at (0, 0), as in hloc.
"""

from __future__ import annotations

import numpy as np

MAX_COORDINATE = 2.0**20
"""Coordinates beyond this many pixels are taken for damaged data."""

MAX_TABLE = 2**23
"""Largest lookup table, in entries; beyond it numbers are sorted instead."""


def checked_points(points: np.ndarray) -> np.ndarray:
    """`points` as they are, after a check.

    Raises:
        ValueError: their shape is not (M, 2), or a coordinate is not finite or too large.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be of shape (M, 2), not {points.shape}")
    # Python's floats, as float16 does not reach the limit
    low, high = float(points.min(initial=0)), float(points.max(initial=0))
    if not (low >= -MAX_COORDINATE and high <= MAX_COORDINATE):  # true for NaN as well
        raise ValueError("coordinates are not all finite pixels")
    return points


def lattice_indices(points: np.ndarray, side: float) -> np.ndarray:
    """(M, 2) float32, the indices (k, l) of the square each point is in.

    A point on the border of two squares is in the one with the even index.

    Args:
        points: (M, 2) float32 pixels.
        side: of the squares, in pixels.
    """
    indices = points + 0.5
    indices /= side
    return np.rint(indices, out=indices)


def snap(points: np.ndarray, side: float, snapped: np.ndarray | None) -> np.ndarray:
    """(M, 2) float32, the centre of the square each point is in, rounded to 0.01 px.

    Args:
        points: (M, 2) float32 pixels.
        side: of the squares, in pixels; 0 leaves all points where they are.
        snapped: (M,) bool, False for points that stay where they are; None moves all.
    """
    if side == 0:
        return points
    centres: np.ndarray = np.round(lattice_indices(points, side) * side - 0.5, 2)
    return centres if snapped is None else np.where(snapped[:, None], centres, points)


def index_keys(indices: np.ndarray) -> np.ndarray:
    """(M, 2) whole numbers → (M,) int64: flat indices into the smallest grid that holds them."""
    x, y = indices[:, 0].astype(np.int64), indices[:, 1].astype(np.int64)
    x -= x.min()
    y -= y.min()
    y *= int(x.max()) + 1
    y += x
    return y


def position_keys(positions: np.ndarray) -> np.ndarray:
    """(M, 2) float32 → (M,) int64 that are equal where both coordinates are."""
    return np.ascontiguousarray(positions + np.float32(0)).view(np.int64)[:, 0]  # -0 becomes 0


def number_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers distinct keys in the order in which they first appear.

    Args:
        keys: (M,) int64, at least one.

    Returns:
        (M,) int64, the number of each key; and (G,) int64, the position where each number first
        appears.
    """
    low, high = int(keys.min()), int(keys.max())
    if high - low < MAX_TABLE:
        keys = keys - low
        positions = np.arange(len(keys), dtype=np.int32)
        table = np.full(high - low + 1, len(keys), np.int32)
        np.minimum.at(table, keys, positions)
        first = np.flatnonzero(table[keys] == positions)
        table[keys[first]] = np.arange(len(first))
        return table[keys].astype(np.int64), first
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[inverse], first[order]

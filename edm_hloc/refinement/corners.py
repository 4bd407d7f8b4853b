"""The strongest corner of each 8 px cell of a photo: the keypoints that refined matches have."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from edm_hloc.base.grid import CELL

_WINDOW = 5  # pixels a side of the neighbourhood over which the structure tensor is summed
_MIN_STRENGTH = 3e-4  # smallest eigenvalue of the structure tensor that is more than noise


class Corners(NamedTuple):
    """The corners of a photo of H × W pixels.

    Attributes:
        points: (H / 8, W / 8, 2) float32 pixels (x, y), one corner per cell. A corner lies in the
            8 px square around its cell's grid point, or half a pixel beyond.
        textured: (H / 8, W / 8) bool, whether the corner is stronger than noise.
    """

    points: np.ndarray
    textured: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.points.nbytes + self.textured.nbytes


class Photo(NamedTuple):
    """A photo as the refinement sees it.

    Attributes:
        grey: (1, H, W) in [0, 1].
        corners: its corners.
    """

    grey: Tensor
    corners: Corners

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.grey.shape[-1], self.grey.shape[-2]


def strongest_corners(grey: Tensor) -> Corners:
    """The point of each cell with the largest minimum eigenvalue of the structure tensor.

    This is the corner measure of Shi and Tomasi ("Good Features to Track", CVPR 1994). The
    position is refined to a fraction of a pixel by a parabola along each axis.

    Args:
        grey: (1, H, W) in [0, 1], on the CPU.
    """
    strength = cv2.cornerMinEigenVal(grey[0].float().numpy(), _WINDOW)
    rows, columns = strength.shape[0] // CELL, strength.shape[1] // CELL
    half = CELL // 2
    padded = np.pad(strength, ((half, 0), (half, 0)), constant_values=-1.0)
    cells = padded[: rows * CELL, : columns * CELL].reshape(rows, CELL, columns, CELL)
    dy, dx = (part.ravel() - half for part in np.mgrid[:CELL, :CELL])
    # Of equal strengths, as in a cell without texture, the one nearest the grid point is taken.
    cells = cells.transpose(0, 2, 1, 3).reshape(rows, columns, -1) - 1e-9 * (dx**2 + dy**2)
    best = cells.argmax(axis=2)
    y = np.arange(rows)[:, None] * CELL + dy[best]
    x = np.arange(columns) * CELL + dx[best]
    around = np.pad(strength, 1, mode="reflect")  # a maximum at the border stays there
    peak = strength[y, x]
    dx = _parabola_vertex(around[y + 1, x], peak, around[y + 1, x + 2])
    dy = _parabola_vertex(around[y, x + 1], peak, around[y + 2, x + 1])
    return Corners(np.stack([x + dx, y + dy], axis=2).astype(np.float32), peak > _MIN_STRENGTH)


def _parabola_vertex(before: np.ndarray, peak: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Position of the maximum of the parabola through values at −1, 0 and 1.

    0 where that is more than half a pixel away, as where the middle value is not the largest.
    """
    curvature = np.maximum(2 * peak - before - after, 1e-12)
    position = (after - before) / (2 * curvature)
    vertex: np.ndarray = np.where(np.abs(position) <= 0.5, position, 0.0)
    return vertex

"""The strongest corner of each 8 px cell of a photo: the keypoints that refined matches have."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from torch import Tensor

from edm_hloc.base.compiled import compiled, inlined
from edm_hloc.base.grid import CELL

WINDOW = 5  # pixels a side of the neighbourhood over which the structure tensor is summed
MIN_STRENGTH = 3e-4  # smallest eigenvalue of the structure tensor that is more than noise


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


@inlined
def _parabola_vertex(before: float, peak: float, after: float) -> float:
    """Position of the maximum of the parabola through values at −1, 0 and 1.

    0 where that is more than half a pixel away, as where the middle value is not the largest.
    """
    curvature = max(2 * peak - before - after, 1e-12)
    position = (after - before) / (2 * curvature)
    return position if abs(position) <= 0.5 else 0.0


@compiled
def _strongest_in_cells(strength: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of the largest values (H, W) float32 in each cell, and these values.

    Of equal values, as in a cell without texture, the one nearest the grid point is taken.

    Returns:
        (H / cell, W / cell, 2) as (x, y), and (H / cell, W / cell), float32.
    """
    height, width = strength.shape
    rows, columns, half = height // cell, width // cell, cell // 2
    points = np.empty((rows, columns, 2), np.float32)
    peaks = np.empty((rows, columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            best, x, y = -np.inf, 0, 0
            for dy in range(-min(half, row * cell), cell - half):
                for dx in range(-min(half, column * cell), cell - half):
                    value = strength[row * cell + dy, column * cell + dx]
                    value = np.float64(value) - 1e-9 * (dx * dx + dy * dy)
                    if value > best:
                        best, x, y = value, column * cell + dx, row * cell + dy
            peak = strength[y, x]
            # Beyond the border values are mirrored: a maximum at the border stays there.
            left, right = strength[y, abs(x - 1)], strength[y, min(x + 1, 2 * width - 3 - x)]
            above, below = strength[abs(y - 1), x], strength[min(y + 1, 2 * height - 3 - y), x]
            points[row, column, 0] = x + _parabola_vertex(left, peak, right)
            points[row, column, 1] = y + _parabola_vertex(above, peak, below)
            peaks[row, column] = peak
    return points, peaks


def strongest_corners(grey: Tensor) -> Corners:
    """The point of each cell with the largest minimum eigenvalue of the structure tensor.

    This is the corner measure of Shi and Tomasi ("Good Features to Track", CVPR 1994). The
    position is refined to a fraction of a pixel by a parabola along each axis.

    Args:
        grey: (1, H, W) in [0, 1], on the CPU.
    """
    strength = cv2.cornerMinEigenVal(grey[0].float().numpy(), WINDOW)
    points, peak = _strongest_in_cells(strength, CELL)
    return Corners(points, peak > MIN_STRENGTH)

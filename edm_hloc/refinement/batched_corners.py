"""The strongest corner of each cell of several photos of one size, on the device: see
`corners.py`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.base.grid import CELL
from edm_hloc.refinement.corners import MIN_STRENGTH, WINDOW


class DeviceCorners(NamedTuple):
    """The corners of a photo of H × W pixels, or with one dimension more of several, on a device.

    Attributes:
        points: (H / 8, W / 8, 2) float32 pixels (x, y), one corner per cell.
        textured: (H / 8, W / 8) bool, whether the corner is stronger than noise.
    """

    points: Tensor
    textured: Tensor

    @property
    def nbytes(self) -> int:
        return self.points.nbytes + self.textured.nbytes

    def of(self, i: int) -> DeviceCorners:
        """Those of one of several photos."""
        return DeviceCorners(self.points[i], self.textured[i])

    def to(self, device: torch.device | str) -> DeviceCorners:
        return DeviceCorners(self.points.to(device), self.textured.to(device))


def strongest_corners(grey: Tensor) -> DeviceCorners:
    """What `corners.strongest_corners` gives, for each of the photos (B, H, W) in [0, 1]."""
    strength = _min_eigenvalue(grey)
    rows, columns = strength.shape[1] // CELL, strength.shape[2] // CELL
    half = CELL // 2
    padded = F.pad(strength, (half, 0, half, 0), value=-1.0)
    cells = padded[:, : rows * CELL, : columns * CELL].unflatten(1, (rows, CELL))
    cells = cells.unflatten(3, (columns, CELL)).transpose(2, 3).flatten(3)  # (B, R, C, 64)
    steps = torch.arange(CELL, device=grey.device) - half
    dy, dx = (part.flatten() for part in torch.meshgrid(steps, steps, indexing="ij"))
    # Of equal strengths, as in a cell without texture, the one nearest the grid point is taken.
    best = (cells - 1e-9 * (dx.square() + dy.square())).argmax(dim=3)
    y = CELL * torch.arange(rows, device=grey.device)[:, None] + dy[best]
    x = CELL * torch.arange(columns, device=grey.device) + dx[best]
    around = F.pad(strength[:, None], (1, 1, 1, 1), mode="reflect")[:, 0]
    width = around.shape[2]
    place = ((y + 1) * width + x + 1).flatten(1)
    values = around.flatten(1)
    peak, left, right, above, below = (
        values.gather(1, place + step).view_as(x) for step in (0, -1, 1, -width, width)
    )
    points = torch.stack(
        [x + _parabola_vertex(left, peak, right), y + _parabola_vertex(above, peak, below)], dim=3
    )
    return DeviceCorners(points, peak > MIN_STRENGTH)


def _min_eigenvalue(grey: Tensor) -> Tensor:
    """Smaller eigenvalue (B, H, W) of the structure tensor, as OpenCV's `cornerMinEigenVal`."""
    image = F.pad(grey[:, None].float(), (1, 1, 1, 1), mode="reflect")
    scale = 1 / (4 * WINDOW)
    across = (image[..., 2:] - image[..., :-2]) * scale
    down = (image[..., 2:, :] - image[..., :-2, :]) * scale
    dx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    dy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    products = torch.cat([dx * dx, dx * dy, dy * dy], dim=1)
    margin = WINDOW // 2
    products = F.pad(products, (margin,) * 4, mode="reflect")
    height, width = grey.shape[1:]
    rows = sum(products[..., k : k + height, :] for k in range(WINDOW))
    assert isinstance(rows, Tensor)
    sums = sum(rows[..., k : k + width] for k in range(WINDOW))
    assert isinstance(sums, Tensor)
    a, b, c = sums.unbind(dim=1)
    a, c = a / 2, c / 2
    return (a + c) - ((a - c).square() + b.square()).sqrt()


def _parabola_vertex(before: Tensor, peak: Tensor, after: Tensor) -> Tensor:
    """Position of the maximum of the parabola through values at −1, 0 and 1; 0 where that is more
    than half a pixel away."""
    curvature = (2 * peak - before - after).clamp(min=1e-12)
    position = (after - before) / (2 * curvature)
    return torch.where(position.abs() <= 0.5, position, 0.0)

"""Ground truth of the coarse and fine stages, from depth, intrinsics and relative pose.

The cell (row r, column c) of the 1/8 grid stands for the pixel (8c, 8r). It is warped into the
other image; the nearest cell there is its partner if that cell's own warp comes back. The fine
stage learns how far, in cells, a warped grid point lies from the pixel of the partner cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edm_hloc.base.grid import CELL

NEAREST_DEPTH = 1e-6  # points closer to the camera plane than this cannot be projected


class Supervision(NamedTuple):
    """Where the grid points of B pairs lie in the other image.

    N0 = h0·w0 and N1 = h1·w1 cells, in row-major order; warped points are (x, y) in pixels of
    the other network input.

    Attributes:
        warped0: (B, N0, 2), grid points of image 0 in image 1; anything where not visible.
        visible0: (B, N0) bool, inside image 1 and not hidden there.
        warped1, visible1: the same for the grid points of image 1.
        partner: (B, N0) long, the true coarse match of each cell of image 0, or -1.
        grid0, grid1: (rows, columns) of cells.
    """

    warped0: Tensor
    visible0: Tensor
    warped1: Tensor
    visible1: Tensor
    partner: Tensor
    grid0: tuple[int, int]
    grid1: tuple[int, int]


def grid_points(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Pixels of the cells of a (rows, columns) grid in row-major order: (N, 2) as (x, y)."""
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) * CELL for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def warp_points(
    points: Tensor,
    depth: Tensor,
    other_depth: Tensor,
    K: Tensor,
    other_K: Tensor,
    T: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor]:
    """Warp pixels of one image into the other through the depth there.

    A point is visible if it has depth, projects inside the other image, and one of the four
    pixels around its projection has its depth, up to a relative error (four, since a single
    pixel next to an edge often belongs to what lies behind the edge).

    Args:
        points: (B, N, 2) pixels (x, y) with integer values.
        depth, other_depth: (B, H, W) and (B, H', W') along the optical axis; 0 where unknown.
        K, other_K: (B, 3, 3), with the top-left pixel's centre at (0, 0).
        T: (B, 4, 4), camera coordinates of this image to those of the other.
        tolerance: largest relative difference of depths.

    Returns:
        warped (B, N, 2) and visible (B, N) bool.
    """
    batch = torch.arange(points.shape[0], device=points.device)[:, None]
    pixel = points.long()
    z = depth[batch, pixel[..., 1], pixel[..., 0]]
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    rays = torch.linalg.solve(K, homogeneous.mT).mT
    moved = (rays * z[..., None]) @ T[:, :3, :3].mT + T[:, None, :3, 3]
    other_z = moved[..., 2]
    in_front = (z > 0) & (other_z > NEAREST_DEPTH)
    projected = moved @ other_K.mT
    warped = projected[..., :2] / torch.where(in_front, other_z, 1.0)[..., None]

    height, width = other_depth.shape[-2:]
    x, y = warped.unbind(-1)
    inside = (x > -0.5) & (x < width - 0.5) & (y > -0.5) & (y < height - 0.5)
    usable = in_front & inside
    corner = torch.where(usable[..., None], warped, 0.0).floor().long()
    agrees = torch.zeros_like(usable)
    for dy in (0, 1):
        for dx in (0, 1):
            row = (corner[..., 1] + dy).clamp(0, height - 1)
            column = (corner[..., 0] + dx).clamp(0, width - 1)
            seen = other_depth[batch, row, column]
            agrees |= (seen > 0) & ((seen - other_z).abs() < tolerance * other_z)
    return warped, usable & agrees


def nearest_cells(warped: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cell of `grid` nearest to each warped point: (B, N) long, -1 for none."""
    rows, columns = grid
    cell = torch.where(visible[..., None], warped / CELL, -1.0).round().long()
    column, row = cell.unbind(-1)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    return torch.where(inside, row * columns + column, -1)


def mutual_partners(nearest0: Tensor, nearest1: Tensor) -> Tensor:
    """Keep the partners of cells of image 0 that choose them too: (B, N0) long, -1 for none."""
    back = nearest1.gather(1, nearest0.clamp(min=0))
    own = torch.arange(nearest0.shape[1], device=nearest0.device)
    return torch.where((nearest0 >= 0) & (back == own), nearest0, -1)


@torch.no_grad()
def supervise(
    depth0: Tensor,
    depth1: Tensor,
    K0: Tensor,
    K1: Tensor,
    T_0to1: Tensor,
    tolerance: float = 0.05,
) -> Supervision:
    """Ground truth of B pairs; see `warp_points` for the arguments."""
    grids = tuple((d.shape[-2] // CELL, d.shape[-1] // CELL) for d in (depth0, depth1))
    points0, points1 = (
        grid_points(g, depth0.device).expand(depth0.shape[0], -1, -1) for g in grids
    )
    T_1to0 = torch.linalg.inv(T_0to1)
    warped0, visible0 = warp_points(points0, depth0, depth1, K0, K1, T_0to1, tolerance)
    warped1, visible1 = warp_points(points1, depth1, depth0, K1, K0, T_1to0, tolerance)
    partner = mutual_partners(
        nearest_cells(warped0, visible0, grids[1]), nearest_cells(warped1, visible1, grids[0])
    )
    return Supervision(warped0, visible0, warped1, visible1, partner, grids[0], grids[1])


def _offsets(
    warped: Tensor, visible: Tensor, source: Tensor, target: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    point = warped.gather(1, source[..., None].expand(-1, -1, 2))
    pixel = grid_points(grid, warped.device)[target]
    offset = (point - pixel) / CELL
    valid = visible.gather(1, source) & (offset.abs() < 0.5).all(dim=-1)
    return torch.where(valid[..., None], offset, 0.0), valid


def fine_targets(
    truth: Supervision, cell0: Tensor, cell1: Tensor, *, bidirectional: bool = True
) -> tuple[Tensor, Tensor]:
    """True offsets for K cell-to-cell matches in each of B pairs, whether true or not.

    Args:
        truth: of `supervise`.
        cell0, cell1: (B, K) long.
        bidirectional: also the offsets in image 0.

    Returns:
        target (B, 2K, 2) in cells as (x, y), within ±0.5, and valid (B, 2K) bool: first the K
        offsets in image 1, then the K in image 0. Without `bidirectional` only the first K.
        Targets that are not valid (hidden, or half a cell off or more) are 0.
    """
    target, valid = _offsets(truth.warped0, truth.visible0, cell0, cell1, truth.grid1)
    if not bidirectional:
        return target, valid
    target1, valid1 = _offsets(truth.warped1, truth.visible1, cell1, cell0, truth.grid0)
    return torch.cat([target, target1], dim=1), torch.cat([valid, valid1], dim=1)


def pad_with_truth(
    truth: Supervision,
    cell0: Tensor,
    cell1: Tensor,
    minimum: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Replace wrong matches by true ones, drawn at random, until each pair has enough.

    Early in training few of the predicted matches teach the fine stage anything.

    Args:
        truth: of `supervise`.
        cell0, cell1: (B, K) long, predicted matches.
        minimum: matches a pair shall have with a valid target in image 1, as far as it has
            that many true matches and slots.
        generator: on the CPU.

    Returns:
        cell0 and cell1 (B, K); matches with a valid target stay as they are.
    """
    _, valid = fine_targets(truth, cell0, cell1, bidirectional=False)
    available = truth.partner >= 0
    missing = (minimum - valid.sum(dim=1)).minimum(available.sum(dim=1))

    order = torch.rand(available.shape, generator=generator).to(cell0.device)
    drawn = torch.where(available, order, -1.0).argsort(dim=1, descending=True)
    rank = (~valid).cumsum(dim=1) - 1  # of each wrong match among the wrong ones
    replaced = ~valid & (rank < missing[:, None])
    true0 = drawn.gather(1, rank.clamp(0, drawn.shape[1] - 1))
    true1 = truth.partner.gather(1, true0)
    return torch.where(replaced, true0, cell0), torch.where(replaced, true1, cell1)

"""Ground truth of the coarse and the fine stage, from depth maps, intrinsics and relative poses.

The coarse cell (row r, column c) stands for the point (8c, 8r) of the network's pixel frame. It is
warped into the other image; the nearest cell there is its true match if that cell's own warp leads
back to it. The target of the fine stage is the offset, in cells, of the warped point from the grid
point of the matched cell.

The network's frame has (0, 0) at the centre of the top-left pixel, as hloc's frame, or at its outer
corner (`base.frames.Origin`). All points of a `Supervision` are in the network's frame; depth maps
and intrinsics are in hloc's frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edm_hloc.base.frames import Origin, inside, origin_shift
from edm_hloc.base.grid import CELL

WRONG_BEYOND = 2 * CELL  # px along an axis from the true position, where a match is surely wrong
NEAREST_DEPTH = 1e-6  # points closer to the camera plane than this cannot be projected


class DepthMap(NamedTuple):
    """B depth maps with their intrinsics.

    Attributes:
        depth: (B, H, W) along the optical axis, at the pixels' centres; 0 where unknown.
        K: (B, 3, 3) in hloc's pixel frame.
    """

    depth: Tensor
    K: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of coarse cells."""
        return self.depth.shape[-2] // CELL, self.depth.shape[-1] // CELL


class Supervision(NamedTuple):
    """True positions of the grid points of B pairs in the other image.

    N0 = h0·w0 and N1 = h1·w1 cells are in row-major order; warped points are (x, y) in the
    network's pixel frame of the other image.

    Attributes:
        warped0: (B, N0, 2), grid points of image 0 in image 1; arbitrary where not visible.
        visible0: (B, N0) bool, inside image 1 and not occluded there.
        warped1, visible1: the same for the grid points of image 1.
        partner: (B, N0) long, the true coarse match of each cell of image 0, or -1.
        known0: (B, N0) bool, where `warped0` is the true position even if it is not visible: it may
            lie outside image 1, or behind what is seen there. False where nothing is known.
        grid0, grid1: (rows, columns) of cells.
    """

    warped0: Tensor
    visible0: Tensor
    warped1: Tensor
    visible1: Tensor
    partner: Tensor
    known0: Tensor
    grid0: tuple[int, int]
    grid1: tuple[int, int]


def grid_points(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Points (8c, 8r) of the cells of a (rows, columns) grid in row-major order: (N, 2) as (x, y).

    They are in the network's pixel frame.
    """
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) * CELL for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def warp_points(
    points: Tensor, source: DepthMap, target: DepthMap, T: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Warps points of one image into the other by their depth.

    A point is visible if it has a depth, projects inside the other image, and one of the four
    pixels around its projection has its depth, up to a relative error (four, since a single
    pixel next to an edge often belongs to what lies behind the edge).

    Args:
        points: (B, N, 2) as (x, y) in hloc's pixel frame of the source image. The coordinates of
            all points are integers, or the depth is interpolated (see `depth_at`).
        source, target: depth maps of the B images and of the B other ones.
        T: (B, 4, 4), from the source camera's coordinates to the target camera's.
        tolerance: largest relative difference of depths.

    Returns:
        warped (B, N, 2) in hloc's pixel frame of the target image, and visible (B, N) bool.
    """
    z = depth_at(source.depth, points, tolerance)
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    rays = torch.linalg.solve(source.K, homogeneous.mT).mT
    moved = (rays * z[..., None]) @ T[:, :3, :3].mT + T[:, None, :3, 3]
    target_z = moved[..., 2]
    in_front = (z > 0) & (target_z > NEAREST_DEPTH)
    projected = moved @ target.K.mT
    warped = projected[..., :2] / torch.where(in_front, target_z, 1.0)[..., None]

    height, width = target.depth.shape[-2:]
    usable = in_front & inside(warped, width, height, 0.5)
    corner = torch.where(usable[..., None], warped, 0.0).floor().long()
    agrees = torch.zeros_like(usable)
    for seen in _neighbours(target.depth, corner):
        agrees |= (seen > 0) & ((seen - target_z).abs() < tolerance * target_z)
    return warped, usable & agrees


def depth_at(depth: Tensor, points: Tensor, tolerance: float) -> Tensor:
    """Depth at points (B, N, 2) of hloc's pixel frame: (B, N), 0 where it is not known.

    If the coordinates of all points are integers, it is that of the pixels. Otherwise inverse depth
    is interpolated linearly between the four pixels around a point, which is exact on planes;
    beyond the outermost pixels' centres it is extrapolated. Where one of the four has no depth, or
    they differ by more than the relative `tolerance`, as at the edge of an object, there is none.
    """
    corner = points.floor()
    if torch.equal(corner, points):
        x, y = points.long().unbind(-1)
        batch = torch.arange(len(points), device=points.device)[:, None]
        return depth[batch, y, x]
    height, width = depth.shape[-2:]
    x, y = corner[..., 0].clamp(0, width - 2), corner[..., 1].clamp(0, height - 2)
    dx, dy = points[..., 0] - x, points[..., 1] - y
    around = _neighbours(depth, torch.stack([x, y], dim=-1).long())
    weights = ((1 - dx) * (1 - dy), dx * (1 - dy), (1 - dx) * dy, dx * dy)
    nearest, farthest = torch.stack(around).aminmax(dim=0)
    known = (nearest > 0) & (farthest - nearest < tolerance * nearest)
    inverse = torch.zeros_like(dx)
    for weight, z in zip(weights, around, strict=True):
        inverse += weight / torch.where(known, z, 1.0)
    return torch.where(known & (inverse > 0), 1 / inverse, 0.0)


def _neighbours(depth: Tensor, corner: Tensor) -> list[Tensor]:
    """Depths (B, N) of the pixel `corner` (B, N, 2), right of it, below it and diagonally below.

    Pixels outside are replaced by the nearest ones.
    """
    height, width = depth.shape[-2:]
    batch = torch.arange(len(corner), device=corner.device)[:, None]
    return [
        depth[
            batch,
            (corner[..., 1] + dy).clamp(0, height - 1),
            (corner[..., 0] + dx).clamp(0, width - 1),
        ]
        for dy in (0, 1)
        for dx in (0, 1)
    ]


def nearest_cells(warped: Tensor, visible: Tensor, grid: tuple[int, int]) -> Tensor:
    """The cell of `grid` nearest to each warped point: (B, N) long, -1 if it is not visible.

    Args:
        warped: (B, N, 2) in the network's pixel frame.
        visible: (B, N) bool.
    """
    rows, columns = grid
    cell = torch.where(visible[..., None], warped / CELL, -1.0).round().long()
    column, row = cell.unbind(-1)
    return torch.where(inside(cell, columns, rows), row * columns + column, -1)


def mutual_partners(nearest0: Tensor, nearest1: Tensor) -> Tensor:
    """Mutual nearest cells: (B, N0) long, the partner of each cell of image 0, or -1.

    Args:
        nearest0: (B, N0) long, the nearest cell of image 1 for each cell of image 0, or -1.
        nearest1: (B, N1) long, likewise for image 1.
    """
    back = nearest1.gather(1, nearest0.clamp(min=0))
    own = torch.arange(nearest0.shape[1], device=nearest0.device)
    return torch.where((nearest0 >= 0) & (back == own), nearest0, -1)


@torch.no_grad()
def supervise(
    map0: DepthMap,
    map1: DepthMap,
    T_0to1: Tensor,
    tolerance: float = 0.05,
    origin: Origin = "centre",
) -> Supervision:
    """Ground truth of B pairs.

    Args:
        map0, map1: depth maps of the first and of the second images.
        T_0to1: (B, 4, 4), from the first cameras' coordinates to the second cameras'.
        tolerance: see `warp_points`.
        origin: where (0, 0) of the network's pixel frame lies.
    """
    shift = origin_shift(origin)
    points0, points1 = (
        (grid_points(m.grid, m.depth.device) - shift).expand(len(m.depth), -1, -1)
        for m in (map0, map1)
    )
    T_1to0 = torch.linalg.inv(T_0to1)
    warped0, visible0 = warp_points(points0, map0, map1, T_0to1, tolerance)
    warped1, visible1 = warp_points(points1, map1, map0, T_1to0, tolerance)
    known0 = depth_at(map0.depth, points0, tolerance) > 0
    return mutual_supervision(
        (warped0 + shift, visible0), (warped1 + shift, visible1), known0, map0.grid, map1.grid
    )


def mutual_supervision(
    warp0: tuple[Tensor, Tensor],
    warp1: tuple[Tensor, Tensor],
    known0: Tensor,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
) -> Supervision:
    """Adds the true coarse matches to the warped grid points of both images.

    Args:
        warp0: `warped0` and `visible0` of `Supervision`.
        warp1: `warped1` and `visible1`.
        known0: as in `Supervision`.
        grid0, grid1: (rows, columns) of cells.
    """
    partner = mutual_partners(nearest_cells(*warp0, grid1), nearest_cells(*warp1, grid0))
    return Supervision(*warp0, *warp1, partner, known0, grid0, grid1)


def surely_wrong(truth: Supervision, cell0: Tensor, cell1: Tensor) -> Tensor:
    """Which of K coarse matches in each of B pairs are wrong for certain: (B, K) bool.

    They are those where the true position of the cell of image 0 is known and farther than two
    cells from the matched cell along an axis, whether it lies inside image 1 or not. A match at the
    position of an occluded point is left open: at the edge of what is in front, a cell shows both.

    Args:
        truth: of `supervise` or `sparse_supervision`.
        cell0, cell1: (B, K) long, the matched cells.
    """
    position = truth.warped0.gather(1, cell0[..., None].expand(-1, -1, 2))
    distance = (grid_points(truth.grid1, cell1.device)[cell1] - position).abs()
    return truth.known0.gather(1, cell0) & (distance > WRONG_BEYOND).any(dim=-1)


def _offsets(
    warped: Tensor, visible: Tensor, source: Tensor, target: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Offsets (B, K, 2) in cells of the warped `source` cells from the `target` cells, validity."""
    point = warped.gather(1, source[..., None].expand(-1, -1, 2))
    offset = (point - grid_points(grid, warped.device)[target]) / CELL
    valid = visible.gather(1, source) & (offset.abs() < 0.5).all(dim=-1)
    return torch.where(valid[..., None], offset, 0.0), valid


def fine_targets(
    truth: Supervision, cell0: Tensor, cell1: Tensor, *, bidirectional: bool = True
) -> tuple[Tensor, Tensor]:
    """True offsets of K coarse matches in each of B pairs; the matches may be wrong.

    Args:
        truth: of `supervise`.
        cell0, cell1: (B, K) long, the matched cells.
        bidirectional: whether to give the offsets in image 0 as well.

    Returns:
        target (B, 2K, 2) in cells as (x, y), within ±0.5, and valid (B, 2K) bool: first the K
        offsets in image 1, then the K in image 0. Without `bidirectional` only the first K.
        Targets that are not valid (occluded, or off by half a cell or more) are 0.
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
    """Replaces wrong coarse matches by randomly drawn true ones, up to a minimum for each pair.

    Early in training most of the predicted matches are wrong and have no target for the fine stage.

    Args:
        truth: of `supervise`.
        cell0, cell1: (B, K) long, predicted matches.
        minimum: number of matches with a valid target in image 1 that each pair gets, if it has
            as many true matches and K is large enough.
        generator: of random numbers, on the CPU.

    Returns:
        cell0 and cell1 (B, K); matches with a valid target are kept.
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

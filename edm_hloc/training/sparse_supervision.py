"""Ground truth from sparse correspondences, such as the points of a COLMAP model."""

from __future__ import annotations

import torch
from scipy.spatial import KDTree
from torch import Tensor

from edm_hloc.base.frames import Origin, inside, origin_shift
from edm_hloc.base.grid import CELL
from edm_hloc.training.supervision import Supervision, grid_points, mutual_supervision

NEIGHBOURS = 8  # points to which an affine map is fitted
NEAREST = 12.0  # px, largest distance of a grid point from the nearest of them
FARTHEST = 5 * NEAREST  # px, from the farthest of them
MAX_RESIDUAL = 0.5  # px, root mean square of the affine fit
MAX_LEVERAGE = 1.0  # variance of a warped grid point, in that of a neighbour's position


def sparse_supervision(
    points0: Tensor,
    points1: Tensor,
    size0: tuple[int, int],
    size1: tuple[int, int],
    origin: Origin = "centre",
) -> Supervision:
    """Ground truth of one pair of images from points that both observe.

    The warp of a grid point is an affine map fitted to its nearest points. A grid point has no
    ground truth if these are too far away, if the residuals of the fit are too large, or if they
    lie on a line that passes it by.

    Args:
        points0, points1: (P, 2) the points in both images, in hloc's pixel frame.
        size0, size1: (height, width) of the images.
        origin: where (0, 0) of the network's pixel frame lies.
    """
    shift = origin_shift(origin)
    points0, points1 = points0 + shift, points1 + shift  # in the network's frame
    grid0, grid1 = ((h // CELL, w // CELL) for h, w in (size0, size1))
    warps, known = [], []
    for grid, source, target, (height, width) in (
        (grid0, points0, points1, size1),
        (grid1, points1, points0, size0),
    ):
        warped, fits = _warp_affinely(grid_points(grid), source, target)
        visible = fits & inside(warped - shift, width, height, 0.5)
        warps.append((warped[None], visible[None]))
        known.append(fits[None])
    return mutual_supervision(warps[0], warps[1], known[0], grid0, grid1)


def _warp_affinely(grid: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Grid points (N, 2) → their warp (N, 2), and whether the affine map fits (N,) bool."""
    warped, fits = torch.zeros_like(grid), torch.zeros(len(grid), dtype=torch.bool)
    if len(source) < NEIGHBOURS:
        return warped, fits
    distance, near = KDTree(source.numpy()).query(grid.numpy(), NEIGHBOURS)
    surrounded = torch.from_numpy((distance[:, 0] < NEAREST) & (distance[:, -1] < FARTHEST))
    index = torch.from_numpy(near)[surrounded]
    x = source[index] - grid[surrounded, None]  # (N, k, 2)
    design = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1).double()
    y = target[index].double()
    # The linear part is damped, since the neighbours may be collinear. The translation is not: it
    # would be drawn towards (0, 0), by more the farther the point is from there.
    damping = torch.diag(torch.tensor([1e-3, 1e-3, 0.0], dtype=torch.float64))
    inverse = torch.linalg.inv(design.mT @ design + damping)
    affine = inverse @ design.mT @ y
    residual = (design @ affine - y).square().sum(dim=-1).mean(dim=-1).sqrt()
    # Neighbours on a line have no residual, but say nothing of a grid point beside it.
    fit = (residual < MAX_RESIDUAL) & (inverse[:, 2, 2] < MAX_LEVERAGE)
    warped[surrounded], fits[surrounded] = affine[:, 2].float(), fit
    return warped, fits

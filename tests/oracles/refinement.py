"""The refinement written down with NumPy, SciPy and PyTorch: what the compiled loops must give."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import KDTree
from torch import Tensor

from edm_hloc.base.grid import CELL
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corners import Corners

_MIN_DETERMINANT = 0.05
_MIN_NEIGHBOURHOOD = 3
_SAMPLES = 64
_NOISE_CONTRAST = 0.02
_WINDOW = 5
_MIN_STRENGTH = 3e-4


def local_affine_maps(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, at: np.ndarray | None = None
) -> np.ndarray:
    """The affine map from image 0 to image 1 around each match.

    It is fitted robustly to the nearest matches, with a prior at the rotation and scale of the
    pair, which decides where these are few or collinear.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: number of nearest other matches that the map is fitted to.
        at: (N,) indices of the matches whose maps are wanted; by default all.

    Returns:
        (N, 2, 2) matrices.
    """
    centres0, centres1 = (points0, points1) if at is None else (points0[at], points1[at])
    count = min(neighbours + 1, len(points0))
    if count < _MIN_NEIGHBOURHOOD:
        return np.tile(np.eye(2), (len(centres0), 1, 1))
    distance, nearest = KDTree(points0).query(centres0, k=count)
    source = points0[nearest] - centres0[:, None]
    target = points1[nearest] - centres1[:, None]
    prior = pair_similarity(points0, points1, neighbours)
    fit = _robust_affine_fit(source, target, np.exp(-((distance / (3 * CELL)) ** 2)), prior, 1.5)
    maps = np.ascontiguousarray(fit[:, :2].transpose(0, 2, 1))
    maps[np.linalg.det(maps) < _MIN_DETERMINANT] = prior
    return maps


def neighbour_support(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, aligned: bool = False
) -> np.ndarray:
    """The share of each match's neighbours that are inliers of one affine map through the match.

    A neighbour is an inlier within half a cell plus a tenth of its distance, which leaves room
    for depth. After the alignment the tolerance is half of that.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: number of nearest other matches in image 0 that are asked.
        aligned: whether the matches have been aligned.

    Returns:
        (M,) in [0, 1]; 1 where there are fewer than four matches.
    """
    if len(points0) < 4:
        return np.ones(len(points0))
    distance, nearest = KDTree(points0).query(points0, k=min(neighbours + 1, len(points0)))
    distance, nearest = distance[:, 1:], nearest[:, 1:]
    source = points0[nearest] - points0[:, None]
    target = points1[nearest] - points1[:, None]
    # Fitted to the neighbours alone, so that a wrong match in their middle has no influence.
    tolerance = 0.5 if aligned else 1.0
    prior = pair_similarity(points0, points1, neighbours)
    fit = _robust_affine_fit(source, target, np.ones_like(distance), prior, 3.0 * tolerance)
    residual = np.linalg.norm(source @ fit[:, :2] - target, axis=2)
    share: np.ndarray = (residual < tolerance * (CELL / 2 + 0.1 * distance)).mean(axis=1)
    return share


def pair_similarity(points0: np.ndarray, points1: np.ndarray, neighbours: int) -> np.ndarray:
    """The rotation and scale (2, 2) of a pair: a median over neighbours of some of its matches."""
    some = np.arange(_SAMPLES) * len(points0) // _SAMPLES
    nearest = KDTree(points0).query(points0[some], k=min(neighbours + 1, len(points0)))[1]
    offset0, offset1 = (
        ((p[nearest] - p[some][:, None]).astype(np.float64) @ [1, 1j]).ravel()
        for p in (points0, points1)
    )
    apart = offset0 != 0
    ratios = offset1[apart] / offset0[apart]
    size = np.abs(ratios) ** 2
    ratios = ratios[(size >= _MIN_DETERMINANT) & (size <= 1 / _MIN_DETERMINANT)]
    if not len(ratios):
        return np.eye(2)
    middle = (len(ratios) - 1) // 2
    a, b = np.sort(ratios.real)[middle], np.sort(ratios.imag)[middle]
    return np.array([[a, -b], [b, a]]) if a * a + b * b >= _MIN_DETERMINANT else np.eye(2)


def _robust_affine_fit(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, linear: np.ndarray, scale: float
) -> np.ndarray:
    """Affine maps (N, 3, 2), translation last, from (N, K, 2) to (N, K, 2) points.

    They minimise a Cauchy loss of `scale` pixels, weighted by (N, K), by iteratively reweighted
    least squares, with a prior at the map `linear` (2, 2).
    """
    source = np.concatenate([source, np.ones((*source.shape[:2], 1))], axis=2)
    # Worth half a neighbour at the distance of a cell; the translation is nearly free.
    prior = np.diag([0.5 * CELL**2, 0.5 * CELL**2, 1e-3])
    toward = np.vstack([linear.T, [0, 0]])
    spatial = weight
    for _ in range(5):
        weighted = (source * weight[..., None]).transpose(0, 2, 1)
        fit = np.linalg.solve(weighted @ source + prior, weighted @ target + prior @ toward)
        squared = ((source @ fit - target) ** 2).sum(axis=2)
        weight = spatial / (1.0 + squared / scale**2)
    return fit


def align(
    images: tuple[Tensor, Tensor],
    points0: np.ndarray,
    points1: np.ndarray,
    affine: np.ndarray,
    config: RefinementConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Aligned points (M, 2) of image 1 and correlations (M,)."""
    matches = tuple(torch.as_tensor(x, dtype=torch.float32) for x in (points0, points1, affine))
    points, correlation = _align_chunk(*images, matches, config)  # type: ignore[arg-type]
    return points.numpy(), correlation.numpy()


def _align_chunk(
    image0: Tensor, image1: Tensor, matches: tuple[Tensor, Tensor, Tensor], config: RefinementConfig
) -> tuple[Tensor, Tensor]:
    """Points (M, 2) of image 1 and correlations (M,), for p0 (M, 2), p1 (M, 2), A (M, 2, 2)."""
    p0, p1, A = matches
    # One pixel more on each side than the patch, for central differences.
    wide = _pixel_square(config.patch_radius + 1, p0.device)
    patch = wide[1:-1, 1:-1].flatten(0, 1)  # (P, 2)
    weight = torch.exp(-patch.square().sum(dim=1) / (2 * (config.patch_radius / 1.7) ** 2))
    weight = weight / weight.sum()
    seen = _sample(image0, p0, wide.flatten(0, 1) * _pixel_size(image0))
    seen = seen.unflatten(1, wide.shape[:2])
    values = seen[:, 1:-1, 1:-1].flatten(1)
    dx = seen[:, 1:-1, 2:] - seen[:, 1:-1, :-2]
    dy = seen[:, 2:, 1:-1] - seen[:, :-2, 1:-1]
    J = torch.stack([dx, dy], dim=1).flatten(2) / 2
    mean = values @ weight
    contrast = _contrast(values, mean, weight)[:, None]
    template = (values - mean[:, None]) / contrast
    # Jacobian (M, 2, P) of the normalised patch with respect to a shift in image 1, taken from
    # image 0, where it is the same in all iterations. Its components along the mean and the
    # contrast are projected out.
    J = torch.linalg.inv(A).mT @ J / contrast[..., None]
    weighted = weight * template
    J = J - (J @ weight)[..., None] - (J @ weighted[..., None]) * template[:, None]
    damping = (config.noise_sigma / config.prior_sigma) ** 2
    inverse = torch.linalg.inv((J * weight) @ J.mT + damping * torch.eye(2, device=J.device))
    # An iteration needs three inner products with the patch of image 1: the correlation with the
    # template, and the two components of the step. All three rows sum to zero, so that the mean
    # of the patch need not be subtracted.
    basis = torch.cat([weighted[:, None], inverse @ (J * weight)], dim=1)
    own = (basis @ template[..., None])[..., 0]

    around = patch @ (A.mT * _pixel_size(image1))
    best_cost = torch.full_like(p1[:, 0], torch.inf)
    best = torch.zeros_like(p1)
    agreement = torch.zeros_like(best_cost)
    shift = torch.zeros_like(p1)
    for iteration in range(config.iterations + 1):
        seen = _sample(image1, p1 + shift, around)
        contrast = _contrast(seen, seen @ weight, weight)[:, None]
        found = (basis @ seen[..., None])[..., 0] / contrast
        power = (1 - _NOISE_CONTRAST / contrast[:, 0]).square()
        squared = power - 2 * found[:, 0] + own[:, 0]
        cost = squared + damping * shift.square().sum(dim=1)
        better = cost < best_cost
        best_cost = torch.where(better, cost, best_cost)
        best = torch.where(better[:, None], shift, best)
        agreement = torch.where(better, 1 - squared / 2, agreement)
        if iteration == config.iterations:
            break
        pull = damping * (inverse @ shift[..., None])[..., 0]
        step = own[:, 1:] - found[:, 1:] - pull
        # From the best shift so far; half way back to it where the last step raised the cost.
        shift = torch.where(better[:, None], shift + step, (shift + best) / 2)
        shift = shift.clamp(-2 * config.prior_sigma, 2 * config.prior_sigma)
    return p1 + best, agreement


def _contrast(values: Tensor, mean: Tensor, weight: Tensor) -> Tensor:
    """Standard deviation (M,) of patches (M, P), plus that of noise."""
    variance = values.square() @ weight - mean.square()
    return variance.clamp(min=0).sqrt() + _NOISE_CONTRAST


def _pixel_square(radius: int, device: torch.device) -> Tensor:
    """(2·radius + 1, 2·radius + 1, 2) pixels (x, y) around (0, 0)."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=2)


def _pixel_size(image: Tensor) -> Tensor:
    """(2,) width and height of a pixel where the image is [−1, 1]², as for `grid_sample`."""
    return 2 / torch.tensor([image.shape[-1], image.shape[-2]], device=image.device)


def _sample(image: Tensor, points: Tensor, around: Tensor) -> Tensor:
    """Bilinear values (M, P) of (1, H, W) around points (M, 2), pixels; borders are replicated.

    Args:
        around: (P, 2) or (M, P, 2) offsets, the image being [−1, 1]².
    """
    grid = around + ((points + 0.5) * _pixel_size(image) - 1)[:, None]
    return F.grid_sample(
        image[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
    )[0, 0]


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


def distinct(points0: np.ndarray, points1: np.ndarray, within: float) -> np.ndarray:
    """Indices of the pairs of points that repeat no earlier one."""
    positions = np.concatenate([points0, points1], axis=1)
    pairs = KDTree(positions).query_pairs(within, output_type="ndarray")
    return np.setdiff1d(np.arange(len(positions)), pairs.max(axis=1, initial=-1))

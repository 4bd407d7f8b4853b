"""Local affine maps and neighbours' support of a batch of pairs, on the device: see `affine.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from edm_hloc.base.grid import CELL
from edm_hloc.refinement.affine import MIN_DETERMINANT, MIN_NEIGHBOURHOOD, PRIOR
from edm_hloc.refinement.batched_points import nearest, take
from edm_hloc.refinement.neighbour_kernels import SAMPLES

_TRANSLATION_PRIOR = 1e-3  # the translation is nearly free


def inverse_2x2(A: Tensor) -> Tensor:
    """Inverses of matrices (…, 2, 2)."""
    a, b, c, d = A.flatten(-2).unbind(dim=-1)
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    return adjugate / (a * d - b * c)[..., None, None]


def apply(A: Tensor, offsets: Tensor) -> Tensor:
    """Matrices (…, 2, 2) times vectors (…, 2)."""
    return (A * offsets[..., None, :]).sum(dim=-1)


def local_affine_maps(
    points0: Tensor, points1: Tensor, valid: Tensor, neighbours: int, at: Tensor | None = None
) -> Tensor:
    """The affine map from image 0 to image 1 around each match, as `affine.local_affine_maps`.

    Args:
        points0, points1: (B, N, 2) pixels.
        valid: (B, N).
        neighbours: number of nearest other matches that the map is fitted to.
        at: (B, Q) indices of the matches whose maps are wanted; by default all.

    Returns:
        (B, Q, 2, 2) matrices; of padding, any.
    """
    centres0, centres1 = (p if at is None else take(p, at) for p in (points0, points1))
    squared, index = nearest(points0, valid, centres0, neighbours + 1)
    source, target = _offsets(points0, points1, (centres0, centres1), index)
    weight = torch.exp(-squared / (3 * CELL) ** 2)  # 0 at infinity, where there is no neighbour
    prior = _similarity(points0, points1, valid, neighbours)
    A = _robust_affine_fit(source, target, weight, prior, 1.5)
    a, b, c, d = A.flatten(-2).unbind(dim=-1)
    bad = a * d - b * c < MIN_DETERMINANT
    few = valid.sum(dim=1) < MIN_NEIGHBOURHOOD
    A = torch.where(bad[..., None, None], prior[:, None], A)
    return torch.where(few[:, None, None, None], torch.eye(2, device=A.device), A)


def neighbour_support(
    points0: Tensor, points1: Tensor, valid: Tensor, neighbours: int, aligned: bool = False
) -> Tensor:
    """The share (B, N) of each match's neighbours that are consistent with it; of padding, any.

    As `affine.neighbour_support`.
    """
    length = valid.shape[1]
    itself = torch.arange(length, device=valid.device).expand(len(valid), -1)
    squared, index = nearest(points0, valid, points0, neighbours, itself)
    source, target = _offsets(points0, points1, (points0, points1), index)
    found = torch.isfinite(squared)
    tolerance = 0.5 if aligned else 1.0
    prior = _similarity(points0, points1, valid, neighbours)
    A = _robust_affine_fit(source, target, found.float(), prior, 3.0 * tolerance)
    residual = (apply(A[:, :, None], source) - target).square().sum(dim=3)
    largest = tolerance * (CELL / 2 + 0.1 * squared.sqrt())
    inliers = (residual < largest.square()) & found
    share = inliers.sum(dim=2) / found.sum(dim=2).clamp(min=1)
    return torch.where((valid.sum(dim=1) < 4)[:, None], 1.0, share)


def _offsets(
    points0: Tensor, points1: Tensor, centres: tuple[Tensor, Tensor], index: Tensor
) -> tuple[Tensor, Tensor]:
    """Neighbours (B, Q, K, 2) of indices (B, Q, K), relative to their centres, in both images."""
    flat = index.flatten(1)
    source, target = (
        take(points, flat).unflatten(1, index.shape[1:]) - centre[:, :, None]
        for points, centre in zip((points0, points1), centres, strict=True)
    )
    return source, target


def _similarity(points0: Tensor, points1: Tensor, valid: Tensor, neighbours: int) -> Tensor:
    """The rotation and scale (B, 2, 2) that most neighbours of a pair agree on, as in
    `neighbour_kernels`."""
    number = valid.sum(dim=1, keepdim=True)
    wanted = torch.arange(SAMPLES, device=valid.device) * number // SAMPLES
    at = torch.searchsorted(valid.cumsum(dim=1), wanted + 1).clamp(max=valid.shape[1] - 1)
    centres = take(points0, at), take(points1, at)
    squared, index = nearest(points0, valid, centres[0], neighbours + 1)
    source, target = _offsets(points0, points1, centres, index)
    sizes = target.square().sum(dim=3)
    plausible = (squared > 0) & torch.isfinite(squared)
    plausible &= (MIN_DETERMINANT * squared <= sizes) & (MIN_DETERMINANT * sizes <= squared)
    (x, y), (u, v) = source.unbind(dim=3), target.unbind(dim=3)
    ratios = torch.stack([x * u + y * v, x * v - y * u], dim=1) / squared[:, None]
    ratios = ratios.masked_fill(~plausible[:, None], torch.nan)
    a, b = ratios.flatten(2).nanmedian(dim=2).values.unbind(dim=1)
    similarity = torch.stack([a, -b, b, a], dim=1).unflatten(1, (2, 2))
    known = a * a + b * b >= MIN_DETERMINANT  # not NaN, of none, nor contradictory
    return torch.where(known[:, None, None], similarity, torch.eye(2, device=a.device))


def _robust_affine_fit(
    source: Tensor, target: Tensor, spatial: Tensor, prior: Tensor, scale: float
) -> Tensor:
    """Linear parts (B, Q, 2, 2) of the affine maps from (B, Q, K, 2) to (B, Q, K, 2) points.

    They minimise a Cauchy loss of `scale` pixels, weighted by (B, Q, K), by iteratively reweighted
    least squares, with a prior at the map (B, 2, 2) of the pair. The translation is eliminated from
    the normal equations.
    """
    own = PRIOR * torch.eye(2, device=source.device)
    toward = PRIOR * prior.mT[:, None]
    weight = spatial
    for iteration in range(5):
        total = weight.sum(dim=2)[..., None] + _TRANSLATION_PRIOR
        mean0 = (weight[..., None] * source).sum(dim=2) / total
        mean1 = (weight[..., None] * target).sum(dim=2) / total
        weighted = weight[..., None] * source
        x, y = weighted.unbind(dim=3)
        centred0, centred1 = source - mean0[:, :, None], target - mean1[:, :, None]
        moments, cross = (
            torch.stack([(axis[..., None] * c).sum(dim=2) for axis in (x, y)], dim=2)
            for c in (centred0, centred1)
        )
        # Rows of `moments` and `cross` belong to x and y of the source.
        A = _product(inverse_2x2(moments + own), cross + toward).mT
        if iteration < 4:
            shift = mean1 - apply(A, mean0)
            residual = apply(A[:, :, None], source) + shift[:, :, None] - target
            weight = spatial / (1.0 + residual.square().sum(dim=3) / scale**2)
    return A


def _product(A: Tensor, B: Tensor) -> Tensor:
    """Products of matrices (…, 2, 2), without the reduced precision of a GPU's matrix units."""
    return (A[..., :, :, None] * B[..., None, :, :]).sum(dim=-2)

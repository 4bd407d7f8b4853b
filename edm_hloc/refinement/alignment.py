"""Lucas–Kanade alignment of the patches around matches, with the network's answer as a prior.

Inverse compositional form (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 2004): the
gradient is that of the fixed patch, so it is computed once. Patches are normalised to mean 0 and
contrast 1, which makes the alignment independent of brightness and contrast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.base.grid import blocks
from edm_hloc.refinement.config import RefinementConfig

_NOISE_CONTRAST = 0.02  # standard deviation of grey values (in [0, 1]) that is taken for noise
_CHUNK = 512  # matches aligned together: what fits the cache of a CPU core


class Alignment(NamedTuple):
    """Aligned points (M, 2) float32 in pixels, and the normalised cross-correlation (M,) float32
    of the patches around them."""

    points: np.ndarray
    correlation: np.ndarray


def align(
    images: tuple[Tensor, Tensor],
    points0: np.ndarray,
    points1: np.ndarray,
    affine: np.ndarray,
    config: RefinementConfig,
) -> Alignment:
    """Moves the points of image 1 to where the patches around them match those of image 0 best.

    Args:
        images: image 0 and image 1, each (1, H, W) grey in [0, 1]; sizes may differ.
        points0, points1: (M, 2) pixels, hloc's frame.
        affine: (M, 2, 2) maps from image 0 to image 1 around each match.
        config: the settings.
    """
    points, correlation = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.float32)]
    for part in blocks(len(points0), _CHUNK):
        p0, p1, A = (
            torch.as_tensor(values[part], dtype=torch.float32, device=images[0].device)
            for values in (points0, points1, affine)
        )
        moved, agreement = _align_chunk(*images, (p0, p1, A), config)
        points.append(moved.cpu().numpy())
        correlation.append(agreement.cpu().numpy())
    return Alignment(np.concatenate(points), np.concatenate(correlation))


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

"""Lucas–Kanade alignment of the matches of a batch of pairs, on the device: see `alignment.py`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.refinement.alignment import NOISE_CONTRAST
from edm_hloc.refinement.batched_affine import apply, inverse_2x2
from edm_hloc.refinement.batched_points import chunk_size
from edm_hloc.refinement.config import RefinementConfig

TEMPORARIES = 24  # tensors of the size of the patches that exist at a time


class Images(NamedTuple):
    """B images of one size, to be sampled between their pixels.

    Attributes:
        values: (B, H + 1, W + 1), with the last row and column repeated.
    """

    values: Tensor

    @staticmethod
    def of(grey: Tensor) -> Images:
        """From (B, H, W)."""
        return Images(F.pad(grey[:, None], (0, 1, 0, 1), mode="replicate")[:, 0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.values.shape[2] - 1, self.values.shape[1] - 1

    def sample(self, number: Tensor, points: Tensor) -> Tensor:
        """Bilinear values (M, P) at points (M, P, 2) of the images `number` (M,).

        Borders are replicated. It is made of plain operations, which all devices have.
        """
        width, height = self.size
        x, y = points[..., 0].clamp(0, width - 1), points[..., 1].clamp(0, height - 1)
        column, row = x.floor(), y.floor()
        x, y = x - column, y - row
        index = number[:, None] * self.values[0].numel()
        index = index + row.long() * (width + 1) + column.long()
        values = self.values.flatten()
        upper = values[index]
        upper += x * (values[index + 1] - upper)
        index += width + 1
        lower = values[index]
        lower += x * (values[index + 1] - lower)
        return upper.lerp_(lower, y)


class FlatMatches(NamedTuple):
    """M matches of the pairs of a batch, one after the other.

    Attributes:
        pair: (M,) long, the pair that each belongs to.
        points: (M, 2) pixels of the image that stays.
        others: (M, 2) pixels of the image in which points move.
        affine: (M, 2, 2) maps from the first image to the second.
    """

    pair: Tensor
    points: Tensor
    others: Tensor
    affine: Tensor


def align(
    images: tuple[Images, Images], matches: FlatMatches, config: RefinementConfig
) -> tuple[Tensor, Tensor]:
    """Moves the points of the second image to where the patches around them match best.

    As `alignment.align`.

    Returns:
        Points (M, 2) and normalised cross-correlations (M,).
    """
    patch = (2 * config.patch_radius + 1) ** 2
    step = max(1, chunk_size(matches.pair.device) // (TEMPORARIES * patch))
    parts = [
        _align(images, FlatMatches(*(values[start : start + step] for values in matches)), config)
        for start in range(0, len(matches.pair), step)
    ]
    if not parts:
        return matches.others, matches.others[:, 0]
    points, correlation = (torch.cat(values) for values in zip(*parts, strict=True))
    return points, correlation


class _Template(NamedTuple):
    """What the iterations need of the patches that stay; P pixels each.

    Attributes:
        weight: (P,) of the pixels.
        rows: (M, 3, P) inner products with these are the correlation with the template, and the
            two components of the step. Each sums to zero, so that the mean of the other patch
            need not be subtracted.
        own: (M, 3) these inner products of the template itself.
        inverse: (M, 2, 2) of the damped normal matrix.
    """

    weight: Tensor
    rows: Tensor
    own: Tensor
    inverse: Tensor


def _align(
    images: tuple[Images, Images], matches: FlatMatches, config: RefinementConfig
) -> tuple[Tensor, Tensor]:
    damping = (config.noise_sigma / config.prior_sigma) ** 2
    patch = _pixel_square(config.patch_radius, matches.points.device).flatten(0, 1)
    template = _template(images[0], matches, config)
    start = matches.others
    around = start[:, None] + apply(matches.affine[:, None], patch)
    best_cost = torch.full_like(start[:, 0], torch.inf)
    agreement = torch.zeros_like(best_cost)
    best, shift = torch.zeros_like(start), torch.zeros_like(start)
    for iteration in range(config.iterations + 1):
        seen = images[1].sample(matches.pair, around + shift[:, None])
        contrast = _contrast(seen, template.weight)[:, None]
        found = (template.rows * seen[:, None]).sum(dim=2) / contrast
        power = (1 - NOISE_CONTRAST / contrast[:, 0]).square()
        squared = power - 2 * found[:, 0] + template.own[:, 0]
        cost = squared + damping * shift.square().sum(dim=1)
        better = cost < best_cost
        best_cost = torch.where(better, cost, best_cost)
        best = torch.where(better[:, None], shift, best)
        agreement = torch.where(better, 1 - squared / 2, agreement)
        if iteration == config.iterations:
            break
        step = template.own[:, 1:] - found[:, 1:] - damping * apply(template.inverse, shift)
        # From the best shift so far; half way back to it where the last step raised the cost.
        shift = torch.where(better[:, None], shift + step, (shift + best) / 2)
        shift = shift.clamp(-2 * config.prior_sigma, 2 * config.prior_sigma)
    return start + best, agreement


def _template(image: Images, matches: FlatMatches, config: RefinementConfig) -> _Template:
    """The normalised patches around the points that stay."""
    # One pixel more on each side than the patch, for central differences.
    wide = _pixel_square(config.patch_radius + 1, matches.points.device)
    patch = wide[1:-1, 1:-1].flatten(0, 1)
    weight = torch.exp(-patch.square().sum(dim=1) / (2 * (config.patch_radius / 1.7) ** 2))
    weight = weight / weight.sum()
    seen = image.sample(matches.pair, matches.points[:, None] + wide.flatten(0, 1))
    seen = seen.unflatten(1, wide.shape[:2])
    values = seen[:, 1:-1, 1:-1].flatten(1)
    dx = (seen[:, 1:-1, 2:] - seen[:, 1:-1, :-2]).flatten(1) / 2
    dy = (seen[:, 2:, 1:-1] - seen[:, :-2, 1:-1]).flatten(1) / 2
    contrast = _contrast(values, weight)[:, None]
    template = (values - (values * weight).sum(dim=1, keepdim=True)) / contrast
    # The derivatives of the normalised patch by a shift in the other image: those in this one,
    # times the inverse map, without their components along the mean and the contrast.
    B = inverse_2x2(matches.affine)
    weighted = weight * template
    derivatives = []
    for axis in (0, 1):
        d = (B[:, 0, axis, None] * dx + B[:, 1, axis, None] * dy) / contrast
        along_mean = (d * weight).sum(dim=1, keepdim=True)
        along_contrast = (d * weighted).sum(dim=1, keepdim=True)
        derivatives.append(d - along_mean - along_contrast * template)
    jx, jy = derivatives
    damping = (config.noise_sigma / config.prior_sigma) ** 2
    xx, xy, yy = ((a * b * weight).sum(dim=1) for a, b in ((jx, jx), (jx, jy), (jy, jy)))
    normal = torch.stack([xx + damping, xy, xy, yy + damping], dim=1).unflatten(1, (2, 2))
    inverse = inverse_2x2(normal)
    wx, wy = jx * weight, jy * weight
    step_x, step_y = (inverse[:, i, 0, None] * wx + inverse[:, i, 1, None] * wy for i in (0, 1))
    rows = torch.stack([weighted, step_x, step_y], dim=1)
    return _Template(weight, rows, (rows * template[:, None]).sum(dim=2), inverse)


def _contrast(values: Tensor, weight: Tensor) -> Tensor:
    """Standard deviation (M,) of patches (M, P), plus that of noise."""
    mean = (values * weight).sum(dim=1)
    variance = (values.square() * weight).sum(dim=1) - mean.square()
    return variance.clamp(min=0).sqrt() + NOISE_CONTRAST


def _pixel_square(radius: int, device: torch.device) -> Tensor:
    """(2·radius + 1, 2·radius + 1, 2) pixels (x, y) around (0, 0)."""
    steps = torch.arange(-radius, radius + 1, device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=2)

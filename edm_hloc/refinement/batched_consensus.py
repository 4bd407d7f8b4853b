"""Robust similarities and affine maps of many sets of matches at a time, on the device.

Random sample consensus (Fischler and Bolles, "Random sample consensus", CACM 1981), with the same
samples in every run: each set's matches are drawn by the same random numbers. The best map of
each kind is fitted to its inliers once more. As far as samples can be the same, the result is
that of OpenCV, with which the settings of the second look were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edm_hloc.refinement.batched_affine import apply, inverse_2x2
from edm_hloc.refinement.batched_points import chunk_size

_SAMPLES = 1000  # of two or three matches that maps are made from
_CONFIDENCE = 0.99
_SEED = 0


class Correspondences(NamedTuple):
    """Points of two photos, some of which correspond by one map.

    Attributes:
        points0, points1: (M, 2) pixels.
        tolerance: largest residual of an inlier, pixels of photo 1.
    """

    points0: np.ndarray
    points1: np.ndarray
    tolerance: float


class RobustMap(NamedTuple):
    """A map and the number of its inliers.

    Attributes:
        rows: (2, 3) affine map from photo 0 to photo 1, pixels; NaN if none was found.
        inliers: number of matches within the tolerance.
    """

    rows: np.ndarray
    inliers: int


class _Maps(NamedTuple):
    """Maps x ↦ linear · x + shift: (…, 2, 2) and (…, 2)."""

    linear: Tensor
    shift: Tensor


def robust_maps(
    sets: Sequence[Correspondences], device: torch.device
) -> list[tuple[RobustMap, RobustMap]]:
    """The similarity and the affine map with most inliers, for each set.

    Args:
        sets: with at least three matches each.
        device: where they are found.
    """
    found: list[tuple[RobustMap, RobustMap]] = []
    if not sets:
        return found
    longest = max(len(s.points0) for s in sets)
    step = max(1, chunk_size(device) // (4 * longest * _SAMPLES))
    numbers = torch.rand(_SAMPLES, 3, generator=torch.Generator().manual_seed(_SEED))
    numbers = numbers.to(device)
    rows = [_of_chunk(sets[start : start + step], numbers) for start in range(0, len(sets), step)]
    for similarity, affine in torch.cat(rows).cpu().numpy().astype(np.float64):
        found.append(
            (
                RobustMap(similarity[:6].reshape(2, 3), int(similarity[6])),
                RobustMap(affine[:6].reshape(2, 3), int(affine[6])),
            )
        )
    return found


def _of_chunk(sets: Sequence[Correspondences], numbers: Tensor) -> Tensor:
    """(N, 2, 7): of each set and kind of map, the rows of the best and its number of inliers."""
    longest = max(len(s.points0) for s in sets)
    padded = np.zeros((len(sets), longest, 5), np.float32)
    for row, one in zip(padded, sets, strict=True):
        count = len(one.points0)
        row[:count, 0:2], row[:count, 2:4], row[:count, 4] = one.points0, one.points1, 1
    tolerances = np.array([s.tolerance for s in sets], np.float32)
    together = torch.from_numpy(padded).to(numbers.device)
    points0, points1, valid = together[..., 0:2], together[..., 2:4], together[..., 4] > 0
    squared = torch.from_numpy(tolerances).to(numbers.device).square()
    counts = valid.sum(dim=1)[:, None]
    kinds = []
    for size, fitted in ((2, _similarities), (3, _affine_maps)):
        # Which matches are drawn; some samples have one twice, and give no map.
        drawn = (numbers[:, :size].flatten() * counts).long().clamp(max=longest - 1)
        sample0, sample1 = (
            p.gather(1, drawn[..., None].expand(-1, -1, 2)).unflatten(1, (-1, size))
            for p in (points0, points1)
        )
        maps = fitted(sample0, sample1, torch.ones_like(sample0[..., 0]))
        inliers = _inliers(maps, points0, points1, valid, squared)
        number, best = _first_good(inliers.sum(dim=2), counts, size)
        of_best = inliers[torch.arange(len(sets), device=best.device), best].float()
        fit = fitted(points0, points1, of_best)
        matrix = torch.cat([fit.linear, fit.shift[..., None]], dim=2)
        kinds.append(torch.cat([matrix.flatten(1), number[:, None]], dim=1))
    return torch.stack(kinds, dim=1)


def _first_good(inliers: Tensor, counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The most inliers (N,) among samples (N, S), and the sample (N,) that has them.

    Samples count up to the one with which the map has been found with `_CONFIDENCE`, as where they
    are drawn one by one. Among all of them, an affine map would nearly always have more inliers
    than a similarity, also where it is farther from the truth.

    Args:
        inliers: (N, S) of the map of each sample.
        counts: (N, 1) matches of each set.
        size: number of matches in a sample.
    """
    drawn = torch.arange(1, inliers.shape[1] + 1, device=inliers.device)
    share = inliers.cummax(dim=1).values / counts
    enough = math.log(1 - _CONFIDENCE) / torch.log1p(-(share**size))
    done = (drawn >= enough).long()
    used = done.cumsum(dim=1) == done
    number, best = inliers.masked_fill(~used, -1).max(dim=1)
    return number, best


def _inliers(
    maps: _Maps, points0: Tensor, points1: Tensor, valid: Tensor, squared: Tensor
) -> Tensor:
    """Which matches (N, M) obey each of the maps (N, S) to the tolerance: (N, S, M) bool."""
    residual = torch.zeros((), device=valid.device)
    for axis in (0, 1):
        row = maps.linear[:, :, axis, :, None]  # (N, S, 2, 1)
        at = row[:, :, 0] * points0[:, None, :, 0] + row[:, :, 1] * points0[:, None, :, 1]
        at += maps.shift[:, :, axis, None] - points1[:, None, :, axis]
        residual = residual + at.square_()
    # Comparisons with NaN, of samples that give no map, are false.
    return (residual <= squared[:, None, None]) & valid[:, None]


def _similarities(points0: Tensor, points1: Tensor, weight: Tensor) -> _Maps:
    """Least-squares similarities of points (…, K, 2) with weights (…, K)."""
    mean0, mean1, p, q = _centred(points0, points1, weight)
    x, y = p.unbind(dim=-1)
    u, v = q.unbind(dim=-1)
    size = (weight * (x * x + y * y)).sum(dim=-1)
    a = (weight * (x * u + y * v)).sum(dim=-1) / size
    b = (weight * (x * v - y * u)).sum(dim=-1) / size
    linear = torch.stack([a, -b, b, a], dim=-1).unflatten(-1, (2, 2))
    return _Maps(linear, mean1 - apply(linear, mean0))


def _affine_maps(points0: Tensor, points1: Tensor, weight: Tensor) -> _Maps:
    """Least-squares affine maps of points (…, K, 2) with weights (…, K)."""
    mean0, mean1, p, q = _centred(points0, points1, weight)
    weighted = (weight[..., None] * p)[..., :, None]
    moments = (weighted * p[..., None, :]).sum(dim=-3)
    cross = (weighted * q[..., None, :]).sum(dim=-3)
    inverse = inverse_2x2(moments)
    linear = (inverse[..., :, :, None] * cross[..., None, :, :]).sum(dim=-2).mT
    # Points in a line give a map of their rounding errors.
    a, b, c, d = moments.flatten(-2).unbind(dim=-1)
    flat = a * d - b * c <= 1e-5 * (a + d).square()
    linear = torch.where(flat[..., None, None], torch.nan, linear)
    return _Maps(linear, mean1 - apply(linear, mean0))


def _centred(
    points0: Tensor, points1: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted means (…, 2) of both, and the points without them."""
    total = weight.sum(dim=-1)[..., None]
    mean0 = (weight[..., None] * points0).sum(dim=-2) / total
    mean1 = (weight[..., None] * points1).sum(dim=-2) / total
    return mean0, mean1, points0 - mean0[..., None, :], points1 - mean1[..., None, :]

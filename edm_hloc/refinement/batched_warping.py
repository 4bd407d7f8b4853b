"""Photos of one size, warped into another frame on the device: see `ViewEncoder.warped`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edm_hloc.refinement.batched_alignment import TEMPORARIES, Images
from edm_hloc.refinement.batched_points import chunk_size


def warped_together(
    photos: Tensor, reductions: Sequence[tuple[int, int]], onto: np.ndarray, size: tuple[int, int]
) -> Tensor:
    """Photos reduced by area averaging, then warped with bilinear values, black around them.

    Args:
        photos: (N, C, H, W).
        reductions: (width, height) that each is reduced to.
        onto: (N, 3, 3) affine maps from the pixels of the reduced photos to those of the result.
        size: (width, height) of the result.

    Returns:
        (N, C, height, width) float32.
    """
    across, down = size
    step = max(1, chunk_size(photos.device) // (TEMPORARIES * across * down))
    back = torch.from_numpy(np.linalg.inv(onto)[:, :2].astype(np.float32)).to(photos.device)
    x = torch.arange(across, device=photos.device, dtype=torch.float32).expand(down, -1)
    y = torch.arange(down, device=photos.device, dtype=torch.float32)[:, None].expand(-1, across)
    parts = []
    for start in range(0, len(photos), step):
        part = slice(start, start + step)
        reduced = _reduced(photos[part].float(), reductions[part])
        count, channels = reduced.shape[:2]
        rows = back[part, None, None]  # (N, 1, 1, 2, 3)
        points = x[..., None] * rows[..., 0] + y[..., None] * rows[..., 1] + rows[..., 2]
        # A black border of one pixel, which is what lies outside.
        images = Images.of(torch.nn.functional.pad(reduced.flatten(0, 1), (1, 1, 1, 1)))
        points = (points + 1).flatten(1, 2).repeat_interleave(channels, dim=0)
        number = torch.arange(count * channels, device=photos.device)
        parts.append(images.sample(number, points).view(count, channels, down, across))
    return torch.cat(parts)


def _reduced(photos: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Photos (N, C, H, W) averaged over areas, each to its (width, height), black beyond that."""
    height, width = photos.shape[2:]
    largest = max(w for w, _ in sizes), max(h for _, h in sizes)
    if all(size == (width, height) for size in sizes):
        return photos
    weights = {}
    for axis, whole in ((0, width), (1, height)):
        several = np.zeros((len(sizes), largest[axis], whole), np.float32)
        for matrix, size in zip(several, sizes, strict=True):
            matrix[: size[axis]] = _area_weights(whole, size[axis])
        weights[axis] = torch.from_numpy(several).to(photos.device)[:, None]
    return weights[1] @ photos @ weights[0].mT


def _area_weights(whole: int, parts: int) -> np.ndarray:
    """(parts, whole): the share of each pixel in each of as many equal parts of a row."""
    ends = np.arange(parts + 1) * (whole / parts)
    pixels = np.arange(whole)
    overlap = np.minimum(ends[1:, None], pixels + 1) - np.maximum(ends[:-1, None], pixels)
    weights: np.ndarray = overlap.clip(min=0) * (parts / whole)
    return weights

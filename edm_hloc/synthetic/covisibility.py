"""Which pixels of one view are visible in another, by exact depth and poses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.cameras import Cameras


def warp(depth: Tensor, K0: Tensor, T0: Tensor, K1: Tensor, T1: Tensor) -> tuple[Tensor, Tensor]:
    """Project the pixels of camera 0 into camera 1 by their depth.

    Args:
        depth: (..., H, W) of camera 0, 0 where there is none.
        K0, K1: (..., 3, 3) intrinsics; the centre of the top-left pixel is (0, 0).
        T0, T1: (..., 4, 4) cam_from_world.

    Returns:
        (..., H, W, 2) positions (x, y) in image 1, NaN where there is no depth or the point lies
        behind camera 1; and (..., H, W) depths in camera 1, 0 where there is no depth.
    """
    height, width = depth.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device, dtype=depth.dtype),
        torch.arange(width, device=depth.device, dtype=depth.dtype),
        indexing="ij",
    )
    ray = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    T = T1 @ torch.linalg.inv(T0)
    M = K1 @ T[..., :3, :3] @ torch.linalg.inv(K0)
    moved = ray @ M.mT * depth.flatten(-2)[..., None] + (K1 @ T[..., :3, 3:]).mT
    moved = moved.view(*depth.shape, 3)
    z = torch.where(depth > 0, moved[..., 2], 0.0)
    xy = moved[..., :2] / torch.where(z > 0, z, torch.nan)[..., None]
    return xy, z


def covisible(depth0: Tensor, xy: Tensor, z: Tensor, depth1: Tensor, tolerance: float) -> Tensor:
    """Which pixels of image 0 show a point that image 1 shows, too.

    A pixel does where the depth after the warp agrees with the depth of image 1, either that of the
    nearest pixel or the bilinearly interpolated one. Interpolated is the inverse depth, which is
    linear on planes, however slanted.

    Args:
        depth0: (..., H, W), 0 where there is none.
        xy: (..., H, W, 2) from `warp`.
        z: (..., H, W) from `warp`.
        depth1: (..., H, W) of image 1.
        tolerance: largest relative difference of the depths.

    Returns:
        (..., H, W) bool.
    """
    height, width = depth1.shape[-2:]
    size = torch.tensor([width, height], device=xy.device)
    position = (xy.nan_to_num(-1e6).clamp(-1e6, 1e6) + 0.5) / size  # in 0..1
    inside = (depth0 > 0) & (z > 0) & ((position >= 0) & (position < 1)).all(-1)
    q = torch.where(depth1 > 0, 1 / depth1.clamp(min=1e-12), 0.0).reshape(-1, 1, height, width)
    grid = (position * 2 - 1).reshape(-1, *xy.shape[-3:])
    agrees = torch.zeros_like(inside)
    for mode in ("nearest", "bilinear"):
        found = F.grid_sample(q, grid, mode, padding_mode="border", align_corners=False)
        agrees |= (found.view(z.shape) * z - 1).abs() < tolerance
    return inside & agrees


def pair_overlap(depth: Tensor, cameras: Cameras) -> Tensor:
    """Overlap of the first view with each other view: the mean share of covisible pixels.

    It is the geometric mean of both directions, so that a change of scale lowers it by its factor
    and not by its square: the middle half of a photo, enlarged to its size, overlaps it by 0.5.

    Args:
        depth: (B, V, H, W), 0 where there is none.
        cameras: the B × V views.

    Returns:
        (B, V - 1) in [0, 1].
    """
    views = depth.shape[1]
    first = depth[:, :1].expand(-1, views - 1, -1, -1)
    K0, T0 = cameras.K[:, :1], cameras.cam_from_world[:, :1]
    K1, T1 = cameras.K[:, 1:], cameras.cam_from_world[:, 1:]
    there = covisible(first, *warp(first, K0, T0, K1, T1), depth[:, 1:], 0.06)
    back = covisible(depth[:, 1:], *warp(depth[:, 1:], K1, T1, K0, T0), first, 0.06)
    return (there.float().mean((2, 3)) * back.float().mean((2, 3))).sqrt()

"""Pinhole cameras of batches of scenes, and how they are aimed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras in each of B scenes. Camera axes: x right, y down, z forward (OpenCV).

    Attributes:
        K: (B, V, 3, 3) intrinsics in pixels, without skew; the centre of the top-left pixel is
            (0, 0).
        cam_from_world: (B, V, 4, 4) rigid transforms; world coordinates are in metres, z up.
    """

    K: Tensor
    cam_from_world: Tensor

    def select(self, index: Tensor) -> Cameras:
        """The cameras of some scenes, by indices or mask over B."""
        return Cameras(self.K[index], self.cam_from_world[index])

    def at_size(self, old: tuple[int, int], new: tuple[int, int]) -> Cameras:
        """The cameras of the same images resized from `old` to `new`, both (height, width)."""
        sy, sx = new[0] / old[0], new[1] / old[1]
        K = self.K.clone()
        K[..., 0, 0] *= sx
        K[..., 1, 1] *= sy
        K[..., 0, 2] = (K[..., 0, 2] + 0.5) * sx - 0.5
        K[..., 1, 2] = (K[..., 1, 2] + 0.5) * sy - 0.5
        return replace(self, K=K)


def look_at(centre: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """Poses of cameras that look at a point, with the world's z axis up in the image before a roll.

    Args:
        centre: (..., 3) camera centres in the world.
        target: (..., 3) world points on the optical axes.
        roll: (...) rotation about the optical axis in radians; positive values turn the camera
            clockwise, as seen from behind it.

    Returns:
        (..., 4, 4) cam_from_world.
    """
    forward = F.normalize(target - centre, dim=-1)
    up = torch.zeros_like(forward)
    up[..., 2] = 1
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    c, s = roll.cos()[..., None], roll.sin()[..., None]
    R = torch.stack([c * right + s * down, c * down - s * right, forward], -2)
    T = torch.zeros(*centre.shape[:-1], 4, 4, device=centre.device)
    T[..., :3, :3] = R
    T[..., :3, 3] = -(R @ centre[..., None])[..., 0]
    T[..., 3, 3] = 1
    return T


def intrinsics(focal: Tensor, height: int, width: int) -> Tensor:
    """K (..., 3, 3) from focal lengths (...) in pixels, the principal point at the image centre.

    The centre of the top-left pixel is (0, 0), so the principal point is ((width - 1) / 2,
    (height - 1) / 2).
    """
    K = torch.zeros(*focal.shape, 3, 3, device=focal.device)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., 0, 2] = (width - 1) / 2
    K[..., 1, 2] = (height - 1) / 2
    K[..., 2, 2] = 1
    return K

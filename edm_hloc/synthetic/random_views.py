"""Random cameras for a scene: a first view and candidates for a second one that overlaps it."""

from __future__ import annotations

import math

import torch

from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
from edm_hloc.synthetic.layouts import Layout
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.shapes import rotation


def candidate_cameras(
    layout: Layout, rng: Random, count: int, difficulty: float, height: int, width: int
) -> Cameras:
    """Draw a first camera for each scene and candidates for a second one.

    Args:
        layout: n scenes and where their cameras may be.
        rng: the random numbers.
        count: of candidates; they move away from the first camera step by step, the last the most.
        difficulty: in [0, 1]; widens baselines and changes of scale, roll and focal length.
        height, width: of the images, in pixels.

    Returns:
        (n, 1 + count) cameras, the first cameras first.
    """
    n = len(layout.eye)
    views = count + 1
    span = max(height, width)
    step = torch.linspace(0, 1, views, device=rng.device)  # 0 is the first camera itself

    # Move around the anchor, and towards it or away from it.
    offset = (layout.eye - layout.anchor)[:, None]
    most = 0.35 + 0.85 * difficulty
    angles = rng.uniform(n, views, 3, low=0.5) * rng.sign(n, views, 3) * step[:, None] * most
    angles[..., 0] *= 0.35
    angles[..., 1] *= 0.35
    scale = 1.3 + 1.5 * difficulty
    closer = (rng.uniform(n, views, low=-1) * step * math.log(scale)).exp()
    moved = (rotation(angles) @ offset[..., None])[..., 0] * closer[..., None]
    centre = layout.anchor[:, None] + moved
    centre = centre.clamp(layout.camera_low[:, None], layout.camera_high[:, None])
    distance = offset.norm(dim=-1, keepdim=True)
    target = layout.anchor[:, None] + rng.normal(n, views, 3) * distance * (
        0.05 + 0.08 * step[:, None]
    )

    upright = rng.chance(n, 1, p=0.6)
    roll = rng.normal(n, 1) * torch.where(upright, 0.06, 0.2 + 0.4 * difficulty)
    change = rng.normal(n, views) * torch.where(
        rng.chance(n, 1, p=0.5), 0.06, 0.1 + 0.7 * difficulty
    )
    roll = (roll + change * (step > 0)).clamp(-1.6, 1.6)
    focal = rng.log_uniform(n, 1, low=0.65, high=1.6) * span
    zoom = (rng.uniform(n, views, low=-1) * math.log(1.2 + 2.3 * difficulty)).exp()
    other_camera = rng.chance(n, 1, p=0.7)
    focal = focal * torch.where(other_camera & (step > 0), zoom, 1.0)
    return Cameras(intrinsics(focal, height, width), look_at(centre, target, roll))

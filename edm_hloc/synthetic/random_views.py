"""Random cameras for a scene: a first view and candidates for a second one that overlaps it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
from edm_hloc.synthetic.covisibility import pair_overlap
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.shapes import rotation

CANDIDATES = 5
"""Second cameras that are tried with each first one."""
LOW_RESOLUTION = 24
"""Longer side, in pixels, of the depth maps from which the overlap is measured."""


@dataclass(frozen=True)
class Standpoints:
    """Where the photos of n scenes are taken from. All in metres, z up.

    Attributes:
        eye: (n, 3) centre of the first camera.
        anchor: (n, 3) the point it looks at.
        camera_low: (n, 3) lower corner of the bounding box that camera centres are kept in.
        camera_high: (n, 3) its upper corner.
    """

    eye: Tensor
    anchor: Tensor
    camera_low: Tensor
    camera_high: Tensor


def candidate_cameras(
    points: Standpoints, rng: Random, count: int, difficulty: float, height: int, width: int
) -> Cameras:
    """Draw a first camera for each scene and candidates for a second one.

    Args:
        points: where the cameras of n scenes may be.
        rng: the random numbers.
        count: of candidates; they move away from the first camera step by step, the last the most.
        difficulty: in [0, 1]; widens baselines and changes of scale, roll and focal length.
        height, width: of the images, in pixels.

    Returns:
        (n, 1 + count) cameras, the first cameras first.
    """
    n = len(points.eye)
    views = count + 1
    span = max(height, width)
    step = torch.linspace(0, 1, views, device=rng.device)  # 0 is the first camera itself

    # Move around the anchor, and towards it or away from it.
    offset = (points.eye - points.anchor)[:, None]
    most = 0.35 + 0.85 * difficulty
    angles = rng.uniform(n, views, 3, low=0.5) * rng.sign(n, views, 3) * step[:, None] * most
    angles[..., 0] *= 0.35
    angles[..., 1] *= 0.35
    scale = 1.3 + 1.5 * difficulty
    closer = (rng.uniform(n, views, low=-1) * step * math.log(scale)).exp()
    moved = (rotation(angles) @ offset[..., None])[..., 0] * closer[..., None]
    centre = points.anchor[:, None] + moved
    centre = centre.clamp(points.camera_low[:, None], points.camera_high[:, None])
    distance = offset.norm(dim=-1, keepdim=True)
    target = points.anchor[:, None] + rng.normal(n, views, 3) * distance * (
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


def usual_overlap(difficulty: float) -> tuple[float, float]:
    """Smallest and largest overlap of a pair, at a difficulty in [0, 1]."""
    return 0.45 - 0.37 * difficulty, 0.95


def low_resolution(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the depth maps that tell the overlap of images of this size."""
    shrink = LOW_RESOLUTION / max(height, width)
    return max(round(height * shrink), 8), max(round(width * shrink), 8)


def choose_second(
    depth: Tensor, cameras: Cameras, overlap: tuple[float, float], rng: Random, seen: float = 0.6
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one of the candidates for the second camera, by depth maps of low resolution.

    Args:
        depth: (n, 1 + candidates, H, W), 0 where there is nothing.
        cameras: (n, 1 + candidates) of these depth maps, the first cameras first.
        overlap: smallest and largest overlap (see `pair_overlap`).
        rng: the random numbers.
        seen: share of the pixels of either view that must see something.

    Returns:
        Which scenes have a candidate that overlaps as asked (n,), the chosen view of each (n,),
        at least 1, and its overlap with the first (n,).
    """
    share = pair_overlap(depth, cameras)
    least, most = overlap
    usable = _well_placed(depth, seen)
    good = usable[:, :1] & usable[:, 1:] & (share >= least) & (share <= most)
    # One of the good candidates, with equal probability.
    choice = (rng.uniform(*share.shape) * good).argmax(1)
    return good.any(1), choice + 1, share.gather(1, choice[:, None])[:, 0]


def _well_placed(depth: Tensor, least: float) -> Tensor:
    """Which views (B, V) are usable: enough of them is no sky, and less than 8 % is very close.

    Very close is nearer than a fifth of the median depth.

    Args:
        depth: (B, V, H, W), 0 for the sky.
        least: share of the pixels that must see something.
    """
    flat = depth.flatten(2)
    visible = flat > 0
    middle = flat.masked_fill(~visible, torch.nan).nanmedian(2, keepdim=True).values
    close = (visible & (flat < 0.2 * middle)).float().mean(2)
    return (visible.float().mean(2) > least) & (close < 0.08)

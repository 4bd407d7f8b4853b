"""Parts that random scenes have in common: ground, buildings, clutter, thin things."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.shapes import ShapesBuilder, rotation, turn_about_z

Region = tuple[Sequence[float], Sequence[float]]
"""Lower and upper corner (x, y, z) of an axis-aligned box, in metres."""


def add_ground(build: ShapesBuilder, rng: Random, reach: float, hills: int) -> None:
    """Add a square ground with gentle hills and, in most scenes, distant walls around it.

    Args:
        build: the scenes.
        rng: the random numbers.
        reach: half the side of the ground, in metres.
        hills: their number; each is present in half of the scenes.
    """
    n = build.batch
    ground, far = build.new_groups(2).split(1, 1)
    quad = rng.values(-reach, -reach, 0, 2 * reach, 0, 0, 0, 2 * reach, 0).view(3, 3)
    build.add_quads(quad.expand(n, 1, 3, 3), group=ground)
    flat = rng.between((0.08, 0.08, 0.03), (0.35, 0.35, 0.12), n, hills)
    flat[..., 2] *= flat[..., :2].mean(-1)
    place = rng.between((-0.7, 0.05, 0), (0.7, 0.7, 0), n, hills)
    place[..., 1] += 0.5 * flat[..., 1]
    place[..., 2] = -0.4 * flat[..., 2]
    present = rng.chance(n, hills, p=0.5)
    build.add_round(place * reach, torch.diag_embed(flat * reach), present, ground)
    side = torch.arange(4, device=rng.device) * (math.pi / 2)
    turn = turn_about_z(side + rng.uniform(n, 4, low=-0.2, high=0.2))
    high = reach * rng.uniform(n, 4, low=0.1, high=0.5)
    local = torch.stack([torch.zeros_like(high), torch.full_like(high, 0.9 * reach), high / 2], -1)
    size = torch.stack([torch.full_like(high, 2 * reach), high], -1)
    build.add_panels((turn @ local[..., None])[..., 0], size, turn, rng.chance(n, 1, p=0.7), far)


def add_buildings(
    build: ShapesBuilder,
    rng: Random,
    region: Region,
    count: int,
    hole: float = 0.0,
) -> None:
    """Add houses, half of them with gable roofs.

    Args:
        build: the scenes.
        rng: the random numbers.
        region: of their centres; they stand on z = 0.
        count: their number; each is present in three quarters of the scenes.
        hole: radius about the origin, in metres, that is kept free of houses.
    """
    n = build.batch
    place = rng.between(*region, n, count)
    size = rng.log_uniform(n, count, 3, low=3, high=14)
    size[..., 2] = rng.log_uniform(n, count, low=2.5, high=16)
    place[..., 2] = size[..., 2] / 2
    away = place[..., :2].norm(dim=-1) - size[..., :2].amax(-1) * 0.7 > hole
    present = rng.chance(n, count, p=0.75) & away
    turn = random_turns(rng, n, count, 1.6)
    build.add_boxes(place, size, turn, present)
    # The roof is the upper half of a box that stands on one of its edges.
    place = place.clone()
    place[..., 2] = size[..., 2]
    edge = size[..., 1] * 0.75
    size = torch.stack([size[..., 0] * 1.05, edge, edge], -1)
    lean = rotation(rng.values(math.pi / 4, 0, 0))
    present = present & rng.chance(n, count, p=0.5)
    build.add_boxes(place, size, turn @ lean, present, faces=(0, 2, 4, 5))


def add_bosses(
    build: ShapesBuilder,
    rng: Random,
    region: Region,
    count: int,
    group: Tensor,
) -> None:
    """Add up to `count` ellipsoids centred in a region, of the material of the surface there."""
    n = build.batch
    place = rng.between(*region, n, count)
    radii = rng.log_uniform(n, count, 3, low=0.1, high=1)
    present = rng.chance(n, count, p=rng.uniform(n, 1))
    build.add_round(place, torch.diag_embed(radii), present, group)


def add_clutter(
    build: ShapesBuilder,
    rng: Random,
    region: Region,
    boxes: int,
    balls: int,
    scale: float,
) -> None:
    """Add loose boxes and ellipsoids.

    Args:
        build: the scenes.
        rng: the random numbers.
        region: of their centres.
        boxes: largest number of boxes.
        balls: largest number of ellipsoids.
        scale: typical size, in metres.
    """
    n = build.batch
    share = rng.uniform(n, 1)
    size = rng.log_uniform(n, boxes, 3, low=0.3 * scale, high=1.8 * scale)
    turn = rotation(rng.normal(n, boxes, 3) * rng.uniform(n, 1, 1))
    place = rng.between(*region, n, boxes)
    build.add_boxes(place, size, turn, rng.chance(n, boxes, p=share), faces=range(6))
    radii = rng.log_uniform(n, balls, 3, low=0.25 * scale, high=1.1 * scale)
    turn = rotation(rng.uniform(n, balls, 3, low=-3, high=3))
    place = rng.between(*region, n, balls)
    build.add_round(place, turn * radii[..., None, :], rng.chance(n, balls, p=share))


def add_thin_structures(
    build: ShapesBuilder,
    rng: Random,
    region: Region,
    poles: int,
    bars: int,
) -> None:
    """Add thin structures: in some scenes poles (cylinders), in some a fence of flat bars.

    Args:
        build: the scenes.
        rng: the random numbers.
        region: they stand on its bottom and scale with its height.
        poles: largest number of poles.
        bars: of the fence.
    """
    n = build.batch
    low, high = region
    room = high[2] - low[2]
    place = rng.between(*region, n, poles)
    half = rng.uniform(n, poles, low=0.15, high=0.5) * room
    radius = rng.log_uniform(n, poles, low=0.003, high=0.03) * room
    place[..., 2] = low[2] + half
    lean = rotation(rng.normal(n, poles, 3) * 0.1)
    present = rng.chance(n, poles, p=0.7) & rng.chance(n, 1, p=0.35)
    axes = lean @ upright_cylinders(radius, half)
    build.add_round(place, axes, present, build.new_groups(1), cylinder=True)

    pitch = rng.log_uniform(n, 1, low=0.06, high=0.3) * room
    x = (torch.arange(bars, device=rng.device) - (bars - 1) / 2) * pitch
    tall = (rng.uniform(n, 1, low=0.3, high=0.9) * room).expand(n, bars)
    turn = random_turns(rng, n, 1, 0.7).expand(n, bars, 3, 3)
    local = torch.stack([x, torch.zeros_like(x), tall / 2], -1)
    foot = rng.between((low[0], low[1], low[2]), (high[0], high[1], low[2]), n, 1)
    size = torch.stack([(pitch * rng.uniform(n, 1, low=0.08, high=0.4)).expand(n, bars), tall], -1)
    place = foot + (turn @ local[..., None])[..., 0]
    build.add_panels(place, size, turn, rng.chance(n, 1, p=0.25), build.new_groups(1))


def upright_cylinders(radius: Tensor, half_height: Tensor) -> Tensor:
    """(..., 3, 3) half axes of cylinders, the second one up, as `ShapesBuilder.add_round` takes."""
    axes = torch.zeros(*radius.shape, 3, 3, device=radius.device)
    axes[..., 0, 0] = radius
    axes[..., 2, 1] = half_height
    axes[..., 1, 2] = radius
    return axes


def random_turns(rng: Random, n: int, count: int, most: float) -> Tensor:
    """(n, count, 3, 3) rotations about z by at most ± `most` radians."""
    return turn_about_z(rng.uniform(n, count, low=-most, high=most))

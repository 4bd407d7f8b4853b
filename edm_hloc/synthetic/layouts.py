"""Random layouts of scenes: six kinds, from posters on a wall to towns, drawn in batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edm_hloc.synthetic.layout_parts import (
    Region,
    add_bosses,
    add_buildings,
    add_clutter,
    add_ground,
    add_thin_structures,
    random_turns,
    upright_cylinders,
)
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.random_views import Standpoints
from edm_hloc.synthetic.shapes import Shapes, ShapesBuilder, box_quads, rotation, turn_about_z


@dataclass(frozen=True)
class Layout(Standpoints):
    """Geometry of n scenes and where their photos are taken from. All in metres, z up.

    Attributes:
        shapes: the n scenes.
    """

    shapes: Shapes


def posters(rng: Random, n: int) -> Layout:
    """Tilted planes, boxes and ellipsoids at many depths in front of a background plane."""
    build = ShapesBuilder(n, rng.device)
    tilt = rotation(rng.uniform(n, 1, 3, low=-0.35, high=0.35))
    build.add_panels(rng.zeros(n, 1, 3), rng.values(40, 28).expand(n, 1, 2), tilt)
    count = 14
    size = rng.log_uniform(n, count, 1, low=0.5, high=5)
    size = size * rng.log_uniform(n, count, 2, low=0.7, high=1.4)
    place = rng.between((-7, 0.1, -5), (7, 1, 5), n, count)
    place[..., 1] = -6 * place[..., 1].square()
    turn = rotation(rng.normal(n, count, 3) * rng.uniform(n, 1, 1, high=0.6))
    build.add_panels(place, size, turn, rng.chance(n, count, p=rng.uniform(n, 1, low=0.2)))
    add_clutter(build, rng, ((-5, -4, -4), (5, -0.5, 4)), 4, 4, 1.0)
    add_thin_structures(build, rng, ((-5, -6, -5), (5, -3, 5)), 5, 10)
    eye = rng.between((-4, -14, -3), (4, -6, 3), n)
    anchor = rng.between((-3, -2.5, -2), (3, 0, 2), n)
    return _layout(rng, build, eye, anchor, ((-12, -18, -9), (12, -4.5, 9)))


def masonry(rng: Random, n: int) -> Layout:
    """A rough wall of stones that protrude by different lengths, with ellipsoids sunk into it."""
    build = ShapesBuilder(n, rng.device)
    wall, ground, *kinds = build.new_groups(5).split(1, 1)
    back = rotation(rng.zeros(n, 1, 3))
    build.add_panels(rng.zeros(n, 1, 3), rng.values(40, 28).expand(n, 1, 2), back, group=wall)
    low = -rng.uniform(n, 1, low=2, high=4)
    quad = rng.zeros(n, 1, 3, 3)
    quad[:, 0, 0] = rng.values(-20, -40, 0)
    quad[:, 0, 0, 2:] = low
    quad[:, 0, 1, 0] = quad[:, 0, 2, 1] = 40
    build.add_quads(quad, rng.chance(n, 1, p=0.7), ground)
    columns, rows = 7, 5
    column = torch.arange(columns, device=rng.device).repeat(rows) - (columns - 1) / 2
    row = torch.arange(rows, device=rng.device).repeat_interleave(columns)
    count = columns * rows
    pitch = rng.uniform(n, 1, 2, low=0.9, high=1.8)
    middle = rng.zeros(n, count, 3)
    shift = rng.uniform(n, rows, low=-0.5, high=0.5)[
        :, row
    ]  # so that the joints of neighbouring rows are offset
    middle[..., 0] = (column + shift) * pitch[..., 0]
    middle[..., 2] = (row + 0.5) * pitch[..., 1] + low
    out = rng.log_uniform(n, 1, low=0.1, high=1) * rng.uniform(n, count)
    middle[..., 1] = -out / 2
    gap = rng.uniform(n, 1, low=0.75, high=1.02)[..., None]
    size = torch.cat([pitch * gap * rng.uniform(n, count, 2, low=0.85), out[..., None]], 2)
    tilt = rotation(rng.normal(n, count, 3) * rng.uniform(n, 1, 1, high=0.12))
    kind = torch.cat(kinds, 1).gather(1, rng.integers(n, count, low=0, high=3))
    build.add_boxes(
        middle, size[..., [0, 2, 1]], tilt, rng.chance(n, count, p=0.9), kind, (0, 1, 2, 4, 5)
    )
    add_bosses(build, rng, ((-5, -0.3, -3), (5, 0, 4)), 10, wall)
    add_clutter(build, rng, ((-4, -3, -2.5), (4, -1, 2)), 2, 3, 0.7)
    add_thin_structures(build, rng, ((-5, -5, -3), (5, -2.5, 4)), 3, 6)
    eye = rng.between((-4, -9, -1.5), (4, -3.5, 2.5), n)
    anchor = rng.between((-2.5, -0.6, -1.5), (2.5, 0, 2), n)
    return _layout(rng, build, eye, anchor, ((-9, -14, -1.8), (9, -2.4, 7)))


def facade(rng: Random, n: int) -> Layout:
    """The front of a building with repeated bays, ledges, steps and columns, among others."""
    build = ShapesBuilder(n, rng.device)
    add_ground(build, rng, 60, 2)
    width = rng.uniform(n, low=8, high=22)
    height = rng.uniform(n, low=5, high=14)
    bays = rng.integers(n, low=2, high=8).float()
    floors = rng.integers(n, low=1, high=5).float()
    depth = rng.uniform(n, low=4, high=12)
    wall, stone = build.new_groups(2).split(1, 1)
    body = torch.stack([width, depth, height], -1)[:, None]
    place = torch.stack([torch.zeros_like(width), depth / 2, height / 2], -1)[:, None]
    upright = torch.eye(3, device=rng.device).expand(n, 1, 3, 3)
    build.add_boxes(place, body, upright, group=wall, faces=(2,))
    build.add_boxes(place, body, upright, faces=(0, 4, 5))

    # Pilasters and ledges in front of the wall turn the bays into niches; steps lead up to it.
    relief = rng.log_uniform(n, low=0.08, high=0.9)
    sizes, middles, present = [], [], []
    for along, steps, most in ((0, bays, 8), (2, floors, 5)):
        number = torch.arange(most, device=rng.device)
        size = torch.stack([width, relief, height], -1)[:, None].repeat(1, most, 1)
        pitch = (size[:, :1, along] / steps[:, None]).expand(n, most)
        size[..., along] = pitch * rng.uniform(n, 1, low=0.08, high=0.4)
        size[..., 1] *= rng.uniform(n, 1, low=0.7, high=1.3)
        middle = torch.stack([torch.zeros_like(pitch), -size[..., 1] / 2, size[..., 2] / 2], -1)
        middle[..., along] = pitch * number - (width[:, None] / 2 if along == 0 else 0)
        sizes.append(size)
        middles.append(middle)
        present.append((number <= steps[:, None]) & rng.chance(n, 1, p=0.7))
    number = torch.arange(4, device=rng.device)
    tread, rise = rng.uniform(2, n, 1, low=0.2, high=0.5)
    run = relief[:, None] + (4 - number) * tread
    size = torch.stack([width[:, None].expand(n, 4), run, (number + 1) * rise], -1)
    size[..., 0] *= rng.uniform(n, 1, low=0.3, high=1.1)
    middle = torch.stack([torch.zeros_like(run), -run / 2, size[..., 2] / 2], -1)
    sizes.append(size)
    middles.append(middle)
    present.append(rng.chance(n, 1, p=0.5).expand(n, 4))
    boxes = torch.cat(middles, 1), torch.cat(sizes, 1)
    build.add_boxes(*boxes, upright.expand(n, 17, 3, 3), torch.cat(present, 1), stone)

    # Columns of a portico.
    front = rng.uniform(n, 1, low=0.5, high=3).expand(n, 6)
    half = (height[:, None] * rng.uniform(n, 1, low=0.2, high=0.55)).expand(n, 6)
    x = (torch.arange(6, device=rng.device) - 2.5) * (width / 6)[:, None]
    radius = rng.log_uniform(n, 1, low=0.1, high=0.5).expand(n, 6)
    standing = rng.chance(n, 1, p=0.4) & rng.chance(n, 6, p=0.9)
    build.add_round(
        torch.stack([x, -front, half], -1),
        upright_cylinders(radius, half),
        standing,
        stone,
        cylinder=True,
    )
    add_buildings(build, rng, ((-40, 5, 0), (40, 35, 0)), 5)
    side = rng.values(10, 10, 9) * rng.uniform(n, 2, 3, low=0.5, high=1.5)
    x = (width[:, None] + side[..., 0]) / 2 + rng.uniform(n, 2, high=5)
    place = torch.stack(
        [x * rng.values(-1, 1), rng.uniform(n, 2, low=-6, high=6), side[..., 2] / 2], -1
    )
    build.add_boxes(place, side, random_turns(rng, n, 2, 0.4), rng.chance(n, 2, p=0.7))
    add_clutter(build, rng, ((-7, -6, 0), (7, -1, 1.5)), 3, 3, 0.8)
    add_thin_structures(build, rng, ((-8, -8, 0), (8, -3, 4)), 4, 8)
    eye = rng.between((-10, -20, 1.2), (10, -7, 4), n)
    anchor = rng.between((-0.35, -0.5, 0.15), (0.35, 0, 0.6), n)
    anchor = anchor * torch.stack([width, torch.ones_like(width), height], -1)
    return _layout(rng, build, eye, anchor, ((-30, -30, 0.6), (30, -4, 10)))


def room(rng: Random, n: int) -> Layout:
    """The inside of a box with pictures, shelves, furniture, poles and round objects."""
    build = ShapesBuilder(n, rng.device)
    size = rng.between((4, 4, 2.4), (10, 10, 4.5), n)
    middle = rng.zeros(n, 1, 3)
    middle[..., 2] = size[:, None, 2] / 2
    floor, ceiling, walls = build.new_groups(3).split(1, 1)
    groups = torch.cat([ceiling, floor, walls, walls, walls, walls], 1)
    upright = torch.eye(3, device=rng.device).expand(n, 1, 3, 3)
    build.add_quads(box_quads(middle, size[:, None], upright)[:, 0], group=groups)
    # Pictures, doors and shelves are flat boxes on the walls.
    count = 10
    wall = rng.integers(n, count, low=0, high=4)
    across = torch.where(wall % 2 == 0, size[:, None, 1], size[:, None, 0])
    run = torch.where(wall % 2 == 0, size[:, None, 0], size[:, None, 1])
    panel = rng.log_uniform(n, count, 3, low=0.25, high=2.2)
    panel[..., 1] = rng.log_uniform(n, count, low=0.02, high=0.5)
    panel[..., 0] = torch.minimum(panel[..., 0], run * 0.6)
    panel[..., 2] = torch.minimum(panel[..., 2], size[:, None, 2] * 0.7)
    along = (run - panel[..., 0]) * rng.uniform(n, count, low=-0.5, high=0.5)
    up = panel[..., 2] / 2 + (size[:, None, 2] - panel[..., 2]) * rng.uniform(n, count)
    turn = turn_about_z(wall * (math.pi / 2))
    local = torch.stack([along, (panel[..., 1] - across) / 2, up], -1)
    place = (turn @ local[..., None])[..., 0]
    build.add_boxes(place, panel, turn, rng.chance(n, count, p=0.75), faces=(0, 1, 3, 4, 5))
    count = 6
    furniture = rng.log_uniform(n, count, 3, low=0.3, high=1.6)
    place = rng.between((-0.4, -0.4, 0), (0.4, 0.4, 0), n, count) * size[:, None]
    place[..., 2] = furniture[..., 2] / 2
    build.add_boxes(place, furniture, random_turns(rng, n, count, 1.6), rng.chance(n, count, p=0.6))
    add_clutter(build, rng, ((-2, -2, 0.2), (2, 2, 1.6)), 2, 4, 0.5)
    add_thin_structures(build, rng, ((-2, -2, 0), (2, 2, 2)), 3, 2)
    low = size * rng.values(-0.46, -0.46, 0.12)
    high = size * rng.values(0.46, 0.46, 0.85)
    eye = low + (high - low) * rng.uniform(n, 3)
    anchor = size * rng.values(0, 0, 0.5) - eye * rng.values(1, 1, 0)
    anchor = anchor * rng.uniform(n, 3, low=0.3, high=1.1)
    return Layout(eye, anchor, low, high, build.build())


def objects(rng: Random, n: int) -> Layout:
    """A pile of boxes and ellipsoids on the ground, photographed from all around."""
    build = ShapesBuilder(n, rng.device)
    add_ground(build, rng, 25, 2)
    count = 9
    lift = rng.uniform(n, count, 1) ** 1.5
    size = rng.log_uniform(n, count, 3, low=0.4, high=1.8)
    xy = rng.normal(n, count, 2) * (1.1 - lift) * 1.1
    place = torch.cat([xy, lift * 2.5 + size[..., 2:] / 2], -1)
    build.add_boxes(place, size, random_turns(rng, n, count, 1.6), rng.chance(n, count, p=0.6))
    count = 10
    lift = rng.uniform(n, count, 1)
    place = torch.cat([rng.normal(n, count, 2) * (1.2 - lift), lift * 3], -1)
    radii = rng.log_uniform(n, count, 3, low=0.2, high=0.9)
    turn = rotation(rng.uniform(n, count, 3, low=-3, high=3))
    build.add_round(place, turn * radii[..., None, :], rng.chance(n, count, p=0.7))
    add_buildings(build, rng, ((-25, -25, 0), (25, 25, 0)), 10, hole=9)
    add_thin_structures(build, rng, ((-4, -4, 0), (4, 4, 3)), 3, 3)
    angle = rng.uniform(n, high=2 * math.pi)
    distance = rng.log_uniform(n, low=4, high=8)
    up = rng.uniform(n, low=0.6, high=4)
    eye = torch.stack([distance * angle.cos(), distance * angle.sin(), up], -1)
    anchor = rng.between((-0.8, -0.8, 0.5), (0.8, 0.8, 2), n)
    return _layout(rng, build, eye, anchor, ((-9, -9, 0.4), (9, 9, 6)))


def town(rng: Random, n: int) -> Layout:
    """Houses on a large ground with hills, photographed from the street or from the air."""
    build = ShapesBuilder(n, rng.device)
    add_ground(build, rng, 150, 6)
    add_buildings(build, rng, ((-45, -30, 0), (45, 60, 0)), 14)
    add_clutter(build, rng, ((-20, -20, 0), (20, 20, 3)), 3, 6, 3.0)
    add_thin_structures(build, rng, ((-15, -25, 0), (15, 0, 8)), 4, 8)
    flies = rng.chance(n, 1, p=0.5)
    street = rng.between((-20, -45, 1.5), (20, -32, 6), n)
    air = rng.between((-25, -45, 18), (25, -10, 50), n)
    anchor = rng.between((-12, -15, 0), (12, 15, 7), n)
    scene = _layout(
        rng, build, torch.where(flies, air, street), anchor, ((-70, -70, 1), (70, -8, 70))
    )
    scene.camera_low[:, 2:] = torch.where(flies, 14.0, 1.0)
    return scene


LAYOUTS: dict[str, Callable[[Random, int], Layout]] = {
    "posters": posters,
    "masonry": masonry,
    "facade": facade,
    "room": room,
    "objects": objects,
    "town": town,
}
"""Functions that draw n layouts of a kind, by the name of the kind."""


def _layout(
    rng: Random,
    build: ShapesBuilder,
    eye: Tensor,
    anchor: Tensor,
    region: Region,
) -> Layout:
    """The layout of everything added, with one region for the cameras of all scenes."""
    low, high = (rng.values(*corner).repeat(build.batch, 1) for corner in region)
    return Layout(eye, anchor, low, high, build.build())

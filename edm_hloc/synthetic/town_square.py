"""A small town square: its geometry, colours and textures, the cameras around it, its photos."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edm_hloc.synthetic.appearance import Appearance, Lights, Materials
from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
from edm_hloc.synthetic.painted_textures import dead_leaves, facade
from edm_hloc.synthetic.photometric_effects import noise
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.renderer.render import render
from edm_hloc.synthetic.shapes import Shapes, ShapesBuilder, rotation
from edm_hloc.synthetic.textures import TextureBank

TEXTURE_SIZE = 1024
"""Side of the painted textures, in texels."""

_SKY = -1  # the group of the sky


@dataclass(frozen=True)
class Paint:
    """A coloured material.

    Attributes:
        texture: number of the texture.
        density: texels per metre; None: the texture spans the longer side of each face.
        colour: (red, green, blue) in [0, 1].
        contrast: gain of the texture.
    """

    texture: int
    density: float | None
    colour: tuple[float, float, float]
    contrast: float = 0.75


@dataclass(frozen=True)
class TownSquare:
    """Houses, one with steps and columns, a tower, a statue, trees and crates on the ground.

    Attributes:
        shapes: geometry, a batch of one scene.
        paints: materials by group of primitives.
        textures: of the paints.
    """

    shapes: Shapes
    paints: dict[int, Paint]
    textures: TextureBank

    @classmethod
    def build(cls, seed: int, textures: TextureBank | None = None) -> TownSquare:
        """The square with the trees and, unless textures are given, the paintings of a seed."""
        shapes, paints = _build_shapes(seed)
        return cls(shapes, paints, _paint_textures(seed) if textures is None else textures)

    def photograph(
        self, camera: Cameras, size: tuple[int, int], rng: Random
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render a photo with random exposure and noise.

        Args:
            camera: a batch of one view.
            size: (width, height) in pixels.
            rng: the random numbers.

        Returns:
            (H, W, 3) uint8 in OpenCV's order of colours, and its depth (H, W) float32 in metres, 0
            for the sky.
        """
        width, height = size
        sun = torch.nn.functional.normalize(torch.tensor([[[-0.5, -0.7, 0.8]]]), dim=-1)
        exposure = 1 + 0.06 * float(rng.normal(1))
        ambient, diffuse = (torch.full((1, 1), value * exposure) for value in (0.55, 0.6))
        lights = Lights(sun, ambient, diffuse)
        channels = []
        for channel in (2, 1, 0):
            appearance = Appearance(self._materials(channel), lights, self.textures)
            out = render(self.shapes, appearance, camera, height, width)
            photons, read_noise = torch.tensor([8000.0]), torch.tensor([0.004])
            channels.append(noise(out.image[0], rng, photons, read_noise)[0])
        photo = torch.stack(channels, -1).clamp(0, 1).mul(255).round().to(torch.uint8)
        return photo.numpy(), out.depth[0, 0].numpy()

    def _materials(self, channel: int) -> Materials:
        """Materials for one colour channel (0 is red); the sky comes last."""
        shapes, textures = self.shapes, self.textures
        length = torch.cat([shapes.texture_lengths[0], torch.ones(1, 2)])
        groups = [*shapes.quad_group[0].tolist(), *shapes.round_group[0].tolist(), _SKY]
        rows = []
        for number, (group, (u, v)) in enumerate(zip(groups, length.tolist(), strict=True)):
            paint = self.paints[group]
            whole = paint.density is None
            scale = textures.size / max(u, v) if paint.density is None else paint.density
            colour = paint.colour[channel]
            sky = group == _SKY
            rows.append(
                {
                    "texture": paint.texture % len(textures),
                    "x": 0.0 if whole else 97.0 * number,
                    "y": 0.0 if whole else 61.0 * number,
                    "width": u * scale,
                    "height": v * scale,
                    "gain": 0.25 if sky else paint.contrast * colour,
                    "offset": colour if sky else 0.62 * colour,
                    "blur": 4.0 if sky else 0.0,
                }
            )
        return Materials(**{name: torch.tensor([[row[name] for row in rows]]) for name in rows[0]})


def arc_of_cameras(views: int, height: int, width: int, rng: Random) -> Cameras:
    """Cameras along an arc in front of the square, at different heights, that look at its middle.

    Args:
        views: V.
        height, width: of the images, in pixels; the focal length is 0.95 times the width.
        rng: the random numbers.

    Returns:
        (1, V) cameras.
    """
    angle = torch.linspace(-0.75, 0.75, views) + 0.04 * rng.normal(views)
    distance = rng.uniform(views, low=14, high=18)
    up = rng.uniform(views, low=1.6, high=5)
    centre = torch.stack([distance * angle.sin(), -distance * angle.cos(), up], -1)
    target = torch.tensor([0.0, 0.5, 2.8]) + 0.35 * rng.normal(views, 3)
    focal = torch.full((views,), 0.95 * width)
    T = look_at(centre, target, 0.03 * rng.normal(views))
    return Cameras(intrinsics(focal, height, width)[None], T[None])


def _paint_textures(seed: int) -> TextureBank:
    """Textures 0 to 3 are façades, 4 to 7 dead leaves."""
    rng = np.random.default_rng(seed)
    painted = [facade(TEXTURE_SIZE, rng) for _ in range(4)]
    painted += [dead_leaves(TEXTURE_SIZE, rng) for _ in range(4)]
    return TextureBank(torch.from_numpy(np.stack(painted)))


def _build_shapes(seed: int) -> tuple[Shapes, dict[int, Paint]]:
    """The geometry, and the paint of each group of primitives; the seed is of the trees."""
    build = ShapesBuilder(1, torch.device("cpu"))
    paints: dict[int, Paint] = {_SKY: Paint(7, None, (0.62, 0.74, 0.9))}
    stone, plaster, brick = (0.86, 0.82, 0.72), (0.92, 0.85, 0.68), (0.8, 0.6, 0.5)
    roof, leaf, earth, wood = (
        (0.62, 0.4, 0.34),
        (0.5, 0.68, 0.38),
        (0.72, 0.7, 0.64),
        (0.7, 0.55, 0.4),
    )

    def paint(
        texture: int,
        density: float | None,
        colour: tuple[float, float, float],
        contrast: float = 0.75,
    ) -> Tensor:
        group = build.new_groups(1)
        paints[int(group)] = Paint(texture, density, colour, contrast)
        return group

    def box(
        place: tuple[float, float, float],
        size: tuple[float, float, float],
        group: Tensor,
        turn: float = 0.0,
        lean: float = 0.0,
        faces: tuple[int, ...] = (0, 2, 3, 4, 5),
    ) -> None:
        """Add a box standing on `place`, rotated about its own x axis and then about z."""
        centre = torch.tensor([[[place[0], place[1], place[2] + size[2] / 2]]])
        angles = torch.tensor([[[lean, 0.0, turn]]])
        build.add_boxes(centre, torch.tensor([[size]]), rotation(angles), group=group, faces=faces)

    def house(
        place: tuple[float, float, float],
        size: tuple[float, float, float],
        texture: int,
        colour: tuple[float, float, float],
        turn: float = 0.0,
    ) -> None:
        """Add walls with a façade and a gable roof, half of a box that stands on its edge."""
        box(place, size, paint(texture, None, colour, 1.2), turn, faces=(2, 4, 5))
        box(place, size, paint(4, 60, colour), turn, faces=(0, 3))
        ridge = size[1] / 2**0.5 * 1.06
        top = (place[0], place[1], place[2] + size[2] - ridge / 2)
        box(top, (size[0] * 1.04, ridge, ridge), paint(5, 70, roof), turn, math.pi / 4)

    def round_(
        place: tuple[float, float, float],
        radii: tuple[float, float, float],
        group: Tensor,
        cylinder: bool = False,
    ) -> None:
        """Add an ellipsoid about `place`, or an upright cylinder of half height radii[1]."""
        axes = torch.diag(torch.tensor(radii))
        if cylinder:
            axes = axes[:, [0, 1, 2]][[0, 2, 1]]
        build.add_round(torch.tensor([[place]]), axes[None, None], group=group, cylinder=cylinder)

    ground = torch.tensor([[[-40.0, -40, 0], [80, 0, 0], [0, 80, 0]]])
    build.add_quads(ground[None, 0:1].view(1, 1, 3, 3), group=paint(4, 55, earth))
    house((0, 4.0, 0), (9, 5, 5), 0, plaster)
    house((-8.5, 2.0, 0), (5.5, 4.5, 4), 1, stone, 0.45)
    house((11.0, 7.5, 0), (6, 5, 4.5), 2, brick, -0.5)
    box((6.0, 2.6, 0), (2.8, 2.8, 9), paint(3, None, stone, 1.2))
    box((6.0, 2.6, 9), (2.1, 2.1, 1.6), paint(6, 80, stone), 0.5)
    box((0, 14, 0), (70, 1, 3.5), paint(5, 40, stone), faces=(0, 2))

    pale = paint(6, 110, (0.9, 0.88, 0.84))
    for step in range(3):  # before the door
        box((0, 0.9 - 0.25 * step, 0.45 - 0.15 * (step + 1)), (4.4 + 0.5 * step, 1.2, 0.15), pale)
    for x in (-1.9, -0.65, 0.65, 1.9):
        round_((x, 0.75, 1.75), (0.19, 1.3, 0.19), pale, cylinder=True)
    box((0, 0.8, 3.05), (4.6, 0.9, 0.4), pale)

    statue = paint(7, 130, (0.72, 0.76, 0.72))
    box((-2.9, -3.2, 0), (1.3, 1.3, 1.1), pale, 0.3)
    for place, radii in (
        ((-2.9, -3.2, 1.75), (0.38, 0.32, 0.75)),
        ((-2.9, -3.25, 2.7), (0.24, 0.25, 0.3)),
        ((-3.25, -3.35, 2.0), (0.16, 0.4, 0.16)),
        ((-2.55, -3.3, 2.05), (0.15, 0.18, 0.5)),
    ):
        round_(place, radii, statue)

    crate = paint(6, 120, wood)
    for place, side, turn in (
        ((3.1, -2.6, 0), 1.0, 0.4),
        ((4.2, -2.0, 0), 0.8, -0.2),
        ((3.3, -2.5, 1.0), 0.6, 1.0),
        ((-6.2, -1.5, 0), 0.9, 0.7),
    ):
        box(place, (side, side, side), crate, turn)
    round_((1.2, -4.4, 0.35), (0.85, 0.35, 0.85), pale, cylinder=True)
    round_((1.2, -4.4, 0.62), (0.84, 0.84, 0.12), paint(7, 100, (0.6, 0.7, 0.76)))

    crown, bark = paint(5, 90, leaf), paint(6, 100, wood)
    rng = np.random.default_rng(seed)
    for x, y in ((-5.2, -2.6), (8.2, -0.8), (-12.5, -0.5)):
        round_((x, y, 0.9), (0.16, 1.0, 0.16), bark, cylinder=True)
        for _ in range(5):
            dx, dy, dz = rng.normal(0, 0.38, 3).tolist()
            rx, ry, rz = rng.uniform(0.5, 0.95, 3).tolist()
            round_((x + dx, y + dy, 2.6 + dz), (rx, ry, rz), crown)
    return build.build(), paints

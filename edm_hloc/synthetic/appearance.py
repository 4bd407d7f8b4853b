"""How scenes look: materials, lights and textures, and random ones for training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.shapes import Shapes
from edm_hloc.synthetic.textures import TextureBank


@dataclass(frozen=True)
class Materials:
    """Materials of B scenes: each attribute is (B, P + Q + 1), quads, round primitives, the sky.

    The grey value before the light is offset + gain · (texel - 0.5), with the texel in [0, 1].

    Attributes:
        texture: int64, number of the texture in the bank.
        x: column at u = v = 0, in texels of the texture's full resolution.
        y: row at u = v = 0, in texels.
        width: texels from u = 0 to u = 1; may be negative.
        height: texels from v = 0 to v = 1; may be negative.
        gain: contrast.
        offset: grey value of a mid-grey texel.
        blur: finest mip level that is used, ≥ 0; 0 is the texture's full resolution.
    """

    texture: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    gain: Tensor
    offset: Tensor
    blur: Tensor


@dataclass(frozen=True)
class Lights:
    """Light of each view: irradiance = ambient + diffuse · max(0, normal · direction).

    Surfaces are Lambertian and cast no shadows; the sky is not lit.

    Attributes:
        direction: (B, V, 3) unit vectors in the world, towards the sun.
        ambient: (B, V) light from all sides.
        diffuse: (B, V) light of the sun on a surface that faces it.
    """

    direction: Tensor
    ambient: Tensor
    diffuse: Tensor


@dataclass(frozen=True)
class Appearance:
    """All that the renderer needs beside shapes and cameras.

    Attributes:
        materials: of the B scenes.
        lights: of the B × V views.
        textures: what `materials.texture` numbers, on the same device.
    """

    materials: Materials
    lights: Lights
    textures: TextureBank


def random_materials(
    shapes: Shapes,
    span: Tensor,
    pixels: int,
    textures: TextureBank,
    rng: Random,
    difficulty: float,
) -> Materials:
    """Draw a material for each group of primitives, with about one texel per pixel near by.

    Args:
        shapes: B scenes.
        span: (B,) length in metres that fills the longer side of the view in the foreground.
        pixels: number of pixels along that side.
        textures: drawn by their weights.
        rng: the random numbers.
        difficulty: in [0, 1]; raises the share of weak textures, of low contrast or blurred, from
            3 % to 23 %.
    """
    n, quads = shapes.quad_present.shape
    rounds = shapes.round_present.shape[1]
    sky = quads + rounds
    group = torch.cat([shapes.quad_group, shapes.round_group], 1)
    groups = int(group.max()) + 2
    group = F.pad(group, (0, 1), value=groups - 1)

    length = F.pad(shapes.texture_lengths, (0, 0, 0, 1))

    def per_group(values: Tensor) -> Tensor:
        return values.gather(1, group)

    texels = rng.log_uniform(n, 1, low=max(250, 0.8 * pixels), high=max(800, 1.6 * pixels))
    density = texels / span[:, None]
    density = density * per_group(rng.log_uniform(n, groups, low=0.6, high=1.6))
    texture = torch.multinomial(
        textures.weights, n * groups, replacement=True, generator=rng.generator
    ).view(n, groups)
    weak = rng.chance(n, groups, p=0.03 + 0.2 * difficulty)
    gain = rng.log_uniform(n, groups, low=0.7, high=1.3)
    gain = torch.where(weak, rng.log_uniform(n, groups, low=0.1, high=0.4), gain)
    blur = torch.where(weak, rng.uniform(n, groups, low=0, high=3), 0.0)
    offset = rng.uniform(n, groups, low=0.4, high=0.75)
    gain, blur, offset = per_group(gain), per_group(blur), per_group(offset)
    width = length[..., 0] * density * rng.sign(n, sky + 1)
    height = length[..., 1] * density
    corner = rng.uniform(2, n, sky + 1) * textures.size
    width[:, sky] = height[:, sky] = textures.size
    gain[:, sky] = rng.uniform(n, low=0.05, high=0.5)
    offset[:, sky] = rng.uniform(n, low=0.55, high=0.95)
    blur[:, sky] = rng.uniform(n, low=2.5, high=6)
    return Materials(per_group(texture), corner[0], corner[1], width, height, gain, offset, blur)


def random_lights(rng: Random, scenes: int, views: int, difficulty: float) -> Lights:
    """Draw a sun for each scene; in some scenes each view has its own, as at another hour.

    Args:
        rng: the random numbers.
        scenes: B.
        views: V of each scene.
        difficulty: in [0, 1]; raises the share of scenes whose sun differs from view to view from
            30 % to 70 %.
    """
    first = rng.normal(scenes, 1, 3)
    other = rng.chance(scenes, 1, 1, p=0.3 + 0.4 * difficulty)
    direction = first + torch.where(other, 1.0, 0.05) * rng.normal(scenes, views, 3)
    direction[..., 2] = direction[..., 2].abs() + 0.2
    direction = F.normalize(direction, dim=-1)
    diffuse = rng.uniform(scenes, 1, low=0, high=0.8).expand(scenes, views)
    change = rng.uniform(scenes, views, low=0.2, high=1.2)
    diffuse = diffuse * torch.where(other[..., 0], change, 1.0)
    return Lights(direction, 1.05 - 0.7 * diffuse, diffuse)

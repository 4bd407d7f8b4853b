"""Random materials and light for scenes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.render import Lights
from edm_hloc.synthetic.scene import Materials, Random, Shapes
from edm_hloc.synthetic.textures import TextureBank


def random_materials(
    shapes: Shapes,
    span: Tensor,
    pixels: int,
    bank: TextureBank,
    rng: Random,
    difficulty: float,
) -> Materials:
    """Dress scenes: one texture per group, its scale such that about a photo spans the view.

    Args:
        span: (B,) length that spans the view near by.
        pixels: of the view's longer side.
        difficulty: how often textures are weak: of low contrast, or blurred.
    """
    n, quads = shapes.quad_present.shape
    rounds = shapes.round_present.shape[1]
    sky = quads + rounds
    group = torch.cat([shapes.quad_group, shapes.round_group], 1)
    groups = int(group.max()) + 2
    group = F.pad(group, (0, 1), value=groups - 1)

    length = shapes.quads[..., 1:, :].norm(dim=-1)
    # Round things: their window covers about half their girth.
    girth = 3 * shapes.round_axes.square().sum(-2).prod(-1) ** (1 / 6)
    length = torch.cat([length, girth[..., None].expand(-1, -1, 2)], 1)
    length = F.pad(length, (0, 0, 0, 1))

    def per_group(values: Tensor) -> Tensor:
        return values.gather(1, group)

    texels = rng.log_uniform(n, 1, low=max(250, 0.8 * pixels), high=max(800, 1.6 * pixels))
    density = texels / span[:, None]
    density = density * per_group(rng.log_uniform(n, groups, low=0.6, high=1.6))
    texture = torch.multinomial(
        bank.weights, n * groups, replacement=True, generator=rng.generator
    ).view(n, groups)
    weak = rng.chance(n, groups, p=0.03 + 0.2 * difficulty)
    gain = rng.log_uniform(n, groups, low=0.7, high=1.3)
    gain = torch.where(weak, rng.log_uniform(n, groups, low=0.1, high=0.4), gain)
    blur = torch.where(weak, rng.uniform(n, groups, low=0, high=3), 0.0)
    offset = rng.uniform(n, groups, low=0.4, high=0.75)
    gain, blur, offset = per_group(gain), per_group(blur), per_group(offset)
    width = length[..., 0] * density * rng.sign(n, sky + 1)
    height = length[..., 1] * density
    corner = rng.uniform(2, n, sky + 1) * bank.size
    width[:, sky] = height[:, sky] = bank.size
    gain[:, sky] = rng.uniform(n, low=0.05, high=0.5)
    offset[:, sky] = rng.uniform(n, low=0.55, high=0.95)
    blur[:, sky] = rng.uniform(n, low=2.5, high=6)
    return Materials(per_group(texture), corner[0], corner[1], width, height, gain, offset, blur)


def random_lights(rng: Random, n: int, views: int, difficulty: float) -> Lights:
    """Draw a sun per scene which moves between the views of some: another hour."""
    first = rng.normal(n, 1, 3)
    other = rng.chance(n, 1, 1, p=0.3 + 0.4 * difficulty)
    direction = first + torch.where(other, 1.0, 0.05) * rng.normal(n, views, 3)
    direction[..., 2] = direction[..., 2].abs() + 0.2
    direction = F.normalize(direction, dim=-1)
    diffuse = rng.uniform(n, 1, low=0, high=0.8).expand(n, views)
    diffuse = diffuse * torch.where(other[..., 0], rng.uniform(n, views, low=0.2, high=1.2), 1.0)
    return Lights(direction, 1.05 - 0.7 * diffuse, diffuse)

"""Simple scenes, cameras and materials for the tests of the renderer."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.appearance import Appearance, Lights, Materials
from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
from edm_hloc.synthetic.pairs import PairSampler
from edm_hloc.synthetic.relief_pairs import ReliefSampler
from edm_hloc.synthetic.renderer.render import Rendering, render
from edm_hloc.synthetic.shapes import Shapes
from edm_hloc.synthetic.textures import TextureBank

HEIGHT, WIDTH = 79, 117
CPU = torch.device("cpu")


def smooth_bank(count: int = 6, size: int = 128) -> TextureBank:
    """Random textures without detail finer than 8 texels."""
    noise = torch.randn(count, 1, size // 16, size // 16, generator=torch.manual_seed(0))
    smooth = F.interpolate(noise, size=(size, size), mode="bicubic")[:, 0]
    return TextureBank((smooth * 45 + 128).clamp(0, 255).to(torch.uint8))


def later_pairs(sampler: PairSampler | ReliefSampler) -> list[Tensor]:
    """All that a sampler draws of three pairs after two others."""
    sampler.sample(2, 40, 56)
    pairs = sampler.sample(3, 40, 56)
    return [getattr(pairs, field.name) for field in dataclasses.fields(pairs)]


def camera(focal: float = 90.0, roll: float = 0.3) -> Cameras:
    T = look_at(torch.tensor([0.3, -6.0, 1.2]), torch.tensor([0.1, 0.0, 0.4]), torch.tensor(roll))
    return Cameras(intrinsics(torch.tensor([[focal]]), HEIGHT, WIDTH), T[None, None])


def rays(cameras: Cameras, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, ...]:
    """The camera's centre (3,) and the rays (H, W, 3) of unit depth in the world, in float64."""
    K, T = cameras.K[0, 0].double().numpy(), cameras.cam_from_world[0, 0].double().numpy()
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    directions = pixels @ np.linalg.inv(K).T @ T[:3, :3]
    return -T[:3, :3].T @ T[:3, 3], directions


def plain(shapes: Shapes, **changes: float) -> Materials:
    """Materials that give all primitives texture 0, unchanged, with 64 texels along each edge."""
    shape = (len(shapes.quads), shapes.quads.shape[1] + shapes.round_centre.shape[1] + 1)
    values = {
        "texture": 0,
        "x": 0.0,
        "y": 0.0,
        "width": 64.0,
        "height": 64.0,
        "gain": 1.0,
        "offset": 0.5,
        "blur": 0.0,
    }
    return Materials(**{k: torch.full(shape, v) for k, v in (values | changes).items()})


def daylight(batch: int = 1, views: int = 1) -> Lights:
    up = torch.tensor([0.0, 0.0, 1.0]).expand(batch, views, 3)
    return Lights(up, torch.ones(batch, views), torch.zeros(batch, views))


def rendered(
    shapes: Shapes, materials: Materials, cameras: Cameras, textures: TextureBank, lights: Lights
) -> Rendering:
    """Images of HEIGHT × WIDTH."""
    return render(shapes, Appearance(materials, lights, textures), cameras, HEIGHT, WIDTH)


def bilinear(values: Tensor, xy: Tensor) -> Tensor:
    """Sample (B, H, W) at pixel positions (B, H, W, 2)."""
    size = torch.tensor([values.shape[2], values.shape[1]])
    grid = (xy.nan_to_num(-9.0) + 0.5) / size * 2 - 1
    return F.grid_sample(values[:, None], grid, align_corners=False)[:, 0]

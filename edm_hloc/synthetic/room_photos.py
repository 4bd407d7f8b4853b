"""Photos of a room whose surfaces each have a texture of their own, so that no two look alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edm_hloc.synthetic.appearance import Appearance, Lights, Materials, random_materials
from edm_hloc.synthetic.cameras import Cameras, intrinsics
from edm_hloc.synthetic.painted_textures import dead_leaves, facade
from edm_hloc.synthetic.photo_truth import PhotoTruth
from edm_hloc.synthetic.photometric_effects import noise
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.renderer.render import render
from edm_hloc.synthetic.shapes import Shapes
from edm_hloc.synthetic.textures import TextureBank

SURFACES = 6
"""Floor, ceiling and walls of a room."""
TEXTURE_SIZE = 1024
"""Side of the painted textures, in texels."""


@dataclass(frozen=True)
class RoomPhotographer:
    """Takes photos of one room, all with the same materials.

    Attributes:
        shapes: geometry, a batch of one scene.
        materials: of that scene.
        textures: those of the surfaces first.
        rng: the random numbers, of the noise.
    """

    shapes: Shapes
    materials: Materials
    textures: TextureBank
    rng: Random

    @classmethod
    def of(cls, shapes: Shapes, seed: int, rng: Random, size: tuple[int, int]) -> RoomPhotographer:
        """Paint textures and draw materials.

        Args:
            shapes: geometry, a batch of one scene.
            seed: of the textures.
            rng: the random numbers, of the materials and the noise.
            size: (width, height) of the photos, in pixels, which the textures' scale suits.
        """
        textures = _paint_textures(seed)
        span = torch.tensor([4.0])
        drawn = random_materials(shapes, span, max(size), textures, rng, difficulty=0.0)
        return cls(shapes, _unique_surfaces(drawn, shapes, textures), textures, rng)

    def photo(
        self, name: str, T: Tensor, focal: float, size: tuple[int, int], world: Tensor
    ) -> tuple[np.ndarray, PhotoTruth]:
        """Render a photo with noise.

        Args:
            name: of the photo.
            T: (4, 4) cam_from_room.
            focal: length in pixels.
            size: (width, height) in pixels.
            world: (4, 4) world_from_room.

        Returns:
            (H, W) uint8, and the truth in the world.
        """
        width, height = size
        camera = Cameras(intrinsics(torch.tensor([[focal]]), height, width), T[None, None])
        above = torch.tensor([[[0.2, 0.1, 1.0]]])
        lights = Lights(above / above.norm(), torch.full((1, 1), 0.75), torch.full((1, 1), 0.3))
        appearance = Appearance(self.materials, lights, self.textures)
        out = render(self.shapes, appearance, camera, height, width)
        grainy = noise(out.image[0], self.rng, torch.tensor([8000.0]), torch.tensor([0.004]))[0]
        pixels = grainy.clamp(0, 1).mul(255).round().to(torch.uint8).numpy()
        moved = Cameras(camera.K, (T @ torch.linalg.inv(world))[None, None])
        return pixels, PhotoTruth.of(name, moved, size, out.depth[0, 0].numpy())


def _paint_textures(seed: int) -> TextureBank:
    """A texture for each surface of a room, then six for the things in it."""
    rng = np.random.default_rng(seed)
    painted = [dead_leaves(TEXTURE_SIZE, rng) for _ in range(SURFACES + 3)]
    painted += [facade(TEXTURE_SIZE, rng) for _ in range(3)]
    return TextureBank(torch.from_numpy(np.stack(painted)))


def _unique_surfaces(materials: Materials, shapes: Shapes, textures: TextureBank) -> Materials:
    """Give each surface of the room its own texture, spread over it once without repetition.

    So a query can be matched in one place only. The surfaces are the largest quads.
    """
    sides = shapes.quads[0, :, 1:].norm(dim=-1) * shapes.quad_present[0, :, None]
    texture, x, y = materials.texture.clone(), materials.x.clone(), materials.y.clone()
    width, height = materials.width.clone(), materials.height.clone()
    for k, i in enumerate(sides.prod(dim=-1).topk(SURFACES).indices.tolist()):
        texture[0, i] = k
        texels = 0.98 * textures.size / sides[i].max()
        width[0, i], height[0, i] = sides[i] * texels
        x[0, i] = y[0, i] = 0.01 * textures.size
    return replace(materials, texture=texture, x=x, y=y, width=width, height=height)

"""Materials and lights as each image sees them, and the shading of the sky."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edm_hloc.synthetic.appearance import Appearance
from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.renderer.tiles import TileChunk
from edm_hloc.synthetic.textures import TextureBank


@dataclass(frozen=True)
class ImageAppearance:
    """Materials and lights of I = B·V images, the lights in the frames of the cameras.

    Attributes:
        materials: (I, P + Q + 1) each: `texture` (int32), `x`, `y`, `width`, `height` as in
            `Materials`; `gain` and `offset` such that the grey value is offset + gain · texel;
            `min_area`, the smallest footprint of a sample in texels², which the blur sets.
        sun: (I, 3) unit vectors towards the sun.
        ambient: (I,).
        diffuse: (I,).
        textures: what `texture` numbers.
    """

    materials: dict[str, Tensor]
    sun: Tensor
    ambient: Tensor
    diffuse: Tensor
    textures: TextureBank

    @classmethod
    def of(cls, appearance: Appearance, cameras: Cameras) -> ImageAppearance:
        """Repeat the materials for each view and turn the lights into the cameras' frames."""
        materials, lights = appearance.materials, appearance.lights
        per_scene = {
            "texture": materials.texture.to(torch.int32),
            "x": materials.x,
            "y": materials.y,
            "width": materials.width,
            "height": materials.height,
            "gain": materials.gain,
            "offset": materials.offset - 0.5 * materials.gain,
            "min_area": 4.0**materials.blur,
        }
        views = cameras.K.shape[1]
        R = cameras.cam_from_world[..., :3, :3].flatten(0, 1)
        return cls(
            {name: value.repeat_interleave(views, 0) for name, value in per_scene.items()},
            (R @ lights.direction.flatten(0, 1)[..., None])[..., 0],
            lights.ambient.flatten(),
            lights.diffuse.flatten(),
            appearance.textures,
        )


def shade_sky(
    chunk: TileChunk, q: Tensor, grey: Tensor, rays: Tensor, appearance: ImageAppearance
) -> None:
    """Set, in place, the grey values of the samples that hit nothing to the sky's.

    Args:
        chunk: t tiles.
        q: (t, samples) inverse depth, 0 where nothing is hit.
        grey: (t, samples) grey values, changed in place.
        rays: (I, 1, 3, 3) the ray's direction in the world as linear functions of the pixel.
        appearance: its last material is the sky's.
    """
    with_sky = (q.amin(1) <= 0).nonzero()[:, 0]
    if not len(with_sky):
        return
    chunk = chunk.part(with_sky)
    _, values = chunk.evaluate(rays, torch.zeros_like(chunk.tiles)[:, None])
    east, north, up = values[:, 0].unbind(1)
    length = (east * east).add_(north * north).add_(up * up).sqrt_()
    shrink = up.abs().add_(length).reciprocal_().mul_(0.5)  # stereographic projection
    sky = {name: value[chunk.image, -1:] for name, value in appearance.materials.items()}
    x = sky["x"] + sky["width"] * (east * shrink + 0.5)
    y = sky["y"] + sky["height"] * (north * shrink + 0.5)
    area = sky["min_area"].expand_as(x).contiguous()
    texel = appearance.textures.sample(sky["texture"], x, y, area)
    shade = texel.mul_(sky["gain"]).add_(sky["offset"])
    missed = (q[with_sky] <= 0).to(torch.float32)
    grey[with_sky] = torch.lerp(grey[with_sky], shade, missed)

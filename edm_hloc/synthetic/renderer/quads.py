"""Visibility, intersection and shading of quads.

A quad with origin o and edges e, f in the camera's frame meets the ray d = (x, y, 1) where
z·d = o + u·e + v·f, so

    (u, v, 1) / z = [e f o]⁻¹ d,

three linear functions of the pixel, of which the third is the inverse depth q = 1/z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.renderer.nearest import STEEP, TINY, NearestLookup, SingleLookup, nearest
from edm_hloc.synthetic.renderer.shading import ImageAppearance
from edm_hloc.synthetic.renderer.tiles import (
    TILE,
    CandidateLists,
    TileChunk,
    TileGrid,
    bounds_over_tiles,
    max_elements,
)
from edm_hloc.synthetic.shapes import Shapes
from edm_hloc.synthetic.textures import TextureBank


@dataclass(frozen=True)
class QuadShading:
    """What the grey values of quads depend on beside the linear functions; (I·P,) each.

    Attributes:
        texture: int32, number of the texture.
        gain, offset: the lit grey value is offset + gain · texel.
        area: texels² that a pixel at q = 1 covers.
        min_area: smallest footprint of a sample, texels².
        textures: what `texture` numbers.
    """

    texture: Tensor
    gain: Tensor
    offset: Tensor
    area: Tensor
    min_area: Tensor
    textures: TextureBank


@dataclass(frozen=True)
class Quads:
    """The quads of I images; those out of view are left out, so P is of the image with the most.

    Attributes:
        linear: (I, P, f, 3) linear functions of the pixel: 2u·q - q, 2v·q - q, q and, if they are
            shaded, x·q and y·q of the texel (x, y).
        shading: None if only the depth is wanted.
    """

    linear: Tensor
    shading: QuadShading | None

    @classmethod
    def prepare(
        cls, grid: TileGrid, shapes: Shapes, cameras: Cameras, appearance: ImageAppearance | None
    ) -> Quads:
        """Move the quads of the scenes into the cameras' frames; `appearance` None: depth only."""
        R = cameras.cam_from_world[:, :, None, :3, :3]
        t = cameras.cam_from_world[:, :, None, :3, 3]
        local = (shapes.quads[:, None] @ R.mT).flatten(0, 1)  # (I, P, 3, 3), rows are vectors
        t = t.flatten(0, 1)
        origin = local[:, :, 0] + t
        e, f = local[:, :, 1], local[:, :, 2]
        normal = torch.linalg.cross(e, f)
        volume = (normal * origin).sum(-1)
        # A quad seen exactly edge-on has no area and is left out.
        size = normal.norm(dim=-1) * origin.norm(dim=-1)
        views = cameras.K.shape[1]
        away = shapes.quad_solid.repeat_interleave(views, 0) & (volume <= 0)
        present = shapes.quad_present.repeat_interleave(views, 0) & ~away
        seen = present & (volume.abs() > 1e-6 * size)
        scale = torch.where(seen, 1 / torch.where(seen, volume, 1.0), 0.0)[..., None]
        q = normal * scale
        u = torch.linalg.cross(f, origin) * scale
        v = torch.linalg.cross(origin, e) * scale
        rows = torch.stack([2 * u - q, 2 * v - q, q], -2)
        linear = grid.pixel_functions(rows, cameras.K.flatten(0, 1))

        # Keep the quads that may be in view, packed to the left.
        image_size = (grid.width, grid.height)
        inside = _visible(linear, grid.image_centre, image_size)[0][:, :, 0] & seen
        used, kept = _pack(inside)
        linear = _take(linear, kept) * used[..., None, None]
        if appearance is None:
            return cls(linear, None)
        material = {name: _take(value, kept) for name, value in appearance.materials.items()}
        q = linear[:, :, 2]
        half_u, half_v = (linear[:, :, 0] + q) / 2, (linear[:, :, 1] + q) / 2
        texel_x = material["x"][..., None] * q + material["width"][..., None] * half_u
        texel_y = material["y"][..., None] * q + material["height"][..., None] * half_v
        # d(x, y)/d(pixel) has the determinant det / q³.
        area = torch.linalg.det(torch.stack([texel_x, texel_y, q], -2)).abs()
        facing = F.normalize(normal, dim=-1) * -volume.sign()[..., None]
        lambert = (facing * appearance.sun[:, None]).sum(-1).clamp(min=0)
        light = appearance.ambient[:, None] + appearance.diffuse[:, None] * lambert
        light = _take(light, kept)
        shading = QuadShading(
            material["texture"].flatten(),
            (material["gain"] * light).flatten(),
            (material["offset"] * light).flatten(),
            area.flatten(),
            material["min_area"].flatten(),
            appearance.textures,
        )
        return cls(torch.cat([linear, texel_x[:, :, None], texel_y[:, :, None]], 2), shading)

    def candidates(self, grid: TileGrid) -> tuple[CandidateLists, Tensor]:
        """The quads that may be visible in each tile, and (tiles,) the inverse depth behind which
        a quad hides everything; 0 where none covers the tile."""
        centres = grid.tile_centres
        linear = self.linear[:, :, :3]
        images = max(max_elements(grid.device) // (4 * linear.shape[1] * centres.shape[1]), 1)
        parts = [_visible(part, centres, (TILE, TILE)) for part in linear.split(images)]
        visible = torch.cat([part.transpose(1, 2).flatten(0, 1) for part, _ in parts])
        return CandidateLists.of(visible), torch.cat([cover for _, cover in parts]).flatten()

    def cast(self, chunk: TileChunk, item: Tensor) -> tuple[Tensor, Tensor | None]:
        """Cast the rays of a chunk's samples.

        Args:
            chunk: t tiles.
            item: (t, k) numbers of the candidates.

        Returns:
            (t, samples) inverse depth of the nearest quad, 0 where none is hit, and its grey
            values; these are arbitrary where none is hit, and None without shading.
        """
        coefficients, values = chunk.evaluate(self.linear, item)
        score = torch.maximum(values[:, :, 0].abs(), values[:, :, 1].abs()).neg_()
        score = torch.minimum(score.add_(values[:, :, 2]).mul_(STEEP), values[:, :, 2])
        lookup: NearestLookup | SingleLookup
        if item.shape[1] == 1:
            lookup = SingleLookup()
            q = score[:, 0].clamp(min=0)
        else:
            best, slot = nearest(score)
            lookup = NearestLookup.of(slot, item.shape[1], values.shape[2])
            # Exact again, for the slot's bits have replaced the last digits; 0 where none is hit.
            q = torch.minimum(lookup.value(values, 2), best.mul_(2).clamp_(min=0))
        shading = self.shading
        if shading is None:
            return q, None
        rows = chunk.image[:, None] * self.linear.shape[1] + item
        z = q.clamp(min=TINY).reciprocal_()
        area = shading.area[rows] * _anisotropy_factor(coefficients) * chunk.samples.area
        area = (z * z).mul_(z).mul_(lookup.constant(area))
        area = torch.maximum(area, lookup.constant(shading.min_area[rows]))
        x, y = lookup.value(values, 3).mul(z), lookup.value(values, 4).mul(z)
        texel = shading.textures.sample(lookup.constant(shading.texture[rows]), x, y, area)
        return q, texel.mul_(lookup.constant(shading.gain[rows])).add_(
            lookup.constant(shading.offset[rows])
        )


def _anisotropy_factor(c: Tensor) -> Tensor:
    """Factor by which the footprint of a sample is enlarged, so that slanted quads do not alias.

    The footprint on the texture is an ellipse. Its longer axis squared, over its area, would remove
    all aliasing but blur much; the square root of that is a compromise. It is evaluated in the
    middle of the tile and limited to 8.

    Args:
        c: (t, k, 5, 3) coefficients relative to the tile's first pixel.

    Returns:
        (t, k).
    """
    middle = c[..., 0] + (c[..., 1] + c[..., 2]) * (TILE / 2)
    q = middle[..., 2:3].clamp(min=1e-9)
    texel = middle[..., 3:] / q
    along = c[..., 3:, 1:] - texel[..., None] * c[..., 2:3, 1:]
    a, b = along[..., 0, :].unbind(-1)
    d, e = along[..., 1, :].unbind(-1)
    ratio = (a * a + b * b + d * d + e * e) / (2 * (a * e - b * d).abs()).clamp(min=1e-20)
    return ratio.nan_to_num(1.0).clamp(1, 64).sqrt()


def _visible(linear: Tensor, centres: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which quads may be visible in which tiles, without false negatives.

    Args:
        linear: (I, P, 3, 3) functions 2u·q - q, 2v·q - q and q.
        centres: (3, T) homogeneous pixels of the tiles' centres.
        size: (width, height) of a tile.

    Returns:
        (I, P, T) bool, and (I, T) the inverse depth of the nearest quad that covers the whole tile,
        at its farthest point there, or 0.
    """
    a, b, q = linear.unbind(2)
    inside = torch.stack([q - a, q + a, q - b, q + b], 1)
    values, spread = bounds_over_tiles(inside, centres, size)
    high = (values + spread).amin(1)
    low = (values - spread).amin(1)
    q, q_spread = bounds_over_tiles(q, centres, size)
    cover = torch.minimum(low.mul_(STEEP), q - q_spread).amax(1).clamp_(min=0)
    ahead = (q + q_spread).sub_(cover[:, None] * (1 - 1e-5))
    return torch.minimum(high, ahead) > 0, cover


def _pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the chosen of a mask (I, N) to the left: 1.0 where a place is used, and which item it
    holds, both (I, most)."""
    order = torch.sort(mask.to(torch.int8), stable=True, dim=1, descending=True).indices
    most = max(int(mask.sum(1).max()), 1)
    order = order[:, :most]
    return mask.gather(1, order).float(), order


def _take(values: Tensor, index: Tensor) -> Tensor:
    """The items (I, k) of values (I, N, ...): (I, k, ...)."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values[rows, index]

"""Visibility, intersection and shading of ellipsoids and cylinders.

In coordinates s in which the surface is |s| = 1 and the camera is at -n, the ray is s = z·m - n.
With c = |n|² - 1 and q = 1/z, and with axes turned so that n lies along the first one, the front
intersection is

    q = |n|·D + √(D² - E² - F²),   D = (m·n) / (|n|·c),   E, F = m across n / √c.

D, E, F and m are linear functions of the pixel. For cylinders the coordinate along the axis does
not count: F = 0, and the hit is valid where that coordinate is within ±1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.renderer.nearest import STEEP, TINY, NearestLookup, nearest
from edm_hloc.synthetic.renderer.shading import ImageAppearance
from edm_hloc.synthetic.renderer.tiles import (
    TILE,
    CandidateLists,
    TileChunk,
    TileGrid,
    bounds_over_tiles,
)
from edm_hloc.synthetic.shapes import Shapes
from edm_hloc.synthetic.textures import TextureBank


@dataclass(frozen=True)
class RoundShading:
    """What the grey values of round primitives depend on beside their geometry.

    Attributes:
        constants: (I·Q,) each: the materials of `ImageAppearance`, `ambient` and `diffuse` light,
            and `area`, the texels² that a pixel at z = 1 covers, seen frontally, if the texture
            coordinates were s.
        sun: (3, I·Q) direction towards the sun, in the coordinates s.
        inverse_squares: (3, I·Q) 1 / (half axis)².
        textures: what the material's texture numbers.
    """

    constants: dict[str, Tensor]
    sun: Tensor
    inverse_squares: Tensor
    textures: TextureBank


@dataclass(frozen=True)
class RoundShapes:
    """The Q round primitives of each of I images; see the module for the symbols.

    Attributes:
        linear: (I, Q, 6, 3) D, E, F and the three of m as linear functions of the pixel, all 0 for
            absent primitives.
        n: (3, I·Q) the camera is at -n in the coordinates s.
        norm: (I·Q,) |n|, of cylinders without the component along the axis.
        cylinder: (I·Q,) 1.0 or 0.0.
        shading: None if only the depth is wanted.
    """

    linear: Tensor
    n: Tensor
    norm: Tensor
    cylinder: Tensor
    shading: RoundShading | None

    @classmethod
    def prepare(
        cls, grid: TileGrid, shapes: Shapes, cameras: Cameras, appearance: ImageAppearance | None
    ) -> RoundShapes:
        """Move the primitives into the cameras' frames; `appearance` None: depth only.

        A primitive that contains the camera is left out.
        """
        views = cameras.K.shape[1]
        K = cameras.K.flatten(0, 1)
        R = cameras.cam_from_world[:, :, None, :3, :3]
        t = cameras.cam_from_world[:, :, None, :3, 3]
        centre = ((R @ shapes.round_centre[:, None, :, :, None])[..., 0] + t).flatten(0, 1)
        axes = (R @ shapes.round_axes[:, None]).flatten(0, 1)
        present = shapes.round_present.repeat_interleave(views, 0)
        cylinder = shapes.round_cylinder.repeat_interleave(views, 0)
        axes = torch.where(present[..., None, None], axes, torch.eye(3, device=grid.device))
        inverse = axes.mT / axes.square().sum(-2)[..., None]  # rows; the axes are at right angles
        n = (inverse @ centre[..., None])[..., 0]
        across = n.clone()  # without the component along the axis of cylinders
        across[..., 1] = torch.where(cylinder, 0.0, n[..., 1])
        square = across.square().sum(-1)
        present = present & (square > 1 + 1e-3)
        square = torch.where(present, square, 2.0)
        norm = square.sqrt()
        c = square - 1
        along = across / norm[..., None]
        # Two directions across `along`: for cylinders the first lies across the axis as well.
        axis = torch.zeros_like(n)
        axis[..., 1] = 1
        axis[..., 1] = torch.where(cylinder | (along[..., 1].abs() < 0.9), axis[..., 1], 0.0)
        axis[..., 0] = 1 - axis[..., 1]
        first = F.normalize(torch.linalg.cross(along, axis), dim=-1)
        second = torch.linalg.cross(along, first)
        second = torch.where(cylinder[..., None], 0.0, second)
        frame = torch.stack(
            [along / c[..., None], first / c.sqrt()[..., None], second / c.sqrt()[..., None]], -2
        )
        # Absent ones are all zero, since candidate lists are padded with any primitive.
        rows = torch.cat([frame @ inverse, inverse], -2) * present[..., None, None]
        return cls(
            grid.pixel_functions(rows, K),
            n.flatten(0, 1).T.contiguous(),
            norm.flatten(),
            cylinder.float().flatten(),
            None if appearance is None else _shading(shapes, K, axes, inverse, appearance),
        )

    def candidates(self, grid: TileGrid, cover: Tensor) -> CandidateLists:
        """The primitives that may be visible in each tile, by the bounds of D, E and F in it.

        Args:
            grid: the tiles.
            cover: (tiles,) inverse depth behind which a quad hides everything.
        """
        values, spread = bounds_over_tiles(self.linear[:, :, :3], grid.tile_centres, (TILE, TILE))
        least = (values[:, :, 1:].abs() - spread[:, :, 1:]).clamp_(min=0).square_().sum(2)
        D = (values[:, :, 0] + spread[:, :, 0]).clamp_(min=0)
        discriminant = D.square() - least
        q = D * self.norm.view(*D.shape[:2], 1) + discriminant.clamp(min=0).sqrt()
        possible = (discriminant > 0) & (q >= cover.view(len(D), 1, -1))
        return CandidateLists.of(possible.transpose(1, 2).flatten(0, 1))

    def cast(
        self, chunk: TileChunk, item: Tensor, q_before: Tensor, grey_before: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Cast the rays of a chunk's samples and keep what is nearer than what they have hit.

        Args:
            chunk: t tiles.
            item: (t, k) numbers of the candidates.
            q_before: (t, samples) inverse depth of the quads, 0 where none is hit.
            grey_before: (t, samples) their grey values, None without shading.

        Returns:
            The inverse depth and grey values of whatever is nearest.
        """
        _, values = chunk.evaluate(self.linear, item)
        rows = chunk.image[:, None] * self.linear.shape[1] + item
        D, E, F_ = values[:, :, 0], values[:, :, 1], values[:, :, 2]
        discriminant = D * D - E * E - F_ * F_
        q = discriminant.clamp(min=0).sqrt_() + D * self.norm[rows][..., None]
        # The coordinate along the axis, times q, is m - n·q.
        high = (values[:, :, 4] - q * self.n[1][rows][..., None]).abs_()
        high *= self.cylinder[rows][..., None]
        margin = torch.minimum(discriminant, q - high)
        score = torch.minimum(margin.mul_(STEEP), q)
        best, slot = nearest(score)
        front = (best > q_before).view(-1).nonzero()[:, 0]
        lookup = NearestLookup.of(slot, item.shape[1], values.shape[2]).narrowed(front)

        def put(values: Tensor, into: Tensor) -> Tensor:
            return into.reshape(-1).index_copy(0, front, values).view(into.shape)

        # Exact q again, for the slot's bits have replaced its last digits.
        D, E, F_ = (lookup.value(values, k) for k in range(3))
        q = (D * D - E * E - F_ * F_).clamp_(min=0).sqrt_() + D * lookup.constant(self.norm[rows])
        q_after = put(q, q_before)
        if self.shading is None or grey_before is None:
            return q_after, None
        z = q.clamp(min=TINY).reciprocal_()
        m = [lookup.value(values, 3 + k) for k in range(3)]
        grey = self._shade(self.shading, chunk, rows, lookup, (z, m))
        return q_after, put(grey, grey_before)

    def _shade(
        self,
        shading: RoundShading,
        chunk: TileChunk,
        rows: Tensor,
        lookup: NearestLookup,
        hit: tuple[Tensor, list[Tensor]],
    ) -> Tensor:
        """Grey values (m,) of the samples of `lookup`; hit: their depth z and the ray's m."""
        constant, (z, m) = lookup.constant, hit
        of = {name: constant(column[rows]) for name, column in shading.constants.items()}
        s = [m[k] * z - constant(self.n[k][rows]) for k in range(3)]
        cylinder = constant(self.cylinder[rows])
        # Texture coordinates: stereographic on ellipsoids and around cylinders, which leaves no
        # poles; the far half mirrors the near one.
        shrink = 0.5 / (1 + s[2].abs())
        u = s[0] * shrink + 0.5
        v = s[1] * torch.lerp(shrink, torch.full_like(shrink, 0.5), cylinder) + 0.5
        # The normal is s over the half axes; cylinders have no component along theirs.
        s[1] = s[1] * (1 - cylinder)
        inverse_squares = [constant(shading.inverse_squares[k][rows]) for k in range(3)]
        sun = [constant(shading.sun[k][rows]) for k in range(3)]
        length = _dot([v * v for v in s], inverse_squares).clamp(min=TINY).rsqrt()
        light = of["ambient"] + of["diffuse"] * (_dot(s, sun) * length).clamp(min=0)
        cosine = (_dot(s, m) * length).abs()
        area = of["area"] * chunk.samples.area * (z * shrink).square_() / cosine.clamp(min=0.05)
        area = torch.maximum(area, of["min_area"])
        texel = shading.textures.sample(
            of["texture"], of["x"] + of["width"] * u, of["y"] + of["height"] * v, area
        )
        return (texel * of["gain"] + of["offset"]) * light


def _shading(
    shapes: Shapes, K: Tensor, axes: Tensor, inverse: Tensor, appearance: ImageAppearance
) -> RoundShading:
    """Shading of the round primitives of I images.

    Args:
        shapes: the scenes.
        K: (I, 3, 3).
        axes: (I, Q, 3, 3) half axes as columns, in the cameras' frames.
        inverse: (I, Q, 3, 3) the inverse of `axes`.
        appearance: of all primitives.
    """
    quads, shape = shapes.quads.shape[1], axes.shape[:2]
    rounds = slice(quads, quads + shape[1])
    of = {name: value[:, rounds].flatten() for name, value in appearance.materials.items()}
    of["ambient"] = appearance.ambient[:, None].expand(shape).flatten()
    of["diffuse"] = appearance.diffuse[:, None].expand(shape).flatten()
    radius2 = axes.square().sum(-2).prod(-1) ** (1 / 3)
    texels2 = (of["width"] * of["height"]).abs().view_as(radius2) / radius2
    of["area"] = (texels2 / (K[:, 0, 0] * K[:, 1, 1])[:, None]).flatten()
    sun = (inverse @ appearance.sun[:, None, :, None])[..., 0]
    inverse_squares = 1 / axes.square().sum(-2)
    return RoundShading(
        of,
        sun.flatten(0, 1).T.contiguous(),
        inverse_squares.flatten(0, 1).T.contiguous(),
        appearance.textures,
    )


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]

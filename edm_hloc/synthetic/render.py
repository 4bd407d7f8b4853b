"""Ray casting of batched scenes: antialiased grey images, exact depth at the pixels' centres.

Each kind of primitive is hit by functions that are linear in the pixel. A quad with origin o and
edges e, f in the camera's frame meets the ray d = (x, y, 1) where z·d = o + u·e + v·f, so

    (u, v, 1) / z = [e f o]⁻¹ d,

three linear functions of which the third is q = 1/z: the nearest hit has the largest q. Being
linear,
their values at the middle of a tile bound them within it: each tile of the image gets the list of
primitives that can be seen in it, without approximation, and only those are evaluated per sample.

The inner loops keep to additions, products, minima and integer operations: on a CPU, PyTorch's
comparisons, `where` and `gather` cost ten times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.scene import Cameras, Materials, Shapes
from edm_hloc.synthetic.textures import TextureBank

_TINY = 1e-12
_STEEP = 1e9  # turns a signed margin into "no limit" or "missed"
_TILE = 8


@dataclass(frozen=True)
class Lights:
    """Light of each view: shade = ambient + diffuse · max(0, normal · direction).

    direction: (B, V, 3) unit, world, towards the sun; ambient, diffuse: (B, V).
    """

    direction: Tensor
    ambient: Tensor
    diffuse: Tensor


@dataclass(frozen=True)
class Rendering:
    """image: (B, V, H, W) in [0, 1]; depth: (B, V, H, W) along the optical axis, 0 for the sky."""

    image: Tensor
    depth: Tensor


def render(
    shapes: Shapes,
    materials: Materials,
    cameras: Cameras,
    lights: Lights,
    bank: TextureBank,
    height: int,
    width: int,
) -> Rendering:
    """Render V views of each of B scenes.

    Edges are antialiased by five samples a pixel, those at its corners shared by its neighbours,
    and textures by their mip levels. The depth is that of the ray through the pixel's centre.
    """
    batch, views = cameras.K.shape[:2]
    grid = _Grid(batch * views, height, width, cameras.K.device)
    looks = _Looks.prepare(materials, cameras, lights)
    q, grey = _cast(grid, shapes, cameras, looks, bank)
    assert grey is not None
    image = grid.untile(grey).clamp(0, 1).view(batch, views, height, width)
    return Rendering(image, _depth(grid, q, batch, views))


def render_depth(shapes: Shapes, cameras: Cameras, height: int, width: int) -> Tensor:
    """Give only the depth, (B, V, H, W), 0 where no primitive is hit."""
    batch, views = cameras.K.shape[:2]
    grid = _Grid(batch * views, height, width, cameras.K.device)
    q, _ = _cast(grid, shapes, cameras, None, None)
    return _depth(grid, q, batch, views)


def _depth(grid: _Grid, q: Tensor, batch: int, views: int) -> Tensor:
    q = grid.untile(q).reshape(batch, views, grid.height, grid.width)
    return torch.where(q > 0, 1 / q.clamp(min=_TINY), 0.0)


# --- the samples ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """I images cut in tiles of 8×8 pixels."""

    images: int
    height: int
    width: int
    device: torch.device

    @property
    def tiles(self) -> tuple[int, int]:
        return -(-self.height // _TILE), -(-self.width // _TILE)

    @property
    def centres(self) -> Tensor:
        """(3, ny·nx) homogeneous pixels (1, x, y) of the tiles' centres."""
        ny, nx = self.tiles
        centres = _homogeneous(ny, nx, _TILE, self.device).flatten(1)
        centres[1:] += _TILE / 2
        return centres

    @property
    def centre(self) -> Tensor:
        """(3, 1), the same of the whole image."""
        return torch.tensor(
            [[1.0], [(self.width - 1) / 2], [(self.height - 1) / 2]], device=self.device
        )

    def linear(self, rows: Tensor, K: Tensor) -> Tensor:
        """Turn functions of the ray (x, y, 1) into functions of the pixel (1, x, y).

        rows: (I, ..., 3); K: (I, 3, 3); gives (I, ..., 3).
        """
        K = K.view(len(K), *[1] * (rows.ndim - 2), 3, 3)
        gx = rows[..., 0] / K[..., 0, 0]
        gy = rows[..., 1] / K[..., 1, 1]
        g0 = rows[..., 2] - gx * K[..., 0, 2] - gy * K[..., 1, 2]
        return torch.stack([g0, gx, gy], -1)

    def untile(self, values: Tensor) -> Tensor:
        """(tiles, 64) in tile order → (I, H, W)."""
        ny, nx = self.tiles
        grid = values.view(self.images, ny, nx, _TILE, _TILE).transpose(2, 3)
        return grid.reshape(self.images, ny * _TILE, nx * _TILE)[:, : self.height, : self.width]


def _homogeneous(rows: int, columns: int, step: float, device: torch.device) -> Tensor:
    """(3, rows, columns) of (1, x, y) every `step` pixels from (-0.5, -0.5) on."""
    y = torch.arange(rows, device=device, dtype=torch.float32) * step - 0.5
    x = torch.arange(columns, device=device, dtype=torch.float32) * step - 0.5
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.ones_like(xx), xx, yy])


@dataclass(frozen=True)
class _Samples:
    """Where a tile is sampled: basis (3, n) of (1, x, y) from its first pixel, n = 64 or 64 + 88.

    The pixels' centres come first; then, where edges are to be smooth, the pixels' corners.
    """

    basis: Tensor

    @classmethod
    def centres(cls, device: torch.device) -> _Samples:
        basis = _homogeneous(_TILE, _TILE, 1, device).flatten(1)
        basis[1:] += 0.5
        return cls(basis)

    @classmethod
    def with_corners(cls, device: torch.device) -> _Samples:
        corners = _homogeneous(_TILE + 1, _TILE + 1, 1, device).flatten(1)
        # Seven of them twice, since products of matrices are fastest for multiples of eight.
        return cls(torch.cat([cls.centres(device).basis, corners, corners[:, :7]], 1))

    @property
    def count(self) -> int:
        return self.basis.shape[1]

    @property
    def area(self) -> float:
        """Square pixels per sample."""
        return 1.0 if self.count == _TILE**2 else 0.5

    def filtered(self, values: Tensor) -> Tensor:
        """Filter values (t, n) to the pixels (t, 64): half the centre, an eighth of each corner."""
        if self.count == _TILE**2:
            return values
        corners = values[:, _TILE**2 : -7].reshape(-1, _TILE + 1, _TILE + 1)
        rows = corners[:, :-1] + corners[:, 1:]
        total = (rows[:, :, :-1] + rows[:, :, 1:]).flatten(1)
        return torch.add(values[:, : _TILE**2] * 0.5, total, alpha=0.125)


@dataclass(frozen=True)
class _Chunk:
    """Some tiles (numbers, images and first pixels, all (t,)) and where they are sampled."""

    tiles: Tensor
    image: Tensor
    x: Tensor
    y: Tensor
    samples: _Samples

    @classmethod
    def of(cls, tiles: Tensor, grid: _Grid, samples: _Samples) -> _Chunk:
        ny, nx = grid.tiles
        within = tiles % (ny * nx)
        x, y = within % nx * _TILE, within // nx * _TILE
        return cls(tiles, tiles // (ny * nx), x, y, samples)

    def part(self, index: Tensor) -> _Chunk:
        return _Chunk(
            self.tiles[index], self.image[index], self.x[index], self.y[index], self.samples
        )

    def evaluate(self, linear: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate linear functions (I, N, f, 3) of listed items (t, k).

        Gives their coefficients from the tile's first pixel (t, k, f, 3) and values (t, k, f,
        samples).
        """
        c = linear.flatten(0, 1).index_select(
            0, (self.image[:, None] * linear.shape[1] + item).view(-1)
        )
        c = c.view(*item.shape, -1, 3)
        c[..., 0] += c[..., 1] * self.x[:, None, None] + c[..., 2] * self.y[:, None, None]
        return c, (c.view(-1, 3) @ self.samples.basis).view(*c.shape[:3], -1)


@dataclass(frozen=True)
class _Lists:
    """Primitives each tile may show: how many (tiles,), which (tiles, most), padded with any."""

    length: Tensor
    item: Tensor

    @classmethod
    def of(cls, possible: Tensor) -> _Lists:
        """Make the lists from (tiles, N) bool."""
        length = possible.sum(1)
        tile, primitive = possible.nonzero().unbind(1)
        rank = torch.arange(len(tile), device=tile.device) - (length.cumsum(0) - length)[tile]
        most = int(length.max())
        item = torch.zeros(len(length), max(most, 1), dtype=torch.int64, device=tile.device)
        item[tile, rank] = primitive
        return cls(length, item)


def _cast(
    grid: _Grid, shapes: Shapes, cameras: Cameras, looks: _Looks | None, bank: TextureBank | None
) -> tuple[Tensor, Tensor | None]:
    """Find 1/z (0: sky) and, with looks, the grey values of all pixels, (tiles, 64) each."""
    K = cameras.K.flatten(0, 1)
    quads = _Quads.prepare(grid, shapes, cameras, looks)
    quad_lists, cover = quads.lists(grid)
    rounds = _Rounds.prepare(grid, shapes, cameras, looks)
    round_lists = rounds.lists(grid, cover)

    rays = grid.linear(cameras.cam_from_world[..., :3, :3].mT.flatten(0, 1)[:, None], K)
    q_all = torch.empty(len(cover), _TILE**2, device=grid.device)
    grey_all = None if looks is None else torch.empty_like(q_all)
    for chunk, longest, longest_round in _chunks(
        grid, quad_lists, round_lists, cover, looks is not None
    ):
        q, grey = quads.see(chunk, quad_lists.item[chunk.tiles, :longest], bank)
        if longest_round:
            item = round_lists.item[chunk.tiles, :longest_round]
            q, grey = rounds.see(chunk, item, bank, q, grey)
        q_all.index_copy_(0, chunk.tiles, q[:, : _TILE**2])
        if grey_all is not None and grey is not None and looks is not None and bank is not None:
            _see_sky(chunk, q, grey, rays, looks, bank)
            grey_all.index_copy_(0, chunk.tiles, chunk.samples.filtered(grey))
    return q_all, grey_all


def _chunks(
    grid: _Grid, quads: _Lists, rounds: _Lists, cover: Tensor, antialias: bool
) -> Iterator[tuple[_Chunk, int, int]]:
    """Cut the tiles in chunks with lists of about equal length; also give the longest of each kind.

    Tiles that show one quad all over, or only sky, have no edges: they come apart and need no
    samples at the pixels' corners.
    """
    no_edges = (rounds.length == 0) & (quads.length <= (cover > 0).long())
    key = (rounds.length << 32) + quads.length
    key, order = key.masked_fill_(no_edges, -1).sort(descending=True, stable=True)
    keys = key.tolist()
    edges = len(keys) - keys.count(-1)
    centres = _Samples.centres(grid.device)
    corners = _Samples.with_corners(grid.device) if antialias else centres
    budget = _budget(grid.device) * (1 if antialias else 2)
    start = 0
    while start < len(keys):
        samples = corners if start < edges else centres
        longest_round, longest = divmod(max(keys[start], 1), 1 << 32)
        weight = max(longest, 4 if longest_round else 1) + 2 * longest_round
        stop = start + max(budget // (samples.count * weight), 8)
        if start < edges:
            stop = min(stop, edges)
        chunk = _Chunk.of(order[start:stop], grid, samples)
        if longest_round:  # then the first tile's list of quads need not be the longest
            longest = max(int(quads.length[chunk.tiles].max()), 1)
        yield chunk, longest, longest_round
        start = stop


def _budget(device: torch.device) -> int:
    """Elements in an array: a chunk should stay in a CPU's cache; a GPU wants large kernels."""
    return 1 << 18 if device.type == "cpu" else 1 << 25


def _nearest(score: Tensor) -> tuple[Tensor, Tensor]:
    """Find the largest score over dim 1 of (t, k, samples), and which slot it is in.

    Positive floats are ordered as their bits are, so the slot's number takes the place of the
    lowest bits, and one maximum of integers gives both. Scores equal but for these bits are
    decided by the slot.
    """
    count = score.shape[1]
    mask = (1 << (count - 1).bit_length()) - 1
    slots = torch.arange(count, dtype=torch.int32, device=score.device)
    packed = score.view(torch.int32).bitwise_and_(~mask).bitwise_or_(slots[:, None])
    best = packed.amax(1)
    return best.view(torch.float32), best.bitwise_and(mask).clamp_(max=count - 1)


class _Picked:
    """Look-ups of what the samples' slots hold: slot (t, samples) int32, of `count` each."""

    def __init__(self, slot: Tensor, count: int, functions: int) -> None:
        tiles, self._samples = slot.shape
        tile = torch.arange(tiles, dtype=torch.int32, device=slot.device)
        within = torch.arange(self._samples, dtype=torch.int32, device=slot.device)
        item = slot + tile[:, None] * count
        self._first = (item * (functions * self._samples)).add_(within).view(-1)
        self._item = item.view(-1)
        self._shape: tuple[int, ...] = tuple(slot.shape)

    def narrowed(self, samples: Tensor) -> _Picked:
        """Keep only some samples, given by flat numbers (m,); then look-ups give (m,)."""
        other = copy(self)
        other._first = self._first.index_select(0, samples)
        other._item = self._item.index_select(0, samples)
        other._shape = tuple(samples.shape)
        return other

    def value(self, values: Tensor, function: int) -> Tensor:
        """Take a function's value from (t, k, f, samples)."""
        flat = values.view(-1)[function * self._samples :]
        return flat.index_select(0, self._first).view(self._shape)

    def constant(self, values: Tensor) -> Tensor:
        """Take a constant from (t, k)."""
        return values.reshape(-1).index_select(0, self._item).view(self._shape)


class _Single:
    """The same look-ups where there is one slot only."""

    def value(self, values: Tensor, function: int) -> Tensor:
        return values[:, 0, function]

    def constant(self, values: Tensor) -> Tensor:
        return values


# --- looks: materials under the light of each view -----------------------------------------------


@dataclass(frozen=True)
class _Looks:
    """Materials of all primitives in all images, (I, P + Q + 1) each; lights in camera frames.

    The grey value is `offset` + `gain` · texel, before the light. area0: texels² of the lowest
    level.
    """

    texture: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    gain: Tensor
    offset: Tensor
    area0: Tensor
    sun: Tensor  # (I, 3) camera frame
    ambient: Tensor  # (I,)
    diffuse: Tensor  # (I,)

    @classmethod
    def prepare(cls, materials: Materials, cameras: Cameras, lights: Lights) -> _Looks:
        views = cameras.K.shape[1]

        def each(value: Tensor) -> Tensor:
            return value.repeat_interleave(views, 0)

        R = cameras.cam_from_world[..., :3, :3].flatten(0, 1)
        return cls(
            each(materials.texture.to(torch.int32)),
            each(materials.x),
            each(materials.y),
            each(materials.width),
            each(materials.height),
            each(materials.gain),
            each(materials.offset - 0.5 * materials.gain),
            each(4.0**materials.blur),
            (R @ lights.direction.flatten(0, 1)[..., None])[..., 0],
            lights.ambient.flatten(),
            lights.diffuse.flatten(),
        )


# --- quads ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Quads:
    """Quads of all images, those out of view left out.

    linear: (I, P, f, 3) functions of the pixel: 2u·q - q, 2v·q - q, q, and with looks x·q, y·q for
    the texel x, y. The others are (I·P,) constants; area: texels² of a pixel at q = 1.
    """

    linear: Tensor
    texture: Tensor
    gain: Tensor
    offset: Tensor
    area: Tensor
    area0: Tensor

    @classmethod
    def prepare(cls, grid: _Grid, shapes: Shapes, cameras: Cameras, looks: _Looks | None) -> _Quads:
        R = cameras.cam_from_world[:, :, None, :3, :3]
        t = cameras.cam_from_world[:, :, None, :3, 3]
        local = (shapes.quads[:, None] @ R.mT).flatten(0, 1)  # (I, P, 3, 3), rows are vectors
        t = t.flatten(0, 1)
        origin = local[:, :, 0] + t
        e, f = local[:, :, 1], local[:, :, 2]
        normal = torch.linalg.cross(e, f)
        volume = (normal * origin).sum(-1)
        # Seen exactly edge-on a quad has no area, and is left out.
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
        linear = grid.linear(rows, cameras.K.flatten(0, 1))

        # Keep what can be in view, packed to the left.
        inside = _possible(linear, grid.centre, (grid.width, grid.height))[0][:, :, 0] & seen
        number, kept = _pack(inside)
        linear = _take(linear, kept) * number[..., None, None]
        if looks is None:
            nothing = torch.empty(0, device=grid.device)
            return cls(linear, *[nothing] * 5)
        look = {
            name: _take(getattr(looks, name), kept)
            for name in ("texture", "x", "y", "width", "height", "gain", "offset", "area0")
        }
        q = linear[:, :, 2]
        half_u, half_v = (linear[:, :, 0] + q) / 2, (linear[:, :, 1] + q) / 2
        texel_x = look["x"][..., None] * q + look["width"][..., None] * half_u
        texel_y = look["y"][..., None] * q + look["height"][..., None] * half_v
        # d(x, y)/d(pixel) has the determinant det / q³.
        area = torch.linalg.det(torch.stack([texel_x, texel_y, q], -2)).abs()
        facing = F.normalize(normal, dim=-1) * -volume.sign()[..., None]
        lambert = (facing * looks.sun[:, None]).sum(-1).clamp(min=0)
        light = _take(looks.ambient[:, None] + looks.diffuse[:, None] * lambert, kept)
        return cls(
            torch.cat([linear, texel_x[:, :, None], texel_y[:, :, None]], 2),
            look["texture"].flatten(),
            (look["gain"] * light).flatten(),
            (look["offset"] * light).flatten(),
            area.flatten(),
            look["area0"].flatten(),
        )

    def lists(self, grid: _Grid) -> tuple[_Lists, Tensor]:
        """List the quads of each tile; also give (tiles,) the 1/z behind which nothing is seen."""
        centres = grid.centres
        linear = self.linear[:, :, :3]
        images = max(_budget(grid.device) // (4 * linear.shape[1] * centres.shape[1]), 1)
        parts = [_possible(part, centres, (_TILE, _TILE)) for part in linear.split(images)]
        possible = torch.cat([part.transpose(1, 2).flatten(0, 1) for part, _ in parts])
        return _Lists.of(possible), torch.cat([cover for _, cover in parts]).flatten()

    def see(
        self, chunk: _Chunk, item: Tensor, bank: TextureBank | None
    ) -> tuple[Tensor, Tensor | None]:
        """Find 1/z (0: missed) and grey values (t, samples) of the nearest quad."""
        coefficients, values = chunk.evaluate(self.linear, item)
        score = torch.maximum(values[:, :, 0].abs(), values[:, :, 1].abs()).neg_()
        score = torch.minimum(score.add_(values[:, :, 2]).mul_(_STEEP), values[:, :, 2])
        picked: _Picked | _Single
        if item.shape[1] == 1:
            picked = _Single()
            q = score[:, 0].clamp(min=0)
        else:
            best, slot = _nearest(score)
            picked = _Picked(slot, item.shape[1], values.shape[2])
            # Exact again, for the slot's bits have spoiled the last digits; 0 where none is hit.
            q = torch.minimum(picked.value(values, 2), best.mul_(2).clamp_(min=0))
        if bank is None:
            return q, None
        rows = chunk.image[:, None] * self.linear.shape[1] + item
        z = q.clamp(min=_TINY).reciprocal_()
        area = self.area[rows] * _stretch(coefficients) * chunk.samples.area
        area = (z * z).mul_(z).mul_(picked.constant(area))
        area = torch.maximum(area, picked.constant(self.area0[rows]))
        x, y = picked.value(values, 3).mul(z), picked.value(values, 4).mul(z)
        texel = bank.sample(picked.constant(self.texture[rows]), x, y, area)
        return q, texel.mul_(picked.constant(self.gain[rows])).add_(
            picked.constant(self.offset[rows])
        )


def _stretch(c: Tensor) -> Tensor:
    """Factor of the texture's area per sample, (t, k), so that slanted quads do not alias.

    The longer axis of the footprint, squared, over its area would leave no aliasing but much blur:
    half of that on a logarithmic scale. Measured in the middle of the tile; c: (t, k, 5, 3)
    coefficients.
    """
    middle = c[..., 0] + (c[..., 1] + c[..., 2]) * (_TILE / 2)
    q = middle[..., 2:3].clamp(min=1e-9)
    texel = middle[..., 3:] / q
    along = c[..., 3:, 1:] - texel[..., None] * c[..., 2:3, 1:]
    a, b = along[..., 0, :].unbind(-1)
    d, e = along[..., 1, :].unbind(-1)
    ratio = (a * a + b * b + d * d + e * e) / (2 * (a * e - b * d).abs()).clamp(min=1e-20)
    return ratio.nan_to_num(1.0).clamp(1, 64).sqrt()


def _possible(linear: Tensor, centres: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find which quads (I, P, 3, 3) tiles of `size` (width, height) at centres (3, T) may show.

    Gives (I, P, T) bool, and (I, T) the 1/z of the nearest quad that covers all of the tile, or 0.
    """
    a, b, q = linear.unbind(2)
    inside = torch.stack([q - a, q + a, q - b, q + b], 1)
    values, spread = _over_tiles(inside, centres, size)
    high = (values + spread).amin(1)
    low = (values - spread).amin(1)
    q, q_spread = _over_tiles(q, centres, size)
    cover = torch.minimum(low.mul_(_STEEP), q - q_spread).amax(1).clamp_(min=0)
    ahead = (q + q_spread).sub_(cover[:, None] * (1 - 1e-5))
    return torch.minimum(high, ahead) > 0, cover


def _over_tiles(linear: Tensor, centres: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Evaluate functions (..., 3) at tile centres, (..., T); also their range about it (..., 1)."""
    values = (linear.reshape(-1, 3) @ centres).view(*linear.shape[:-1], -1)
    spread = linear[..., 1].abs() * (size[0] / 2) + linear[..., 2].abs() * (size[1] / 2)
    return values, spread[..., None]


def _pack(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move the chosen of (I, N) to the left: (I, most), 1 in used places; and what lies there."""
    order = torch.sort(mask.to(torch.int8), stable=True, dim=1, descending=True).indices
    most = max(int(mask.sum(1).max()), 1)
    order = order[:, :most]
    return mask.gather(1, order).float(), order


def _take(values: Tensor, index: Tensor) -> Tensor:
    """Take items (I, k) of (I, N, ...)."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return values[rows, index]


# --- ellipsoids and cylinders --------------------------------------------------------------------


@dataclass(frozen=True)
class _Rounds:
    """Ellipsoids and cylinders of all images.

    In coordinates s where the surface is |s| = 1 and the camera sits at -n, the ray is s = z·m -
    n. Turned so that n lies along one axis, with c = |n|² - 1 and q = 1/z, the front hit is

        q = |n|·D + √(D² - E² - F²),   D = (m·n)/(|n|·c),   E, F = m across n / √c.

    Cylinders have no F; and |height| ≤ 1 there.
    """

    linear: Tensor  # (I, Q, 6, 3): D, E, F, m
    n: Tensor  # (3, I·Q)
    norm: Tensor  # (I·Q,) |n|, without the axis of cylinders
    cylinder: Tensor  # (I·Q,) 1 or 0
    sun: Tensor  # (3, I·Q) sun's direction in the coordinates s
    steep: Tensor  # (3, I·Q) 1 / half axis²
    look: dict[str, Tensor]  # (I·Q,)

    @classmethod
    def prepare(
        cls, grid: _Grid, shapes: Shapes, cameras: Cameras, looks: _Looks | None
    ) -> _Rounds:
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
        across = n.clone()  # what is left of n where the axis of cylinders does not count
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
        # Absent ones are all zero, since lists are padded with any.
        rows = torch.cat([frame @ inverse, inverse], -2) * present[..., None, None]
        linear = grid.linear(rows, K)
        look: dict[str, Tensor] = {}
        sun = n
        if looks is not None:
            quads = shapes.quads.shape[1]
            rounds = slice(quads, quads + n.shape[1])
            for name in ("texture", "x", "y", "width", "height", "gain", "offset", "area0"):
                look[name] = getattr(looks, name)[:, rounds].flatten()
            look["ambient"] = looks.ambient[:, None].expand(n.shape[:2]).flatten()
            look["diffuse"] = looks.diffuse[:, None].expand(n.shape[:2]).flatten()
            # Texels² in a pixel at the unit depth, seen frontally, if u and v were s.
            radius2 = axes.square().sum(-2).prod(-1) ** (1 / 3)
            texels2 = (look["width"] * look["height"]).abs().view_as(radius2) / radius2
            look["area"] = (texels2 / (K[:, 0, 0] * K[:, 1, 1])[:, None]).flatten()
            sun = (inverse @ looks.sun[:, None, :, None])[..., 0]
        steep = 1 / axes.square().sum(-2)
        return cls(
            linear,
            n.flatten(0, 1).T.contiguous(),
            norm.flatten(),
            cylinder.float().flatten(),
            sun.flatten(0, 1).T.contiguous(),
            steep.flatten(0, 1).T.contiguous(),
            look,
        )

    def lists(self, grid: _Grid, cover: Tensor) -> _Lists:
        """List the ellipsoids and cylinders of each tile, by bounds of D, E and F in it."""
        values, spread = _over_tiles(self.linear[:, :, :3], grid.centres, (_TILE, _TILE))
        least = (values[:, :, 1:].abs() - spread[:, :, 1:]).clamp_(min=0).square_().sum(2)
        D = (values[:, :, 0] + spread[:, :, 0]).clamp_(min=0)
        disc = D.square() - least
        q = D * self.norm.view(*D.shape[:2], 1) + disc.clamp(min=0).sqrt()
        possible = (disc > 0) & (q >= cover.view(len(D), 1, -1))
        return _Lists.of(possible.transpose(1, 2).flatten(0, 1))

    def see(
        self,
        chunk: _Chunk,
        item: Tensor,
        bank: TextureBank | None,
        q_before: Tensor,
        grey_before: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Put the nearest of them in front of what is there: 1/z and grey values (t, samples)."""
        _, values = chunk.evaluate(self.linear, item)
        rows = chunk.image[:, None] * self.linear.shape[1] + item
        D, E, F_ = values[:, :, 0], values[:, :, 1], values[:, :, 2]
        disc = D * D - E * E - F_ * F_
        q = disc.clamp(min=0).sqrt_() + D * self.norm[rows][..., None]
        # The height, times q, is m - n·q in the second coordinate.
        high = (values[:, :, 4] - q * self.n[1][rows][..., None]).abs_()
        high *= self.cylinder[rows][..., None]
        margin = torch.minimum(disc, q - high)
        score = torch.minimum(margin.mul_(_STEEP), q)
        best, slot = _nearest(score)
        front = (best > q_before).view(-1).nonzero()[:, 0]
        picked = _Picked(slot, item.shape[1], values.shape[2]).narrowed(front)
        constant = picked.constant

        def put(values: Tensor, into: Tensor) -> Tensor:
            return into.reshape(-1).index_copy(0, front, values).view(into.shape)

        # Exact q again, for the slot's bits have spoiled its last digits.
        D, E, F_ = (picked.value(values, k) for k in range(3))
        q = (D * D - E * E - F_ * F_).clamp_(min=0).sqrt_() + D * constant(self.norm[rows])
        q_after = put(q, q_before)
        if bank is None or grey_before is None:
            return q_after, None
        z = q.clamp(min=_TINY).reciprocal_()
        look = {name: constant(column[rows]) for name, column in self.look.items()}
        m = [picked.value(values, 3 + k) for k in range(3)]
        s = [m[k] * z - constant(self.n[k][rows]) for k in range(3)]
        cylinder = constant(self.cylinder[rows])
        # Stereographic on ellipsoids, and around cylinders: no poles, and mirrored at the rim.
        shrink = 0.5 / (1 + s[2].abs())
        u = s[0] * shrink + 0.5
        v = s[1] * torch.lerp(shrink, torch.full_like(shrink, 0.5), cylinder) + 0.5
        # The normal is s over the half axes; cylinders have none along theirs.
        s[1] = s[1] * (1 - cylinder)
        steep = [constant(self.steep[k][rows]) for k in range(3)]
        sun = [constant(self.sun[k][rows]) for k in range(3)]
        length = _dot([v * v for v in s], steep).clamp(min=_TINY).rsqrt()
        light = look["ambient"] + look["diffuse"] * (_dot(s, sun) * length).clamp(min=0)
        cosine = (_dot(s, m) * length).abs()
        area = look["area"] * chunk.samples.area * (z * shrink).square_() / cosine.clamp(min=0.05)
        area = torch.maximum(area, look["area0"])
        texel = bank.sample(
            look["texture"], look["x"] + look["width"] * u, look["y"] + look["height"] * v, area
        )
        return q_after, put((texel * look["gain"] + look["offset"]) * light, grey_before)


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


# --- sky -----------------------------------------------------------------------------------------


def _see_sky(
    chunk: _Chunk,
    q: Tensor,
    grey: Tensor,
    rays: Tensor,
    looks: _Looks,
    bank: TextureBank,
) -> None:
    """Give the samples that hit nothing, in place, the sky's grey value in their direction.

    rays: (I, 1, 3, 3) the world's direction as a function of the pixel.
    """
    open_ = (q.amin(1) <= 0).nonzero()[:, 0]
    if not len(open_):
        return
    chunk = chunk.part(open_)
    _, values = chunk.evaluate(rays, torch.zeros_like(chunk.tiles)[:, None])
    east, north, up = values[:, 0].unbind(1)
    length = (east * east).add_(north * north).add_(up * up).sqrt_()
    shrink = up.abs().add_(length).reciprocal_().mul_(0.5)  # stereographic

    def look(values: Tensor) -> Tensor:
        return values[chunk.image, -1:]

    x = look(looks.x) + look(looks.width) * (east * shrink + 0.5)
    y = look(looks.y) + look(looks.height) * (north * shrink + 0.5)
    texel = bank.sample(look(looks.texture), x, y, look(looks.area0).expand_as(x).contiguous())
    sky = texel.mul_(look(looks.gain)).add_(look(looks.offset))
    missed = (q[open_] <= 0).to(torch.float32)
    grey[open_] = torch.lerp(grey[open_], sky, missed)

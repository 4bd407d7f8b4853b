"""Ray casting of batches of scenes: antialiased grey images, exact depth at the pixel centres.

Every kind of primitive is intersected by functions that are linear in the pixel, so their values
at the middle of a tile of 8 × 8 pixels bound them within it: each tile gets the list of primitives
that may be visible in it, without approximation, and only those are evaluated per sample. The
nearest hit has the largest inverse depth q = 1/z.

The inner loops keep to additions, products, minima and integer operations: on a CPU, PyTorch's
comparisons, `where` and `gather` cost ten times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edm_hloc.synthetic.appearance import Appearance
from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.renderer.nearest import TINY
from edm_hloc.synthetic.renderer.quads import Quads
from edm_hloc.synthetic.renderer.round_shapes import RoundShapes
from edm_hloc.synthetic.renderer.shading import ImageAppearance, shade_sky
from edm_hloc.synthetic.renderer.tiles import (
    TILE,
    CandidateLists,
    Samples,
    TileChunk,
    TileGrid,
    max_elements,
)
from edm_hloc.synthetic.shapes import Shapes


@dataclass(frozen=True)
class Rendering:
    """V views of each of B scenes.

    Attributes:
        image: (B, V, H, W) float32 grey values in [0, 1].
        depth: (B, V, H, W) float32, metres along the optical axis, 0 for the sky.
    """

    image: Tensor
    depth: Tensor


def render(
    shapes: Shapes, appearance: Appearance, cameras: Cameras, height: int, width: int
) -> Rendering:
    """Render V views of each of B scenes.

    Edges are antialiased by five samples per pixel: its centre, and its corners, which neighbours
    share. Textures are filtered by their mip levels. The depth is that of the ray through the
    pixel's centre.

    Args:
        shapes: geometry of the B scenes.
        appearance: their materials, the lights of the views, and the textures.
        cameras: the B × V views.
        height, width: of the images, in pixels.
    """
    batch, views = cameras.K.shape[:2]
    grid = TileGrid(batch * views, height, width, cameras.K.device)
    q, grey = _cast(grid, shapes, cameras, ImageAppearance.of(appearance, cameras))
    assert grey is not None
    image = grid.untile(grey).clamp(0, 1).view(batch, views, height, width)
    return Rendering(image, _depth(grid, q, batch, views))


def render_depth(shapes: Shapes, cameras: Cameras, height: int, width: int) -> Tensor:
    """The depth of `render` alone: (B, V, H, W) float32, 0 where no primitive is hit."""
    batch, views = cameras.K.shape[:2]
    grid = TileGrid(batch * views, height, width, cameras.K.device)
    q, _ = _cast(grid, shapes, cameras, None)
    return _depth(grid, q, batch, views)


def _depth(grid: TileGrid, q: Tensor, batch: int, views: int) -> Tensor:
    q = grid.untile(q).reshape(batch, views, grid.height, grid.width)
    return torch.where(q > 0, 1 / q.clamp(min=TINY), 0.0)


def _cast(
    grid: TileGrid, shapes: Shapes, cameras: Cameras, appearance: ImageAppearance | None
) -> tuple[Tensor, Tensor | None]:
    """Inverse depth (0 for the sky) and, given an appearance, grey values of all pixels.

    Both are (tiles, 64), in the order of the tiles.
    """
    quads = Quads.prepare(grid, shapes, cameras, appearance)
    quad_lists, cover = quads.candidates(grid)
    rounds = RoundShapes.prepare(grid, shapes, cameras, appearance)
    round_lists = rounds.candidates(grid, cover)

    world_from_cam = cameras.cam_from_world[..., :3, :3].mT.flatten(0, 1)
    rays = grid.pixel_functions(world_from_cam[:, None], cameras.K.flatten(0, 1))
    q_all = torch.empty(len(cover), TILE**2, device=grid.device)
    grey_all = None if appearance is None else torch.empty_like(q_all)
    for chunk, longest, longest_round in _chunks(
        grid, quad_lists, round_lists, cover, antialias=appearance is not None
    ):
        q, grey = quads.cast(chunk, quad_lists.item[chunk.tiles, :longest])
        if longest_round:
            q, grey = rounds.cast(chunk, round_lists.item[chunk.tiles, :longest_round], q, grey)
        q_all.index_copy_(0, chunk.tiles, q[:, : TILE**2])
        if grey_all is not None and grey is not None and appearance is not None:
            shade_sky(chunk, q, grey, rays, appearance)
            grey_all.index_copy_(0, chunk.tiles, chunk.samples.filtered(grey))
    return q_all, grey_all


def _chunks(
    grid: TileGrid, quads: CandidateLists, rounds: CandidateLists, cover: Tensor, antialias: bool
) -> Iterator[tuple[TileChunk, int, int]]:
    """Cut the tiles into chunks whose lists are of about equal length.

    Tiles that show one quad everywhere, or only sky, have no edges: they form chunks of their own
    and need no samples at the pixel corners.

    Args:
        grid: the tiles.
        quads, rounds: the candidates of each tile.
        cover: (tiles,) positive where a quad covers the whole tile.
        antialias: sample the pixel corners, too, where there are edges.

    Yields:
        A chunk and the lengths of its longest lists of quads (at least 1) and of round primitives.
    """
    no_edges = (rounds.length == 0) & (quads.length <= (cover > 0).long())
    key = (rounds.length << 32) + quads.length
    key, order = key.masked_fill_(no_edges, -1).sort(descending=True, stable=True)
    keys = key.tolist()
    edges = len(keys) - keys.count(-1)
    centres = Samples.at_centres(grid.device)
    corners = Samples.with_corners(grid.device) if antialias else centres
    budget = max_elements(grid.device) * (1 if antialias else 2)
    start = 0
    while start < len(keys):
        samples = corners if start < edges else centres
        longest_round, longest = divmod(max(keys[start], 1), 1 << 32)
        weight = max(longest, 4 if longest_round else 1) + 2 * longest_round
        stop = start + max(budget // (samples.count * weight), 8)
        if start < edges:
            stop = min(stop, edges)
        chunk = TileChunk.of(order[start:stop], grid, samples)
        if longest_round:  # then the first tile's list of quads need not be the longest
            longest = max(int(quads.length[chunk.tiles].max()), 1)
        yield chunk, longest, longest_round
        start = stop

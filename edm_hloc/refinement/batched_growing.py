"""Region growing in all pairs of a batch at a time, on the device: see `growing.py`.

The waves are those of `growing.grow`: in each, the pairs that still grow are extended from the
matches that their last wave added. The host waits for the device three times a wave: for the
number of these, and for the free cells beside them in either photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.base.frames import inside
from edm_hloc.refinement.batched_affine import apply, inverse_2x2, local_affine_maps
from edm_hloc.refinement.batched_alignment import FlatMatches, Images, align
from edm_hloc.refinement.batched_points import MatchSets, cells_of, chunk_size, compacted, take
from edm_hloc.refinement.config import RefinementConfig


class Photos(NamedTuple):
    """One photo of each of B pairs, of one size.

    Attributes:
        images: their grey values.
        corners: (B, R, C, 2) float32 pixels, the corner of each 8 px cell.
        textured: (B, R, C) bool, whether it is stronger than noise.
    """

    images: Images
    corners: Tensor
    textured: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of cells."""
        return self.textured.shape[1], self.textured.shape[2]


@dataclass
class _State:
    """What grows: matches with room for more, and the cells that have none.

    Attributes:
        points: (B, L, 2) of either photo.
        correlation, match: (B, L), as in `MatchSets`.
        count: (B,) number of matches of each pair.
        free: (B, R · C) bool, of either photo.
    """

    points: list[Tensor]
    correlation: Tensor
    match: Tensor
    count: Tensor
    free: list[Tensor]


@dataclass(frozen=True)
class _Front:
    """The matches that the last wave added.

    Attributes:
        index: (B, Q) among the pair's matches.
        valid: (B, Q) bool, which are not padding.
        affine: (B, Q, 2, 2) maps around them, to the photo in which points are found.
    """

    index: Tensor
    valid: Tensor
    affine: Tensor


def grow(
    photos: tuple[Photos, Photos],
    found: MatchSets,
    growing: Tensor,
    config: RefinementConfig,
    limit: int,
) -> MatchSets:
    """Adds matches in cells without any that lie beside cells with one.

    Args:
        photos: the two photos of each pair.
        found: the matches to start from, without gaps (`MatchSets.compacted`).
        growing: (B,) bool, the pairs that are extended.
        config: the settings.
        limit: maximum number of matches of a pair.
    """
    found_length = found.valid.shape[1]
    room = max(0, limit - found_length)
    # One place more, which takes what is not added.
    points = [F.pad(p, (0, 0, 0, room + 1)) for p in (found.points0, found.points1)]
    correlation, match = F.pad(found.correlation, (0, room + 1)), F.pad(found.match, (0, room + 1))
    free = []
    for photo, taken in zip(photos, (found.points0, found.points1), strict=True):
        empty = photo.textured.flatten(1).clone()
        _mark(empty, cells_of(taken, *photo.grid), found.valid)
        free.append(empty)
    state = _State(points, correlation, match, found.valid.sum(dim=1), free)
    places = torch.arange(found_length + room + 1, device=found.valid.device)
    front = torch.where(growing, 0, state.count)
    while True:
        known = places < state.count[:, None]
        fresh = known & (places >= front[:, None]) & (state.count < limit)[:, None]
        index, valid = compacted(fresh)
        if index.shape[1] == 1 and not bool(valid.any()):
            break
        front = state.count
        points0, points1 = state.points
        onto1 = local_affine_maps(points0, points1, known, config.neighbours, index)
        for here, affine in ((0, onto1), (1, inverse_2x2(onto1))):
            _extend(photos, state, _Front(index, valid, affine), here, config, limit)
    points0, points1 = state.points
    known = places < state.count[:, None]
    return MatchSets(points0, points1, state.correlation, state.match, known)


def _mark(free: Tensor, cells: Tensor, valid: Tensor) -> None:
    """Says in `free` (B, R · C) that valid cells (B, N) are not free any more."""
    taken = torch.zeros_like(free, dtype=torch.uint8)
    taken.scatter_reduce_(1, cells, valid.byte(), "amax")
    free &= taken == 0


def _extend(
    photos: tuple[Photos, Photos],
    state: _State,
    new: _Front,
    here: int,
    config: RefinementConfig,
    limit: int,
) -> None:
    """Adds to `state` matches at corners of one photo (`here`: 0 or 1) beside the new ones."""
    photo, other = photos[here], photos[1 - here]
    rows, columns = photo.grid
    around = take(state.points[here], new.index)
    touched = torch.zeros_like(state.free[here], dtype=torch.uint8)
    touched.scatter_reduce_(1, cells_of(around, rows, columns), new.valid.byte(), "amax")
    near = F.max_pool2d(touched.unflatten(1, (1, rows, columns)).float(), 3, 1, 1) > 0
    beside = near.flatten(1) & state.free[here]
    state.free[here] = state.free[here] & ~beside
    pair, cell = beside.nonzero(as_tuple=True)
    if not len(pair):
        return
    corners = photo.corners.flatten(1, 2)[pair, cell]
    place = _nearest_new(pair, corners, around, new.valid)
    source = new.index[pair, place]
    affine = new.affine[pair, place]
    offset = corners - state.points[here][pair, source]
    guess = state.points[1 - here][pair, source] + apply(affine, offset)
    matches = FlatMatches(pair, corners, guess, affine)
    moved, correlation = align((photo.images, other.images), matches, config)
    good = (
        (correlation >= config.min_grown_correlation)
        & ((moved - guess).square().sum(dim=1) <= (config.prior_sigma / 2) ** 2)
        & inside(moved, *other.images.size)
    )
    # The number of good ones before each in its pair says where it goes.
    numbers = good.long().cumsum(0)
    of_pair = torch.zeros_like(state.count).scatter_reduce_(0, pair, numbers, "amax")
    before = torch.cat([of_pair.new_zeros(1), of_pair.cummax(0).values[:-1]])
    target = state.count[pair] + numbers - 1 - before[pair]
    good &= target < limit
    rest = state.match.shape[1] - 1
    target = torch.where(good, target, rest)
    match = state.match[pair, source]
    state.points[here][pair, target] = corners
    state.points[1 - here][pair, target] = moved
    state.correlation[pair, target] = correlation
    state.match[pair, target] = match
    state.count = state.count + torch.zeros_like(state.count).scatter_add_(0, pair, good.long())
    # A cell of the other photo may get several matches: they came from different cells.
    free = state.free[1 - here]
    cells = pair * free.shape[1] + cells_of(moved, *other.grid)
    taken = torch.zeros_like(free, dtype=torch.uint8).flatten()
    taken.scatter_reduce_(0, cells, good.byte(), "amax")
    state.free[1 - here] = free & (taken.view_as(free) == 0)


def _nearest_new(pair: Tensor, corners: Tensor, around: Tensor, valid: Tensor) -> Tensor:
    """Which (M,) of its pair's new points (B, Q, 2) is nearest to each corner (M, 2)."""
    found = []
    step = max(1, chunk_size(corners.device) // around.shape[1])
    for start in range(0, len(pair), step):
        some = pair[start : start + step]
        distance = (corners[start : start + step, None] - around[some]).square().sum(dim=2)
        found.append(distance.masked_fill_(~valid[some], torch.inf).argmin(dim=1))
    return torch.cat(found)

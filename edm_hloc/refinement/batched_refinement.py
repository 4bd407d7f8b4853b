"""The refinement of a batch of pairs on a GPU: what `RefinedMatcher` does pair by
pair on a CPU.

Matches of all pairs lie in tensors padded to one length. The host waits for the device when these
are made shorter, in each wave of growing, and for the result; never for a single pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.frames import inside
from edm_hloc.base.matches import Matches
from edm_hloc.refinement.batched_affine import (
    apply,
    inverse_2x2,
    local_affine_maps,
    neighbour_support,
)
from edm_hloc.refinement.batched_alignment import FlatMatches, align
from edm_hloc.refinement.batched_growing import Photos, grow
from edm_hloc.refinement.batched_points import MatchSets, cells_of, compacted, repeated, take
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corner_matches import DUPLICATE, aligned_neighbours, cell_offsets


@dataclass(frozen=True)
class BatchedRefinement:
    """Refines the matches of a batch of pairs.

    Attributes:
        config: the settings.
        confident: score from which the network's matches are trusted.
        limit: maximum number of matches of a pair.
        reduction: see `corner_matches.align_to_corners`.
    """

    config: RefinementConfig
    confident: float
    limit: int
    reduction: float = 1.0

    def refined(self, photos: tuple[Photos, Photos], found: Sequence[Matches]) -> list[Matches]:
        """The matches of each pair after all stages but the second look.

        Args:
            photos: the photos of all pairs.
            found: the matches of each pair, in pixels of the networks' inputs.
        """
        sets, scores = self._supported_candidates(*_uploaded(found, photos[0].corners.device))
        config = self.config
        aligned = self._aligned_to_corners(photos, sets)
        agree = (
            (aligned.correlation >= config.min_correlation)
            & inside(aligned.points0, *photos[0].images.size)
            & inside(aligned.points1, *photos[1].images.size)
        )
        aligned = self._best(aligned.where(agree), scores)
        aligned = aligned.where(~repeated(aligned, DUPLICATE)).compacted()
        support = self._support(aligned)
        isolated = aligned.where(
            (aligned.correlation >= config.min_isolated_correlation)
            & (_on_texture(photos, aligned) | (support >= config.min_support))
        )
        supported = aligned.where(support >= config.min_aligned_support).compacted()
        growing = supported.valid.sum(dim=1) >= config.min_matches_to_grow
        grown = grow(photos, supported, growing, config, self.limit)
        grown_once = grown.where(~repeated(grown, DUPLICATE))
        again = grown_once.where(self._support(grown_once) >= config.min_aligned_support)
        # Pairs with few matches are not asked twice.
        grown = grown._replace(valid=torch.where(growing[:, None], again.valid, grown.valid))
        grown = grown.joined(isolated).compacted()
        grown = grown.where(~repeated(grown, DUPLICATE))
        # The two that come from one match differ in correlation: equal scores would be ties where
        # keypoints are merged.
        final = take(scores, grown.match) * grown.correlation.clamp(min=0)
        return self._downloaded(grown, final)

    def _supported_candidates(self, sets: MatchSets, scores: Tensor) -> tuple[MatchSets, Tensor]:
        """The matches that neighbours support in the pixels of what the network saw, best first;
        the confident ones if these suffice."""
        config = self.config
        points = sets.points0 / self.reduction, sets.points1 / self.reduction
        support = neighbour_support(*points, sets.valid, config.neighbours)
        kept = sets.valid & (support >= config.min_support)
        confident = kept & (scores >= self.confident)
        suffice = confident.sum(dim=1) >= config.target_matches
        kept = torch.where(suffice[:, None], confident, kept)
        order = _by_score(scores, kept)
        sets = sets.taken(order, take(kept, order))
        index, valid = compacted(sets.valid)
        return sets.taken(index, valid), take(take(scores, order), index)

    def _aligned_to_corners(self, photos: tuple[Photos, Photos], sets: MatchSets) -> MatchSets:
        """Two aligned matches for each match: see `corner_matches.align_to_corners`."""
        config = replace(self.config, prior_sigma=self.reduction * self.config.prior_sigma)
        offsets = torch.from_numpy(cell_offsets(self.reduction)).to(sets.points0.device)
        copies = len(offsets)
        affine = local_affine_maps(sets.points0, sets.points1, sets.valid, config.neighbours)
        inverse = inverse_2x2(affine)
        points = [sets.points0, sets.points1]

        def copied(values: Tensor) -> Tensor:
            """(B, N, …) → (B, N · copies, …)."""
            return values.repeat_interleave(copies, dim=1)

        moved = []
        for here, A in ((0, affine), (1, inverse)):
            photo = photos[here]
            cell = cells_of((points[here][:, :, None] + offsets).flatten(1, 2), *photo.grid)
            textured = take(photo.textured.flatten(1), cell)
            own = copied(cells_of(points[here], *photo.grid)) == cell
            wanted = copied(sets.valid) & (textured | own)
            first = _first_of_its_cell(cell, wanted, photo.textured[0].numel())
            corners = take(photo.corners.flatten(1, 2), cell)
            others = copied(points[1 - here]) + apply(copied(A), corners - copied(points[here]))
            moved.append((corners, others, first))
        (corners0, others0, first0), (corners1, others1, first1) = moved
        index = (torch.arange(cell.shape[1], device=cell.device) // copies).expand(cell.shape)
        both = MatchSets(
            torch.cat([corners0, others1], dim=1),
            torch.cat([others0, corners1], dim=1),
            torch.zeros_like(others0[..., 0]).repeat(1, 2),
            torch.cat([index, index], dim=1),
            torch.cat([first0, first1], dim=1),
        )
        in_photo0 = torch.arange(both.valid.shape[1], device=cell.device) < cell.shape[1]
        affine = torch.cat([copied(affine), copied(affine)], dim=1)
        images = photos[0].images, photos[1].images
        for number in range(config.rounds):
            if number > 0:
                affine = local_affine_maps(
                    both.points0, both.points1, both.valid, config.neighbours
                )
            for fixed in (0, 1):
                chosen = (both.valid & (in_photo0 if fixed == 0 else ~in_photo0)).nonzero()
                pair, place = chosen.unbind(dim=1)
                sides = [both.points0[pair, place], both.points1[pair, place]]
                A = affine[pair, place]
                flat = FlatMatches(
                    pair, sides[fixed], sides[1 - fixed], A if fixed == 0 else inverse_2x2(A)
                )
                result, correlation = align((images[fixed], images[1 - fixed]), flat, config)
                (both.points1 if fixed == 0 else both.points0)[pair, place] = result
                both.correlation[pair, place] = correlation
        return both

    def _best(self, aligned: MatchSets, scores: Tensor) -> MatchSets:
        """As many of the best as are confident, or twice `target_matches`, best first."""
        score = take(scores, aligned.match)
        confident = (aligned.valid & (score >= self.confident)).sum(dim=1)
        order = _by_score(score, aligned.valid)
        rank = torch.arange(order.shape[1], device=order.device)
        few = rank < confident.clamp(min=2 * self.config.target_matches)[:, None]
        return aligned.taken(order, take(aligned.valid, order) & few)

    def _support(self, sets: MatchSets) -> Tensor:
        """Share (B, N) of the neighbours of each aligned match that are consistent with it."""
        neighbours = aligned_neighbours(self.config, self.reduction)
        return neighbour_support(sets.points0, sets.points1, sets.valid, neighbours, True)

    def _downloaded(self, sets: MatchSets, scores: Tensor) -> list[Matches]:
        """The best `limit` matches of each pair, in one copy from the device."""
        order = _by_score(scores, sets.valid)[:, : self.limit]
        columns = [take(sets.points0, order), take(sets.points1, order)]
        columns += [take(values, order)[..., None] for values in (scores, sets.valid.float())]
        rows = torch.cat(columns, dim=2).cpu().numpy()
        found = []
        for row in rows:
            row = row[row[:, 5] > 0]
            found.append(Matches(row[:, 0:2].copy(), row[:, 2:4].copy(), row[:, 4].copy()))
        return found


def _uploaded(found: Sequence[Matches], device: torch.device) -> tuple[MatchSets, Tensor]:
    """The matches of all pairs, and their scores (B, N), in one copy to the device."""
    longest = max(1, *(len(matches) for matches in found))
    rows = np.zeros((len(found), longest, 6), np.float32)
    for row, matches in zip(rows, found, strict=True):
        count = len(matches)
        row[:count, 0:2], row[:count, 2:4] = matches.keypoints0, matches.keypoints1
        row[:count, 4], row[:count, 5] = matches.scores, 1
    together = torch.from_numpy(rows).to(device)
    scores = together[..., 4].contiguous()
    number = torch.arange(longest, device=device).expand(scores.shape)
    points = together[..., 0:2].contiguous(), together[..., 2:4].contiguous()
    return MatchSets(*points, torch.zeros_like(scores), number, together[..., 5] > 0), scores


def _on_texture(photos: tuple[Photos, Photos], sets: MatchSets) -> Tensor:
    """Whether both points (B, N) are in cells with texture: any two without it correlate."""
    return torch.stack(
        [
            take(photo.textured.flatten(1), cells_of(points, *photo.grid))
            for photo, points in zip(photos, (sets.points0, sets.points1), strict=True)
        ]
    ).all(dim=0)


def _by_score(scores: Tensor, valid: Tensor) -> Tensor:
    """Indices (B, N) of the valid matches by descending scores (B, N), equal ones in order."""
    keys = scores.masked_fill(~valid, -torch.inf)
    return torch.sort(keys, dim=1, descending=True, stable=True).indices


def _first_of_its_cell(cell: Tensor, valid: Tensor, cells: int) -> Tensor:
    """Which valid matches (B, N) are the first in their cell (B, N), a number below `cells`."""
    length = cell.shape[1]
    index = torch.arange(length, device=cell.device).expand(cell.shape)
    first = torch.full((len(cell), cells), length, device=cell.device)
    first.scatter_reduce_(1, cell, index.where(valid, length), "amin")
    return valid & (take(first, cell) == index)

"""Sets of points of a batch of pairs, padded to one length, on the device.

The tensors of a batch have a row for each pair; `valid` says which entries are not padding. Nothing
here waits for the device but `compacted`, which has to know the longest row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from edm_hloc.base.grid import CELL

# Points as far as the farthest of the nearest are looked at up to this number, so that of equal
# distances the first in the list count. No more points of the 8 px grid lie on such a circle.
_TIES = 12


class MatchSets(NamedTuple):
    """Up to N aligned matches of each of B pairs.

    Attributes:
        points0, points1: (B, N, 2) float32 pixels.
        correlation: (B, N) float32, of the patches around them.
        match: (B, N) long, index of the network's match that each comes from.
        valid: (B, N) bool.
    """

    points0: Tensor
    points1: Tensor
    correlation: Tensor
    match: Tensor
    valid: Tensor

    def where(self, keep: Tensor) -> MatchSets:
        """Without those that are not in `keep` (B, N)."""
        return self._replace(valid=self.valid & keep)

    def taken(self, index: Tensor, valid: Tensor) -> MatchSets:
        """Those of indices (B, K), of which `valid` (B, K) are not padding."""
        points0, points1, correlation, match = (take(values, index) for values in self[:4])
        return MatchSets(points0, points1, correlation, match, valid)

    def joined(self, others: MatchSets) -> MatchSets:
        """These, followed by others."""
        return MatchSets(*(torch.cat(both, dim=1) for both in zip(self, others, strict=True)))

    def compacted(self) -> MatchSets:
        """The same without gaps, as short as the longest set."""
        return self.taken(*compacted(self.valid))


def chunk_size(device: torch.device) -> int:
    """Number of float32 values that a temporary tensor may have: a 64th of a GPU's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 256
    return 1 << 21


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows (B, K, …) of values (B, N, …) at indices (B, K)."""
    extra = values.shape[2:]
    index = index.reshape(*index.shape, *(1 for _ in extra)).expand(*index.shape, *extra)
    return values.gather(1, index)


def compacted(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (B, K) of the entries kept of each row (B, N), in order, and which are not padding.

    K is the largest number in a row, which the host waits for; at least 1.
    """
    counts = keep.sum(dim=1)
    longest = max(1, int(counts.max())) if keep.numel() else 1
    if not keep.shape[1]:
        keep = keep.new_zeros(len(keep), 1)
    order = torch.sort((~keep).byte(), dim=1, stable=True).indices[:, :longest]
    places = torch.arange(longest, device=keep.device)
    return order, places < counts[:, None]


def cells_of(points: Tensor, rows: int, columns: int) -> Tensor:
    """Numbers row · columns + column (…) of the cells whose grid points are nearest to (…, 2).

    Points outside get a border cell, as from `base.grid.cells_of`.
    """
    column, row = (points / CELL).round().long().unbind(dim=-1)
    return row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1)


def nearest(
    points: Tensor, valid: Tensor, queries: Tensor, count: int, itself: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest valid points (B, N, 2) to each query (B, Q, 2), nearest first.

    Args:
        points, valid: (B, N, 2) and (B, N).
        queries: (B, Q, 2).
        count: K, number of points wanted.
        itself: (B, Q) indices of points that are left out.

    Returns:
        Squared distances (B, Q, K), inf where a set has fewer points; and indices (B, Q, K).
    """
    batch, length = valid.shape
    last = max(0, length - 1)
    missing = count - length
    if missing > 0:
        points = torch.cat([points, points.new_zeros(batch, missing, 2)], dim=1)
        valid = torch.cat([valid, valid.new_zeros(batch, missing)], dim=1)
        length = count
    squared, index = [], []
    step = max(1, chunk_size(points.device) // (batch * length))
    for start in range(0, queries.shape[1], step):
        some = queries[:, start : start + step]
        # Differences, as squares of whole coordinates would cancel each other.
        distance = (some[..., 0, None] - points[:, None, :, 0]).square_()
        distance += (some[..., 1, None] - points[:, None, :, 1]).square_()
        distance.masked_fill_(~valid[:, None], torch.inf)
        if itself is not None:
            distance.scatter_(2, itself[:, start : start + step, None], torch.inf)
        found = distance.topk(min(length, count + _TIES), dim=2, largest=False)
        by_index = found.indices.sort(dim=2).indices
        value = found.values.gather(2, by_index)
        order = value.sort(dim=2, stable=True).indices[..., :count]
        squared.append(value.gather(2, order))
        index.append(found.indices.gather(2, by_index.gather(2, order)).clamp_(max=last))
    if not squared:
        empty = queries.new_zeros(batch, 0, count)
        return empty, empty.long()
    return torch.cat(squared, dim=1), torch.cat(index, dim=1)


def repeated(sets: MatchSets, within: float) -> Tensor:
    """Which matches (B, N) repeat an earlier one of their pair: (B, N) bool.

    They do where the two differ by no more than `within` pixels in both images together.
    """
    batch, length = sets.valid.shape
    found = torch.zeros_like(sets.valid)
    position = torch.arange(length, device=found.device)
    step = max(1, chunk_size(found.device) // max(1, batch * length))
    for start in range(0, length, step):
        part = slice(start, min(start + step, length))
        squared = torch.zeros(batch, part.stop - start, length, device=found.device)
        for points in (sets.points0, sets.points1):
            for axis in (0, 1):
                squared += (points[:, part, None, axis] - points[:, None, :, axis]).square_()
        same = (squared <= within * within) & (position < position[part, None])
        found[:, part] = (same & sets.valid[:, None]).any(dim=2)
    return found & sets.valid

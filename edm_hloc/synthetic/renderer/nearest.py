"""The nearest hit of each sample, and look-ups of what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

TINY = 1e-12
"""Smallest inverse depth that is divided by, 1/metres."""

STEEP = 1e9
"""Factor that turns the signed margin of a hit into a score: inside a primitive the margin becomes
larger than any inverse depth, outside far below 0, so that one minimum does the comparison."""


def nearest(score: Tensor) -> tuple[Tensor, Tensor]:
    """The largest score over the candidates and the slot it lies in.

    Positive floats are ordered as their bits are, so the slot's number takes the place of the
    lowest bits, and one maximum of integers gives both. Scores that differ in these bits only are
    decided by the slot.

    Args:
        score: (t, k, samples) float32, positive where a candidate is hit.

    Returns:
        The largest scores (t, samples), their lowest bits replaced by the slot, and the slots
        (t, samples) int32.
    """
    count = score.shape[1]
    mask = (1 << (count - 1).bit_length()) - 1
    slots = torch.arange(count, dtype=torch.int32, device=score.device)
    packed = score.view(torch.int32).bitwise_and_(~mask).bitwise_or_(slots[:, None])
    best = packed.amax(1)
    return best.view(torch.float32), best.bitwise_and(mask).clamp_(max=count - 1)


@dataclass(frozen=True)
class NearestLookup:
    """Takes what belongs to each sample's slot out of arrays of all candidates.

    Attributes:
        value_index: (m,) int32, where a sample's value of function 0 lies in the flattened values.
        constant_index: (m,) int32, where its constant lies in the flattened constants.
        shape: of what the look-ups give: (t, samples), or (m,) after `narrowed`.
        samples: per tile.
    """

    value_index: Tensor
    constant_index: Tensor
    shape: tuple[int, ...]
    samples: int

    @classmethod
    def of(cls, slot: Tensor, count: int, functions: int) -> NearestLookup:
        """Look-ups for slots (t, samples) int32 in lists of `count` candidates with f functions."""
        tiles, samples = slot.shape
        tile = torch.arange(tiles, dtype=torch.int32, device=slot.device)
        within = torch.arange(samples, dtype=torch.int32, device=slot.device)
        item = slot + tile[:, None] * count
        first = (item * (functions * samples)).add_(within).view(-1)
        return cls(first, item.view(-1), tuple(slot.shape), samples)

    def narrowed(self, samples: Tensor) -> NearestLookup:
        """Look-ups for some of the samples only, given by their flat numbers (m,)."""
        return replace(
            self,
            value_index=self.value_index.index_select(0, samples),
            constant_index=self.constant_index.index_select(0, samples),
            shape=tuple(samples.shape),
        )

    def value(self, values: Tensor, function: int) -> Tensor:
        """The value of one function, from values (t, k, f, samples)."""
        flat = values.view(-1)[function * self.samples :]
        return flat.index_select(0, self.value_index).view(self.shape)

    def constant(self, values: Tensor) -> Tensor:
        """The constant of the slot's primitive, from constants (t, k)."""
        return values.reshape(-1).index_select(0, self.constant_index).view(self.shape)


class SingleLookup:
    """The look-ups of `NearestLookup` for lists of one candidate."""

    def value(self, values: Tensor, function: int) -> Tensor:
        """The value of one function (t, samples), from values (t, 1, f, samples)."""
        return values[:, 0, function]

    def constant(self, values: Tensor) -> Tensor:
        """The constants (t, 1) themselves."""
        return values

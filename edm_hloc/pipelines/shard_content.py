"""What the file of a shard holds besides the matches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py

from edm_hloc.base.h5 import stored_provenance, stored_text
from edm_hloc.matching.shards import StoredPair, stored_pairs
from edm_hloc.pairs.rules import Pair


@dataclass(frozen=True)
class ShardContent:
    """What the file of a shard holds besides the matches.

    Attributes:
        stored: its pairs.
        skipped: photos that could not be read, with the reason.
        levels: black and white of 16-bit photos, see `StoredLevels`.
        left_out: pairs at which the workers failed, with the reason.
        provenance: of the matches.
    """

    stored: list[StoredPair]
    skipped: dict[str, str]
    levels: dict[str, Any]
    left_out: dict[Pair, str]
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, h5: h5py.File) -> ShardContent:
        """Raises KeyError, ValueError and the like if the file is damaged or no shard's."""
        skipped, levels = (json.loads(stored_text(h5, name)) for name in ("skipped", "levels"))
        listed = json.loads(stored_text(h5, "left_out")) if "left_out" in h5.attrs else []
        left_out = {(a, b): why for a, b, why in listed}
        return cls(stored_pairs(h5), skipped, levels, left_out, stored_provenance(h5))

    def is_of(self, pairs: Sequence[Pair]) -> bool:
        """Whether it is all that could be matched of these pairs."""
        wanted = [pair for pair in pairs if pair not in self.left_out]
        expected = [pair for pair in wanted if self.skipped.keys().isdisjoint(pair)]
        return [pair.names for pair in self.stored] == expected

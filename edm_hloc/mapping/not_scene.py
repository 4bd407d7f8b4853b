"""Leaves out the matches of what stays at the same pixels of photos and is not the scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edm_hloc.mapping.backdrop import Backdrop, BackdropSummary, find_backdrops, in_backdrop
from edm_hloc.mapping.still import Matched, StillPlaces, find_still_places
from edm_hloc.pairs.rules import Pair


class NotScene:
    """What stays at the same pixels: backgrounds of turning objects, and parts of all photos.

    Args:
        pairs: names of the photos of each pair.
        matched: gives the matched points (M, 2) of both photos, or None.
        sizes: (width, height) of each photo by name.

    Attributes:
        still: what was found in all photos of a size; where it is not certain, it is kept.
        backdrops: the still background of each photo that has one, by name.
        kept: pairs of others with a background that stays, but is the scene (see `find_backdrops`).
        left_out: number of matches left out for it so far.
    """

    def __init__(
        self, pairs: Sequence[Pair], matched: Matched, sizes: Mapping[str, tuple[int, int]]
    ) -> None:
        self._sizes = sizes
        self.backdrops: dict[str, Backdrop] = {}
        self._places: dict[tuple[int, int], StillPlaces] = {}
        self.left_out = self._in_backdrops = 0

        def rest(pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
            both = matched(pair)
            if both is None or not self.concerns(pair):
                return both
            kept = ~np.logical_or(*self._stay(pair, both))
            return both[0][kept], both[1][kept]

        found = find_still_places(pairs, matched, self._sizes)
        self._places = {places.size: places for places in found if places.summary().certain}
        self.backdrops, self.kept = find_backdrops(pairs, rest, self._sizes)
        if self.backdrops and len(found) > len(self._places):  # some of which may be explained now
            uncertain = find_still_places(pairs, rest, self._sizes)
            found = [*self._places.values(), *(p for p in uncertain if not p.summary().certain)]
        self.still = tuple(places.summary() for places in found)

    def concerns(self, pair: Pair) -> bool:
        """Whether matches of a pair may be left out."""
        size, other = (self._sizes[name] for name in pair)
        return not self.backdrops.keys().isdisjoint(pair) or (
            size == other and size in self._places
        )

    def leave_out(self, pair: Pair, points: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Counts the matches of a pair that are left out, and tells which: (M,) bool.

        Args:
            pair: names of the photos.
            points: matched points (M, 2) of both.
        """
        stay, background = self._stay(pair, points)
        self.left_out += int(stay.sum())
        self._in_backdrops += int((background & ~stay).sum())
        return stay | background

    def in_background(self, pair: Pair, points: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Which matches (M,) of a pair are in the background of a photo, see `in_backdrop`."""
        return in_backdrop(self.backdrops, pair, points)

    def backdrop(self) -> BackdropSummary | None:
        """The photos before whose background an object turns, and what was left out so far."""
        if not self.backdrops:
            return None
        return BackdropSummary(tuple(self.backdrops), self._in_backdrops)

    def _stay(
        self, pair: Pair, points: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which matches (M,) of a pair stay at places of all photos, which in backgrounds."""
        size, other = (self._sizes[name] for name in pair)
        stay = np.zeros(len(points[0]), bool)
        if size == other and size in self._places:
            stay = self._places[size].of(*points)
        return stay, self.in_background(pair, points)

"""Cuts a list of pairs into blocks for many workers, such that few photos are in two blocks.

Each worker encodes the photos of its block, so a photo in two blocks is encoded twice. Two ways are
compared, and the better one is used:

* neighbourhood expansion (Zhang et al., "Graph Edge Partitioning via Neighborhood Heuristic", KDD
  2017): a block takes all pairs among its photos, and then the photo that brings the fewest others
  along. It suits photos with some partners each. Annealing (see `block_annealing.py`) follows;
* the order in which one worker would match the pairs, cut into pieces, which suits all pairs.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

from edm_hloc.matching.block_annealing import anneal
from edm_hloc.matching.schedule import order_pairs
from edm_hloc.pairs.rules import Pair, names_in


def cut_into_blocks(pairs: Sequence[Pair], count: int) -> list[list[Pair]]:
    """Blocks of about equally many pairs, each pair in one; the same for the same pairs.

    Args:
        pairs: names of two photos each, each pair once.
        count: number of blocks; fewer are made of fewer pairs.

    Returns:
        The blocks, each with its pairs in the order in which they were given.
    """
    if not pairs:
        return []
    size = len(pairs) / count
    ordered = order_pairs(pairs, max(2, round(2 * math.sqrt(size))))
    ends = [round(size * block) for block in range(count + 1)]
    pieces = [ordered[a:b] for a, b in itertools.pairwise(ends) if a < b]
    expanded = _expanded(pairs, count)
    best = min(expanded, anneal(expanded), pieces, key=count_extra_encodes)
    position = {pair: i for i, pair in enumerate(pairs)}
    return [sorted(block, key=position.__getitem__) for block in best]


def count_extra_encodes(blocks: Sequence[Sequence[Pair]]) -> int:
    """How many more photos are encoded in these blocks than if all pairs were in one."""
    inside = [names_in(block) for block in blocks]
    return sum(map(len, inside)) - len({name for names in inside for name in names})


def _expanded(pairs: Sequence[Pair], count: int) -> list[list[Pair]]:
    """Blocks by neighbourhood expansion."""
    number = {name: i for i, name in enumerate(names_in(pairs))}
    graph = _OpenPairs([(number[a], number[b]) for a, b in pairs], len(number))
    blocks = []
    for block in range(count):
        limit = -(-graph.left // (count - block))
        if limit:
            blocks.append([pairs[i] for i in _grow(graph, limit)])
    return blocks


class _OpenPairs:
    """The pairs that are in no block yet, as the graph of their photos 0 … N − 1."""

    def __init__(self, ends: Sequence[tuple[int, int]], photos: int) -> None:
        self.partners: list[dict[int, int]] = [{} for _ in range(photos)]
        for pair, (a, b) in enumerate(ends):
            self.partners[a][b] = self.partners[b][a] = pair
        self.left = len(ends)
        self._touched: set[int] = set()
        self._next = 0

    def take(self, a: int, b: int) -> int:
        """Takes a pair out, and gives its number."""
        self.left -= 1
        self._touched |= {a, b}
        del self.partners[b][a]
        return self.partners[a].pop(b)

    def next_photo(self) -> int:
        """A photo to go on with: of those in a block already the one with the fewest open pairs."""
        self._touched = {photo for photo in self._touched if self.partners[photo]}
        if self._touched:
            return min(self._touched, key=lambda photo: (len(self.partners[photo]), photo))
        while not self.partners[self._next]:
            self._next += 1
        return self._next


def _grow(graph: _OpenPairs, limit: int) -> list[int]:
    """Takes up to `limit` pairs out of the graph that share few photos; gives their numbers."""
    taken: list[int] = []
    inside: set[int] = set()
    finished: set[int] = set()
    outside: dict[int, int] = {}  # number of open partners of a photo that are not in the block
    queue: list[tuple[int, int]] = []

    def put(photo: int) -> None:
        outside[photo] = sum(other not in inside for other in graph.partners[photo])
        heapq.heappush(queue, (outside[photo], photo))

    def add(photo: int) -> None:
        inside.add(photo)
        for other in sorted(inside & graph.partners[photo].keys()):
            if len(taken) < limit:
                taken.append(graph.take(photo, other))
        put(photo)

    while len(taken) < limit:
        while queue and (queue[0][1] in finished or outside[queue[0][1]] != queue[0][0]):
            heapq.heappop(queue)  # outdated
        photo = heapq.heappop(queue)[1] if queue else graph.next_photo()
        if photo not in inside:
            add(photo)
        finished.add(photo)
        for other in sorted(graph.partners[photo].keys() - inside):
            if len(taken) < limit:
                add(other)
    return taken

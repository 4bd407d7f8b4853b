"""In which order pairs are matched, and how many images must be encoded for it."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from edm_hloc.pairs.rules import Pair, names_in


def order_pairs(pairs: Sequence[Pair], capacity: int) -> list[Pair]:
    """Orders pairs so that few images are encoded more than once.

    Images are numbered by a reverse Cuthill–McKee ordering, which puts images that are matched to
    each other close together. The image × image matrix of pairs is then cut into tiles, which are
    matched row by row, every other row from right to left. Two shapes of tiles are compared, and
    the one that needs fewer encodes is used:

    * columns of `capacity` − 1 images: these stay in memory while the others pass one by one,
      which is the optimum for exhaustive pairs;
    * squares of `capacity` / 2 images a side, which are better for a narrow band of pairs.

    Args:
        pairs: image names, each pair once.
        capacity: number of encoded images that fit in memory, at least 2.

    Returns:
        The same pairs in another order.
    """
    if not pairs:
        return []
    names = names_in(pairs)
    index = {name: i for i, name in enumerate(names)}
    ends = np.array([[index[a], index[b]] for a, b in pairs], dtype=np.int32).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), (len(names),) * 2)
    permutation = reverse_cuthill_mckee((graph + graph.T).tocsr(), symmetric_mode=True)
    rank = np.empty(len(names), dtype=np.int64)
    rank[permutation] = np.arange(len(names))
    low, high = np.sort(rank[ends], axis=1).T
    candidates = []
    for height, width in ((capacity - 1, 1), (capacity // 2, capacity // 2)):
        row, column = low // max(1, height), high // max(1, width)
        column = np.where(row % 2 == 0, column, -column)
        order = np.lexsort((high, low, column, row))
        candidates.append((count_encodes(ends[order].tolist(), capacity), order))
    _, order = min(candidates, key=lambda candidate: candidate[0])
    return [pairs[i] for i in order]


def count_encodes(pairs: Sequence[tuple[Hashable, Hashable]], capacity: int) -> int:
    """Counts the encodes that pairs need in this order, with a cache of `capacity` images.

    The image that is needed again latest is evicted first (Bélády's algorithm, which is optimal).

    Args:
        pairs: two images each, in the order in which they are matched.
        capacity: number of encoded images that fit in memory; below 2 it counts as 2.
    """
    never = len(pairs)
    upcoming: dict[Hashable, int] = {}
    next_uses: list[list[int]] = []  # for each pair, the positions where its images are next used
    for position in range(len(pairs) - 1, -1, -1):
        next_uses.append([upcoming.get(name, never) for name in pairs[position]])
        upcoming.update(dict.fromkeys(pairs[position], position))
    next_uses.reverse()
    cached: dict[Hashable, int] = {}  # next use by image
    # A heap of (-next use, …), so that the latest comes first. Entries that do not agree with
    # `cached` are outdated and skipped.
    latest: list[tuple[int, int, Hashable]] = []
    encodes = 0
    for position, pair in enumerate(pairs):
        encodes += sum(name not in cached for name in set(pair))
        for side, name in enumerate(pair):
            cached[name] = next_uses[position][side]
            heapq.heappush(latest, (-cached[name], 2 * position + side, name))
        in_use = []
        while len(cached) > max(2, capacity):
            entry = heapq.heappop(latest)
            if cached.get(entry[2]) != -entry[0]:
                continue
            if entry[2] in pair:
                in_use.append(entry)
            else:
                del cached[entry[2]]
        for entry in in_use:
            heapq.heappush(latest, entry)
    return encodes

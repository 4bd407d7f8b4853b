"""The order of pairs, and the number of encodes it needs."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.matching.schedule import count_encodes, order_pairs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(15, 29)), unique=True, max_size=60),
    st.integers(2, 12),
)
def test_ordering_keeps_the_pairs(edges: list[tuple[int, int]], capacity: int) -> None:
    pairs = [(f"{a}", f"{b}") for a, b in edges]
    ordered = order_pairs(pairs, capacity)
    assert sorted(ordered) == sorted(pairs)
    assert count_encodes(ordered, capacity) == encodes(ordered, capacity)


def encodes(order: list[tuple[str, str]], capacity: int) -> int:
    """Cache misses of an order of pairs when the image needed again latest leaves."""
    uses: dict[str, list[int]] = {}
    for position, pair in enumerate(order):
        for name in pair:
            uses.setdefault(name, []).append(position)
    inside: set[str] = set()
    misses = 0
    for position, pair in enumerate(order):
        for name in pair:
            if name not in inside:
                misses += 1
                inside.add(name)
        while len(inside) > capacity:
            later = {n: next((u for u in uses[n] if u > position), 10**9) for n in inside}
            inside.remove(max(inside - set(pair), key=lambda n: later[n]))
    return misses


def test_ordering_beats_the_given_order() -> None:
    """A shuffled sequence comes out near the bound, all pairs far below row by row."""
    rng = np.random.default_rng(0)
    label = [f"{i:03d}" for i in rng.permutation(120)]
    near = [(label[i], label[j]) for i in range(120) for j in range(i + 1, min(120, i + 6))]
    near = [near[i] for i in rng.permutation(len(near))]
    assert count_encodes(near, 12) > 600
    assert count_encodes(order_pairs(near, 12), 12) <= 1.05 * 120

    every = list(itertools.combinations(sorted(label), 2))
    lower_bound = len(every) / 11  # an encode can serve at most 11 pairs with 12 in memory
    assert count_encodes(order_pairs(every, 12), 12) <= 1.15 * lower_bound
    assert count_encodes(every, 12) >= 8 * lower_bound

    # Photos of a plane, each with its 20 nearest: every image at least once.
    points = rng.random((300, 2))
    nearest = np.argsort(((points[:, None] - points) ** 2).sum(-1), axis=1)[:, 1:21]
    found = {tuple(sorted((i, int(j)))) for i in range(300) for j in nearest[i]}
    plane = [(f"{a:03d}", f"{b:03d}") for a, b in rng.permutation(sorted(found))]
    assert count_encodes(plane, 60) > 10 * 300
    assert count_encodes(order_pairs(plane, 60), 60) <= 1.3 * 300

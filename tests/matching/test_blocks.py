"""Blocks of pairs for many workers: every pair once, of like size, few photos in several."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.matching.blocks import count_extra_encodes, cut_into_blocks
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs

NUMBERS = st.integers(0, 30).map(str)


def ring(photos: int, partners: int) -> list[Pair]:
    """Each photo with those that follow it, as many as half its partners."""
    return [
        (f"{i:04d}", f"{(i + step) % photos:04d}")
        for i in range(photos)
        for step in range(1, partners // 2 + 1)
    ]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=80), st.integers(1, 12))
def test_each_pair_is_in_one_block_and_blocks_are_of_like_size(
    pairs: list[Pair], count: int
) -> None:
    pairs = unique_pairs(pairs)
    blocks = cut_into_blocks(pairs, count)
    assert sorted(pair for block in blocks for pair in block) == sorted(pairs)
    sizes = [len(block) for block in blocks]
    assert len(sizes) == min(count, len(pairs))
    mean = len(pairs) / count
    assert all(int(0.97 * mean) <= size <= max(1.03 * mean, math.ceil(mean)) for size in sizes)
    position = {pair: i for i, pair in enumerate(pairs)}
    assert all(sorted(block, key=position.__getitem__) == block for block in blocks)
    assert cut_into_blocks(pairs, count) == blocks


def test_a_thousand_photos_with_twenty_partners_cost_a_tenth_more() -> None:
    pairs = ring(1000, 20)
    blocks = cut_into_blocks(pairs, 10)
    assert {len(block) for block in blocks} == {1000}
    # The least of a block of 1,000 pairs is 105.5 photos; the ends of ten add to less than 10 %.
    assert count_extra_encodes(blocks) <= 0.1 * len(names_in(pairs))


def test_photos_in_a_plane_cost_a_fifth_more() -> None:
    place = np.random.default_rng(1).uniform(size=(1000, 2))
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    near = {
        (min(i, j), max(i, j)) for i in range(1000) for j in np.argsort(distance[i])[1:15].tolist()
    }
    pairs = [(f"{i:04d}", f"{j:04d}") for i, j in sorted(near)]
    blocks = cut_into_blocks(pairs, 8)
    assert all(950 <= len(block) <= 1020 for block in blocks)
    # neighbourhood expansion alone needs 30.8 % more
    assert count_extra_encodes(blocks) <= 0.2 * len(names_in(pairs))


def test_groups_that_share_no_photo_are_not_cut() -> None:
    groups = [
        list(itertools.combinations([f"{group}/{i}" for i in range(6)], 2)) for group in "abcd"
    ]
    mixed = [pair for pairs in zip(*groups, strict=True) for pair in pairs]
    blocks = cut_into_blocks(mixed, 4)
    assert count_extra_encodes(blocks) == 0
    assert {frozenset(block) for block in blocks} == {frozenset(group) for group in groups}


@pytest.mark.parametrize("blocks", [4, 9, 16])
def test_all_pairs_are_cut_into_tiles(blocks: int) -> None:
    names = [f"{i:03d}" for i in range(60)]
    cut = cut_into_blocks(list(itertools.combinations(names, 2)), blocks)
    # A square tile of s × s pairs has 2 s photos, and no block can have fewer than √(2 · pairs).
    pairs = 60 * 59 / 2 / blocks
    photos = count_extra_encodes(cut) + 60
    assert blocks * (2 * pairs) ** 0.5 <= photos <= 1.15 * blocks * 2 * pairs**0.5

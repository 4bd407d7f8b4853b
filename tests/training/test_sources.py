"""Sources of batches, and their computation ahead of use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.pairs import PairSampler
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.sources import (
    MixedSource,
    Prefetcher,
    SyntheticSource,
    build_mixture,
    mix_seeds,
)
from edm_hloc.training.step import PairBatch
from tests.training.tools import (
    OneBatch,
    shifted,
    tiny_config,
)


def test_synthetic_batches_depend_on_the_seed_alone(scenes: SyntheticSource) -> None:
    a, b, c = (scenes.batch(2, 96, 128, seed) for seed in (1, 2, 1))
    assert torch.equal(a.image1, c.image1)
    assert torch.equal(a.truth.partner, c.truth.partner)
    assert not torch.equal(a.image1, b.image1)
    assert a.image0.shape == (2, 1, 96, 128)
    assert (a.truth.partner >= 0).float().mean() > 0.15


def test_mixture_of_sources() -> None:
    def batch(value: float) -> PairBatch:
        image = torch.full((1, 1, 32, 32), value)
        return PairBatch(image, image, shifted(0.0, size=(32, 32)))

    mixture = MixedSource([OneBatch(batch(0.0)), OneBatch(batch(1.0))], [0.25, 0.75])
    drawn = [float(mixture.batch(1, 32, 32, s).image0[0, 0, 0, 0]) for s in range(300)]
    assert 0.68 < np.mean(drawn) < 0.82


def test_the_choice_of_a_source_says_nothing_of_what_it_draws() -> None:
    class Difficulties:
        """Draws the difficulty as `SyntheticSource` does, and keeps what it drew."""

        def __init__(self) -> None:
            self.drawn: list[float] = []

        def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
            self.drawn.append(np.random.default_rng(seed).uniform())
            image = torch.zeros(1, 1, 32, 32)
            return PairBatch(image, image, shifted(0.0, size=(32, 32)))

    sources = [Difficulties() for _ in range(3)]
    mixture = MixedSource(sources, [0.25, 0.5, 0.25])
    for seed in range(400):
        mixture.batch(1, 32, 32, seed)
    for source in sources:
        assert min(source.drawn) < 0.1
        assert max(source.drawn) > 0.9
        assert 0.4 < np.mean(source.drawn) < 0.6


def test_repeated_textures_take_the_place_of_other_rendered_batches() -> None:
    config = tiny_config(repeated=0.5)
    rendered = SyntheticSource(PairSampler(TextureBank.dead_leaves(4, 128)), (0.0, 0.3), 0.05)
    mixture = build_mixture(config, rendered)
    partners, hidden = [], []
    for seed in range(8):
        batch, plain = mixture.batch(2, 96, 128, seed), rendered.batch(2, 96, 128, seed)
        if not torch.equal(batch.image0, plain.image0):
            partners.append(float((batch.truth.partner >= 0).float().mean()))
            hidden.append(float((batch.truth.known0 & ~batch.truth.visible0).float().mean()))
    assert 2 <= len(partners) <= 6
    assert max(partners) < 0.5  # little overlap
    assert np.mean(hidden) > 0.3
    assert build_mixture(tiny_config(), rendered) is rendered


def test_reliefs_take_the_place_of_other_rendered_batches() -> None:
    rendered = SyntheticSource(PairSampler(TextureBank.dead_leaves(4, 128)), (0.0, 0.3), 0.05)
    mixture = build_mixture(tiny_config(relief=0.5), rendered)
    same = 0
    for seed in range(8):
        batch, again = (mixture.batch(2, 96, 128, seed) for _ in range(2))
        assert torch.equal(batch.image1, again.image1)
        assert (batch.truth.partner >= 0).float().mean() > 0.15
        same += torch.equal(batch.image0, rendered.batch(2, 96, 128, seed).image0)
    assert 2 <= same <= 6
    with pytest.raises(EdmHlocError, match="exceed 1"):
        tiny_config(relief=0.6, repeated=0.5)


def test_prefetcher_keeps_order_and_passes_errors_on() -> None:
    def make(i: int) -> int:
        if i == 7:
            raise EdmHlocError("no more")
        return i * i

    threads = torch.get_num_threads()
    with Prefetcher(make, 4) as items:
        assert [next(items) for _ in range(3)] == [16, 25, 36]
        with pytest.raises(EdmHlocError, match="no more"):
            next(items)
    assert torch.get_num_threads() == threads
    with Prefetcher(lambda i: i, 0) as items:  # leaving early does not hang
        assert next(items) == 0


def test_the_prefetcher_alone_works_on_one_core() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Prefetcher(lambda _: torch.get_num_threads(), 0) as items:
            assert next(items) == 1
        with ThreadPoolExecutor(1) as new_thread:
            assert new_thread.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_mixed_seeds_differ() -> None:
    seeds = {mix_seeds(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert all(0 <= s < 2**63 for s in seeds)

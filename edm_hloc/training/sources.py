"""Sources of training batches; each batch is a function of its size and seed alone."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch

from edm_hloc.base.frames import Origin
from edm_hloc.base.threads import single_core_pool
from edm_hloc.synthetic.pairs import TILED, PairSampler
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.relief_pairs import RELIEF_TOLERANCE, ReliefSampler
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.config import TrainConfig
from edm_hloc.training.real_pairs import RealSource
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import DepthMap, supervise


class BatchSource(Protocol):
    """Makes batches of pairs with ground truth; the same arguments give the same batch."""

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        """A number of pairs of images of (height, width) pixels."""
        ...


class SyntheticSource:
    """Rendered pairs with the ground truth of their exact depth maps.

    Args:
        sampler: renders the pairs, of scenes or of reliefs; its random numbers and its difficulty
            are set for each batch.
        difficulty: range from which the difficulty of a batch is drawn.
        tolerance: see `supervise`.
        origin: where (0, 0) of the network's pixel frame lies.
    """

    def __init__(
        self,
        sampler: PairSampler | ReliefSampler,
        difficulty: tuple[float, float],
        tolerance: float,
        origin: Origin = "centre",
    ) -> None:
        self.sampler, self.difficulty = sampler, difficulty
        self.tolerance, self.origin = tolerance, origin

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        self.sampler.random = Random(seed, self.sampler.textures.device)
        self.sampler.difficulty = np.random.default_rng(seed).uniform(*self.difficulty)
        rendered = self.sampler.sample(pairs, height, width)
        truth = supervise(
            DepthMap(rendered.depth0, rendered.K0),
            DepthMap(rendered.depth1, rendered.K1),
            rendered.T_0to1,
            self.tolerance,
            self.origin,
        )
        return PairBatch(rendered.image0, rendered.image1, truth)


class MixedSource:
    """Each batch comes from one of several sources.

    Args:
        sources: the sources.
        shares: probability with which each is chosen for a batch; they sum to 1.
    """

    def __init__(self, sources: Sequence[BatchSource], shares: Sequence[float]) -> None:
        self.sources, self.shares = sources, shares

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        # A stream of its own: the chosen source draws the difficulty as the first number of `seed`.
        stream = np.random.SeedSequence(seed, spawn_key=(1,))
        chosen = np.random.default_rng(stream).choice(len(self.sources), p=self.shares)
        return self.sources[chosen].batch(pairs, height, width, seed)


def build_synthetic(config: TrainConfig, device: torch.device) -> SyntheticSource:
    """The rendered pairs of a configuration, on the given device."""
    if config.textures is None:
        bank = TextureBank.procedural(device=device)
    elif Path(config.textures).is_dir():
        bank = TextureBank.from_folder(Path(config.textures), device=device)
    else:
        bank = TextureBank.load(Path(config.textures), device=device)
    sampler = PairSampler(bank, device=device)
    return SyntheticSource(sampler, config.difficulty, config.tolerance, config.origin)


def build_repeated(config: TrainConfig, textures: TextureBank) -> SyntheticSource:
    """Rendered pairs that overlap little, with repeated pieces of these textures everywhere."""
    sampler = PairSampler(textures.of_tiles(), device=textures.device, options=TILED)
    return SyntheticSource(sampler, config.difficulty, config.tolerance, config.origin)


def build_reliefs(config: TrainConfig, textures: TextureBank) -> SyntheticSource:
    """Pairs of views of reliefs lifted from these textures."""
    sampler = ReliefSampler(textures, device=textures.device)
    tolerance = min(config.tolerance, RELIEF_TOLERANCE)
    return SyntheticSource(sampler, config.difficulty, tolerance, config.origin)


def build_mixture(config: TrainConfig, synthetic: SyntheticSource) -> BatchSource:
    """The mixture of rendered and real pairs of a configuration.

    Batches of repeated textures and of reliefs take the place of other rendered ones: the real
    batches, and the other rendered ones that are left, are those of the same configuration without
    them.
    """
    textures = synthetic.sampler.textures
    sources: list[BatchSource] = []
    shares = []
    if config.repeated:
        sources.append(build_repeated(config, textures))
        shares.append(config.repeated)
    if config.relief:
        sources.append(build_reliefs(config, textures))
        shares.append(config.relief)
    real = [r.share for r in config.real]
    sources.append(synthetic)
    shares.append(max(0.0, 1.0 - sum(shares) - sum(real)))
    sources += [RealSource(r, config.tolerance, config.origin) for r in config.real]
    shares += real
    return MixedSource(sources, shares) if len(sources) > 1 else synthetic


def mix_seeds(*numbers: int) -> int:
    """One 63-bit seed from several numbers; similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


T = TypeVar("T")
_AHEAD = 2  # items that wait to be used, at most


class Prefetcher(Generic[T]):
    """Computes make(first), make(first + 1), … ahead of their use, in a thread.

    As a context manager it gives an iterator over them, which raises the exceptions of `make`.

    Args:
        make: number of an item → the item.
        first: number of the first item.
    """

    def __init__(self, make: Callable[[int], T], first: int) -> None:
        self._queue: queue.Queue[T | BaseException] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        self._make, self._first = make, first

    def __enter__(self) -> Iterator[T]:
        # A single core; the others belong to the training.
        self._pool = single_core_pool(1, "prefetch")
        self._work = self._pool.submit(self._produce)
        return self._items()

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        while not self._work.done():
            try:  # takes items, so that a waiting thread goes on and sees the flag
                self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        self._pool.shutdown()

    def _produce(self) -> None:
        index = self._first
        while not self._stopped.is_set():
            try:
                self._queue.put(self._make(index))
            except BaseException as error:  # raised where the items are used
                self._queue.put(error)
                return
            index += 1

    def _items(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

"""Pairs → raw matches: every image encoded once, loaded ahead, results written behind."""

from __future__ import annotations

import heapq
import logging
import time
from collections import defaultdict, deque
from collections.abc import Container, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.matches import Matches
from edm_hloc.base.version import __version__
from edm_hloc.images.find import image_stamps
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair, names_in

logger = logging.getLogger(__name__)

_WAITING_BATCHES = 4  # pairs of rare shapes do not hold memory for longer than this


@dataclass(frozen=True)
class MatchingConfig:
    """How pairs are worked through; nothing here changes the matches.

    Attributes:
        cache_bytes: memory for the features of encoded images, on the matcher's device.
        host_cache_bytes: of a GPU's host, for those that the device has no room for.
        load_threads: threads that decode and resize images ahead.
        load_ahead: images decoded ahead of the network.
    """

    cache_bytes: int = 2 << 30
    host_cache_bytes: int = 4 << 30
    load_threads: int = 2
    load_ahead: int = 8


@dataclass(frozen=True)
class MatchingSummary:
    """What `match_pairs` did.

    Attributes:
        matched: pairs matched now.
        resumed: pairs that were there from an earlier run.
        encoded: calls of the matcher's `encode`.
        images: images among the pairs matched now.
        skipped: photos that could not be read, with the reason.
        skipped_pairs: pairs left out because of them.
        rotated: photos whose EXIF orientation was ignored.
        matches: raw matches of the pairs matched now.
        seconds: wall-clock time.
    """

    matched: int
    resumed: int
    encoded: int
    images: int
    skipped: dict[str, str]
    skipped_pairs: int
    rotated: tuple[str, ...]
    matches: int
    seconds: float


def order_pairs(pairs: Sequence[Pair], capacity: int) -> list[Pair]:
    """Order pairs so that `capacity` images in memory serve many pairs in a row.

    Images are laid out so that partners are near each other (reverse Cuthill–McKee). On the
    matrix of pairs that this makes, two ways are tried: tall tiles, where all but one place of
    the memory hold the images of a row of tiles and the others pass by one after the other (the
    best there is for all pairs); and square ones of half the memory each (better for a narrow
    band). Rows of tiles go to and fro. The way with fewer encodes is taken.
    """
    if not pairs:
        return []
    names = names_in(pairs)
    index = {name: i for i, name in enumerate(names)}
    ends = np.array([[index[a], index[b]] for a, b in pairs], dtype=np.int32).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), (len(names),) * 2)
    layout = reverse_cuthill_mckee((graph + graph.T).tocsr(), symmetric_mode=True)
    place = np.empty(len(names), dtype=np.int64)
    place[layout] = np.arange(len(names))
    low, high = np.sort(place[ends], axis=1).T
    ways = []
    for height, width in ((capacity - 1, 1), (capacity // 2, capacity // 2)):
        row, column = low // max(1, height), high // max(1, width)
        column = np.where(row % 2 == 0, column, -column)
        order = np.lexsort((high, low, column, row))
        ways.append((count_encodes(ends[order].tolist(), capacity), order))
    _, order = min(ways, key=lambda way: way[0])
    return [pairs[i] for i in order]


def count_encodes(pairs: Sequence[tuple[Hashable, Hashable]], capacity: int) -> int:
    """Encodes that pairs in this order need with `capacity` (at least 2) images in memory, when
    the one needed again latest leaves (Belady's rule: no other does with fewer)."""
    never = len(pairs)
    upcoming: dict[Hashable, int] = {}
    later: list[list[int]] = []  # for each pair, where its images are needed again
    for position in range(len(pairs) - 1, -1, -1):
        later.append([upcoming.get(name, never) for name in pairs[position]])
        upcoming.update(dict.fromkeys(pairs[position], position))
    later.reverse()
    inside: dict[Hashable, int] = {}  # with the next use
    queue: list[tuple[int, int, Hashable]] = []  # the latest first; outdated entries are skipped
    encodes = 0
    for position, pair in enumerate(pairs):
        encodes += sum(name not in inside for name in set(pair))
        for side, name in enumerate(pair):
            inside[name] = later[position][side]
            heapq.heappush(queue, (-inside[name], 2 * position + side, name))
        kept = []
        while len(inside) > max(2, capacity):
            entry = heapq.heappop(queue)
            if inside.get(entry[2]) != -entry[0]:
                continue
            if entry[2] in pair:
                kept.append(entry)
            else:
                del inside[entry[2]]
        for entry in kept:
            heapq.heappush(queue, entry)
    return encodes


class _FeatureCache:
    """Encoded images within a byte budget; since the order of pairs is known, the image needed
    again latest is the one to leave (Belady's rule). From a GPU images go to the host's memory,
    which has a budget of its own, before they are dropped."""

    def __init__(self, matcher: Matcher, config: MatchingConfig, pairs: Sequence[Pair]) -> None:
        self.matcher = matcher
        self.budget, self.host_budget = config.cache_bytes, config.host_cache_bytes
        self.entries: dict[str, Features] = {}
        self.host: dict[str, Features] = {}
        self.uses: dict[str, list[int]] = defaultdict(list)
        for position in range(len(pairs) - 1, -1, -1):
            for name in pairs[position]:
                self.uses[name].append(position)

    def __contains__(self, name: object) -> bool:
        return name in self.entries or name in self.host

    def get(self, name: str, keep: Sequence[str]) -> Features:
        """The features of an image that is there; images to `keep` do not leave for it."""
        if name in self.host:
            self.add(name, self.matcher.from_host(self.host.pop(name)), keep)
        return self.entries[name]

    def add(self, name: str, features: Features, keep: Sequence[str]) -> None:
        self.entries[name] = features
        for evicted in self._over(self.entries, self.budget, {*keep, name}):
            on_host = self.matcher.to_host(self.entries.pop(evicted))
            if on_host is not None:
                self.host[evicted] = on_host
        for evicted in self._over(self.host, self.host_budget, set()):
            del self.host[evicted]

    def _over(self, entries: dict[str, Features], budget: int, keep: set[str]) -> list[str]:
        """What must leave; a pair needs both its images, whatever the budget."""
        excess = sum(features.nbytes for features in entries.values()) - budget
        leaving: list[str] = []
        if excess > 0:
            for name in sorted(entries.keys() - keep, key=lambda n: self.uses[n][-1], reverse=True):
                if excess <= 0:
                    break
                leaving.append(name)
                excess -= entries[name].nbytes
        return leaving

    def finished(self, position: int, pair: Pair) -> None:
        """Note that the pair at `position` is done; forget images not needed again."""
        for name in pair:
            uses = self.uses[name]
            while uses and uses[-1] <= position:
                uses.pop()
            if not uses:
                self.entries.pop(name, None)
                self.host.pop(name, None)


class _ImageLoader:
    """Decodes images ahead of their use in threads.

    Attributes:
        shapes: of the images decoded so far.
        skipped: those that cannot be read, with the reason.
        rotated: those whose EXIF orientation was ignored.
    """

    def __init__(self, root: Path, matcher: Matcher, config: MatchingConfig) -> None:
        p = matcher.preprocessing
        self._load = partial(
            load_image, resize_max=p.resize_max, divisor=p.divisor, grayscale=p.grayscale
        )
        self.root = root
        self.ahead = config.load_ahead
        self.pool = ThreadPoolExecutor(config.load_threads, thread_name_prefix="load-image")
        self.pending: dict[str, Future[NetworkImage]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.skipped: dict[str, str] = {}
        self.rotated: set[str] = set()

    def prefetch(self, names: Sequence[str]) -> None:
        """Start on the images needed next, in this order; others hold no place any more."""
        for name in self.pending.keys() - set(names):
            self.pending.pop(name).cancel()
        for name in names:
            if name not in self.pending and len(self.pending) < self.ahead:
                self.pending[name] = self.pool.submit(self._load, self.root / name)

    def get(self, name: str) -> NetworkImage | None:
        """An image, or None if it cannot be read."""
        future = self.pending.pop(name, None) or self.pool.submit(self._load, self.root / name)
        try:
            image = future.result()
        except ImageError as error:
            self.skipped[name] = str(error)
            logger.warning("Skipping a photo: %s", error)
            return None
        if image.exif_orientation != 1:
            self.rotated.add(name)
        self.shapes[name] = tuple(image.tensor.shape)
        return image

    def can_read(self, pair: Pair) -> bool:
        """As far as is known."""
        return self.skipped.keys().isdisjoint(pair)

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def _encode(
    pair: Pair, loader: _ImageLoader, matcher: Matcher, held: Container[str] = ()
) -> dict[str, Features] | None:
    """The features of a pair's images that are not held; None if one cannot be read."""
    if not loader.can_read(pair):
        return None
    images: dict[str, NetworkImage] = {}
    for name in pair:
        if name not in held:
            image = loader.get(name)
            if image is None:
                return None  # before the partner is decoded, or encoded, in vain
            images[name] = image
    return {name: matcher.encode(image) for name, image in images.items()}


class _Batches:
    """Pairs on their way through the matcher into the store, those of equal shapes together.

    Attributes:
        matched: pairs stored.
        matches: of all those pairs.
    """

    def __init__(self, matcher: Matcher, writer: RawMatchWriter) -> None:
        self.matcher, self.writer = matcher, writer
        self.matched = self.matches = 0
        # By the shapes of both images, with what they need of the cache.
        self.waiting: dict[tuple[tuple[int, ...], ...], list[tuple[Pair, Features, Features]]] = {}
        self.running: deque[tuple[list[Pair], Future[list[Matches]]]] = deque()
        self.pool = ThreadPoolExecutor(
            matcher.threads, "match", initializer=torch.set_num_threads, initargs=(1,)
        )

    def add(
        self, pair: Pair, shapes: tuple[tuple[int, ...], ...], both: tuple[Features, Features]
    ) -> None:
        """Take a pair; its batch is matched when it is full, or when too many wait."""
        waiting, size = self.waiting, self.matcher.batch_size
        waiting.setdefault(shapes, []).append((pair, *both))
        if len(waiting[shapes]) == size:
            self._match(waiting.pop(shapes))
        elif sum(map(len, waiting.values())) >= _WAITING_BATCHES * size:
            self._match(waiting.pop(max(waiting, key=lambda key: len(waiting[key]))))

    def finish(self) -> None:
        """Match and store all that is left."""
        for batch in self.waiting.values():
            self._match(batch)
        while self.running:
            self._store_first()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _match(self, batch: list[tuple[Pair, Features, Features]]) -> None:
        pairs = [pair for pair, *_ in batch]
        features = [(features0, features1) for _, features0, features1 in batch]
        if self.matcher.threads == 1:
            self._store(pairs, self.matcher.match_batch(features))
            return
        self.running.append((pairs, self.pool.submit(self.matcher.match_batch, features)))
        if len(self.running) > 2 * self.matcher.threads:  # enough to keep all busy
            self._store_first()

    def _store_first(self) -> None:
        pairs, future = self.running.popleft()
        self._store(pairs, future.result())

    def _store(self, pairs: list[Pair], found: list[Matches]) -> None:
        for pair, raw in zip(pairs, found, strict=True):
            self.writer.add(*pair, raw)
            self.matched += 1
            self.matches += len(raw.scores)


def run_provenance(matcher: Matcher) -> dict[str, str | int | float | bool | None]:
    """Everything that decides the raw matches, as stored with them."""
    return {"edm_hloc": __version__, **matcher.provenance}


def match_pairs(
    image_root: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    raw_directory: Path,
    config: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> MatchingSummary:
    """Match `pairs` of images under `image_root` into the raw store `raw_directory`.

    Pairs already there are kept, so an interrupted call is continued by calling it again.
    Photos that cannot be read are skipped with their pairs and named in the summary.

    Raises:
        EdmHlocError: the store is of another run (see `RawMatchWriter`), or no pair could be
            matched because no photo could be read.
    """
    config = config or MatchingConfig()
    start = time.monotonic()
    pairs = list(dict.fromkeys(pairs))
    names = names_in(pairs)
    stamps = image_stamps(image_root, names)
    with RawMatchWriter(
        raw_directory, run_provenance(matcher), stamps, overwrite=overwrite
    ) as writer:
        todo = [pair for pair in pairs if pair not in writer]
        summary = _match(image_root, todo, matcher, writer, config, len(pairs) - len(todo), start)
    if not summary.matched and not summary.resumed and summary.skipped:
        name, reason = next(iter(summary.skipped.items()))
        raise EdmHlocError(
            f"None of the photos in {image_root} could be read; the first, {name}: {reason}"
        )
    return summary


def _match(
    image_root: Path,
    pairs: list[Pair],
    matcher: Matcher,
    writer: RawMatchWriter,
    config: MatchingConfig,
    resumed: int,
    start: float,
) -> MatchingSummary:
    loader, batches = _ImageLoader(image_root, matcher, config), _Batches(matcher, writer)
    try:
        # The first pair tells how many images fit, and with that the order of the pairs.
        first = next((f for pair in pairs if (f := _encode(pair, loader, matcher))), {})
        encoded = len(first)
        size = max((features.nbytes for features in first.values()), default=config.cache_bytes)
        room = config.cache_bytes
        if any(matcher.to_host(features) is not None for features in first.values()):
            room += config.host_cache_bytes
        pairs = order_pairs(pairs, max(2, room // max(1, size)))
        cache = _FeatureCache(matcher, config, pairs)
        for name, features in first.items():
            cache.add(name, features, keep=tuple(first))
        for position, pair in enumerate(tqdm(pairs, desc="Matching", unit="pair", disable=None)):
            upcoming = filter(loader.can_read, pairs[position : position + 4 * config.load_ahead])
            loader.prefetch([name for p in upcoming for name in p if name not in cache])
            fresh = _encode(pair, loader, matcher, held=cache)
            if fresh is not None:
                encoded += len(fresh)
                for name, features in fresh.items():
                    cache.add(name, features, keep=pair)
                both = cache.get(pair[0], keep=pair), cache.get(pair[1], keep=pair)
                batches.add(pair, (loader.shapes[pair[0]], loader.shapes[pair[1]]), both)
            cache.finished(position, pair)
        batches.finish()
    finally:
        batches.close()
        loader.close()
    return MatchingSummary(
        matched=batches.matched,
        resumed=resumed,
        encoded=encoded,
        images=len(names_in(pairs)),
        skipped=loader.skipped,
        skipped_pairs=len(pairs) - batches.matched,
        rotated=tuple(sorted(loader.rotated)),
        matches=batches.matches,
        seconds=time.monotonic() - start,
    )

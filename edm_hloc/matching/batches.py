"""Collects pairs of equal image sizes into batches, matches them and hands them to the writer."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair

# Maximum number of pairs in incomplete batches, in multiples of the batch size: they hold features
# that the cache may have evicted.
_MAX_WAITING_BATCHES = 4

Shapes = tuple[tuple[int, ...], tuple[int, ...]]
"""(C, H, W) of image 0 and of image 1 of a pair."""


class MatchingQueue:
    """Matches pairs in batches, in as many threads as the matcher allows, and stores the results.

    Results are stored in the order of the batches, whichever thread is done first. Call `finish`
    when all pairs have been added.

    Args:
        matcher: matches the pairs.
        writer: stores the matches.
        pool: of `matcher.info.threads` threads with one core each; None to match in this thread.

    Attributes:
        num_pairs: pairs stored so far.
        num_matches: matches of all these pairs.
    """

    def __init__(
        self, matcher: Matcher, writer: RawMatchWriter, pool: ThreadPoolExecutor | None
    ) -> None:
        self._matcher, self._writer, self._pool = matcher, writer, pool
        self.num_pairs = self.num_matches = 0
        self._waiting: dict[Shapes, list[tuple[Pair, Features, Features]]] = {}
        self._running: deque[tuple[list[Pair], Future[list[Matches]]]] = deque()

    def add(self, pair: Pair, shapes: Shapes, features: tuple[Features, Features]) -> None:
        """Adds a pair; the largest batch is matched when it is complete or too many pairs wait."""
        waiting, size = self._waiting, self._matcher.info.batch_size
        waiting.setdefault(shapes, []).append((pair, *features))
        if len(waiting[shapes]) == size:
            self._match(waiting.pop(shapes))
        elif sum(map(len, waiting.values())) >= _MAX_WAITING_BATCHES * size:
            self._match(waiting.pop(max(waiting, key=lambda key: len(waiting[key]))))

    def finish(self) -> None:
        """Matches and stores all pairs that are left."""
        for batch in self._waiting.values():
            self._match(batch)
        while self._running:
            self._store_first()

    def _match(self, batch: list[tuple[Pair, Features, Features]]) -> None:
        pairs = [pair for pair, *_ in batch]
        features = [(features0, features1) for _, features0, features1 in batch]
        if self._pool is None:
            self._store(pairs, self._matcher.match_batch(features))
            return
        self._running.append((pairs, self._pool.submit(self._matcher.match_batch, features)))
        if len(self._running) > 2 * self._matcher.info.threads:  # keeps all threads busy
            self._store_first()

    def _store_first(self) -> None:
        pairs, future = self._running.popleft()
        self._store(pairs, future.result())

    def _store(self, pairs: list[Pair], found: list[Matches]) -> None:
        for pair, matches in zip(pairs, found, strict=True):
            self._writer.add(*pair, matches)
            self.num_pairs += 1
            self.num_matches += len(matches)

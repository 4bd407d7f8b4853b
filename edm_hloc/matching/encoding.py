"""Encodes the images that the next pairs need, ahead of their use where several threads may."""

from __future__ import annotations

from collections.abc import Container, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.matching.batches import Shapes
from edm_hloc.matching.loading import ImageLoader
from edm_hloc.pairs.rules import Pair

_MAX_AHEAD = 16  # images encoded ahead: their features are in memory besides those of the cache


class Encoder:
    """Loads and encodes images.

    Args:
        matcher: encodes them.
        loader: loads them.
        pool: of `matcher.info.threads` threads with one core each; None to encode in this thread.

    Attributes:
        num_images: images encoded so far, counted again each time.
    """

    def __init__(
        self, matcher: Matcher, loader: ImageLoader, pool: ThreadPoolExecutor | None
    ) -> None:
        self._matcher, self._loader, self._pool = matcher, loader, pool
        self._running: dict[str, Future[Features]] = {}
        self._next: list[str] = []  # names of photos that the next pairs need
        self.num_images = 0

    def prepare(self, pairs: Sequence[Pair], cached: Container[str]) -> None:
        """Starts to load the images of the next pairs that are not cached, and to encode them.

        In a pool as many are encoded ahead as it has threads, 16 at most; what is not needed any
        more is dropped.
        """
        readable = filter(self._loader.can_read, pairs)
        names = dict.fromkeys(n for pair in readable for n in pair if n not in cached)
        self._next = list(names)
        for name in self._running.keys() - names.keys():
            self._running.pop(name).cancel()
        self._loader.prefetch([name for name in names if name not in self._running])
        for name in names:
            if len(self._running) >= min(self._matcher.info.threads, _MAX_AHEAD):
                break
            if self._pool and name not in self._running and self._loader.is_loaded(name):
                image = self._loader.get(name)
                if image is not None:
                    self._running[name] = self._pool.submit(self._matcher.encode, image)

    def encode(
        self, pair: Pair, cached: Container[str] = (), together: int = 1
    ) -> dict[str, Features] | None:
        """Features of those images of a pair that are not cached; None if a photo is unreadable.

        Args:
            pair: names of two photos.
            cached: photos that are not to be encoded.
            together: without a pool, up to how many photos are encoded at a time. To those of the
                pair come photos that the next pairs need and that are loaded already.
        """
        if not self._loader.can_read(pair):
            return None
        images: dict[str, NetworkImage] = {}
        for name in pair:
            if name not in cached and name not in self._running:
                image = self._loader.get(name)
                if image is None:
                    return None  # without decoding or encoding the other photo in vain
                images[name] = image
        self.num_images += sum(name not in cached for name in dict.fromkeys(pair))
        if self._pool is None:
            if images:
                self._add_loaded(images, cached, together)
            features = self._matcher.encode_batch(list(images.values()))
            return dict(zip(images, features, strict=True))
        for name, image in images.items():
            self._running[name] = self._pool.submit(self._matcher.encode, image)
        needed = [name for name in dict.fromkeys(pair) if name in self._running]
        return {name: self._running.pop(name).result() for name in needed}

    def _add_loaded(
        self, images: dict[str, NetworkImage], cached: Container[str], together: int
    ) -> None:
        """Adds images that the next pairs need, as far as they are loaded, up to `together`."""
        for name in self._next:
            if len(images) >= together:
                break
            if name not in images and name not in cached and self._loader.is_loaded(name):
                image = self._loader.get(name)
                if image is not None:
                    images[name] = image
                    self.num_images += 1

    def shapes_of(self, pair: Pair) -> Shapes:
        """The (C, H, W) of the two images of an encoded pair."""
        return self._loader.shapes[pair[0]], self._loader.shapes[pair[1]]

"""A cache of encoded images with a budget in bytes, on the matcher's device and on its host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.pairs.rules import Pair


class FeatureCache:
    """Encoded images, within a budget in bytes.

    The order of pairs is known, so the image that is needed again latest is evicted first
    (Bélády's algorithm). Features evicted from a GPU move to the host's memory, which has a budget
    of its own, before they are dropped.

    Args:
        matcher: moves features between device and host.
        pairs: all pairs, in the order in which they are matched.
        device_bytes: budget on the matcher's device. The two images of the current pair are kept
            even if they exceed it.
        host_bytes: budget in the host's memory, for matchers on a GPU.
    """

    def __init__(
        self, matcher: Matcher, pairs: Sequence[Pair], *, device_bytes: int, host_bytes: int
    ) -> None:
        self._matcher = matcher
        self._device_bytes, self._host_bytes = device_bytes, host_bytes
        self._on_device: dict[str, Features] = {}
        self._on_host: dict[str, Features] = {}
        self._uses: dict[str, list[int]] = defaultdict(list)  # positions of pairs, last one first
        for position in range(len(pairs) - 1, -1, -1):
            for name in pairs[position]:
                self._uses[name].append(position)

    def __contains__(self, name: object) -> bool:
        return name in self._on_device or name in self._on_host

    def get(self, name: str, keep: Sequence[str]) -> Features:
        """The features of a cached image, on the device; images in `keep` are not evicted."""
        if name in self._on_host:
            self.add(name, self._matcher.from_host(self._on_host.pop(name)), keep)
        return self._on_device[name]

    def add(self, name: str, features: Features, keep: Sequence[str]) -> None:
        """Caches the features of an image; images in `keep` are not evicted from the device."""
        self._on_device[name] = features
        for evicted in self._to_evict(self._on_device, self._device_bytes, {*keep, name}):
            on_host = self._matcher.to_host(self._on_device.pop(evicted))
            if on_host is not None:
                self._on_host[evicted] = on_host
        for evicted in self._to_evict(self._on_host, self._host_bytes, set()):
            del self._on_host[evicted]

    def finished(self, position: int, pair: Pair) -> None:
        """Says that the pair at `position` is done; drops images that are not needed again."""
        for name in pair:
            uses = self._uses[name]
            while uses and uses[-1] <= position:
                uses.pop()
            if not uses:
                self._on_device.pop(name, None)
                self._on_host.pop(name, None)

    def _to_evict(self, cached: dict[str, Features], budget: int, keep: set[str]) -> list[str]:
        """Images to evict so that the others are within the budget."""
        excess = sum(features.nbytes for features in cached.values()) - budget
        evicted: list[str] = []
        if excess > 0:
            for name in sorted(cached.keys() - keep, key=lambda n: self._uses[n][-1], reverse=True):
                if excess <= 0:
                    break
                evicted.append(name)
                excess -= cached[name].nbytes
        return evicted

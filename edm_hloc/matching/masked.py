"""Reads the raw matches of photos as they are now, without those in masked parts of either photo.

Masks are applied when raw matches are read, not when photos are matched, so that other masks do
not require the photos to be matched again. What is found not to be of the scene is left out in the
same way, so that it takes no keypoints. Pairs of a photo that has changed since and could not be
matched again, as it is no photo any more, stay stored for the case that it comes back.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_hloc.base.matches import Matches
from edm_hloc.images.decode import photo_size
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.masks import Mask, read_mask
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.shards import StoredPair
from edm_hloc.pairs.rules import Pair, names_in

NotOfScene = Callable[[Pair, tuple[np.ndarray, np.ndarray]], np.ndarray]
"""Tells of a pair and its matched points (M, 2) in both photos which are not of it, (M,) bool."""

_CACHED_MASKS = 4096  # of up to 131 kB each
_HIDDEN = 0.01  # of a photo's matches, below which its mask leaves so few that it may be wrong


@dataclass(frozen=True)
class MaskedSummary:
    """Attributes: hidden: photos whose own mask left less than 1 % of their matches."""

    hidden: tuple[str, ...]


class MaskedMatchReader(RawMatchReader):
    """Reads raw matches, except those with a keypoint in a masked part of its photo.

    Pairs of which a photo is another file now than when they were matched are not among its pairs.

    Args:
        path: the raw matches: a folder of shards, or an H5 file in hloc's format.
        masks: path of the mask by name of the photo, for the photos that have one.
        images: folder or folders of the photos.
        sizes: (width, height) of photos as they were matched, for what was made from them: pairs of
            photos that have changed since count as well. Others, or all without, are as stored.

    Attributes:
        any_visible: whether any match read so far was outside the masked parts.
        any_masked: whether any match read so far was left out.
        not_scene: which matches are left out as well; None for none.
    """

    def __init__(
        self,
        path: Path,
        masks: Mapping[str, Path],
        images: ImageRoot,
        sizes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(path)
        self._sizes = sizes
        self.masks, self.images = masks, images
        self.any_visible = self.any_masked = False
        self.not_scene: NotOfScene | None = None
        self._all: Counter[str] = Counter()  # matches read of each photo with a mask
        self._visible: Counter[str] = Counter()  # those outside its own mask
        self._cache: OrderedDict[str, Mask] = OrderedDict()
        self._outdated: set[frozenset[str]] = set()

    def is_outdated(self, pair: Pair) -> bool:
        """Whether a pair is stored, in either order, of photos that have changed since."""
        self._indexed()
        return frozenset(pair) in self._outdated

    def photo_size(self, name: str) -> tuple[int, int]:
        """(width, height) of the photo in whose pixels the matches are.

        Raises:
            ImageError: it is not known, and that of the stored photo cannot be read.
        """
        return (self._sizes or {}).get(name) or photo_size(self.images / name)

    def read(self, name0: str, name1: str) -> Matches:
        """The visible matches of a pair, as `RawMatchReader.read` gives them.

        Raises:
            EdmHlocError: as the base class; or a mask is damaged, or has another aspect ratio than
                its photo.
        """
        matches = super().read(name0, name1)
        visible = np.ones(len(matches), bool)
        for name, points in ((name0, matches.keypoints0), (name1, matches.keypoints1)):
            if name in self.masks:
                outside = self._mask(name).visible(points)
                self._all[name] += len(points)
                self._visible[name] += int(outside.sum())
                visible &= outside
        self.any_visible |= bool(visible.any())
        self.any_masked |= not visible.all()
        if self.not_scene is not None:
            both = matches.keypoints0, matches.keypoints1
            visible &= ~self.not_scene((name0, name1), both)
        return matches[visible]

    def summary(self) -> MaskedSummary:
        """What the masks have done to the matches that were read so far."""
        names, visible = sorted(self._all), self._visible
        return MaskedSummary(tuple(n for n in names if visible[n] < _HIDDEN * self._all[n]))

    def _indexed(self) -> dict[str, tuple[Path, StoredPair]]:
        with self._lock:
            if self._index is None and self._sizes is None:
                index = super()._indexed()
                known = KnownPhotos(self.path)
                now = known.stamps(self.images, names_in(pair.names for _, pair in index.values()))
                for key, (_, pair) in list(index.items()):
                    stamps = map(known.first, pair.names, pair.stamps)
                    stamped = zip(pair.names, stamps, strict=True)
                    if any(stamp not in (None, now.get(name)) for name, stamp in stamped):
                        del index[key]
                        self._outdated.add(frozenset(pair.names))
            return super()._indexed()

    def _mask(self, name: str) -> Mask:
        if name not in self._cache:
            if len(self._cache) >= _CACHED_MASKS:
                self._cache.popitem(last=False)
            self._cache[name] = read_mask(
                self.masks[name], self.images / name, self.photo_size(name)
            )
        self._cache.move_to_end(name)
        return self._cache[name]

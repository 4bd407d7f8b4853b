"""Reads raw matches without those that lie in masked parts of either photo.

Masks are applied when raw matches are read, not when photos are matched, so that other masks do
not require the photos to be matched again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edm_hloc.base.matches import Matches
from edm_hloc.images.masks import Mask, read_mask
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matching.reader import RawMatchReader

_CACHED_MASKS = 4096  # of up to 131 kB each


class MaskedMatchReader(RawMatchReader):
    """Reads raw matches, except those with a keypoint in a masked part of its photo.

    Args:
        path: the raw matches: a folder of shards, or an H5 file in hloc's format.
        masks: path of the mask by name of the photo, for the photos that have one.
        images: folder or folders of the photos.

    Attributes:
        any_visible: whether any match read so far was outside the masked parts.
        any_masked: whether any match read so far was left out.
    """

    def __init__(self, path: Path, masks: Mapping[str, Path], images: ImageRoot) -> None:
        super().__init__(path)
        self.masks, self.images = masks, images
        self.any_visible = self.any_masked = False
        self._cache: OrderedDict[str, Mask] = OrderedDict()

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
                visible &= self._mask(name).visible(points)
        self.any_visible |= bool(visible.any())
        self.any_masked |= not visible.all()
        return matches[visible]

    def _mask(self, name: str) -> Mask:
        if name not in self._cache:
            if len(self._cache) >= _CACHED_MASKS:
                self._cache.popitem(last=False)
            self._cache[name] = read_mask(self.masks[name], self.images / name)
        self._cache.move_to_end(name)
        return self._cache[name]

"""Loads photos in background threads, ahead of their use by the network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.images.cloud import CloudFolder
from edm_hloc.images.load import NetworkImage, load_photo
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Preprocessing
from edm_hloc.matching.levels import StoredLevels
from edm_hloc.pairs.rules import Pair

logger = logging.getLogger(__name__)


class ImageLoader:
    """Decodes and resizes photos in threads; close it with `close` or by a ``with`` block.

    Args:
        root: what the names of photos are relative to.
        preprocessing: how the matcher wants its images.
        levels: with which photos of more than 8 bits were matched before.
        threads: threads that decode and resize.
        ahead: maximum number of images that wait, loaded or being loaded.

    Attributes:
        shapes: (C, H, W) of each image loaded so far, by name.
        skipped: photos that could not be read or used, with the reason.
        rotated: photos that were turned upright by their EXIF orientation.
    """

    def __init__(
        self,
        root: ImageRoot,
        preprocessing: Preprocessing,
        levels: StoredLevels,
        *,
        threads: int,
        ahead: int,
    ) -> None:
        self._load = partial(
            load_photo,
            resize_max=preprocessing.resize_max,
            divisor=preprocessing.divisor,
            grayscale=preprocessing.grayscale,
        )
        self._root = root
        self._levels = levels
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="load-image")
        self._pending: dict[str, Future[NetworkImage]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.skipped: dict[str, str] = {}
        self.rotated: set[str] = set()

    def prefetch(self, names: Sequence[str]) -> None:
        """Starts to load the images needed next, in this order, and drops all others."""
        for name in self._pending.keys() - set(names):
            self._pending.pop(name).cancel()
        for name in names:
            if name not in self._pending and len(self._pending) < self._ahead:
                self._pending[name] = self._pool.submit(self._load_photo, name)

    def _load_photo(self, name: str) -> NetworkImage:
        return self._load(self._root / name)  # which may have to fetch it first

    def is_loaded(self, name: str) -> bool:
        """Whether `get` does not have to wait for an image."""
        return name in self._pending and self._pending[name].done()

    def get(self, name: str) -> NetworkImage | None:
        """An image, or None if its photo cannot be read or used.

        Raises:
            EdmHlocError: see `StoredLevels.check`; or a photo in object storage has more than 8
                bits, or cannot be fetched.
        """
        future = self._pending.pop(name, None) or self._pool.submit(self._load_photo, name)
        try:
            image = future.result()
        except ImageError as error:
            self.skipped[name] = str(error)
            logger.warning("Skipping a photo: %s", error)
            return None
        if image.levels is not None:
            if isinstance(self._root, CloudFolder):
                raise EdmHlocError(
                    f"The photo {name} has more than 8 bits, and what is black and white in it "
                    f"depends on all photos of its folder: copy {self._root} to a disk first."
                )
            self._levels.check(image.levels)
        if image.exif_orientation != 1:
            self.rotated.add(name)
        self.shapes[name] = tuple(image.tensor.shape)
        return image

    def can_read(self, pair: Pair) -> bool:
        """Whether neither photo of a pair has failed to load so far."""
        return self.skipped.keys().isdisjoint(pair)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> ImageLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

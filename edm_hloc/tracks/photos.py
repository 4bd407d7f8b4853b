"""Grey photos in several sizes, as the compiled loop over tracks reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edm_hloc.base.errors import ImageError
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import decode
from edm_hloc.images.levels import levels_of, to_eight_bits

_SMALLEST = 32  # pixels, the shorter side of the most reduced copy


@dataclass(frozen=True)
class GreyPhoto:
    """Copies of a photo as it is stored, each half as large as the one before.

    Attributes:
        levels: (H, W) uint8 each.
        scales: of each level its width and height over those of the photo.
    """

    levels: tuple[np.ndarray, ...]
    scales: np.ndarray

    @classmethod
    def read(cls, path: Path, max_side: int) -> GreyPhoto:
        """Reads a photo, reduced to a longest side of `max_side`.

        Raises:
            ImageError: the photo cannot be read.
        """
        pixels = decode(path, grayscale=True)[0]
        grey = to_eight_bits(pixels, levels_of(pixels, path), grayscale=True)
        if grey.dtype != np.uint8:
            grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        full = np.array(grey.shape[1::-1], float)
        size = np.maximum(2, np.rint(full * min(1.0, max_side / full.max()))).astype(int)
        levels: list[np.ndarray] = []
        while not levels or size.min() >= _SMALLEST:
            levels.append(_reduced(grey, (int(size[0]), int(size[1]))))
            size = size // 2
        scales = np.array([level.shape[1::-1] for level in levels]) / full
        return cls(tuple(levels), scales)


def _reduced(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if size == (pixels.shape[1], pixels.shape[0]):
        return np.ascontiguousarray(pixels)
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


@dataclass(frozen=True)
class PhotoStack:
    """Photos one after the other in one array.

    Attributes:
        pixels: (P,) uint8.
        places: (L, 3) int64 of each copy of a photo: where it starts, its width and height.
        scales: (L, 2) its width and height over those of the photo.
        first: (V,) of each photo the row of its largest copy; −1 where there is none.
        number: (V,) of its copies.
    """

    pixels: np.ndarray
    places: np.ndarray
    scales: np.ndarray
    first: np.ndarray
    number: np.ndarray

    @classmethod
    def of(cls, photos: Sequence[GreyPhoto | None]) -> PhotoStack:
        levels = [level for photo in photos if photo is not None for level in photo.levels]
        sizes = np.array([level.size for level in levels], np.int64)
        shapes = np.array([level.shape[1::-1] for level in levels], np.int64).reshape(-1, 2)
        number = np.array([0 if photo is None else len(photo.levels) for photo in photos])
        return cls(
            np.concatenate([level.ravel() for level in levels] or [np.zeros(0, np.uint8)]),
            np.column_stack([np.cumsum(sizes) - sizes, shapes]),
            np.concatenate([p.scales for p in photos if p is not None] or [np.zeros((0, 2))]),
            np.where(number > 0, np.cumsum(number) - number, -1),
            number,
        )

    def photo(self, v: int) -> GreyPhoto:
        """A copy of one of the photos."""
        rows = slice(self.first[v], self.first[v] + self.number[v])
        levels = [
            self.pixels[start : start + width * height].reshape(height, width).copy()
            for start, width, height in self.places[rows].tolist()
        ]
        return GreyPhoto(tuple(levels), self.scales[rows])


class PhotoShelf:
    """The photos of a model, of which those are held that are needed next.

    Args:
        root: folder of the photos.
        names: of the photos.
        max_side: longest side that they are reduced to, pixels.

    Attributes:
        root: the folder.
        unread: (V,) whether a photo could not be read.
    """

    def __init__(self, root: Path, names: Sequence[str], max_side: int) -> None:
        self.root, self._names, self._max_side = root, names, max_side
        self._held = PhotoStack.of([None] * len(names))
        self.unread = np.zeros(len(names), bool)

    def stack(self, needed: np.ndarray) -> PhotoStack:
        """The photos whose numbers are given, and none of the others.

        They are in memory once, or twice for a moment, if nobody holds the stack before.
        """
        wanted = [v for v in needed.tolist() if not self.unread[v]]
        there = set(np.flatnonzero(self._held.number).tolist())
        if there == set(wanted):
            return self._held
        photos = {v: self._held.photo(v) for v in wanted if v in there}
        self._held = PhotoStack.of([])  # before others are read
        for v in wanted:
            if v not in photos:
                try:
                    photos[v] = GreyPhoto.read(self.root / self._names[v], self._max_side)
                except ImageError as error:
                    warn_once(f"Its points are not refined: {error}")
                    self.unread[v] = True
        self._held = PhotoStack.of([photos.get(v) for v in range(len(self._names))])
        return self._held

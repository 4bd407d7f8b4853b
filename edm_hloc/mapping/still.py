"""Finds what stays at the same pixels in all photos: a screen display, a bonnet, a watermark.

Its matches are exact and wrong: they say that the camera did not move, and bend the model. They are
told from a scene that stands still (photos from a tripod, duplicates, the point ahead of a camera
that moves straight on) in that the rest of the same photos moves, and moves right beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edm_hloc.base.grid import evenly
from edm_hloc.pairs.rules import Pair

_CELLS = 32  # along the longer side of a photo
_TOLERANCE = 1e-3  # of the longer side, at least 1 px: what matches of the same pixels differ by
_MOVING = 4.0  # tolerances that the median of the other matches of a pair moves by
_MIN_MOVING = 20  # matches of a pair that move
_MAX_STILL = 0.8  # share of a pair's matches; above it the camera did not move
_MIN_PAIRS = 3  # that moved, in which a place stays
_MIN_OF_PAIRS = 0.7  # of the pairs that moved and have matches at a place, those in which it stays
_MIN_SHARE = 0.02  # of all matches of the pairs that moved; less does no harm. 0.0002 of those of
# synthetic photos without a strip.
_JUMP = 0.5  # of the median motion of a pair: least median motion beside what stays. In synthetic
# photos 0.75 to 1.9 beside a strip, 0.3 along the horizon of a plain that the camera moves along.
_TOO_LARGE = 0.4  # share of the places with matches; above it, it is open which part is the scene.
# In synthetic photos 0.51 to 0.56 for people before a tripod and for a turntable.
_MAX_PAIRS = 400  # that are looked at

Matched = Callable[[Pair], "tuple[np.ndarray, np.ndarray] | None"]


@dataclass(frozen=True)
class StillSummary:
    """What stays at the same pixels in photos of one size.

    Attributes:
        size: (width, height) of the photos.
        box: left, top, right and bottom of the places where it stays, in pixels.
        share: of the matches of the pairs that moved, those that stay.
        pairs: number of the pairs looked at that moved.
        certain: whether it is a part of the photos; else it may be the scene, and the rest moves.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    share: float
    pairs: int
    certain: bool


@dataclass(frozen=True)
class StillPlaces:
    """Where photos of one size show the same things at the same pixels.

    Attributes:
        size: (width, height) of the photos.
        cells: (rows, columns) bool, the places, in squares of a 32nd of the longer side.
        share: of the matches of the pairs that moved, those that stay.
        pairs: number of the pairs looked at that moved.
        area: share of the places with matches that stay.
    """

    size: tuple[int, int]
    cells: np.ndarray
    share: float
    pairs: int
    area: float

    def summary(self) -> StillSummary:
        rows, columns = np.nonzero(self.cells)
        cell = _cell(self.size)
        width, height = self.size
        right, bottom = (round((int(i.max()) + 1) * cell) for i in (columns, rows))
        box = (round(int(columns.min()) * cell), round(int(rows.min()) * cell))
        return StillSummary(
            self.size,
            (*box, min(width, right), min(height, bottom)),
            self.share,
            self.pairs,
            self.area <= _TOO_LARGE,
        )

    def of(self, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
        """(M,) bool: which matches (M, 2) stay at these places."""
        stay = np.linalg.norm(points1 - points0, axis=1) <= _tolerance(self.size)
        rows, columns = cells_of(points0, self.size)
        return np.asarray(stay & _grown(self.cells)[rows, columns])


def find_still_places(
    pairs: Iterable[Pair],
    matched: Matched,
    sizes: Mapping[str, tuple[int, int]],
) -> list[StillPlaces]:
    """What stays at the same pixels in the pairs that moved, for each size of the photos.

    Args:
        pairs: names of the photos of each pair.
        matched: gives the matched points (M, 2) of both photos, or None.
        sizes: (width, height) of each photo by name.
    """
    of_size: dict[tuple[int, int], list[Pair]] = {}
    for pair in pairs:
        if not sizes.keys() >= set(pair):
            continue
        size, other = (sizes[name] for name in pair)
        if size == other:
            of_size.setdefault(size, []).append(pair)
    found = []
    for size, of_this in of_size.items():
        both = map(matched, evenly(of_this, _MAX_PAIRS))
        still = _of_one_size(size, (points for points in both if points is not None))
        if still is not None:
            found.append(still)
    return found


def _of_one_size(
    size: tuple[int, int], matched: Iterable[tuple[np.ndarray, np.ndarray]]
) -> StillPlaces | None:
    """What stays in photos of one size, from the matched points of their pairs."""
    tolerance = _tolerance(size)
    shape = shape_of(size)
    seen, stays = np.zeros(shape, int), np.zeros(shape, int)
    moved = []  # rows, columns, relative motion, whether it stays
    for points0, points1 in matched:
        motion = np.linalg.norm(points1 - points0, axis=1)
        still = motion <= tolerance
        others = int((~still).sum())
        if others < _MIN_MOVING or still.mean() > _MAX_STILL:
            continue
        median = float(np.median(motion[~still]))
        if median < _MOVING * tolerance:
            continue
        rows, columns = cells_of(points0, size)
        every, those = np.zeros(shape, int), np.zeros(shape, int)
        np.add.at(every, (rows, columns), 1)
        np.add.at(those, (rows[still], columns[still]), 1)
        seen += every > 0
        stays += those > 0.5 * every
        moved.append((rows, columns, motion / median, still))
    if len(moved) < _MIN_PAIRS:
        return None
    cells = (stays >= _MIN_PAIRS) & (stays >= _MIN_OF_PAIRS * seen)
    near = _grown(cells)
    rows, columns, motion, still = (np.concatenate(part) for part in zip(*moved, strict=True))
    share = float((still & cells[rows, columns]).mean())
    beside = motion[~still & near[rows, columns]]
    if share < _MIN_SHARE or (len(beside) and float(np.median(beside)) < _JUMP):
        return None
    area = float(cells.sum() / (seen >= _MIN_PAIRS).sum())
    return StillPlaces(size, cells, share, len(moved), area)


def _cell(size: tuple[int, int]) -> float:
    return max(size) / _CELLS


def _tolerance(size: tuple[int, int]) -> float:
    return max(1.0, _TOLERANCE * max(size))


def shape_of(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the cells of photos of a (width, height)."""
    width, height = size
    return int(np.ceil(height / _cell(size))), int(np.ceil(width / _cell(size)))


def cells_of(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the cell of each point (M, 2)."""
    inside = np.clip(points + 0.5, 0, np.subtract(size, 1))
    columns, rows = (inside / _cell(size)).astype(int).T
    return rows, columns


def _grown(cells: np.ndarray) -> np.ndarray:
    """The cells and their eight neighbours."""
    padded = np.pad(cells, 1)
    height, width = cells.shape
    return np.any(
        [padded[r : r + height, c : c + width] for r in range(3) for c in range(3)], axis=0
    )

"""Finds the still background of photos before which an object turns, as on a turntable.

The camera stands still, so the background stays at the same pixels, and its matches say that the
camera did not move. No depth follows from them. They are told from a scene that stands still while
people walk through it in that what moves is rigid, and in that most matches move or no photo from
elsewhere shows what does not.

The camera may have been aimed anew between two photos, or these may be cut to the object: then a
homography moves the background as a whole. So it does with a distant or flat part of a scene that
stands still, but there one fundamental matrix agrees with everything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import networkx as nx
import numpy as np

from edm_hloc.base.grid import evenly
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import track
from edm_hloc.mapping.still import Matched, cells_of, shape_of
from edm_hloc.matching.connections import agreeing_matches
from edm_hloc.pairs.rules import Pair

_STILL = 1 / 400  # largest movement of still matches, of the photo's longer side: 1.6 px of 640
_MOVING = 4 * _STILL  # smallest movement of the others
_MIN_MATCHES = 30  # still ones, and others, of a pair that shows a background
_MIN_SHARE = 0.05  # of the matches that move
_MAX_BETWEEN = 0.5  # matches whose movement is in between, of the still ones: in photos of one
# scene movement is as continuous as depth
_MIN_RIGID = 0.8  # of the moving matches, those that agree with one fundamental matrix
_MIN_PHOTOS = 3  # with the same background
_MAX_AIMED = 0.2  # of the longer side, that a homography moves the corners of a photo by: up to it
# the camera may have been aimed anew
_RIGID = 0.75  # of as many matches of the background as of the object, those that agree with one
# fundamental matrix, where nothing has turned
_MAX_ELSEWHERE = 0.5  # of the moving matches with photos from elsewhere, in the background
_MIN_TURNING = 0.1  # of the pairs with such photos, those in which an object turns
_MIN_TURNING_AIMED = 0.3  # the same where the camera was aimed anew; and of all moving matches,
_MAX_MOVING = 0.3  # those in the background
_LARGE = 0.15  # of the matches of a pair, still ones of a large background
_MAX_SAMPLED = 250  # matches that a homography or a fundamental matrix is estimated from
_KERNEL = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32)  # votes count in the next cells as well


@dataclass(frozen=True)
class Backdrop:
    """Where a photo shows a still background.

    Attributes:
        size: (width, height) of the photo.
        cells: (rows, columns) bool, in squares of a 32nd of the longer side.
    """

    size: tuple[int, int]
    cells: np.ndarray

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(M,) bool: which points (M, 2) of the photo, in hloc's frame, are in the background."""
        return np.asarray(self.cells[cells_of(points, self.size)])


@dataclass(frozen=True)
class BackdropSummary:
    """The photos before whose still background an object turns.

    Attributes:
        photos: their names.
        matches: matches in the background that were left out.
        kept: pairs of photos in which it seems to turn as well, but before what others show, too.
    """

    photos: tuple[str, ...]
    matches: int
    kept: tuple[Pair, ...] = ()

    @classmethod
    def of_run(cls, results: Mapping[str, Any]) -> BackdropSummary | None:
        """From the results of a run: of its raw matches, and of those of its keypoints.

        None without such photos or pairs.
        """
        parts = results.get("background"), results.get("imported", {}).get("backdrop")
        found = [part for part in parts if part]
        photos = tuple(sorted({name for part in found for name in part["photos"]}))
        kept = tuple((a, b) for part in found for a, b in part.get("kept", ()))
        matches = sum(part["matches"] for part in found)
        return cls(photos, matches, kept) if photos or kept else None


def find_backdrops(
    pairs: Sequence[Pair], matched: Matched, sizes: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Backdrop], list[Pair]]:
    """Finds the still background of photos before which an object turns.

    Args:
        pairs: names of the photos of each pair.
        matched: gives the matched points (M, 2) of both photos, or None.
        sizes: (width, height) of each photo by name.

    Returns:
        The background by name, of photos that have one; and pairs of others in which an object
        turns before a large background that stays, but photos from elsewhere show that as well.
    """
    pairs = [pair for pair in pairs if sizes.keys() >= set(pair)]
    still, every = _Votes(sizes), _Votes(sizes)
    compared: list[Pair] = []
    large: list[Pair] = []
    for pair in track(pairs, "Looking for still backgrounds", "pair"):
        size = sizes[pair[0]]
        both = matched(pair) if size == sizes[pair[1]] else None
        if both is None:
            continue
        if len(both[0]) >= 2 * _MIN_MATCHES:
            compared.append(pair)
        vote, aimed = _vote(*both, max(size))
        if vote is not None:
            every.add(pair, both, vote)
            if not aimed:
                still.add(pair, both, vote)
                if (vote > 0).mean() >= _LARGE:
                    large.append(pair)
    found: dict[str, Backdrop] = {}
    for backdrops, moves in still.groups():
        concerned = [pair for pair in compared if not backdrops.keys().isdisjoint(pair)]
        elsewhere = [pair for pair in pairs if len(backdrops.keys() & set(pair)) == 1]
        if still.within(backdrops) >= _MIN_TURNING * len(concerned) and (
            moves or _moving_in(backdrops, elsewhere, matched) <= _MAX_ELSEWHERE
        ):
            found |= backdrops
    for backdrops, _ in every.groups():
        concerned = [pair for pair in compared if not backdrops.keys().isdisjoint(pair)]
        if (
            not backdrops.keys() <= found.keys()
            and every.within(backdrops) >= _MIN_TURNING_AIMED * len(concerned)
            and _moving_in(backdrops, concerned, matched) <= _MAX_MOVING
        ):
            found |= backdrops
    return found, [pair for pair in large if not found.keys() >= set(pair)]


class _Votes:
    """What pairs of photos say of their background, in the cells of each photo.

    Args:
        sizes: (width, height) of each photo by name.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]]) -> None:
        self._sizes = sizes
        self._sums: dict[str, np.ndarray] = {}  # of each cell the still less the moving matches
        self._graph: nx.Graph[str] = nx.Graph()

    def within(self, photos: Collection[str]) -> int:
        """The number of pairs that were added of such photos."""
        return self._graph.subgraph(photos).number_of_edges()

    def add(self, pair: Pair, both: tuple[np.ndarray, np.ndarray], vote: np.ndarray) -> None:
        """Adds what `_vote` gives for the matched points (M, 2) of a pair."""
        self._graph.add_edge(*pair, moving=-float(vote.sum()))
        for name, points in zip(pair, both, strict=True):
            size = self._sizes[name]
            sums = self._sums.setdefault(name, np.zeros(shape_of(size), np.float32))
            np.add.at(sums, cells_of(points, size), vote)

    def groups(self) -> Iterator[tuple[dict[str, Backdrop], bool]]:
        """The background of the photos that such pairs connect, and whether most matches move."""
        for group in nx.connected_components(self._graph):
            if len(group) >= _MIN_PHOTOS:
                moving = sum(more for *_, more in self._graph.edges(group, data="moving"))
                grown = {name: _grown(self._sums[name]) for name in sorted(group)}
                yield {n: Backdrop(self._sizes[n], cells) for n, cells in grown.items()}, moving > 0


def in_backdrop(
    backdrops: Mapping[str, Backdrop], pair: Pair, points: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(M,) bool: which matches of a pair are in the background of either photo.

    Args:
        backdrops: as `find_backdrops` finds them.
        pair: names of the photos.
        points: matched points (M, 2) of both.
    """
    found = np.zeros(len(points[0]), bool)
    for name, of_photo in zip(pair, points, strict=True):
        if name in backdrops:
            found |= backdrops[name].contains(of_photo)
    return found


def _vote(
    points0: np.ndarray, points1: np.ndarray, longer_side: int
) -> tuple[np.ndarray | None, bool]:
    """(M,) float32: 1 for still matches, −1 for moving ones; None unless an object has turned.

    And whether the camera was aimed anew meanwhile.
    """
    movement = np.linalg.norm(points1 - points0, axis=1)
    vote = _vote_by(movement / longer_side, points0, points1)
    if vote is not None:
        return vote, False
    aimed = _aimed_anew(points0, points1, longer_side)
    if aimed is None:
        return None, False
    vote = _vote_by(np.linalg.norm(points1 - aimed, axis=1) / longer_side, points0, points1)
    return None if vote is None or _is_rigid(points0, points1, vote) else vote, True


def _vote_by(movement: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray | None:
    """The same, by how far matches (M, 2) move against the background, of the longer side."""
    still, moving = movement <= _STILL, movement > _MOVING
    between = len(movement) - still.sum() - moving.sum()
    if min(still.sum(), moving.sum()) < _MIN_MATCHES or moving.mean() < _MIN_SHARE:
        return None
    if between > _MAX_BETWEEN * still.sum():
        return None
    if not _agree(points0[moving], points1[moving], _MIN_RIGID):
        return None
    return still.astype(np.float32) - moving


def _aimed_anew(points0: np.ndarray, points1: np.ndarray, longer_side: int) -> np.ndarray | None:
    """(M, 2) where points (M, 2) of a background are in the other photo, for the most matches.

    None unless a camera that was aimed a little otherwise explains it.
    """
    chosen = evenly(range(len(points0)), _MAX_SAMPLED)
    if len(chosen) < 2 * _MIN_MATCHES:
        return None
    cv2.setRNGSeed(0)
    first, second = (points[chosen].astype(np.float64) for points in (points0, points1))
    H, _ = cv2.findHomography(first, second, cv2.USAC_FAST, _STILL * longer_side, maxIters=500)
    if H is None:
        return None
    low, high = points0.min(axis=0), points0.max(axis=0)
    corners = np.array([low, high, [low[0], high[1]], [high[0], low[1]]], np.float64)
    if np.linalg.norm(_mapped(H, corners) - corners, axis=1).max() > _MAX_AIMED * longer_side:
        return None
    return _mapped(H, points0)


def _mapped(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) by a homography (3, 3); far off where it has none."""
    there = points @ H[:, :2].T + H[:, 2]
    return np.asarray(there[:, :2] / np.maximum(there[:, 2:], 1e-9))


def _is_rigid(points0: np.ndarray, points1: np.ndarray, vote: np.ndarray) -> bool:
    """Whether still and moving matches agree with one fundamental matrix: nothing has turned."""
    still, moving = (np.flatnonzero(chosen).tolist() for chosen in (vote > 0, vote < 0))
    number = min(len(still), len(moving), _MAX_SAMPLED // 2)
    both = evenly(still, number) + evenly(moving, number)
    return _agree(points0[both], points1[both], _RIGID)


def _agree(points0: np.ndarray, points1: np.ndarray, min_share: float) -> bool:
    """Whether one fundamental matrix agrees with such a share of matches (M, 2)."""
    chosen = evenly(range(len(points0)), _MAX_SAMPLED)
    scores = np.ones(len(chosen), np.float32)
    return agreeing_matches(Matches(points0[chosen], points1[chosen], scores), min_share) > 0


def _grown(votes: np.ndarray) -> np.ndarray:
    """The cells whose votes, with those of their neighbours, are for a background."""
    summed = cv2.filter2D(votes, -1, _KERNEL, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(summed > 0)


def _moving_in(backdrops: Mapping[str, Backdrop], pairs: Iterable[Pair], matched: Matched) -> float:
    """Of the moving matches of pairs, the share in the background; a large one is of the scene.

    What moves as a whole, as the camera was aimed anew, does not count.
    """
    inside = total = 0
    for pair in pairs:
        both = matched(pair)
        if both is not None:
            (size, *_) = (backdrops[name].size for name in pair if name in backdrops)
            aimed = _aimed_anew(*both, max(size))
            there = both[0] if aimed is None else aimed
            moving = np.linalg.norm(both[1] - there, axis=1) > _MOVING * max(size)
            inside += int((in_backdrop(backdrops, pair, both) & moving).sum())
            total += int(moving.sum())
    return inside / max(1, total)

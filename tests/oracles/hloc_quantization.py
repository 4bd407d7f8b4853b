"""A plain, slow reading of hloc's description of quantization, to compare the fast one with.

Written point by point with dictionaries. Only where the description leaves ties open does it use
the library calls that hloc uses (NumPy's argsort, SciPy's KD-tree), since they decide them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial import KDTree

from edm_hloc.base.matches import Matches

Pair = tuple[str, str]
Point = tuple[float, float]
Arrays = tuple[np.ndarray, np.ndarray]
NO_BINS = 0


class Image:
    """What is known of one image: its cells, and what each bin of each cell has got so far."""

    def __init__(self) -> None:
        self.cell_ids: dict[Point, int] = {}
        self.bins: list[dict[Point, np.float32]] = []

    def vote(
        self, points: np.ndarray, scores: np.ndarray, cell_side: float, bin_side: int
    ) -> np.ndarray:
        """Lets the points vote one after the other; returns the cell of each."""
        ids = []
        cells, bins = snapped(points, cell_side), snapped(points, bin_side)
        for cell, bin_, score in zip(cells, bins, scores, strict=True):
            if cell not in self.cell_ids:
                self.cell_ids[cell] = len(self.bins)
                self.bins.append({})
            id_ = self.cell_ids[cell]
            votes = self.bins[id_]
            votes[bin_] = np.float32(votes[bin_] + score) if bin_ in votes else np.float32(score)
            ids.append(id_)
        return np.array(ids, dtype=np.int64)

    def keypoints(self, max_kps: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The most voted bin of each cell and what it got; the first of those that got the same."""
        winners = [max(votes, key=votes.__getitem__) for votes in self.bins]  # the first of equals
        got = [votes[winner] for votes, winner in zip(self.bins, winners, strict=True)]
        positions = np.array(winners, np.float32).reshape(-1, 2)
        scores = np.array(got, np.float32)
        if max_kps is not None:
            best_first = np.argsort(scores)[::-1][:max_kps]
            positions, scores = positions[best_first], scores[best_first]
        return positions, scores


def snapped(points: np.ndarray, side: float) -> list[Point]:
    """The centre of the lattice square each point is in, the pixel (0, 0) having corner −0.5."""
    points = np.asarray(points, np.float32)
    if side != NO_BINS:
        step, half = np.float32(side), np.float32(0.5)
        index = np.round((points + half) / step)
        points = np.round(index * step - half, 2)
    return [(x, y) for x, y in points.tolist()]


def nearest(points: np.ndarray, keypoints: np.ndarray, max_error: float) -> np.ndarray:
    """The keypoint nearest to each point, −1 where it is more than max_error px away."""
    if len(points) == 0 or len(keypoints) == 0:
        return np.full(len(points), -1)
    distances, ids = KDTree(keypoints).query(points)
    return np.array(
        [i if d <= max_error else -1 for i, d in zip(ids, distances, strict=True)], np.int64
    )


def one_to_one(
    ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """matches0 and matching_scores0 of a pair: at each keypoint the best match, on both sides."""
    both = (ids0 >= 0) & (ids1 >= 0)
    ids0, ids1, scores = ids0[both], ids1[both], scores[both]
    best: list[dict[int, int]] = [{}, {}]
    for side, ids in zip(best, (ids0, ids1), strict=True):
        for i in np.argsort(ids):  # its order of equal ids decides which of equal scores is first
            if ids[i] not in side or scores[i] > scores[side[ids[i]]]:
                side[ids[i]] = i
    kept = set(best[0].values()) & set(best[1].values())
    length = max((ids0[i] for i in kept), default=-1) + 1
    matches0, scores0 = np.full(length, -1, np.int32), np.zeros(length, np.float16)
    for i in kept:
        matches0[ids0[i]], scores0[ids0[i]] = ids1[i], scores[i]
    return matches0, scores0


def aggregate(
    raw: Mapping[Pair, Matches],
    pairs: Sequence[Pair],
    max_error: float,
    cell_size: float,
    max_kps: int | None,
    fixed: Mapping[str, np.ndarray] | None = None,
    anchors: Mapping[str, Arrays] | None = None,
) -> tuple[dict[str, Arrays], dict[Pair, Arrays]]:
    """Features {name: (keypoints, scores)} and matches {pair: (matches0, scores0)}.

    `raw` gives the matches of each pair; `fixed` the keypoints of images that
    keep them; `anchors` keypoints and scores that vote before the matches do.
    """
    fixed, anchors = fixed or {}, anchors or {}
    count = {name: sum(name in pair for pair in pairs) for pair in pairs for name in pair}
    pairs = sorted(pairs, key=lambda pair: (min(count[pair[0]], count[pair[1]]), pair))
    cell_side = max(cell_size, max_error)
    bin_side = int(max_error)

    images = {name: Image() for name in count if name not in fixed}
    for name, anchor in anchors.items():
        if name in images:
            images[name].vote(*anchor, cell_side, bin_side)
    ids: dict[tuple[Pair, int], np.ndarray] = {}
    for pair in pairs:
        *points, scores = raw[pair].arrays().values()
        for side, name in enumerate(pair):
            if name in fixed:
                ids[pair, side] = nearest(points[side], fixed[name], max_error)
            elif side == 0 and pair[1] in fixed and max_kps is None:
                ids[pair, side] = images[name].vote(points[side], scores, NO_BINS, NO_BINS)
            else:
                ids[pair, side] = images[name].vote(points[side], scores, cell_side, bin_side)

    features = {name: image.keypoints(max_kps) for name, image in images.items()}
    matches = {}
    for pair in pairs:
        *points, scores = raw[pair].arrays().values()
        if max_kps is not None:
            for side, name in enumerate(pair):
                keypoints = fixed[name] if name in fixed else features[name][0]
                ids[pair, side] = nearest(points[side], keypoints, max_error)
        matches[pair] = one_to_one(ids[pair, 0], ids[pair, 1], scores)
    return features, matches

"""Assigns points to their nearest keypoints, and makes the matches of a pair one-to-one."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import KDTree

from edm_hloc.keypoints.lattice import MAX_TABLE, checked_points


def assign_points(points: np.ndarray, keypoints: np.ndarray, max_error: float) -> np.ndarray:
    """Finds the nearest keypoint of each point, within `max_error` px.

    Gives the same answer as a query of `scipy.spatial.KDTree`, several times faster where few
    keypoints are near a point. The search index is built in each call, so all points of an image
    are best given at once.

    Args:
        points: (M, 2) pixels.
        keypoints: (N, 2) pixels, in the frame of the points.
        max_error: largest distance between a point and its keypoint, in pixels.

    Returns:
        (M,) int64, the index of each point's keypoint, -1 where none is near enough.

    Raises:
        ValueError: a shape is wrong, or a coordinate is not finite or too large.
    """
    points, keypoints = checked_points(points), checked_points(keypoints)
    ids = np.full(len(points), -1)
    if len(points) == 0 or len(keypoints) == 0:
        return ids

    # A grid of square buckets. Each lists the keypoints that lie within `max_error` of any of its
    # points. A border of empty buckets takes the points outside.
    radius = max_error * (1 + 1e-6)  # slightly more, for points at max_error exactly
    kx, ky = keypoints.T.astype(np.float64, order="C")
    low = np.array([kx.min(), ky.min()]) - radius
    high = np.array([kx.max(), ky.max()]) + radius
    side = max(2 * radius, math.sqrt(float(np.prod(high - low)) / MAX_TABLE))
    low -= side
    columns, rows = (int(size / side) + 2 for size in high - low)

    left, right = (((x - low[0]) / side).astype(np.int64) for x in (kx - radius, kx + radius))
    top, bottom = (((y - low[1]) / side).astype(np.int64) for y in (ky - radius, ky + radius))
    bits = len(keypoints).bit_length()
    packed = []  # bucket and keypoint in one number, which sorts faster than two
    for dy in range(2):  # radius <= side / 2: a keypoint is listed in at most 2 × 2 buckets
        for dx in range(2):
            listed = np.flatnonzero((left + dx <= right) & (top + dy <= bottom))
            bucket = (top[listed] + dy) * columns + left[listed] + dx
            packed.append(bucket << bits | listed)
    entries = np.sort(np.concatenate(packed))
    buckets, entries = entries >> bits, entries & ((1 << bits) - 1)
    is_last = np.append(buckets[1:] != buckets[:-1], True)
    is_first = np.append(True, is_last[:-1])
    first_entry = np.full(rows * columns, -1, np.int32)
    first_entry[buckets[is_first]] = np.flatnonzero(is_first)
    kx, ky = kx[entries], ky[entries]

    # All points walk through the lists of their buckets together, one entry per iteration.
    px, py = points.T.astype(np.float64, order="C")
    bucket = _clipped_indices(py, low[1], side, rows) * columns
    bucket += _clipped_indices(px, low[0], side, columns)
    best = first_entry[bucket]
    near = np.flatnonzero(best >= 0)
    px, py, best = px[near], py[near], best[near]
    distance = (px - kx[best]) ** 2 + (py - ky[best]) ** 2
    tied = np.zeros(len(near), bool)
    active, entry = np.arange(len(near)), best
    while True:
        more = ~is_last[entry]
        active, entry = active[more], entry[more] + 1
        if len(active) == 0:
            break
        before = distance[active]
        now = (px[active] - kx[entry]) ** 2 + (py[active] - ky[entry]) ** 2
        tied[active[now == before]] = True
        closer = now < before
        improved = active[closer]
        best[improved], distance[improved], tied[improved] = entry[closer], now[closer], False

    within = np.sqrt(distance) <= max_error
    ids[near[within]] = entries[best[within]]
    # Of equally near keypoints (two can even be at one place, where cells share a bin) the one
    # counts that the tree finds, which depends on how it is built.
    ambiguous = near[within & tied]
    if len(ambiguous):
        ids[ambiguous] = KDTree(keypoints).query(points[ambiguous])[1]
    return ids


def _clipped_indices(x: np.ndarray, low: float, side: float, count: int) -> np.ndarray:
    """(M,) int64: the one of `count` intervals of length `side`, the first at `low`, x is in."""
    indices = x - low
    indices /= side
    return np.clip(indices, 0, count - 1, out=indices).astype(np.int64)


def unique_matches(
    ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the raw matches of a pair that have the best score at both of their keypoints.

    Args:
        ids0: (M,) int, the keypoint of each raw match in image 0, -1 for none.
        ids1: (M,) int, the same in image 1.
        scores: (M,) float.

    Returns:
        matches0 (N0,) int32, the keypoint of image 1 matched to each keypoint of image 0, -1 for
        none, and the scores of these matches (N0,) float16. As in hloc, N0 ends at the last matched
        keypoint of image 0.
    """
    valid = np.flatnonzero((ids0 != -1) & (ids1 != -1))  # indices gather faster than a mask
    ids0, ids1, scores = ids0[valid], ids1[valid], scores[valid]
    kept = np.flatnonzero(_best_per_keypoint(ids0, scores) & _best_per_keypoint(ids1, scores))
    ids0, ids1, scores = ids0[kept], ids1[kept], scores[kept]
    length = int(ids0.max(initial=-1)) + 1
    matches0, scores0 = np.full(length, -1, np.int32), np.zeros(length, np.float16)
    matches0[ids0], scores0[ids0] = ids1, scores.astype(np.float16)
    return matches0, scores0


def _best_per_keypoint(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(M,) bool, True for the one match of each keypoint that has the highest score."""
    best = np.full(int(ids.max(initial=-1)) + 1, -np.inf, np.float32)
    np.maximum.at(best, ids, scores)
    chosen: np.ndarray = scores == best[ids]
    if np.count_nonzero(chosen) > np.count_nonzero(best > -np.inf):
        # Of equal scores the first in the order of hloc's argsort, of int64 and not stable.
        order = np.argsort(ids.astype(np.int64, copy=False))
        order = order[chosen[order]]
        _, first = np.unique(ids[order], return_index=True)
        chosen[:] = False
        chosen[order[first]] = True
    return chosen


def matched_points(ids0: np.ndarray, ids1: np.ndarray, matches0: np.ndarray) -> np.ndarray:
    """Finds the raw matches of a pair whose keypoints are matched to each other.

    Args:
        ids0, ids1: (M,) int, the keypoints of the raw matches, as for `unique_matches`.
        matches0: (N0,) int, from `unique_matches`.

    Returns:
        (L,) int64 indices into the raw matches. Several can belong to one match of keypoints.
    """
    assigned = np.flatnonzero((ids0 >= 0) & (ids0 < len(matches0)) & (ids1 >= 0))
    kept: np.ndarray = assigned[matches0[ids0[assigned]] == ids1[assigned]]
    return kept

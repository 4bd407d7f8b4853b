"""Quantization of raw matches: from points to keypoints and match indices, in pure NumPy.

Semi-dense matches have no keypoints that repeat between pairs. Here the points that an image has in
all its pairs vote, weighted by their scores, for small bins inside larger square cells, and each
cell gives one keypoint: its most voted bin. Results are hloc's, bit for bit: sums are float32 and
taken in the order of the pairs, and ties end as the same NumPy and SciPy calls leave them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.spatial import KDTree

MAX_COORDINATE = 2.0**20
"""Coordinates beyond this many pixels are taken for damaged data."""

_MAX_TABLE = 2**23  # entries of a lookup table; beyond it we sort


@dataclass(frozen=True)
class QuantizationConfig:
    """How points become keypoints; lengths in pixels of the original image.

    Attributes:
        max_error: side of the bins that vote (its whole part; below 1 every distinct point is its
            own bin), and how far from a keypoint a point may lie and still be assigned to it.
        cell_size: side of the square cells that give one keypoint each, at least `max_error`.
        max_kps: how many keypoints an image keeps, best scores first. With None all stay, points
            belong to their cell's keypoint at whatever distance, and (for localization) points of
            a query matched to an image of fixed keypoints are not binned.
        position: "bin", the centre of the bin, as hloc; or "mean", the mean of the points that
            are assigned to the keypoint, weighted by their scores, which is more exact; or
            "adjusted", that mean moved to where the matches of all pairs agree, with reprojection
            errors a third smaller, which needs the keypoints of all images at once (see
            `adjustment.py`).

    Raises:
        ValueError: if a value is out of its range.
    """

    max_error: float
    cell_size: float
    max_kps: int | None
    position: Literal["bin", "mean", "adjusted"] = "bin"

    def __post_init__(self) -> None:
        # below a tenth of a pixel the rounding to 0.01 px would merge neighbouring cells
        if not 0.1 <= self.max_error < MAX_COORDINATE:
            raise ValueError(f"max_error must be at least 0.1 px, not {self.max_error}")
        if not 0.0 <= self.cell_size < MAX_COORDINATE:
            raise ValueError(f"cell_size must be 0 or more px, not {self.cell_size}")
        if self.max_kps is not None and self.max_kps < 1:
            raise ValueError(f"max_kps must be None or at least 1, not {self.max_kps}")
        if self.position not in ("bin", "mean", "adjusted"):
            raise ValueError(f"position must be bin, mean or adjusted, not {self.position}")

    @property
    def cell_side(self) -> float:
        """Side of the cells in px: a cell is never smaller than `max_error`."""
        return max(self.cell_size, self.max_error)

    @property
    def bin_side(self) -> int:
        """Side of the voting bins in px; 0 means that points are not binned."""
        return int(self.max_error)


class QuantizedImage(NamedTuple):
    """Keypoints of one image and what became of the points that made them."""

    keypoints: np.ndarray
    """(N, 2) float32, (x, y) in the frame of the points."""
    scores: np.ndarray
    """(N,) float32, sum of the scores of the points in the keypoint's bin."""
    ids: np.ndarray
    """(M,) int64, the keypoint of each input point, -1 for none."""


def quantize_image(
    points: np.ndarray,
    scores: np.ndarray,
    config: QuantizationConfig,
    *,
    binned: np.ndarray | None = None,
) -> QuantizedImage:
    """Quantizes all points of one image.

    Keypoints come in the order in which their cells appear among the points or, when
    `config.max_kps` limits them, best score first.

    Args:
        points: (M, 2) float32, the points of the image's pairs one after the other, in pixels with
            the centre of the top-left pixel at (0, 0). The order decides ties and rounding.
        scores: (M,) float32 weights of the points.
        config: the quantization.
        binned: (M,) bool, False for points that are taken as they are (each distinct point is its
            own cell); None bins all.

    Raises:
        ValueError: if shapes disagree, or a value is not finite or no pixel coordinate.
    """
    points = _checked_points(np.ascontiguousarray(points, dtype=np.float32))
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    if scores.shape != (len(points),):
        raise ValueError(f"{len(points)} points but scores of shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not all finite")
    if len(points) == 0:
        return QuantizedImage(
            np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        )

    # A vote is for one bin of one cell (bins may straddle cells).
    if config.bin_side > 0 and (binned is None or binned.all()):
        binned = None
        vote_ids, first, cell_of_vote = _votes_on_lattice(points, config)
    else:
        vote_ids, first, cell_of_vote = _votes_by_value(points, config, binned)
    num_cells = int(cell_of_vote.max()) + 1

    totals = np.zeros(len(first), np.float32)
    np.add.at(totals, vote_ids, scores)  # one by one and in order, unlike sum or reduceat
    best = np.full(num_cells, -np.inf, np.float32)
    np.maximum.at(best, cell_of_vote, totals)
    candidates = np.flatnonzero(totals == best[cell_of_vote])
    winner = np.full(num_cells, len(first))
    np.minimum.at(winner, cell_of_vote[candidates], candidates)  # of equal bins the first seen
    source = first[winner]
    keypoints = _snap(points[source], config.bin_side, None if binned is None else binned[source])

    if config.max_kps is None:
        ids = cell_of_vote[vote_ids]
    else:
        # hloc's own call, not a stable sort, so that equal scores come in the same order as there
        kept = np.argsort(best)[::-1][: config.max_kps]
        keypoints, best = keypoints[kept], best[kept]
        ids = assign(points, keypoints, config.max_error)
    if config.position != "bin":
        keypoints = _mean_positions(keypoints, ids, points, scores)
    return QuantizedImage(keypoints, best, ids)


def _mean_positions(
    keypoints: np.ndarray, ids: np.ndarray, points: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """(N, 2) float32 means of the points of each keypoint; a keypoint without weight stays."""
    assigned = np.flatnonzero(ids >= 0)
    ids, weights = ids[assigned], scores[assigned].astype(np.float64)
    total = np.bincount(ids, weights, len(keypoints))
    sums = [np.bincount(ids, weights * points[assigned, d], len(keypoints)) for d in (0, 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.stack(sums, axis=1) / total[:, None]
    return np.where(total[:, None] > 0, means, keypoints).astype(np.float32)


def assign(points: np.ndarray, keypoints: np.ndarray, max_error: float) -> np.ndarray:
    """Finds for each point the nearest keypoint that is at most `max_error` px away.

    Same answer as a query of `scipy.spatial.KDTree`, several times faster where few keypoints are
    in reach of a point. Give all the points of an image at once: the index is built in each call.

    Args:
        points: (M, 2) pixels.
        keypoints: (N, 2) pixels, same frame.
        max_error: pixels.

    Returns:
        (M,) int64 keypoint indices, -1 where there is none.

    Raises:
        ValueError: if a shape is wrong, or a coordinate not finite or no pixel coordinate.
    """
    points, keypoints = _checked_points(points), _checked_points(keypoints)
    ids = np.full(len(points), -1)
    if len(points) == 0 or len(keypoints) == 0:
        return ids

    # Hash grid: each of its squares lists the keypoints that a point inside may have in reach.
    # A border of empty squares takes the points that are outside.
    reach = max_error * (1 + 1e-6)  # a hair more, for points at max_error exactly
    kx, ky = keypoints.T.astype(np.float64, order="C")
    low = np.array([kx.min(), ky.min()]) - reach
    high = np.array([kx.max(), ky.max()]) + reach
    side = max(2 * reach, math.sqrt(float(np.prod(high - low)) / _MAX_TABLE))
    low -= side
    columns, rows = (int(size / side) + 2 for size in high - low)

    left, right = (((x - low[0]) / side).astype(np.int64) for x in (kx - reach, kx + reach))
    top, bottom = (((y - low[1]) / side).astype(np.int64) for y in (ky - reach, ky + reach))
    bits = len(keypoints).bit_length()
    packed = []  # square and keypoint in one number, which sorts faster than two
    for dy in range(2):  # reach <= side / 2: a keypoint is listed in no more than 2 x 2 squares
        for dx in range(2):
            listed = np.flatnonzero((left + dx <= right) & (top + dy <= bottom))
            square = (top[listed] + dy) * columns + left[listed] + dx
            packed.append(square << bits | listed)
    entries = np.sort(np.concatenate(packed))
    squares, entries = entries >> bits, entries & ((1 << bits) - 1)
    is_last = np.append(squares[1:] != squares[:-1], True)
    is_first = np.append(True, is_last[:-1])
    first_entry = np.full(rows * columns, -1, np.int32)
    first_entry[squares[is_first]] = np.flatnonzero(is_first)
    kx, ky = kx[entries], ky[entries]

    # All points go through the lists of their squares together, one entry a round.
    px, py = points.T.astype(np.float64, order="C")
    square = _clipped_steps(py, low[1], side, rows) * columns
    square += _clipped_steps(px, low[0], side, columns)
    best = first_entry[square]
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

    inside = np.sqrt(distance) <= max_error
    ids[near[inside]] = entries[best[inside]]
    ambiguous = near[inside & tied]  # two keypoints can even be at one place, in a bin of two cells
    if len(ambiguous):  # which of them a tree finds depends on how it is built
        ids[ambiguous] = KDTree(keypoints).query(points[ambiguous])[1]
    return ids


def unique_matches(
    ids0: np.ndarray, ids1: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keeps of a pair's matches those that have the best score at both of their keypoints.

    Args:
        ids0: (M,) int, keypoint of each raw match in image 0, -1 for none.
        ids1: (M,) int, the same in image 1.
        scores: (M,) float.

    Returns:
        matches0 (L,) int32, the keypoint of image 1 for each keypoint of image 0, -1 for none, and
        its score (L,) float16. As in hloc, L is 1 + the last matched keypoint of image 0.
    """
    valid = np.flatnonzero((ids0 != -1) & (ids1 != -1))  # indices gather faster than flags
    ids0, ids1, scores = ids0[valid], ids1[valid], scores[valid]
    kept = np.flatnonzero(_best_of_each(ids0, scores) & _best_of_each(ids1, scores))
    ids0, ids1, scores = ids0[kept], ids1[kept], scores[kept]
    length = int(ids0.max(initial=-1)) + 1
    matches0, scores0 = np.full(length, -1, np.int32), np.zeros(length, np.float16)
    matches0[ids0], scores0[ids0] = ids1, scores.astype(np.float16)
    return matches0, scores0


def _best_of_each(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(M,) bool, True at one element for each distinct id: the one of the highest score."""
    best = np.full(int(ids.max(initial=-1)) + 1, -np.inf, np.float32)
    np.maximum.at(best, ids, scores)
    chosen: np.ndarray = scores == best[ids]
    if np.count_nonzero(chosen) > np.count_nonzero(best > -np.inf):
        # Ties: the first one in the order of hloc's argsort, which is int64 and not stable.
        order = np.argsort(ids.astype(np.int64, copy=False))
        order = order[chosen[order]]
        _, first = np.unique(ids[order], return_index=True)
        chosen[:] = False
        chosen[order[first]] = True
    return chosen


def _checked_points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points must be of shape (M, 2), not {points.shape}")
    extremes = [points.min(initial=0), points.max(initial=0)]
    if not (np.abs(extremes) <= MAX_COORDINATE).all():  # nor is it for NaN
        raise ValueError("coordinates are not all finite pixels")
    return points


def _steps(points: np.ndarray, side: float) -> np.ndarray:
    """(M, 2) float32: index of the lattice square each point is in, halves to even."""
    steps = points + 0.5
    steps /= side
    return np.rint(steps, out=steps)


def _clipped_steps(x: np.ndarray, low: float, side: float, count: int) -> np.ndarray:
    """(M,) int64: which of `count` intervals of length `side` from `low` on each x is in."""
    steps = x - low
    steps /= side
    return np.clip(steps, 0, count - 1, out=steps).astype(np.int64)


def _snap(points: np.ndarray, side: float, binned: np.ndarray | None) -> np.ndarray:
    """(M, 2) float32: points moved to the centre of their square, but for those not `binned`."""
    if side == 0:
        return points
    snapped: np.ndarray = np.round(_steps(points, side) * side - 0.5, 2)
    return snapped if binned is None else np.where(binned[:, None], snapped, points)


Votes = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Vote each point belongs to (M,); of each vote its first point (V,) and its cell (V,)."""


def _votes_on_lattice(points: np.ndarray, config: QuantizationConfig) -> Votes:
    """Groups points by cell and bin, told apart by their places in the two lattices."""
    steps = _steps(points, config.cell_side)
    if config.bin_side != config.cell_side:
        # Along an axis both indices grow together, so that their sum names the pair of them.
        steps += _steps(points, config.bin_side)
    vote_ids, first = _number(_flat_keys(steps))
    cell_of_vote, _ = _number(_flat_keys(_steps(points[first], config.cell_side)))
    return vote_ids, first, cell_of_vote


def _votes_by_value(
    points: np.ndarray, config: QuantizationConfig, binned: np.ndarray | None
) -> Votes:
    """Groups points by cell and bin, told apart by their positions: slower, but for any points."""
    cell_ids, _ = _number(_bit_keys(_snap(points, config.cell_side, binned)))
    bin_ids, _ = _number(_bit_keys(_snap(points, config.bin_side, binned)))
    vote_ids, first = _number(cell_ids * (int(bin_ids.max()) + 1) + bin_ids)
    return vote_ids, first, cell_ids[first]


def _flat_keys(steps: np.ndarray) -> np.ndarray:
    """(M, 2) whole numbers → (M,) int64 index into the smallest grid that holds them all."""
    x, y = steps[:, 0].astype(np.int64), steps[:, 1].astype(np.int64)
    x -= x.min()
    y -= y.min()
    y *= int(x.max()) + 1
    y += x
    return y


def _bit_keys(positions: np.ndarray) -> np.ndarray:
    """(M, 2) float32 → (M,) int64, equal where both coordinates are."""
    return np.ascontiguousarray(positions + np.float32(0)).view(np.int64)[:, 0]  # -0 becomes 0


def _number(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers equal keys by first appearance: (M,) numbers, (G,) position of each key's first."""
    low, high = int(keys.min()), int(keys.max())
    if high - low < _MAX_TABLE:
        keys = keys - low
        positions = np.arange(len(keys), dtype=np.int32)
        table = np.full(high - low + 1, len(keys), np.int32)
        np.minimum.at(table, keys, positions)
        first = np.flatnonzero(table[keys] == positions)
        table[keys[first]] = np.arange(len(first))
        return table[keys].astype(np.int64), first
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[inverse], first[order]

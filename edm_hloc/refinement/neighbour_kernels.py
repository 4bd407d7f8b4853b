"""Compiled loops over the nearest neighbours of points: affine fits, support, repeated points.

Points are sorted into the squares of a grid. The candidates for the nearest ones are those in a
block of squares around a point; they hold them all if enough are nearer than the block's sides.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from edm_hloc.base.compiled import compiled, inlined

_PER_SQUARE = 2.5  # points in a square of the grid, on average
_FARTHEST = np.float32(1e30)  # squared distance of points that are not finite
_FEW = 6  # points, of which the nearest are picked one by one
_LOOKS = 12  # at most, at how many points are nearer than a distance
_ITERATIONS = 5  # of a robust fit
_CONVERGED = 1e-4  # change of a weight, of 1, from which on a fit is repeated
_HALVINGS = 18  # of the interval that a median is in
SAMPLES = 64  # matches whose neighbours tell how the pair is rotated and scaled


class _Grid(NamedTuple):
    """Points (M, 2) sorted into squares, row by row.

    Attributes:
        left, top, side: where the squares begin, and the length of their sides, in pixels.
        columns, rows: of the grid.
        start: (rows · columns + 1,) where each square's points start in `order`.
        order: (M,) indices of the points.
        x, y: (M,) the points in this order.
    """

    left: np.float32
    top: np.float32
    side: np.float32
    columns: int
    rows: int
    start: np.ndarray
    order: np.ndarray
    x: np.ndarray
    y: np.ndarray


@inlined
def _grid(points: np.ndarray) -> _Grid:
    """The grid of points (M, 2), M > 0."""
    count = len(points)
    left = top = np.float32(math.inf)
    right = bottom = np.float32(-math.inf)
    for i in range(count):
        left, right = min(left, points[i, 0]), max(right, points[i, 0])
        top, bottom = min(top, points[i, 1]), max(bottom, points[i, 1])
    width, height = right - left, bottom - top
    # A row of points has no area: its squares hold as many along it.
    along = _PER_SQUARE * float(max(width, height)) / count
    side = np.float32(max(math.sqrt(_PER_SQUARE * width * height / count), along, 1e-3))
    # There are fewer than `count`, unless points are not finite.
    columns = min(max(int(width / side), 0), count) + 1
    rows = min(max(int(height / side), 0), count) + 1
    start = np.zeros(columns * rows + 1, np.int32)
    square = np.empty(count, np.int32)
    for i in range(count):
        column = min(max(int((points[i, 0] - left) / side), 0), columns - 1)
        row = min(max(int((points[i, 1] - top) / side), 0), rows - 1)
        square[i] = row * columns + column
        start[square[i] + 1] += 1
    for i in range(columns * rows):
        start[i + 1] += start[i]
    fill = start[:-1].copy()
    order = np.empty(count, np.int32)
    x, y = np.empty(count, np.float32), np.empty(count, np.float32)
    for i in range(count):
        k = fill[square[i]]
        fill[square[i]] += 1
        order[k], x[k], y[k] = i, points[i, 0], points[i, 1]
    return _Grid(left, top, side, columns, rows, start, order, x, y)


@inlined
def _candidates(
    x: np.float32, y: np.float32, grid: _Grid, ring: int, squared: np.ndarray, index: np.ndarray
) -> Any:
    """The points in a block of squares, `ring` of them on each side of the one around (x, y).

    Args:
        squared, index: (M,) that their squared distances and indices are written to.

    Returns:
        Their number, and the squared distance up to which no other point is near.
    """
    column = min(max(int((x - grid.left) / grid.side), 0), grid.columns - 1)
    row = min(max(int((y - grid.top) / grid.side), 0), grid.rows - 1)
    first, last = max(column - ring, 0), min(column + ring, grid.columns - 1)
    upper, lower = max(row - ring, 0), min(row + ring, grid.rows - 1)
    count = 0
    farthest = _FARTHEST
    for r in range(upper, lower + 1):
        begin = grid.start[r * grid.columns + first]
        length = grid.start[r * grid.columns + last + 1] - begin
        xs, ys = grid.x[begin : begin + length], grid.y[begin : begin + length]
        order = grid.order[begin : begin + length]
        out, numbers = squared[count : count + length], index[count : count + length]
        for k in range(length):
            dx, dy = xs[k] - x, ys[k] - y
            distance = dx * dx + dy * dy
            out[k] = distance if distance < farthest else farthest
            numbers[k] = order[k]
        count += length
    edge = np.float32(math.inf)
    if first > 0:
        edge = min(edge, x - (grid.left + np.float32(first) * grid.side))
    if last < grid.columns - 1:
        edge = min(edge, grid.left + np.float32(last + 1) * grid.side - x)
    if upper > 0:
        edge = min(edge, y - (grid.top + np.float32(upper) * grid.side))
    if lower < grid.rows - 1:
        edge = min(edge, grid.top + np.float32(lower + 1) * grid.side - y)
    if edge == math.inf:
        return count, edge
    edge = max(edge - np.float32(1e-3) * grid.side, np.float32(0))  # sides are rounded
    return count, edge * edge


@inlined
def _num_within(squared: np.ndarray, most: np.float32) -> Any:
    number = np.int32(0)
    for k in range(len(squared)):
        number += np.int32(squared[k] <= most)
    return number


@inlined
def _choose_nearest(
    x: np.float32,
    y: np.float32,
    grid: _Grid,
    squared: np.ndarray,
    index: np.ndarray,
    chosen: np.ndarray,
) -> None:
    """The nearest points to (x, y); of those at the same distance, the first ones in the list.

    Args:
        squared, index: (M,), overwritten.
        chosen: (K,), K ≤ M, that their indices are written to, in no order.
    """
    wanted = len(chosen)
    ring = math.ceil(math.sqrt(wanted / (math.pi * _PER_SQUARE)))
    while True:
        count, high = _candidates(x, y, grid, ring, squared, index)
        number_high = _num_within(squared[:count], high)
        if number_high >= wanted:
            break
        ring += 1
    if high == math.inf:
        high = np.float32(0)
        for k in range(count):
            high = max(high, squared[k])
        number_high = count
    # No more than `wanted` are within `low`, and no fewer within `high`. Numbers grow as areas do.
    low, number_low = np.float32(-1), 0
    for _ in range(_LOOKS):
        if number_high == wanted or number_high - number_low <= _FEW:
            break
        share = (wanted - number_low + np.float32(0.5)) / np.float32(number_high - number_low)
        middle = np.float32(low + (high - low) * min(max(share, np.float32(0.1)), np.float32(0.9)))
        number = _num_within(squared[:count], middle)
        if number > wanted:
            high, number_high = middle, number
        else:
            low, number_low = middle, number
            if number == wanted:
                high, number_high = middle, number
    if number_high == wanted:
        low = high
    kept = 0
    rest = 0
    for k in range(count):
        # What lies between the two distances moves to the front.
        distance, number = squared[k], index[k]
        if kept < wanted:
            chosen[kept] = number
        kept += distance <= low
        squared[rest], index[rest] = distance, number
        rest += (distance > low) & (distance <= high)
    while kept < wanted:
        best = 0
        for k in range(1, rest):
            if squared[k] < squared[best] or (
                squared[k] == squared[best] and index[k] < index[best]
            ):
                best = k
        chosen[kept] = index[best]
        kept += 1
        rest -= 1
        squared[best], index[best] = squared[rest], index[rest]


@inlined
def _neighbourhood(
    points0: np.ndarray, points1: np.ndarray, i: int, index: np.ndarray, pairs: np.ndarray
) -> None:
    """Writes the pairs of neighbours, relative to the i-th, to `pairs` (4, K or more)."""
    for k in range(len(index)):
        j = index[k]
        pairs[0, k] = points0[j, 0] - points0[i, 0]
        pairs[1, k] = points0[j, 1] - points0[i, 1]
        pairs[2, k] = points1[j, 0] - points1[i, 0]
        pairs[3, k] = points1[j, 1] - points1[i, 1]


@inlined
def _median(values: np.ndarray, largest: float) -> Any:
    """The median of values (N,), N > 0, in [−largest, largest]; of two, the lower one."""
    low, high = np.float32(-largest), np.float32(largest)
    for _ in range(_HALVINGS):
        middle = np.float32(0.5) * (low + high)
        if 2 * _num_within(values, middle) < len(values):
            low = middle
        else:
            high = middle
    return high


@inlined
def _pair_prior(points: Any, grid: _Grid, buffers: Any, pairs: np.ndarray, settings: Any) -> Any:
    """The weight of a prior, and (a, b) of its map (x, y) to (a·x − b·y, b·x + a·y).

    The map is the rotation and scale of the pair: the median over neighbours of their offset in
    image 1 divided by that in image 0, as complex numbers. Wrong matches lie far from their
    neighbours, at scales that are not plausible. Arguments are named as in `affine_maps`.
    """
    (points0, points1), (squared, index, chosen) = points, buffers
    weight, _, least = settings
    real, imaginary = np.empty((2, SAMPLES * len(chosen)), np.float32)
    number = 0
    for n in range(SAMPLES):
        i = n * len(points0) // SAMPLES
        _choose_nearest(points0[i, 0], points0[i, 1], grid, squared, index, chosen)
        _neighbourhood(points0, points1, i, chosen, pairs)
        for x, y, u, v in pairs[:, : len(chosen)].T:
            size0, size1 = x * x + y * y, u * u + v * v
            if 0 < size0 < _FARTHEST and least * size0 <= size1 and least * size1 <= size0:
                real[number], imaginary[number] = (x * u + y * v) / size0, (x * v - y * u) / size0
                number += 1
    largest = 1 / math.sqrt(least)
    a, b = _median(real[:number], largest), _median(imaginary[:number], largest)
    if number == 0 or a * a + b * b < least:  # there are none, or they contradict each other
        a, b = np.float32(1), np.float32(0)
    return weight, a, b


@inlined
def _robust_affine_fit(
    pairs: np.ndarray, spatial: np.ndarray, weight: np.ndarray, prior: Any, scale: float
) -> Any:
    """The affine map that minimises a Cauchy loss, by iteratively reweighted least squares.

    Args:
        pairs: (4, K) x and y of the source, x and y of the target, float32.
        spatial: (K,) weights of the pairs.
        weight: (K,) for what the loss makes of them.
        prior: as from `_pair_prior`.
        scale: of the Cauchy loss, pixels.

    Returns:
        (a, b, c, d, e, f) of the map (x, y) to (a·x + b·y + c, d·x + e·y + f), float32.
    """
    count = len(spatial)
    inverse = np.float32(1 / (scale * scale))
    weight[:] = np.float32(1)
    one, zero = np.float32(1), np.float32(0)
    a, b, c, d, e, f = one, zero, zero, zero, one, zero
    own, toward_a, toward_b = prior[0], prior[0] * prior[1], prior[0] * prior[2]
    for iteration in range(_ITERATIONS):
        w_, wx, wy, wxx, wxy, wyy = zero, zero, zero, zero, zero, zero
        wu, wv, wxu, wyu, wxv, wyv = zero, zero, zero, zero, zero, zero
        for k in range(count):
            w = spatial[k] * weight[k]
            x, y, u, v = pairs[0, k], pairs[1, k], pairs[2, k], pairs[3, k]
            w_ += w
            wx, wy, wu, wv = wx + w * x, wy + w * y, wu + w * u, wv + w * v
            wxx, wxy, wyy = wxx + w * x * x, wxy + w * x * y, wyy + w * y * y
            wxu, wyu = wxu + w * x * u, wyu + w * y * u
            wxv, wyv = wxv + w * x * v, wyv + w * y * v
        # The translation, which is nearly free, is eliminated first.
        total = 1 / (np.float64(w_) + 1e-3)
        xx = wxx + own - wx * wx * total
        yy = wyy + own - wy * wy * total
        xy = wxy - wx * wy * total
        xu, yu = wxu + toward_a - wx * wu * total, wyu - toward_b - wy * wu * total
        xv, yv = wxv + toward_b - wx * wv * total, wyv + toward_a - wy * wv * total
        determinant = 1 / (xx * yy - xy * xy)
        a = np.float32((yy * xu - xy * yu) * determinant)
        b = np.float32((xx * yu - xy * xu) * determinant)
        d = np.float32((yy * xv - xy * yv) * determinant)
        e = np.float32((xx * yv - xy * xv) * determinant)
        c = np.float32((wu - a * wx - b * wy) * total)
        f = np.float32((wv - d * wx - e * wy) * total)
        if iteration == _ITERATIONS - 1:
            break
        change = zero
        for k in range(count):
            x, y = pairs[0, k], pairs[1, k]
            du, dv = a * x + b * y + c - pairs[2, k], d * x + e * y + f - pairs[3, k]
            new = one / (one + (du * du + dv * dv) * inverse)
            change = max(change, abs(new - weight[k]))
            weight[k] = new
        if change < _CONVERGED:
            break
    return a, b, c, d, e, f


@compiled
def affine_maps(
    points0: np.ndarray,
    points1: np.ndarray,
    at: np.ndarray,
    neighbours: int,
    reach: float,
    settings: tuple[float, float, float],
) -> np.ndarray:
    """What `affine.local_affine_maps` gives.

    Args:
        points0, points1: (M, 2) float32.
        at: (N,) int64.
        neighbours: at most M − 1.
        reach: pixels, of the Gaussian that weights the neighbours by their distance.
        settings: weight of the prior, scale of the loss in pixels, minimum determinant.

    Returns:
        (N, 2, 2) float32.
    """
    _, scale, min_determinant = settings
    count = neighbours + 1
    grid = _grid(points0)
    squared, index = np.empty(len(points0), np.float32), np.empty(len(points0), np.int32)
    chosen = np.empty(count, np.int32)
    padded = (count + 7) // 8 * 8
    pairs = np.zeros((4, padded), np.float32)
    spatial, weight = np.zeros(padded, np.float32), np.empty(padded, np.float32)
    prior = _pair_prior((points0, points1), grid, (squared, index, chosen), pairs, settings)
    maps = np.empty((len(at), 2, 2), np.float32)
    for n in range(len(at)):
        i = at[n]
        _choose_nearest(points0[i, 0], points0[i, 1], grid, squared, index, chosen)
        _neighbourhood(points0, points1, i, chosen, pairs)
        for k in range(count):
            away = pairs[0, k] * pairs[0, k] + pairs[1, k] * pairs[1, k]
            spatial[k] = math.exp(-away / (reach * reach))
        a, b, _, d, e, _ = _robust_affine_fit(pairs, spatial, weight, prior, scale)
        if a * e - b * d < min_determinant:
            a, b, d, e = prior[1], -prior[2], prior[2], prior[1]
        maps[n, 0, 0], maps[n, 0, 1], maps[n, 1, 0], maps[n, 1, 1] = a, b, d, e
    return maps


@compiled
def support(
    points0: np.ndarray,
    points1: np.ndarray,
    neighbours: int,
    settings: tuple[float, float, float],
    tolerances: tuple[float, float],
) -> np.ndarray:
    """What `affine.neighbour_support` gives.

    Args:
        points0, points1, neighbours, settings: as for `affine_maps`.
        tolerances: of an inlier in pixels, and what is added to it for each pixel of a neighbour's
            distance.

    Returns:
        (M,) float32.
    """
    (_, scale, _), (near, farther) = settings, tolerances
    count = neighbours + 1  # with the match itself
    grid = _grid(points0)
    squared, index = np.empty(len(points0), np.float32), np.empty(len(points0), np.int32)
    chosen = np.empty(count, np.int32)
    padded = (count + 7) // 8 * 8
    pairs = np.zeros((4, padded), np.float32)
    spatial, weight = np.zeros(padded, np.float32), np.empty(padded, np.float32)
    prior = _pair_prior((points0, points1), grid, (squared, index, chosen), pairs, settings)
    share = np.empty(len(points0), np.float32)
    for i in range(len(points0)):
        _choose_nearest(points0[i, 0], points0[i, 1], grid, squared, index, chosen)
        _neighbourhood(points0, points1, i, chosen, pairs)
        # Where more than that many coincide, the match itself may not be among them.
        itself = count - 1
        for k in range(count):
            if chosen[k] == i:
                itself = k
        spatial[:count] = 1
        spatial[itself] = 0
        a, b, _, d, e, _ = _robust_affine_fit(pairs, spatial, weight, prior, scale)
        inliers = 0
        for k in range(count):
            x, y = pairs[0, k], pairs[1, k]
            # Through the match itself, whatever translation the neighbours agree on.
            du, dv = a * x + b * y - pairs[2, k], d * x + e * y - pairs[3, k]
            tolerance = near + farther * math.sqrt(x * x + y * y)
            inliers += spatial[k] * (du * du + dv * dv < tolerance * tolerance)
        share[i] = inliers / neighbours
    return share


@compiled
def nearest_point(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index (N,) int32 of the nearest of the points (M, 2), M > 0, to each query (N, 2)."""
    grid = _grid(points)
    squared, index = np.empty(len(points), np.float32), np.empty(len(points), np.int32)
    found = np.empty(len(queries), np.int32)
    for n in range(len(queries)):
        _choose_nearest(queries[n, 0], queries[n, 1], grid, squared, index, found[n : n + 1])
    return found


@compiled
def repeated(points0: np.ndarray, points1: np.ndarray, within: float) -> np.ndarray:
    """Which of the pairs of points (M, 2), M > 0, repeat an earlier one, as (M,) bool.

    They do where the two differ by no more than `within` pixels in both images together.
    """
    grid = _grid(points0)
    found = np.zeros(len(points0), np.bool_)
    most = np.float32(within * within)
    reach = np.float32(within * 1.001 + 1e-3 * grid.side)
    for i in range(len(points0)):
        x, y = points0[i, 0] - grid.left, points0[i, 1] - grid.top
        first = max(int((x - reach) / grid.side), 0)
        last = min(int((x + reach) / grid.side), grid.columns - 1)
        upper = max(int((y - reach) / grid.side), 0)
        lower = min(int((y + reach) / grid.side), grid.rows - 1)
        for r in range(upper, lower + 1):
            begin, end = r * grid.columns + first, r * grid.columns + last + 1
            for k in range(grid.start[begin], grid.start[end]):
                j = grid.order[k]
                if j < i:
                    dx, dy = points0[j, 0] - points0[i, 0], points0[j, 1] - points0[i, 1]
                    du, dv = points1[j, 0] - points1[i, 0], points1[j, 1] - points1[i, 1]
                    if dx * dx + dy * dy + du * du + dv * dv <= most:
                        found[i] = True
    return found

"""Compiled loops over the nearest neighbours of points: affine fits, support, repeated points.

Points are sorted into the squares of a grid; a search goes through the squares around a point,
ring by ring, until no point of the next ring can be nearer than those found.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edm_hloc.refinement.compiled import compiled, inlined

_PER_SQUARE = 2.5  # points in a square of the grid, on average
_ITERATIONS = 5  # of a robust fit
_CONVERGED = 1e-4  # change of a weight, of 1, from which on a fit is repeated


@inlined
def _grid(points: np.ndarray) -> Any:
    """Points (M, 2) sorted into squares.

    Returns:
        The origin and the side of the squares in pixels as (x, y, side); the (columns, rows) of
        the grid; where each square's points start in `order`; and `order`, indices of points.
    """
    count = len(points)
    left = top = np.float32(math.inf)
    right = bottom = np.float32(-math.inf)
    for i in range(count):
        left, right = min(left, points[i, 0]), max(right, points[i, 0])
        top, bottom = min(top, points[i, 1]), max(bottom, points[i, 1])
    width, height = right - left, bottom - top
    # A row of points has no area: its squares hold as many along it.
    side = max(
        math.sqrt(_PER_SQUARE * width * height / count), _PER_SQUARE * max(width, height) / count
    )
    side = np.float32(max(side, 1e-3))
    columns, rows = max(int(width / side), 0) + 1, max(int(height / side), 0) + 1
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
    for i in range(count):
        order[fill[square[i]]] = i
        fill[square[i]] += 1
    return (left, top, side), (columns, rows), start, order


@inlined
def _nearest(
    x: float,
    y: float,
    points: np.ndarray,
    grid: Any,
    itself: int,
    squared: np.ndarray,
    index: np.ndarray,
) -> None:
    """The nearest points to (x, y), nearest first, of equal distances the first in the list.

    Args:
        points: (M, 2).
        grid: what `_grid` gives for them.
        itself: index of a point that is left out; −1 for none.
        squared, index: (K,) that the squared distances and the indices are written to.
    """
    (left, top, side), (columns, rows), start, order = grid
    wanted = len(index)
    squared[:] = math.inf
    index[:] = len(points)
    column = min(max(int((x - left) / side), 0), columns - 1)
    row = min(max(int((y - top) / side), 0), rows - 1)
    found = 0
    for ring in range(max(columns, rows)):
        for r in range(max(row - ring, 0), min(row + ring, rows - 1) + 1):
            outer = r == row - ring or r == row + ring
            step = 1 if outer or ring == 0 else 2 * ring
            for c in range(column - ring, column + ring + 1, step):
                if c < 0 or c >= columns:
                    continue
                for k in range(start[r * columns + c], start[r * columns + c + 1]):
                    j = order[k]
                    if j == itself:
                        continue
                    dx, dy = points[j, 0] - x, points[j, 1] - y
                    distance = dx * dx + dy * dy
                    last = wanted - 1
                    if distance > squared[last]:
                        continue
                    if distance == squared[last] and j > index[last]:
                        continue
                    place = min(found, last)
                    while place > 0 and (
                        squared[place - 1] > distance
                        or (squared[place - 1] == distance and index[place - 1] > j)
                    ):
                        squared[place] = squared[place - 1]
                        index[place] = index[place - 1]
                        place -= 1
                    squared[place] = distance
                    index[place] = j
                    found = min(found + 1, wanted)
        if found == wanted:
            # The nearest side of the squares seen so far, where there are squares beyond it.
            edge = np.float32(math.inf)
            if column - ring > 0:
                edge = min(edge, x - (left + (column - ring) * side))
            if column + ring < columns - 1:
                edge = min(edge, left + (column + ring + 1) * side - x)
            if row - ring > 0:
                edge = min(edge, y - (top + (row - ring) * side))
            if row + ring < rows - 1:
                edge = min(edge, top + (row + ring + 1) * side - y)
            edge -= np.float32(1e-3) * side  # the squares' sides are rounded
            if edge > 0 and squared[wanted - 1] < edge * edge:
                break


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
def _robust_affine_fit(
    pairs: np.ndarray, spatial: np.ndarray, weight: np.ndarray, prior: float, scale: float
) -> Any:
    """The affine map that minimises a Cauchy loss, by iteratively reweighted least squares.

    Args:
        pairs: (4, K) x and y of the source, x and y of the target, float32.
        spatial: (K,) weights of the pairs.
        weight: (K,) for the weights that the fit uses.
        prior: weight of the identity.
        scale: of the Cauchy loss, pixels.

    Returns:
        (a, b, c, d, e, f) of the map (x, y) to (a·x + b·y + c, d·x + e·y + f), float32.
    """
    count = len(spatial)
    inverse = np.float32(1 / (scale * scale))
    weight[:] = spatial
    one, zero = np.float32(1), np.float32(0)
    a, b, c, d, e, f = one, zero, zero, zero, one, zero
    for iteration in range(_ITERATIONS):
        w_, wx, wy, wxx, wxy, wyy = zero, zero, zero, zero, zero, zero
        wu, wv, wxu, wyu, wxv, wyv = zero, zero, zero, zero, zero, zero
        for k in range(count):
            w, x, y, u, v = weight[k], pairs[0, k], pairs[1, k], pairs[2, k], pairs[3, k]
            w_ += w
            wx += w * x
            wy += w * y
            wxx += w * x * x
            wxy += w * x * y
            wyy += w * y * y
            wu += w * u
            wv += w * v
            wxu += w * x * u
            wyu += w * y * u
            wxv += w * x * v
            wyv += w * y * v
        # The translation, which is nearly free, is eliminated first.
        total = 1 / (np.float64(w_) + 1e-3)
        xx = wxx + prior - wx * wx * total
        yy = wyy + prior - wy * wy * total
        xy = wxy - wx * wy * total
        xu, yu = wxu + prior - wx * wu * total, wyu - wy * wu * total
        xv, yv = wxv - wx * wv * total, wyv + prior - wy * wv * total
        determinant = 1 / (xx * yy - xy * xy)
        a, b = (
            np.float32((yy * xu - xy * yu) * determinant),
            np.float32((xx * yu - xy * xu) * determinant),
        )
        d, e = (
            np.float32((yy * xv - xy * yv) * determinant),
            np.float32((xx * yv - xy * xv) * determinant),
        )
        c = np.float32((wu - a * wx - b * wy) * total)
        f = np.float32((wv - d * wx - e * wy) * total)
        if iteration == _ITERATIONS - 1:
            break
        change = zero
        for k in range(count):
            x, y = pairs[0, k], pairs[1, k]
            du, dv = a * x + b * y + c - pairs[2, k], d * x + e * y + f - pairs[3, k]
            new = spatial[k] / (one + (du * du + dv * dv) * inverse)
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
    prior, scale, min_determinant = settings
    count = neighbours + 1
    grid = _grid(points0)
    squared, index = np.empty(count, np.float32), np.empty(count, np.int32)
    padded = (count + 7) // 8 * 8
    pairs = np.zeros((4, padded), np.float32)
    spatial, weight = np.zeros(padded, np.float32), np.empty(padded, np.float32)
    maps = np.empty((len(at), 2, 2), np.float32)
    for n in range(len(at)):
        i = at[n]
        _nearest(points0[i, 0], points0[i, 1], points0, grid, -1, squared, index)
        _neighbourhood(points0, points1, i, index, pairs)
        for k in range(count):
            spatial[k] = math.exp(-squared[k] / (reach * reach))
        a, b, _, d, e, _ = _robust_affine_fit(pairs, spatial, weight, prior, scale)
        if a * e - b * d < min_determinant:
            a, b, d, e = np.float32(1), np.float32(0), np.float32(0), np.float32(1)
        maps[n, 0, 0], maps[n, 0, 1], maps[n, 1, 0], maps[n, 1, 1] = a, b, d, e
    return maps


@compiled
def support(
    points0: np.ndarray,
    points1: np.ndarray,
    neighbours: int,
    prior: float,
    tolerances: tuple[float, float, float],
) -> np.ndarray:
    """What `affine.neighbour_support` gives.

    Args:
        points0, points1: (M, 2) float32.
        neighbours: at most M − 1.
        prior: weight of the identity in the fits.
        tolerances: scale of the loss in pixels; the tolerance of an inlier in pixels, and what is
            added to it for each pixel of a neighbour's distance.

    Returns:
        (M,) float32.
    """
    scale, near, farther = tolerances
    grid = _grid(points0)
    squared, index = np.empty(neighbours, np.float32), np.empty(neighbours, np.int32)
    padded = (neighbours + 7) // 8 * 8
    pairs = np.zeros((4, padded), np.float32)
    spatial, weight = np.zeros(padded, np.float32), np.empty(padded, np.float32)
    spatial[:neighbours] = 1
    share = np.empty(len(points0), np.float32)
    for i in range(len(points0)):
        _nearest(points0[i, 0], points0[i, 1], points0, grid, i, squared, index)
        _neighbourhood(points0, points1, i, index, pairs)
        a, b, _, d, e, _ = _robust_affine_fit(pairs, spatial, weight, prior, scale)
        inliers = 0
        for k in range(neighbours):
            x, y = pairs[0, k], pairs[1, k]
            # Through the match itself, whatever translation the neighbours agree on.
            du, dv = a * x + b * y - pairs[2, k], d * x + e * y - pairs[3, k]
            tolerance = near + farther * math.sqrt(squared[k])
            inliers += du * du + dv * dv < tolerance * tolerance
        share[i] = inliers / neighbours
    return share


@compiled
def nearest_point(queries: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Index (N,) int32 of the nearest of the points (M, 2), M > 0, to each query (N, 2)."""
    grid = _grid(points)
    squared, index = np.empty(1, np.float32), np.empty(1, np.int32)
    found = np.empty(len(queries), np.int32)
    for n in range(len(queries)):
        _nearest(queries[n, 0], queries[n, 1], points, grid, -1, squared, index)
        found[n] = index[0]
    return found


@compiled
def repeated(points0: np.ndarray, points1: np.ndarray, within: float) -> np.ndarray:
    """Which of the pairs of points (M, 2), M > 0, repeat an earlier one, as (M,) bool.

    They do where the two differ by no more than `within` pixels in both images together.
    """
    grid = _grid(points0)
    (left, top, side), (columns, rows), start, order = grid
    found = np.zeros(len(points0), np.bool_)
    most = np.float32(within * within)
    reach = np.float32(within * 1.001 + 1e-3 * side)
    for i in range(len(points0)):
        x, y = points0[i, 0], points0[i, 1]
        first, last = int((x - reach - left) / side), int((x + reach - left) / side)
        upper, lower = int((y - reach - top) / side), int((y + reach - top) / side)
        for r in range(max(upper, 0), min(lower, rows - 1) + 1):
            for c in range(max(first, 0), min(last, columns - 1) + 1):
                for k in range(start[r * columns + c], start[r * columns + c + 1]):
                    j = order[k]
                    if j >= i:
                        continue
                    dx, dy = points0[j, 0] - x, points0[j, 1] - y
                    du, dv = points1[j, 0] - points1[i, 0], points1[j, 1] - points1[i, 1]
                    if dx * dx + dy * dy + du * du + dv * dv <= most:
                        found[i] = True
    return found

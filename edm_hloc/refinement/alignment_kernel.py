"""The compiled loop of `alignment.align`: one match after the other, on the caller's thread."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edm_hloc.refinement.compiled import compiled, inlined

_LANES = 16  # numbers that a processor treats at once, at most; patches are filled up to these
_SETTLED = 0.004  # pixels; a step no longer than this is not worth another look at the patch


@inlined
def _at(image: np.ndarray, x: float, y: float) -> float:
    """The bilinear value at (x, y); borders are replicated. NaN is read as 0."""
    height, width = image.shape
    right, down = np.float32(width - 1), np.float32(height - 1)
    x = (x if x < right else right) if x > 0 else np.float32(0)
    y = (y if y < down else down) if y > 0 else np.float32(0)
    column, row = int(x), int(y)
    fx, fy = x - np.float32(column), y - np.float32(row)
    beside, below = min(column + 1, width - 1), min(row + 1, height - 1)
    upper = image[row, column] + fx * (image[row, beside] - image[row, column])
    lower = image[below, column] + fx * (image[below, beside] - image[below, column])
    return upper + fy * (lower - upper)


@inlined
def _sample_square(image: np.ndarray, x: float, y: float, values: np.ndarray) -> None:
    """Writes the values at (x, y) and the pixels around to values (2R + 1, 2R + 1)."""
    height, width = image.shape
    size = len(values)
    radius = size // 2
    left, top = x - np.float32(radius), y - np.float32(radius)
    if left >= 0 and top >= 0 and left + size < width and top + size < height:
        column, row = int(left), int(top)
        fx, fy = left - np.float32(column), top - np.float32(row)
        for r in range(size):
            upper, lower, out = image[row + r], image[row + r + 1], values[r]
            for c in range(size):
                a = upper[column + c] + fx * (upper[column + c + 1] - upper[column + c])
                b = lower[column + c] + fx * (lower[column + c + 1] - lower[column + c])
                out[c] = a + fy * (b - a)
        return
    for r in range(size):
        for c in range(size):
            values[r, c] = _at(image, left + np.float32(c), top + np.float32(r))


@inlined
def _sample_around(
    image: np.ndarray,
    x: float,
    y: float,
    around: np.ndarray,
    reach: tuple[float, float],
    values: np.ndarray,
) -> None:
    """Writes the values at (x, y) + around (2, P), at most `reach` from there, to values (P,)."""
    height, width = image.shape
    rx, ry = reach
    if x - rx >= 0 and y - ry >= 0 and x + rx < width - 1 and y + ry < height - 1:
        flat = image.reshape(-1)
        stride, one = np.uint32(width), np.uint32(1)
        for i in range(len(values)):
            px, py = x + around[0, i], y + around[1, i]
            column, row = np.int32(px), np.int32(py)
            fx, fy = px - np.float32(column), py - np.float32(row)
            k = np.uint32(np.uint32(row) * stride + np.uint32(column))
            below = np.uint32(k + stride)
            upper = flat[k] + fx * (flat[np.uint32(k + one)] - flat[k])
            lower = flat[below] + fx * (flat[np.uint32(below + one)] - flat[below])
            values[i] = upper + fy * (lower - upper)
        return
    for i in range(len(values)):
        values[i] = _at(image, x + around[0, i], y + around[1, i])


@inlined
def _sums(values: np.ndarray, weight: np.ndarray, basis: np.ndarray) -> Any:
    """Σ weight·values, Σ weight·values², and the sums of the three rows of basis with values."""
    zero = np.float32(0)
    mean, square, first, second, third = zero, zero, zero, zero, zero
    for i in range(len(values)):
        v = values[i]
        w = weight[i] * v
        mean += w
        square += w * v
        first += basis[0, i] * v
        second += basis[1, i] * v
        third += basis[2, i] * v
    return mean, square, first, second, third


@inlined
def _normalised(
    square: np.ndarray, inverse: Any, weight: np.ndarray, noise: float, patch: np.ndarray
) -> None:
    """Writes the normalised patch in a square one pixel wider, and its Jacobian, to patch (3, P).

    The Jacobian is with respect to a shift in the other image. Its components along the mean and
    the contrast are projected out.

    Args:
        inverse: the four entries of the inverse of the affine map to the other image.
        weight: (P,), sum 1.
        noise: contrast that is added to that of the patch.
    """
    zero = np.float32(0)
    side = len(square) - 2
    template, jx, jy = patch[0], patch[1], patch[2]
    for r in range(side):
        above, here, below = square[r], square[r + 1], square[r + 2]
        for c in range(side):
            i = r * side + c
            template[i] = here[c + 1]
            jx[i] = here[c + 2] - here[c]
            jy[i] = below[c + 1] - above[c + 1]
    patch[:, side * side :] = zero
    mean = zero
    for i in range(len(weight)):
        mean += weight[i] * template[i]
    variance = zero
    for i in range(len(weight)):
        away = template[i] - mean
        variance += weight[i] * away * away
    scale = np.float32(1) / (np.float32(math.sqrt(variance)) + noise)
    # The gradient is that of central differences, seen through the affine map.
    half = np.float32(0.5) * scale
    a, b, c, d = inverse
    mean_x, mean_y, along_x, along_y = zero, zero, zero, zero
    for i in range(len(weight)):
        template[i] = (template[i] - mean) * scale
        x, y = half * (a * jx[i] + c * jy[i]), half * (b * jx[i] + d * jy[i])
        w = weight[i]
        mean_x += w * x
        mean_y += w * y
        along_x += w * template[i] * x
        along_y += w * template[i] * y
        jx[i], jy[i] = x, y
    for i in range(len(weight)):
        jx[i] -= mean_x + along_x * template[i]
        jy[i] -= mean_y + along_y * template[i]


@inlined
def _basis(patch: np.ndarray, weight: np.ndarray, damping: float, basis: np.ndarray) -> Any:
    """The inverse (2, 2) of the damped normal matrix, as three numbers, and what `_sums` needs.

    An iteration needs three inner products with the patch of image 1: the correlation with the
    template, and the two components of the step. All three rows sum to zero, so that the mean of
    the patch need not be subtracted.
    """
    template, jx, jy = patch[0], patch[1], patch[2]
    xx, xy, yy = damping, np.float32(0), damping
    for i in range(len(weight)):
        w = weight[i]
        xx += w * jx[i] * jx[i]
        xy += w * jx[i] * jy[i]
        yy += w * jy[i] * jy[i]
    determinant = np.float32(1) / (xx * yy - xy * xy)
    xx, xy, yy = yy * determinant, -xy * determinant, xx * determinant
    for i in range(len(weight)):
        w = weight[i]
        basis[0, i] = w * template[i]
        basis[1, i] = w * (xx * jx[i] + xy * jy[i])
        basis[2, i] = w * (xy * jx[i] + yy * jy[i])
    return xx, xy, yy


@compiled
def align_patches(
    images: tuple[np.ndarray, np.ndarray],
    points0: np.ndarray,
    points1: np.ndarray,
    affine: np.ndarray,
    settings: tuple[int, int, float, float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """What `alignment.align` gives.

    Args:
        images: (H, W) float32 each.
        points0, points1: (M, 2) float32.
        affine: (M, 2, 2) float32.
        settings: radius of the patches, iterations, damping, contrast of noise, and the maximum
            shift along each axis.

    Returns:
        Points (M, 2) of image 1 and correlations (M,), float32.
    """
    image0, image1 = images
    radius, iterations = settings[0], settings[1]
    damping, noise = np.float32(settings[2]), np.float32(settings[3])
    most = np.float32(settings[4])
    side = 2 * radius + 1
    filled = (side * side + _LANES - 1) // _LANES * _LANES
    weight = np.zeros(filled, np.float32)
    offset = np.zeros((2, filled), np.float32)
    total = 0.0
    for r in range(side):
        for c in range(side):
            x, y = c - radius, r - radius
            offset[0, r * side + c], offset[1, r * side + c] = x, y
            w = math.exp(-(x * x + y * y) / (2 * (radius / 1.7) ** 2))
            weight[r * side + c] = w
            total += w
    weight /= np.float32(total)
    square = np.empty((side + 2, side + 2), np.float32)
    patch = np.zeros((3, filled), np.float32)
    basis = np.zeros((3, filled), np.float32)
    around = np.zeros((2, filled), np.float32)
    values = np.zeros(filled, np.float32)
    moved = np.empty((len(points0), 2), np.float32)
    correlation = np.empty(len(points0), np.float32)
    one, two = np.float32(1), np.float32(2)
    for n in range(len(points0)):
        a, b, c, d = affine[n, 0, 0], affine[n, 0, 1], affine[n, 1, 0], affine[n, 1, 1]
        s = one / (a * d - b * c)
        _sample_square(image0, points0[n, 0], points0[n, 1], square)
        _normalised(square, (d * s, -b * s, -c * s, a * s), weight, noise, patch)
        xx, xy, yy = _basis(patch, weight, damping, basis)
        _, _, own, own_x, own_y = _sums(patch[0], weight, basis)
        for i in range(filled):
            around[0, i] = a * offset[0, i] + b * offset[1, i]
            around[1, i] = c * offset[0, i] + d * offset[1, i]
        reach = np.float32(radius) * (abs(a) + abs(b)), np.float32(radius) * (abs(c) + abs(d))
        x, y = points1[n, 0], points1[n, 1]
        shift_x = shift_y = best_x = best_y = agreement = np.float32(0)
        best_cost = np.float32(math.inf)
        for iteration in range(iterations + 1):
            _sample_around(image1, x + shift_x, y + shift_y, around, reach, values)
            mean, power, found, found_x, found_y = _sums(values, weight, basis)
            variance = power - mean * mean
            contrast = np.float32(math.sqrt(max(variance, np.float32(0)))) + noise
            scale = one / contrast
            rest = one - noise * scale
            residual = rest * rest - two * found * scale + own
            cost = residual + damping * (shift_x * shift_x + shift_y * shift_y)
            better = cost < best_cost
            if better:
                best_cost, best_x, best_y = cost, shift_x, shift_y
                agreement = one - residual / two
                step_x = own_x - found_x * scale - damping * (xx * shift_x + xy * shift_y)
                step_y = own_y - found_y * scale - damping * (xy * shift_x + yy * shift_y)
            else:  # half way back to the best shift so far
                step_x, step_y = (best_x - shift_x) / two, (best_y - shift_y) / two
            if iteration == iterations:
                break
            new_x = min(max(shift_x + step_x, -most), most)
            new_y = min(max(shift_y + step_y, -most), most)
            if max(abs(new_x - shift_x), abs(new_y - shift_y)) < _SETTLED:
                break
            shift_x, shift_y = new_x, new_y
        moved[n, 0], moved[n, 1] = x + best_x, y + best_y
        correlation[n] = agreement
    return moved, correlation

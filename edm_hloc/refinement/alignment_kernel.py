"""The compiled loop of `alignment.align`: one match after the other, on the caller's thread.

Patches of S × S pixels are stored in rows of S + 3 numbers, so that all loops run through one
array from end to end; what does not belong to the patch has weight 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edm_hloc.base.compiled import compiled, inlined

_LANES = 16  # numbers that a processor treats at once, at most; arrays are filled up to these
_SETTLED = np.float32(0.003)  # pixels; after a step no longer than this the next is far shorter


@inlined
def _sample_square(
    image: np.ndarray, x: float, y: float, row_length: int, raw: np.ndarray, square: np.ndarray
) -> None:
    """Writes the bilinear values at (x, y) and the pixels around to a square.

    Args:
        image: (H, W); borders are replicated.
        row_length: of the square, which is one pixel smaller.
        raw: for the pixels that the square is interpolated from.
        square: rows of this length, one after the other.
    """
    height, width = image.shape
    radius, beyond = np.float32((row_length - 2) // 2), np.float32(-row_length)
    # Beyond the replicated border nothing changes. NaN is taken for a point there.
    left, top = x - radius, y - radius
    left = min(left, np.float32(width)) if left > beyond else beyond
    top = min(top, np.float32(height)) if top > beyond else beyond
    column, row = math.floor(left), math.floor(top)
    fx, fy = np.float32(left - np.float32(column)), np.float32(top - np.float32(row))
    if column >= 0 and row >= 0 and column + row_length <= width and row + row_length <= height:
        for r in range(row_length):
            line = image[row + r, column : column + row_length]
            out = raw[r * row_length : (r + 1) * row_length]
            for c in range(row_length):
                out[c] = line[c]
    else:
        for r in range(row_length):
            line = image[min(max(row + r, 0), height - 1)]
            for c in range(row_length):
                raw[r * row_length + c] = line[min(max(column + c, 0), width - 1)]
    for i in range((row_length - 1) * row_length):
        k = i + row_length
        upper = raw[i] + fx * (raw[i + 1] - raw[i])
        lower = raw[k] + fx * (raw[k + 1] - raw[k])
        square[i] = upper + fy * (lower - upper)


@inlined
def _basis(
    square: np.ndarray, affine: Any, weight: np.ndarray, settings: Any, basis: np.ndarray
) -> Any:
    """What an iteration needs of the patch in a square that is one pixel wider on all sides.

    The patch is normalised to mean 0 and contrast 1. Its Jacobian with respect to a shift in the
    other image is that of central differences, seen through the affine map. The components of the
    Jacobian along the mean and the contrast are projected out.

    An iteration needs three inner products with the patch of the other image: the correlation
    with this patch, and the two components of the step. The rows of `basis` sum to zero, so that
    the mean of the other patch need not be subtracted.

    Args:
        affine: the four entries of the map to the other image.
        weight: (P,), sum 1.
        settings: length of a row, damping, contrast of noise.
        basis: (3, P) that the three rows are written to.

    Returns:
        The inner products with the patch itself, and the inverse of the damped normal matrix as
        (xx, xy, yy).
    """
    row_length, damping, noise = settings
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    count = len(weight)
    left, right = square[row_length:][:count], square[row_length + 2 :][:count]
    above, below = square[1:][:count], square[2 * row_length + 1 :][:count]
    patch = square[row_length + 1 :][:count]
    centre = patch[count // 2]
    t_, tt, x_, y_, tx, ty, xx, xy, yy = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for i in range(count):
        w, t = weight[i], patch[i] - centre
        x, y = right[i] - left[i], below[i] - above[i]
        wt, wx, wy = w * t, w * x, w * y
        t_ += wt
        tt += wt * t
        x_ += wx
        y_ += wy
        tx += wt * x
        ty += wt * y
        xx += wx * x
        xy += wx * y
        yy += wy * y
    variance = max(tt - t_ * t_, zero)
    scale = one / (np.float32(math.sqrt(variance)) + noise)
    own = variance * scale * scale
    tx, ty = (tx - t_ * x_) * scale, (ty - t_ * y_) * scale
    # The normal matrix of the gradient without its components along the mean and the patch.
    twice = two - own
    xx, xy, yy = (
        xx - x_ * x_ - twice * tx * tx,
        xy - x_ * y_ - twice * tx * ty,
        yy - y_ * y_ - twice * ty * ty,
    )
    # The gradient (x, y) becomes (a·x + b·y, c·x + d·y) by the inverse of the map, transposed.
    a, b, c, d = affine
    half = np.float32(0.5) * scale / (a * d - b * c)
    a, b, c, d = d * half, -c * half, -b * half, a * half
    n0 = a * a * xx + two * a * b * xy + b * b * yy + damping
    n1 = a * c * xx + (a * d + b * c) * xy + b * d * yy
    n2 = c * c * xx + two * c * d * xy + d * d * yy + damping
    determinant = one / (n0 * n2 - n1 * n1)
    n0, n1, n2 = n2 * determinant, -n1 * determinant, n0 * determinant
    a, b, c, d = n0 * a + n1 * c, n0 * b + n1 * d, n1 * a + n2 * c, n1 * b + n2 * d
    along_x, along_y = a * tx + b * ty, c * tx + d * ty
    mean_x, mean_y = a * x_ + b * y_, c * x_ + d * y_
    first, second, third = basis[0], basis[1], basis[2]
    for i in range(count):
        w, t = weight[i], (patch[i] - centre - t_) * scale
        x, y = right[i] - left[i], below[i] - above[i]
        first[i] = w * t
        second[i] = w * (a * x + b * y - mean_x - along_x * t)
        third[i] = w * (c * x + d * y - mean_y - along_y * t)
    rest = one - own
    return (own, along_x * rest, along_y * rest), (n0, n1, n2)


@inlined
def _look(
    image: np.ndarray,
    x: float,
    y: float,
    around: np.ndarray,
    reach: tuple[float, float],
    weight: np.ndarray,
    basis: np.ndarray,
) -> Any:
    """Looks at the patch v of values at (x, y) + around (2, P), at most `reach` from there.

    Returns:
        Σ weight·v, Σ weight·v², and the inner products of v with the three rows of basis.
    """
    height, width = image.shape
    rx, ry = reach
    zero = np.float32(0)
    mean, square, first, second, third = zero, zero, zero, zero, zero
    flat = image.reshape(-1)
    one = np.uint32(1)
    stride = np.uint32(width)
    if x - rx >= 0 and y - ry >= 0 and x + rx < width - 1 and y + ry < height - 1:
        for i in range(len(weight)):
            px, py = x + around[0, i], y + around[1, i]
            column, row = np.int32(px), np.int32(py)
            fx, fy = px - np.float32(column), py - np.float32(row)
            k = np.uint32(np.uint32(row) * stride + np.uint32(column))
            below = np.uint32(k + stride)
            upper = flat[k] + fx * (flat[np.uint32(k + one)] - flat[k])
            lower = flat[below] + fx * (flat[np.uint32(below + one)] - flat[below])
            v = upper + fy * (lower - upper)
            w = weight[i] * v
            mean += w
            square += w * v
            first += basis[0, i] * v
            second += basis[1, i] * v
            third += basis[2, i] * v
        return mean, square, first, second, third
    right, down = np.float32(width - 1), np.float32(height - 1)
    for i in range(len(weight)):
        px, py = x + around[0, i], y + around[1, i]
        # NaN becomes 0: what is read lies in the image.
        px = (px if px < right else right) if px > 0 else zero
        py = (py if py < down else down) if py > 0 else zero
        column, row = np.int32(px), np.int32(py)
        fx, fy = px - np.float32(column), py - np.float32(row)
        beside, beneath = min(column + 1, width - 1), min(row + 1, height - 1)
        upper = image[row, column] + fx * (image[row, beside] - image[row, column])
        lower = image[beneath, column] + fx * (image[beneath, beside] - image[beneath, column])
        v = upper + fy * (lower - upper)
        w = weight[i] * v
        mean += w
        square += w * v
        first += basis[0, i] * v
        second += basis[1, i] * v
        third += basis[2, i] * v
    return mean, square, first, second, third


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
    row_length = side + 3
    filled = (side * row_length + _LANES - 1) // _LANES * _LANES
    weight = np.zeros(filled, np.float32)
    offset = np.zeros((2, filled), np.float32)
    total = 0.0
    for r in range(side):
        for c in range(side):
            dx, dy = c - radius, r - radius
            i = r * row_length + c
            offset[0, i], offset[1, i] = dx, dy
            weight[i] = math.exp(-(dx * dx + dy * dy) / (2 * (radius / 1.7) ** 2))
            total += weight[i]
    weight /= np.float32(total)
    raw = np.zeros(row_length * row_length + 1, np.float32)
    square = np.zeros(filled + 2 * row_length + 2, np.float32)
    basis = np.zeros((3, filled), np.float32)
    around = np.zeros((2, filled), np.float32)
    moved = np.empty((len(points0), 2), np.float32)
    correlation = np.empty(len(points0), np.float32)
    one, two = np.float32(1), np.float32(2)
    for n in range(len(points0)):
        a, b, c, d = affine[n, 0, 0], affine[n, 0, 1], affine[n, 1, 0], affine[n, 1, 1]
        _sample_square(image0, points0[n, 0], points0[n, 1], row_length, raw, square)
        own, inverse = _basis(square, (a, b, c, d), weight, (row_length, damping, noise), basis)
        own_power, own_x, own_y = own
        xx, xy, yy = inverse
        for i in range(filled):
            around[0, i] = a * offset[0, i] + b * offset[1, i]
            around[1, i] = c * offset[0, i] + d * offset[1, i]
        reach = np.float32(radius) * (abs(a) + abs(b)), np.float32(radius) * (abs(c) + abs(d))
        x, y = points1[n, 0], points1[n, 1]
        shift_x = shift_y = best_x = best_y = agreement = np.float32(0)
        best_cost = np.float32(math.inf)
        for iteration in range(iterations + 1):
            mean, power, found, found_x, found_y = _look(
                image1, x + shift_x, y + shift_y, around, reach, weight, basis
            )
            contrast = np.float32(math.sqrt(max(power - mean * mean, np.float32(0)))) + noise
            scale = one / contrast
            rest = one - noise * scale
            residual = rest * rest - two * found * scale + own_power
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
            settled = max(abs(new_x - shift_x), abs(new_y - shift_y)) < _SETTLED
            shift_x, shift_y = new_x, new_y
            if settled:
                if better:
                    best_x, best_y = shift_x, shift_y
                break
        moved[n, 0], moved[n, 1] = x + best_x, y + best_y
        correlation[n] = agreement
    return moved, correlation

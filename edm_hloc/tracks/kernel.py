"""The compiled loop over tracks: all photos of a point are aligned to the mean of their patches.

Gauss–Newton on a shift in each photo, with gain and bias. The patch that all are compared with is
the mean of all: where a patch lies e off the mean, it
differs by e times the gradient of the mean, which is the same for all photos.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edm_hloc.base.compiled import compiled, inlined

PATCH_SIGMAS = 1.7
"""Radius of a patch over the standard deviation of the Gaussian that weights it."""

_SETTLED = np.float32(0.01)  # pixels of the patch; a shorter step is not made
_HOPELESS = np.float32(0.5)  # correlation below which a photo that has no vote is not aligned,
# and a track without two photos above it is given up
_SURE = np.float32(0.9)  # correlation from which on no other geometry is tried
_LOW = np.float32(0.3)  # correlation at which a patch does not count in the mean
_GIVEN_UP = 2  # iterations after which it is
_BYTE, _LOW_BYTE = np.uint32(8), np.uint32(255)
_LANES = 16  # numbers that a processor treats at once, at most


@inlined
def _sample(
    pixels: np.ndarray,
    place: Any,
    point: Any,
    m: np.ndarray,
    patch: Any,
    values: np.ndarray,
) -> None:
    """Writes the bilinear values of a patch to `values`.

    Only the loop in the middle reads the photo, and does nothing else: processors compute with many
    numbers at once, but read scattered pixels one by one, and a loop with both does all one by one.

    Args:
        pixels: of all photos, one after the other.
        place: where the photo starts, its width and height. Its border is replicated.
        point: x and y of the patch's centre there.
        m: (3, 2) map from the patch to the photo.
        patch: (2, P) the patch's pixels, from its corner on; and for this function to write to,
            (2, P) float32 and (P,) uint32.
        values: (P,) float32.
    """
    start, width, height = place
    x, y = point
    offset, fraction, corners = patch
    a, b, c, d, g, h = m[0, 0], m[0, 1], m[1, 0], m[1, 1], m[2, 0], m[2, 1]
    right, down = np.float32(width - 1), np.float32(height - 1)
    last_column, last_row, across = np.int32(width - 2), np.int32(height - 2), np.int32(width)
    zero, one = np.float32(0), np.float32(1)
    for i in range(len(values)):
        far = one / (one + g * offset[0, i] + h * offset[1, i])
        px = x + (a * offset[0, i] + b * offset[1, i]) * far
        py = y + (c * offset[0, i] + d * offset[1, i]) * far
        # NaN becomes 0: what is read lies in the photo.
        px = (px if px < right else right) if px > zero else zero
        py = (py if py < down else down) if py > zero else zero
        column, row = min(np.int32(px), last_column), min(np.int32(py), last_row)
        fraction[0, i], fraction[1, i] = px - np.float32(column), py - np.float32(row)
        corners[i] = row * across + column
    flat = pixels[start : start + width * height]
    next_one, next_row = np.uint64(1), np.uint64(width)
    for i in range(len(values)):
        k = np.uint64(corners[i])
        below = k + next_row
        corners[i] = (
            np.uint32(flat[k])
            | np.uint32(flat[k + next_one]) << _BYTE
            | np.uint32(flat[below]) << _BYTE * np.uint32(2)
            | np.uint32(flat[below + next_one]) << _BYTE * np.uint32(3)
        )
    for i in range(len(values)):
        four = corners[i]
        p = np.float32(np.int32(four & _LOW_BYTE))
        q = np.float32(np.int32(four >> _BYTE & _LOW_BYTE))
        r = np.float32(np.int32(four >> _BYTE * np.uint32(2) & _LOW_BYTE))
        s = np.float32(np.int32(four >> _BYTE * np.uint32(3)))
        upper = p + fraction[0, i] * (q - p)
        values[i] = upper + fraction[1, i] * (r + fraction[0, i] * (s - r) - upper)


@inlined
def _normalise(values: np.ndarray, weight: np.ndarray, noise: np.floating) -> Any:
    """Gives a patch mean 0 and contrast 1, where the contrast is above the noise."""
    mean, square = np.float32(0), np.float32(0)
    centre = values[len(values) // 2]
    for i in range(len(values)):
        v = values[i] - centre
        mean += weight[i] * v
        square += weight[i] * v * v
    contrast = np.float32(math.sqrt(max(square - mean * mean, np.float32(0))))
    scale = np.float32(1) / (contrast + noise)
    for i in range(len(values)):
        values[i] = (values[i] - centre - mean) * scale
    return contrast


@inlined
def _product(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> Any:
    total = np.float32(0)
    for i in range(len(weight)):
        total += weight[i] * a[i] * b[i]
    return total


@inlined
def _mean_patch(patches: np.ndarray, share: np.ndarray, mean: np.ndarray) -> Any:
    """Writes the mean of patches (N, P), weighted by `share`, to `mean`, and gives Σ share."""
    mean[:] = 0
    total = np.float32(0)
    for n in range(len(share)):
        if share[n] > 0:
            total += share[n]
            for i in range(len(mean)):
                mean[i] += share[n] * patches[n, i]
    inverse = np.float32(1) / max(total, np.float32(1e-6))
    for i in range(len(mean)):
        mean[i] *= inverse
    return total


@inlined
def _agreement(
    patches: np.ndarray,
    share: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    correlation: np.ndarray,
) -> None:
    """Writes the correlation of each patch with the mean of the others, weighted by `share`."""
    total = _mean_patch(patches, share, mean)
    power = _product(mean, mean, weight)
    for n in range(len(share)):
        # without the patch itself: rest = total · mean − share · patch
        own = _product(patches[n], patches[n], weight)
        both = _product(patches[n], mean, weight)
        s = share[n]
        with_rest = total * both - s * own
        rest = total * total * power - np.float32(2) * total * s * both + s * s * own
        size = math.sqrt(max(rest * own, np.float32(0)))
        correlation[n] = with_rest / max(size, np.float32(1e-6))


@inlined
def _equal(a: np.ndarray, b: np.ndarray, first: int, count: int) -> Any:
    """Whether the maps (N, 3, 2) of a track are the same in both geometries."""
    for n in range(first, first + count):
        for i in range(3):
            for j in range(2):
                if a[n, i, j] != b[n, i, j]:
                    return False
    return True


@inlined
def _reweigh(correlation: np.ndarray, votes: np.ndarray, share: np.ndarray) -> None:
    """The share that a patch has in the mean: the square of what it agrees beyond chance."""
    for n in range(len(share)):
        above = max(correlation[n] - _LOW, np.float32(0.02))
        share[n] = votes[n] * above * above


@compiled
def align_tracks(
    photos: tuple[np.ndarray, np.ndarray],
    tracks: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    maps: np.ndarray,
    settings: tuple[int, int, float, float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `alignment.align` gives.

    Args:
        photos: the pixels of all photos one after the other, uint8; and of each photo and level
            (L, 3) int64 where it starts, its width and its height.
        tracks: where each track's observations start (T + 1,) int64; the row of `photos` of each
            observation (N,) int64; its pixel (N, 2) float32 there; and its vote (N,) float32 in
            the mean of its track, 1 or 0.
        maps: (K, N, 3, 2) float32, from the pixels u of the track's patch to those of the photo, by
            K geometries, of which that is taken which makes the photos agree best: the photo's
            are Au / (1 + g·u) off the point's, with A the first two rows and g the third.
        settings: radius of the patches, iterations, damping, contrast of noise, and the maximum
            shift along each axis, in pixels of the patch.

    Returns:
        Shifts (N, 2) float32 in pixels of the photos; correlations (N,) float32 with the mean of
        the other photos; and of each track (T,) float32 the gradient of its mean patch along the
        direction in which it is smallest, in contrasts per pixel; 0 without two photos.
    """
    pixels, places = photos
    start, photo, points, vote = tracks
    radius, iterations = settings[0], settings[1]
    damping, noise, most = (
        np.float32(settings[2]),
        np.float32(settings[3]),
        np.float32(settings[4]),
    )
    side = 2 * radius + 3  # with a border, for gradients
    size = (side * side + _LANES - 1) // _LANES * _LANES
    weight = np.zeros(size, np.float32)
    offset = np.zeros((2, size), np.float32)
    total_weight = 0.0
    for r in range(side):
        for c in range(side):
            dx, dy = c - radius - 1, r - radius - 1
            i = r * side + c
            offset[0, i], offset[1, i] = dx, dy
            if abs(dx) <= radius and abs(dy) <= radius:
                weight[i] = math.exp(-(dx * dx + dy * dy) / (2 * (radius / PATCH_SIGMAS) ** 2))
                total_weight += weight[i]
    weight /= np.float32(total_weight)
    patch = (offset, np.zeros((2, size), np.float32), np.zeros(size, np.uint32))
    longest = 0
    for t in range(len(start) - 1):
        longest = max(longest, start[t + 1] - start[t])
    every_patch = np.zeros((len(maps), longest, size), np.float32)
    mean, steep_x, steep_y = (
        np.zeros(size, np.float32),
        np.zeros(size, np.float32),
        np.zeros(size, np.float32),
    )
    share, agree, trial = (
        np.zeros(longest, np.float32),
        np.zeros(longest, np.float32),
        np.zeros(longest, np.float32),
    )
    changed, lost = np.zeros(longest, np.bool_), np.zeros(longest, np.bool_)
    moved = np.zeros((longest, 2), np.float32)  # in pixels of the patch
    shifts = np.zeros((len(points), 2), np.float32)
    correlation = np.zeros(len(points), np.float32)
    texture = np.zeros(len(start) - 1, np.float32)
    one, half = np.float32(1), np.float32(0.5)
    for t in range(len(start) - 1):
        first, count = start[t], start[t + 1] - start[t]
        if count < 2:
            continue
        votes = vote[first : first + count]
        # The geometry that makes the photos agree best
        best, chosen = np.float32(-2), 0
        agree[:count] = -1
        for k in range(len(maps)):
            if k and (best > _SURE or _equal(maps[0], maps[k], first, count)):
                continue
            patches = every_patch[k]
            for n in range(count):
                place = places[photo[first + n]]
                _sample(
                    pixels,
                    (place[0], place[1], place[2]),
                    (points[first + n, 0], points[first + n, 1]),
                    maps[k, first + n],
                    patch,
                    patches[n],
                )
                _normalise(patches[n], weight, noise)
                share[n] = votes[n]
            _agreement(patches[:count], share[:count], weight, mean, trial[:count])
            value, voters = np.float32(0), np.float32(1e-6)
            for n in range(count):
                value += votes[n] * trial[n]
                voters += votes[n]
            if value / voters > best:
                best, chosen = value / voters, k
                agree[:count] = trial[:count]
        geometry, patches = maps[chosen], every_patch[chosen]
        moved[:count] = 0
        changed[:count] = False
        for n in range(count):
            lost[n] = votes[n] == 0 and agree[n] < _HOPELESS
        for iteration in range(iterations + 1):
            if iteration:  # else they have been sampled so
                for n in range(count):
                    if changed[n]:
                        m = geometry[first + n]
                        place = places[photo[first + n]]
                        u, v = moved[n, 0], moved[n, 1]
                        _sample(
                            pixels,
                            (place[0], place[1], place[2]),
                            (
                                points[first + n, 0] + m[0, 0] * u + m[0, 1] * v,
                                points[first + n, 1] + m[1, 0] * u + m[1, 1] * v,
                            ),
                            m,
                            patch,
                            patches[n],
                        )
                        _normalise(patches[n], weight, noise)
                _agreement(patches[:count], share[:count], weight, mean, agree[:count])
            if iteration == iterations:
                break
            if iteration == _GIVEN_UP:
                good = 0
                for n in range(count):
                    if votes[n] > 0 and agree[n] > _HOPELESS:
                        good += 1
                if good < 2:
                    break
            _reweigh(agree[:count], votes, share[:count])
            _mean_patch(patches[:count], share[:count], mean)
            own = _product(mean, mean, weight)
            inverse = one / np.float32(math.sqrt(max(own, np.float32(1e-6))))
            for i in range(size):
                mean[i] *= inverse
            own *= inverse * inverse
            for i in range(side + 1, side * side - side - 1):
                steep_x[i] = half * (mean[i + 1] - mean[i - 1])
                steep_y[i] = half * (mean[i + side] - mean[i - side])
            # Gain and bias are projected out of the gradient.
            x_, y_ = np.float32(0), np.float32(0)
            for i in range(size):
                x_ += weight[i] * steep_x[i]
                y_ += weight[i] * steep_y[i]
            tx = _product(mean, steep_x, weight) / max(own, np.float32(1e-6))
            ty = _product(mean, steep_y, weight) / max(own, np.float32(1e-6))
            for i in range(size):
                steep_x[i] -= x_ + tx * mean[i]
                steep_y[i] -= y_ + ty * mean[i]
            xx = _product(steep_x, steep_x, weight)
            xy = _product(steep_x, steep_y, weight)
            yy = _product(steep_y, steep_y, weight)
            middle, apart = half * (xx + yy), half * (xx - yy)
            least = middle - np.float32(math.sqrt(apart * apart + xy * xy))
            texture[t] = math.sqrt(max(least, np.float32(0)))
            xx, yy = xx + damping, yy + damping
            determinant = one / (xx * yy - xy * xy)
            longest_step = np.float32(0)
            for n in range(count):
                changed[n] = False
                if lost[n]:
                    continue
                # off the mean by e: patch = gain · (mean + e · gradient), e·gradient ⊥ mean
                gain = max(_product(patches[n], mean, weight), np.float32(0.2))
                gx = _product(patches[n], steep_x, weight) / gain + damping * moved[n, 0]
                gy = _product(patches[n], steep_y, weight) / gain + damping * moved[n, 1]
                step_x = (yy * gx - xy * gy) * determinant
                step_y = (xx * gy - xy * gx) * determinant
                new_x = min(max(moved[n, 0] - step_x, -most), most)
                new_y = min(max(moved[n, 1] - step_y, -most), most)
                step = max(abs(new_x - moved[n, 0]), abs(new_y - moved[n, 1]))
                if step >= _SETTLED:
                    longest_step = max(longest_step, step)
                    moved[n, 0], moved[n, 1] = new_x, new_y
                    changed[n] = True
            if longest_step == 0:
                break
        for n in range(count):
            m = geometry[first + n]
            shifts[first + n, 0] = m[0, 0] * moved[n, 0] + m[0, 1] * moved[n, 1]
            shifts[first + n, 1] = m[1, 0] * moved[n, 0] + m[1, 1] * moved[n, 1]
            correlation[first + n] = agree[n]
    return shifts, correlation, texture

"""Compiled loops that draw triangles into images: what is in front, and values between corners."""

from __future__ import annotations

import math

import numpy as np

from edm_hloc.base.compiled import compiled

Array = np.ndarray


@compiled
def draw_inverse_depths(corners: Array, inverse: Array, nearest: Array) -> None:
    """Draws triangles into an image of the inverse depth of what is in front.

    Args:
        corners: (T, 3, 2) float32 pixels, the centre of the top-left pixel at (0, 0).
        inverse: (T, 3) float32, inverse depths of the corners, which are linear in the image.
        nearest: (H, W) float32, changed in place: 0 where there is nothing.
    """
    height, width = nearest.shape
    for t in range(len(corners)):
        x0, y0 = corners[t, 0]
        x1, y1 = corners[t, 1]
        x2, y2 = corners[t, 2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0:
            continue
        top = max(0, math.ceil(min(y0, y1, y2)))
        bottom = min(height - 1, math.floor(max(y0, y1, y2)))
        left = max(0, math.ceil(min(x0, x1, x2)))
        right = min(width - 1, math.floor(max(x0, x1, x2)))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                b = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
                c = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
                if b < 0 or c < 0 or b + c > 1:
                    continue
                value = inverse[t, 0] + b * (inverse[t, 1] - inverse[t, 0])
                value += c * (inverse[t, 2] - inverse[t, 0])
                if value > nearest[y, x]:
                    nearest[y, x] = value


@compiled
def draw_values(corners: Array, values: Array, drawn: Array, covered: Array) -> None:
    """Draws values that are linear in each triangle; a pixel that is touched counts as covered.

    Args:
        corners: (T, 3, 2) float32 pixels, as above.
        values: (T, 3, 3) float32, three numbers at each corner.
        drawn: (H, W, 3) float32, changed in place.
        covered: (H, W) float32, set to 1 in place.
    """
    height, width = covered.shape
    for t in range(len(corners)):
        x0, y0 = corners[t, 0]
        x1, y1 = corners[t, 1]
        x2, y2 = corners[t, 2]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        top = max(0, math.floor(min(y0, y1, y2)))
        bottom = min(height - 1, math.ceil(max(y0, y1, y2)))
        left = max(0, math.floor(min(x0, x1, x2)))
        right = min(width - 1, math.ceil(max(x0, x1, x2)))
        reach = max(abs(x1 - x0), abs(x2 - x0), abs(x2 - x1), abs(y1 - y0), abs(y2 - y0))
        slack = reach / abs(area) if area != 0 else 0.0  # about a pixel beyond the sides
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                b, c = 1 / 3, 1 / 3
                if area != 0:
                    b = ((x - x0) * (y2 - y0) - (x2 - x0) * (y - y0)) / area
                    c = ((x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)) / area
                inside = b >= 0 and c >= 0 and b + c <= 1
                if not inside:
                    if covered[y, x] > 0 or min(b, c, 1 - b - c) < -slack:
                        continue
                    b, c = min(max(b, 0.0), 1.0), min(max(c, 0.0), 1.0)
                    if b + c > 1:
                        b, c = b / (b + c), c / (b + c)
                for k in range(3):
                    value = values[t, 0, k] + b * (values[t, 1, k] - values[t, 0, k])
                    drawn[y, x, k] = value + c * (values[t, 2, k] - values[t, 0, k])
                covered[y, x] = 1.0

"""Procedural textures: dead leaves, façades, repeated pieces, noise."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np


def dead_leaves(size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint a texture of overlapping ellipses and polygons (the dead-leaves model).

    The density of their radii is proportional to 1/r³, which makes the image scale-invariant: its
    amplitude spectrum falls as 1/f, and there are edges and occlusions of all sizes, as in photos.
    Added 1/f noise keeps all areas from being entirely flat.

    Args:
        size: side in texels.
        rng: the random numbers.

    Returns:
        (size, size) uint8.
    """
    smallest, largest = 2.0, size / 3
    # The mean area of a leaf for the density 1/r³; 2.2 times the canvas leaves few gaps.
    mean_area = 2 * np.pi * smallest**2 * np.log(largest / smallest)
    count = int(2.2 * size**2 / mean_area)
    radii = rng.uniform(largest**-2, smallest**-2, count) ** -0.5
    greys = 255 * rng.beta(1.3, 1.5, count)
    # Corners out of 24 around an ellipse: a triangle to a hexagon, or all, which looks round.
    outlines = [np.arange(0, 24, 8), np.arange(0, 24, 6), np.array([0, 5, 10, 14, 19])]
    outlines += [np.arange(0, 24, 4), np.arange(24)]
    outline = np.full(count, 1) if rng.random() < 0.4 else rng.integers(0, 4, count)
    outline[rng.random(count) < rng.uniform(0.2, 0.8)] = 4
    turn = rng.uniform(0, 2 * np.pi, (count, 1))
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y = np.cos(around), 0.75 * np.sin(around)
    leaves: Any = np.stack(
        [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1
    )
    leaves = leaves * radii[:, None, None] + rng.uniform(0, size, (count, 1, 2))
    leaves = np.int32(16 * leaves)  # in 1/16 px
    canvas = np.full((size, size), rng.uniform(60, 190), np.float32)
    for leaf, kind, grey in zip(leaves, outline, greys, strict=True):
        cv2.fillConvexPoly(canvas, leaf[outlines[kind]], float(grey), cv2.LINE_AA, 4)
    canvas += rng.uniform(6, 20) * pink_noise(size, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def facade(size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint a wall of stones or bricks with rows of windows: (size, size) uint8."""
    wall = rng.uniform(90, 200)
    canvas: Any = np.full((size, size), wall, np.float32)
    stone_height = int(rng.integers(6, 26))
    stone_width = int(stone_height * rng.uniform(1.5, 3.5))
    contrast = rng.uniform(4, 18)
    for row, top in enumerate(range(0, size, stone_height)):
        for left in range(-(row % 2) * stone_width // 2, size, stone_width):
            value = wall + contrast * rng.standard_normal()
            corner = (left + stone_width - 2, top + stone_height - 2)
            cv2.rectangle(canvas, (left, top), corner, float(value), -1)
    columns, rows = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    pitch = np.array([size / columns, size / rows])
    window = np.maximum(pitch * rng.uniform(0.3, 0.7, 2), 2)
    frame = max(int(size * rng.uniform(0.006, 0.015)), 1)
    light, dark = wall + rng.uniform(15, 55), rng.uniform(15, 70)
    panes = rng.integers(1, 4, 2)
    arched = rng.random() < 0.4
    for i in range(columns):
        for j in range(rows):
            corner = (np.array([i, j]) + 0.5) * pitch - window / 2
            (x0, y0), (x1, y1) = (
                np.round(p).astype(int).tolist() for p in (corner, corner + window)
            )
            cv2.rectangle(canvas, (x0 - frame, y0 - frame), (x1 + frame, y1 + frame), light, -1)
            glass = dark + 18 * rng.standard_normal()
            cv2.rectangle(canvas, (x0, y0), (x1, y1), glass, -1)
            if rng.random() < 0.5:  # objects behind the glass
                leaves = dead_leaves(64, rng).astype(np.float32)
                inside = cv2.resize(leaves, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
                canvas[y0:y1, x0:x1] = 0.7 * glass + 0.3 * inside
            for k in range(1, panes[0]):
                x = x0 + (x1 - x0) * k // int(panes[0])
                cv2.line(canvas, (x, y0), (x, y1), light, max(frame // 2, 1))
            for k in range(1, panes[1]):
                y = y0 + (y1 - y0) * k // int(panes[1])
                cv2.line(canvas, (x0, y), (x1, y), light, max(frame // 2, 1))
            if arched:
                centre = ((x0 + x1) // 2, y0)
                axes = ((x1 - x0) // 2, (x1 - x0) // 3)
                cv2.ellipse(canvas, centre, axes, 0, 180, 360, light, frame)
            cv2.rectangle(
                canvas, (x0 - 2 * frame, y1 + frame), (x1 + 2 * frame, y1 + 3 * frame), light, -1
            )
    # Stains and grain, without which all windows would look alike.
    grain = cv2.resize(dead_leaves(size // 2, rng), (size, size)).astype(np.float32) - 127
    canvas += rng.uniform(0.05, 0.16) * grain + rng.uniform(5, 14) * pink_noise(size, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def repeated(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat a piece of a square texture in rows and columns, with noise: the same shape, uint8."""
    size = len(texture)
    side = int(size * rng.uniform(0.35, 1.0))
    x, y = rng.integers(0, size - side + 1, 2)
    columns = int(rng.integers(2, 7))
    rows = int(np.clip(columns + rng.integers(-2, 3), 1, 6))
    shape = (-(-size // columns), -(-size // rows))
    piece: Any = texture[y : y + side, x : x + side].astype(np.float32)
    piece = cv2.resize(piece, shape, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.3:
        piece = np.concatenate([piece[:, ::2], piece[:, ::-2]], 1)
    canvas: Any = np.tile(piece, (rows, columns + 1))[:size, :size]
    canvas = canvas + rng.uniform(6, 22) * pink_noise(size, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def pink_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with an amplitude spectrum of 1/f, mean 0 and deviation 1: (size, size) float32."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None]
    frequency = np.hypot(fx, fy)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency
    noise = np.fft.irfft2(spectrum, (size, size))
    return (noise / noise.std()).astype(np.float32)

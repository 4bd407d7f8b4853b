"""The compiled loop over tracks: patches at the border, and shifts of photos that are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edm_hloc.tracks.kernel import align_tracks
from edm_hloc.tracks.photos import GreyPhoto, PhotoStack

_RADIUS, _ITERATIONS, _DAMPING, _NOISE, _MOST = 5, 6, 0.0025, 2.0, 2.0


def _photo(width: int, height: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def _align(
    photos: list[np.ndarray], points: np.ndarray, maps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Aligns tracks (T, V, 2) that all photos see, by maps (T, V, 3, 2)."""
    stack = PhotoStack.of([GreyPhoto((photo,), np.ones((1, 2))) for photo in photos])
    number, seen = points.shape[:2]
    return align_tracks(
        (stack.pixels, stack.places),
        (
            np.arange(0, number * seen + 1, seen, dtype=np.int64),
            np.tile(np.arange(seen, dtype=np.int64), number),
            points.reshape(-1, 2).astype(np.float32),
            np.ones(number * seen, np.float32),
        ),
        maps.reshape(1, -1, 3, 2).astype(np.float32),
        (_RADIUS, _ITERATIONS, _DAMPING, _NOISE, _MOST),
    )


def _perspective(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    maps = np.zeros((*shape, 3, 2))
    maps[..., :2, :] = np.eye(2) + rng.normal(0, 0.1, (*shape, 2, 2))
    maps[..., 2, :] = rng.normal(0, 0.003, (*shape, 2))
    return maps


@pytest.mark.parametrize("size", [(61, 47), (64, 64)])
def test_the_border_is_replicated(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    photos = [_photo(*size, seed=3)] * 3
    centres = rng.random((60, 1, 2)) * (np.array(size) - 1)
    points = centres + rng.normal(0, 0.5, (60, 3, 2))
    maps = _perspective(rng, points.shape[:2])
    wide = [cv2.copyMakeBorder(p, 40, 40, 40, 40, cv2.BORDER_REPLICATE) for p in photos]
    shifts, correlation, texture = _align(photos, points, maps)
    assert (np.abs(points - (np.array(size) - 1) / 2) > (np.array(size) - 1) / 2 - 5).any()
    assert np.ptp(shifts) > 0.5
    of_wide = _align(wide, points + 40, maps)
    np.testing.assert_allclose(shifts, of_wide[0], atol=2e-3)
    np.testing.assert_allclose(correlation, of_wide[1], atol=2e-3)
    np.testing.assert_allclose(texture, of_wide[2], atol=2e-3)


def test_photos_are_shifted_onto_each_other() -> None:
    rng = np.random.default_rng(1)
    photo = _photo(131, 97, seed=5)
    true = 20 + rng.random((50, 1, 2)) * (np.array([131, 97]) - 40)
    off = rng.uniform(-0.8, 0.8, (50, 3, 2))
    maps = np.zeros((50, 3, 3, 2))
    maps[..., :2, :] = np.eye(2)
    shifts, correlation, _ = _align([photo] * 3, true + off, maps)
    left = off + shifts.reshape(50, 3, 2)
    # The mean of the photos is free: they agree with each other.
    assert np.median(np.abs(left - left.mean(axis=1, keepdims=True))) < 0.01
    assert np.median(correlation) > 0.999


def test_places_that_are_not_numbers_read_nothing_outside() -> None:
    points = np.array([[[20.0, 20.0], [np.nan, 20.0]], [[1e9, -1e9], [20.0, 20.0]]])
    maps = np.zeros((2, 2, 3, 2))
    maps[..., :2, :] = np.eye(2)
    shifts, correlation, _ = _align([_photo(40, 40, seed=1)] * 2, points, maps)
    assert np.isfinite(shifts).all()
    assert np.isfinite(correlation).all()

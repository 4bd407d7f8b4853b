"""Matches of repeated structure against those of places that are seen only once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.geometry import homogeneous
from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import Features
from edm_hloc.refinement.twins import without_twins
from edm_hloc.refinement.views import ImageViews, OnDemand, WarpedView, distinctness_of

SIZE = (640, 480)
GRID = (30, 40)
DISTINCT, REPEATED = 9.0, 4.0
NUM = 300  # points of each kind
PERIOD = [50.0, -60.0]  # px across the epipolar lines


def _photo(distinctness: np.ndarray | None, reduction: float = 1.0) -> ImageViews:
    features = Features(None, PixelTransform((1.0, 1.0)), 0)
    warp = np.diag([1 / reduction, 1 / reduction, 1.0])
    pixels = torch.empty(1, SIZE[1], SIZE[0])
    return ImageViews(pixels, WarpedView(features, warp, SIZE), distinctness, OnDemand())


def _kept(matches: Matches, photos: tuple[ImageViews, ImageViews]) -> Matches:
    reduction = photos[0].whole.reduction
    return without_twins(matches, distinctness_of(photos, matches), reduction, 0.2, 0.15)


def _left_is_distinct() -> np.ndarray:
    grid = np.full(GRID, REPEATED, np.float32)
    grid[:, : GRID[1] // 2] = DISTINCT
    return grid


def _two_views(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Right matches (2 · NUM, 2) with noise of 0.5 px: NUM in the left half of photo 0, then NUM in
    its right half, of points with all depths from 4 to 10."""
    points0 = rng.uniform(0, (SIZE[0] / 2 - 20, SIZE[1] - 1), (2 * NUM, 2))
    points0[NUM:, 0] += SIZE[0] / 2 + 10
    depth = rng.uniform(4, 10, 2 * NUM)
    rays = homogeneous((points0 - [320, 240]) / 600)
    angle = np.radians(6)
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    seen = (rays * depth[:, None]) @ R.T + [0.6, 0.5, 0.2]
    points1 = 600 * seen[:, :2] / seen[:, 2:] + [320, 240]
    return points0, points1 + rng.normal(0, 0.5, points1.shape)


def _matches(points0: np.ndarray, points1: np.ndarray, score: float = 0.6) -> Matches:
    scores = np.full(len(points0), score, np.float32)
    return Matches(points0.astype(np.float32), points1.astype(np.float32), scores)


@pytest.mark.parametrize("reduction", [1.0, 2.5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twins_that_outnumber_the_right_matches_are_dropped(seed: int, reduction: float) -> None:
    rng = np.random.default_rng(seed)
    points0, points1 = _two_views(rng)
    wrong = np.arange(2 * NUM) >= NUM
    wrong[NUM : NUM + 60] = False  # of repeated structure, and right
    points1[wrong] += PERIOD
    many = np.concatenate([np.arange(NUM)[: NUM // 2], np.arange(NUM, 2 * NUM)])
    matches = _matches(points0[many] * reduction, points1[many] * reduction)
    photos = (
        _photo(_left_is_distinct(), reduction),
        _photo(np.full(GRID, DISTINCT, np.float32), reduction),
    )
    kept = _kept(matches, photos)
    is_kept = np.isin(matches.keypoints0[:, 0], kept.keypoints0[:, 0])
    assert wrong[many].sum() > (~wrong[many]).sum()
    assert is_kept[~wrong[many]].mean() > 0.98
    assert is_kept[wrong[many]].mean() < 0.15  # some lie on the epipolar line by chance


def test_either_photo_shows_what_is_repeated() -> None:
    points0, points1 = _two_views(np.random.default_rng(5))
    points1[NUM:] += PERIOD
    photos = _photo(np.full(GRID, DISTINCT, np.float32)), _photo(_left_is_distinct())
    matches = _matches(points1, points0)
    kept = _kept(matches, photos)
    assert NUM <= len(kept) < 1.15 * NUM


def test_matchers_that_cannot_tell_keep_all_matches() -> None:
    points0, points1 = _two_views(np.random.default_rng(5))
    points1[NUM:] += PERIOD
    matches = _matches(points0, points1)
    assert _kept(matches, (_photo(None), _photo(None))) is matches


def test_equally_distinct_matches_all_stay() -> None:
    """Half of them moved, as by a thing that moves: nothing tells which half is wrong."""
    points0, points1 = _two_views(np.random.default_rng(7))
    points1[NUM:] += PERIOD
    matches = _matches(points0, points1)
    photos = _photo(np.full(GRID, DISTINCT, np.float32))
    assert _kept(matches, (photos, photos)) is matches


def test_repeated_structure_that_is_right_stays() -> None:
    matches = _matches(*_two_views(np.random.default_rng(9)))
    photo = _photo(_left_is_distinct())
    assert _kept(matches, (photo, photo)) is matches


def test_distorted_photos_keep_their_matches() -> None:
    """What is seen once lies around the middle, and barrel distortion moves the rest by 60 px."""
    points0, points1 = _two_views(np.random.default_rng(11))
    grid = np.full(GRID, REPEATED, np.float32)
    grid[8:22, 10:30] = DISTINCT
    for points in points0, points1:
        radius = np.linalg.norm((points - [320, 240]) / 400, axis=1, keepdims=True)
        points -= (points - [320, 240]) * 0.15 * radius**2
    matches = _matches(points0, points1)
    assert len(_kept(matches, (_photo(grid), _photo(grid)))) > 0.97 * len(matches)


@pytest.mark.parametrize("number", [0, 1, 7, 59])
def test_few_matches_stay(number: int) -> None:
    points0, points1 = _two_views(np.random.default_rng(3))
    matches = _matches(points0[:number], points1[:number])
    photo = _photo(_left_is_distinct())
    assert _kept(matches, (photo, photo)) is matches


def test_points_in_one_place_and_candidates_without_confidence_stay() -> None:
    photo = _photo(np.full(GRID, np.inf, np.float32))  # of a tiny image
    same = _matches(np.full((100, 2), 50.0), np.full((100, 2), 60.0))
    assert len(_kept(same, (photo, photo))) == 100
    weak = _matches(*_two_views(np.random.default_rng(1)), score=0.1)
    assert _kept(weak, (photo, photo)) is weak


def test_matches_that_are_not_distinct_at_all_are_not_drawn_first() -> None:
    """Cells that are more similar to others than to themselves, by far: no weight is zero."""
    matches = _matches(*_two_views(np.random.default_rng(6)))
    grid = np.full(GRID, -5000, np.float32)
    grid[:, :2] = DISTINCT
    assert _kept(matches, (_photo(grid), _photo(grid))) is matches


def test_nothing_random_is_left() -> None:
    points0, points1 = _two_views(np.random.default_rng(2))
    points1[NUM:] += PERIOD
    matches = _matches(points0, points1)
    photos = _photo(_left_is_distinct()), _photo(np.full(GRID, DISTINCT, np.float32))
    first = _kept(matches, photos)
    again = _kept(matches, photos)
    assert np.array_equal(first.keypoints0, again.keypoints0)
    assert len(first) < len(matches)

"""Refinement of matches by the photos: known warps, flat patches, edges, wrong matches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.refinement.affine import local_affine_maps, neighbour_support
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corner_matches import AlignedMatches, align_to_corners
from edm_hloc.refinement.corners import Photo, strongest_corners
from edm_hloc.refinement.growing import grow
from edm_hloc.refinement.matcher import RefinedMatcher

HEIGHT, WIDTH = 160, 192
CONFIG = RefinementConfig()


def texture(seed: int = 0) -> torch.Tensor:
    """(1, H, W) smooth noise of several scales in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 1, HEIGHT, WIDTH)
    for cells in (8, 16, 40):
        noise = torch.rand(1, 1, cells, cells, generator=generator)
        image += F.interpolate(noise, (HEIGHT, WIDTH), mode="bicubic") / 3
    return image[0].clamp(0, 1)


def photo(image: torch.Tensor) -> Photo:
    return Photo(image, strongest_corners(image))


def at_corners(image: torch.Tensor) -> np.ndarray:
    """The corners of the cells of `grid_points`."""
    cells = (grid_points() / 8).astype(int)
    return strongest_corners(image).points[cells[:, 1], cells[:, 0]].astype(np.float32)


def warped(image: torch.Tensor, A: np.ndarray, t: np.ndarray) -> torch.Tensor:
    """The image in which the content of pixel x lies at A·x + t."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    source = (np.stack([x, y], axis=-1) - t) @ np.linalg.inv(A).T
    grid = (2 * source + 1) / np.array([WIDTH, HEIGHT]) - 1
    grid = torch.from_numpy(grid).float()[None]
    return F.grid_sample(image[None], grid, mode="bicubic", align_corners=False)[0]


def grid_points() -> np.ndarray:
    """Points of the 8 px grid away from the border."""
    y, x = np.mgrid[32 : HEIGHT - 32 : 8, 32 : WIDTH - 32 : 8]
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)


WARPS = {
    "shift": (np.eye(2), np.array([2.3, -1.6])),
    "zoom": (1.25 * np.eye(2), np.array([-20.0, -18.0])),
    "roll": (np.array([[0.9, -0.3], [0.3, 0.9]]), np.array([33.0, -20.0])),
    "shear": (np.array([[1.0, 0.3], [-0.1, 0.8]]), np.array([-20.0, 22.0])),
}


def test_a_cell_s_corner_is_found_and_a_flat_cell_has_its_grid_point() -> None:
    image = torch.full((1, 64, 72), 0.2)
    image[:, 21:45, 30:51] = 0.9  # a bright rectangle: four corners
    corners = strongest_corners(image).points
    assert corners.shape == (8, 9, 2)
    for x, y in ((30, 21), (50, 21), (30, 44), (50, 44)):
        found = corners[round(y / 8), round(x / 8)]
        assert np.abs(found - [x, y]).max() <= 1
    np.testing.assert_array_equal(corners[1, 1], [8, 8])
    np.testing.assert_array_equal(corners[0, 0], [0, 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_corners_lie_in_their_cells(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = strongest_corners(torch.rand(1, 8 * rows, 8 * columns, generator=generator)).points
    grid = 8 * np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1)
    assert ((corners - grid >= -4.5) & (corners - grid < 4)).all()
    assert ((corners >= 0) & (corners <= [8 * columns - 1, 8 * rows - 1])).all()


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("moves", [0, 1])
def test_known_warps_are_found_to_a_tenth_of_a_pixel(warp: str, moves: int) -> None:
    A, t = WARPS[warp]
    image0 = texture()
    image1 = (0.2 + 0.5 * warped(image0, A, t)) ** 1.3  # another exposure
    fixed = grid_points()
    guess = fixed @ A.T + t + np.random.default_rng(1).normal(0, 0.8, fixed.shape)
    count = len(fixed)
    if moves == 1:
        found = align_to_corners((photo(image0), photo(image1)), fixed, guess, CONFIG)
        still, moved = found.points0[:count], found.points1[:count]
        correlation = found.correlation[:count]
    else:
        found = align_to_corners((photo(image1), photo(image0)), guess, fixed, CONFIG)
        still, moved = found.points1[-count:], found.points0[-count:]
        correlation = found.correlation[-count:]
    np.testing.assert_array_equal(still, at_corners(image0))
    true = still @ A.T + t
    guess += true - (fixed @ A.T + t)
    inside = ((true > 12) & (true < np.array([WIDTH - 12, HEIGHT - 12]))).all(axis=1)
    before, after = (
        np.linalg.norm(points - true, axis=1)[inside & (correlation > 0.7)]
        for points in (guess, moved)
    )
    assert len(after) > 0.9 * inside.sum() > 20
    assert np.median(before) > 0.7
    assert np.median(after) < 0.1
    assert np.percentile(after, 90) < 0.3


@pytest.mark.parametrize("warp", WARPS)
def test_each_match_gives_a_corner_of_either_photo(warp: str) -> None:
    A, t = WARPS[warp]
    image0 = texture()
    image1 = warped(image0, A, t)
    points0 = grid_points()
    points1 = (points0 @ A.T + t).astype(np.float32)
    seen = ((points1 > 4) & (points1 < np.array([WIDTH - 4, HEIGHT - 4]))).all(axis=1)
    points0, points1 = points0[seen], points1[seen]
    found = align_to_corners((photo(image0), photo(image1)), points0, points1, CONFIG)
    split = int(np.argmax(np.diff(found.match) < 0)) + 1
    np.testing.assert_array_equal(found.match[:split], np.arange(len(points0)))
    corners = {tuple(corner) for corner in strongest_corners(image1).points.reshape(-1, 2)}
    second = [tuple(point) for point in found.points1[split:]]
    assert corners.issuperset(second)
    assert len(set(second)) == len(second) > 0.5 * len(points0)
    # each match comes with the corner of the cell that its point in image 1 lies in
    away = np.abs(found.points1[split:] - 8 * np.rint(points1[found.match[split:]] / 8))
    assert away.max() <= 4.5
    error = np.linalg.norm(found.points0 @ A.T + t - found.points1, axis=1)
    assert np.median(error[split:]) < 0.1


def test_of_matches_that_lead_to_one_corner_the_first_counts() -> None:
    image = texture()
    points = np.repeat(grid_points()[:40], 2, axis=0) + np.tile([[0, 0], [0.5, 1]], (40, 1))
    found = align_to_corners((photo(image), photo(image)), points, points, CONFIG)
    np.testing.assert_array_equal(found.match, np.tile(np.arange(0, 80, 2), 2))


def test_points_without_texture_stay_and_are_kept() -> None:
    grey = torch.full((1, HEIGHT, WIDTH), 0.4)
    points = grid_points()
    found = align_to_corners((photo(grey), photo(grey + 0.1)), points, points + 0.7, CONFIG)
    count = len(points)
    np.testing.assert_allclose(found.points0[:count], points, atol=1e-4)
    np.testing.assert_allclose(found.points1[:count], points + 0.7, atol=1e-4)
    np.testing.assert_allclose(found.points1[count:], points, atol=1e-4)
    np.testing.assert_allclose(found.points0[count:], points - 0.7, atol=1e-4)
    assert (found.correlation > 0.99).all()


def test_along_an_edge_points_stay_across_it_they_move() -> None:
    image = torch.sigmoid((torch.arange(WIDTH) - 96.0) / 1.5).expand(1, HEIGHT, WIDTH)
    points = grid_points()
    points = points[points[:, 0] == 96]
    found = align_to_corners(
        (photo(image), photo(image)), points, points + np.array([0.8, 0.8], np.float32), CONFIG
    )
    np.testing.assert_allclose(found.points1[:, 0], found.points0[:, 0], atol=0.1)
    np.testing.assert_allclose(found.points1[:, 1], found.points0[:, 1] + 0.8, atol=1e-3)


def test_patches_that_differ_have_a_low_correlation() -> None:
    points = grid_points()
    found = align_to_corners((photo(texture(0)), photo(texture(1))), points, points + 0.3, CONFIG)
    assert np.median(found.correlation) < CONFIG.min_correlation


def test_points_move_no_further_than_the_prior_allows() -> None:
    points = grid_points()
    guess = points + np.array([30, 0], np.float32)
    config = RefinementConfig(rounds=1)
    found = align_to_corners((photo(texture(0)), photo(texture(1))), points, guess, config)
    count = len(points)
    guess += found.points0[:count] - points
    assert np.abs(found.points1[:count] - guess).max() <= 2 * config.prior_sigma + 1e-3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_matches(count: int) -> None:
    points = grid_points()[:count]
    found = align_to_corners((photo(texture()), photo(texture())), points, points, CONFIG)
    corners = at_corners(texture())[:count]
    np.testing.assert_array_equal(found.points0[:count], corners)
    np.testing.assert_array_equal(found.points1[count:], corners)
    np.testing.assert_allclose(found.points1, found.points0, atol=0.01)
    assert found.correlation.shape == found.match.shape == (2 * count,)


def test_affine_maps_are_exact_on_an_affine_map_despite_outliers() -> None:
    A, t = WARPS["shear"]
    points = grid_points()
    target = points @ A.T + t
    rng = np.random.default_rng(2)
    wrong = rng.random(len(points)) < 0.1
    target[wrong] += rng.uniform(-60, 60, (wrong.sum(), 2))
    maps = local_affine_maps(points, target, 12)[~wrong]
    assert np.median(np.abs(maps - A)) < 0.02


@pytest.mark.parametrize("warp", WARPS)
def test_neighbours_support_what_is_right_and_not_what_is_wrong(warp: str) -> None:
    A, t = WARPS[warp]
    points = grid_points()
    rng = np.random.default_rng(4)
    depth = 6 * np.sin(points[:, :1] / 40) * [1, 0.2]  # a surface that is not flat
    target = points @ A.T + t + depth + rng.normal(0, 1, points.shape)
    wrong = rng.random(len(points)) < 0.3
    target[wrong] = rng.uniform(0, [WIDTH, HEIGHT], (wrong.sum(), 2))
    support = neighbour_support(points, target, 20)
    assert ((support >= 0) & (support <= 1)).all()
    assert (support[~wrong] >= CONFIG.min_support).mean() > 0.95
    assert (support[wrong] >= CONFIG.min_support).mean() < 0.15


def test_matches_of_unlike_photos_support_each_other_hardly() -> None:
    rng = np.random.default_rng(5)
    support = neighbour_support(grid_points(), rng.uniform(0, 192, grid_points().shape), 20)
    assert (support >= CONFIG.min_support).mean() < 0.02


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_matches_to_ask_are_supported(count: int) -> None:
    points = grid_points()[:count]
    assert (neighbour_support(points, points[::-1], 20) == np.ones(count)).all()


def test_aligned_neighbours_agree_more_closely() -> None:
    A, t = WARPS["zoom"]
    points = grid_points()
    rng = np.random.default_rng(6)
    target = points @ A.T + t + rng.normal(0, 0.2, points.shape)
    wrong = rng.random(len(points)) < 0.1
    target[wrong] += [3.2, -1.5]  # as the next leaf of a hedge
    support = neighbour_support(points, target, 20, aligned=True)
    assert (support[~wrong] >= 0.7).all()
    loose = neighbour_support(points, target, 20)
    assert (support[wrong] < 0.7).all()
    assert (loose[wrong] > 0.8).mean() > 0.9


def seeds(warp: str, image0: torch.Tensor, within: float = 16.0) -> AlignedMatches:
    """True matches of the corners near the middle."""
    A, t = WARPS[warp]
    corners = at_corners(image0)
    near = np.abs(corners - [96, 80]).max(axis=1) < within
    points = corners[near]
    target = (points @ A.T + t).astype(np.float32)
    count = len(points)
    return AlignedMatches(points, target, np.ones(count, np.float32), np.arange(count))


@pytest.mark.parametrize("warp", WARPS)
def test_a_few_matches_grow_over_all_that_both_photos_show(warp: str) -> None:
    A, t = WARPS[warp]
    image0 = texture()
    image1 = (0.1 + 0.6 * warped(image0, A, t)) ** 0.8
    found = seeds(warp, image0)
    before = len(found.match)
    grown = grow((photo(image0), photo(image1)), found, CONFIG, 10_000)
    np.testing.assert_array_equal(grown.points0[:before], found.points0)
    np.testing.assert_array_equal(grown.points1[:before], found.points1)
    np.testing.assert_array_equal(grown.match[:before], found.match)
    assert set(grown.match) <= set(found.match)
    assert (grown.correlation >= CONFIG.min_grown_correlation).all()
    error = np.linalg.norm(grown.points0 @ A.T + t - grown.points1, axis=1)
    assert np.percentile(error, 95) < 0.25
    corners = strongest_corners(image0).points.reshape(-1, 2)
    seen = corners @ A.T + t
    inner = ((corners > 20) & (corners < [WIDTH - 20, HEIGHT - 20])).all(axis=1)
    inner &= ((seen > 20) & (seen < [WIDTH - 20, HEIGHT - 20])).all(axis=1)
    away = KDTree(grown.points0).query(corners[inner])[0]
    assert (away < 9).mean() > 0.9  # each cell, or the one beside it
    assert len(grown.match) > 3 * before


def test_growth_stops_at_the_most_that_was_asked_for() -> None:
    image = texture()
    found = seeds("shift", image)
    image1 = warped(image, *WARPS["shift"])
    count = len(found.match)
    for most in (count - 1, count, count + 7):
        grown = grow((photo(image), photo(image1)), found, CONFIG, most)
        assert len(grown.match) == max(count, most)


def test_nothing_grows_where_photos_differ_or_have_no_texture() -> None:
    image0 = texture(0)
    image0[:, :, 100:] = 0.5
    image1 = texture(1)
    image1[:, :, :104] = image0[:, :, :104]
    image1[:, 100:, :] = texture(2)[:, 100:, :]
    found = seeds("shift", image0)
    still = AlignedMatches(found.points0, found.points0.copy(), found.correlation, found.match)
    grown = grow((photo(image0), photo(image1)), still, CONFIG, 10_000)
    added = grown.points0[len(found.match) :]
    assert len(added) > 50
    assert added[:, 0].max() < 105
    assert added[:, 1].max() < 100
    nothing = AlignedMatches(*(values[:0] for values in found))
    assert len(grow((photo(image0), photo(image0)), nothing, CONFIG, 100).match) == 0


@pytest.mark.parametrize(("least", "grows"), [(30, True), (60, False)])
def test_pairs_with_few_matches_do_not_grow(least: int, grows: bool) -> None:
    image = texture()
    points = grid_points()[:50]
    matcher = RefinedMatcher(
        _Given(Matches(points, points, np.ones(50, np.float32))),
        RefinementConfig(min_matches_to_grow=least),
    )
    encoded = matcher.encode(NetworkImage(image, PixelTransform((1.0, 1.0)), (WIDTH, HEIGHT)))
    found = matcher.match(encoded, encoded)
    assert (len(found.scores) > 60) == grows
    places = np.hstack([found.keypoints0, found.keypoints1])
    assert len(KDTree(places).query_pairs(0.5)) == 0


@pytest.mark.parametrize(("sure", "stays"), [(0.97, True), (2.0, False)])
def test_what_stands_alone_stays_if_the_patches_agree_very_well(sure: float, stays: bool) -> None:
    image0 = texture()
    image1 = warped(image0, np.eye(2), np.array([4.0, 0.0]))
    image1[:, 70:96, 86:112] = image0[:, 70:96, 93:119]  # a thing in front of the wall
    points = grid_points()
    before = (points == [104, 80]).all(axis=1)
    target = points + np.where(before[:, None], [-7, 0], [4, 0]).astype(np.float32)
    assert before.sum() == 1
    given = _Given(Matches(points, target, np.ones(len(points), np.float32)))
    config = RefinementConfig(min_support=0, min_isolated_correlation=sure, patch_radius=4)
    matcher = RefinedMatcher(given, config)
    size = (WIDTH, HEIGHT)
    encoded = [
        matcher.encode(NetworkImage(i, PixelTransform((1.0, 1.0)), size)) for i in (image0, image1)
    ]
    found = matcher.match(*encoded)
    moved = found.keypoints1 - found.keypoints0
    alone = np.abs(moved - [-7, 0]).max(axis=1) < 0.5
    assert alone.any() == stays
    assert (np.abs(moved - [4, 0]).max(axis=1) < 0.5).sum() > 100


class _Given(Matcher):
    """Gives the matches it was made with."""

    provenance = {"weights": "none"}  # noqa: RUF012

    def __init__(self, matches: Matches, confident: float = 0.0, topk: int | None = None) -> None:
        self.matches = matches
        preprocessing = Preprocessing(resize_max=None)
        self.info = MatcherInfo("given", preprocessing, confident=confident, topk=topk)

    def encode(self, image: NetworkImage) -> Features:
        return Features("given", image.transform, 0)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        assert all(features.data == "given" for pair in pairs for features in pair)
        return [self.matches for _ in pairs]


def test_the_matcher_works_in_pixels_of_the_original() -> None:
    image0 = texture()
    image1 = warped(image0, *WARPS["shift"])
    transform = PixelTransform((2.0, 2.0))
    images = [NetworkImage(i, transform, (2 * WIDTH, 2 * HEIGHT)) for i in (image0, image1)]
    fixed = grid_points()
    true = fixed + WARPS["shift"][1].astype(np.float32)
    scores = np.linspace(0.2, 1, len(fixed), dtype=np.float32)
    wrong = np.arange(len(fixed)) % 10 == 0
    guess = true + np.where(wrong[:, None], 25.0, 0.7).astype(np.float32)
    given = Matches(fixed, guess, scores)
    matcher = RefinedMatcher(_Given(given), CONFIG)
    encoded = [matcher.encode(image) for image in images]
    assert encoded[0].nbytes == 2 * HEIGHT * WIDTH + (8 + 1) * (HEIGHT // 8) * (WIDTH // 8)
    found = matcher.match(*encoded)
    expected = found.keypoints0 + 2 * WARPS["shift"][1]
    error = np.linalg.norm(found.keypoints1 - expected, axis=1)
    assert np.percentile(error, 95) < 0.3
    corners = transform.to_original(at_corners(image0))
    # exactly, or where the corner of a cell in image 1 is
    assert KDTree(found.keypoints0).query(corners[~wrong])[0].max() < 1.0
    assert matcher.provenance["weights"] == "none"
    assert matcher.provenance["refinement_patch_radius"] == CONFIG.patch_radius


@pytest.mark.parametrize(
    ("enough", "topk", "expected"),
    [(0, None, 60), (50, None, 60), (90, None, 90), (10_000, None, 192), (90, 60, 60)],
)
def test_weak_matches_fill_up_pairs_with_few(enough: int, topk: int | None, expected: int) -> None:
    image = texture()
    points = grid_points()
    scores = np.linspace(0.2, 0.8, len(points), dtype=np.float32)
    confident = float(scores[-60])
    given = _Given(Matches(points, points, scores), confident, topk)
    matcher = RefinedMatcher(
        given, RefinementConfig(target_matches=enough, min_matches_to_grow=10_000)
    )
    encoded = matcher.encode(NetworkImage(image, PixelTransform((1.0, 1.0)), (WIDTH, HEIGHT)))
    found = matcher.match(encoded, encoded)
    # both photos have the same corner, which counts once
    np.testing.assert_allclose(found.scores, scores[: -expected - 1 : -1], rtol=1e-3)


def test_points_that_leave_the_photo_are_dropped() -> None:
    image0 = texture()
    fixed = np.array([[184, 80], [96, 80]], np.float32)
    corners = strongest_corners(image0).points[[10, 10], [23, 12]]
    shift = 193 - corners[0, 0]  # the first point's partner is just outside
    image1 = warped(image0, np.eye(2), np.array([shift, 0.0]))
    guess = fixed + np.array([shift - 2.5, 0], np.float32)
    matcher = RefinedMatcher(_Given(Matches(fixed, guess, np.ones(2, np.float32))), CONFIG)
    identity, size = PixelTransform((1.0, 1.0)), (WIDTH, HEIGHT)
    encoded = [matcher.encode(NetworkImage(i, identity, size)) for i in (image0, image1)]
    found = matcher.match(*encoded)
    np.testing.assert_array_equal(found.keypoints0[:1], corners[1:])
    np.testing.assert_allclose(found.keypoints1[:1], corners[1:] + np.array([shift, 0]), atol=0.2)
    # of the other side's points too, one each at most
    np.testing.assert_allclose(found.keypoints1, found.keypoints0 + np.array([shift, 0]), atol=0.2)
    assert len(found.scores) <= 3

"""Quantization of points against golden values and a plain reading of hloc's description."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import KDTree

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.keypoints.assignment import assign_points, unique_matches
from edm_hloc.keypoints.lattice import checked_points
from edm_hloc.keypoints.quantization import QuantizationConfig, quantize_image
from tests.oracles import hloc_quantization as oracle

# whole, half and eighth pixels meet the borders of cells and bins exactly; the floats do not
COORDINATES = st.one_of(
    st.integers(-40, 200).map(lambda n: n / 2),
    st.integers(-4, 12).map(lambda n: 8 * n - 0.5),
    st.floats(-20, 100, width=32),
)
# few values, so that scores are often equal, and floats whose sums depend on their order
SCORES = st.one_of(st.sampled_from([0.0, 0.25, 1.0]), st.floats(0, 1, width=32))
CONFIGS = st.builds(
    QuantizationConfig,
    st.sampled_from([0.5, 1, 1.5, 2, 2.5, 4]),
    st.sampled_from([0, 1, 4, 5, 8]),
    st.sampled_from([None, 1, 3, 1000]),
)


def points_of(count: int | st.SearchStrategy) -> st.SearchStrategy:
    shape = st.tuples(st.just(count) if isinstance(count, int) else count, st.just(2))
    return hnp.arrays(np.float32, shape, elements=COORDINATES, fill=st.nothing())


@st.composite
def votes(draw):
    points = draw(points_of(st.integers(0, 40)))
    scores = draw(hnp.arrays(np.float32, len(points), elements=SCORES, fill=st.nothing()))
    binned = draw(st.one_of(st.none(), hnp.arrays(bool, len(points))))
    return points, scores, binned


def plain_quantization(points, scores, config, binned=None):
    """The oracle's keypoints, scores and ids of the same points."""
    image = oracle.Image()
    if binned is None:
        ids = image.vote(points, scores, config.cell_size, config.bin_side)
    else:
        ids = []
        for i, flag in enumerate(binned):
            sides = (
                (config.cell_size, config.bin_side) if flag else (oracle.NO_BINS, oracle.NO_BINS)
            )
            ids.extend(image.vote(points[i : i + 1], scores[i : i + 1], *sides))
    keypoints, totals = image.keypoints(config.max_kps)
    if config.max_kps is not None:
        ids = oracle.nearest(points, keypoints, config.max_error)
    return keypoints, totals, np.array(ids, np.int64)


def assert_same(ours, expected):
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


# --------------------------------------------------------------------------- one image


def test_golden_image():
    # cells of 8 px and bins of 2 px with centres at 8k - 0.5 and 2k - 0.5
    points = np.array(
        [[10.2, 9.1], [7.9, 8.3], [7.0, 7.0], [31.0, 7.2], [7.6, 8.4], [-0.9, -4.6]], np.float32
    )
    scores = np.array([0.5, 0.25, 0.125, 0.75, 0.5, 0.5], np.float32)
    keypoints, totals, ids = quantize_image(points, scores, QuantizationConfig(2, 8, None))
    np.testing.assert_array_equal(keypoints, [[7.5, 7.5], [31.5, 7.5], [-0.5, -4.5]])
    # 0.25 + 0.125 + 0.5 in the bin (7.5, 7.5), which beats the 0.5 of (9.5, 9.5) in the same cell
    np.testing.assert_array_equal(totals, np.float32([0.875, 0.75, 0.5]))
    np.testing.assert_array_equal(ids, [0, 0, 0, 1, 0, 2])

    keypoints, totals, ids = quantize_image(points, scores, QuantizationConfig(2, 8, 2))
    np.testing.assert_array_equal(keypoints, [[7.5, 7.5], [31.5, 7.5]])
    np.testing.assert_array_equal(totals, np.float32([0.875, 0.75]))
    np.testing.assert_array_equal(ids, [-1, 0, 0, 1, 0, -1])  # the first lies 3.1 px away


def test_equal_bins_the_first_seen_wins():
    points = np.array([[1.5, 1.5], [-0.5, -0.5]], np.float32)  # two bins of one cell
    config = QuantizationConfig(2, 8, None)
    for order in ([0, 1], [1, 0]):
        image = quantize_image(points[order], np.ones(2, np.float32), config)
        np.testing.assert_array_equal(image.keypoints, points[order[:1]])


def test_sums_are_float32_in_order():
    points = np.zeros((3, 2), np.float32)
    for scores, total in (([2**24, 1, 1], 2**24), ([1, 1, 2**24], 2**24 + 2)):
        image = quantize_image(points, np.array(scores, np.float32), QuantizationConfig(1, 1, None))
        assert image.scores.tolist() == [total]


def test_halves_go_to_even_squares():
    # (x + 0.5) / 4 is 0.5, 1.5 and 2.5: squares 0, 2 and 2 with centres 4k - 0.5
    points = np.array([[1.5, 0], [5.5, 0], [9.5, 0]], np.float32)
    config = QuantizationConfig(4, 4, None)
    image = quantize_image(points, np.ones(3, np.float32), config)
    np.testing.assert_array_equal(image.keypoints, [[-0.5, -0.5], [7.5, -0.5]])
    np.testing.assert_array_equal(image.ids, [0, 1, 1])


def test_point_as_it_is_on_the_centre_of_a_cell():
    # cells of 5 px, bins of 2 px: (4.5, 4.5) is the centre of the cell of (3.5, 3.5), no bin's
    points = np.array([[4.5, 4.5], [3.5, 3.5], [3.75, 3.25]], np.float32)
    scores = np.array([1, 0.75, 0.5], np.float32)
    binned = np.array([False, True, True])
    image = quantize_image(points, scores, QuantizationConfig(2, 5, None), binned=binned)
    np.testing.assert_array_equal(image.keypoints, [[3.5, 3.5]])
    assert image.scores.tolist() == [1.25]
    np.testing.assert_array_equal(image.ids, [0, 0, 0])


def test_the_two_zeros_are_one_place():
    points = np.array([[0.0, 1], [-0.0, 1]], np.float32)
    image = quantize_image(
        points, np.ones(2), QuantizationConfig(2, 8, None), binned=np.zeros(2, bool)
    )
    np.testing.assert_array_equal(image.ids, [0, 0])
    assert image.scores.tolist() == [2]


def test_no_points():
    for max_kps in (None, 5):
        image = quantize_image(np.zeros((0, 2)), np.zeros(0), QuantizationConfig(2, 8, max_kps))
        assert image.keypoints.shape == (0, 2)
        assert image.keypoints.dtype == image.scores.dtype == np.float32
        assert image.scores.shape == image.ids.shape == (0,)


@settings(deadline=None, max_examples=100)
@given(votes(), CONFIGS)
def test_image_agrees_with_plain_reading(votes, config):
    points, scores, binned = votes
    expected = plain_quantization(points, scores, config, binned)
    assert_same(quantize_image(points, scores, config, binned=binned), expected)


@pytest.mark.parametrize("max_kps", [None, 500, 8192])
@pytest.mark.parametrize(("max_error", "cell_size"), [(2, 8), (1, 1), (4, 4), (2.5, 7), (0.5, 0)])
def test_large_image_agrees_with_plain_reading(max_error, cell_size, max_kps):
    rng = np.random.default_rng(3)
    seen = rng.uniform([0, 0], [470, 312], (2000, 2))  # of an image of 471 x 313
    points = (seen[rng.integers(0, 2000, 8000)] + rng.normal(0, 0.7, (8000, 2))).astype("f4")
    scores = rng.random(8000).astype(np.float32)
    config = QuantizationConfig(max_error, cell_size, max_kps)
    expected = plain_quantization(points, scores, config)
    assert_same(quantize_image(points, scores, config), expected)


@pytest.mark.parametrize("max_kps", [None, 700])
def test_points_far_apart_agree_with_plain_reading(max_kps):
    # too far apart for lookup tables
    rng = np.random.default_rng(4)
    points = rng.uniform(-1e6, 1e6, (500, 2)).astype(np.float32).repeat(3, axis=0)
    points += rng.integers(-3, 4, points.shape).astype(np.float32)
    scores = rng.random(len(points)).astype(np.float32)
    config = QuantizationConfig(2, 8, max_kps)
    expected = plain_quantization(points, scores, config)
    assert_same(quantize_image(points, scores, config), expected)


@pytest.mark.filterwarnings("error")
def test_bad_input_is_refused():
    config = QuantizationConfig(2, 8, None)
    good, one = np.zeros((1, 2), np.float32), np.ones(1, np.float32)
    for bad in (np.nan, np.inf, -3e6):
        with pytest.raises(ValueError, match="finite pixels"):
            quantize_image(np.full((1, 2), bad), one, config)
        with pytest.raises(ValueError, match="finite pixels"):
            assign_points(good, np.full((1, 2), bad), 2.0)
        if not np.isfinite(bad):
            with pytest.raises(ValueError, match="finite pixels"):
                quantize_image(np.full((1, 2), bad, np.float16), one, config)
    assert checked_points(good.astype(np.float16)).dtype == np.float16
    with pytest.raises(ValueError, match="scores are not all finite"):
        quantize_image(good, np.array([np.nan]), config)
    with pytest.raises(ValueError, match=r"1 points but scores of shape \(2,\)"):
        quantize_image(good, np.ones(2), config)
    with pytest.raises(ValueError, match=r"shape \(M, 2\)"):
        quantize_image(np.zeros((1, 3)), one, config)


@pytest.mark.parametrize(
    "values", [(0, 8, None), (-1, 8, None), (2, -8, 5), (2, 8, 0), (np.nan, 8, 1), (2, np.inf, 1)]
)
def test_bad_configuration_is_refused(values):
    with pytest.raises(EdmHlocError, match="must be"):
        QuantizationConfig(*values)


@pytest.mark.parametrize("cell_size", [0, 1, 2])
def test_the_size_of_cells_is_the_one_that_is_used(cell_size: float) -> None:
    assert QuantizationConfig(2.0, cell_size, None).cell_size == 2.0


# --------------------------------------------------------------------------- nearest keypoint


def test_golden_assignment():
    keypoints = np.array([[0, 0], [10, 0], [12, 0]], np.float32)
    points = np.array([[0, 2], [0, 2.01], [10.9, 0], [11.1, 0], [-2, 0], [500, 3]], np.float32)
    ids = assign_points(points, keypoints, 2.0)
    np.testing.assert_array_equal(ids, [0, -1, 1, 2, 0, -1])  # the fifth is 2 px away as well
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(assign_points(points, np.zeros((0, 2)), 2.0), np.full(6, -1))
    assert assign_points(np.zeros((0, 2)), keypoints, 2.0).shape == (0,)


@settings(deadline=None, max_examples=100)
@given(
    points_of(st.integers(0, 40)), points_of(st.integers(0, 40)), st.sampled_from([0.5, 1, 2, 9.3])
)
def test_assignment_agrees_with_tree(points, keypoints, max_error):
    ids = assign_points(points, keypoints, max_error)
    np.testing.assert_array_equal(ids, oracle.nearest(points, keypoints, max_error))


@pytest.mark.parametrize("kind", ["apart", "crowded", "equal", "whole", "outliers", "float64"])
def test_assignment_agrees_with_tree_at_scale(kind):
    rng = np.random.default_rng(5)
    keypoints = rng.uniform(0, 900, (3000, 2))
    points = rng.uniform(-20, 920, (20_000, 2)).astype(np.float32)
    if kind == "crowded":  # some hundreds in reach of each point
        keypoints /= 20
        points /= 16
    elif kind == "equal":
        keypoints = np.repeat(keypoints[:500], 3, axis=0)
    elif kind == "whole":  # with many points halfway between keypoints
        keypoints, points = keypoints.round() // 3, points.round() / 2
    elif kind == "outliers":
        keypoints[:2] = [[-1e6, 5e5], [1e6, -9e5]]
        points[:2] = keypoints[:2] + 1
    if kind != "float64":
        keypoints = keypoints.astype(np.float32)
    ids = assign_points(points, keypoints, 2.0)
    distances, expected = KDTree(keypoints).query(points)
    np.testing.assert_array_equal(ids, np.where(distances <= 2.0, expected, -1))
    assert 0 < np.count_nonzero(ids == -1) < len(ids)


# --------------------------------------------------------------------------- unique matches


def test_golden_unique_matches():
    ids0 = np.array([2, 2, 0, 5, -1, 3, 3])
    ids1 = np.array([7, 8, 7, -1, 1, 4, 4])
    scores = np.array([0.5, 0.75, 0.625, 0.9, 0.9, 0.125, 0.25], np.float32)
    matches0, scores0 = unique_matches(ids0, ids1, scores)
    # keypoint 2 prefers 8; 7, which it leaves, has its best match in 0
    assert matches0.tolist() == [7, -1, 8, 4]
    assert scores0.tolist() == [0.625, 0, 0.75, 0.25]
    assert matches0.dtype == np.int32
    assert scores0.dtype == np.float16


def test_match_that_only_one_side_prefers_is_dropped():
    matches0, _ = unique_matches(np.array([0, 0, 1]), np.array([0, 1, 1]), np.float32([1, 2, 3]))
    assert matches0.tolist() == [-1, 1]


@pytest.mark.parametrize("ids", [[], [-1, -1]])
def test_no_matches(ids):
    ids = np.array(ids, np.int64)
    matches0, scores0 = unique_matches(ids, np.zeros_like(ids), np.ones(len(ids), np.float32))
    assert matches0.shape == scores0.shape == (0,)
    assert (matches0.dtype, scores0.dtype) == (np.int32, np.float16)


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(np.int64, st.tuples(st.just(2), st.integers(0, 60)), elements=st.integers(-1, 12)),
    st.data(),
)
def test_unique_matches_agree_with_plain_reading(ids, data):
    scores = data.draw(hnp.arrays(np.float32, ids.shape[1], elements=SCORES, fill=st.nothing()))
    assert_same(unique_matches(*ids, scores), oracle.one_to_one(*ids, scores))


@pytest.mark.parametrize("levels", [4, 2**24])
def test_unique_matches_agree_with_plain_reading_at_scale(levels):
    rng = np.random.default_rng(6)
    ids = rng.integers(-1, 1500, (2, 4000))
    scores = (rng.integers(0, levels, 4000) / levels).astype(np.float32)
    matches0, scores0 = unique_matches(*ids, scores)
    assert_same((matches0, scores0), oracle.one_to_one(*ids, scores))
    matched = matches0[matches0 >= 0]
    assert len(np.unique(matched)) == len(matched) > 500


# --------------------------------------------------------------------------- mean positions


def test_golden_mean_positions():
    points = np.array([[7, 8], [8, 8], [7.5, 6.5], [40, 40]], np.float32)
    scores = np.array([0.25, 0.75, 0, 0], np.float32)
    config = QuantizationConfig(2, 8, 10, position="mean")
    keypoints, totals, ids = quantize_image(points, scores, config)
    # (7·0.25 + 8·0.75, 8); the other keypoint has no weight and keeps its bin's centre
    np.testing.assert_array_equal(keypoints[np.argsort(-totals)], [[7.75, 8], [39.5, 39.5]])
    assert keypoints.dtype == np.float32
    np.testing.assert_array_equal(ids, [0, 0, 0, 1])


@settings(deadline=None, max_examples=50)
@given(votes(), CONFIGS)
def test_mean_positions_change_nothing_else(votes, config):
    points, scores, binned = votes
    bins = quantize_image(points, scores, config, binned=binned)
    means = quantize_image(points, scores, replace(config, position="mean"), binned=binned)
    assert_same(means[1:], bins[1:])
    for k, keypoint in enumerate(means.keypoints):
        own = bins.ids == k
        if scores[own].sum() > 1e-3:
            expected = np.average(points[own], axis=0, weights=scores[own].astype(float))
            np.testing.assert_allclose(keypoint, expected, rtol=1e-5, atol=1e-5)

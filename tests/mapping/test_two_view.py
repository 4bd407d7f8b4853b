"""Two-view geometries that are estimated from a sample of the matches."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from edm_hloc.mapping import two_view
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.two_view import estimator

INLIERS, OUTLIERS = 2400, 800
CONFIGURATION = pycolmap.TwoViewGeometryConfiguration


def camera(known: bool) -> pycolmap.Camera:
    """With a distortion, and a focal length that is known or guessed."""
    params = [600.0, 320.0, 240.0, 0.02 if known else 0.0]
    made = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=params)
    made.has_prior_focal_length = known
    return made


def keypoints(shape: str, cameras: tuple[pycolmap.Camera, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Points of a scene in two photos, with 0.5 px of noise, and then some that are anywhere."""
    rng = np.random.default_rng(4)
    points = rng.uniform([-2, -1.5, 5], [2, 1.5, 9], (INLIERS, 3))
    if shape == "plane":
        points[:, 2] = 6 + 0.3 * points[:, 0]
    angle = np.radians(6.0)
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    found = []
    for one, seen in zip(cameras, (points, points @ R.T + [-0.9, 0.1, 0.2]), strict=True):
        pixels = np.asarray(one.img_from_cam(seen)) + rng.normal(0, 0.5, (INLIERS, 2))
        wrong = rng.uniform(0, [640, 480], (OUTLIERS, 2))
        found.append(np.concatenate([pixels, wrong]))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("shape", "known", "configuration"),
    [
        ("space", True, CONFIGURATION.CALIBRATED),
        ("space", False, CONFIGURATION.UNCALIBRATED),
        ("plane", True, CONFIGURATION.PLANAR_OR_PANORAMIC),
        ("plane", False, CONFIGURATION.PLANAR_OR_PANORAMIC),
    ],
)
def test_inliers_of_a_sample_are_sought_among_all(
    shape: str,
    known: bool,
    configuration: pycolmap.TwoViewGeometryConfiguration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cameras = camera(known), camera(known)
    points = keypoints(shape, cameras)
    order = np.random.default_rng(1).permutation(INLIERS + OUTLIERS)
    matches = np.column_stack([order, order]).astype(np.uint32)
    found = []
    for sample in (len(matches), two_view.SAMPLE):
        monkeypatch.setattr(two_view, "SAMPLE", sample)
        estimate = estimator(dict(enumerate(cameras)), MappingOptions())
        geometry = estimate((0, 1), points, matches)
        assert geometry.config == configuration
        inliers = np.asarray(geometry.inlier_matches)
        assert len(np.unique(inliers[:, 0])) == len(inliers)
        right = inliers[:, 0] < INLIERS
        assert right.sum() > 0.99 * INLIERS
        assert (~right).sum() < 0.04 * OUTLIERS  # by chance, in a band of 4 px beside a line
        positions = {int(k): n for n, k in enumerate(matches[:, 0])}
        assert np.all(np.diff([positions[int(k)] for k in inliers[:, 0]]) > 0)  # in their order
        found.append({int(k) for k in inliers[:, 0]})
    every, sampled = found
    # COLMAP may take the inliers of a fundamental matrix on a plane, which does not determine it.
    assert len(every & sampled) > (0.99 if shape == "space" else 0.97) * len(every | sampled)


def test_few_matches_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    estimate_all = pycolmap.estimate_two_view_geometry

    def counted(*args: object) -> pycolmap.TwoViewGeometry:
        asked.append(np.asarray(args[4]))
        return estimate_all(*args)

    monkeypatch.setattr(pycolmap, "estimate_two_view_geometry", counted)
    cameras = camera(True), camera(True)
    points = keypoints("space", cameras)
    estimate = estimator(dict(enumerate(cameras)), MappingOptions())
    for number in (two_view.SAMPLE, two_view.SAMPLE + 1, two_view.SAMPLE + 1):
        chosen = np.arange(number, dtype=np.uint32)
        estimate((0, 1), points, np.column_stack([chosen, chosen]))
    assert [len(m) for m in asked] == [two_view.SAMPLE] * 3
    assert np.array_equal(asked[1], asked[2])  # not another sample each time


def test_a_pair_without_geometry_has_no_inliers() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, [640, 480], (2, 3000, 2))
    order = np.arange(3000, dtype=np.uint32)
    estimate = estimator({0: camera(True), 1: camera(True)}, MappingOptions())
    geometry = estimate((0, 1), (points[0], points[1]), np.column_stack([order, order]))
    assert geometry.config == CONFIGURATION.DEGENERATE
    assert len(geometry.inlier_matches) == 0

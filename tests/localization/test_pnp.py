"""A query's pose from matches whose errors have long tails."""

from __future__ import annotations

import json

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.frames import to_colmap
from edm_hloc.evaluation.localization import pose_errors
from edm_hloc.localization.fit import Lens
from edm_hloc.localization.log import format_pose, parse_pose
from edm_hloc.localization.pnp import Align, Correspondences, PoseOptions, estimate_pose
from edm_hloc.localization.results import QueryPose
from tests.localization.queries import CAMERA, TRUTH, seen


@pytest.fixture
def cloud() -> np.ndarray:
    return np.random.default_rng(0).uniform([-2, -1.5, 2], [2, 1.5, 6], (600, 3))


def _estimated(pixels: np.ndarray, points: np.ndarray, align: Align | None = None) -> QueryPose:
    matched = Correspondences(pixels, points, [("db.jpg", np.arange(len(pixels)))], 1, len(pixels))
    options = PoseOptions()
    return estimate_pose("q.jpg", CAMERA, matched, options, lens="known", align=align)


def _off(pose: pycolmap.Rigid3d | None) -> np.ndarray:
    """Error of the position, and of the rotation in degrees."""
    assert pose is not None
    return np.array(pose_errors(pose, TRUTH))


def test_the_loss_is_as_narrow_as_the_matches_are_exact(cloud: np.ndarray) -> None:
    """A third of the matches lie 0.5 to 3 px to one side, as those at outlines do."""
    rng = np.random.default_rng(1)
    pixels = to_colmap(seen(cloud)) + rng.normal(0, 0.05, (len(cloud), 2))
    pixels[: len(cloud) // 3, 0] += rng.uniform(0.5, 3, len(cloud) // 3)
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error, options.ransac.random_seed = PoseOptions().max_error, 0
    of_colmap = pycolmap.estimate_and_refine_absolute_pose(pixels, cloud, CAMERA, options)
    answer = _estimated(pixels, cloud)
    assert answer.inliers == len(cloud)
    assert (_off(answer.pose) < 0.2 * _off(of_colmap["cam_from_world"])).all()


def test_a_place_in_the_coordinates_of_a_map_is_as_exact(cloud: np.ndarray) -> None:
    """Five thousand kilometres from the origin, which COLMAP's refinement turns the camera about;
    with the points of an alignment, too."""
    pixels = to_colmap(seen(cloud)) + np.random.default_rng(3).normal(0, 0.5, (len(cloud), 2))
    map_origin = np.array([691234.5, 5335678.9, 512.0])
    answers = []
    for points in (cloud, cloud + map_origin):
        answers.append(_estimated(pixels, points))
        answers.append(_estimated(pixels, points, lambda *_, xyz=points: (pixels[:300], xyz[:300])))
    near, far = answers[:2], answers[2:]
    to_near = pycolmap.Rigid3d(pycolmap.Rotation3d(), map_origin)
    for here, there in zip(near, far, strict=True):
        assert here.pose is not None
        assert there.pose is not None
        assert (there.aligned, there.confidence) == (here.aligned, "high")
        moved = there.pose * to_near
        np.testing.assert_allclose(moved.matrix(), here.pose.matrix(), atol=1e-6)
        assert there.position_deviation == pytest.approx(here.position_deviation, rel=1e-3)
    assert [answer.aligned for answer in near] == [0, 300]


@pytest.mark.parametrize("sigma", [pytest.param(0.3, marks=pytest.mark.slow), 3.0])
def test_deviations_are_those_of_repeated_measurements(cloud: np.ndarray, sigma: float) -> None:
    """Also where errors are larger than the loss ever is wide."""
    rng = np.random.default_rng(2)
    errors, stated = [], []
    for _ in range(60):
        pixels = to_colmap(seen(cloud)) + rng.normal(0, sigma, (len(cloud), 2))
        answer = _estimated(pixels, cloud)
        errors.append(_off(answer.pose))
        stated.append([answer.position_deviation, answer.rotation_deviation])
    rms_errors, rms_stated = (np.sqrt(np.mean(np.square(v), axis=0)) for v in (errors, stated))
    np.testing.assert_allclose(rms_stated / rms_errors, 1, atol=0.15)


def test_deviations_of_few_points_account_for_what_was_fitted(cloud: np.ndarray) -> None:
    """Twelve points are 24 coordinates, of which the six of the pose take up a quarter."""
    rng = np.random.default_rng(4)
    errors, stated = [], []
    for _ in range(150):
        few = rng.choice(cloud, 12, replace=False)
        answer = _estimated(to_colmap(seen(few)) + rng.normal(0, 0.5, (12, 2)), few)
        if answer.status == "localized":
            errors.append(_off(answer.pose))
            stated.append([answer.position_deviation, answer.rotation_deviation])
    rms_errors, rms_stated = (np.sqrt(np.mean(np.square(v), axis=0)) for v in (errors, stated))
    assert len(errors) > 140
    np.testing.assert_allclose(rms_stated / rms_errors, 1, atol=0.25)


def test_deviations_account_for_errors_that_points_near_each_other_share(cloud: np.ndarray) -> None:
    """As overlapping patches do: each place of the photo has one error, of some 16 points."""
    rng = np.random.default_rng(5)
    true = to_colmap(seen(cloud))
    place = (true // 60).astype(int) - (true // 60).astype(int).min(axis=0)
    errors, stated = [], []
    for _ in range(20):
        shared = rng.normal(0, 0.3, (*(place.max(axis=0) + 1), 2))
        answer = _estimated(true + shared[place[:, 0], place[:, 1]], cloud)
        errors.append(_off(answer.pose))
        stated.append([answer.position_deviation, answer.rotation_deviation])
    rms_errors, rms_stated = (np.sqrt(np.mean(np.square(v), axis=0)) for v in (errors, stated))
    np.testing.assert_allclose(rms_stated / rms_errors, 1, atol=0.25)


def _before_a_wall(relief: float, seed: int) -> tuple[QueryPose, float]:
    """A photo without a known focal length, 10 units before a wall that it looks squarely at: its
    pose, and how far that is off."""
    rng = np.random.default_rng(seed)
    taken = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=640, height=480, params=[800, 320, 240, 0.0]
    )
    pixels = rng.uniform([0, 0], [640, 480], (300, 2))
    rays = np.column_stack([taken.cam_from_img(pixels), np.ones(300)])
    points = rays * 10 * (1 + relief * rng.uniform(-1, 1, (300, 1)))
    guess = pycolmap.Camera(taken.todict() | {"params": [768, 320, 240, 0.0]})
    pixels += rng.normal(0, 0.3, pixels.shape)
    matched = Correspondences(pixels, points, [("db.jpg", np.arange(300))], 1, 300)
    answer = estimate_pose("q.jpg", guess, matched, PoseOptions(), lens="told")
    assert answer.pose is not None
    return answer, pose_errors(answer.pose, pycolmap.Rigid3d())[0]


def test_confidence_is_low_where_the_distance_is_not_known() -> None:
    flat, deep = ([_before_a_wall(relief, seed) for seed in range(20)] for relief in (0.001, 0.01))
    assert {answer.confidence for answer, _ in deep} == {"high"}
    assert max(off for _, off in deep) < 0.5
    assert max(off for _, off in flat) > 1
    assert {answer.confidence for answer, _ in flat} == {"low"}
    assert all(a.distance == pytest.approx(10.3, rel=0.1) for a, _ in deep)


def _off_the_middle(offset: np.ndarray, seed: int, lens: Lens) -> tuple[QueryPose, np.ndarray]:
    """A photo without known intrinsics: its pose, and the errors of this, as `_off`."""
    rng = np.random.default_rng(seed)
    x, y = np.array([320, 240]) + offset
    taken = pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=[600, x, y, -0.02])
    pixels = rng.uniform([0, 0], [640, 480], (200, 2))
    rays = np.column_stack([taken.cam_from_img(pixels), np.ones(200)])
    points = rays * rng.uniform(2, 6, (200, 1))
    guess = pycolmap.Camera(taken.todict() | {"params": [768, 320, 240, 0.0]})
    pixels += rng.normal(0, 0.05, pixels.shape)
    matched = Correspondences(pixels, points, [("db.jpg", np.arange(200))], 1, 200)
    answer = estimate_pose("q.jpg", guess, matched, PoseOptions(), lens=lens)
    assert answer.pose is not None
    assert parse_pose(format_pose(answer)) == answer
    return answer, np.array(pose_errors(answer.pose, pycolmap.Rigid3d()))


@pytest.mark.parametrize("lens", ["centred", "told"])
def test_deviations_count_the_principal_point_of_estimated_intrinsics(lens: Lens) -> None:
    """It is 0.7 % of the width off along each axis, which turns the camera by far more than the
    noise does, unless the matches tell it."""
    errors, stated = [], []
    for seed in range(16):
        offset = np.random.default_rng(100 + seed).normal(0, 0.007 * 640, 2)
        answer, error = _off_the_middle(offset, seed, lens)
        errors.append(error)
        stated.append([answer.position_deviation, answer.rotation_deviation])
        assert answer.confidence == "high"  # of the pose, whose camera is turned a little
        assert (answer.off_centre is not None) == (lens == "told")
    rms_errors, rms_stated = (np.sqrt(np.mean(np.square(v), axis=0)) for v in (errors, stated))
    np.testing.assert_allclose(rms_stated / rms_errors, 1, atol=0.35)


def test_a_cropped_photo_gets_its_principal_point_and_pose() -> None:
    """With its principal point in the middle, the pose was far off and of high confidence."""
    for offset, confidence in (((-80.0, 50.0), "high"), ((-180.0, 100.0), "low")):
        answer, (position, rotation) = _off_the_middle(np.array(offset), 0, "told")
        assert answer.off_centre == pytest.approx(np.linalg.norm(offset) / 640, rel=0.05)
        assert position < 0.01
        assert rotation < 0.1
        assert answer.confidence == confidence


def test_a_focal_length_that_no_lens_has_is_held_instead() -> None:
    """COLMAP's refinement of these two ends below zero, with all points behind the camera."""
    for seed in (6, 34):
        answer, _ = _before_a_wall(0.001, seed)
        assert answer.status == "localized"
        assert answer.camera.split()[3] == "768.0"
        assert answer.median_error is not None
        assert answer.median_error < 1
        assert answer.position_deviation is not None
        assert answer.position_deviation > 1  # though the focal length was held
        json.loads(format_pose(answer), parse_constant=pytest.fail)


def test_a_point_counts_once_at_the_median_of_its_matches(cloud: np.ndarray) -> None:
    """A quarter of the points are wrong by 0.5 px, and nine database images match each of these."""
    rng = np.random.default_rng(1)
    times = np.where(np.arange(len(cloud)) < len(cloud) // 4, 9, 1)
    pixels = np.repeat(to_colmap(seen(cloud)), times, axis=0)
    pixels[: 9 * (len(cloud) // 4), 0] += 0.5
    pixels += rng.normal(0, 0.05, pixels.shape)
    pixels[::9, 1] += 3 * (np.repeat(times, times)[::9] == 9)  # one of the nine is far off
    answer = _estimated(pixels, np.repeat(cloud, times, axis=0))
    assert answer.inliers == times.sum()
    assert answer.median_error is not None
    assert answer.median_error < 0.1
    # By all matches it is 0.4 px off, a shift of 0.004 at a depth of 4.
    assert _off(answer.pose)[0] < 0.0005


def test_points_at_the_rim_of_a_fisheye_lens_do_not_fail_the_rest() -> None:
    """Half of the points are nearly 90° from the axis, beyond which COLMAP's models end: with the
    pose estimated, some of them are behind the camera."""
    rng = np.random.default_rng(0)
    params = [129.0, 129, 240, 240, 0, 0, 0, 0]
    camera = pycolmap.Camera(model="OPENCV_FISHEYE", width=480, height=480, params=params)
    angle = np.radians(np.r_[rng.uniform(2, 70, 60), rng.uniform(89.99, 89.9999, 60)])
    around = rng.uniform(0, 2 * np.pi, 120)
    rays = np.stack(
        [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], axis=1
    )
    there = rays * rng.uniform(2, 6, (120, 1))
    pixels = camera.img_from_cam(there) + rng.normal(0, 0.5, (120, 2))
    points = TRUTH.inverse() * there
    matched = Correspondences(pixels, points, [("db.jpg", np.arange(120))], 1, 120)
    answer = estimate_pose("q.jpg", camera, matched, PoseOptions(), lens="known")
    assert answer.status == "localized"
    assert answer.median_error is not None
    assert answer.median_error < 1.0
    position, rotation = _off(answer.pose)
    assert position < 0.02
    assert rotation < 0.3

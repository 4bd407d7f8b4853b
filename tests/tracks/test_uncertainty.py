"""Uncertainties of cameras against the spread of their errors, under noise that is known."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import ModelStatistics, posed_images, quiet_colmap
from edm_hloc.cli.summaries import print_tracks
from edm_hloc.mapping.frames import frame_change
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks import uncertainty
from edm_hloc.tracks.adjustment import Freedom, adjuster_of
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Views
from edm_hloc.tracks.refine import TrackSummary
from edm_hloc.tracks.uncertainty import (
    CameraUncertainty,
    camera_covariances,
    camera_uncertainties,
    most_uncertain,
)
from tests.mapping.scenes import look_at

CAMERA = pycolmap.Camera(
    camera_id=1, model="SIMPLE_PINHOLE", width=640, height=480, params=[600.0, 320.0, 240.0]
)
NOISE, TRIALS = 0.3, 24
FIXED, THREADS = Freedom(constant=frozenset({1})), MappingOptions(threads=1)


def _model(rng: np.random.Generator, noise: float) -> pycolmap.Reconstruction:
    """Six photos of points 40 px apart, farther than patches reach, with noise on the keypoints."""
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 12), np.linspace(-1.1, 1.1, 9))
    points = np.stack([x, y, 0.4 * np.sin(3 * x) * np.cos(2 * y)], axis=-1).reshape(-1, 3)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    for k, angle in enumerate(np.linspace(-0.5, 0.5, 6), start=1):
        centre = 4 * np.array([np.sin(angle), 0.3 * np.cos(4 * angle), -np.cos(angle)])
        pose = look_at(centre, np.zeros(3))
        image = pycolmap.Image(name=f"{k}", camera_id=1, image_id=k)
        xy = CAMERA.img_from_cam(points @ pose.rotation.matrix().T + pose.translation)
        xy = xy + rng.normal(0, noise, xy.shape) if noise else xy
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(p) for p in xy])
        model.add_image_with_trivial_frame(image, pose)
    for i, point in enumerate(points):
        track = pycolmap.Track([pycolmap.TrackElement(k, i) for k in range(1, 7)])
        model.add_point3D(point, track)
    return model


def test_uncertainties_are_the_spread_of_the_errors() -> None:
    """Independent of the photos: with the factor that stands for these alone taken out, the errors
    of adjusted cameras are as large as is told."""
    rng = np.random.default_rng(0)
    truth = _model(rng, 0)
    true = posed_images(truth)
    centres = np.array([image.projection_center() for image in true.values()])
    extent = np.linalg.norm(centres[:, None] - centres, axis=2).max()
    of_position, of_rotation = [], []
    with quiet_colmap():
        for _ in range(TRIALS):
            model = _model(rng, NOISE)
            adjuster_of(model, NOISE, FIXED, THREADS).solve()
            covariances = camera_covariances(model, FIXED, TrackConfig(), THREADS)
            told = camera_uncertainties(covariances, Views.of(model))
            model.transform(frame_change(model, truth, true))
            for name, image in posed_images(model).items():
                R, true_R = (i.cam_from_world().rotation.matrix() for i in (image, true[name]))
                off = R @ (image.projection_center() - true[name].projection_center())
                x, y, z, _ = pycolmap.Rotation3d(R @ true_R.T).quat
                of_position.append(100 * off / extent / told[name].position)
                of_rotation.append(np.degrees([2 * x, 2 * y, 2 * z]) / told[name].rotation)
    for ratio in (np.array(of_position), np.array(of_rotation)):
        own = ratio * uncertainty.UNSEEN
        print(np.sqrt(np.mean(own**2)), np.mean(np.abs(own) < 1), np.mean(np.abs(own) < 2))
        assert 0.85 < np.sqrt(np.mean(own**2)) < 1.15
        assert 0.60 < np.mean(np.abs(own) < 1) < 0.78  # 68 %
        assert 0.92 < np.mean(np.abs(own) < 2) < 0.98  # 95 %


def test_a_model_that_has_collapsed_has_no_uncertainties() -> None:
    """Two photos at one place, with all their points within a billionth of the others' depth."""
    model = _model(np.random.default_rng(0), NOISE)
    for k in (1, 2):
        image = model.images[k]
        far = image.cam_from_world()
        near = pycolmap.Rigid3d(far.rotation, 1e-9 * far.translation)
        image.frame.rig_from_world = near
    seen = [(k, i) for k in (1, 2) for i in range(len(model.images[1].points2D))]
    for k, i in seen:
        if model.images[k].points2D[i].has_point3D():
            model.delete_observation(k, i)
    for i in range(len(model.images[1].points2D)):
        elements = [pycolmap.TrackElement(k, i) for k in (1, 2)]
        model.add_point3D(1e-9 * np.array([i % 12 - 6, i // 12 - 4, 0.0]), pycolmap.Track(elements))
    with quiet_colmap():
        found = camera_covariances(model, FIXED, TrackConfig(), THREADS)
    assert found is None or np.isfinite(found).all()
    assert camera_uncertainties(None, Views.of(model)) == {}


def test_cameras_of_a_rig_have_no_uncertainties_and_the_summary_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """COLMAP knows the covariances of poses, and photos of a rig share one."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 2, 3
    options.num_points3D = 60
    pycolmap.set_random_seed(0)
    with quiet_colmap():
        model = pycolmap.synthesize_dataset(options)
        assert camera_covariances(model, Freedom(), TrackConfig(), THREADS) is None
    statistics = ModelStatistics.of(model)
    summary = TrackSummary(statistics, statistics, 2, 0, 0, 0, (), (), 1.0, None, {})
    print_tracks(asdict(summary))
    assert "Uncertain   of the cameras it is not known" in capsys.readouterr().out


def test_one_camera_far_away_does_not_make_the_others_sure() -> None:
    model = _model(np.random.default_rng(0), NOISE)
    covariances = np.eye(6 * model.num_images())
    before = camera_uncertainties(covariances, Views.of(model))
    last = max(model.images)
    image = model.images[last]
    pose = image.cam_from_world()
    image.frame.rig_from_world = pycolmap.Rigid3d(pose.rotation, 1e6 + pose.translation)
    after = camera_uncertainties(covariances, Views.of(model))
    for name in set(before) - {image.name}:
        assert after[name].position[0] > 0.5 * before[name].position[0]


def test_the_most_uncertain_cameras_are_named() -> None:
    sure = CameraUncertainty((0.001, 0.001, 0.001), (0.002, 0.002, 0.002))
    bad = CameraUncertainty((0.01, 0.0, 0.0), (0.002, 0.002, 0.002))
    cameras = {"a": sure, "b": sure, "c": bad}
    assert most_uncertain(cameras) == {"c": 0.01}
    assert most_uncertain({}) == {}

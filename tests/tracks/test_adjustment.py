"""Adjustment of a model to refined tracks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycolmap
import pytest

from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks import adjustment
from edm_hloc.tracks.adjustment import Freedom, adjust, limits_of, with_telephotos_held
from edm_hloc.tracks.geometry import Tracks, Views

FOCAL, MIDDLE = 129.0, 240.0  # pixels
BEHIND = np.array([3.0, 0.0, -0.02])  # 90.4° from the axis


def fisheye_model(step: float = 0.5, noise: float = 0.3) -> pycolmap.Reconstruction:
    """Three fisheye cameras in a row along y, before 81 points; number 81 lies at 89.6°."""
    rng = np.random.default_rng(0)
    ahead = rng.uniform(-4, 4, (80, 3)) + np.array([0, 0, 7])
    xyz = np.concatenate([ahead, [BEHIND * [1, 1, -1]]])
    model = pycolmap.Reconstruction()
    params = [FOCAL, FOCAL, MIDDLE, MIDDLE, 0, 0, 0, 0]
    camera = pycolmap.Camera(
        camera_id=1, model="OPENCV_FISHEYE", width=480, height=480, params=params
    )
    model.add_camera_with_trivial_rig(camera)
    for k in range(3):
        centre = np.array([0.0, step * (k - 1), 0.0])
        pixels = camera.img_from_cam(xyz - centre) + rng.normal(0, noise, (len(xyz), 2))
        image = pycolmap.Image(
            name=f"{k}.jpg",
            image_id=k + 1,
            camera_id=1,
            points2D=pycolmap.Point2DList([pycolmap.Point2D(p) for p in pixels]),
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(), -centre))
    for row, point in enumerate(xyz):
        track = pycolmap.Track([pycolmap.TrackElement(k + 1, row) for k in range(3)])
        model.add_point3D(point, track, np.zeros(3, np.uint8))
    return model


@pytest.mark.parametrize("behind", [False, True])
def test_points_that_end_behind_a_camera_are_dropped(
    monkeypatch: pytest.MonkeyPatch, behind: bool
) -> None:
    """COLMAP's fisheye models end at 90°; beyond that its errors are as large as numbers get."""

    def adjuster(model: pycolmap.Reconstruction, *others: Any, **named: Any) -> Any:
        made = real(model, *others, **named)
        if "iterations" in named or not behind:  # the first of two
            return made

        class Last:
            def solve(self) -> None:
                made.solve()
                model.points3D[81].xyz = BEHIND

        return Last()

    real = adjustment.adjuster_of
    monkeypatch.setattr(adjustment, "adjuster_of", adjuster)
    model = fisheye_model()
    tracks, freedom = Tracks.of(model, Views.of(model)), Freedom(focal=False, distortion=False)
    adjust(model, tracks, 8.0, freedom, MappingOptions(), again=True)
    assert model.num_points3D() == 81 - behind
    assert model.compute_mean_reprojection_error() < 0.6


def test_intrinsics_of_long_telephoto_lenses_stay() -> None:
    model = pycolmap.Reconstruction()
    for camera_id, focal in enumerate([700, 3100, 3300, 50000], start=1):
        size = (480, 640) if camera_id % 2 else (640, 480)
        camera = pycolmap.Camera.create_from_model_name(camera_id, "SIMPLE_RADIAL", focal, *size)
        model.add_camera(camera)
    freedom = with_telephotos_held(Freedom(constant=frozenset({1}), distortion=False), model)
    assert freedom == Freedom(constant=frozenset({1, 3, 4}), distortion=False)


def test_points_of_another_program_are_held_to_no_limit_that_they_did_not_meet() -> None:
    """Of photos from nearly one place all rays meet under less than the mapper's least angle."""
    assert limits_of(fisheye_model()) == MappingOptions()
    near = fisheye_model(0.02, 0.01)
    limits = limits_of(near)
    assert (limits.min_tri_angle, limits.max_error) == (0, MappingOptions().max_error)
    tracks, freedom = Tracks.of(near, Views.of(near)), Freedom(focal=False, distortion=False)
    adjust(near, tracks, 8.0, freedom, limits, again=True)
    assert near.num_points3D() > 75
    large = limits_of(fisheye_model(noise=5.0))
    assert large.min_tri_angle == MappingOptions().min_tri_angle
    assert large.max_error > 10

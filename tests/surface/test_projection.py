"""Where points are in photos, and that lenses show nothing beyond their field of view."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from edm_hloc.surface.projection import Projected, field_of_view


def _camera(k1: float) -> pycolmap.Camera:
    return pycolmap.Camera(
        camera_id=1, model="SIMPLE_RADIAL", width=800, height=600, params=[500, 400, 300, k1]
    )


def _image(camera: pycolmap.Camera, pose: pycolmap.Rigid3d) -> pycolmap.Image:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a.png", camera_id=1, image_id=1)
    model.add_image_with_trivial_frame(image, pose)
    return model.images[1]


@pytest.mark.parametrize("k1", [-0.1, -0.2, -0.3, -0.5])
def test_barrel_distortion_turns_back_where_its_derivative_is_zero(k1: float) -> None:
    assert field_of_view(_camera(k1)) == pytest.approx((-3 * k1) ** -0.5, abs=0.01)


def test_lenses_without_a_turn_see_everything_ahead() -> None:
    assert field_of_view(_camera(0.0)) == np.inf
    assert field_of_view(_camera(0.3)) == np.inf
    fisheye = pycolmap.Camera(
        camera_id=1,
        model="OPENCV_FISHEYE",
        width=800,
        height=600,
        params=[300, 300, 400, 300, *[0] * 4],
    )
    assert field_of_view(fisheye) == np.inf


def test_a_point_beyond_the_field_of_view_is_nowhere() -> None:
    camera = _camera(-0.25)
    image = _image(camera, pycolmap.Rigid3d())
    angles = np.deg2rad([0, 20, 40, 65, 80])
    points = 3 * np.stack([np.sin(angles), 0 * angles, np.cos(angles)], axis=1)
    found = Projected.of(points, camera, image)
    r = np.tan(angles[:3])
    assert found.pixels[:3, 0] == pytest.approx(399.5 + 500 * r * (1 - 0.25 * r**2))
    assert np.isnan(found.pixels[3:]).all()  # the polynomial shows 65° at x = 472
    assert found.depths == pytest.approx(points[:, 2])


def test_rays_lead_from_the_camera_to_the_points() -> None:
    camera = _camera(0.0)
    turn = pycolmap.Rotation3d(
        np.array([0.1, -0.2, 0.3, 0.9]) / np.linalg.norm([0.1, -0.2, 0.3, 0.9])
    )
    image = _image(camera, pycolmap.Rigid3d(turn, np.array([1.0, 2.0, 3.0])))
    points = np.random.default_rng(1).normal(size=(50, 3)) * 5
    found = Projected.of(points, camera, image)
    assert found.rays == pytest.approx(points - image.projection_center())

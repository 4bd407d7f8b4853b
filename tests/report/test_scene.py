"""Which direction of a model is up, by the photos it is made of."""

import numpy as np
import pycolmap
import pytest

from edm_hloc.report.scene import CameraView, Points, build_scene

_HALF = (0.6, 0.4)


def _view(azimuth: float, *, down: float = 0.0, roll: float = 0.0) -> CameraView:
    """A camera 4 from the z axis, looking at the axis and down, rolled about its own axis."""
    a, b, r = np.radians([azimuth, down, roll])
    ahead = np.array([-np.cos(a) * np.cos(b), -np.sin(a) * np.cos(b), -np.sin(b)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    lower = np.cross(ahead, right)
    x, y = np.cos(r) * right + np.sin(r) * lower, np.cos(r) * lower - np.sin(r) * right
    R = np.stack([x, y, ahead])
    centre = 4 * np.array([np.cos(a), np.sin(a), 0.0]) + [0.0, 0.0, 4 * np.tan(b)]
    return CameraView(f"{azimuth}", pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ centre), _HALF)


def _world() -> Points:
    """Ground under and around an object, with walls beyond it."""
    rng = np.random.default_rng(0)
    ground = rng.uniform(-12, 12, (3000, 3)) * [1, 1, 0] - [0, 0, 1.5]
    angle = rng.uniform(0, 2 * np.pi, 3000)
    walls = np.stack([12 * np.cos(angle), 12 * np.sin(angle), rng.uniform(-1.5, 6, 3000)], axis=1)
    xyz = np.concatenate([ground, walls, rng.uniform(-0.5, 0.5, (1000, 3)) * [1, 1, 3]])
    count = len(xyz)
    return Points(xyz, np.zeros((count, 3), np.uint8), np.full(count, 3), np.zeros(count))


def _tilt(points: Points, views: list[CameraView]) -> float:
    """Degrees between the vertical of the world, which is z, and that of the scene."""
    scene = build_scene(points, views)
    height = np.linalg.lstsq(
        np.c_[points.xyz, np.ones(len(points))], scene.points.xyz[:, 1], rcond=None
    )[0][:3]
    return float(np.degrees(np.arccos(height[2] / np.linalg.norm(height))))


@pytest.mark.parametrize("roll", [90.0, -90.0])
def test_photos_around_an_object_may_all_lie_on_one_side(roll: float) -> None:
    views = [_view(azimuth, roll=roll) for azimuth in range(0, 360, 30)]
    assert _tilt(_world(), views) < 0.1


def test_a_few_photos_on_their_side_do_not_tilt_the_scene() -> None:
    views = [_view(a, roll=90.0 if a % 3 == 0 else 0.0) for a in range(-20, 21)]
    assert _tilt(_world(), views) < 1.0


@pytest.mark.parametrize("down", [20.0, 50.0])
def test_cameras_that_look_down_from_one_side_do_not_tilt_the_scene(down: float) -> None:
    """The mean of their upper edges leans by half of what they look down."""
    rng = np.random.default_rng(1)
    views = [_view(a, down=down, roll=rng.normal(0, 1)) for a in np.linspace(-60, 60, 13)]
    assert _tilt(_world(), views) < 3.0
    assert _tilt(_world(), views[:1]) == pytest.approx(down, abs=3)  # one photo cannot tell


def test_pictures_show_what_the_cameras_go_around() -> None:
    points = _world()
    of_object = np.arange(len(points)) >= 6000
    around = build_scene(points, [_view(azimuth) for azimuth in range(0, 360, 30)])
    assert around.framed[of_object].all()
    assert not around.framed[3000:6000].any()  # walls beyond the cameras
    from_one_side = build_scene(points, [_view(azimuth) for azimuth in range(-50, 51, 10)])
    assert from_one_side.framed.all()
    outwards = [_view(azimuth) for azimuth in range(0, 360, 30)]
    turn = pycolmap.Rotation3d(np.array([0.0, 1.0, 0.0, 0.0]))  # by 180° about the camera's y axis
    for view in outwards:
        rotation = turn * view.cam_from_world.rotation
        centre = view.cam_from_world.inverse().translation
        view.cam_from_world.rotation = rotation
        view.cam_from_world.translation = -(rotation * centre)
    assert build_scene(points, outwards).framed.all()

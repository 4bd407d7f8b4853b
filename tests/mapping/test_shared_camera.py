"""Photos of one size without EXIF data share a camera where the photos themselves say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.mapping.mappers import map_database
from tests.mapping.scenes import CAMERA, THREADS, assert_near_truth, build, make_scene

NAMES = [f"{i}.jpg" for i in range(10)]


def lens(focal: float = 1.0, off: float = 0.0) -> pycolmap.Camera:
    """The scenes' camera with another focal length, or off the middle by a share of the width."""
    camera = pycolmap.Camera(CAMERA.todict())
    camera.focal_length = focal * CAMERA.focal_length
    camera.principal_point_x += off * CAMERA.width
    return camera


@pytest.mark.parametrize("cameras", [[lens()], [lens(off=0.07)]], ids=["plain", "cropped"])
def test_photos_of_one_camera_share_it(tmp_path: Path, cameras: list[pycolmap.Camera]) -> None:
    scene = make_scene(tmp_path, NAMES, cameras=cameras)
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == tuple(NAMES)
    (camera,) = read_model(tmp_path / "m").cameras.values()
    assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.05)
    if cameras[0].principal_point_x == CAMERA.principal_point_x:
        assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)


def test_photos_of_two_cameras_do_not(tmp_path: Path) -> None:
    """Their focal lengths differ by a twentieth, less than those of two lenses usually do."""
    scene = make_scene(tmp_path, NAMES, cameras=[lens(), lens(1.05)], noise=0.3)
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == ()
    model = read_model(tmp_path / "m")
    focal = np.array([model.cameras[i.camera_id].focal_length for i in model.images.values()])
    assert len(focal) == model.num_cameras() == 10
    assert_near_truth(scene, tmp_path / "m", rotation=1.0, position=2.0)

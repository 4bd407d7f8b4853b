"""Focal lengths from fundamental matrices, on pairs of cameras that are known."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import open_database
from edm_hloc.mapping.focal_lengths import calibrate_focal_lengths
from edm_hloc.mapping.parts import share_cameras

RATIOS = (0.8, 1.2, 1.9, 2.7, 4.2, 1.0)  # focal lengths by the longer side


def write_pairs(
    path: Path, model: str = "SIMPLE_RADIAL", known: int = 0, ratios: tuple[float, ...] = RATIOS
) -> None:
    """A database of cameras of these focal lengths, all said to have 1.2 but for the first ones."""
    rng = np.random.default_rng(3)
    size = np.array([640, 480])
    truth, poses = [], []
    for ratio in ratios:
        turn = rng.uniform(-0.3, 0.3, 3)
        poses.append(pycolmap.Rigid3d(pycolmap.Rotation3d(turn), rng.uniform(-1, 1, 3)))
        truth.append(np.array([[640 * ratio, 0, 320], [0, 640 * ratio, 240], [0, 0, 1]]))
    database = pycolmap.Database.open(path)
    for k, ratio in enumerate(ratios):
        told = ratio if k < known else 1.2
        camera = pycolmap.Camera.create_from_model_name(k + 1, model, 640 * told, *size)
        camera.has_prior_focal_length = k < known
        database.write_camera(camera, use_camera_id=True)
        image = pycolmap.Image(name=f"{k}.jpg", image_id=k + 1, camera_id=k + 1)
        database.write_image(image, use_image_id=True)
        database.write_keypoints(k + 1, np.zeros((5, 2), np.float32))
    for a, b in itertools.combinations(range(len(ratios)), 2):
        b_from_a = poses[b] * poses[a].inverse()
        essential = pycolmap.essential_matrix_from_pose(b_from_a)
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
        geometry.F = np.linalg.inv(truth[b]).T @ essential @ np.linalg.inv(truth[a])
        geometry.inlier_matches = np.array([[i, i] for i in range(5)], np.uint32)
        database.write_two_view_geometry(a + 1, b + 1, geometry)
    database.close()


def focal_lengths(path: Path) -> list[float]:
    """By the longer side, in order of the cameras."""
    with open_database(path) as db:
        cameras = sorted(db.read_all_cameras(), key=lambda camera: camera.camera_id)
    return [camera.mean_focal_length() / 640 for camera in cameras]


@pytest.mark.parametrize("model", ["SIMPLE_RADIAL", "PINHOLE", "OPENCV"])
def test_focal_lengths_are_those_of_the_pairs(tmp_path: Path, model: str) -> None:
    write_pairs(tmp_path / "d.db", model)
    calibrate_focal_lengths(tmp_path / "d.db")
    assert focal_lengths(tmp_path / "d.db") == pytest.approx(RATIOS, abs=0.006)
    with open_database(tmp_path / "d.db") as db:
        assert not any(camera.has_prior_focal_length for camera in db.read_all_cameras())
        assert len(db.read_two_view_geometry(1, 2).inlier_matches) == 5
        assert db.read_two_view_geometry(1, 2).config == (
            pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
        )
    assert [path.name for path in tmp_path.iterdir()] == ["d.db"]


def test_photos_of_one_camera_tell_its_focal_length_together(tmp_path: Path) -> None:
    write_pairs(tmp_path / "d.db", ratios=(2.1,) * 5)
    assert share_cameras(tmp_path / "d.db", tmp_path / "shared.db")
    calibrate_focal_lengths(tmp_path / "shared.db")
    with open_database(tmp_path / "shared.db") as db:
        (used,) = {image.camera_id for image in db.read_all_images()}
        assert db.read_camera(used).mean_focal_length() / 640 == pytest.approx(2.1, abs=0.006)


def test_known_focal_lengths_stay(tmp_path: Path) -> None:
    write_pairs(tmp_path / "d.db", known=3)
    calibrate_focal_lengths(tmp_path / "d.db")
    assert focal_lengths(tmp_path / "d.db")[:3] == list(RATIOS[:3])
    assert focal_lengths(tmp_path / "d.db")[3:] == pytest.approx(RATIOS[3:], abs=0.006)


def test_lenses_that_fundamental_matrices_do_not_describe_stay(tmp_path: Path) -> None:
    write_pairs(tmp_path / "d.db", "OPENCV_FISHEYE")
    calibrate_focal_lengths(tmp_path / "d.db")
    assert focal_lengths(tmp_path / "d.db") == [1.2] * len(RATIOS)


def test_impossible_focal_lengths_are_not_taken(tmp_path: Path) -> None:
    ratios = (*RATIOS[:5], 9.0)
    write_pairs(tmp_path / "d.db", ratios=ratios)
    calibrate_focal_lengths(tmp_path / "d.db")
    assert focal_lengths(tmp_path / "d.db") == pytest.approx([*ratios[:5], 1.2], abs=0.006)

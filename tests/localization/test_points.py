"""The 3D points of a COLMAP model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.localization.points import ModelPoints, write_model_keypoints
from tests.localization.queries import CAMERA, TRUTH


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three images: a and b share points, c has its own; every other keypoint has a point."""
    built = pycolmap.Reconstruction()
    for number, name in enumerate(("a", "b", "c"), start=1):
        camera = pycolmap.Camera(CAMERA.todict())
        camera.camera_id = number
        built.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=f"{name}.jpg", camera_id=number, image_id=number)
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(np.array([10.0 * k + number, 20.0])) for k in range(6)]
        )
        built.add_image_with_trivial_frame(image, TRUTH)
    for k in (0, 2, 4):
        both = [pycolmap.TrackElement(1, k), pycolmap.TrackElement(2, k)]
        built.add_point3D(np.array([k, 0.0, 5.0]), pycolmap.Track(both))
        built.add_point3D(np.array([k, 1.0, 5.0]), pycolmap.Track([pycolmap.TrackElement(3, k)]))
    built.write(tmp_path)
    return tmp_path


def test_points_of_a_model_follow_its_keypoints(model: Path, tmp_path: Path) -> None:
    points = ModelPoints(model, prefix="database/")
    assert points.names() == ["database/a.jpg", "database/b.jpg", "database/c.jpg"]
    known = points.points("database/b.jpg")
    np.testing.assert_array_equal(known[::2], [[0, 0, 5], [2, 0, 5], [4, 0, 5]])
    assert np.isnan(known[1::2]).all()
    assert points.clusters([*points.names(), "database/x.jpg"]) == [
        ["database/a.jpg", "database/b.jpg"],
        ["database/c.jpg"],
    ]
    write_model_keypoints(points, ["database/b.jpg"], tmp_path / "k.h5")
    with FeatureReader(tmp_path / "k.h5") as reader:
        expected = [[10.0 * k + 1.5, 19.5] for k in range(6)]
        np.testing.assert_allclose(reader.keypoints("database/b.jpg"), expected)
        np.testing.assert_array_equal(reader.scores("database/b.jpg"), [1, 0, 1, 0, 1, 0])


def test_a_model_that_was_made_again_has_another_fingerprint(model: Path) -> None:
    before = ModelPoints(model).fingerprint()
    assert ModelPoints(model).fingerprint() == before
    assert ModelPoints(model, prefix="database/").fingerprint() != before
    changed = pycolmap.Reconstruction(model)
    changed.points3D[1].xyz = np.array([0.0, 0.0, 6.0])
    changed.write(model)
    assert ModelPoints(model).fingerprint() != before


def test_a_model_without_points_is_refused(tmp_path: Path) -> None:
    pycolmap.Reconstruction().write(tmp_path)
    with pytest.raises(EdmHlocError, match="no 3D points"):
        ModelPoints(tmp_path)

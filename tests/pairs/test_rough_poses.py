"""Pairs of cameras whose poses are not exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pairs.covisibility import for_rough_poses


def row(count: int, turns: dict[int, float], spread: float = 0.0) -> pycolmap.Reconstruction:
    """Cameras in a row that look ahead; some turned about the vertical by degrees."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=8, height=6, params=[8, 8, 4, 3], camera_id=1)
    model.add_camera_with_trivial_rig(camera)
    for i in range(count):
        angle = np.radians(turns.get(i, spread * i))
        R = pycolmap.Rotation3d(np.array([0.0, angle, 0.0]))
        pose = pycolmap.Rigid3d(R, -R.matrix() @ np.array([float(i), 0, 0]))
        image = pycolmap.Image(name=f"frame_{i}.jpg", camera_id=1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pose)
    return model


def test_few_cameras_are_all_paired() -> None:
    pairs = for_rough_poses(row(5, {2: 180.0}), Path("poses"), 4)
    assert len(pairs) == 10


def test_a_camera_with_a_wrong_pose_keeps_its_neighbours_by_name() -> None:
    pairs = for_rough_poses(row(12, {9: 180.0}), Path("poses"), 2)
    of_wrong = {name for pair in pairs if "frame_9.jpg" in pair for name in pair}
    assert of_wrong == {f"frame_{i}.jpg" for i in (6, 7, 8, 9, 10, 11)}
    assert ("frame_0.jpg", "frame_6.jpg") not in pairs


def test_poses_that_look_everywhere_are_refused() -> None:
    with pytest.raises(
        EdmHlocError, match=r"No two cameras of poses look within 30°.*--pairs auto"
    ):
        for_rough_poses(row(8, {}, spread=45.0), Path("poses"), 3)

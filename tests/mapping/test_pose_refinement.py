"""Poses from elsewhere are refined wherever they are, or are said to be lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.pose_refinement import refine_poses
from tests.mapping.scenes import CAMERA, NAMES, THREADS, assert_near_truth, build, make_scene


def test_a_wrong_photo_that_nothing_connects_with_the_others_is_lost(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES, outliers=0.0)
    apart = set(NAMES[-2:])
    pairs = [pair for pair in scene.pairs if len(apart & set(pair)) != 1]
    options = CameraOptions(known=dict.fromkeys(NAMES, CAMERA))
    build(scene, tmp_path / "d.db", options, pairs=pairs)
    given = read_model(scene.truth)
    last = posed_images(given)[NAMES[-1]]
    upside_down = pycolmap.Rotation3d(np.array([0.0, 0.0, 1.0, 0.0]))
    last.frame.rig_from_world = pycolmap.Rigid3d(
        upside_down * last.cam_from_world().rotation, last.cam_from_world().translation
    )
    fixed = replace(THREADS, refine_intrinsics=False)
    mapped, poses = refine_poses(tmp_path / "d.db", scene.images, tmp_path / "m", given, fixed)
    assert {c.name for c in poses.changes if c.state == "lost"} == apart
    assert set(mapped.unregistered) == apart
    assert posed_images(read_model(tmp_path / "m")).keys() == set(NAMES) - apart


def test_poses_in_the_coordinates_of_a_map_are_refined(tmp_path: Path) -> None:
    """Five thousand kilometres from the origin, which an adjustment turns the cameras about."""
    scene = make_scene(tmp_path, NAMES, noise=0.3, outliers=0.0, number=200)
    build(scene, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(NAMES, CAMERA)))
    truth = read_model(scene.truth)
    truth.transform(
        pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), np.array([691234.5, 5335678.9, 512.0]))
    )
    truth.write_text(scene.truth)
    rng = np.random.default_rng(1)
    for image in posed_images(truth).values():  # turned by some 2° and moved by some 2 % about
        pose, centre = image.cam_from_world(), image.projection_center()
        R = pycolmap.Rotation3d(rng.normal(0, 0.02, 3)).matrix() @ pose.rotation.matrix()
        moved = -R @ (centre + rng.normal(0, 0.06, 3))
        image.frame.rig_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(R), moved)
    fixed = replace(THREADS, refine_intrinsics=False)
    _, poses = refine_poses(tmp_path / "d.db", scene.images, tmp_path / "m", truth, fixed)
    assert {change.state for change in poses.changes} == {"refined"}
    assert max(change.moved for change in poses.changes) < 0.2
    assert_near_truth(scene, tmp_path / "m", 0.1, 0.2)


def test_poses_whose_refinement_contradicts_the_matches_are_refused(tmp_path: Path) -> None:
    """Camera from world instead of world from camera: between these cameras of small angles, the
    rotations are near enough to be refined, into a model that is bent."""
    scene = make_scene(tmp_path, NAMES, noise=0.3, outliers=0.02, number=250)
    build(scene, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(NAMES, CAMERA)))
    given = read_model(scene.truth)
    for image in posed_images(given).values():
        image.frame.rig_from_world = image.cam_from_world().inverse()
    fixed = replace(THREADS, refine_intrinsics=False)
    with pytest.raises(EdmHlocError, match=r"contradict the poses of 6 of 6 .*world from camera"):
        refine_poses(tmp_path / "d.db", scene.images, tmp_path / "m", given, fixed)
    assert not (tmp_path / "m").exists()

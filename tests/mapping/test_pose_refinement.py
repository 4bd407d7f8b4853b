"""Poses from elsewhere that cannot be mended are said to be lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.pose_refinement import refine_poses
from tests.mapping.scenes import CAMERA, NAMES, THREADS, build, make_scene


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

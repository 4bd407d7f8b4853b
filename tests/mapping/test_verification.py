"""Geometric verification, by RANSAC and by known poses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.mapping import verification
from edm_hloc.mapping.triangulation import triangulate
from tests.mapping.scenes import NAMES, THREADS, Scene, build, make_scene


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the keypoints of each image were read."""
    number: Counter[int] = Counter()
    read = pycolmap.Database.read_keypoints

    def counted(database: pycolmap.Database, image_id: int) -> np.ndarray:
        number[image_id] += 1
        return read(database, image_id)

    monkeypatch.setattr(pycolmap.Database, "read_keypoints", counted)
    return number


def test_verification_reads_keypoints_once(
    scene: Scene, tmp_path: Path, reads: Counter[int]
) -> None:
    build(scene, tmp_path / "d.db")
    assert set(reads.values()) == {1}


def test_known_poses_keep_few_images_in_memory(
    scene: Scene, tmp_path: Path, reads: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inliers = []
    for room, most in ((256, 1), (2, 5)):  # of 6 images, each in 5 pairs
        monkeypatch.setattr(verification, "CACHED_IMAGES", room)
        reads.clear()
        verified, _ = triangulate(
            scene.truth, scene.matched, tmp_path / "d.db", tmp_path / "m", THREADS
        )
        assert max(reads.values()) == most
        inliers.append(verified.inliers)
    assert inliers[0] == inliers[1]


def test_keypoint_uncertainty_widens_the_band(tmp_path: Path) -> None:
    inliers = []
    for uncertainty in (None, 3.0):
        folder = tmp_path / str(uncertainty)
        scene = make_scene(folder, NAMES[:3], noise=4.0, outliers=0, uncertainty=uncertainty)
        verified, _ = triangulate(
            scene.truth, scene.matched, folder / "d.db", folder / "m", THREADS
        )
        inliers.append(verified.inliers / verified.matches)
    assert inliers[0] < 0.6  # 4 px of noise in both images, a band of 4 px
    assert inliers[1] > 0.9

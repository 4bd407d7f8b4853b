"""Geometric verification, by RANSAC and by known poses."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.journal import journal_path
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping import database_reading
from edm_hloc.mapping.database import build_database
from edm_hloc.mapping.triangulation import triangulate
from tests.mapping.scenes import NAMES, THREADS, Scene, build, make_scene, rows


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
        monkeypatch.setattr(database_reading, "CACHED_IMAGES", room)
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


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each pair that is verified; at -1 in the first place the next one stops."""
    made: list[int] = []
    estimate = pycolmap.estimate_two_view_geometry

    def counted(*arguments: object) -> pycolmap.TwoViewGeometry:
        if made[:1] == [-1] and len(made) > 5:
            raise StoppedError
        made.append(len(made))
        return estimate(*arguments)

    monkeypatch.setattr(pycolmap, "estimate_two_view_geometry", counted)
    return made


def test_verified_pairs_are_kept_when_it_stops(
    scene: Scene, tmp_path: Path, estimates: list[int]
) -> None:
    build(scene, tmp_path / "whole.db")
    every = len(estimates)
    assert every == 15

    estimates[:] = [-1]
    with pytest.raises(StoppedError):
        build(scene, tmp_path / "d.db")
    assert [path.name for path in tmp_path.iterdir() if "d.db" in path.name] == [".d.db.part"]

    estimates.clear()
    build(scene, tmp_path / "d.db")
    assert len(estimates) == every - 5  # those that were verified before
    assert rows(tmp_path / "d.db") == rows(tmp_path / "whole.db")
    assert not journal_path(tmp_path / "d.db").exists()


def test_verified_pairs_of_other_options_are_not_taken(
    scene: Scene, tmp_path: Path, estimates: list[int]
) -> None:
    for change in (
        lambda: build_database(tmp_path / "d.db", scene.matched, None, replace(THREADS, seed=5)),
        lambda: build(scene, tmp_path / "d.db", CameraOptions(mode="single")),
        lambda: build(scene, tmp_path / "d.db", pairs=scene.pairs[:14]),
        lambda: os.utime(scene.matches, (1, 1)) or build(scene, tmp_path / "d.db"),
    ):
        estimates[:] = [-1]
        with pytest.raises(StoppedError):
            build(scene, tmp_path / "d.db")
        estimates.clear()
        change()
        assert len(estimates) >= 14


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_kill_loses_no_verified_pair(scene: Scene, tmp_path: Path, estimates: list[int]) -> None:
    build(scene, tmp_path / "whole.db")
    code = f"""
        import os, signal
        from pathlib import Path
        import pycolmap
        from edm_hloc.mapping.database import MatchedImages, build_database
        from edm_hloc.mapping.options import MappingOptions
        estimate, number = pycolmap.estimate_two_view_geometry, 0
        def stop(*arguments):
            global number
            number += 1
            if number > 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return estimate(*arguments)
        pycolmap.estimate_two_view_geometry = stop
        files = [Path(p) for p in {[str(scene.images), str(scene.features), str(scene.matches)]!r}]
        matched = MatchedImages(*files, {scene.pairs!r})
        build_database(Path({str(tmp_path / "d.db")!r}), matched, None, MappingOptions(threads=1))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -9
    estimates.clear()
    build(scene, tmp_path / "d.db")
    assert len(estimates) <= 15 - 9 + 3  # the last ones may have been on their way
    assert rows(tmp_path / "d.db") == rows(tmp_path / "whole.db")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

"""benchmarks/room_pairs.py: pairs from a film with depth, whose overlap has a closed form."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from edm_hloc.pairs.with_truth import read_pairs_with_gt

SCRIPT = Path(__file__).parents[2] / "benchmarks/room_pairs.py"
DEPTH, STEP, FRAMES = 2.0, 0.04, 60  # metres of a wall, and of the camera from frame to frame


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("room_pairs")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A camera that moves to the right before a wall; the first frame is number 5."""
    folder = tmp_path / "film"
    folder.mkdir()
    for k in range(FRAMES):
        stem = str(folder / f"frame-{k + 5:06d}.")
        pose = np.eye(4)
        pose[0, 3] = STEP * k
        np.savetxt(stem + "pose.txt", pose)
        cv2.imwrite(stem + "depth.png", np.full((480, 640), 1000 * DEPTH, np.uint16))
        cv2.imwrite(stem + "color.jpg", np.zeros((480, 640), np.uint8))
    return folder


def test_overlap_of_a_wall(benchmark: ModuleType, film: Path) -> None:
    frames = benchmark.Film(film)
    for apart in (10, 25, 50):
        T_ab = np.linalg.inv(frames.poses[apart]) @ frames.poses[0]
        seen = 1 - benchmark.K_DEPTH[0, 0] * STEP * apart / DEPTH / 640
        assert frames.overlap(0, apart, T_ab) == pytest.approx(max(seen, 0), abs=0.03)
    backwards = np.diag([1.0, 1.0, -1.0, 1.0])
    assert frames.overlap(0, 1, backwards) == 0


def test_pairs_of_each_range(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.txt"
    command = [sys.executable, str(SCRIPT), str(film), str(out), "--pairs", "2"]
    subprocess.run(command, check=True, capture_output=True)
    pairs = read_pairs_with_gt(out)
    moved = [abs(float(pair.T_0to1[0, 3])) for pair in pairs]
    assert len(pairs) == 6
    assert all(0.79 < m < FRAMES * STEP for m in moved)  # 20 frames and more
    assert min(moved[:2]) > max(moved[4:])  # little overlap first
    for pair in pairs:
        number0, number1 = (int(name[6:12]) for name in (pair.name0, pair.name1))
        assert pair.T_0to1[0, 3] == pytest.approx(STEP * (number0 - number1))


def test_another_folder_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), str(tmp_path / "pairs.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "holds no two frames" in done.stderr
    assert "Traceback" not in done.stderr


def test_frames_without_photo_or_depth_are_left_out(benchmark: ModuleType, film: Path) -> None:
    (film / "frame-000005.color.jpg").unlink()
    (film / "frame-000007.depth.png").unlink()
    frames = benchmark.Film(film)
    assert frames.left_out == 2
    assert (frames.name(0), frames.name(1)) == ("frame-000006.color.jpg", "frame-000008.color.jpg")
    assert frames.poses[1][0, 3] == pytest.approx(3 * STEP)
    assert frames.depth(1).max() == DEPTH


@pytest.mark.parametrize("kind", ["depth.png", "pose.txt"])
def test_damaged_frames_are_named(film: Path, tmp_path: Path, kind: str) -> None:
    for path in film.glob(f"*.{kind}"):
        path.write_text("damaged")
    command = [sys.executable, str(SCRIPT), str(film), str(tmp_path / "pairs.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert f".{kind} is no" in done.stderr
    assert "Traceback" not in done.stderr

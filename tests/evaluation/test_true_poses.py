"""benchmarks/true_poses.py: one scene of cameras in the forms of three data sets."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.localization.poses import read_poses

SCRIPT = Path(__file__).parents[2] / "benchmarks/true_poses.py"
ROTATIONS = Rotation.random(6, random_state=3).as_matrix()  # world from camera
CENTRES = np.random.default_rng(3).normal(size=(6, 3))
USED = (0, 2, 5)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("true_poses")


def row(form: str, i: int) -> list[str | float]:
    R, c = ROTATIONS[i], CENTRES[i]
    if form == "middlebury":
        K = [900.0, 0.0, 320.0, 0.0, 900.0, 240.0, 0.0, 0.0, 1.0]
        return [f"photo_{i}.png", *K, *R.T.ravel().tolist(), *(-R.T @ c).tolist()]
    if form == "tartanair":  # the columns are forward, right and down, not right, down, forward
        axes = np.column_stack([R[:, 2], R[:, 0], R[:, 1]])
        return [*c.tolist(), *Rotation.from_matrix(axes).as_quat().tolist()]
    flipped = R * [[1, -1, -1], [-1, 1, 1], [-1, 1, 1]]  # y and z of both frames
    return [*c.tolist(), *flipped.ravel().tolist()]


@pytest.mark.parametrize("form", ["middlebury", "tartanair", "tsukuba"])
def test_all_forms_tell_the_same_cameras(benchmark: ModuleType, form: str, tmp_path: Path) -> None:
    for i in USED:
        Image.new("L", (64, 48)).save(tmp_path / f"photo_{i}.png")
    file = tmp_path / "cameras.txt"
    lines = [" ".join(str(x) for x in row(form, i)) for i in range(6)]
    file.write_text("\n".join((["6"] if form == "middlebury" else []) + lines))
    poses = benchmark.true_poses(form, file, tmp_path)
    assert list(poses) == [f"photo_{i}.png" for i in USED]
    for i, pose in zip(USED, poses.values(), strict=True):
        assert pose.rotation.matrix() == pytest.approx(ROTATIONS[i].T)
        assert pose.inverse().translation == pytest.approx(CENTRES[i])
    benchmark.write_poses(tmp_path / "poses.txt", poses)
    assert list(read_poses(tmp_path / "poses.txt", list(poses))) == list(poses)
    file.write_text("\n".join(lines[:5]))
    with pytest.raises(EdmHlocError, match=r"has no pose for photo_5\.png"):
        benchmark.true_poses(form, file, tmp_path)
    file.write_text("\n".join([*lines, "1 2 3"]))
    with pytest.raises(EdmHlocError, match="line 7: expected"):
        benchmark.true_poses(form, file, tmp_path)

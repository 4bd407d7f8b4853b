"""Panoramas of a rendered room, by the commands: views, their model, and the same with its rig."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from edm_hloc import cli
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.evaluation.models import compare
from edm_hloc.images.panoramas import view_rotation

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*words: object) -> None:
    assert cli.main([str(word) for word in words]) == 0


@pytest.mark.slow
def test_panoramas_of_a_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = importlib.import_module("panoramas")
    poses = benchmark.render_panoramas(tmp_path / "panoramas", 5, 1200, 3)
    views, out, rigid = (tmp_path / name for name in ("views", "out", "rigid"))
    run("views", tmp_path / "panoramas", views)
    said = capsys.readouterr().out
    side = 2 * round(1200 / (2 * np.pi))
    assert f"Views       6 of each of 5 panoramas, {side} × {side} px" in said
    known = f"SIMPLE_PINHOLE {side} {side} {side / 2} {side / 2} {side / 2}"
    assert f'edm-hloc reconstruct {views} OUT --known "{known}"' in said
    benchmark.write_truth(tmp_path / "truth", poses, views, side)
    run("reconstruct", views, out, "--known", known)
    rig = views / "rig_config.json"
    run("refine-model", out / "model", views, rigid, "--keep-intrinsics", "--rig", rig)
    assert "Rigs        30 photos in 5 frames" in capsys.readouterr().out
    alone, together = (compare(m, tmp_path / "truth") for m in (out / "model", rigid))
    assert together.registered == 30
    assert together.rotation_max < 0.01
    assert together.position_max < 0.02
    assert together.position_median < alone.position_median
    posed = posed_images(read_model(rigid))
    for name, image in posed.items():
        folder, _, file = name.partition("/")
        front = posed[f"yaw_000/{file}"]
        relative = (image.cam_from_world() * front.cam_from_world().inverse()).matrix()
        expected = view_rotation(float(folder.removeprefix("yaw_")))
        assert relative[:, :3] == pytest.approx(expected, abs=1e-9)
        assert relative[:, 3] == pytest.approx(np.zeros(3), abs=1e-9)

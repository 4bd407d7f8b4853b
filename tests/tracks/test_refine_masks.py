"""Refined tracks come into no masked part of a photo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.cli import main
from edm_hloc.tracks import alignment, refine
from edm_hloc.tracks.adjustment import Kept
from edm_hloc.tracks.refine import refine_model
from edm_hloc.tracks.rounds import BetweenRounds
from tests.tracks import test_refine
from tests.tracks.test_refine import SIZE, THREADS, Roof

roof = test_refine.roof

MASKED = ("2.png", "5.png")
BLACK_FROM = 120  # pixels of the photo, to the right


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Masks of two of the photos, at half their size."""
    folder = tmp_path / "masks"
    folder.mkdir()
    mask = np.full((SIZE[1] // 2, SIZE[0] // 2), 255, np.uint8)
    mask[:, BLACK_FROM // 2 :] = 0
    for name in MASKED:
        cv2.imwrite(str(folder / name), mask)
    return folder


def added(roof: Roof, refined: Path) -> tuple[int, int]:
    """Observations in the two photos that the model did not have: in the black part, and others."""
    before, after = (posed_images(read_model(folder)) for folder in (roof.model, refined))
    x = np.array(
        [
            point.xy[0]
            for name in MASKED
            for point in list(after[name].points2D)[len(before[name].points2D) :]
            if point.has_point3D()
        ]
    )
    # an observation moves by up to a pixel from where it was expected
    return int((x > BLACK_FROM + 1).sum()), int((x < BLACK_FROM).sum())


def test_points_are_not_looked_for_in_masked_parts(roof: Roof, masks: Path, tmp_path: Path) -> None:
    kept = Kept(intrinsics=True)
    refine_model(roof.model, roof.images, tmp_path / "whole", kept, THREADS)
    black, white = added(roof, tmp_path / "whole")
    assert min(black, white) > 20
    between = BetweenRounds(masks={name: masks / name for name in MASKED})
    refine_model(roof.model, roof.images, tmp_path / "masked", kept, THREADS, between)
    black_then, white_then = added(roof, tmp_path / "masked")
    assert black_then == 0
    assert white_then > 0.9 * white


def test_the_command_heeds_the_masks_of_the_run_that_made_the_model(
    roof: Roof, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(roof.model, run / "model")
    shutil.copytree(roof.model, run / "model_parts" / "2")
    settings = {"command": "reconstruct", "masks": str(masks)}
    (run / "run.json").write_text(json.dumps({"settings": settings, "folder": str(run)}))
    for model in (run / "model", run / "model_parts" / "2"):
        assert main(["refine-model", str(model), str(roof.images), str(out)]) == 0
        black, white = added(roof, out)
        assert black == 0
        assert white > 20
    assert "masked parts" not in capsys.readouterr().err
    masks.rename(tmp_path / "elsewhere")
    assert main(["refine-model", str(run / "model"), str(roof.images), str(out)]) == 0
    said = capsys.readouterr().err
    assert f"masked parts of photos: No such folder of masks: {masks}. Check the path" in said
    assert added(roof, out)[0] > 20


def test_an_interrupted_refinement_with_other_masks_begins_anew(
    roof: Roof, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = BetweenRounds(masks={name: masks / name for name in MASKED})
    out, rounds = tmp_path / "out", []

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    def align(*arguments: object) -> object:
        rounds.append(arguments)
        return alignment.align(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(refine, "possible_observations", kill)  # the second round begins with it
        with pytest.raises(KeyboardInterrupt):
            refine_model(roof.model, roof.images, out, None, THREADS, between)
    cv2.imwrite(str(masks / MASKED[0]), np.zeros((SIZE[1], SIZE[0]), np.uint8))
    monkeypatch.setattr(refine, "align", align)
    refine_model(roof.model, roof.images, out, None, THREADS, between)
    assert len(rounds) == 2

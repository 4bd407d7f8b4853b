"""Runs with masks whose tracks are refined: points are not looked for where masks are black."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.images.find import find_images
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct, triangulate_model
from tests.pipelines.test_refined_runs import DEFAULT
from tests.scenes import TruthMatcher

BLACK_FROM = 160  # pixels of the photo, to the right


def _added(out: Path, names: list[str]) -> tuple[int, int]:
    """Observations of points by no keypoint of the matches: in the right half, and in the left."""
    photos, black, white = posed_images(read_model(out / "model")), 0, 0
    with FeatureReader(out / "features.h5") as features:
        for name in names:
            matched = len(features.keypoints(name))
            more = [p for p in list(photos[name].points2D)[matched:] if p.has_point3D()]
            black += sum(bool(p.xy[0] > BLACK_FROM + 1) for p in more)
            white += sum(bool(p.xy[0] < BLACK_FROM) for p in more)
    return black, white


@pytest.mark.parametrize("triangulated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_points_are_not_looked_for_in_masked_parts(
    triangulated: bool, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, names = scene / "images", find_images(scene / "images")
    masked = names[1::3]
    pairs = list(itertools.combinations(names, 2))
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, BLACK_FROM:] = 0
    (tmp_path / "masks").mkdir()
    for name in masked:
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), mask)
    monkeypatch.chdir(tmp_path)

    def run(out: Path, config: ReconstructionConfig) -> dict[str, object]:
        matcher = TruthMatcher(scene)
        if triangulated:
            found = triangulate_model(scene / "truth", images, out, pairs, matcher, config)
        else:
            found = reconstruct(images, out, pairs, matcher, config)
        return found.settings

    config = replace(DEFAULT, refine_tracks=True)
    whole = run(tmp_path / "whole", config)
    assert whole["masks"] is None
    black, white = _added(tmp_path / "whole", masked)
    settings = run(tmp_path / "masked", replace(config, masks=Path("masks")))
    assert settings["masks"] == str(tmp_path / "masks")  # to be found from any folder
    assert min(black, white) > 10
    black, white = _added(tmp_path / "masked", masked)
    assert black == 0
    assert white > 10

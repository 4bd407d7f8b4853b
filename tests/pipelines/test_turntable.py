"""The background of a turning object takes no keypoints, and the run says that it was there."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.matches import Matches
from edm_hloc.cli.summaries import print_reconstruction
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.mapping.backdrop import BackdropSummary
from edm_hloc.matchers.base import Features
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pipelines.matching import MATCHING_FILES, PairsToMatch, match_and_quantize
from edm_hloc.pipelines.reconstruct import (
    RECONSTRUCTION_KEYPOINTS,
    ReconstructionConfig,
    reconstruct,
)
from edm_hloc.pipelines.run import Run
from tests.fakes import FakeMatcher
from tests.mapping.test_still import SIZE, matched_in
from tests.mapping.test_still import photos as points_of

NAMES = [f"{i}.png" for i in range(6)]
PAIRS = list(itertools.combinations(NAMES, 2))
MATCHING = MatchingConfig(shown=False)


class Turntable(FakeMatcher):
    """The true matches of an object on a turntable; photo i has the grey value 20 · i."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self._matched = matched_in(points_of("opaque turntable", rng, aimed=0.5))

    def find(self, features0: Features, features1: Features) -> Matches:
        found = self._matched((str(features0.data // 20), str(features1.data // 20)))
        assert found is not None
        points0, points1 = (points.astype(np.float32) for points in found)
        return Matches(points0, points1, np.ones(len(points0), np.float32))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(NAMES):
        Image.new("L", SIZE, 20 * i).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.mark.parametrize("turntable", [False, True])
def test_keypoints_are_of_the_object(turntable: bool, photos: Path, tmp_path: Path) -> None:
    matcher, out = Turntable(), tmp_path / "out"
    to_match = PairsToMatch(photos, PAIRS, turntable=turntable)
    with Run.begin(out, {"command": "x"}, matcher, MATCHING_FILES, overwrite=False) as run:
        match_and_quantize(run, to_match, matcher, RECONSTRUCTION_KEYPOINTS, MATCHING)
    aside = inside = 0
    with FeatureReader(out / "features.h5") as features:
        for name in NAMES:
            x = features.keypoints(name)[:, 0]
            aside += int((np.abs(x - 320) > 240).sum())
            inside += int((np.abs(x - 320) < 100).sum())
    assert inside > 1500
    if turntable:
        assert run.results["background"]["photos"] == tuple(NAMES)
        assert run.results["background"]["matches"] > 3000
        assert aside < 0.1 * inside
    else:
        assert "background" not in run.results
        assert aside > 0.3 * inside


def test_the_run_says_so(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ReconstructionConfig(matching=MATCHING, refine_tracks=False)
    run = reconstruct(photos, tmp_path / "out", PAIRS, Turntable(), config)
    backdrop = BackdropSummary.of_run(run.results)
    assert backdrop is not None
    assert backdrop.photos == tuple(NAMES)
    assert backdrop.matches >= run.results["background"]["matches"] > 3000
    again = reconstruct(photos, tmp_path / "out", PAIRS, Turntable(), config)
    assert BackdropSummary.of_run(again.results) == backdrop
    print_reconstruction(again, 1.0)
    assert "of 6 photos stays as it is, or moves as a whole" in capsys.readouterr().out

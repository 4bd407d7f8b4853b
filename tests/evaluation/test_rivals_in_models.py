"""benchmarks/rivals_in_models.py: keypoints of rivals as they are, through our mapping."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("rivals_in_models")


def test_keypoints_are_those_of_all_pairs(benchmark: ModuleType, tmp_path: Path) -> None:
    """A point that two pairs share is one keypoint; nothing moves, no match is lost."""
    rng = np.random.default_rng(0)
    points = {name: rng.uniform(0, 100, (30, 2)).astype(np.float32) for name in "abc"}
    chosen = {
        pair: (rng.permutation(30)[:20], rng.permutation(30)[:20])
        for pair in (("a", "b"), ("a", "c"), ("b", "c"))
    }
    with RawMatchWriter(tmp_path / "raw", {"matcher": "fake"}) as writer:
        for (a, b), (i, j) in chosen.items():
            writer.add(a, b, Matches(points[a][i], points[b][j], np.full(20, 0.5, np.float32)))
    pairs = [*chosen, ("a", "d")]  # the last one was not matched
    with RawMatchReader(tmp_path / "raw") as raw:
        files = benchmark.keypoints_as_they_are(raw, pairs, tmp_path)
    with FeatureReader(files.features) as features, MatchReader(files.matches) as matches:
        for name in "abc":
            keypoints = features.keypoints(name)
            used = [i if a == name else j for (a, b), (i, j) in chosen.items() if name in (a, b)]
            assert len(keypoints) == len(np.unique(np.concatenate(used)))
        for (a, b), (i, j) in chosen.items():
            found, _ = matches.matches(a, b)
            first, second = features.keypoints(a)[found[:, 0]], features.keypoints(b)[found[:, 1]]
            expected = np.hstack([points[a][i], points[b][j]])
            np.testing.assert_array_equal(
                np.unique(np.hstack([first, second]), axis=0), np.unique(expected, axis=0)
            )


def test_sift_makes_a_model(
    benchmark: ModuleType,
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth = str(scene / "truth")
    command = ["rivals", str(scene / "images"), str(tmp_path), "--truth", truth, "--known", truth]
    monkeypatch.setattr(sys, "argv", [*command, "--matchers", "sift"])
    benchmark.main()
    first = capsys.readouterr().out
    assert "| sift | 7 of 7 |" in first
    found = json.loads((tmp_path / "sift.json").read_text())
    assert found["points"] > 100
    assert found["rotation_median"] < 0.2
    assert found["matching_cpu_s"] > 0.1
    (tmp_path / "sift.json").write_text(json.dumps({**found, "points": 12345}))
    benchmark.main()  # what is finished is not done again
    assert "12,345" in capsys.readouterr().out

"""benchmarks/speed.py: its clock for stages, and the naive way's files."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.matching.writer import RawMatchWriter


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks can be imported."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def benchmark(benchmarks: None) -> ModuleType:
    return importlib.import_module("refined_pairs")


def test_stages_are_timed_without_the_stages_they_call(benchmark: ModuleType) -> None:
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def outer() -> str:
        wait(1)
        room.inner()
        room.inner()
        wait(2)
        return "done"

    room = SimpleNamespace(inner=lambda: wait(5), outer=outer)
    stages = benchmark.Stages(lambda: now)
    with stages.timed([(room, "inner", "in"), (room, "outer", "out")]):
        assert room.outer() == "done"
        room.inner()
    assert stages.seconds == {"in": 15, "out": 3}
    assert room.outer is outer


def test_the_table_ends_with_the_ratios_to_refine_none(benchmark: ModuleType) -> None:
    plain = {"encode, --refine none": 0.1, "a pair, --refine none": 0.2}
    sizes = {"640×416": plain | {"encode": 0.11, "a pair": 0.3, "alignment": 0.02}}
    rows = {row["stage"]: row["640×416, ms"] for row in benchmark.rows_of(sizes)}
    assert rows["alignment"] == 20
    assert rows["encode, of --refine none"] == "1.10 ×"
    assert rows["a pair, of --refine none"] == "1.50 ×"


def test_the_instructions_of_the_processor_are_named(benchmark: ModuleType) -> None:
    assert benchmark.instructions()


def test_the_naive_way_writes_the_same_kind_of_files(benchmarks: None, tmp_path: Path) -> None:
    speed = importlib.import_module("speed")
    points = np.array([[10, 10], [30, 20], [50, 60]], np.float32)
    with RawMatchWriter(tmp_path / "raw", {}) as writer:
        writer.add("a.jpg", "b.jpg", Matches(points, points + 100, np.ones(3, np.float32)))
    speed._naive_merge([("a.jpg", "b.jpg")], tmp_path)
    index, scores = MatchReader(tmp_path / "matches.h5").matches("a.jpg", "b.jpg")
    features = FeatureReader(tmp_path / "features.h5")
    found = [features.keypoints(name)[index[:, i]] for i, name in enumerate(("a.jpg", "b.jpg"))]
    np.testing.assert_allclose(np.sort(found[0][:, 0]), [10, 30, 50], atol=1)  # 2 px bins
    np.testing.assert_array_equal(found[1] - found[0], np.full((3, 2), 100))
    np.testing.assert_array_equal(scores, np.ones(3))

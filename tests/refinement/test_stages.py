"""The benchmark's clock for stages: what a stage takes without the stages that it calls."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/refined_pairs.py"
    spec = importlib.util.spec_from_file_location("refined_pairs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

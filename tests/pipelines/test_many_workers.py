"""benchmarks/many_workers.py: the simulated cluster, and the table on paper."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shard_queue import ShardQueue, work_off
from edm_hloc.pipelines.shards import merge_shards
from tests.fakes import FakeMatcher

COSTS = {"encode_s": 1.0, "pair_s": 2.0}


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import many_workers

    return many_workers


def test_a_simulated_cluster_loses_nothing(benchmark_module: ModuleType, tmp_path: Path) -> None:
    simulation = benchmark_module
    pairs = simulation.pairs_along_a_street(600)
    assert len(set(pairs)) == 600
    plan = make_plan(tmp_path, tmp_path, pairs, FakeMatcher(), shards=6)
    cluster = simulation.Cluster(5, 2, life=0.1, computer_life=0.05, away=0.01)
    crew = simulation.SimulatedCrew(plan, [50] * 6, cluster, {4: 17}, COSTS)
    queue = ShardQueue(plan.pairs)
    finished = []
    work_off(
        queue, crew, lambda piece, done, whole: finished.append(piece.shard) if whole else None
    )
    assert sorted(finished) == [1, 2, 3, 4, 5, 6]
    assert crew.deaths > 3
    assert crew.removals > 3
    assert {shard: list(left) for shard, left in queue.left_out.items()} == {4: [17]}
    # of each failure at most what took the last tenth of a second, and the pair it was at, is lost
    failures = crew.deaths + sum(n for kind, n in queue.kinds.items() if kind == "node")
    assert 599 <= crew.computed <= 599 + failures
    assert crew.now * 5 > 599 * 2.0  # no worker does two things at once
    merged = merge_shards(plan)
    assert merged.pairs == 599
    with RawMatchReader(plan.raw_matches) as raw:
        assert Counter(raw.pairs()) == Counter(set(pairs) - {plan.pairs_of(4)[17]})


def test_without_failures_the_time_is_that_of_the_work(
    benchmark_module: ModuleType, tmp_path: Path
) -> None:
    simulation = benchmark_module
    pairs = simulation.pairs_along_a_street(400)
    plan = make_plan(tmp_path, tmp_path, pairs, FakeMatcher(), shards=4)
    cluster = simulation.Cluster(2, life=math.inf, computer_life=1e9, spread=0.0)
    crew = simulation.SimulatedCrew(plan, [50] * 4, cluster, {}, COSTS)
    work_off(ShardQueue(plan.pairs), crew, lambda *_: None)
    assert crew.now == pytest.approx((400 * 2.0 + 4 * 50 * 1.0) / 2)
    assert crew.computed == 400


def test_the_table_on_paper(benchmark_module: ModuleType) -> None:
    costs = json.loads(benchmark_module.COSTS.read_text())
    column = benchmark_module.on_paper(10**4, {**costs, "encode_s": 0.36, "pair_s": 0.36})
    assert column["pairs"] == "100,000"
    assert column["encodes"] == "11,000"
    assert column["matching, CPU hours"] == "11"  # (11,000 + 100,000) · 0.36 s
    table = (Path(__file__).parents[2] / "docs" / "scale.md").read_text("utf-8")
    assert benchmark_module.table() in table

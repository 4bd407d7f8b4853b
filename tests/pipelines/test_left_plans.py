"""Plans that an earlier run has left in the output folder: continued, or refused, but never mixed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pipelines import workers
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shards import match_shard
from edm_hloc.pipelines.spreading import spread_matching
from edm_hloc.pipelines.workers import match_in_processes
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import CrewOfOne, make_grey_photos, noted

NAMES = [f"{i:03d}.png" for i in range(9)]
PAIRS = list(itertools.combinations(NAMES, 2))
TWO = MatchingConfig(workers=2, shown=False)
OTHER_SETTINGS = (
    r"(?s)plan holds .*other settings.*\n  setting: 2.0 there, 1.0 now.*merge; or remove"
)


@pytest.fixture(autouse=True)
def this_process_is_the_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ProcessCrew", CrewOfOne)
    monkeypatch.setattr(workers, "_FEWEST_PAIRS", 3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_grey_photos(tmp_path / "photos", len(NAMES))
    return tmp_path / "photos"


def test_workers_do_not_take_over_a_plan_of_other_settings(photos: Path, tmp_path: Path) -> None:
    other, out = FakeMatcher(setting=2.0), tmp_path / "out"
    plan = make_plan(out, photos, PAIRS, other, shards=4)
    match_shard(plan, 1, other)
    matched = plan.file_of(1).read_bytes()
    with pytest.raises(EdmHlocError, match=OTHER_SETTINGS):
        match_in_processes(photos, PAIRS, FakeMatcher(), plan.raw_matches, TWO)
    assert plan.file_of(1).read_bytes() == matched
    assert not plan.raw_matches.exists()
    raw, matcher = plan.raw_matches, FakeMatcher()
    summary = match_in_processes(photos, PAIRS, matcher, raw, TWO, overwrite=True)
    assert (summary.matched, summary.resumed) == (len(PAIRS), 0)
    assert len(noted(out)) == len(PAIRS)


def test_a_run_does_not_remove_shards_of_other_settings(photos: Path, tmp_path: Path) -> None:
    other, out = FakeMatcher(setting=2.0), tmp_path / "out"
    plan = make_plan(out, photos, PAIRS, other, shards=2)
    match_shard(plan, 1, other)
    before = sorted(path.name for path in plan.folder.iterdir())
    with (
        Run.begin(out, {}, FakeMatcher(), [], overwrite=False) as run,
        pytest.raises(EdmHlocError, match=OTHER_SETTINGS),
    ):
        run.shards = 2
        spread_matching(run, photos, PAIRS, FakeMatcher())
    assert sorted(path.name for path in plan.folder.iterdir()) == before

"""Plans that an earlier run has left in the output folder are continued or refused, never mixed."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import BusyError, EdmHlocError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.matches import Matches
from edm_hloc.images.find import image_stamps
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.left_out import read_left_out
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.recent import RecentPairs
from edm_hloc.matching.shards import StoredPair
from edm_hloc.matching.stored_index import pairs_to_match
from edm_hloc.pipelines import workers
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shards import match_part, match_shard, merge_shards
from edm_hloc.pipelines.spreading import spread_matching
from edm_hloc.pipelines.workers import match_in_processes
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import CrewOfOne, make_grey_photos, noted

NAMES = [f"{i:03d}.png" for i in range(9)]
PAIRS = list(itertools.combinations(NAMES, 2))
TWO = MatchingConfig(workers=2, shown=False)
OTHER_SETTINGS = r"(?s)plan holds .*other settings.*  setting: 2.0 there, 1.0 now.*merge; or"


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


def test_what_interrupted_workers_have_stored_is_not_matched_again(
    photos: Path, tmp_path: Path
) -> None:
    out, matcher = tmp_path / "out", FakeMatcher()
    plan = make_plan(out, photos, PAIRS, matcher, shards=3)
    match_shard(plan, 1, matcher)
    match_part(plan, 2, (0, 5), matcher)  # and the same shard, killed later: one pair more
    last, one = plan.pairs_of(2)[5], np.ones(1, np.float32)
    stamps = image_stamps(photos, last)
    pair = StoredPair(last, (stamps[last[0]], stamps[last[1]]))
    recent = RecentPairs(plan.work_of(2), plan.provenance)
    recent.put(pair, Matches(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), one))
    recent.close()
    kept = plan.pairs[0] + 6
    for overwrite in (False, True):
        with FolderLock(plan.work_of(2)), pytest.raises(BusyError):
            match_in_processes(
                photos, PAIRS, FakeMatcher(), plan.raw_matches, TWO, overwrite=overwrite
            )
    again = FakeMatcher()
    summary = match_in_processes(photos, PAIRS, again, plan.raw_matches, TWO)
    assert (summary.matched, summary.resumed) == (len(PAIRS) - kept, kept)
    assert not again.matched  # by the workers, each once
    assert noted(out).total() == len(noted(out)) == len(PAIRS) - kept
    with RawMatchReader(plan.raw_matches) as raw:
        assert len(raw.read(*last).scores) == 1
        assert len(raw.pairs()) == len(PAIRS)


def test_a_run_does_not_remove_shards_of_other_settings(photos: Path, tmp_path: Path) -> None:
    other, out = FakeMatcher(setting=2.0), tmp_path / "out"
    plan = make_plan(out, photos, PAIRS, other, shards=2)
    match_shard(plan, 1, other)
    before = sorted(path.name for path in plan.folder.iterdir())
    run = Run(out, {}, shards=2)
    with pytest.raises(EdmHlocError, match=OTHER_SETTINGS):
        spread_matching(run, photos, PAIRS, FakeMatcher())
    assert sorted(path.name for path in plan.folder.iterdir()) == before


def make_deep_photos(root: Path, names: list[str], high: int) -> None:
    """Photos of 16 bits with values from 0 to about `high`."""
    root.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        values = np.random.default_rng(i).integers(0, high, (50, 40 + i))
        cv2.imwrite(str(root / name), values.astype(np.uint16))


def test_shards_are_not_merged_into_matches_of_other_settings(photos: Path, tmp_path: Path) -> None:
    other, out = FakeMatcher(setting=2.0), tmp_path / "out"
    raw = out / "raw_matches"
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=1)
    match_shard(plan, 1, FakeMatcher())
    match_pairs(photos, PAIRS[:3], other, raw)
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    refused = (
        r"(?s)raw_matches holds .*other settings.*2.0 there, 1.0 now.*or remove \S+raw_matches"
    )
    with pytest.raises(EdmHlocError, match=refused):
        merge_shards(plan)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before
    shutil.rmtree(plan.folder)
    with pytest.raises(EdmHlocError, match=refused):  # before anything is matched in vain
        make_plan(out, photos, PAIRS, FakeMatcher(), shards=1, overwrite=True)


def test_shards_are_not_merged_into_matches_of_other_levels(tmp_path: Path) -> None:
    photos, raw = tmp_path / "deep", tmp_path / "out" / "raw_matches"
    make_deep_photos(photos, NAMES[:5], 4096)
    pairs = list(itertools.combinations(NAMES[:5], 2))
    match_pairs(photos, pairs[:4], FakeMatcher(), raw)
    make_deep_photos(photos, ["new.png"], 16000)
    plan = make_plan(tmp_path / "out", photos, pairs[4:], FakeMatcher(), shards=1)
    match_shard(plan, 1, FakeMatcher())
    before = {path.name: path.read_bytes() for path in raw.iterdir()}
    with pytest.raises(EdmHlocError, match=rf"{photos} with the values 0 and 4096 .* 0 and 1\d"):
        merge_shards(plan)
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == before
    config = MatchingConfig(workers=2, shown=False)  # which forgets the levels, too
    again = match_in_processes(photos, pairs, FakeMatcher(), raw, config, overwrite=True)
    assert again.matched == len(pairs)


def test_a_pair_that_is_matched_later_is_not_left_out_any_more(
    photos: Path, tmp_path: Path
) -> None:
    out, (first, second) = tmp_path / "out", PAIRS[2:4]
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=1)
    match_shard(plan, 1, FakeMatcher(), left_out={first: "died", second: "died"})
    assert merge_shards(plan).left_out.keys() == {first, second}
    for pairs, left in (([first[::-1]], {second}), ([second], set())):
        plan = make_plan(out, photos, pairs, FakeMatcher(), shards=1, overwrite=True)
        match_shard(plan, 1, FakeMatcher())
        merge_shards(plan)
        assert read_left_out(plan.raw_matches).keys() == left
    summary = match_in_processes(photos, PAIRS, FakeMatcher(), plan.raw_matches)
    assert (summary.matched, summary.resumed, summary.left_out) == (0, len(PAIRS), ())


def test_shards_of_other_levels_are_matched_again(tmp_path: Path) -> None:
    photos, out = tmp_path / "deep", tmp_path / "out"
    make_deep_photos(photos, NAMES[:5], 4096)
    pairs = list(itertools.combinations(NAMES[:5], 2))
    plan = make_plan(out, photos, pairs, FakeMatcher(), shards=3)
    match_shard(plan, 1, FakeMatcher())
    match_part(plan, 2, (0, 2), FakeMatcher())  # interrupted
    make_deep_photos(photos, ["new.png"], 16000)
    match_shard(plan, 3, FakeMatcher())
    match_part(plan, 2, (0, 2), FakeMatcher())
    with pytest.raises(EdmHlocError, match=rf"3: black and white of .*{photos} .* for shard 1"):
        merge_shards(plan)
    with pytest.raises(EdmHlocError, match=r"Shard 2 in .* match-shard, or remove \S+plan\."):
        match_in_processes(photos, pairs, FakeMatcher(), plan.raw_matches, TWO)
    assert [match_shard(plan, k, FakeMatcher()).matched > 0 for k in (1, 2, 3)] == [1, 1, 0]
    assert merge_shards(plan).pairs == len(pairs)


def test_files_of_a_plan_that_was_half_removed_are_not_taken_for_the_new_one(
    photos: Path, tmp_path: Path
) -> None:
    other, out = FakeMatcher(setting=2.0), tmp_path / "out"
    old = make_plan(out, photos, PAIRS, other, shards=2)
    match_shard(old, 1, other)
    kept = old.file_of(1).read_bytes()
    (old.folder / "plan.json").unlink()
    (old.folder / "pairs-query-20.txt").write_text("mine")
    with pytest.raises(EdmHlocError, match=r"matches-0001.h5 holds matches of other.*--overwrite"):
        make_plan(out, photos, PAIRS, FakeMatcher(), shards=2)
    assert old.file_of(1).read_bytes() == kept
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=2, overwrite=True)
    assert plan.left() == [1, 2]
    assert (old.folder / "pairs-query-20.txt").read_text() == "mine"
    plan.file_of(1).write_bytes(kept)  # however it came there
    match_shard(plan, 2, FakeMatcher())
    with pytest.raises(EdmHlocError, match="1: it was matched with other settings"):
        merge_shards(plan)
    assert match_shard(plan, 1, FakeMatcher()).matched == plan.pairs[0]
    assert merge_shards(plan).pairs == len(PAIRS)


def test_pairs_of_changed_photos_are_left_to_workers(photos: Path, tmp_path: Path) -> None:
    out, changed = tmp_path / "out", [pair for pair in PAIRS if NAMES[4] in pair]
    raw, backwards = out / "raw_matches", [pair[::-1] for pair in PAIRS]
    match_pairs(photos, PAIRS, FakeMatcher(), raw)
    Image.new("L", (40, 50), 99).save(photos / NAMES[4])
    assert pairs_to_match(raw, photos, PAIRS) == changed
    matcher = FakeMatcher()
    summary = match_in_processes(photos, backwards, matcher, raw, TWO)
    assert (summary.matched, summary.resumed) == (8, len(PAIRS) - 8)
    assert not matcher.matched
    assert noted(out).total() == 8
    assert pairs_to_match(raw, photos, PAIRS) == []
    with RawMatchReader(raw) as reader:
        assert len(reader.pairs()) == len(PAIRS)
        assert reader.read(NAMES[0], NAMES[4]).keypoints1[0, 0] == 99

"""Plans that are merged or have lost their plan.json: what they hold is neither lost nor buried."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError, WorkLeftError
from edm_hloc.cli import main
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.left_out import read_left_out
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.stored_index import pairs_to_match
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines import workers
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import ShardPlan, load_plan, make_plan, plan_missing
from edm_hloc.pipelines.shards import end_plan, match_part, match_shard, merge_shards
from edm_hloc.pipelines.spreading import spread_matching
from edm_hloc.pipelines.work_plan import Work, results_of_workers
from edm_hloc.pipelines.workers import match_in_processes
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import CrewOfOne, make_grey_photos, noted

NAMES = [f"{i:03d}.png" for i in range(6)]
PAIRS = list(itertools.combinations(NAMES, 2))
CHANGED = [pair for pair in PAIRS if NAMES[4] in pair]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_grey_photos(tmp_path / "photos", len(NAMES))
    return tmp_path / "photos"


def matched_plan(photos: Path, out: Path, shards: int, pairs: Sequence[Pair] = PAIRS) -> ShardPlan:
    plan = make_plan(out, photos, pairs, FakeMatcher(), shards=shards)
    for shard in range(1, shards + 1):
        match_shard(plan, shard, FakeMatcher())
    return plan


def replace_photo(photos: Path, level: int = 99) -> None:
    Image.new("L", (40, 50), level).save(photos / NAMES[4])


def levels(raw: Path, pairs: list[Pair]) -> set[float]:
    """The levels of the second photos when the pairs were matched, which `FakeMatcher` stores."""
    with RawMatchReader(raw) as reader:
        return {float(reader.read(*pair).keypoints1[0, 0]) for pair in pairs}


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("way", ["merge", "end"])
def test_a_second_merge_keeps_what_was_matched_since_of_changed_photos(
    photos: Path, tmp_path: Path, shards: int, way: str
) -> None:
    plan = matched_plan(photos, tmp_path / "out", shards)
    merge_shards(plan)
    replace_photo(photos)
    assert match_pairs(photos, PAIRS, FakeMatcher(), plan.raw_matches).matched == len(CHANGED)
    before = {path.name: path.read_bytes() for path in plan.raw_matches.glob("*.h5")}
    if way == "merge":
        merge_shards(plan)
    else:
        end_plan(plan)
    assert {path.name: path.read_bytes() for path in plan.raw_matches.glob("*.h5")} == before
    assert pairs_to_match(plan.raw_matches, photos, PAIRS) == []


def test_of_a_file_only_the_pairs_are_merged_that_are_not_newer_already(
    photos: Path, tmp_path: Path
) -> None:
    plan = matched_plan(photos, tmp_path / "out", 1)
    replace_photo(photos)
    match_pairs(photos, CHANGED[:2], FakeMatcher(), plan.raw_matches)
    assert merge_shards(plan).pairs == len(PAIRS)
    assert pairs_to_match(plan.raw_matches, photos, PAIRS) == CHANGED[2:]
    assert levels(plan.raw_matches, [(NAMES[0], NAMES[4]), (NAMES[1], NAMES[4])]) == {99}
    assert levels(plan.raw_matches, [(NAMES[2], NAMES[4]), (NAMES[0], NAMES[3])]) == {14, 13}


def test_a_shard_that_was_matched_again_replaces_outdated_matches(
    photos: Path, tmp_path: Path
) -> None:
    plan = matched_plan(photos, tmp_path / "out", 1)
    merge_shards(plan)
    replace_photo(photos)
    assert match_shard(plan, 1, FakeMatcher()).matched == len(PAIRS)
    merge_shards(plan)
    assert pairs_to_match(plan.raw_matches, photos, PAIRS) == []
    assert levels(plan.raw_matches, CHANGED[:4]) == {99}


def test_a_second_merge_does_not_leave_out_again_what_was_matched_since(
    photos: Path, tmp_path: Path
) -> None:
    first, second = PAIRS[2:4]
    plan = make_plan(tmp_path / "out", photos, PAIRS, FakeMatcher(), shards=1)
    match_shard(plan, 1, FakeMatcher(), left_out={first: "died", second: "died"})
    merge_shards(plan)
    assert match_pairs(photos, [first], FakeMatcher(), plan.raw_matches).matched == 1
    merge_shards(plan)
    assert read_left_out(plan.raw_matches).keys() == {second}


# --------------------------------------------------------------------------- a longer list


def missing(photos: Path, out: Path, pairs: Sequence[Pair] = PAIRS) -> ShardPlan | None:
    return plan_missing(out, photos, pairs, FakeMatcher(), shards=lambda _: 2)


def planned(plan: ShardPlan) -> list[Pair]:
    return [pair for shard in plan.numbers for pair in plan.pairs_of(shard)]


def test_after_a_merge_only_pairs_that_are_missing_are_planned(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    plan = matched_plan(photos, out, 2, PAIRS[:9])
    with pytest.raises(EdmHlocError, match="plan of 9 pairs in 2 shards"):  # as it is not merged
        missing(photos, out)
    merge_shards(plan)
    longer = missing(photos, out)
    assert longer == load_plan(out)
    assert sorted(planned(longer)) == PAIRS[9:]
    assert longer.left() == [1, 2]
    assert missing(photos, out) == longer
    for shard in (1, 2):
        match_shard(longer, shard, FakeMatcher())
    merge_shards(longer)
    assert match_pairs(photos, PAIRS, FakeMatcher(), plan.raw_matches).matched == 0
    assert missing(photos, out) is None
    replace_photo(photos)
    changed = missing(photos, out)
    assert changed is not None
    assert sorted(planned(changed)) == CHANGED


def test_a_plan_whose_merge_was_killed_is_kept(photos: Path, tmp_path: Path) -> None:
    plan = matched_plan(photos, tmp_path / "out", 2)
    merge_shards(plan)
    (plan.raw_matches / "matches-000001.h5").unlink()
    assert missing(photos, tmp_path / "out") == plan
    assert plan.left() == []


def test_a_merged_plan_of_which_a_shard_is_being_matched_again_is_kept(
    photos: Path, tmp_path: Path
) -> None:
    plan = matched_plan(photos, tmp_path / "out", 2)
    merge_shards(plan)
    replace_photo(photos)
    match_part(plan, 2, (0, plan.pairs[1]), FakeMatcher())  # and killed
    assert set(CHANGED) & set(plan.pairs_of(2))
    with pytest.raises(EdmHlocError, match="merge or finish it"):
        make_plan(tmp_path / "out", photos, PAIRS[:3], FakeMatcher(), shards=2)
    assert plan.work_of(2).exists()


def test_other_steps_of_a_run_replace_a_merged_plan_of_matching(
    photos: Path, tmp_path: Path
) -> None:
    plan = matched_plan(photos, tmp_path, 2)
    work = Work("squares", "inputs", {}, [[["a"]]])
    with pytest.raises(EdmHlocError, match="holds a plan of matching"):
        list(results_of_workers(tmp_path, work))
    merge_shards(plan)
    with pytest.raises(WorkLeftError):
        list(results_of_workers(tmp_path, work))


# --------------------------------------------------------------------------- without plan.json


def names_in_folder(plan: ShardPlan) -> list[str]:
    return sorted(path.name for path in plan.folder.iterdir())


@pytest.mark.parametrize("damage", [None, "", '{"kind": "matching", "pai', "[]", "{}"])
def test_what_is_matched_outlasts_its_plan_json(
    photos: Path, tmp_path: Path, damage: str | None
) -> None:
    out = tmp_path / "out"
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=3)
    match_shard(plan, 1, FakeMatcher())
    match_part(plan, 2, (0, 2), FakeMatcher())
    shard, whole = plan.file_of(1).read_bytes(), (plan.folder / "plan.json").read_text()
    if damage is None:
        (plan.folder / "plan.json").unlink()
    else:
        (plan.folder / "plan.json").write_text(damage)
        with pytest.raises(EdmHlocError, match=r"plan.json is damaged .*give the command that pl"):
            load_plan(out)
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=3)
    assert (plan.folder / "plan.json").read_text() == whole
    assert plan.left() == [2, 3]
    assert plan.file_of(1).read_bytes() == shard
    assert [match_shard(plan, k, FakeMatcher()).matched for k in (1, 2, 3)] == [0, 3, 5]
    assert merge_shards(plan).pairs == len(PAIRS)


def test_matches_without_plan_json_that_do_not_fit_are_not_removed(
    photos: Path, tmp_path: Path
) -> None:
    plan = matched_plan(photos, tmp_path / "out", 2)
    match_part(plan, 2, (0, 2), FakeMatcher())
    (plan.folder / "plan.json").unlink()
    before = names_in_folder(plan)
    for pairs, shards in ((PAIRS, 3), (PAIRS[:9], 2)):
        with pytest.raises(EdmHlocError, match=r"matches-0001.h5 holds matches of other pairs"):
            make_plan(tmp_path / "out", photos, pairs, FakeMatcher(), shards=shards)
    assert names_in_folder(plan) == before
    merge_shards(plan)  # now nothing is lost
    assert make_plan(tmp_path / "out", photos, PAIRS, FakeMatcher(), shards=3).left() == [1, 2, 3]


def test_a_run_goes_on_from_shards_without_plan_json(photos: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "out", {}, shards=2)
    with pytest.raises(WorkLeftError):
        spread_matching(run, photos, PAIRS, FakeMatcher())
    plan = load_plan(run.out)
    for damaged, left in ((1, "1 of 2 shards are not done: 2"), (2, None)):
        match_shard(plan, damaged, FakeMatcher())
        (plan.folder / "plan.json").write_text("")
        if left:
            with pytest.raises(WorkLeftError, match=left):
                spread_matching(run, photos, PAIRS, FakeMatcher())
    spread_matching(run, photos, PAIRS, FakeMatcher())
    assert match_pairs(photos, PAIRS, FakeMatcher(), plan.raw_matches).matched == 0


def test_workers_go_on_from_shards_without_plan_json(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ProcessCrew", CrewOfOne)
    monkeypatch.setattr(workers, "_FEWEST_PAIRS", 3)
    plan = make_plan(tmp_path / "out", photos, PAIRS, FakeMatcher(), shards=5)
    match_shard(plan, 1, FakeMatcher())
    (plan.folder / "plan.json").write_text("{")
    config = MatchingConfig(workers=2, shown=False)
    match_in_processes(photos, PAIRS, FakeMatcher(), plan.raw_matches, config)
    assert noted(tmp_path / "out").total() == len(PAIRS) - plan.pairs[0]
    assert match_pairs(photos, PAIRS, FakeMatcher(), plan.raw_matches).matched == 0


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["pairs-0001.txt", "matches-0007.h5", "plan.json", "work-0001"])
def test_files_of_others_in_the_folder_of_a_plan_are_not_written_over(
    photos: Path, tmp_path: Path, name: str, overwrite: bool
) -> None:
    path = tmp_path / "out" / "plan" / name
    path.parent.mkdir(parents=True)
    if name == "work-0001":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as h5:
            h5["a/b/matches0"] = [1, -1]
    else:
        path.write_text(json.dumps({"mine": 1}))
    content = path.read_bytes() if path.is_file() else (path / "mine.txt").read_bytes()
    for _ in range(2):  # the first time does not make the folder ours
        with pytest.raises(EdmHlocError, match=rf"{path} is there already and was not made by"):
            make_plan(tmp_path / "out", photos, PAIRS, FakeMatcher(), shards=2, overwrite=overwrite)
        with pytest.raises(EdmHlocError, match=rf"{path} is there already and was not made by"):
            list(results_of_workers(tmp_path / "out", Work("squares", "", {}, [[["a"]]])))
    assert [path.name for path in path.parent.iterdir()] == [name]
    assert content == (path.read_bytes() if path.is_file() else (path / "mine.txt").read_bytes())


# --------------------------------------------------------------------------- one process


def test_one_process_tells_only_of_what_workers_have_matched(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    out, alone = tmp_path / "out", MatchingConfig(shown=False)
    plan = matched_plan(photos, out, 2, PAIRS[:9])
    raw, kept = plan.raw_matches, tmp_path / "kept"
    shutil.copytree(out, kept)

    def told(out: Path) -> str:
        caplog.clear()
        match_in_processes(photos, PAIRS, FakeMatcher(), out / "raw_matches", alone)
        return caplog.text

    merge_shards(plan)
    assert told(out) == ""  # six pairs more than were planned
    assert "not merged, which one process does not take over: it matches these 9" in told(kept)
    shutil.rmtree(raw)
    replace_photo(photos)
    merge_shards(plan)
    assert pairs_to_match(raw, photos, PAIRS[:9])
    assert told(out) == ""  # the workers' are of a photo that has changed


def test_one_process_does_not_bury_a_plan_of_other_settings(photos: Path, tmp_path: Path) -> None:
    plan = matched_plan(photos, tmp_path, 2, PAIRS[:9])
    alone = MatchingConfig(shown=False)
    with pytest.raises(EdmHlocError, match=r"Give the settings that .*plan was planned with"):
        match_in_processes(photos, PAIRS, FakeMatcher(setting=2.0), plan.raw_matches, alone)
    assert not plan.raw_matches.exists() or not any(plan.raw_matches.glob("*.h5"))
    merge_shards(plan)


def test_plan_says_what_is_matched_already(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edm_hloc.cli.options.make_matcher", lambda _: FakeMatcher())
    out, listed = tmp_path / "out", tmp_path / "pairs.txt"
    listed.write_text("".join(f"{a} {b}\n" for a, b in PAIRS))
    plan = make_plan(out, photos, PAIRS[:9], FakeMatcher(), shards=1)
    match_shard(plan, 1, FakeMatcher(), left_out={PAIRS[0]: "died"})
    merge_shards(plan)

    def said(*more: str) -> list[str]:
        assert main(["plan", str(photos), str(listed), str(out), *more]) == 0
        return [line[:12].rstrip() + line[11:] for line in capsys.readouterr().out.splitlines()]

    before = [f"Matched 8 of 15 pairs before: {out}/raw_matches"]
    before.append(f"Left out 1 pair; to match them again, remove {out}/raw_matches/left_out.json")
    assert said()[1:4] == [*before, f"Shards 1 of up to 6 pairs, in {out}/plan"]
    match_shard(load_plan(out), 1, FakeMatcher())
    assert "Kept 1 shard with matches, which match-shard checks" in said()
    merge_shards(load_plan(out))
    assert said()[1:] == [
        f"Matched 14 of 15 pairs before: {out}/raw_matches",
        before[1],
        "Planned nothing: no pair is left to match",
    ]
    assert f"Shards 3 of up to 5 pairs, in {out}/plan" in said("--overwrite", "--shards=3")

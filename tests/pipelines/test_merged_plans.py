"""Plans whose matches are in OUT/raw_matches already: merged again, replaced, and not told of."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from edm_hloc.matching.engine import match_pairs
from edm_hloc.matching.left_out import read_left_out
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.stored_index import pairs_to_match
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.shard_plan import ShardPlan, make_plan
from edm_hloc.pipelines.shards import end_plan, match_shard, merge_shards
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import make_grey_photos

NAMES = [f"{i:03d}.png" for i in range(6)]
PAIRS = list(itertools.combinations(NAMES, 2))
CHANGED = [pair for pair in PAIRS if NAMES[4] in pair]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_grey_photos(tmp_path / "photos", len(NAMES))
    return tmp_path / "photos"


def matched_plan(photos: Path, out: Path, shards: int) -> ShardPlan:
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=shards)
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

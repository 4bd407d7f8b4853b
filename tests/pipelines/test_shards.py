"""Matching in shards: the same files as one process makes, whatever happens to the workers."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import BusyError, EdmHlocError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.matches import Matches
from edm_hloc.cli.shards import shard_from_environment
from edm_hloc.keypoints.aggregation import KeypointFiles, aggregate
from edm_hloc.matchers.base import Features
from edm_hloc.matching.engine import match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.reconstruct import RECONSTRUCTION_KEYPOINTS
from edm_hloc.pipelines.shard_plan import ShardPlan, load_plan, make_plan
from edm_hloc.pipelines.shards import _put, is_matched, match_shard, merge_shards
from tests.fakes import FakeMatcher
from tests.images.pixels import store_turned

NAMES = [f"a b/é {i}.png" for i in range(9)]
PAIRS = list(itertools.combinations(NAMES, 2))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine grey photos; the level of photo i is 10 + i."""
    root = tmp_path / "photos"
    (root / "a b").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("L", (40 + i, 50), 10 + i).save(root / name)
    return root


def plan_of(photos: Path, out: Path, shards: int, pairs: Sequence[Pair] = PAIRS) -> ShardPlan:
    return make_plan(out, photos, pairs, FakeMatcher(), shards=shards)


def keypoint_files(raw: Path, folder: Path) -> tuple[bytes, bytes]:
    """The bytes of features.h5 and matches.h5."""
    folder.mkdir()
    files = KeypointFiles(folder / "features.h5", folder / "matches.h5")
    with RawMatchReader(raw) as reader:
        aggregate(reader, PAIRS, files, RECONSTRUCTION_KEYPOINTS)
    return files.features.read_bytes(), files.matches.read_bytes()


@pytest.fixture
def expected(photos: Path, tmp_path: Path) -> tuple[bytes, bytes]:
    """What one process makes."""
    match_pairs(photos, PAIRS, FakeMatcher(), tmp_path / "alone")
    return keypoint_files(tmp_path / "alone", tmp_path / "alone_h5")


@pytest.mark.parametrize("shards", [1, 2, 5, 17])
def test_merged_shards_equal_one_process_to_the_bit(
    photos: Path, tmp_path: Path, expected: tuple[bytes, bytes], shards: int
) -> None:
    plan = plan_of(photos, tmp_path / "out", shards)
    assert sum(plan.pairs) == len(PAIRS)
    assert len(plan.pairs) == shards
    order = np.random.default_rng(shards).permutation(shards) + 1
    for shard in order.tolist():
        summary = match_shard(load_plan(tmp_path / "out"), shard, FakeMatcher())
        assert (summary.matched, summary.pairs) == (plan.pairs[shard - 1],) * 2
    merged = merge_shards(plan)
    assert (merged.pairs, merged.shards, merged.skipped) == (len(PAIRS), shards, {})
    assert keypoint_files(plan.raw_matches, tmp_path / "h5") == expected
    before = sorted(path.name for path in plan.raw_matches.glob("*.h5"))
    merge_shards(plan)  # once more changes nothing
    assert sorted(path.name for path in plan.raw_matches.glob("*.h5")) == before
    assert not list(plan.folder.glob("work-*"))


def test_whoever_matches_a_shard_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    plans = [plan_of(photos, tmp_path / name, 3) for name in "ab"]

    class Dying(FakeMatcher):
        def find(self, features0: Features, features1: Features) -> object:
            if sum(self.matched.values()) == 5:
                raise MemoryError
            return super().find(features0, features1)

    for plan in plans:
        match_shard(plan, 1, FakeMatcher())
    match_shard(plans[0], 2, FakeMatcher())
    for _ in range(2):  # dies twice on the way
        with pytest.raises(MemoryError):
            match_shard(plans[1], 2, Dying())
    last = FakeMatcher()
    summary = match_shard(plans[1], 2, last)
    assert 0 < summary.matched < plans[1].pairs[1]  # it goes on
    assert all(times == 1 for times in last.matched.values())
    for shard in (1, 2):
        first, second = (plan.file_of(shard).read_bytes() for plan in plans)
        assert first == second
    again = FakeMatcher()
    assert match_shard(plans[1], 2, again).matched == 0
    assert not again.encoded


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_a_pipe_is_not_replaced_by_a_merged_shard(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EdmHlocError, match="pipe: it is a device or a pipe"):
        _put(tmp_path / "file", tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_the_run_that_goes_on_matches_nothing(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path / "out", 4)
    for shard in range(1, 5):
        match_shard(plan, shard, FakeMatcher())
    merge_shards(plan)
    matcher = FakeMatcher()
    summary = match_pairs(photos, PAIRS, matcher, plan.raw_matches)
    assert (summary.matched, summary.resumed) == (0, len(PAIRS))
    assert not matcher.encoded


def test_what_cannot_be_merged_is_named(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path / "out", 4)
    with pytest.raises(EdmHlocError, match=r"4 of 4 shards.*\n  1: not matched yet"):
        merge_shards(plan)
    for shard in (1, 2, 3):
        match_shard(plan, shard, FakeMatcher())
    with h5py.File(plan.file_of(2), "r+") as h5:
        first = next(iter(h5))
        group = h5[first][next(iter(h5[first]))]
        group["scores"][0] += 0.25
    with pytest.raises(EdmHlocError, match=r"(?s)2 of 4 .*  2: .*have changed.*  4: not matched"):
        merge_shards(plan)
    assert not plan.raw_matches.exists()
    for shard in (2, 4):  # the damaged one is matched again
        assert match_shard(plan, shard, FakeMatcher()).matched == plan.pairs[shard - 1]
    assert merge_shards(plan).pairs == len(PAIRS)


def test_a_photo_that_changed_between_two_shards_is_named(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path / "out", 2)
    match_shard(plan, 1, FakeMatcher())
    Image.new("L", (47, 50), 99).save(photos / NAMES[4])
    match_shard(plan, 2, FakeMatcher())
    with pytest.raises(EdmHlocError, match=r"2: the photo a b/é 4.png was another file"):
        merge_shards(plan)
    assert match_shard(plan, 2, FakeMatcher()).matched == 0  # it is up to date
    assert match_shard(plan, 1, FakeMatcher()).matched == plan.pairs[0]  # as it was not
    assert merge_shards(plan).pairs == len(PAIRS)


def test_a_photo_that_only_some_workers_could_read_is_named(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path / "out", 2)
    content = (photos / NAMES[4]).read_bytes()
    (photos / NAMES[4]).write_bytes(b"no photo")
    match_shard(plan, 1, FakeMatcher())
    (photos / NAMES[4]).write_bytes(content)
    match_shard(plan, 2, FakeMatcher())
    with pytest.raises(
        EdmHlocError, match=r"1: the photo .*4.png could not be read.*shard 2 .*: match both again"
    ):
        merge_shards(plan)
    assert not is_matched(plan, 1)  # as the photo can be read now
    assert match_shard(plan, 1, FakeMatcher()).matched == plan.pairs[0]
    assert merge_shards(plan).pairs == len(PAIRS)
    (photos / NAMES[4]).write_bytes(b"no photo any more")
    assert match_shard(plan, 1, FakeMatcher()).skipped.keys() == {NAMES[4]}
    assert is_matched(plan, 1)  # as far as it can be
    with pytest.raises(EdmHlocError, match=r"1: the photo .*4.png could not be read.*shard 2"):
        merge_shards(plan)
    match_shard(plan, 2, FakeMatcher())
    assert merge_shards(plan).skipped.keys() == {NAMES[4]}


def test_unreadable_photos_are_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    (photos / NAMES[0]).write_bytes(b"no photo")
    alone = [pair for pair in PAIRS if NAMES[0] in pair]
    plan = plan_of(photos, tmp_path / "out", 1, alone)  # a shard in which nothing can be matched
    assert match_shard(plan, 1, FakeMatcher()).skipped.keys() == {NAMES[0]}
    assert merge_shards(plan).pairs == 0
    plan = plan_of(photos, tmp_path / "all", 3)
    for shard in (1, 2, 3):
        match_shard(plan, shard, FakeMatcher())
    merged = merge_shards(plan)
    assert merged.pairs == len(PAIRS) - len(alone)
    assert merged.skipped.keys() == {NAMES[0]}


def test_mirrored_photos_are_left_out_once(photos: Path, tmp_path: Path) -> None:
    store_turned(Image.new("RGB", (40, 50), (10, 10, 10)), photos / NAMES[0], 2)
    plan = plan_of(photos, tmp_path / "out", 1)
    assert match_shard(plan, 1, FakeMatcher()).skipped.keys() == {NAMES[0]}
    assert is_matched(plan, 1)  # as far as it can be
    assert "mirrors it" in merge_shards(plan).skipped[NAMES[0]]


def test_plans_and_matchers_are_not_mixed(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path / "out", 2)
    assert asdict(plan_of(photos, tmp_path / "out", 2)) == asdict(plan)  # the same plan is kept
    others = [*PAIRS[:-1], ("x.jpg", "y.jpg")]
    n = len(PAIRS)
    for shards, pairs, differs in (
        (2, PAIRS[:-1], f"{n} pairs in 2 shards, and this one is of {n - 1} pairs in 2 shards"),
        (3, PAIRS, f"{n} pairs in 2 shards, and this one is of {n} pairs in 3 shards"),
        (2, others, f"other pairs, and this one is of {n} pairs in 2 shards"),
    ):
        with pytest.raises(EdmHlocError, match=f"holds the plan of {differs}"):
            plan_of(photos, tmp_path / "out", shards, pairs)
    with pytest.raises(EdmHlocError, match=r"other settings.*\n  setting: 1.0 there, 2.0 now"):
        make_plan(tmp_path / "out", photos, PAIRS, FakeMatcher(setting=2.0), shards=2)
    with pytest.raises(EdmHlocError, match=r"other settings.*\n  setting: 1.0 there, 2.0 now"):
        match_shard(plan, 1, FakeMatcher(setting=2.0))
    with pytest.raises(EdmHlocError, match="shards 1 to 2, but not 3"):
        match_shard(plan, 3, FakeMatcher())
    plan.list_of(1).write_text("x y\n")
    with pytest.raises(EdmHlocError, match="has changed since it was planned"):
        match_shard(plan, 1, FakeMatcher())
    with pytest.raises(EdmHlocError, match="make one with edm-hloc plan"):
        load_plan(tmp_path)
    (plan.folder / "plan.json").write_text('{"pairs": [1]}')
    with pytest.raises(EdmHlocError, match="damaged"):
        load_plan(tmp_path / "out")


def test_a_second_process_on_the_same_shard_does_no_harm(photos: Path, tmp_path: Path) -> None:
    plan = plan_of(photos, tmp_path / "out", 2)
    plan.work_of(1).mkdir()
    with FolderLock(plan.work_of(1)), pytest.raises(EdmHlocError, match="Another process"):
        match_shard(plan, 1, FakeMatcher())
    assert match_shard(plan, 1, FakeMatcher()).matched == plan.pairs[0]


class Interrupting(FakeMatcher):
    """Plans anew with --overwrite while it matches."""

    def __init__(self, photos: Path, out: Path) -> None:
        super().__init__()
        self.photos, self.out = photos, out
        self.said: list[str] = []

    def find(self, features0: Features, features1: Features) -> Matches:
        try:
            make_plan(self.out, self.photos, PAIRS[:4], FakeMatcher(), shards=2, overwrite=True)
        except BusyError as error:
            self.said.append(str(error))
        return super().find(features0, features1)


def test_a_plan_is_not_replaced_under_its_workers(photos: Path, tmp_path: Path) -> None:
    """What they have matched by then would be gone, and nobody would be told."""
    plan = plan_of(photos, tmp_path / "out", 2)
    matcher = Interrupting(photos, tmp_path / "out")
    assert match_shard(plan, 1, matcher).matched == plan.pairs[0] == len(matcher.said)
    assert str(plan.work_of(1)) in matcher.said[0]
    assert load_plan(tmp_path / "out") == plan
    assert match_shard(plan, 1, FakeMatcher()).matched == 0
    # a worker that has been killed holds nothing
    plan.work_of(2).mkdir()
    make_plan(tmp_path / "out", photos, PAIRS[:4], FakeMatcher(), shards=2, overwrite=True)
    assert not plan.work_of(2).exists()


def test_overwrite_removes_what_the_plan_made_and_nothing_else(
    photos: Path, tmp_path: Path
) -> None:
    plan = plan_of(photos, tmp_path / "out", 3)
    match_shard(plan, 1, FakeMatcher())
    (plan.folder / "notes.txt").write_text("mine")
    new = make_plan(
        tmp_path / "out",
        photos,
        PAIRS[:4],
        FakeMatcher(),
        shards=2,
        overwrite=True,
    )
    assert sorted(path.name for path in new.folder.iterdir()) == [
        ".lock",
        "notes.txt",
        "pairs-0001.txt",
        "pairs-0002.txt",
        "plan.json",
    ]
    shutil.rmtree(new.folder)


@pytest.mark.parametrize(
    ("variables", "shard"),
    [
        ({"SLURM_ARRAY_TASK_ID": "7"}, 7),
        ({"AWS_BATCH_JOB_ARRAY_INDEX": "0"}, 1),
        ({"JOB_COMPLETION_INDEX": "4"}, 5),
        ({"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "2"}, 2),
    ],
)
def test_numbers_of_jobs_in_arrays(variables: dict[str, str], shard: int) -> None:
    assert shard_from_environment(variables) == shard


def test_arrays_that_begin_with_0_where_they_should_begin_with_1() -> None:
    with pytest.raises(EdmHlocError, match="number the jobs of the array from 1"):
        shard_from_environment({"SLURM_ARRAY_TASK_ID": "0"})
    with pytest.raises(EdmHlocError, match="is this a job of an array"):
        shard_from_environment({})

"""Workers that are processes: killed at random, at a pair that kills them, or broken at one."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edm_hloc import api
from edm_hloc.base.errors import BusyError, EdmHlocError, WorkLeftError
from edm_hloc.base.files import FolderLock
from edm_hloc.images.roots import JoinedFolders, root_to_json
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.left_out import left_out_path, read_left_out
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.local_features import SIFT
from edm_hloc.pairs.vlad import describe
from edm_hloc.pipelines import workers
from edm_hloc.pipelines.processes import ProcessCrew, _serve
from edm_hloc.pipelines.reconstruct import ReconstructionConfig
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings
from edm_hloc.pipelines.shards import merge_shards
from edm_hloc.pipelines.work_plan import Work, in_shards, load_work, results_of_workers
from edm_hloc.pipelines.workers import do_work, match_in_processes, match_plan
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import (
    BrokenWorker,
    DyingWorker,
    FakeWorker,
    SlowWorker,
    StillbornWorker,
    UnimportableWorker,
    make_grey_photos,
    noted,
)

NAMES = [f"{i:03d}.png" for i in range(12)]
PAIRS = list(itertools.combinations(NAMES, 2))


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked from a process that has imported everything, instead of spawned."""
    monkeypatch.setattr(ProcessCrew, "start", "forkserver")
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["tests.pipelines.fake_workers"]
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_grey_photos(tmp_path / "photos", len(NAMES))
    return tmp_path / "photos"


def shard_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "plan").glob("matches-*.h5")}


def match_all(
    photos: Path, out: Path, worker: type[ShardWorker], shards: int = 6, number: int = 2
) -> dict[str, bytes]:
    """Has workers match a plan; gives the bytes of its shards."""
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=shards)
    settings = WorkerSettings(out, "cpu", 1, MatchingConfig())
    with ProcessCrew(settings, number, worker) as crew:
        match_plan(plan, crew)
    return shard_files(out)


def test_workers_that_are_killed_lose_nothing(photos: Path, tmp_path: Path) -> None:
    expected = match_all(photos, tmp_path / "alone", FakeWorker, number=1)
    kills, ended = [], threading.Event()

    def kill_some() -> None:
        chance = random.Random(1)
        while not ended.wait(chance.uniform(0.05, 0.15)) and len(kills) < 2:
            begun = list((tmp_path / "out").glob("notes/*.txt"))
            alive = multiprocessing.active_children()
            if alive and len(begun) > len(kills):  # one that is at work
                chance.choice(alive).kill()
                kills.append(time.monotonic())

    killer = threading.Thread(target=kill_some)
    killer.start()
    try:
        found = match_all(photos, tmp_path / "out", SlowWorker)
    finally:
        ended.set()
        killer.join()
    assert len(kills) >= 2
    assert found == expected
    often = noted(tmp_path / "out")
    assert len(often) == len(PAIRS)
    assert max(often.values()) <= 1 + len(kills)


@pytest.mark.parametrize(
    ("worker", "reason"), [(DyingWorker, "signal 9"), (BrokenWorker, "ZeroDivisionError: a defect")]
)
def test_a_pair_at_which_workers_fail_is_left_out_and_named(
    photos: Path,
    tmp_path: Path,
    worker: type[ShardWorker],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "ShardWorker", worker)
    out, raw = tmp_path / "out", tmp_path / "out" / "raw_matches"
    config = MatchingConfig(workers=2)
    summary = match_in_processes(photos, PAIRS, FakeMatcher(), raw, config)
    assert summary.matched == len(PAIRS) - 1
    assert summary.encoded >= len(NAMES)
    (named,) = summary.left_out
    assert named.startswith("002.png and 007.png: ")
    assert reason in named
    assert read_left_out(raw).keys() == {("002.png", "007.png")}
    assert len(noted(out)) == len(PAIRS) - 1
    again = match_in_processes(photos, PAIRS, FakeMatcher(), raw)  # in this process
    assert (again.matched, again.resumed, again.left_out) == (0, len(PAIRS) - 1, (named,))
    left_out_path(raw).unlink()
    assert match_in_processes(photos, PAIRS, FakeMatcher(), raw).matched == 1


def test_workers_that_all_die_end_the_run(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match=r"in a row a worker .*shard \d: .*exit code 7"):
        match_all(photos, tmp_path / "out", StillbornWorker)


def test_a_worker_that_cannot_start_ends_the_run_at_once(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where a script has no `if __name__ == "__main__":`."""
    with pytest.raises(EdmHlocError, match=r"for the reason above.*`if __name__ == ._"):
        match_all(photos, tmp_path / "out", UnimportableWorker, number=1)
    assert capfd.readouterr().err.count("ImportError") <= 2  # and the one in its place


def of_pool(out: Path) -> str:
    """What a process of a pool is told that asks for workers."""
    with pytest.raises(EdmHlocError) as told:
        ProcessCrew(WorkerSettings(out, "cpu", 1, MatchingConfig()), 2)
    return str(told.value)


def test_a_process_of_a_pool_is_told_that_it_can_start_no_workers(tmp_path: Path) -> None:
    with multiprocessing.get_context(ProcessCrew.start).Pool(1) as pool:
        told = pool.apply(of_pool, [tmp_path])
    assert "ask for 1 worker there" in told


def test_a_worker_that_imports_a_script_without_a_guard_does_not_run_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take its parent for another process that writes into the folder."""
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    config = ReconstructionConfig(matching=MatchingConfig(workers=2))
    with pytest.raises(EdmHlocError, match=r"begun the script anew.*`if __name__ == ._"):
        api.reconstruct(photos, tmp_path / "out", "exhaustive", FakeMatcher(), config)
    with pytest.raises(EdmHlocError, match="begun the script anew"):
        ProcessCrew(WorkerSettings(tmp_path, "cpu", 1, MatchingConfig()), 2)
    assert not (tmp_path / "out").exists()


def test_gpus_are_shared_out_where_no_device_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`match-shard --all` knows of no matcher that would name it."""
    monkeypatch.setattr(workers, "default_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    devices = []

    class Noted(ShardWorker):
        def __init__(self, settings: WorkerSettings) -> None:
            devices.append(settings.device)

    class Here:
        def __init__(self, settings: WorkerSettings, number: int, _: type[ShardWorker]) -> None:
            for i in range(number):
                here, there = multiprocessing.Pipe()
                here.close()
                _serve(there, i, settings, Noted)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(workers, "ProcessCrew", Here)
    with workers.hire(tmp_path, MatchingConfig(workers=3), None):
        assert devices == ["cuda:0", "cuda:1", "cuda:0"]


def test_photos_of_two_folders_are_matched_by_workers(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ShardWorker", FakeWorker)
    joined = JoinedFolders({"a": photos, "b": photos})
    pairs = [(f"a/{first}", f"b/{second}") for first, second in PAIRS]
    match_pairs(joined, pairs, FakeMatcher(), tmp_path / "alone")
    raw = tmp_path / "out" / "raw_matches"
    summary = match_in_processes(joined, pairs, FakeMatcher(), raw, MatchingConfig(workers=2))
    assert summary.matched == len(pairs)
    assert len(noted(tmp_path / "out")) == len(pairs)  # by the workers
    with RawMatchReader(tmp_path / "alone") as alone, RawMatchReader(raw) as found:
        for pair in pairs:
            for name, array in alone.read(*pair).arrays().items():
                assert np.array_equal(array, found.read(*pair).arrays()[name])


def test_what_is_left_out_is_said_at_the_merge(photos: Path, tmp_path: Path) -> None:
    match_all(photos, tmp_path / "out", BrokenWorker)
    plan = make_plan(tmp_path / "out", photos, PAIRS, FakeMatcher(), shards=6)
    merged = merge_shards(plan)
    assert merged.pairs == len(PAIRS) - 1
    assert merged.left_out.keys() == {("002.png", "007.png")}


def test_summaries_of_workers_count_what_one_process_counts(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ShardWorker", FakeWorker)
    (photos / NAMES[0]).write_bytes(b"no photo")
    alone = match_pairs(photos, PAIRS, FakeMatcher(), tmp_path / "alone")
    raw = tmp_path / "out" / "raw_matches"
    summary = match_in_processes(photos, PAIRS, FakeMatcher(), raw, MatchingConfig(workers=2))
    assert summary.encoded >= alone.encoded == len(NAMES) - 1
    for name in ("matched", "resumed", "images", "skipped", "skipped_pairs", "matches", "levels"):
        assert getattr(summary, name) == getattr(alone, name), name


def test_other_steps_than_matching_are_done_by_workers(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        noise = draw.integers(0, 256, (12, 12), np.uint8)
        Image.fromarray(noise).resize((120, 120)).save(tmp_path / "photos" / name)
    words = draw.uniform(0, 1, (4, 128)).astype(np.float32)
    shared = {"how": "sift", "sha256": SIFT.name, "words": words.tolist()}
    shared["root"] = root_to_json(tmp_path / "photos")
    parts = in_shards([[name] for name in NAMES], 3)
    work, out = Work("descriptors", "noise", shared, parts), tmp_path / "out"
    with pytest.raises(WorkLeftError):
        list(results_of_workers(out, work))
    at_work = load_work(out).work_of(2)
    at_work.mkdir()
    other = replace(work, made_from="other noise")
    with FolderLock(at_work), pytest.raises(BusyError, match="A worker is at work"):
        list(results_of_workers(out, other))
    with ProcessCrew(WorkerSettings(out, "cpu", 1, MatchingConfig()), 2) as crew:
        assert do_work(load_work(out), crew) == len(NAMES)
    found = dict(results_of_workers(out, work))
    assert found.keys() == set(NAMES)
    assert found == dict(describe(tmp_path / "photos", NAMES, SIFT, words))

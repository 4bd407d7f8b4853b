"""Shards of raw matches: merging, kills, and reading while they are written."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import AtomicH5
from edm_hloc.base.matches import Matches
from edm_hloc.matching import reader as reader_module
from edm_hloc.matching import writer as writer_module
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.recent import RecentPairs, recent_path
from edm_hloc.matching.shards import (
    StoredPair,
    check_folder_provenance,
    shard_path,
    store_matches,
    store_pairs,
)
from edm_hloc.matching.writer import RawMatchWriter
from tests.h5_files import (
    PROVENANCE,
    assert_same,
    files,
    posix_only,
    raw,
    write_many,
)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writer_module, "_FLUSH_PAIRS", 2)
    monkeypatch.setattr(writer_module, "_FAN_IN", 4)
    monkeypatch.setattr(writer_module, "_MERGE_BELOW_PAIRS", (8, 32))
    return


@pytest.mark.usefixtures("small_shards")
def test_small_shards_are_merged(tmp_path: Path) -> None:
    write_many(tmp_path, 100)  # 50 shards of 2 pairs
    assert len(files(tmp_path)) < 14
    write_many(tmp_path, 40, first_seed=1000)  # matched again: the newer ones count
    assert len(files(tmp_path)) < 14
    with RawMatchReader(tmp_path) as reader:
        assert len(reader.pairs()) == 100
        for i in range(100):
            seed = 1000 + i if i < 40 else i
            assert_same(reader.read(f"{i // 7}.jpg", f"to/{i}.jpg"), raw(seed))
        assert reader.provenance == PROVENANCE


def test_what_older_versions_noted_in_vain_is_not_asked_for(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, {**PROVENANCE, "threads": 4}) as writer:
        writer.add("a", "b", raw(0))
    check_folder_provenance(tmp_path, PROVENANCE)
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        assert ("a", "b") in writer
    with pytest.raises(EdmHlocError, match=r"threshold: 0\.05 there, 1 now\nChoose"):
        check_folder_provenance(tmp_path, {**PROVENANCE, "threshold": 1})


@pytest.mark.usefixtures("small_shards")
def test_merging_keeps_the_newest_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (0, 1, 2):
        monkeypatch.setattr(writer_module, "_FAN_IN", 3 if seed == 2 else 1000)
        with RawMatchWriter(tmp_path, {}, {"a": (seed, seed)}) as writer:
            assert writer.done == set()
            writer.add("a", "b", raw(seed))
            if seed < 2:
                writer.add("a", f"{seed}", raw(10 + seed))
    assert len(files(tmp_path)) == 1
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read("a", "b"), raw(2))
        assert_same(reader.read("a", "0"), raw(10))
        assert_same(reader.read("a", "1"), raw(11))


@pytest.mark.usefixtures("small_shards")
def test_the_newest_of_a_pair_counts_in_whichever_order(tmp_path: Path) -> None:
    """As where a merge has put shards of a plan beside those of an earlier run."""
    for number, first in enumerate((("a", "b"), ("b", "a"), ("b", "c"))):
        file = AtomicH5(shard_path(tmp_path, number), {})
        stored = [
            store_matches(file.h5, StoredPair(names, stamps), raw(10 * number + i))
            for i, (names, stamps) in enumerate(
                [(first, ((number, 0), None)), (("a", f"{number}"), (None, None))]
            )
        ]
        store_pairs(file.h5, stored)
        file.commit()

    with RawMatchReader(tmp_path) as reader:
        assert len(reader.pairs()) == 5
        assert_same(reader.read("b", "a"), raw(10))
        assert_same(reader.read("a", "b"), raw(10).swapped())
    with RawMatchWriter(tmp_path, {}, {"a": (0, 0)}) as writer:  # as the older one was matched
        assert ("a", "b") not in writer
        assert len(files(tmp_path) - {".recent.part"}) == 3
        for name in "xy":
            writer.add(name, "z", raw(1))
    (merged,) = tmp_path.glob("*.h5")
    with h5py.File(merged) as h5:
        assert "b/a" in h5
        assert "a/b" not in h5
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read("a", "b"), raw(10).swapped())


@pytest.mark.usefixtures("small_shards")
def test_kill_between_merging_and_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_FAN_IN", 1000)
    write_many(tmp_path, 20)
    sources = {path: path.read_bytes() for path in tmp_path.glob("*.h5")}
    assert len(sources) == 10
    monkeypatch.setattr(writer_module, "_FAN_IN", 11)
    monkeypatch.setattr(writer_module, "_MERGE_BELOW_PAIRS", (100,))
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        writer.add("new.jpg", "other.jpg", raw(99))
    (merged,) = tmp_path.glob("*.h5")
    for path, data in sources.items():  # as if the process had died before removing them
        path.write_bytes(data)
    (tmp_path / ".matches-000077.h5.tmp").write_bytes(b"half a shard")
    with RawMatchReader(tmp_path) as reader:
        assert len(reader.pairs()) == 21
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        assert len(writer.done) == 21
    assert files(tmp_path) == {merged.name}
    with RawMatchReader(tmp_path) as reader:
        for i in range(20):
            assert_same(reader.read(f"{i // 7}.jpg", f"to/{i}.jpg"), raw(i))


def test_hlocs_raw_matches_are_read(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w") as h5:
        group = h5.create_group("db-1.jpg/q-1.jpg")
        for name, array in raw(0).arrays().items():
            group.create_dataset(name, data=array.astype(np.float64))
        h5.create_group("db-1.jpg/q-2.jpg").create_dataset("matches0", data=np.zeros(3, int))
    with RawMatchReader(path) as reader:
        assert reader.pairs() == [("db-1.jpg", "q-1.jpg")]
        assert_same(reader.read("db/1.jpg", "q/1.jpg"), raw(0))
        assert_same(reader.read("q/1.jpg", "db/1.jpg"), raw(0).swapped())
        assert ("db/1.jpg", "q/2.jpg") not in reader
        assert reader.provenance == {}


@pytest.mark.usefixtures("small_shards")
def test_reader_keeps_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_FAN_IN", 1000)
    write_many(tmp_path, 20)
    monkeypatch.setattr(reader_module, "_MAX_OPEN_SHARDS", 3)
    with RawMatchReader(tmp_path) as reader:
        for i in np.random.default_rng(0).permutation(20):
            assert_same(reader.read(f"{i // 7}.jpg", f"to/{i}.jpg"), raw(i))
            assert len(reader._open) <= 3
    assert not reader._open


@pytest.mark.usefixtures("small_shards")
def test_reading_in_threads_while_writing(tmp_path: Path) -> None:
    write_many(tmp_path / "old", 30)
    failures: list[BaseException] = []
    with RawMatchReader(tmp_path / "old") as reader:

        def read_all() -> None:
            try:
                for i in range(30):
                    assert_same(reader.read(f"{i // 7}.jpg", f"to/{i}.jpg"), raw(i))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read_all, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        write_many(tmp_path / "new", 30)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    assert failures == []


_WRITE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from edm_hloc.base.matches import Matches
from edm_hloc.matching import writer as store
store._FLUSH_PAIRS = 4
store._FLUSH_SECONDS = 0.05
store._FAN_IN = 3
store._MERGE_BELOW_PAIRS = (10, 60)
writer = store.RawMatchWriter(Path(sys.argv[1]), {"version": "1"})
i = -1
while True:
    i += 1
    pair = (f"left {i % 5}/é.jpg", f"right/{i}.jpg")
    if pair in writer:
        continue
    values = np.full(100 + i % 50, i, np.float32)
    points = np.stack([values, -values], axis=1)
    writer.add(*pair, Matches(points, points + 0.5, values))
    print(i, flush=True)
"""


@posix_only
def test_kill_loses_the_last_few_pairs_at_most(tmp_path: Path) -> None:
    random = np.random.default_rng()
    reached = -1
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, "the writer could not start after the kill before"
        # everything but the last few pairs of the run before is not matched again
        assert int(first) >= reached - 8
        timer = threading.Timer(random.uniform(0.0, 0.5), process.kill)
        timer.start()
        for line in process.stdout:
            reached = int(line)
        assert process.wait() == -signal.SIGKILL
        timer.join()

        with RawMatchReader(tmp_path) as reader:
            stored = sorted(int(values[0]) for values in _stored_values(reader))
        # what add() returned from is on disk, up to one full queue and one shard in the making
        assert set(range(reached - 8 + 1)) <= set(stored)
        assert len(stored) == len(set(stored))
    assert reached > 10
    suffixes = {path.suffix for path in tmp_path.iterdir() if path.name != ".lock"}
    assert suffixes <= {".h5", ".tmp", ".part"}


def test_pairs_that_no_shard_holds_yet_survive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_FLUSH_SECONDS", 600.0)
    stamps = {"a": (1, 2), "b/ü": (3, 4)}
    added = {("a", "c"): raw(2), ("c", "b/ü"): raw(4, 0), ("a", "b/ü"): raw(3)}
    killed = tmp_path / "killed"
    with RawMatchWriter(tmp_path / "open", PROVENANCE, stamps) as writer:
        writer.add("a", "b/ü", raw(1))  # is replaced
        for names, matches in added.items():
            writer.add(*names, matches)
        deadline, seen = time.monotonic() + 10, False
        while not seen:  # another thread writes the pairs, in their order
            assert time.monotonic() < deadline
            shutil.copytree(tmp_path / "open", killed, dirs_exist_ok=True)
            recent = RecentPairs(killed, PROVENANCE)
            last = added["a", "b/ü"].scores.tolist()
            seen = any(matches.scores.tolist() == last for _, matches in recent)
            recent.close()
        with recent_path(killed).open("ab") as file:
            file.write(b"\x07\x00half a pair")
    with RawMatchWriter(killed, PROVENANCE, {**stamps, "a": (9, 9)}) as again:
        assert [names in again for names in added] == [False, True, False]
    with RawMatchWriter(killed, PROVENANCE, stamps) as again:
        assert all(names in again for names in added)
    assert files(killed) == {"matches-000000.h5"}
    with RawMatchReader(killed) as reader:
        assert set(reader.pairs()) == set(added)
        for names, matches in added.items():
            assert_same(reader.read(*names), matches)


def _stored_values(reader: RawMatchReader) -> Iterator[np.ndarray]:
    for name0, name1 in reader.pairs():
        i = int(name1.removeprefix("right/").removesuffix(".jpg"))
        assert name0 == f"left {i % 5}/é.jpg"
        matches = reader.read(name0, name1)
        values = np.full(100 + i % 50, i, np.float32)
        points = np.stack([values, -values], axis=1)
        assert_same(matches, Matches(points, points + 0.5, values))
        yield matches.scores

"""The H5 files: round trips, hloc's formats, kills, full disks, damaged files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import pair_key
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchReader, MatchWriter
from edm_hloc.matching import reader as reader_module
from edm_hloc.matching import writer as writer_module
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.descriptors import DescriptorReader, DescriptorWriter

PROVENANCE = {
    "weights": "f686be",
    "preset": "edm",
    "threshold": 0.05,
    "top_k": None,
    "border": True,
}

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")


def raw(seed: int, count: int = 7) -> Matches:
    """Matches that differ from seed to seed."""
    random = np.random.default_rng(seed)
    return Matches(
        random.random((count, 2), np.float32) * 4000,
        random.random((count, 2), np.float32) * 4000,
        random.random(count, np.float32),
    )


def assert_same(got: Matches, expected: Matches) -> None:
    for field, a in got.arrays().items():
        b = expected.arrays()[field]
        assert a.dtype == np.float32, field
        np.testing.assert_array_equal(a, b, err_msg=field)


def files(folder: Path) -> set[str]:
    """What is in a folder, besides the lock."""
    return {path.name for path in folder.iterdir()} - {".lock"}


# A component of a name that a file system can hold and UTF-8 can write.
components = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda text: text not in (".", ".."))
image_names = st.lists(components, min_size=1, max_size=3).map("/".join)
with_files = settings(max_examples=20, deadline=None)


# --------------------------------------------------------------------------- keys


def test_pair_key_is_hlocs() -> None:
    assert pair_key("db/1.jpg", "query/night/nexus 5.jpg") == "db-1.jpg/query-night-nexus 5.jpg"


# --------------------------------------------------------------------------- raw matches


def test_raw_round_trip(tmp_path: Path) -> None:
    pairs = {("a b/ä-1.jpg", "日本/2.JPG"): raw(1), ("a b/ä-1.jpg", "c.png"): raw(2, 0)}
    with RawMatchWriter(tmp_path / "raw", PROVENANCE) as writer:
        assert writer.done == set()
        for names, matches in pairs.items():
            writer.add(*names, matches)
    with RawMatchReader(tmp_path / "raw") as reader:
        assert reader.provenance == PROVENANCE
        assert set(reader.pairs()) == set(pairs)
        for (name0, name1), matches in pairs.items():
            assert (name0, name1) in reader
            assert (name1, name0) in reader
            assert_same(reader.read(name0, name1), matches)
            assert_same(reader.read(name1, name0), matches.swapped())
        assert ("c.png", "c.png") not in reader
        with pytest.raises(EdmHlocError, match=r"'c\.png', 'x\.png'.*raw"):
            reader.read("c.png", "x.png")


@with_files
@given(st.lists(st.tuples(image_names, image_names), min_size=1, max_size=5))
def test_raw_names_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    # the first of the names with the same key, and of a pair and its reverse
    unique: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        unique.setdefault(frozenset((pair_key(*pair), pair_key(*pair[::-1]))), pair)
    with RawMatchWriter(folder, {}) as writer:
        for seed, pair in enumerate(unique.values()):
            writer.add(*pair, raw(seed))
    with RawMatchReader(folder) as reader:
        assert set(reader.pairs()) == set(unique.values())
        for seed, pair in enumerate(unique.values()):
            assert_same(reader.read(*pair), raw(seed))
    with RawMatchWriter(folder, {}) as writer:
        assert all(pair in writer for pair in unique.values())


def test_raw_shard_is_an_hloc_file(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, PROVENANCE, {"a/1.jpg": (10, 20)}) as writer:
        writer.add("a/1.jpg", "b/2.jpg", raw(0))
    (shard,) = tmp_path.glob("*.h5")
    with h5py.File(shard) as h5:
        group = h5["a-1.jpg"]["b-2.jpg"]
        assert set(group) == {"keypoints0", "keypoints1", "scores"}
        np.testing.assert_array_equal(group["keypoints1"][()], raw(0).keypoints1)
        assert json.loads(h5.attrs["provenance"]) == PROVENANCE
        assert json.loads(h5.attrs["pairs"]) == [["a/1.jpg", "b/2.jpg", [10, 20], None]]


def test_caller_may_reuse_its_arrays(tmp_path: Path) -> None:
    matches = raw(0)
    with RawMatchWriter(tmp_path, {}) as writer:
        writer.add("a", "b", matches)
        for array in matches.arrays().values():
            array[:] = -1
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read("a", "b"), raw(0))


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    good = raw(0)
    with RawMatchWriter(tmp_path, {}) as writer:
        for bad in (
            replace(good, keypoints0=good.keypoints0[:-1]),
            replace(good, keypoints1=good.keypoints1.T),
            replace(good, scores=good.scores[:, None]),
        ):
            with pytest.raises(ValueError, match="must have shape"):
                writer.add("a", "b", bad)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("name", ["", "a//b.jpg", "/a.jpg", "./a.jpg", "a\0.jpg", "caf\udce9.jpg"])
def test_names_h5_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    with RawMatchWriter(tmp_path, {}) as writer, pytest.raises(EdmHlocError, match="rename"):
        writer.add(name, "b.jpg", raw(0))
    with (
        FeatureWriter(tmp_path / "f.h5", {}) as features,
        pytest.raises(EdmHlocError, match="rename"),
    ):
        features.add(name, np.zeros((0, 2)), np.zeros(0))


def test_colliding_names_are_refused(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, {}) as writer:
        writer.add("a/b.jpg", "c.jpg", raw(0))
        with pytest.raises(EdmHlocError, match=r"a-b\.jpg.*rename"):
            writer.add("a-b.jpg", "c.jpg", raw(1))
    # and in the next run, before it takes one pair for the other
    with RawMatchWriter(tmp_path, {}) as writer:
        with pytest.raises(EdmHlocError, match="same key"):
            writer.__contains__(("a-b.jpg", "c.jpg"))
        with pytest.raises(EdmHlocError, match="same key"):
            writer.add("a-b.jpg", "c.jpg", raw(1))
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read("a/b.jpg", "c.jpg"), raw(0))
        with pytest.raises(EdmHlocError, match="same key"):
            reader.read("a-b.jpg", "c.jpg")


def test_resume_knows_what_is_done(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        writer.add("a/1", "b", raw(0))
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        assert writer.done == {"a-1/b"}
        assert ("a/1", "b") in writer
        assert ("b", "a/1") in writer
        assert ("a/1", "c") not in writer
        writer.add("a/1", "c", raw(1))
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read("a/1", "b"), raw(0))
        assert_same(reader.read("a/1", "c"), raw(1))


def test_other_provenance_is_refused(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        writer.add("a", "b", raw(0))
    now = {key: value for key, value in PROVENANCE.items() if key != "border"} | {"preset": "edm_s"}
    with pytest.raises(EdmHlocError) as caught:
        RawMatchWriter(tmp_path, now)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "preset: 'edm' there, 'edm_s' now" in message
    assert "border: True there, None now" in message
    assert "threshold" not in message
    assert "--overwrite" in message
    with RawMatchReader(tmp_path) as reader:  # and nothing was lost
        assert_same(reader.read("a", "b"), raw(0))
    with RawMatchWriter(tmp_path, now, overwrite=True) as writer:
        assert writer.done == set()
        writer.add("a", "c", raw(1))
    with RawMatchReader(tmp_path) as reader:
        assert reader.pairs() == [("a", "c")]
        assert reader.provenance == now


@pytest.mark.parametrize("reverse", [False, True])
def test_pairs_of_a_changed_image_are_matched_again(tmp_path: Path, reverse: bool) -> None:
    before = {"a": (100, 1), "b": (200, 2), "c": (300, 3)}
    with RawMatchWriter(tmp_path, PROVENANCE, before) as writer:
        for seed, pair in enumerate([("a", "b"), ("a", "c"), ("b", "c")]):
            writer.add(*pair, raw(seed))
    after = before | {"b": (200, 5)}
    with RawMatchWriter(tmp_path, PROVENANCE, after) as writer:
        assert writer.done == {"a/c"}
        if reverse:
            writer.add("b", "a", raw(10).swapped())
        else:
            writer.add("a", "b", raw(10))
    with RawMatchReader(tmp_path) as reader:
        assert sorted(reader.pairs()) == [("a", "b"), ("a", "c"), ("b", "c")]
        assert_same(reader.read("a", "b"), raw(10))
        assert_same(reader.read("b", "a"), raw(10).swapped())
        assert_same(reader.read("a", "c"), raw(1))
    with RawMatchWriter(tmp_path, PROVENANCE, after) as writer:
        assert writer.done == {"a/b", "a/c"}
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:  # who does not ask gets them all
        assert writer.done == {"a/b", "a/c", "b/c"}


def test_a_pair_added_twice_counts_once(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, {}) as writer:
        writer.add("a", "b", raw(0))
        writer.add("a", "b", raw(1))
    with RawMatchReader(tmp_path) as reader:
        assert reader.pairs() == [("a", "b")]
        assert_same(reader.read("a", "b"), raw(1))


def test_pairs_reach_the_disk_while_the_writer_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_FLUSH_SECONDS", 0.05)
    with RawMatchWriter(tmp_path, {}) as writer:
        writer.add("a", "b", raw(0))
        deadline = time.monotonic() + 10
        while not files(tmp_path) & {"matches-000000.h5"}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert RawMatchReader(tmp_path).pairs() == [("a", "b")]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path, {}):
        for overwrite in (False, True):
            with pytest.raises(EdmHlocError, match="Another process"):
                RawMatchWriter(tmp_path, {}, overwrite=overwrite)
    RawMatchWriter(tmp_path, {}).close()


# --------------------------------------------------------------------------- shards


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writer_module, "_FLUSH_PAIRS", 2)
    monkeypatch.setattr(writer_module, "_FAN_IN", 4)
    monkeypatch.setattr(writer_module, "_MERGE_BELOW_PAIRS", (8, 32))
    return


def write_many(folder: Path, count: int, first_seed: int = 0) -> None:
    with RawMatchWriter(folder, PROVENANCE) as writer:
        for i in range(count):
            writer.add(f"{i // 7}.jpg", f"to/{i}.jpg", raw(first_seed + i))


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


# --------------------------------------------------------------------------- kills

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
    assert {path.suffix for path in tmp_path.iterdir() if path.name != ".lock"} <= {".h5", ".tmp"}


def _stored_values(reader: RawMatchReader) -> Iterator[np.ndarray]:
    for name0, name1 in reader.pairs():
        i = int(name1.removeprefix("right/").removesuffix(".jpg"))
        assert name0 == f"left {i % 5}/é.jpg"
        matches = reader.read(name0, name1)
        values = np.full(100 + i % 50, i, np.float32)
        points = np.stack([values, -values], axis=1)
        assert_same(matches, Matches(points, points + 0.5, values))
        yield matches.scores


# --------------------------------------------------------------------------- trouble with the disk

_FILL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.matching.writer import RawMatchWriter
kind, folder, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
points, scores = np.zeros((2000, 2), np.float32), np.zeros(2000, np.float32)
try:
    if kind == "raw":
        with RawMatchWriter(folder, {}) as writer:
            for i in range(2000):
                writer.add("a", str(i), Matches(points, points, scores))
    elif kind == "features":
        with FeatureWriter(folder / "out.h5", {}) as writer:
            for i in range(2000):
                writer.add(f"a/{i}", points, scores)
    else:
        with MatchWriter(folder / "out.h5", {}) as writer:
            for i in range(2000):
                writer.add("a", str(i), scores, scores)
except EdmHlocError as error:
    print(error)
    sys.exit(3)
"""


@posix_only
@pytest.mark.parametrize("kind", ["raw", "features", "matches"])
@pytest.mark.parametrize("limit", [0, 1_000_000])
def test_full_disk_is_a_clear_error(tmp_path: Path, kind: str, limit: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _FILL_DISK, kind, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 3, result.stderr
    assert "Cannot write" in result.stdout
    assert str(tmp_path) in result.stdout
    assert result.stderr == ""
    assert not list(tmp_path.glob(".*.tmp"))
    assert all(path.stat().st_size <= limit for path in tmp_path.glob("*.h5"))
    if kind == "raw":  # the folder is still good
        RawMatchWriter(tmp_path, {}).close()
    else:
        assert files(tmp_path) == set()


def test_error_of_the_writer_thread_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "_FLUSH_PAIRS", 1)
    monkeypatch.setattr(os, "fsync", fail)
    writer = RawMatchWriter(tmp_path, {})

    def add_many() -> None:
        for i in range(100_000):  # the queue never blocks for ever
            writer.add("a", str(i), raw(0))

    with pytest.raises(EdmHlocError, match=r"matches-000000\.h5: No space left"):
        add_many()
    with pytest.raises(EdmHlocError, match="No space left"):
        writer.close()
    monkeypatch.undo()
    assert files(tmp_path) == set()
    RawMatchWriter(tmp_path, {}).close()  # the lock is free again


def test_error_while_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    writer = RawMatchWriter(tmp_path, {})
    writer.add("a", "b", raw(0))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EdmHlocError, match="No space left"):
        writer.close()


def test_a_failing_block_keeps_its_own_exception_and_its_pairs(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RawMatchWriter(tmp_path, {}) as writer:
            writer.add("a", "b", raw(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert RawMatchReader(tmp_path).pairs() == [("a", "b")]


def test_add_after_close_is_refused(tmp_path: Path) -> None:
    writer = RawMatchWriter(tmp_path, {})
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add("a", "b", raw(0))


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    write_many(tmp_path, 30)
    (shard,) = tmp_path.glob("*.h5")
    data = shard.read_bytes()
    shard.write_bytes({"cut": data[: len(data) // 2], "text": b"hello" * 99, "empty": b""}[damage])
    for read in (
        lambda: RawMatchReader(tmp_path).pairs(),
        lambda: RawMatchWriter(tmp_path, PROVENANCE),
        lambda: FeatureReader(shard),
        lambda: MatchReader(shard),
        lambda: DescriptorReader(shard),
    ):
        with pytest.raises(EdmHlocError, match=rf"{shard.name} is damaged"):
            read()
    # the refused writer holds no lock
    shard.unlink()
    RawMatchWriter(tmp_path, PROVENANCE).close()


def test_damage_within_descriptors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "global.h5"
    names = [f"{i}.jpg" for i in range(200)]
    with DescriptorWriter(path, PROVENANCE) as writer:
        for name in names:
            writer.add(name, np.ones(64))
        with pytest.raises(EdmHlocError, match="cannot be stored in an H5 file"):
            writer.add("a//b.jpg", np.ones(64))
        with pytest.raises(EdmHlocError, match="written once"):
            writer.add("0.jpg", np.ones(64))
    with DescriptorReader(path) as reader:
        assert reader.names() == sorted(names)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    with DescriptorReader(path) as reader:
        with pytest.raises(EdmHlocError, match=r"global\.h5 is damaged"):
            reader.names()
        with pytest.raises(EdmHlocError, match=r"global\.h5"):
            reader.read(names)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for reader in (RawMatchReader, FeatureReader, MatchReader, DescriptorReader):
        with pytest.raises(EdmHlocError, match="nowhere"):
            reader(tmp_path / "nowhere")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("mine")
    with pytest.raises(EdmHlocError, match="raw"):
        RawMatchWriter(tmp_path / "raw", {})


# --------------------------------------------------------------------------- final files


def test_features_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "features.h5"
    keypoints = np.array([[0, 0], [1.5, 2.25], [4031.5, -0.5]])
    with FeatureWriter(path, PROVENANCE) as writer:
        writer.add("a", keypoints, np.array([1, 2, 3]), uncertainty=0.5)
        writer.add("a/b c-d.jpg", keypoints[:1], np.array([7.0]))
        writer.add("a/ünïcødé/日本.png", np.zeros((0, 2)), np.zeros(0))
        assert not path.exists()
    assert files(path.parent) == {"features.h5"}
    with FeatureReader(path) as reader:
        assert reader.names() == ["a", "a/b c-d.jpg", "a/ünïcødé/日本.png"]
        np.testing.assert_array_equal(reader.keypoints("a"), keypoints)
        np.testing.assert_array_equal(reader.scores("a"), [1, 2, 3])
        assert reader.keypoints("a").dtype == np.float32
        assert reader.uncertainty("a") == 0.5
        assert reader.uncertainty("a/b c-d.jpg") is None
        assert reader.keypoints("a/ünïcødé/日本.png").shape == (0, 2)
        assert reader.provenance == PROVENANCE
        assert "a/b c-d.jpg" in reader
        assert "a/ünïcødé" not in reader
        with pytest.raises(EdmHlocError, match=r"'b\.jpg'.*features\.h5"):
            reader.keypoints("b.jpg")


def test_features_are_what_hloc_expects(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with FeatureWriter(path, PROVENANCE) as writer:
        writer.add("db/1.jpg", np.ones((2, 2)), np.ones(2), uncertainty=1.25)
    with h5py.File(path, "r", libver="latest") as h5:
        # hloc takes the parent of each data set for the name of an image
        parents = set()
        h5.visititems(
            lambda _, item: (
                parents.add(item.parent.name) if isinstance(item, h5py.Dataset) else None
            )
        )
        assert parents == {"/db/1.jpg"}
        dataset = h5["db/1.jpg"]["keypoints"]
        assert dataset.shape == (2, 2)
        assert dataset.attrs["uncertainty"] == 1.25
        assert h5["db/1.jpg/scores"].shape == (2,)
    with h5py.File(path, "a") as h5:  # and adds to it
        h5.create_group("db/2.jpg").create_dataset("keypoints", data=np.zeros((1, 2)))
    assert FeatureReader(path).names() == ["db/1.jpg", "db/2.jpg"]


@with_files
@given(st.lists(image_names, unique=True, max_size=6))
def test_feature_names_round_trip(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    path = tmp_path_factory.mktemp("features") / "f.h5"
    with FeatureWriter(path, {}) as writer:
        for i, name in enumerate(names):
            writer.add(name, np.full((i, 2), i), np.full(i, i))
    with FeatureReader(path) as reader:
        assert reader.names() == sorted(names)
        for i, name in enumerate(names):
            np.testing.assert_array_equal(reader.keypoints(name), np.full((i, 2), i))


def test_hlocs_features_are_read(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w") as h5:
        first = h5.create_group("db/1.jpg")
        first.create_dataset("keypoints", data=np.array([[3.5, 4.5]], np.float16))
        first["keypoints"].attrs["uncertainty"] = 2
        first.create_dataset("descriptors", data=np.zeros((256, 1), np.float16))
        first.create_dataset("score", data=np.array([0.5]))
        second = h5.create_group("2.jpg")
        second.create_dataset("keypoints", data=np.zeros((0, 2)))
        third = h5.create_group("3.jpg")
        third.create_dataset("keypoints", data=np.zeros((1, 2)))
        third.create_dataset("scores", data=np.array([0.25]))
        third.create_dataset("score", data=np.array([9.0]))
    with FeatureReader(path) as reader:
        assert reader.names() == ["2.jpg", "3.jpg", "db/1.jpg"]
        np.testing.assert_array_equal(reader.keypoints("db/1.jpg"), [[3.5, 4.5]])
        assert reader.scores("db/1.jpg") == [0.5]
        assert reader.scores("3.jpg") == [0.25]
        assert reader.scores("2.jpg") is None
        assert reader.uncertainty("db/1.jpg") == 2.0
        assert reader.provenance == {}


def test_matches_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "matches.h5"
    with MatchWriter(path, PROVENANCE) as writer:
        writer.add("a/1.jpg", "b 2.jpg", np.array([-1, 5, -1, 0]), np.array([0, 0.5, 0, 0.25]))
        writer.add("a/1.jpg", "c.jpg", np.zeros(0, int), np.zeros(0))
        assert not path.exists()
    with h5py.File(path) as h5:
        group = h5["a-1.jpg"]["b 2.jpg"]
        assert group["matches0"].dtype == np.int32
        assert group["matching_scores0"].dtype == np.float16
        np.testing.assert_array_equal(group["matches0"], [-1, 5, -1, 0])
    with MatchReader(path) as reader:
        matches, scores = reader.matches("a/1.jpg", "b 2.jpg")
        assert matches.dtype == np.int64
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(matches, [[1, 5], [3, 0]])
        np.testing.assert_array_equal(scores, [0.5, 0.25])
        matches, scores = reader.matches("b 2.jpg", "a/1.jpg")
        np.testing.assert_array_equal(matches, [[5, 1], [0, 3]])
        assert reader.matches("c.jpg", "a/1.jpg")[0].shape == (0, 2)
        assert ("c.jpg", "a/1.jpg") in reader
        assert ("c.jpg", "b 2.jpg") not in reader
        with pytest.raises(EdmHlocError, match=r"'c\.jpg', 'b 2\.jpg'.*matches\.h5"):
            reader.matches("c.jpg", "b 2.jpg")
        assert reader.provenance == PROVENANCE


def test_hlocs_matches_are_read_in_every_format(tmp_path: Path) -> None:
    path = tmp_path / "hloc.h5"
    with h5py.File(path, "w") as h5:
        for i, key in enumerate(["db-1/q-1", "db-1_q-2", "db-1_q-2/x"]):
            group = h5.require_group(key)
            group.create_dataset("matches0", data=np.array([-1, 10 + i], np.int16))
            group.create_dataset("matching_scores0", data=np.array([0, 1], np.float16))
        # dense matching was killed before it gave this pair its indices
        h5.create_group("db-1/q-3").create_dataset("keypoints0", data=np.zeros((2, 2)))
    with MatchReader(path) as reader:
        for name0, name1, expected in [
            ("db/1", "q/1", [[1, 10]]),
            ("q/1", "db/1", [[10, 1]]),
            ("db/1", "q/2", [[1, 11]]),
            ("q/2", "db/1", [[11, 1]]),
            ("db/1_q/2", "x", [[1, 12]]),
        ]:
            assert (name0, name1) in reader
            np.testing.assert_array_equal(reader.matches(name0, name1)[0], expected)
        assert ("db/1", "q/3") not in reader


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


def test_colliding_match_keys_are_refused(tmp_path: Path) -> None:
    empty = np.zeros(0, int)
    with MatchWriter(tmp_path / "m.h5", {}) as writer:
        writer.add("a/b.jpg", "c", empty, empty)
        with pytest.raises(EdmHlocError, match="same key"):
            writer.add("a-b.jpg", "c", empty, empty)
        with pytest.raises(EdmHlocError, match="written once"):
            writer.add("a/b.jpg", "c", empty, empty)


def test_a_failed_block_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    for name in ("first.jpg", "second.jpg"):
        with FeatureWriter(path, {}) as writer:
            writer.add(name, np.zeros((1, 2)), np.zeros(1))
        assert FeatureReader(path).names() == [name]

    def failing() -> None:
        with FeatureWriter(path, {}) as writer:
            writer.add("third.jpg", np.zeros((1, 2)), np.zeros(1))
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        failing()
    assert files(tmp_path) == {"features.h5"}
    assert FeatureReader(path).names() == ["second.jpg"]


def test_leftovers_of_a_kill_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    (tmp_path / ".features.h5.tmp").write_bytes(b"half a file")
    with FeatureWriter(path, {}) as writer:
        writer.add("a.jpg", np.zeros((1, 2)), np.zeros(1))
    assert files(tmp_path) == {"features.h5"}


@posix_only
def test_two_processes_on_one_final_file(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    first = FeatureWriter(path, {})
    first.add("first.jpg", np.zeros((1, 2)), np.zeros(1))
    with FeatureWriter(path, {}) as second:
        second.add("second.jpg", np.zeros((1, 2)), np.zeros(1))
        with pytest.raises(EdmHlocError, match="Another process"):
            first.__exit__(None, None, None)
        second.add("third.jpg", np.zeros((1, 2)), np.zeros(1))
    assert FeatureReader(path).names() == ["second.jpg", "third.jpg"]

"""Raw matches written: resumed and replaced, killed, merged; names, settings, errors."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import pair_key, store_text
from edm_hloc.keypoints.h5 import FeatureWriter
from edm_hloc.matching import writer as writer_module
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.recent import RecentPairs
from edm_hloc.matching.shards import StoredPair, store_matches, store_pairs
from edm_hloc.matching.writer import RawMatchWriter
from tests.h5_files import (
    PROVENANCE,
    assert_same,
    files,
    image_names,
    raw,
    with_files,
)


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


def test_what_a_killed_writer_has_left_does_not_replace_what_is_newer(tmp_path: Path) -> None:
    before = {"a": (100, 1), "b": (200, 2)}
    after = {"a": (100, 1), "b": (200, 5)}
    left = RecentPairs(tmp_path, PROVENANCE)
    left.put(StoredPair(("a", "b"), (before["a"], before["b"])), raw(0))
    left.close()
    with h5py.File(tmp_path / "matches-000000.h5", "w") as h5:  # as other processes put it there
        store_text(h5, "provenance", json.dumps(PROVENANCE))
        pair = StoredPair(("b", "a"), (after["b"], after["a"]))
        store_pairs(h5, [store_matches(h5, pair, raw(1))])
    with RawMatchWriter(tmp_path, PROVENANCE, after) as writer:
        assert ("a", "b") in writer
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read("b", "a"), raw(1))


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
    assert files(tmp_path) == {".recent.part"}
    with RawMatchWriter(tmp_path, {}) as writer:  # the lock is free again, and no pair is lost
        assert ("a", "0") in writer
    assert files(tmp_path) == {"matches-000000.h5"}


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


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("mine")
    with pytest.raises(EdmHlocError, match="raw"):
        RawMatchWriter(tmp_path / "raw", {})

"""Raw matches that have rotted on the disk are named, dropped and matched again."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import DamagedH5Error
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.matching import writer as writer_module
from edm_hloc.matching.damage import drop_damaged
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.matching import PairsToMatch, match_and_quantize
from edm_hloc.pipelines.run import Run
from tests.fakes import FakeMatcher
from tests.h5_files import PROVENANCE, assert_same, files, raw, write_many


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turns one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def flip_in(path: Path, array: np.ndarray) -> None:
    """Turns one bit of an array in a file."""
    flip(path, path.read_bytes().index(array.tobytes()) + array.nbytes // 2)


def names_of(i: int) -> Pair:
    return f"{i // 7}.jpg", f"to/{i}.jpg"


@pytest.mark.parametrize("field", ["keypoints0", "keypoints1", "scores"])
def test_matches_that_have_changed_are_named_and_dropped(
    field: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_many(tmp_path, 30)
    (shard,) = tmp_path.glob("*.h5")
    flip_in(shard, raw(16).arrays()[field])
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read(*names_of(15)), raw(15))
        with pytest.raises(DamagedH5Error, match=rf"{shard.name} .*2\.jpg and to/16\.jpg have cha"):
            reader.read(*names_of(16))
        with pytest.raises(EdmHlocError, match="have changed"):
            reader.read(*reversed(names_of(16)))
    with caplog.at_level(logging.WARNING):
        drop_damaged(tmp_path)
    assert "Damaged, and matched again: the matches of 2.jpg and to/16.jpg" in caplog.text
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        assert names_of(16) not in writer
        assert len(writer.done) == 29
        writer.add(*names_of(16), raw(16))
    with RawMatchReader(tmp_path) as reader:
        for i in range(30):
            assert_same(reader.read(*names_of(i)), raw(i))
        assert reader.provenance == PROVENANCE


def test_checksums_survive_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_FLUSH_PAIRS", 2)
    write_many(tmp_path, 40)
    assert len(files(tmp_path)) < 20
    shard = next(p for p in tmp_path.glob("*.h5") if raw(3).scores.tobytes() in p.read_bytes())
    flip_in(shard, raw(3).scores)
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read(*names_of(2)), raw(2))
        with pytest.raises(DamagedH5Error, match="have changed"):
            reader.read(*names_of(3))


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    write_many(tmp_path, 5)
    (shard,) = tmp_path.glob("*.h5")
    with h5py.File(shard, "a") as h5:
        del h5.attrs["checksums"]
    with RawMatchReader(tmp_path) as reader:
        assert_same(reader.read(*names_of(4)), raw(4))
    with RawMatchWriter(tmp_path, PROVENANCE) as writer:
        assert len(writer.done) == 5


def test_a_hole_of_zeros_is_not_read_without_end(tmp_path: Path) -> None:
    """As after a power cut; HDF5 would not come back from a heap of strings with such a hole."""
    write_many(tmp_path / "whole", 8)
    (shard,) = (tmp_path / "whole").glob("*.h5")
    data = shard.read_bytes()
    assert b"GCOL" not in data  # HDF5's heap, which has no checksum
    for start in range(0, len(data), 512):
        folder = tmp_path / str(start)
        folder.mkdir()
        holed = data[:start] + bytes(len(data[start : start + 512])) + data[start + 512 :]
        (folder / shard.name).write_bytes(holed)
        drop_damaged(folder)
        with RawMatchWriter(folder, PROVENANCE) as writer:
            found = [i for i in range(8) if names_of(i) in writer]
        with RawMatchReader(folder) as reader:
            for i in found:
                assert_same(reader.read(*names_of(i)), raw(i))


@pytest.mark.parametrize("changed", ["pairs", "provenance"])
def test_a_list_of_pairs_that_has_changed_is_noticed(
    changed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_many(tmp_path, 5)
    (shard,) = tmp_path.glob("*.h5")
    text = {"pairs": b'"to/3.jpg"', "provenance": b'"f686be"'}[changed]
    flip(shard, shard.read_bytes().index(text) + 4)
    with RawMatchReader(tmp_path) as reader, pytest.raises(DamagedH5Error, match="is damaged"):
        reader.pairs()
    with caplog.at_level(logging.WARNING), RawMatchWriter(tmp_path, PROVENANCE) as writer:
        assert not writer.done
    assert f"{shard} is damaged (" in caplog.text
    assert files(tmp_path) == {f"{shard.name}.damaged"}


@pytest.mark.slow
def test_no_single_bit_gives_other_matches(tmp_path: Path) -> None:
    """Wherever a bit is turned, the matches are those that were stored or there are none."""
    write_many(tmp_path / "whole", 8)
    (shard,) = (tmp_path / "whole").glob("*.h5")
    size = shard.stat().st_size
    random = np.random.default_rng(0)
    noticed = 0
    for trial in range(150):
        folder = tmp_path / str(trial)
        folder.mkdir()
        shutil.copy(shard, folder)
        flip(folder / shard.name, int(random.integers(size)), int(random.integers(8)))
        drop_damaged(folder)
        with RawMatchWriter(folder, PROVENANCE) as writer:
            found = [i for i in range(8) if names_of(i) in writer]
        with RawMatchReader(folder) as reader:
            for i in found:
                assert_same(reader.read(*names_of(i)), raw(i))
        noticed += len(found) < 8
    assert noticed > 30


@pytest.mark.parametrize("damage", ["data", "file"])
def test_damaged_pairs_are_matched_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(6):
        Image.new("L", (40, 50), 10 + i).save(photos / f"{i}.png")
    pairs = list(itertools.combinations([f"{i}.png" for i in range(6)], 2))
    matcher = FakeMatcher()

    def make(max_error: float) -> dict[str, bytes]:
        matcher.matched.clear()
        with Run.begin(out, {"command": "x"}, matcher, [], overwrite=False) as run:
            keypoints = QuantizationConfig(max_error, cell_size=max_error, max_kps=None)
            match_and_quantize(run, PairsToMatch(photos, pairs), matcher, keypoints)
            assert len(run.results["matching"]["skipped"]) == 0
        return {name: (out / name).read_bytes() for name in ("features.h5", "matches.h5")}

    expected = make(2.0)
    assert len(matcher.matched) == 15
    (shard,) = (out / "raw_matches").glob("*.h5")
    if damage == "data":
        with h5py.File(shard) as h5:
            keypoints = h5["1.png/4.png/keypoints1"][...]
        flip_in(shard, keypoints)
    else:
        flip(shard, 9)
    make(1.0)  # reads the raw matches again
    with caplog.at_level(logging.WARNING):
        assert make(2.0) == expected
    record = json.loads((out / "run.json").read_text())
    assert record["results"]["keypoints"]["missing_pairs"] == []
    with RawMatchReader(out / "raw_matches") as reader:
        assert sorted(reader.pairs()) == pairs
        for pair in pairs:
            reader.read(*pair)
    assert make(2.0) == expected
    assert not matcher.matched  # once is enough

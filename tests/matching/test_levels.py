"""A run names the levels of its 16-bit photos, and is not continued with others."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.matching.engine import match_pairs
from edm_hloc.pipelines.matching import PairsToMatch, match_and_quantize
from edm_hloc.pipelines.run import Run
from edm_hloc.report.page import make_report
from tests.fakes import FakeMatcher


def save(folder: Path, numbers: range, high: int) -> None:
    """Photos with values from 0 to about `high`."""
    folder.mkdir(exist_ok=True)
    for i in numbers:
        rng = np.random.default_rng(i)
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, high, (50, 40 + i)).astype(np.uint16))


def pairs_of(folder: Path) -> list[tuple[str, str]]:
    return list(itertools.combinations(sorted(p.name for p in folder.iterdir()), 2))


def test_a_resume_with_other_levels_is_told(tmp_path: Path) -> None:
    photos, raw = tmp_path / "photos", tmp_path / "raw"
    save(photos, range(3), 4096)
    summary = match_pairs(photos, pairs_of(photos), FakeMatcher(), raw)
    key = f"{photos.resolve()} uint16"
    assert summary.levels == {key: [0.0, 4096.0]}
    save(photos, range(3, 5), 4096)  # changes nothing
    summary = match_pairs(photos, pairs_of(photos), FakeMatcher(), raw)
    assert (summary.resumed, summary.matched) == (3, 7)
    save(photos, range(5, 7), 9000)
    matcher = FakeMatcher()
    with pytest.raises(EdmHlocError, match=rf"{photos} .*values 0 and 4096 as .* values 0 and 9\d"):
        match_pairs(photos, pairs_of(photos), matcher, raw)
    assert not matcher.matched
    # what is stored needs no photo
    summary = match_pairs(photos, pairs_of(photos)[:1], FakeMatcher(), raw)
    assert (summary.resumed, summary.levels) == (1, {key: [0.0, 4096.0]})
    summary = match_pairs(photos, pairs_of(photos), FakeMatcher(), raw, overwrite=True)
    assert summary.matched == 21
    assert summary.levels[key] == [0.0, pytest.approx(9216, abs=256)]


def test_a_full_range_counts_too(tmp_path: Path) -> None:
    photos, raw = tmp_path / "photos", tmp_path / "raw"
    save(photos, range(3), 65536)
    assert match_pairs(photos, pairs_of(photos), FakeMatcher(), raw).levels == {
        f"{photos.resolve()} uint16": None
    }
    for i in range(3):
        (photos / f"{i}.png").unlink()
    save(photos, range(3), 4096)
    with pytest.raises(EdmHlocError, match=r"were matched with their full range .* 0 and 4096"):
        match_pairs(photos, pairs_of(photos), FakeMatcher(), raw)


def test_eight_bits_need_no_levels(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("L", (40, 50), 10 + i).save(tmp_path / "photos" / f"{i}.png")
    pairs = pairs_of(tmp_path / "photos")
    assert match_pairs(tmp_path / "photos", pairs, FakeMatcher(), tmp_path / "raw").levels == {}
    assert not (tmp_path / "raw" / "levels.json").exists()


def test_levels_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    save(tmp_path / "photos", range(2), 4096)
    pairs = pairs_of(tmp_path / "photos")
    match_pairs(tmp_path / "photos", pairs, FakeMatcher(), tmp_path / "raw")
    (tmp_path / "raw" / "levels.json").write_text('{"a": [1]}')
    with pytest.raises(EdmHlocError, match=r"levels\.json is damaged: delete it"):
        match_pairs(tmp_path / "photos", pairs, FakeMatcher(), tmp_path / "raw")


def test_the_record_and_the_report_name_the_levels(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    save(photos, range(3), 4096)
    settings = {"command": "match-pairs", "images": str(photos)}
    with Run.begin(out, settings, FakeMatcher(), [], overwrite=False) as run:
        keypoints = QuantizationConfig(1.0, cell_size=1.0, max_kps=None)
        match_and_quantize(run, PairsToMatch(photos, pairs_of(photos)), FakeMatcher(), keypoints)
    record = json.loads((out / "run.json").read_text())
    assert record["results"]["matching"]["levels"] == {f"{photos.resolve()} uint16": [0.0, 4096.0]}
    page = make_report(out).read_text()
    assert "hold uint16 values, of which only 0 to 4096 are used" in page

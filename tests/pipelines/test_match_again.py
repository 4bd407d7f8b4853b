"""Matching once more, after photos, pairs or workers have changed, gives what a fresh run gives."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.matching import MATCHING_FILES, PairsToMatch, match_and_quantize
from edm_hloc.pipelines.run import Run
from tests.fakes import FakeMatcher

NAMES = ["a b/1 #.png", "a b/é.png", "c.png", "d.png", "e.png"]
PAIRS = list(itertools.combinations(NAMES, 2))


def put_photo(root: Path, name: str, level: int | None) -> None:
    """A grey photo, or with None a file that is none; its time is later than that of others."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    later = path.stat().st_mtime_ns + 10**9 if path.exists() else 10**18
    if level is None:
        path.write_bytes(b"no photo")
    else:
        Image.new("L", (40, 50), level).save(path)
    os.utime(path, ns=(later, later))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        put_photo(tmp_path / "photos", name, 20 * i)
    return tmp_path / "photos"


def match(out: Path, root: Path, pairs: Sequence[Pair] = PAIRS) -> dict[str, Any]:
    """What match-pairs does; its results."""
    settings = {"command": "match-pairs"}
    with Run.begin(out, settings, FakeMatcher(), MATCHING_FILES, overwrite=False) as run:
        keypoints = QuantizationConfig(2, 2, None)
        match_and_quantize(run, PairsToMatch(root, pairs), FakeMatcher(), keypoints)
        return run.results


def content(out: Path) -> dict[str, bytes]:
    """All datasets of features.h5 and matches.h5."""
    found: dict[str, bytes] = {}
    for file in MATCHING_FILES:
        with h5py.File(out / file) as h5:

            def visit(name: str, item: h5py.Group | h5py.Dataset, file: str = file) -> None:
                if isinstance(item, h5py.Dataset):
                    found[f"{file}/{name}"] = np.asarray(item).tobytes()

            h5.visititems(visit)
    return found


def test_matches_of_a_photo_that_is_none_any_more_are_not_used(
    photos: Path, tmp_path: Path
) -> None:
    match(tmp_path / "out", photos)
    whole = content(tmp_path / "out")
    photo = (photos / "c.png").read_bytes()
    times = ((photos / "c.png").stat().st_mtime_ns,) * 2
    put_photo(photos, "c.png", None)
    results = match(tmp_path / "out", photos)
    assert results["matching"]["skipped"].keys() == {"c.png"}
    fresh = match(tmp_path / "fresh", photos)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert results["keypoints"] == fresh["keypoints"]
    assert len(results["keypoints"]["missing_pairs"]) == 4
    (photos / "c.png").write_bytes(photo)  # the same file comes back: nothing was lost
    os.utime(photos / "c.png", ns=times)
    assert match(tmp_path / "out", photos)["matching"]["matched"] == 0
    assert content(tmp_path / "out") == whole

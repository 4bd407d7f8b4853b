"""Matching once more, after photos, pairs or workers have changed, gives what a fresh run gives."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.matchers.base import Features
from edm_hloc.matching import writer
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines import workers
from edm_hloc.pipelines.matching import MATCHING_FILES, PairsToMatch, match_and_quantize
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shards import match_shard, merge_shards
from tests.fakes import FakeMatcher
from tests.pipelines.fake_workers import CrewOfOne

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


def match(
    out: Path,
    root: Path,
    pairs: Sequence[Pair] = PAIRS,
    matcher: FakeMatcher | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """What match-pairs does; its results."""
    matcher = matcher or FakeMatcher()
    settings = {"command": "match-pairs"}
    with Run.begin(out, settings, matcher, MATCHING_FILES, overwrite=False) as run:
        config = MatchingConfig(workers=workers, shown=False)
        keypoints = QuantizationConfig(2, 2, None)
        match_and_quantize(run, PairsToMatch(root, pairs), matcher, keypoints, config)
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


class Interrupted(FakeMatcher):
    """Is interrupted at one of its pairs."""

    def __init__(self, pair: int) -> None:
        super().__init__()
        self.left = pair

    def find(self, features0: Features, features1: Features) -> Matches:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().find(features0, features1)


@pytest.mark.parametrize(
    "seed", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow), 2, 3]
)
def test_whatever_was_done_before_a_run_gives_what_a_fresh_one_gives(
    seed: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "ProcessCrew", CrewOfOne)
    monkeypatch.setattr(workers, "_FEWEST_PAIRS", 2)
    monkeypatch.setattr(writer, "_FLUSH_PAIRS", 3)
    monkeypatch.setattr(writer, "_FAN_IN", 3)
    r, levels, pairs, out = random.Random(seed), itertools.count(100, 7), PAIRS, tmp_path / "out"
    for step in range(6):
        change = r.choice(["other pairs", "other order", "other photo", "no photo", "other time"])
        if change == "other pairs":
            pairs = r.sample(PAIRS, r.randint(5, 10)) + r.sample(PAIRS, 2)
        elif change == "other order":
            pairs = [
                pair[::-1] if r.random() < 0.5 else pair for pair in r.sample(pairs, len(pairs))
            ]
        elif change == "other time":
            for name in NAMES:
                times = (photos / name).stat().st_mtime_ns + 10**9
                os.utime(photos / name, ns=(times, times))
        else:  # one at most is none
            put_photo(photos, NAMES[2], None if change == "no photo" else next(levels))
            put_photo(photos, r.choice([*NAMES[:2], *NAMES[3:]]), next(levels))
        if r.random() < 0.4:
            with contextlib.suppress(KeyboardInterrupt):
                match(out, photos, pairs, Interrupted(r.randrange(8)))
        if r.random() < 0.4:
            plan = make_plan(out, photos, pairs, FakeMatcher(), shards=3, overwrite=True)
            for shard in r.choices(range(1, len(plan.pairs) + 1), k=r.randint(1, 5)):
                match_shard(plan, shard, FakeMatcher())
            with contextlib.suppress(EdmHlocError):  # of shards that are not done
                merge_shards(plan)
        found = match(out, photos, pairs, workers=r.choice([1, 2]))
        fresh = match(tmp_path / f"fresh {step}", photos, pairs)
        assert content(out) == content(tmp_path / f"fresh {step}")
        for results in (found, fresh):  # of a step that was done already it was read from JSON
            results["keypoints"]["missing_pairs"] = set(
                map(tuple, results["keypoints"]["missing_pairs"])
            )
        assert found["keypoints"] == fresh["keypoints"]
        assert found["matching"]["skipped"].keys() == fresh["matching"]["skipped"].keys()


def test_one_process_says_what_it_does_not_take_over(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    plan = make_plan(out, photos, PAIRS, FakeMatcher(), shards=3)
    match(out, photos, PAIRS[:2])
    assert "take over" not in caplog.text  # nothing was matched by workers
    match_shard(plan, 1, FakeMatcher())
    match(out, photos)
    assert f"{plan.folder} holds matches of workers" in caplog.text
    assert "matches these 2 pairs itself" in caplog.text
    caplog.clear()
    match(out, photos)
    assert "take over" not in caplog.text  # nor is there more to match

"""Photos that were copied or unpacked again are those that were matched, if their content is."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.automatic import AutomaticPairs
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import make_plan
from edm_hloc.pipelines.shards import is_matched, match_shard, merge_shards
from edm_hloc.pipelines.workers import match_in_processes
from tests.fakes import FakeMatcher
from tests.pipelines.test_match_again import PAIRS, match, photos, put_photo
from tests.scenes import TruthMatcher

__all__ = ["photos"]


def touch(folder: Path, time: int) -> None:
    for path in folder.rglob("*.*"):
        os.utime(path, ns=(time, time))


def change(photo: Path) -> None:
    """Gives a photo other bytes, though of the same pixels."""
    with photo.open("ab") as file:
        file.write(b"more")


@pytest.mark.slow
def test_another_time_alone_repeats_nothing(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, masks, out = (tmp_path / name for name in ("images", "masks", "out"))
    shutil.copytree(scene / "images", images)
    names = find_images(images)
    masks.mkdir()
    for name in names:
        Image.new("L", Image.open(images / name).size, 255).save(masks / f"{name}.png")

    def run() -> Run:
        options = AutomaticPairs(tuple(names), RetrievalOptions("sift", 40), partners=4)
        cameras = CameraOptions(mode="single", model="SIMPLE_PINHOLE")
        config = ReconstructionConfig(cameras=cameras, masks=masks, refine_tracks=False)
        return reconstruct(images, out, options, TruthMatcher(scene), config)

    number = run().results["matching"]["matched"]
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.is_file()}
    for time in (10**18, 2 * 10**18):
        touch(images, time)
        touch(masks, time)
        matching = run().results["matching"]
        assert (matching["matched"], matching["resumed"]) == (0, number)
        written = {p.name for p in before if p.stat().st_mtime_ns != before[p]}
        assert written <= {"run.json", "pairs.txt", "photos.json"}
    change(images / names[0])
    with caplog.at_level(logging.WARNING):
        assert run().results["extended"]["before"] == len(names)
    assert f"1 photo changed since the matching, such as {names[0]}" in caplog.text
    caplog.clear()
    for name in names:
        change(images / name)
    with caplog.at_level(logging.WARNING):
        assert "extended" not in run().results
    assert f"({len(names)} photos of it changed since)" in caplog.text


def test_matches_of_workers_hold_for_another_time(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    match(out, photos, PAIRS[:2])
    plan = make_plan(out, photos, PAIRS[2:], FakeMatcher(), shards=2)
    match_shard(plan, 1, FakeMatcher())
    put_photo(photos, "c.png", 40)  # as it was, but later
    match_in_processes(photos, PAIRS[:2], FakeMatcher(), out / "raw_matches")
    assert is_matched(plan, 1)
    match_shard(plan, 2, FakeMatcher())
    merge_shards(plan)
    config = MatchingConfig(shown=False)
    done = match_in_processes(photos, PAIRS, FakeMatcher(), out / "raw_matches", config)
    assert (done.matched, done.resumed) == (0, len(PAIRS))

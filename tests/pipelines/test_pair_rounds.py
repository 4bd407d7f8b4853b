"""Pairs that are chosen while they are matched, end to end."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import edm_hloc
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.matchers.base import Features
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.descriptors import DescriptorWriter
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.rules import Pair
from edm_hloc.pairs.selection import PairSelection, select_pairs
from edm_hloc.pipelines.matching import MATCHING_FILES
from edm_hloc.pipelines.pair_rounds import PairRounds
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from edm_hloc.pipelines.run import Run
from tests.scenes import TruthMatcher

CONFIG = ReconstructionConfig(
    cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
)
CHOICE = PairSelection(retrieval="sift", partners=2)


def test_a_few_pairs_make_the_model_and_a_second_run_chooses_none(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    (images / "bad.png").write_bytes(b"")
    photos = select_pairs(images, find_images(images), CHOICE)
    start = time.monotonic()
    run = reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)
    assert set(run.seconds) >= {"descriptors of sift", "pairs", "matching", "model"}
    assert min(run.seconds.values()) >= 0
    assert sum(run.seconds.values()) < time.monotonic() - start  # none of it counts twice
    said = capsys.readouterr().err
    assert "first of the 28 that 8 photos have: each photo with those that look like it and" in said
    chosen = run.results["pairs"]
    assert chosen["photos"] == 8
    assert chosen["connected"] >= 7
    pairs = read_pairs(out / "pairs.txt")
    assert sum(chosen["rounds"]) == len(pairs) < 28
    assert list(run.results["matching"]["skipped"]) == ["bad.png"]
    assert run.results["matching"]["matched"] == sum("bad.png" not in pair for pair in pairs)
    assert compare(out / "model", scene / "truth").registered == 7

    again = reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)
    assert again.results["matching"]["matched"] == 0
    assert again.results["pairs"] == {**chosen, "rounds": list(chosen["rounds"])}
    assert read_pairs(out / "pairs.txt") == pairs
    assert "Pairs:" not in capsys.readouterr().err

    (out / "pairs-automatic2.txt").write_text("a b 3\n")
    with pytest.raises(EdmHlocError, match=r"pairs-automatic2\.txt is damaged: remove it"):
        reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)


class Interrupted(TruthMatcher):
    """Stops at a pair, as a kill does."""

    def __init__(self, scene: Path, at: int) -> None:
        super().__init__(scene)
        self.left = at

    def find(self, features0: Features, features1: Features) -> Matches:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().find(features0, features1)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_an_interrupted_choice_goes_on_as_if_it_had_not_been(
    scene: Path, tmp_path: Path, late: bool
) -> None:
    """In the first round, and in a later one: the same rounds, the same pairs."""
    choice = PairSelection(retrieval="sift", partners=4)
    photos = select_pairs(scene / "images", find_images(scene / "images"), choice)
    whole = reconstruct(scene / "images", tmp_path / "whole", photos, TruthMatcher(scene), CONFIG)
    first, *further = whole.results["pairs"]["rounds"]
    assert sum(further) > 1
    at = first + 1 if late else first // 2
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        reconstruct(scene / "images", out, photos, Interrupted(scene, at), CONFIG)
    run = reconstruct(scene / "images", out, photos, TruthMatcher(scene), CONFIG)
    assert run.results["pairs"] == whole.results["pairs"]
    assert run.results["matching"]["resumed"] > 0
    assert read_pairs(out / "pairs.txt") == read_pairs(tmp_path / "whole/pairs.txt")
    assert not list(out.glob(".pairs*"))


def chosen(images: Path, out: Path, scene: Path, choice: PairSelection = CHOICE) -> list[Pair]:
    """The pairs that a run into `out` chooses and matches."""
    photos, matcher = select_pairs(images, find_images(images), choice), TruthMatcher(scene)
    settings = {"command": "match-pairs"}
    with Run.begin(out, settings, matcher, MATCHING_FILES, overwrite=False) as run:
        found = PairRounds(run, photos, images, {}, matcher).find(MatchingConfig(shown=False))
        assert sum(run.results["pairs"]["rounds"]) == len(found.pairs)
        return list(found.pairs)


def test_names_may_begin_like_a_comment(scene: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(scene / "images", images)
    for folder, number in (("#3 kitchen", 2), ("#3 kitchen", 3), (" hall", 4)):
        (images / folder).mkdir(exist_ok=True)
        (images / f"view_0{number}.jpg").rename(images / folder / f"view_0{number}.jpg")
    first = {pair[0] for pair in chosen(images, tmp_path / "out", scene)}
    assert first >= {"#3 kitchen/view_02.jpg", " hall/view_04.jpg"}


def test_replaced_photos_are_compared_anew_and_added_ones_alone(
    scene: Path, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    names = find_images(images)
    added = (images / names[0]).rename(tmp_path / names[0])
    earlier = chosen(images, out, scene)
    added.rename(images / names[0])
    pairs = chosen(images, out, scene)
    assert {pair for pair in pairs if names[0] not in pair} == set(earlier)
    assert len(pairs) > len(earlier)
    contents = [(images / name).read_bytes() for name in names]
    for name, i in zip(names[1:], (3, 6, 2, 5, 1, 4), strict=True):  # such as other frames
        (images / name).write_bytes(contents[i])
    fresh = chosen(images, tmp_path / "fresh", scene)
    assert set(chosen(images, out, scene)) == set(fresh) != set(pairs)


def test_other_descriptors_choose_new_pairs(scene: Path, tmp_path: Path) -> None:
    """Also under the same name; the earlier pairs stay, as they are matched already."""
    images, given, out = tmp_path / "images", tmp_path / "given.h5", tmp_path / "out"
    images.mkdir()
    for letter, photo in zip("abcdefg", sorted((scene / "images").iterdir()), strict=True):
        shutil.copy2(photo, images / f"{letter}.jpg")  # no numbers, and so no neighbours
    names = find_images(images)
    choice = PairSelection(retrieval=str(given), partners=2)

    def describe(order: Sequence[int]) -> None:
        """Photos next to each other in this order look alike."""
        given.unlink(missing_ok=True)
        with DescriptorWriter(given, {}) as descriptors:
            for place, i in enumerate(order):
                angle = place * math.pi / len(names)
                descriptors.add(names[i], np.array([math.cos(angle), math.sin(angle)]))

    describe((0, 3, 6, 2, 5, 1, 4))
    earlier = set(map(frozenset, chosen(images, out, scene, choice)))
    describe(range(7))
    alike = set(map(frozenset, itertools.pairwise(names)))
    assert not earlier >= alike
    assert set(map(frozenset, chosen(images, out, scene, choice))) >= earlier | alike


def test_chosen_pairs_are_told_again_after_a_run_with_listed_ones(
    scene: Path, tmp_path: Path
) -> None:
    images, out = scene / "images", tmp_path / "out"
    photos = select_pairs(images, find_images(images), CHOICE)
    first = reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)
    chosen, pairs = first.results["pairs"], read_pairs(out / "pairs.txt")
    assert "pairs" not in reconstruct(images, out, pairs, TruthMatcher(scene), CONFIG).results
    again = reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)
    assert again.results["pairs"]["connected"] == chosen["connected"]
    assert sum(again.results["pairs"]["rounds"]) == sum(chosen["rounds"])
    assert read_pairs(out / "pairs.txt") == pairs


def test_the_front_door_chooses_pairs(scene: Path, tmp_path: Path) -> None:
    model = edm_hloc.reconstruct(
        scene / "images", tmp_path / "out", matcher=TruthMatcher(scene), config=CONFIG
    )
    assert model.run.results["matching"]["matched"] == 21  # all pairs of few photos
    assert "pairs" not in model.run.results

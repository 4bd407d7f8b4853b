"""The time of matching: over interrupted calls, and of those matches only that are there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.evaluation.timed_matching import match_timed
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing

FIRST, EVERY = 0.4, 0.02  # seconds of CPU time of the first pair, and of each


class Slow(Matcher):
    """Takes long once, as what compiles loops does."""

    def __init__(self) -> None:
        self.info = MatcherInfo("slow", Preprocessing(64))
        self.compiled = False

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": "slow"}

    def encode(self, image: NetworkImage) -> Features:
        return Features(None, image.transform, 1)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        end = time.process_time() + EVERY * len(pairs) + (0.0 if self.compiled else FIRST)
        self.compiled = True
        while time.process_time() < end:
            pass
        return [Matches(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(1)) for _ in pairs]


def test_matches_with_other_settings_are_refused_with_what_helps(tmp_path: Path) -> None:
    """The commands that evaluate have no --overwrite."""

    class Other(Slow):
        @property
        def provenance(self) -> dict[str, str | int | float | bool | None]:
            return {"matcher": "other"}

    images, raw = tmp_path / "images", tmp_path / "raw"
    images.mkdir()
    for i in range(2):
        cv2.imwrite(str(images / f"{i}.png"), np.full((64, 64), 80 * i, np.uint8))
    match_timed(images, [("0.png", "1.png")], Slow(), raw)
    with pytest.raises(EdmHlocError) as caught:
        match_timed(images, [("0.png", "1.png")], Other(), raw)
    remedy = f"Choose another output folder, or remove {raw} to match them again."
    assert str(caught.value).splitlines()[-1] == remedy


def test_time_of_interrupted_calls(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        cv2.imwrite(str(images / f"{i}.png"), np.full((64, 64), 80 * i, np.uint8))
    pairs = [("0.png", "1.png"), ("0.png", "2.png"), ("1.png", "2.png")]
    raw, record = tmp_path / "raw", tmp_path / "raw.time.json"
    first = match_timed(images, pairs[:1], Slow(), raw)
    both = match_timed(images, pairs, Slow(), raw)  # goes on in another process: compiles again
    for timed, number in ((first, 1), (both, 3)):
        assert timed.cpu_ms is not None
        assert 1e3 * EVERY <= timed.cpu_ms < 1e3 * FIRST / number
    content = json.loads(record.read_text())
    assert content["pairs"] == 3
    assert match_timed(images, pairs, Slow(), raw).cpu_ms == pytest.approx(both.cpu_ms)
    assert json.loads(record.read_text()) == content
    shutil.rmtree(raw)
    match_timed(images, pairs[:2], Slow(), raw)
    assert json.loads(record.read_text())["pairs"] == 2

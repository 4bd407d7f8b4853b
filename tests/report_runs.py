"""Runs through the command line that the tests of the report look at."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from edm_hloc import cli
from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import Features
from tests.scenes import TruthMatcher

# Seven names for the seven photos of the scene; a "/" makes a folder.
HOSTILE = (
    "<script>window.hacked=1<.jpg",
    "</script><script>window.hacked=2.jpg",
    "\"><img src=x onerror=alert(1)>' onload='x.jpg",
    "&lt;b&gt; %3Cscript%3E {{ 7 * 7 }}{% if %} #hash?query=1.jpg",
    "Ünïcode 写真 🏛 ‮gpj.jpg",
    "very " + "long " * 38 + "name.jpg",
    "plain.jpg",
)


class UnrelatedMatcher(TruthMatcher):
    """Finds matches where there are none."""

    def find(self, features0: Features, features1: Features) -> Matches:
        rng = np.random.default_rng(zlib.crc32(f"{features0.data} {features1.data}".encode()))
        points = rng.uniform(0, [319, 239], (2, 14, 2)).astype(np.float32)
        return Matches(points[0], points[1], rng.uniform(0.2, 0.5, 14).astype(np.float32))


def finished_run(scene: Path, folder: Path) -> Path:
    """A complete reconstruction of the scene's photos under hostile names; its output folder."""
    for photo, name in zip(sorted((scene / "images").iterdir()), HOSTILE, strict=True):
        target = folder / "photos" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))
        arguments = ["reconstruct", str(folder / "photos"), str(folder / "out")]
        assert cli.main([*arguments, "--camera-mode", "single"]) == 0
    return folder / "out"


def localization_run(folder: Path) -> Path:
    """Aachen in miniature, localized; its output folder."""
    from edm_hloc.synthetic.aachen_miniature import make_aachen

    data = make_aachen(folder / "data", 6, (2, 2), size=(320, 240), seed=3, depth_maps=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cli.options, "make_matcher", lambda args: TruthMatcher(data, images="images_upright")
        )
        assert cli.main(["aachen", str(data), str(folder / "out")]) == 0
    return folder / "out"

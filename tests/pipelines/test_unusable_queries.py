"""Queries whose photos cannot be used: each is told why, and none of them gets a pose by PnP."""

from __future__ import annotations

import shutil
from pathlib import Path

import pycolmap
import pytest
from PIL import Image

from edm_hloc.localization.log import read_log
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines.aachen import AachenDataset, AachenOptions, localize_aachen
from edm_hloc.pipelines.inloc import InLocDataset, InLocOptions, localize_inloc
from edm_hloc.pipelines.localize import LocalizationConfig, localize_photos
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.images.pixels import store_turned
from tests.scenes import TruthMatcher

ALL = RetrievalOptions("edm", 50)  # more than there are, so that nothing is computed


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aachen")
    return make_aachen(folder, 6, (2, 2), size=(320, 240), seed=3, depth_maps=True)


@pytest.fixture
def aachen(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "aachen")


def mirror(photo: Path, orientation: int) -> None:
    """Stores a photo so that only a mirroring EXIF orientation shows it as it was."""
    with Image.open(photo) as opened:
        store_turned(opened.convert("RGB"), photo, orientation)


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_mirrored_queries_get_no_pose(aachen: Path, tmp_path: Path, orientation: int) -> None:
    images, names = aachen / "images_upright", list(AachenDataset(aachen).queries())
    matcher = TruthMatcher(aachen, images="images_upright")
    mirror(images / names[0], orientation)
    _, answers, _ = localize_aachen(aachen, tmp_path / "out", matcher, AachenOptions(retrieval=ALL))
    assert [a.status for a in answers] == ["closest", *["localized"] * 3]
    why = f"{names[0]}: its EXIF orientation ({orientation}) mirrors it"
    assert why in answers[0].reason
    assert "Store it as it is shown" in answers[0].reason
    assert answers[0].confidence == "none"

    model, camera = tmp_path / "out/sfm/model", AachenDataset(aachen).queries()[names[0]]
    for known in ({}, {names[0]: pycolmap.Camera(camera.todict())}):
        config = LocalizationConfig(ALL, known_cameras=known, queries=names[:2])
        out = tmp_path / f"localized-{len(known)}"
        run, answers = localize_photos(model, images, images, out, matcher, config)
        assert [a.status for a in answers] == ["failed", "localized"]
        assert why in run.results["localized"]["problems"][f"query/{names[0]}"]
        assert why in read_log(out / "queries.jsonl")[0].reason
        assert not any("query/" + names[0] in line for line in _pairs(out))


def _pairs(out: Path) -> list[str]:
    return (out / "pairs.txt").read_text("utf-8").splitlines()


def test_mirrored_queries_of_inloc_get_no_pose(tmp_path: Path) -> None:
    data = make_inloc(tmp_path / "inloc", 24, 4, size=(320, 240), seed=3, depth_maps=True)
    matcher = TruthMatcher(data, images=".")
    names = InLocDataset(data).queries()
    mirror(data / names[1], 2)
    _, answers, _ = localize_inloc(data, tmp_path / "out", matcher, InLocOptions(retrieval=ALL))
    assert [a.status for a in answers] == ["localized", "closest", "localized", "localized"]
    assert f"{names[1]}: its EXIF orientation (2) mirrors it" in answers[1].reason

"""Queries whose photos cannot be used: each is told why, and none of them gets a pose by PnP."""

from __future__ import annotations

import shutil
from pathlib import Path

import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.localization.log import read_log
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines.aachen import AachenDataset, AachenOptions, localize_aachen
from edm_hloc.pipelines.inloc import InLocDataset, InLocOptions, localize_inloc
from edm_hloc.pipelines.localize import LocalizationConfig, localize_photos
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.images.pixels import store_turned
from tests.scenes import TruthMatcher

ALL = RetrievalOptions("edm", 50)  # more than there are, so that nothing is computed


@pytest.fixture
def aachen(small_aachen: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_aachen, tmp_path / "aachen")


def mirror(photo: Path, orientation: int) -> None:
    """Stores a photo so that only a mirroring EXIF orientation shows it as it was."""
    with Image.open(photo) as opened:
        store_turned(opened.convert("RGB"), photo, orientation)


def truncate(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])


def test_a_query_has_one_camera_in_both_lists(aachen: Path) -> None:
    """The same again is no contradiction, another one is, as within one list."""
    data = AachenDataset(aachen)
    day, night = data.query_lists
    name, model, width, height, focal, *more = day.read_text().splitlines()[0].split()
    before = night.read_text()
    night.write_text(before + " ".join([name, model, width, height, focal, *more]) + "\n")
    assert len(data.queries()) == 4
    night.write_text(before + " ".join([name, model, width, height, f"{focal}9", *more]) + "\n")
    with pytest.raises(EdmHlocError, match=rf"{night}: {name} has another camera .* {day}: remove"):
        data.queries()


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
    gone = dict.fromkeys(("gone/1.jpg", "gone/2.jpg", "gone/3.jpg"), camera)  # are no queries
    for known in ({}, {names[0]: pycolmap.Camera(camera.todict())} | gone):
        config = LocalizationConfig(ALL, known_cameras=known, queries=names[:2])
        out = tmp_path / f"localized-{len(known)}"
        run, answers = localize_photos(model, images, images, out, matcher, config)
        assert [a.status for a in answers] == ["failed", "localized"]
        assert why in run.results["localized"]["problems"][f"query/{names[0]}"]
        assert why in read_log(out / "queries.jsonl")[0].reason
        assert not any("query/" + names[0] in line for line in _pairs(out))
        cameras = run.results["cameras"]
        assert cameras["given"] == len(known.keys() - gone.keys())
        assert sum(cameras.values()) == 2
        assert min(cameras.values()) >= 0


def _pairs(out: Path) -> list[str]:
    return (out / "pairs.txt").read_text("utf-8").splitlines()


@pytest.mark.slow
def test_unusable_queries_of_inloc(tmp_path: Path) -> None:
    data = make_inloc(tmp_path / "inloc", 24, 4, size=(320, 240), seed=3, depth_maps=True)
    matcher = TruthMatcher(data, images=".")
    names = InLocDataset(data).queries()
    mirror(data / names[1], 2)
    _, answers, _ = localize_inloc(data, tmp_path / "out", matcher, InLocOptions(retrieval=ALL))
    assert [a.status for a in answers] == ["localized", "closest", "localized", "localized"]
    assert f"{names[1]}: its EXIF orientation (2) mirrors it" in answers[1].reason
    truncate(data / names[2])
    options = InLocOptions(retrieval=RetrievalOptions("sift", 20))
    for _ in range(2):
        _, answers, _ = localize_inloc(data, tmp_path / "sift", matcher, options)
        assert f"Cannot read image {data / names[2]}: image file is truncated" in answers[2].reason


def test_truncated_queries_are_told_apart_from_those_that_a_list_forgets(
    aachen: Path, tmp_path: Path
) -> None:
    """Their headers are whole, so that only the retrieval notices, and in one run of several."""
    images, names = aachen / "images_upright", list(AachenDataset(aachen).queries())
    matcher = TruthMatcher(aachen, images="images_upright")
    truncate(images / names[1])
    why = f"Cannot read image {images / names[1]}: image file is truncated"
    options = AachenOptions(retrieval=RetrievalOptions("sift", 3))
    for _ in range(2):  # the second time with the descriptors of the first
        _, answers, _ = localize_aachen(aachen, tmp_path / "out", matcher, options)
        assert why in answers[1].reason
    config = LocalizationConfig(RetrievalOptions("sift", 3), queries=names[:2])
    for _ in range(2):
        out, model = tmp_path / "localized", tmp_path / "out/sfm/model"
        run, answers = localize_photos(model, images, images, out, matcher, config)
        assert why in answers[1].reason
        assert run.results["localized"]["problems"].keys() == {f"query/{names[1]}"}
    listed = tmp_path / "pairs-query-some3.txt"
    listed.write_text(f"query/{names[0]} database/db/1.jpg\n")
    config = LocalizationConfig(RetrievalOptions(str(listed), 3), queries=[names[0], names[2]])
    _, answers = localize_photos(model, images, images, tmp_path / "listed", matcher, config)
    assert answers[1].reason == "The retrieval lists no database image for it."

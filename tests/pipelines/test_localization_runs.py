"""Localizations one after the other in one folder: settings, queries and photos that change."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main, options
from edm_hloc.localization.results import QueryPose
from edm_hloc.pairs.covisibility import from_covisibility
from edm_hloc.pairs.retrieval import BOTH, RetrievalOptions
from edm_hloc.pipelines.aachen import AachenDataset, AachenOptions, localize_aachen
from edm_hloc.pipelines.inloc import InLocOptions
from edm_hloc.pipelines.localize import LocalizationConfig, localize_photos
from edm_hloc.pipelines.reconstruct import triangulate_model
from edm_hloc.pipelines.run import Run
from edm_hloc.report.page import make_report
from tests.scenes import TruthMatcher

THREE = RetrievalOptions(number=3)


@pytest.fixture(scope="session")
def aachen(small_aachen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of Aachen with 6 photos and 4 queries, and a model with points in ``sfm``."""
    folder = tmp_path_factory.mktemp("localized") / "aachen"
    shutil.copytree(small_aachen, folder)
    images, model = folder / "images_upright", folder / "3D-models/aachen_v_1_1"
    names = [f"db/{k}.jpg" for k in range(1, 7)]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[:i]]
    triangulate_model(
        model, images, folder / "sfm", pairs, TruthMatcher(folder, images=images.name)
    )
    return folder


def localize(
    aachen: Path,
    out: Path,
    config: LocalizationConfig,
    queries: Path | None = None,
    images: Path | None = None,
) -> tuple[Run, list[QueryPose]]:
    matcher = TruthMatcher(aachen, images="images_upright")
    images, model = images or aachen / "images_upright", aachen / "sfm" / "model"
    return localize_photos(model, images, queries or images / "query", out, matcher, config)


def without_times(out: Path) -> list[dict[str, Any]]:
    """The log of the queries, but for the time that each took.

    The last digits of a covariance depend on the order in which Ceres's threads add it up.
    """
    lines = [json.loads(line) for line in (out / "queries.jsonl").read_text("utf-8").splitlines()]
    for line in lines[1:]:
        line["seconds"] = 0
        for key in ("position_deviation", "rotation_deviation"):
            line[key] = line[key] and round(line[key], 9)
    return lines[1:]


@pytest.mark.slow
def test_queries_are_matched_with_photos_by_both_kinds_of_descriptors(
    aachen: Path, tmp_path: Path
) -> None:
    """By default. An output that was made with SIFT's alone, the default once, goes on."""
    for default in (LocalizationConfig(), AachenOptions(), InLocOptions()):
        assert default.retrieval.how == BOTH
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run, _ = localize(aachen, out, LocalizationConfig(RetrievalOptions("sift", 3)))
    of_sift = (out / "global-feats-sift.h5").stat().st_mtime_ns
    assert run.results["matching"]["matched"] == 12

    run, answers = localize(aachen, out, LocalizationConfig(THREE))
    assert (out / "global-feats-sift.h5").stat().st_mtime_ns == of_sift
    assert run.results["matching"]["matched"] < 6
    _, expected = localize(aachen, fresh, LocalizationConfig(THREE))
    assert [a.cam_from_world for a in answers] == [a.cam_from_world for a in expected]
    assert without_times(out) == without_times(fresh)
    assert (out / "poses.txt").read_bytes() == (fresh / "poses.txt").read_bytes()


def test_the_folder_of_queries_is_searched_once(
    aachen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = TruthMatcher(aachen, images="images_upright")
    monkeypatch.setattr(options, "make_matcher", lambda args: matcher)
    images, searched = aachen / "images_upright", Counter[Path]()
    queries = tmp_path / "new"
    shutil.copytree(images / "query", queries)
    scandir = os.scandir

    def counted(folder: Any) -> Any:
        searched[Path(folder)] += 1
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", counted)
    command = [aachen / "sfm/model", images, queries, tmp_path / "out"]
    assert main(["localize", *map(str, command)]) == 0
    assert searched[queries / "night"] == 1

    name = next((queries / "day").rglob("*.jpg")).relative_to(queries).as_posix()
    listed = LocalizationConfig(queries=["day/none.jpg", name, name])
    _, answers = localize(aachen, tmp_path / "listed", listed, queries)
    assert [(a.query, a.status) for a in answers] == [
        ("day/none.jpg", "failed"),
        (name, "localized"),
    ]
    with pytest.raises(EdmHlocError, match="list of queries is empty"):
        localize(aachen, tmp_path / "none", LocalizationConfig(queries=[]), queries)


def test_matches_of_a_photo_that_became_unreadable_count_no_more(
    aachen: Path, tmp_path: Path
) -> None:
    images, out, fresh = tmp_path / "images", tmp_path / "out", tmp_path / "fresh"
    shutil.copytree(aachen / "images_upright", images)
    queries, photo = images / "query", images / "db" / "2.jpg"
    names = [path.relative_to(queries).as_posix() for path in sorted(queries.rglob("*.jpg"))]
    listed = tmp_path / "pairs-query-some.txt"
    partners = [f"database/db/{k}.jpg" for k in (1, 2, 3)]
    listed.write_text("".join(f"query/{name} {p}\n" for name in names for p in partners))
    config = LocalizationConfig(RetrievalOptions(str(listed), 3))
    _, before = localize(aachen, out, config, queries, images)
    whole, stamp = photo.read_bytes(), photo.stat()
    photo.write_bytes(whole[:2000])
    _, answers = localize(aachen, out, config, queries, images)
    assert not any("database/db/2.jpg" in answer.inliers_of for answer in answers)
    localize(aachen, fresh, config, queries, images)
    assert without_times(out) == without_times(fresh) != []
    assert (out / "poses.txt").read_bytes() == (fresh / "poses.txt").read_bytes()

    # it is there again: what was matched before counts
    photo.write_bytes(whole)
    os.utime(photo, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    run, answers = localize(aachen, out, config, queries, images)
    assert run.results["matching"]["matched"] == 0
    assert [a.cam_from_world for a in answers] == [a.cam_from_world for a in before]


def test_a_page_shows_no_other_model_than_that_of_the_poses(aachen: Path, tmp_path: Path) -> None:
    images, model, out = aachen / "images_upright", tmp_path / "model", tmp_path / "out"
    shutil.copytree(aachen / "sfm" / "model", model)
    matcher = TruthMatcher(aachen, images=images.name)
    localize_photos(model, images, images / "query", out, matcher)
    said = "has other poses than the model in which"
    assert said not in make_report(out).read_text("utf-8")
    for path in model.iterdir():
        os.utime(path)  # as of a copy
    assert said not in make_report(out).read_text("utf-8")
    moved = read_model(model)
    moved.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.ones(3)))
    moved.write(model)
    assert said in make_report(out).read_text("utf-8")


@pytest.mark.parametrize("why", ["no points", "no readable partner", "not in the model"])
def test_a_photo_without_keypoints_does_not_end_aachen(
    why: str, aachen: Path, tmp_path: Path
) -> None:
    """Its matches give no points; it may still be the closest photo of a query."""
    data, without = tmp_path / "data", "db/6.jpg"
    for part in ("images_upright", "3D-models", "queries"):
        shutil.copytree(aachen / part, data / part)
    model = data / "3D-models/aachen_v_1_1"
    config, listed = AachenOptions(), tmp_path / "pairs-query-some.txt"
    partners = [without, *(f"db/{k}.jpg" for k in (1, 3, 4, 5))]
    if why == "no points":
        reference = read_model(model)
        image = reference.find_image_with_name(without)
        for i, point in enumerate(image.points2D):
            if point.has_point3D():
                reference.delete_observation(image.image_id, i)
        shutil.rmtree(model)
        model.mkdir()
        reference.write_binary(model)
    elif why == "no readable partner":
        config = AachenOptions(covisible=1)
        pairs = from_covisibility(model, 1)
        without = "db/1.jpg"
        ((partner, _),) = [pair[::-1] for pair in pairs if without in pair]
        (data / "images_upright" / partner).write_bytes(b"")
        partners = [without, *(f"db/{k}.jpg" for k in range(2, 7) if f"db/{k}.jpg" != partner)]
    else:
        without = "db/7.jpg"
        shutil.copy(data / "images_upright/db/1.jpg", data / "images_upright" / without)
        partners[0] = without
    names = list(AachenDataset(data).queries())
    listed.write_text("".join(f"{name} {p}\n" for name in names for p in partners))
    config = replace(config, retrieval=RetrievalOptions(str(listed), 9))
    matcher = TruthMatcher(aachen, images="images_upright")
    run, answers, _ = localize_aachen(data, tmp_path / "out", matcher, config)
    assert [(a.status, a.matched, a.retrieved) for a in answers] == [
        ("localized", len(partners) - 1, len(partners))
    ] * 4
    assert run.results["matching"]["matched"] == 4 * (len(partners) - 1)


def test_queries_that_the_benchmark_cannot_tell_apart_are_refused_first(
    aachen: Path, tmp_path: Path
) -> None:
    shutil.copytree(aachen, tmp_path / "data")
    listed = tmp_path / "data/queries/day_time_queries_with_intrinsics.txt"
    day, *rest = listed.read_text().splitlines()
    listed.write_text("\n".join([day, *rest, f"query/other/{day.rpartition('/')[2]}"]))
    matcher, out = TruthMatcher(aachen, images="images_upright"), tmp_path / "out"
    with pytest.raises(EdmHlocError, match="Two queries are called IMG_1000"):
        localize_aachen(tmp_path / "data", out, matcher)
    assert not out.exists()

"""Workers on computers that differ: other versions, disks that are missing, folders that moved."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError, WorkLeftError
from edm_hloc.cli import main
from edm_hloc.images.roots import ImageRoot, JoinedFolders, root_to_json
from edm_hloc.mapping.database import build_database
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.matching.shards import shard_path
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines import work_plan
from edm_hloc.pipelines.aachen import AachenOptions, localize_aachen
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import (
    ShardPlan,
    load_plan,
    make_plan,
    plan_missing,
    what_is_planned,
)
from edm_hloc.pipelines.shard_queue import Failure, Piece
from edm_hloc.pipelines.shard_worker import WorkerSettings
from edm_hloc.pipelines.shards import match_part, match_shard, merge_shards
from edm_hloc.pipelines.spreading import spread_matching, spread_verification
from edm_hloc.pipelines.work_kinds import work_shard
from edm_hloc.pipelines.work_plan import (
    Item,
    Work,
    WorkPlan,
    do_shard,
    in_shards,
    load_work,
    results_of_workers,
)
from edm_hloc.refinement.load import MatcherRecipe
from edm_hloc.synthetic.aachen_miniature import make_aachen
from tests.fakes import FakeMatcher
from tests.mapping.scenes import NAMES, THREADS, make_scene
from tests.pipelines.fake_workers import FakeWorker, make_grey_photos
from tests.pipelines.test_spreading import do_all, rows, squares
from tests.scenes import TruthMatcher

CPU = torch.device("cpu")
ITEMS: list[Item] = [[f"photo {i}", i] for i in range(4)]
PAIRS = [("000.png", "001.png"), ("000.png", "002.png"), ("001.png", "002.png")]


def planned(out: Path, kind: str = "squares", shared: dict[str, Any] | None = None) -> WorkPlan:
    with pytest.raises(WorkLeftError):
        list(results_of_workers(out, Work(kind, "inputs", shared or {}, in_shards(ITEMS, 2))))
    return load_work(out)


# --------------------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [
        ("descriptors", work_plan, "edm_hloc"),
        ("descriptors", cv2, "opencv"),
        ("verification", pycolmap, "pycolmap"),
        ("poses", work_plan, "edm_hloc"),
        ("poses", pycolmap, "pycolmap"),
    ],
)
def test_a_worker_with_other_versions_does_no_shard(
    kind: str,
    module: Any,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned(tmp_path, kind)
    monkeypatch.setattr(module, "__version__", "0.0.1")
    assert main(["match-shard", str(tmp_path), "1", "--device=cpu"]) == 1
    error = capsys.readouterr().err
    assert f"  {name}: " in error
    assert "there, '0.0.1' now" in error
    assert not list((tmp_path / "plan").glob("results-*"))


def test_libraries_that_a_step_does_not_need_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(tmp_path, "verification")
    monkeypatch.setattr(cv2, "__version__", "0.0.1")
    assert load_work(tmp_path).left() == [1, 2]


def test_results_of_another_version_are_not_taken_over_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    do_shard(planned(tmp_path), 1, squares)
    assert not caplog.records
    monkeypatch.setattr(work_plan, "__version__", "0.0.1")
    assert planned(tmp_path).left() == [1, 2]
    assert "1 finished shard is removed" in caplog.text


@pytest.mark.parametrize("damaged", [False, True])
def test_finished_shards_of_other_inputs_are_removed_with_a_word(
    damaged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = planned(tmp_path)
    for shard in (1, 2):
        do_shard(plan, shard, squares)
    if damaged:
        (plan.folder / "plan.json").unlink()
    with pytest.raises(WorkLeftError):
        list(results_of_workers(tmp_path, Work("squares", "others", {}, in_shards(ITEMS, 2))))
    assert "2 finished shards are removed" in caplog.text


# --------------------------------------------------------------------------- folders that moved


def test_verified_shards_are_kept_when_the_output_folder_moves(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    scene = make_scene(before, NAMES)
    matched = scene.matched
    build_database(tmp_path / "alone.db", matched, None, THREADS)
    run = Run(before, {}, shards=2)
    with pytest.raises(WorkLeftError):
        build_database(
            before / "d.db", matched, None, THREADS, lambda u: spread_verification(run, u)
        )
    do_all(before)
    before.rename(after)
    moved = replace(
        matched,
        image_root=after / matched.image_root.relative_to(before),
        features=after / matched.features.relative_to(before),
        matches=after / matched.matches.relative_to(before),
    )
    run = Run(after, {}, shards=2)
    build_database(after / "d.db", moved, None, THREADS, lambda u: spread_verification(run, u))
    assert rows(after / "d.db") == rows(tmp_path / "alone.db")


@pytest.mark.slow
def test_nothing_is_done_twice_when_the_output_folder_moves_between_all_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_aachen(tmp_path / "data", 6, (2, 1), size=(320, 240), seed=3, depth_maps=True)
    matcher = TruthMatcher(dataset, images="images_upright")
    matcher.recipe = MatcherRecipe()
    settings = AachenOptions(retrieval=RetrievalOptions("sift", 3))
    kinds: list[str] = []
    while len(kinds) < 6:
        out = tmp_path / f"out {len(kinds)}"
        try:
            localize_aachen(dataset, out, matcher, settings, MatchingConfig(shards=2))
            break
        except WorkLeftError:
            place = next(folder for folder in (out, out / "sfm") if what_is_planned(folder))
            kinds.append(do_all(place, matcher))
        out.rename(tmp_path / f"out {len(kinds)}")
    assert kinds == ["matching", "descriptors", "matching", "poses"]
    assert "removed" not in caplog.text


def test_shards_that_are_left_find_their_files_where_they_are_now(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    plan = planned(before, shared={"features": str(before / "features.h5")})
    do_shard(plan, 1, squares)
    before.rename(after)
    plan = planned(after, shared={"features": str(after / "features.h5")})
    assert plan.shared["features"] == str(after / "features.h5")
    assert plan.left() == [2]


# --------------------------------------------------------------------------- disks


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_grey_photos(tmp_path / "photos", 3)
    return tmp_path / "photos"


def matching(photos: ImageRoot, out: Path) -> ShardPlan:
    return make_plan(out, photos, PAIRS, FakeMatcher(), shards=1)


@pytest.mark.parametrize("mount_point", [False, True])
def test_a_worker_that_does_not_see_the_photos_matches_nothing(
    mount_point: bool, photos: Path, tmp_path: Path
) -> None:
    """Also where the folder is there and empty, as one on which no disk is mounted."""
    plan = matching(photos, tmp_path / "out")
    photos.rename(tmp_path / "elsewhere")
    if mount_point:
        photos.mkdir()
    for attempt in (
        lambda: match_shard(plan, 1, FakeMatcher()),
        lambda: match_part(plan, 1, (0, 1), FakeMatcher()),
    ):
        with pytest.raises(EdmHlocError, match=r"does not see \S+000.png, nor 2 more"):
            attempt()
    worker = FakeWorker(WorkerSettings(tmp_path / "out", "cpu", 1, MatchingConfig()))
    answer = worker.work(Piece(1))
    assert isinstance(answer, Failure)
    assert answer.kind == "error"  # which ends the run, instead of leaving pairs out
    assert not plan.file_of(1).exists()


@pytest.mark.parametrize("command", ["run", "plan"])
def test_open_shards_find_photos_that_were_moved(
    command: str, photos: Path, tmp_path: Path
) -> None:
    """Nothing is matched twice, and what is no photo of now is told by its stamp."""
    out, moved, matcher = tmp_path / "out", tmp_path / "moved", FakeMatcher()
    run = Run(out, {}, shards=2)

    def give() -> None:
        if command == "plan":
            plan_missing(out, moved, PAIRS, matcher, shards=lambda _: 2)
            return
        with pytest.raises(WorkLeftError):
            spread_matching(run, moved, PAIRS, matcher)

    plan = make_plan(out, photos, PAIRS, matcher, shards=2)
    match_shard(plan, 1, matcher)
    photos.rename(moved)
    with pytest.raises(EdmHlocError, match="the command that planned it again, with their new"):
        match_shard(load_plan(out), 2, matcher)
    give()
    assert load_plan(out) == replace(plan, image_root=moved)
    match_shard(load_plan(out), 1, matcher)
    match_shard(load_plan(out), 2, matcher)
    assert set(matcher.matched.values()) == {1}
    spread_matching(run, moved, PAIRS, matcher)
    assert (set(matcher.matched.values()), len(matcher.matched)) == ({1}, len(PAIRS))


def test_a_merge_that_was_killed_goes_on_with_photos_that_were_moved(
    photos: Path, tmp_path: Path
) -> None:
    out, moved, matcher = tmp_path / "out", tmp_path / "moved", FakeMatcher()
    plan = make_plan(out, photos, PAIRS, matcher, shards=2)
    for shard in (1, 2):
        match_shard(plan, shard, matcher)
    plan.raw_matches.mkdir()
    shutil.copy(plan.file_of(1), shard_path(plan.raw_matches, 0))
    photos.rename(moved)
    again = plan_missing(out, moved, PAIRS, matcher, shards=lambda _: 2)
    assert again == load_plan(out) == replace(plan, image_root=moved)
    assert merge_shards(load_plan(out)).pairs == len(PAIRS)


def test_a_shard_that_is_matched_outlasts_a_worker_without_photos(
    photos: Path, tmp_path: Path
) -> None:
    plan = matching(photos, tmp_path / "out")
    match_shard(plan, 1, FakeMatcher())
    whole = plan.file_of(1).read_bytes()
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(EdmHlocError, match="does not see"):
        match_shard(plan, 1, FakeMatcher())
    assert plan.file_of(1).read_bytes() == whole


def test_each_folder_of_photos_is_looked_for(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "queries")
    root = JoinedFolders({"db": photos, "query": tmp_path / "queries"})
    pairs = [("query/000.png", "db/001.png")]
    plan = make_plan(tmp_path / "out", root, pairs, FakeMatcher(), shards=1)
    shutil.rmtree(tmp_path / "queries")
    with pytest.raises(EdmHlocError, match=r"does not see \S+queries/000.png:"):
        match_shard(plan, 1, FakeMatcher())


def test_photos_that_were_removed_or_are_broken_are_skipped_as_before(
    photos: Path, tmp_path: Path
) -> None:
    plan = matching(photos, tmp_path / "out")
    (photos / "000.png").unlink()
    for name in ("001.png", "002.png"):
        (photos / name).write_bytes(b"broken")
    assert set(match_shard(plan, 1, FakeMatcher()).skipped) == {"000.png", "001.png", "002.png"}
    assert plan.file_of(1).exists()


def descriptors(photos: Path, out: Path) -> WorkPlan:
    words = np.eye(2, 128).tolist()
    shared = {"how": "sift", "sha256": "sift", "root": root_to_json(photos), "words": words}
    items = [[path.name] for path in sorted(photos.iterdir())]
    with pytest.raises(WorkLeftError):
        list(results_of_workers(out, Work("descriptors", "inputs", shared, [items])))
    return load_work(out)


def test_a_worker_that_does_not_see_the_photos_describes_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    plan = descriptors(photos, out)
    photos.rename(tmp_path / "elsewhere")
    assert main(["match-shard", str(out), "1", "--device=cpu"]) == 1
    assert "does not see" in capsys.readouterr().err
    assert plan.left() == [1]
    (tmp_path / "elsewhere").rename(photos)
    (photos / "000.png").unlink()
    assert work_shard(plan, 1, CPU) == 2


@pytest.mark.parametrize("missing", ["features.h5", "matches.h5", "model", "photos", "q/1.jpg"])
def test_a_worker_that_lacks_what_poses_need_localizes_nothing(
    missing: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for name in ("features.h5", "matches.h5", "model", "photos", "q/1.jpg"):
        if name != missing:
            (data / name).mkdir(parents=True)
    shared = {
        "features": str(data / "features.h5"),
        "matches": str(data / "matches.h5"),
        "points": {"model": str(data / "model"), "prefix": "", "images": str(data / "photos")},
        "options": {},
    }
    items = [["q/1.jpg", {"photo": str(data / "q/1.jpg")}]]
    with pytest.raises(WorkLeftError):
        list(results_of_workers(tmp_path, Work("poses", "inputs", shared, [items])))
    plan = load_work(tmp_path)
    with pytest.raises(EdmHlocError, match=f"does not see {data / missing}:"):
        work_shard(plan, 1, CPU)
    assert plan.left() == [1]


def test_photos_that_only_the_workers_could_not_read_are_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path / "out", {}, shards=1)
    matcher = FakeMatcher()
    with pytest.raises(WorkLeftError):
        spread_matching(run, photos, PAIRS, matcher)
    whole = (photos / "002.png").read_bytes()
    (photos / "002.png").write_bytes(b"broken")
    match_shard(matching(photos, run.out), 1, matcher)
    (photos / "002.png").write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        spread_matching(run, photos, PAIRS, matcher)
    assert "1 photo could not be read by the workers, but can be read here" in caplog.text
    assert "002.png" in caplog.text


def test_photos_that_were_repaired_are_left_to_the_workers_again(
    photos: Path, tmp_path: Path
) -> None:
    run, matcher = Run(tmp_path / "out", {}, shards=1), FakeMatcher()
    whole = (photos / "002.png").read_bytes()
    (photos / "002.png").write_bytes(b"broken")
    with pytest.raises(WorkLeftError):
        spread_matching(run, photos, PAIRS, matcher)
    match_shard(load_plan(run.out), 1, matcher)
    for _ in range(2):  # they are not planned again and again
        spread_matching(run, photos, PAIRS, matcher)
        assert what_is_planned(run.out) is None
        run.results = json.loads(run.path.read_text())["results"]
        (photos / "002.png").touch()
    (photos / "002.png").write_bytes(whole)
    with pytest.raises(WorkLeftError):
        spread_matching(run, photos, PAIRS, matcher)
    assert load_plan(run.out).pairs == (2,)
    match_shard(load_plan(run.out), 1, matcher)
    spread_matching(run, photos, PAIRS, matcher)
    assert set(matcher.matched.values()) == {1}
    assert run.results["unreadable_for_workers"] == {}


def test_photos_that_an_older_version_has_marked_are_planned_once_more(
    photos: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "out", {}, shards=1)
    run.results["unreadable_for_workers"] = {"002.png": "a reason"}
    with pytest.raises(WorkLeftError):
        spread_matching(run, photos, PAIRS, FakeMatcher())
    assert load_plan(run.out).pairs == (len(PAIRS),)

"""Steps left to workers: the same files as one process makes, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import BusyError, EdmHlocError, WorkLeftError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.journal import Journal
from edm_hloc.base.matches import Matches
from edm_hloc.cli import main
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.database import build_database
from edm_hloc.mapping.verification import UnverifiedPairs, verify_stored
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pairs.rules import exhaustive
from edm_hloc.pipelines.aachen import AachenOptions, localize_aachen
from edm_hloc.pipelines.inloc import InLocOptions, localize_inloc
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import load_plan, number_of_shards, what_is_planned
from edm_hloc.pipelines.shards import match_shard
from edm_hloc.pipelines.spreading import spread_verification
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
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.fakes import FakeMatcher
from tests.mapping.scenes import NAMES, THREADS, make_scene, rows
from tests.pipelines.fake_workers import make_grey_photos
from tests.scenes import TruthMatcher

CPU = torch.device("cpu")
Answer = TypeVar("Answer")


def do_all(out: Path, matcher: Matcher | None = None) -> str:
    """What workers do, in any order; gives the kind of the plan."""
    kind = what_is_planned(out)
    if kind == "matching":
        assert matcher is not None
        plan = load_plan(out)
        for shard in reversed(plan.left()):
            match_shard(plan, shard, matcher)
    else:
        work = load_work(out)
        for shard in np.random.default_rng(0).permutation(work.left()).tolist():
            work_shard(work, shard, CPU)
    return str(kind)


def spread(command: Callable[[], Answer], out: Path, matcher: Matcher) -> tuple[Answer, list[str]]:
    """Gives a command again until it ends; its result, and the kinds of the plans on the way."""
    kinds: list[str] = []
    while len(kinds) < 20:
        try:
            return command(), kinds
        except WorkLeftError:
            place = next(folder for folder in (out, out / "sfm") if what_is_planned(folder))
            kinds.append(do_all(place, matcher))
    raise AssertionError(kinds)


def log_without_times(path: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return sorted(
        ({k: v for k, v in line.items() if k != "seconds"} for line in lines),
        key=lambda line: line["query"],
    )


# --------------------------------------------------------------------------- whole pipelines


@pytest.mark.slow
def test_aachen_by_workers_equals_one_process(tmp_path: Path) -> None:
    dataset = make_aachen(tmp_path / "data", 6, (2, 2), size=(320, 240), seed=3, depth_maps=True)
    matcher = TruthMatcher(dataset, images="images_upright")
    matcher.recipe = MatcherRecipe()
    settings = AachenOptions(retrieval=RetrievalOptions("sift", 3))
    alone, out = tmp_path / "alone", tmp_path / "out"
    _, expected, _ = localize_aachen(dataset, alone, matcher, settings)
    (_, answers, submission), kinds = spread(
        lambda: localize_aachen(dataset, out, matcher, settings, MatchingConfig(shards=3)),
        out,
        matcher,
    )
    assert kinds == ["matching", "descriptors", "matching", "poses"]
    assert submission.read_bytes() == (alone / submission.name).read_bytes()
    for name in (
        "sfm/features.h5",
        "sfm/matches.h5",
        "sfm/model/points3D.bin",
        "global-feats-sift.h5",
        "features.h5",
        "matches.h5",
    ):
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    assert log_without_times(out / "queries.jsonl") == log_without_times(alone / "queries.jsonl")
    assert [a.cam_from_world for a in answers] == [a.cam_from_world for a in expected]
    assert what_is_planned(out) is None


@pytest.mark.slow
def test_inloc_by_workers_equals_one_process(tmp_path: Path) -> None:
    dataset = make_inloc(tmp_path / "data", 16, 3, size=(320, 240), seed=3, depth_maps=True)
    matcher = TruthMatcher(dataset, images=".")
    matcher.recipe = MatcherRecipe()
    settings = InLocOptions(retrieval=RetrievalOptions("edm", 50))
    alone, out = tmp_path / "alone", tmp_path / "out"
    localize_inloc(dataset, alone, matcher, settings)
    (_, _, submission), kinds = spread(
        lambda: localize_inloc(dataset, out, matcher, settings, MatchingConfig(shards=2)),
        out,
        matcher,
    )
    assert kinds == ["matching", "poses"]
    assert submission.read_bytes() == (alone / submission.name).read_bytes()
    assert log_without_times(out / "queries.jsonl") == log_without_times(alone / "queries.jsonl")


def test_reconstruct_by_workers_equals_one_process(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(scene / "images", images)
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    command = ["reconstruct", str(images)]
    how = ["--pairs=retrieval", "--partners=3", "--resize=160", "--refine=none", "--tracks=none"]
    main([*command, str(tmp_path / "alone"), *how])
    out = tmp_path / "out"
    kinds = []
    while main([*command, str(out), *how, "--shards=2"]) == 3:
        assert f"edm-hloc match-shard {out} K" in capsys.readouterr().out
        kinds.append(what_is_planned(out))
        for shard in (2, 1):
            assert main(["match-shard", str(out), str(shard), "--device=cpu"]) == 0
        assert len(kinds) < 9
    assert kinds == ["descriptors", "descriptors", "matching", "verification"]
    for name in ("global-feats-edm.h5", "global-feats-sift.h5", "features.h5", "matches.h5"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert rows(out / "database.db") == rows(tmp_path / "alone" / "database.db")


def out_of_memory(*_: object) -> Matches:
    raise MemoryError


@pytest.mark.slow
def test_a_run_under_whose_workers_photos_change_equals_a_new_one(
    scene: Path, tmp_path: Path
) -> None:
    """With masks, some known intrinsics, cameras by folder, and a worker that was killed."""
    images, masks, out = tmp_path / "my photos", tmp_path / "masks", tmp_path / "out #1"
    sources = sorted((scene / "images").iterdir())
    names = [f"#{'ab'[i % 2]}/é {i}.jpg" for i in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, images / name)
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, :90] = 0
    (masks / names[2]).parent.mkdir(parents=True)
    Image.fromarray(mask).save(masks / f"{names[2]}.png")
    (camera,) = read_model(scene / "truth").cameras.values()
    cameras = CameraOptions("per-folder", known=dict.fromkeys(names[:2], camera))
    matcher = TruthMatcher(scene)
    matcher.recipe = MatcherRecipe()

    def command(out: Path, shards: int) -> Run:
        matching = MatchingConfig(shards=shards)
        config = ReconstructionConfig(
            matching=matching, cameras=cameras, mapping=THREADS, masks=masks, refine_tracks=False
        )
        return reconstruct(images, out, exhaustive(names), matcher, config)

    with pytest.raises(WorkLeftError):
        command(out, 3)
    plan = load_plan(out)
    with pytest.MonkeyPatch.context() as patch:
        found = iter([matcher.find] * 2)
        patch.setattr(matcher, "find", lambda *pair: next(found, out_of_memory)(*pair))
        with pytest.raises(MemoryError):
            match_shard(plan, 1, matcher)
    match_shard(plan, 1, matcher)
    shutil.copyfile(sources[-1], images / names[1])
    for shard in (2, 3):
        match_shard(plan, shard, matcher)
    with pytest.raises(EdmHlocError, match="was another file"):
        command(out, 3)
    (images / names.pop()).unlink()
    for shard in (1, 2, 3):
        match_shard(plan, shard, matcher)
    _, kinds = spread(lambda: command(out, 2), out, matcher)
    assert kinds == ["verification"]
    command(tmp_path / "alone", 0)
    for name in ("features.h5", "matches.h5"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert rows(out / "database.db") == rows(tmp_path / "alone" / "database.db")


# --------------------------------------------------------------------------- verification


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_verification_by_workers_gives_the_same_database(tmp_path: Path, shards: int) -> None:
    scene = make_scene(tmp_path / "scene", NAMES)
    build_database(tmp_path / "alone.db", scene.matched, None, THREADS)
    run = Run(tmp_path, {}, shards=shards)

    def build() -> None:
        build_database(
            tmp_path / "d.db", scene.matched, None, THREADS, lambda u: spread_verification(run, u)
        )

    with pytest.raises(WorkLeftError, match=rf"verification work: {shards:,} shards"):
        build()
    first = load_work(tmp_path)
    assert sum(first.items) == 15
    if shards > 1:
        work_shard(first, 1, CPU)
        with pytest.raises(WorkLeftError, match=rf"{shards - 1} of {shards} shards are not done"):
            build()
    do_all(tmp_path)
    build()
    assert rows(tmp_path / "d.db") == rows(tmp_path / "alone.db")
    assert [path.name for path in (tmp_path / "plan").iterdir()] == [".lock"]


def test_pairs_that_were_verified_before_are_not_planned(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "scene", NAMES)
    planned = []

    def some_kept(unverified: UnverifiedPairs) -> None:
        every = unverified.pairs()
        path = tmp_path / "some.h5"
        unverified.write(path, list(every.values())[:4])
        for key, data in verify_stored(path, list(every)[:4]):
            unverified.kept.put(key, data)
        planned.append(len(unverified.pairs()))

    build_database(tmp_path / "d.db", scene.matched, None, THREADS, some_kept)
    assert planned == [11]


# --------------------------------------------------------------------------- the plan itself


ITEMS: list[Item] = [[f"photo {i}", i] for i in range(7)]


def squares(items: Sequence[Item]) -> Iterator[tuple[str, bytes]]:
    for name, number in items:
        if number != 3:  # has no result
            yield name, str(number**2).encode()


def dying(items: Sequence[Item]) -> Iterator[tuple[str, bytes]]:
    yield from list(squares(items))[:1]
    raise MemoryError


def planned(out: Path, made_from: str = "inputs") -> WorkPlan:
    with pytest.raises(WorkLeftError):
        list(results_of_workers(out, Work("squares", made_from, {}, in_shards(ITEMS, 3))))
    return load_work(out)


def results(out: Path, made_from: str = "inputs") -> dict[str, bytes]:
    return dict(results_of_workers(out, Work("squares", made_from, {}, in_shards(ITEMS, 3))))


def test_whoever_does_a_shard_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second = (planned(tmp_path / name) for name in "ab")
    assert first.items == (3, 3, 1)

    for shard in (3, 1, 2):
        do_shard(first, shard, squares)
        for _ in range(2):
            with contextlib.suppress(MemoryError):
                do_shard(second, shard, dying)
        do_shard(second, shard, squares)
        assert first.file_of(shard).read_bytes() == second.file_of(shard).read_bytes()
        assert do_shard(second, shard, dying) == 0
    expected = {f"photo {i}": str(i**2).encode() for i in range(7) if i != 3}
    assert results(tmp_path / "a") == results(tmp_path / "b") == expected
    assert what_is_planned(tmp_path / "a") is None


def test_a_second_worker_on_the_same_shard_does_no_harm(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plan.work_of(1).mkdir()
    with FolderLock(plan.work_of(1)), pytest.raises(EdmHlocError, match="Another process"):
        do_shard(plan, 1, squares)
    assert do_shard(plan, 1, squares) == 3


def test_damaged_results_are_named_and_done_again(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    for shard in (1, 2, 3):
        do_shard(plan, shard, squares)
    whole = plan.file_of(2).read_bytes()
    plan.file_of(2).write_bytes(whole[:-20])
    with pytest.raises(EdmHlocError, match=r"results-0002.part was damaged.*match-shard \S+ 2"):
        results(tmp_path)
    with pytest.raises(WorkLeftError, match="1 of 3 shards are not done: 2"):
        results(tmp_path)
    do_shard(plan, 2, squares)
    assert plan.file_of(2).read_bytes() == whole
    assert len(results(tmp_path)) == 6


def test_jobs_beyond_the_last_shard_do_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert main(["match-shard", str(tmp_path), "--from-environment"]) == 0
    assert "has no shard 4" in capsys.readouterr().out
    assert main(["match-shard", str(tmp_path), "4"]) == 1


def test_other_inputs_make_another_plan(tmp_path: Path) -> None:
    do_shard(planned(tmp_path), 1, squares)
    assert planned(tmp_path, "other inputs").left() == [1, 2, 3]
    plan = load_work(tmp_path)
    with pytest.raises(EdmHlocError, match="shards 1 to 3, but not 4"):
        do_shard(plan, 4, squares)
    (plan.folder / "items-0001.json").write_text("[]")
    with pytest.raises(EdmHlocError, match="has changed since it was planned"):
        do_shard(plan, 1, squares)
    with pytest.raises(EdmHlocError, match="is a plan of squares, not of matching"):
        load_plan(tmp_path)


def test_what_is_done_outlasts_its_plan_json(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    do_shard(plan, 1, squares)
    with contextlib.suppress(MemoryError):
        do_shard(plan, 2, dying)
    for _ in range(2):
        (plan.folder / "plan.json").write_text("{")
        with pytest.raises(EdmHlocError, match=r"damaged .*: give the command that planned it"):
            number_of_shards(tmp_path)
        assert planned(tmp_path).left() == [2, 3]
    assert [do_shard(plan, shard, squares) for shard in (1, 2, 3)] == [0, 1, 1]
    (plan.folder / "plan.json").unlink()
    assert len(results(tmp_path)) == 6


def test_a_plan_is_not_removed_from_under_a_worker(tmp_path: Path) -> None:
    """Not even at its end: the worker would fail at its files, or write into what is removed."""
    plan = planned(tmp_path)
    for shard in (1, 2, 3):
        do_shard(plan, shard, squares)
    at_work = plan.work_of(2)
    at_work.mkdir()
    work = Work("squares", plan.made_from, {}, [])
    with FolderLock(at_work), pytest.raises(BusyError, match="A worker is at work"):
        list(results_of_workers(tmp_path, work))
    assert len(dict(results_of_workers(tmp_path, work))) == len(ITEMS) - 1  # nothing is lost
    assert what_is_planned(tmp_path) is None


def test_nothing_is_planned_where_nothing_is_to_do(tmp_path: Path) -> None:
    assert dict(results_of_workers(tmp_path, Work("squares", "inputs", {}, []))) == {}
    assert not (tmp_path / "plan").exists()


def test_shards_and_overwrite_are_not_given_together(tmp_path: Path) -> None:
    """Each call would discard what the shards have done since the last one, and never end."""
    make_grey_photos(tmp_path / "photos", 3)
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text('{"settings": {}}')
    pairs = exhaustive(["000.png", "001.png", "002.png"])
    config = ReconstructionConfig(matching=MatchingConfig(shards=2), overwrite=True)
    with pytest.raises(EdmHlocError, match="remove the output folder instead"):
        reconstruct(tmp_path / "photos", out, pairs, FakeMatcher(), config)
    assert [path.name for path in out.iterdir()] == ["run.json"]


def test_a_journal_of_a_shard_is_in_the_order_of_its_items(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    do_shard(plan, 1, squares)
    with Journal(plan.file_of(1), f"squares inputs {plan.digests[0]}") as journal:
        assert journal.committed == 4  # and the mark of its end

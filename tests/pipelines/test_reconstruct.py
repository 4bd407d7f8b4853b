"""Photos → model, end to end, on a rendered scene with known truth."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.mapping.database import build_database
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.retrieval import RetrievalOptions, SimilarPhotos
from edm_hloc.pairs.selection import PairSelection, select_pairs
from edm_hloc.pipelines import extending
from edm_hloc.pipelines.reconstruct import (
    RECONSTRUCTION_KEYPOINTS,
    ReconstructionConfig,
    reconstruct,
    triangulate_model,
)
from edm_hloc.pipelines.run import Run
from edm_hloc.tracks import refine
from tests.fakes import FakeMatcher
from tests.scenes import TruthMatcher


class CountingMatcher(TruthMatcher):
    def __init__(self, scene: Path, **settings: float) -> None:
        super().__init__(scene, **settings)
        self.pairs = 0

    def match_batch(self, pairs):  # type: ignore[no-untyped-def]
        self.pairs += len(pairs)
        return super().match_batch(pairs)


def pairs_of(scene: Path) -> list[tuple[str, str]]:
    return list(itertools.combinations(find_images(scene / "images"), 2))


def shots(run: Run) -> tuple[int, int]:
    return run.results["matching"]["matched"], run.results["matching"]["resumed"]


@pytest.fixture(scope="module")
def finished(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run on `scene` with one camera for all."""
    out = tmp_path_factory.mktemp("finished") / "out"
    reconstruct(
        scene / "images",
        out,
        pairs_of(scene),
        TruthMatcher(scene),
        ReconstructionConfig(cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE")),
    )
    return out


def test_model_agrees_with_the_truth(scene: Path, finished: Path) -> None:
    comparison = compare(finished / "model", scene / "truth")
    assert comparison.registered == 7
    assert comparison.rotation_median < 0.25
    assert comparison.position_median < 0.5  # % of the extent
    assert comparison.points > 300
    assert comparison.mean_reprojection_error < 1.0
    truth = pycolmap.Reconstruction(scene / "truth")
    model = pycolmap.Reconstruction(finished / "model")
    focal = next(iter(truth.cameras.values())).focal_length
    assert next(iter(model.cameras.values())).focal_length == pytest.approx(focal, rel=0.03)


def test_files_and_record(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "pairs.txt", "raw_matches", "features.h5", "matches.h5", "database.db", "model", "run.json",
        "model_uncertainty.json", "model_points_uncertainty.npz", ".lock",
    }  # fmt: skip
    record = json.loads((finished / "run.json").read_text("utf-8"))
    assert record["settings"]["matcher"]["matcher"] == "truth"
    assert record["results"]["mapped"]["statistics"]["registered"] == 7
    assert set(record["versions"]) >= {"edm_hloc", "torch", "pycolmap"}
    assert set(record["seconds"]) == {"matching", "keypoints", "database", "model"}


def test_refined_tracks(scene: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    cameras = CameraOptions(mode="single", model="SIMPLE_PINHOLE")
    config = ReconstructionConfig(cameras=cameras, refine_tracks=True)
    run = reconstruct(scene / "images", out, pairs_of(scene), CountingMatcher(scene), config)
    assert shots(run) == (0, 21)  # nothing is matched again
    assert run.results["tracks"]["after"] == run.results["mapped"]["statistics"]
    uncertainty = json.loads((out / "model_uncertainty.json").read_text("utf-8"))
    assert len(uncertainty["cameras"]) == 7
    assert all(0 < sigma < 1 for c in uncertainty["cameras"].values() for sigma in c["position"])
    comparison = compare(out / "model", scene / "truth")
    assert comparison.registered == 7
    assert comparison.rotation_median < 0.25


@pytest.mark.slow
def test_a_run_killed_while_tracks_are_refined_maps_nothing_again(
    scene: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"),
        mapping=MappingOptions(threads=1),
        refine_tracks=True,
    )

    def run(out: Path) -> Run:
        return reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), config)

    whole, again = tmp_path / "whole", tmp_path / "again"
    for out in (whole, again):
        shutil.copytree(finished, out)
        shutil.rmtree(out / "model")
    results = run(whole).results

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refine, "possible_observations", kill)  # the second round begins with it
        with pytest.raises(KeyboardInterrupt):
            run(again)
    assert not (again / "model").exists()
    monkeypatch.setattr(extending, "map_database", kill)
    found = run(again).results
    assert found["mapped"]["statistics"] == results["mapped"]["statistics"]
    assert found["mapped_from"] == results["mapped_from"]
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (again / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    assert {p.name for p in again.iterdir()} == {p.name for p in whole.iterdir()}


def test_known_intrinsics_stay(scene: Path, tmp_path: Path) -> None:
    pairs = pairs_of(scene)
    known = load_intrinsics(scene / "truth", find_images(scene / "images"))
    config = ReconstructionConfig(cameras=CameraOptions(known=known))
    run = reconstruct(scene / "images", tmp_path, pairs, TruthMatcher(scene), config)
    model = pycolmap.Reconstruction(tmp_path / "model")
    camera = next(iter(pycolmap.Reconstruction(scene / "truth").cameras.values()))
    assert len(model.cameras) == 1
    assert list(next(iter(model.cameras.values())).params) == list(camera.params)
    assert run.results["mapped"]["statistics"]["registered"] == 7
    comparison = compare(tmp_path / "model", scene / "truth")
    assert comparison.rotation_median < 0.15
    assert comparison.position_median < 0.3


def test_photos_that_look_alike(scene: Path, tmp_path: Path) -> None:
    """A photo that cannot be read is told of, a copy left out; a second run computes nothing."""
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    names = find_images(images)
    (images / "bad.png").write_bytes(b"")
    shutil.copy(images / names[0], images / "zz.png")
    photos = SimilarPhotos(tuple(find_images(images)), RetrievalOptions("sift", 4))
    config = ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
    )
    made = set()
    for _ in range(2):
        run = reconstruct(images, out, photos, TruthMatcher(scene), config)
        assert run.results["mapped"]["statistics"]["registered"] == 7
        assert set(run.results["matching"]["skipped"]) == {"bad.png"}
        assert run.results["copies"] == {"zz.png": names[0]}
        assert run.results["copies_left_out"]
        made.add((out / "global-feats-sift.h5").stat().st_mtime_ns)
    assert len(made) == 1
    listed = read_pairs(out / "pairs.txt")
    assert all(sum(name in pair for pair in listed) >= 4 for name in names)
    assert not any("zz.png" in pair for pair in listed)
    assert len(listed) < 7 * 6 / 2


def test_copies_among_few_photos_are_left_out_unless_their_pairs_are_asked_for(
    scene: Path, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    names = find_images(images)
    shutil.copy(images / names[0], images / "zz.png")
    config = ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
    )
    for how, number in (("exhaustive", 8 * 7 / 2), ("auto", 7 * 6 / 2)):
        pairs = select_pairs(images, find_images(images), PairSelection(how))
        run = reconstruct(images, out, pairs, TruthMatcher(scene), config)
        assert run.results["copies"] == {"zz.png": names[0]}
        assert run.results["copies_left_out"] == (how == "auto")
        assert len(read_pairs(out / "pairs.txt")) == number
    for name in names[1:]:
        (images / name).unlink()
    pairs = select_pairs(images, find_images(images), PairSelection())
    with pytest.raises(EdmHlocError, match="all photos are copies of one"):
        reconstruct(images, out, pairs, TruthMatcher(scene), config)


def test_only_what_changed_is_done_again(scene: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    pairs, matcher = pairs_of(scene), CountingMatcher(scene)
    same = CameraOptions(mode="single", model="SIMPLE_PINHOLE")

    def again(**changes):  # type: ignore[no-untyped-def]
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*.*") if p.is_file()}
        config = ReconstructionConfig(**({"cameras": same} | changes))
        run = reconstruct(scene / "images", out, pairs, matcher, config)
        return run, {p.name for p in before if p.exists() and p.stat().st_mtime_ns != before[p]}

    run, touched = again()
    assert shots(run) == (0, 21)
    assert touched <= {"run.json", "pairs.txt"}
    _, touched = again(mapping=MappingOptions(min_tri_angle=3.0))
    assert "features.h5" not in touched
    assert "points3D.bin" in touched
    _, touched = again(keypoints=replace(RECONSTRUCTION_KEYPOINTS, max_error=1.0, cell_size=1.0))
    assert {"features.h5", "matches.h5", "database.db", "points3D.bin"} <= touched
    (out / "model" / "points3D.bin").unlink()
    shutil.rmtree(out / "model")
    again(keypoints=replace(RECONSTRUCTION_KEYPOINTS, max_error=1.0, cell_size=1.0))
    assert (out / "model" / "points3D.bin").is_file()
    assert matcher.pairs == 0


@pytest.mark.slow
@pytest.mark.parametrize("thorough", [False, True])
def test_another_mapper_keeps_the_verified_pairs(
    scene: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thorough: bool
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    cameras = CameraOptions(mode="single", model="SIMPLE_PINHOLE")
    done: list[str] = []
    for module, function in (("reconstruct", build_database), ("extending", map_database)):

        def noted(*args, function=function, **kwargs):  # type: ignore[no-untyped-def]
            done.append(function.__name__)
            return function(*args, **kwargs)

        monkeypatch.setattr(f"edm_hloc.pipelines.{module}.{function.__name__}", noted)

    def again(**options: Any) -> list[str]:
        """The steps that were done again."""
        done.clear()
        config = ReconstructionConfig(cameras=cameras, mapping=MappingOptions(**options))
        run = reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), config)
        assert run.results["mapped"]["statistics"]["registered"] == 7
        return list(done)

    def contents() -> list[str]:
        with contextlib.closing(sqlite3.connect(out / "database.db")) as connection:
            return list(connection.iterdump())

    before = contents()
    assert again(threads=1) == []
    assert again(mapper="global") == ["map_database"]
    if thorough:
        assert again(mapper="global", two_view_points=False) == ["map_database"]
    assert contents() == before
    assert again(max_error=3.0) == ["build_database", "map_database"]
    if thorough:
        assert again(max_error=3.0, min_inliers=20) == ["build_database", "map_database"]


@pytest.mark.parametrize("name", ["features.h5", "database.db", "model/points3D.bin"])
def test_a_cut_off_file_is_made_again(
    name: str, scene: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    whole = (out / name).stat().st_size
    with (out / name).open("r+b") as file:
        file.truncate(whole // 2)
    config = ReconstructionConfig(cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"))
    matcher = CountingMatcher(scene)
    run = reconstruct(scene / "images", out, pairs_of(scene), matcher, config)
    assert name.split("/")[0] in caplog.text
    assert matcher.pairs == 0
    assert (out / name).stat().st_size > 0.9 * whole
    assert run.results["mapped"]["statistics"]["registered"] == 7
    caplog.clear()
    reconstruct(scene / "images", out, pairs_of(scene), matcher, config)
    assert "Made again" not in caplog.text


@pytest.mark.parametrize("part", ["all", "results", "done"])
def test_what_is_no_record_counts_as_none(part: str, finished: Path, tmp_path: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    damaged = [] if part == "all" else {**record, part: [1]}
    (tmp_path / "run.json").write_text(json.dumps(damaged))
    with Run.begin(tmp_path, {}, FakeMatcher(), [], overwrite=False) as run:
        assert (run.done, run.results) == ({}, {})
    if part == "all":  # it may be another program's, and is kept
        assert (tmp_path / "run_earlier.json").read_text() == "[]"


def test_a_damaged_record_costs_time_not_matches(
    scene: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "run.json").write_text("{")
    matcher = CountingMatcher(scene)
    run = reconstruct(
        scene / "images",
        out,
        pairs_of(scene),
        matcher,
        ReconstructionConfig(cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE")),
    )
    assert matcher.pairs == 0
    assert run.results["mapped"]["statistics"]["registered"] == 7


def test_overwrite_and_other_settings(scene: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    other = CountingMatcher(scene, noise=0.1)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(EdmHlocError, match=r"noise: 0\.3 there, 0\.1 now"):
        reconstruct(scene / "images", out, pairs_of(scene)[:9], other)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    again = ReconstructionConfig(overwrite=True, refine_tracks=False)
    reconstruct(scene / "images", out, pairs_of(scene), other, again)
    assert other.pairs == 21


def test_another_command_does_not_write_over_a_run(
    scene: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    pairs, matcher = pairs_of(scene)[:9], TruthMatcher(scene)
    with pytest.raises(
        EdmHlocError, match="out holds what edm-hloc reconstruct made, and edm-hloc triangulate"
    ):
        triangulate_model(scene / "truth", scene / "images", out, pairs, matcher)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    record = json.loads((out / "run.json").read_text())
    del record["settings"]["command"]  # as the oldest records are
    (out / "run.json").write_text(json.dumps(record))
    triangulate_model(scene / "truth", scene / "images", out, pairs, matcher)
    config = ReconstructionConfig(overwrite=True, refine_tracks=False)
    reconstruct(scene / "images", out, pairs_of(scene), matcher, config)
    assert json.loads((out / "run.json").read_text())["settings"]["command"] == "reconstruct"


def test_overwriting_removes_what_the_other_command_made(
    scene: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "mine.txt").touch()
    (tmp_path / "elsewhere").touch()
    record = json.loads((out / "run.json").read_text())
    record["sizes"] |= dict.fromkeys(("../elsewhere", "gone.h5", "..", ".", ""), 0)
    (out / "run.json").write_text(json.dumps(record))
    with Run.begin(out, {"command": "localize"}, TruthMatcher(scene), [], overwrite=True):
        left = {path.name for path in out.iterdir()}
        assert left == {"pairs.txt", "raw_matches", "run.json", ".lock", "mine.txt"}
    assert (tmp_path / "elsewhere").exists()


def test_a_second_run_in_the_folder_is_refused_until_the_first_has_ended(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def run_now() -> Run:
        config = ReconstructionConfig(refine_tracks=False)
        return reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), config)

    def verify(*_: object) -> None:  # of the first, past its matching
        before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
        with pytest.raises(EdmHlocError, match=f"Another process is writing into {out}"):
            run_now()
        assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
        raise EdmHlocError("the first fails")

    monkeypatch.setattr("edm_hloc.pipelines.reconstruct.build_database", verify)
    with pytest.raises(EdmHlocError, match="the first fails"):
        run_now()
    assert json.loads((out / "run.json").read_text())["error"] == "the first fails"
    monkeypatch.undo()
    run_now()
    assert "error" not in json.loads((out / "run.json").read_text())


def test_bad_photos_are_left_out(scene: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(scene / "images", photos)
    names = find_images(photos)
    whole = (photos / names[1]).read_bytes()
    (photos / names[1]).write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("no photo")
    pairs = list(itertools.combinations(find_images(photos), 2))
    known = load_intrinsics(scene / "truth", names)
    run = reconstruct(
        photos,
        tmp_path / "out",
        pairs,
        TruthMatcher(scene),
        ReconstructionConfig(cameras=CameraOptions(known=known), refine_tracks=False),
    )
    assert set(run.results["matching"]["skipped"]) == {names[1], "empty.jpg", "text.jpg"}
    assert run.results["mapped"]["statistics"]["registered"] == 6


def test_what_the_global_mapper_cannot_keep_is_told_first(scene: Path, tmp_path: Path) -> None:
    known = load_intrinsics(scene / "truth", find_images(scene / "images")[:3])
    with pytest.raises(EdmHlocError, match="all or none"):
        reconstruct(
            scene / "images",
            tmp_path / "out",
            pairs_of(scene),
            TruthMatcher(scene),
            ReconstructionConfig(
                cameras=CameraOptions(known=known), mapping=MappingOptions(mapper="global")
            ),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        (CameraOptions(model="FOO"), "No camera model 'FOO'(?!.*EQUIRECTANGULAR)"),
        (CameraOptions(model="EQUIRECTANGULAR"), "not of panoramas .* first: edm-hloc views"),
        (CameraOptions(model="OPENCV_FISHEYE"), "OPENCV_FISHEYE needs a focal length.*view_00.jpg"),
        (
            CameraOptions(
                known={
                    "view_03.jpg": pycolmap.Camera(
                        model="PINHOLE", width=64, height=64, params=[50, 50, 32, 32]
                    )
                }
            ),
            "camera of view_03.jpg in the known intrinsics is for 64 × 64",
        ),
    ],
)
def test_impossible_cameras_are_told_before_the_matching(
    cameras: CameraOptions, message: str, scene: Path, tmp_path: Path
) -> None:
    matcher = CountingMatcher(scene)
    with pytest.raises(EdmHlocError, match=message):
        reconstruct(
            scene / "images",
            tmp_path / "out",
            pairs_of(scene),
            matcher,
            ReconstructionConfig(cameras=cameras),
        )
    assert matcher.pairs == 0
    assert not (tmp_path / "out").exists()


def test_no_overlap_says_why(scene: Path, tmp_path: Path) -> None:
    nonsense = TruthMatcher(scene, outliers=1.0)
    with pytest.raises(EdmHlocError, match="No model could be made of the 7 photos"):
        reconstruct(scene / "images", tmp_path / "out", pairs_of(scene)[:6], nonsense)
    assert (tmp_path / "out" / "matches.h5").is_file()
    assert not (tmp_path / "out" / "model").exists()


def test_triangulation_with_known_poses(scene: Path, tmp_path: Path) -> None:
    run = triangulate_model(
        scene / "truth", scene / "images", tmp_path, pairs_of(scene), TruthMatcher(scene)
    )
    assert run.results["mapped"]["statistics"]["points"] > 300
    comparison = compare(tmp_path / "model", scene / "truth")
    assert comparison.rotation_max < 1e-4
    assert comparison.position_max < 1e-4


def test_triangulation_with_refined_tracks(scene: Path, tmp_path: Path) -> None:
    truth, images, pairs = scene / "truth", scene / "images", pairs_of(scene)
    triangulate_model(truth, images, tmp_path, pairs, TruthMatcher(scene))
    config = ReconstructionConfig(refine_tracks=True)
    run = triangulate_model(truth, images, tmp_path, pairs, CountingMatcher(scene), config)
    assert shots(run) == (0, 21)  # nothing is matched again
    tracks = run.results["tracks"]
    assert tracks["after"] == run.results["mapped"]["statistics"]
    assert tracks["after"]["points"] > 0.9 * tracks["before"]["points"]
    assert compare(tmp_path / "model", truth).position_max < 1e-4
    run = triangulate_model(truth, images, tmp_path, pairs, CountingMatcher(scene))
    assert "tracks" not in run.results


def test_no_model_to_triangulate_with(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="No COLMAP model in"):
        triangulate_model(tmp_path, scene / "images", tmp_path / "out", [], TruthMatcher(scene))
    assert not (tmp_path / "out").exists()

"""What a run did not make stays, and a run that failed leaves no model that looks like its own."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.localization.scans import write_scan_points
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct, triangulate_model
from edm_hloc.pipelines.run import Run
from edm_hloc.report.page import make_report
from tests.fakes import FakeMatcher
from tests.scenes import TruthMatcher

SINGLE = ReconstructionConfig(
    cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def pairs_of(scene: Path) -> list[Pair]:
    return list(itertools.combinations(find_images(scene / "images"), 2))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["database.db", "features.h5", "matches.h5", "model/cameras.bin", "model_parts/a.txt"]
)
def test_files_of_a_colmap_project_are_kept(
    name: str, overwrite: bool, scene: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(scene / "images", project / "images")
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("years of work")
    before = contents(project)
    config = replace(SINGLE, overwrite=overwrite)
    top = project / name.split("/")[0]
    with pytest.raises(EdmHlocError, match=f"{top} is there already and was not made by edm-hloc"):
        reconstruct(project / "images", project, pairs_of(scene), TruthMatcher(scene), config)
    assert contents(project) == before
    if name != "model_parts/a.txt":  # triangulation makes no parts
        with pytest.raises(EdmHlocError, match=f"{top} .* Choose another output folder, or move"):
            triangulate_model(
                scene / "truth",
                project / "images",
                project,
                pairs_of(scene),
                TruthMatcher(scene),
                config,
            )
        assert contents(project) == before


def test_a_list_of_pairs_in_the_folder_is_kept(scene: Path, tmp_path: Path) -> None:
    pairs = pairs_of(scene)
    text = "\n" + "".join(f"{b} {a}\n" for a, b in pairs)
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(EdmHlocError, match=r"pairs\.txt is there already"):
        reconstruct(scene / "images", tmp_path, pairs[1:], TruthMatcher(scene), SINGLE)
    assert not (tmp_path / "raw_matches").exists()
    reconstruct(scene / "images", tmp_path, pairs, TruthMatcher(scene), SINGLE)
    assert (tmp_path / "pairs.txt").read_text() == text


def fail(scene: Path, out: Path) -> None:
    """A run in which the mapper finds no model."""
    other = replace(SINGLE, mapping=MappingOptions(min_tri_angle=3.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edm_hloc.mapping.mappers.find_models", lambda *_: [])
        with pytest.raises(EdmHlocError, match="No model could be made"):
            reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), other)


def test_a_failed_run_leaves_no_model_that_looks_like_its_own(
    scene: Path, mapped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    model = contents(out / "model")
    fail(scene, out)
    assert not (out / "model").exists()
    assert contents(out / "model_earlier") == model
    assert "mapped" not in json.loads((out / "run.json").read_text())["results"]
    make_report(out)
    assert ">7<" not in (out / "report.html").read_text().split("<dl")[1].split("</dl")[0]
    fail(scene, out)
    assert contents(out / "model_earlier") == model
    # the model of the next run takes its place
    run = reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), SINGLE)
    assert run.results["mapped"]["statistics"]["registered"] == 7
    assert (out / "model").is_dir()
    assert not (out / "model_earlier").exists()


def test_a_run_that_fails_before_its_model_gives_the_old_one_back_later(
    scene: Path, mapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    model, record = contents(out / "model"), json.loads((out / "run.json").read_text())

    def refuse(*_: object, **__: object) -> None:
        raise EdmHlocError("no room")

    monkeypatch.setattr("edm_hloc.pipelines.matching.match_in_processes", refuse)
    with pytest.raises(EdmHlocError, match="no room"):
        reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), SINGLE)
    assert not (out / "model").exists()
    monkeypatch.undo()
    monkeypatch.setattr("edm_hloc.pipelines.extending.map_database", refuse)  # is not needed
    run = reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), SINGLE)
    assert contents(out / "model") == model
    assert run.results["mapped"] == record["results"]["mapped"]
    assert not (out / "model_earlier").exists()
    assert "earlier" not in json.loads((out / "run.json").read_text())


def test_what_was_added_to_a_model_is_kept(scene: Path, mapped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    for folder in ("model", "model_parts"):
        (out / folder).mkdir(exist_ok=True)
        (out / folder / "notes.txt").write_text("years of work")
    (out / "mine.db").touch()
    config = replace(SINGLE, overwrite=True)
    record = json.loads((out / "run.json").read_text())
    assert "model_parts" in record["made"]
    for _ in range(2):
        reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), config)
    for folder in ("model_earlier", "model_parts_earlier"):
        assert (out / folder / "notes.txt").read_text() == "years of work"
    assert (out / "mine.db").exists()
    assert {path.suffix for path in (out / "model").iterdir()} == {".bin"}
    assert not (out / "model_parts").exists()


@pytest.mark.parametrize("other_settings", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_model_that_was_refined_in_place_is_kept(
    other_settings: bool, scene: Path, mapped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    model = pycolmap.Reconstruction(out / "model")
    model.delete_point3D(min(model.points3D))
    model.write(out / "model")
    changed = contents(out / "model")
    mapping = MappingOptions(seed=1) if other_settings else SINGLE.mapping
    config = replace(SINGLE, mapping=mapping)
    for _ in range(2):
        reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), config)
    assert contents(out / "model_changed") == changed
    assert contents(out / "model") != changed
    assert not (out / "model_changed_2").exists()
    assert not (out / "model_earlier").exists()


@dataclass(frozen=True)
class _Nothing:
    pass


@dataclass(frozen=True)
class _Content:
    text: str


def model_step(out: Path, text: str, *, killed: bool = False, **settings: object) -> list[str]:
    """Makes a model with a text in it; returns that of the model that is set aside meanwhile."""
    found: list[str] = []
    overwrite = bool(settings.pop("overwrite", False))
    with Run.begin(out, settings, FakeMatcher(), ["model"], overwrite=overwrite) as run:

        def work() -> dict[str, _Content]:
            if (aside := run.set_aside("model")) is not None:
                found.append((aside[1]["model"] / "cameras.txt").read_text())
            if not text:
                raise EdmHlocError("No model")
            (out / "model").mkdir()
            (out / "model" / "cameras.txt").write_text(text)
            if killed:
                raise KeyboardInterrupt
            return {"mapped": _Content(text)}

        run.step("model", text, [out / "model"], work)
    return found


@pytest.mark.parametrize("late", [False, True])
def test_a_kill_does_not_lose_the_model_that_is_set_aside(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the new model has its name but is not recorded, and before the old one is renamed."""
    model_step(tmp_path, "earlier")
    if late:
        with pytest.raises(KeyboardInterrupt):
            model_step(tmp_path, "extended", killed=True)
        assert (tmp_path / "model" / "cameras.txt").read_text() == "extended"
    else:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                model_step(tmp_path, "extended")
    interrupted = contents(tmp_path)
    assert model_step(tmp_path, "extended") == ["earlier"]
    assert (tmp_path / "model" / "cameras.txt").read_text() == "extended"
    assert not (tmp_path / "model_earlier").exists()
    # the earlier input comes back
    shutil.rmtree(tmp_path / "model")
    for name, content in interrupted.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    model_step(tmp_path, "earlier")
    assert contents(tmp_path / "model") == {"cameras.txt": b"earlier"}
    assert not (tmp_path / "model_earlier").exists()


def test_what_was_added_to_an_unrecorded_model_is_kept(tmp_path: Path) -> None:
    model_step(tmp_path, "earlier")
    with pytest.raises(KeyboardInterrupt):
        model_step(tmp_path, "extended", killed=True)
    (tmp_path / "model" / "notes.txt").write_text("years of work")
    assert model_step(tmp_path, "extended") == ["earlier"]
    assert (tmp_path / "model_interrupted" / "notes.txt").read_text() == "years of work"


def test_overwrite_removes_what_was_set_aside(tmp_path: Path) -> None:
    model_step(tmp_path, "first")
    with pytest.raises(EdmHlocError, match="No model"):
        model_step(tmp_path, "", setting=1)
    assert (tmp_path / "model_earlier").is_dir()
    model_step(tmp_path, "second", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["model"]


@pytest.mark.parametrize("names", [["../elsewhere"], [".."], ["/"], "model"])
def test_a_planted_record_moves_nothing_outside(names: Sequence[str], tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    for folder in (out / "model", elsewhere):
        folder.mkdir(parents=True)
        (folder / "cameras.bin").touch()
    with Run.begin(out, {}, FakeMatcher(), [], overwrite=False):
        pass
    record = json.loads((out / "run.json").read_text())
    places = {name: name for name in names}
    record |= {
        "made": ["model"],
        "done": {"model": "x"},
        "wrote": {"model": {"files": names, "results": []}},
        "earlier": {
            "model": {"places": places, "results": {}, "sizes": {}, "wrote": {}, "fingerprint": "x"}
        },
    }
    (out / "run.json").write_text(json.dumps(record))
    with Run.begin(out, {"other": 1}, FakeMatcher(), [], overwrite=False) as run:
        run.step("model", 1, [out / "model"], lambda: {"mapped": _Nothing()})
    assert contents(elsewhere) == {"cameras.bin": b""}


def test_arrays_that_are_no_scan_points_are_kept(tmp_path: Path) -> None:
    features = tmp_path / "features.h5"
    features.touch()
    (tmp_path / "scan_points").mkdir()
    (tmp_path / "scan_points" / "mine.npy").write_text("years of work")
    with pytest.raises(EdmHlocError, match=r"not made here, such as mine\.npy"):
        write_scan_points(tmp_path, features, [], tmp_path / "scan_points")
    assert (tmp_path / "scan_points" / "mine.npy").read_text() == "years of work"


def test_a_page_of_somebody_else_is_kept(mapped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    (out / "report.html").write_text("<title>My thesis</title>")
    with pytest.raises(EdmHlocError, match=r"report\.html was not made by edm-hloc"):
        make_report(out)
    assert "My thesis" in (out / "report.html").read_text()
    (out / "report.html").unlink()
    make_report(out)
    make_report(out)


@pytest.mark.parametrize("content", ["[1]", "{", '{"of": "another program"}'])
def test_beside_an_unknown_record_nothing_is_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "database.db").write_text("years of work")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with (
            pytest.raises(EdmHlocError, match=r"database\.db is there already"),
            Run.begin(tmp_path, {}, FakeMatcher(), ["database.db"], overwrite=overwrite),
        ):
            pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "raw_matches",
        "model",
        "model_parts",
        "features.h5",
        "matches.h5",
        "database.db",
        "pairs.txt",
        "run.json",
        "report.html",
    ],
)
def test_parts_of_the_other_type_get_a_sentence_and_stay(
    name: str, overwrite: bool, scene: Path, mapped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    path = out / name
    if path.suffix:
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / "mine.txt").write_text("years of work")
        message = f"{path} is a folder, but edm-hloc makes a file of that name there: move it, or"
    else:
        shutil.rmtree(path, ignore_errors=True)
        path.write_text("years of work")
        message = f"{path} is a file, but edm-hloc makes a folder of that name there: move it, or"
    before = contents(out)
    config = replace(SINGLE, overwrite=overwrite)
    with pytest.raises(EdmHlocError, match=message):
        reconstruct(scene / "images", out, pairs_of(scene), TruthMatcher(scene), config)
    with pytest.raises(EdmHlocError, match=message):
        triangulate_model(
            scene / "truth", scene / "images", out, pairs_of(scene), TruthMatcher(scene), config
        )
    assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("run.json", "record .*run.json: Is a directory"), ("report.html", "is a folder, but edm-h")],
)
def test_the_report_of_a_folder_with_folders_for_files(
    name: str, message: str, mapped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    (out / name).unlink(missing_ok=True)
    (out / name).mkdir()
    with pytest.raises(EdmHlocError, match=message) as caught:
        make_report(out)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("name", ["features.h5", "matches.h5", "database.db", "pairs.txt", "model"])
def test_the_report_shows_the_rest(name: str, mapped: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(mapped, out)
    if name == "model":
        shutil.rmtree(out / name)
        (out / name).write_text("years of work")
    else:
        (out / name).unlink()
        (out / name).mkdir()
    page = make_report(out).read_text()
    assert "Errno" not in page
    assert "Traceback" not in page

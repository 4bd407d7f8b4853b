"""The folder of a run's photos is found again from its record, wherever a command is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.roots import root_text
from edm_hloc.interop.targets.registry import photos_of
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.run_entries import recorded_folder
from edm_hloc.report.collect import collect, photos_of_model
from tests.fakes import FakeMatcher


def _run(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of a run of the photos in `project`, whose folder was typed as "photos"."""
    for folder in (project / "photos", project / "out" / "model"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(project)
    settings = {"command": "match-pairs", "images": root_text(Path("photos"))}
    with Run.begin(Path("out"), settings, FakeMatcher(), [], overwrite=False):
        pass
    return project / "out"


def test_other_photos_of_the_same_name_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _run(tmp_path / "a", monkeypatch)
    (tmp_path / "b" / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "b")
    mine = tmp_path / "a" / "photos"
    assert photos_of(out / "model") == photos_of_model(out / "model") == mine
    assert collect(out).image_root == mine
    (tmp_path / "a" / "photos").rmdir()
    with pytest.raises(EdmHlocError, match="a/photos, which is not there: give their folder by"):
        photos_of(out / "model")
    assert any("there is no folder" in problem for problem in collect(out).problems)


def test_photos_that_have_moved_with_the_run_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = _run(tmp_path / "a", monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").rename(tmp_path / "moved")
    there = tmp_path / "moved"
    assert photos_of(there / "out" / "model") == there / "photos"
    assert f"moved with {there / 'out'}: {there / 'photos'} is taken for it" in caplog.text
    (there / "out").rename(tmp_path / "alone")  # its photos have stayed
    with pytest.raises(EdmHlocError, match="which is not there"):
        photos_of(tmp_path / "alone" / "model")
    assert not out.exists()


def test_records_of_older_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert recorded_folder(out, {"settings": {"images": "photos"}}, "images") == Path("photos")
    assert f"{tmp_path / 'photos'} is taken for it" in caplog.text
    assert recorded_folder(out, {"settings": {}}, "images") is None
    record = {"settings": {"images": str(tmp_path / "gone")}}
    assert recorded_folder(out, record, "images") == tmp_path / "gone"


def test_the_form_of_a_recorded_folder_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _run(tmp_path, monkeypatch)
    model = out / "model"
    model.rmdir()

    def go_on(images: str) -> int:
        done = []

        def work() -> dict[str, object]:
            done.append(1)
            model.mkdir()
            (model / "cameras.txt").write_text("1")
            return {}

        settings = {"command": "match-pairs", "images": images}
        with Run.begin(out, settings, FakeMatcher(), ["model"], overwrite=False) as run:
            run.step("model", "same", [model], work)
        assert (model / "cameras.txt").read_text() == "1"
        return len(done)

    assert go_on("photos") == 1  # as older versions recorded it
    assert go_on(root_text(Path("photos"))) == 0
    assert go_on(root_text(tmp_path / "photos")) == 0
    text = (out / "run.json").read_text()
    assert text.startswith('{\n  "settings":')  # by which `find_images` knows it
    assert json.loads(text)["settings"]["images"] == str(tmp_path / "photos")

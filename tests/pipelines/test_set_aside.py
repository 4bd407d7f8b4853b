"""The files of a run's result are set aside, come back and go away together, wherever it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pipelines import run as module
from edm_hloc.pipelines.run import Run
from tests.fakes import FakeMatcher

FILES = ("model", "model_parts", "table.csv", "georeference.json", "cameras.geojson")
ONE = {"keypoints": "a", "model": "parts table", "place": "map"}
THIRD = {"keypoints": "bb", "model": "parts", "place": "far"}


@dataclass(frozen=True)
class _Content:
    text: str


def run_all(out: Path, what: dict[str, str], fails: str = "") -> None:
    """Three steps: keypoints; a model with files beside it; a place that depends on the model."""

    def check(stage: str) -> None:
        if stage == fails:
            raise EdmHlocError(f"fails {stage}")

    with Run.begin(out, what, FakeMatcher(), ["keypoints.h5", *FILES], overwrite=False) as run:

        def keypoints() -> dict[str, Any]:
            (out / "keypoints.h5").write_text(what["keypoints"])
            return {"keypoints": _Content(what["keypoints"])}

        text = what["keypoints"] + what["model"]

        def model() -> dict[str, Any]:
            run.put_aside("georeference")
            check("in the model")
            results = {"mapped": _Content(text)}
            for folder in ("model", "model_parts"):
                if folder == "model" or "parts" in what["model"]:
                    (out / folder).mkdir()
                    (out / folder / "cameras.txt").write_text(text)
            if "table" in what["model"]:
                (out / "table.csv").write_text(text)
                results["poses"] = _Content(text)
            check("at the end of the model")
            run.discard_aside("georeference")
            return results

        def place() -> dict[str, Any]:
            (out / "georeference.json").write_text(text + what["place"])
            (out / "cameras.geojson").unlink(missing_ok=True)
            if what["place"] == "map":
                (out / "cameras.geojson").write_text(text)
            return {"georeferenced": _Content(what["place"])}

        made_from = run.step("keypoints", what["keypoints"], [out / "keypoints.h5"], keypoints)
        check("before the model")
        maybe = [out / name for name in ("model_parts", "table.csv")]
        made_from = run.step(
            "model", [made_from, what["model"]], [out / "model"], model, maybe=maybe
        )
        run.bring_back("georeference")
        depends_on, maybe = [made_from, what["place"]], [out / "cameras.geojson"]
        run.step("georeference", depends_on, [out / "georeference.json"], place, maybe=maybe)


def state(out: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """All files but the record, and the results in it; nothing is set aside."""
    record = json.loads((out / "run.json").read_text())
    assert "earlier" not in record
    paths = [p for p in out.rglob("*") if p.is_file() and p.name not in ("run.json", ".lock")]
    return {str(p.relative_to(out)): p.read_text() for p in paths}, record["results"]


@contextmanager
def interrupted_at(number: int) -> Iterator[list[str]]:
    """Ctrl-C before the `number`-th change of the record, of a name, or removal of a run."""
    seen: list[str] = []

    def counted(name: str, work: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                raise KeyboardInterrupt
            return work(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_rename", counted("rename", Run._rename))
        for name in ("write_whole", "discard"):
            patch.setattr(module, name, counted(name, getattr(module, name)))
        yield seen


def test_wherever_a_run_is_interrupted_the_next_is_as_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same settings, or with those of the run before."""
    monkeypatch.setattr("edm_hloc.base.files.force_to_disk", lambda _: None)
    monkeypatch.setattr(module, "versions", dict)
    out, fresh = tmp_path / "out", {}
    for name, what in (("one", ONE), ("third", THIRD)):
        run_all(tmp_path / name, what)
        fresh[name] = state(tmp_path / name)
    for name, second in (("third", THIRD), ("one", {**ONE, "new": "setting"})):
        number, seen = 1, [""]
        while len(seen) >= number - 1:
            for after, what in ((name, second), ("one", ONE)):
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(tmp_path / "one", out)
                with interrupted_at(number) as seen:
                    try:
                        run_all(out, second)
                    except KeyboardInterrupt:
                        assert len(seen) == number
                run_all(out, what)
                assert state(out) == fresh[after], (name, number, after)
            number += 1
        assert number > 3


@pytest.mark.parametrize("killed", [0, 12])
@pytest.mark.parametrize("fails", ["before the model", "in the model", "at the end of the model"])
def test_a_failed_run_leaves_no_file_that_looks_like_its_result(
    fails: str, killed: int, tmp_path: Path
) -> None:
    """Also where a run before it was killed when its model was there already."""
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run_all(out, ONE)
    first = state(out)
    if killed:
        with interrupted_at(killed), pytest.raises(KeyboardInterrupt):
            run_all(out, THIRD)
    with pytest.raises(EdmHlocError, match=fails):
        run_all(out, THIRD, fails)
    assert not [name for name in FILES if (out / name).exists()]
    results = json.loads((out / "run.json").read_text())["results"]
    assert results.keys() == {"keypoints"}
    assert (out / "model_earlier").is_dir()
    assert (out / "table_earlier.csv").is_file()
    assert (out / "georeference_earlier.json").is_file()
    shutil.copytree(out, tmp_path / "copy")
    run_all(out, ONE)
    assert state(out) == first
    run_all(fresh, THIRD)
    run_all(tmp_path / "copy", THIRD)
    assert state(tmp_path / "copy") == state(fresh)


@pytest.mark.parametrize("name", [*FILES, "keypoints.h5"])
def test_a_file_that_was_removed_is_made_again(name: str, tmp_path: Path) -> None:
    """Also one that a step writes in some cases only; and its results do not outlive a model."""
    out, copy = tmp_path / "out", tmp_path / "copy"
    run_all(out, ONE)
    first, path = state(out), out / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(out, copy)
    run_all(out, ONE)
    assert state(out) == first
    run_all(copy, THIRD)
    assert "poses" not in state(copy)[1]

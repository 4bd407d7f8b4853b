"""Things in the way of the files: links, folders, broken records, no home: a sentence each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, write_whole
from edm_hloc.base.h5 import AtomicH5
from edm_hloc.cli import main
from edm_hloc.mapping.output import new_model_folder
from edm_hloc.models import weights
from edm_hloc.models.registry import cache_directory
from edm_hloc.pipelines.run import Run
from tests.fakes import FakeMatcher


@pytest.mark.parametrize("planted", ["link", "dangling", "folder", "file"])
def test_planted_temporary_files_lead_nowhere(planted: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    for target in ("a.txt", "b.h5", "model"):
        temporary = tmp_path / f".{target}.tmp"
        if planted == "link":
            temporary.symlink_to(precious if target == "model" else precious / "file")
        elif planted == "dangling":
            temporary.symlink_to(precious / "none")
        elif planted == "folder":
            temporary.mkdir()
        else:
            temporary.write_text("left by a run that was killed")
    write_whole(tmp_path / "a.txt", "new")
    AtomicH5(tmp_path / "b.h5", {}).commit()
    with new_model_folder(tmp_path / "model") as folder:
        pycolmap.Reconstruction().write_binary(folder)
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "b.h5").is_file()
    assert (tmp_path / "model" / "cameras.bin").is_file()
    assert [p.name for p in precious.iterdir()] == ["file"]
    assert (precious / "file").read_text() == "precious"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run.json").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "run.json", "{}")
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / "folder").mkdir()
    with pytest.raises(EdmHlocError, match=r"Cannot write .*folder: "):
        write_whole(tmp_path / "folder", "{}")


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_lock_that_is_no_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    if kind == "folder":
        (tmp_path / ".lock").mkdir()
    elif kind == "link":
        (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(tmp_path / ".lock")
    with pytest.raises(EdmHlocError, match=r"\.lock must be a plain file.*remove it"):
        FolderLock(tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("content", ["{", "[1]", "null", '{"done": 3}', "[" * 100_000, "\0"])
def test_a_broken_record_is_said_and_begun_again(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.json").write_text(content)
    with Run.begin(tmp_path, {"command": "reconstruct"}, FakeMatcher(), [], overwrite=False) as run:
        assert run.done == run.results == {}
    assert caplog.text.count("run.json is damaged or no record") == 1


@pytest.mark.parametrize("error", [PermissionError, NotADirectoryError, IsADirectoryError])
def test_any_file_that_cannot_be_used_is_named(
    error: type[OSError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error(1, "Not today", str(tmp_path / "x"))

    monkeypatch.setattr("edm_hloc.cli.pair_options.list_pairs", fail)
    assert main(["pairs", str(tmp_path), str(tmp_path / "out.txt")]) == 1
    assert capsys.readouterr().err == f"edm-hloc: Cannot use {tmp_path / 'x'}: Not today.\n"


def test_weights_without_a_home_or_with_an_unreadable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("EDM_HLOC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "edm_hloc"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_directory().name == "edm_hloc"

    is_file = Path.is_file

    def unreadable(path: Path) -> bool:
        if tmp_path in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setenv("EDM_HLOC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(weights.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(Path, "is_file", unreadable)
    assert weights.load()[1].name == "edm_s"  # of the package
    with pytest.raises(weights.WeightsError, match=r"Cannot read .*w\.ckpt: Permission denied"):
        weights.load(tmp_path / "w.ckpt")


def test_the_program_starts_without_home() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HOME", "XDG"))}
    command = [sys.executable, "-m", "edm_hloc", "weights", "list"]
    subprocess.run(command, env=environment, check=True, capture_output=True)

"""Folders of this computer that are addressed like object storage."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.storage import Store

pytest.importorskip("fsspec", reason="object storage needs fsspec")


def test_folders_of_this_computer_are_made_and_files_in_them_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, store = tmp_path / "a.txt", Store(f"file://{tmp_path}/new/run")
    file.write_text("first")
    assert store.objects() == {}
    store.put_all(tmp_path, ["a.txt"])
    store.put(file, "b/c.txt")
    assert list(store.objects()) == ["a.txt", "b/c.txt"]

    def half(source: Path, target: Path) -> None:
        Path(target).write_text("sec")
        raise OSError("the disk is full")

    file.write_text("second")
    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(EdmHlocError, match=r"Cannot use file://.*/run/a\.txt: the disk is full"):
        store.put(file, "a.txt")
    monkeypatch.undo()
    store.get("a.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "first"
    assert list(store.objects()) == ["a.txt", "b/c.txt"]
    store.put(file, "a.txt")
    store.get("a.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "second"


def test_no_folder_pipe_or_device_is_replaced(tmp_path: Path) -> None:
    file, store = tmp_path / "a.txt", Store(f"file://{tmp_path}/run")
    file.write_text("text")
    store.put(file, "a.txt")
    other = tmp_path / "run" / "other"
    if hasattr(os, "mkfifo"):
        os.mkfifo(other)
    else:
        other.mkdir()
    with pytest.raises(EdmHlocError, match=r"Cannot write .*run.other: (it is a|Is a directory)"):
        store.put(file, "other")
    with pytest.raises(EdmHlocError, match=r"Cannot write .*run.other: (it is a|Is a directory)"):
        store.get("a.txt", other)
    assert not other.is_file()
    with pytest.raises(EdmHlocError, match=r"Cannot write .*a\.txt.b: (Not a dir|File exists)"):
        store.get("a.txt", file / "b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "a.txt", "other", "run"]

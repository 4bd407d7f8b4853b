"""Files that are whole or not there, and the lock of folders."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, scratch_folder, write_whole
from edm_hloc.base.h5 import check_keys
from edm_hloc.pairs.files import write_pairs, write_scores
from edm_hloc.pipelines.run import Run


def test_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_whole(path, "写真\n")
    assert path.read_bytes() == "写真\n".encode()
    write_whole(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("file", partial(write_whole, data="new")),
        ("pairs.txt", partial(write_pairs, pairs=[("a", "b")])),
        ("scores.txt", partial(write_scores, found=[("a", "b", 0.5)])),
        ("run.json", lambda path: Run(path.parent, {}).write()),
    ],
)
def test_a_write_that_breaks_off_leaves_the_old_file(
    name: str, write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / name
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(EdmHlocError, match=rf"Cannot write {path}: No space left on device\."):
        write(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_without_a_place_for_temporary_files_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose root cannot be written."""
    with scratch_folder() as folder:
        (folder / "file").touch()
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(EdmHlocError, match="set TMPDIR to a folder"), scratch_folder():
        pass


# --------------------------------------------------------------------------- the lock of a folder

HOLD = """
import os, sys
from pathlib import Path
from edm_hloc.base.files import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if not sys.argv[2:] or os.fork() == 0:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the lock of a folder; the id of the child that it forked, or its own."""
    command = [sys.executable, "-c", HOLD, str(folder), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield process, int(process.stdout.readline())


def test_one_process_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with another_process(tmp_path) as (process, _):
        with pytest.raises(EdmHlocError, match=f"Another process is writing into {tmp_path}: wait"):
            FolderLock(tmp_path)
        FolderLock(other).release()
        process.stdin.close()  # it ends
        process.wait()
        FolderLock(tmp_path).release()
    assert [path.name for path in other.iterdir()] == [".lock"]  # nothing else is left behind


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and fork")
@pytest.mark.parametrize("arguments", [(), ("fork",)])
def test_a_killed_process_gives_the_lock_back(arguments: tuple[str, ...], tmp_path: Path) -> None:
    with another_process(tmp_path, *arguments) as (process, child):
        with pytest.raises(EdmHlocError, match="Another process"):
            FolderLock(tmp_path)
        process.kill()
        process.wait()
        if arguments:
            os.kill(child, 0)  # the child lives on
        FolderLock(tmp_path).release()
        process.stdin.close()  # now the child ends too


def test_a_second_lock_of_the_same_process_is_refused(tmp_path: Path) -> None:
    refused = []

    def lock_again() -> None:
        with pytest.raises(EdmHlocError, match="Another process"):
            FolderLock(tmp_path)
        refused.append(True)

    with FolderLock(tmp_path):
        lock_again()
        thread = threading.Thread(target=lock_again)
        thread.start()
        thread.join()
    assert refused == [True, True]


def test_any_thread_gives_the_lock_back(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    again = FolderLock(tmp_path)
    lock.release()  # a second time does nothing
    with pytest.raises(EdmHlocError, match="Another process"):
        FolderLock(tmp_path)
    again.release()


@pytest.mark.parametrize("content", ["empty", "text", "SQLite", "broken SQLite"])
def test_any_file_that_was_left_over_is_taken(content: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("12345\n" if content == "text" else "")
    if "SQLite" in content:  # as older versions made it: empty, or, killed at work, with a header
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (a)")
        connection.close()
    if "broken" in content:
        path.write_bytes(path.read_bytes()[:100])
    with FolderLock(tmp_path), pytest.raises(EdmHlocError, match="Another process"):
        FolderLock(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EdmHlocError, match=r"Cannot write into .*file.sub \(Not a directory"):
        FolderLock(tmp_path / "file" / "sub")
    FolderLock(tmp_path).release()

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(FileLock, "acquire", read_only)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EdmHlocError, match=r"\(Read-only file system\): choose another output"):
        FolderLock(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="flock")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EIO])
@pytest.mark.parametrize("left_over", [False, True])
def test_file_systems_without_locks_are_worked_on_with_a_warning(
    number: int,
    left_over: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    if left_over:
        (tmp_path / ".lock").touch()
    monkeypatch.setattr("fcntl.flock", no_flock)
    with FolderLock(tmp_path):
        pass
    expected = f"No lock on {tmp_path} ({os.strerror(number)}): do not run two processes on it."
    assert caplog.messages == [expected]


def test_a_lock_of_another_user_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".lock").touch()

    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(FileLock, "acquire", forbidden)
    with FolderLock(tmp_path):
        pass
    assert "No lock on" in caplog.text


def test_pairs_that_have_one_key_are_found_before_they_are_matched() -> None:
    check_keys([("a/b.jpg", "c.jpg"), ("a/b.jpg", "d.jpg"), ("c.jpg", "a/b.jpg")])
    # alike names, but no two pairs are alike: nothing is mixed up
    check_keys([("a/b.jpg", "c.jpg"), ("a-b.jpg", "d.jpg")])
    for other in (("a-b.jpg", "c.jpg"), ("c.jpg", "a-b.jpg"), ("a-b.jpg", "a/b.jpg")):
        with pytest.raises(EdmHlocError, match=r"photos a[/-]b\.jpg and a[/-]b\.jpg .*rename one"):
            check_keys([("c.jpg", "d.jpg"), ("a/b.jpg", "c.jpg"), other])

"""The file from which a long step goes on after it was killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.journal import Journal
from tests.full_disk import largest_file


def fill(path: Path, inputs: str = "inputs") -> None:
    with Journal(path, inputs) as journal:
        journal.put("a", b"first")
        journal.put("b", np.arange(3, dtype=np.int32))
        journal.commit()
        journal.put("é/с", b"")
        journal.commit()
        journal.put("c", b"not kept")


def content(path: Path) -> dict[str, bytes]:
    with Journal(path, "inputs") as journal:
        return {key: journal.get(key) for key in ("a", "b", "é/с", "c", "d") if key in journal}


WHOLE = {"a": b"first", "b": np.arange(3, dtype=np.int32).tobytes(), "é/с": b""}


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".result.part"
    fill(path)
    assert content(path) == WHOLE
    with Journal(path, "inputs") as journal:
        assert journal.committed == 3
        assert journal.array("b", np.int32).tolist() == [0, 1, 2]
        journal.put("a", b"second")
        assert journal.get("a") == b"second"
        journal.commit()
    assert content(path) == {**WHOLE, "a": b"second"}
    Journal(path, "inputs").remove()
    assert not path.exists()


def test_another_input_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / ".result.part"
    fill(path)
    with Journal(path, "other inputs") as journal:
        assert journal.committed == 0
    assert content(path) == {}


@pytest.mark.parametrize("what", ["cut", "changed", "noise"])
def test_a_torn_end_is_cut_off_wherever_it_is(tmp_path: Path, what: str) -> None:
    """After a power cut: what is left is a state between two commits, never something else."""
    path = tmp_path / ".result.part"
    fill(path)
    data = path.read_bytes()
    first = {"a": WHOLE["a"], "b": WHOLE["b"]}
    found = []
    for i in range(len(data)):
        torn = bytearray(data[:i])
        if what == "changed":
            torn = bytearray(data)
            torn[i] ^= 0xFF
        elif what == "noise":
            torn += bytes(range(100))
        path.write_bytes(torn)
        found.append(content(path))
        with Journal(path, "inputs") as journal:  # and it can be continued
            journal.put("d", b"more")
            journal.commit()
        assert content(path) == {**found[-1], "d": b"more"}
    states = [found[i] for i in range(len(found)) if i == 0 or found[i] != found[i - 1]]
    expected = [{}, first, WHOLE]
    assert states == ([*expected, {}] if what == "noise" and states[-1] == {} else expected)


def test_a_killed_process_loses_what_was_not_committed(tmp_path: Path) -> None:
    path = tmp_path / ".result.part"
    code = f"""
        import os, signal
        from pathlib import Path
        from edm_hloc.base.journal import Journal
        journal = Journal(Path({str(path)!r}), "inputs")
        for i in range(1000):
            journal.put(str(i), bytes([i % 256]) * 1000)
            if i % 10 == 9:
                journal.commit()
            if i == 567:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -9
    with Journal(path, "inputs") as journal:
        assert journal.committed == 560
        assert journal.get("559") == bytes([559 % 256]) * 1000


def test_links_and_folders_in_the_way_are_not_written_through(tmp_path: Path) -> None:
    path, mine = tmp_path / ".result.part", tmp_path / "mine"
    mine.write_text("keep this")
    path.symlink_to(mine)
    fill(path)
    assert mine.read_text() == "keep this"
    assert content(path) == WHOLE


def test_a_full_disk_is_said_and_keeps_what_is_there(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / ".result.part"
    fill(path)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(EdmHlocError, match=r"part: File too large\. Free some"):
            fill_up(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert content(path) == WHOLE


def test_a_disk_that_is_full_when_an_entry_is_asked_for_is_said(tmp_path: Path) -> None:
    """What was put waits in memory until it is read."""
    with Journal(tmp_path / ".result.part", "inputs") as journal:
        journal.put("d", bytes(1000))
        with (
            largest_file(100),
            pytest.raises(EdmHlocError, match=r"Cannot write .*part: File too large\. Free some"),
        ):
            journal.get("d")


def fill_up(path: Path) -> None:
    with Journal(path, "inputs") as journal:
        journal.put("d", bytes(50_000))
        journal.commit()


def test_a_journal_without_a_path_is_gone_with_the_process(tmp_path: Path) -> None:
    with Journal(None) as journal:
        journal.put("a", b"1")
        journal.commit()
        assert journal.get("a") == b"1"
    assert list(tmp_path.iterdir()) == []

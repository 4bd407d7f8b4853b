"""Files that are whole or not there; the lock of folders is tested with the store and with runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
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

"""Photos that are in a folder twice are named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edm_hloc.images.copies import find_copies, warn_of_copies
from edm_hloc.images.roots import JoinedFolders

LONG = bytes(range(256)) * 1000


def test_copies_are_files_of_equal_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {
        "a.jpg": LONG,
        "b/a copy.jpg": LONG,
        "c.jpg": LONG[:-1] + b"x",  # of the same size and head
        "d.jpg": b"x" + LONG[1:],
        "e.jpg": LONG + b"x",
        "f.jpg": b"short",
        "g.jpg": b"short",
        "h.jpg": b"short",
    }
    for name, data in content.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    names = [*content, "missing.jpg"]
    expected = {"b/a copy.jpg": "a.jpg", "g.jpg": "f.jpg", "h.jpg": "f.jpg"}
    assert find_copies(tmp_path, names) == expected
    with caplog.at_level(logging.WARNING):
        assert warn_of_copies(tmp_path, names, left_out=False) == expected
        assert (
            "3 photos are copies of others, byte by byte, as b/a copy.jpg is of a.jpg. Copies take "
            "time and tell nothing new: leave them out." in caplog.messages
        )
        assert "left out" not in caplog.text
        warn_of_copies(tmp_path, names, left_out=True)
    assert "they are left out" in caplog.text


def test_no_copies_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(LONG)
    (tmp_path / "b.jpg").write_bytes(LONG[1:])
    (tmp_path / "c.jpg").symlink_to("gone.jpg")
    with caplog.at_level(logging.WARNING):
        assert warn_of_copies(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], left_out=True) == {}
        assert warn_of_copies(JoinedFolders({"x": tmp_path}), ["x/a.jpg"], left_out=True) == {}
    assert not caplog.records

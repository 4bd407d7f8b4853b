"""Pictures that this program has drawn, told from photos by a mark in their files."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import require_file

_MARK = b"drawn by edm-hloc"
_PNG, _IHDR = b"\x89PNG\r\n\x1a\n", 33  # bytes up to the end of a PNG's header
_BEGINNING = 128  # bytes in which the mark is


def with_mark(data: bytes) -> bytes:
    """An encoded PNG or JPEG with the mark, as a text chunk or a comment behind its header."""
    if data.startswith(_PNG):
        text = b"tEXtSoftware\0" + _MARK
        chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
        return data[:_IHDR] + chunk + data[_IHDR:]
    # The start of the image and its first segment, JFIF.
    header = 4 + int.from_bytes(data[4:6], "big")
    comment = b"\xff\xfe" + (len(_MARK) + 2).to_bytes(2, "big") + _MARK
    return data[:header] + comment + data[header:]


def is_drawn(path: Path) -> bool:
    """Whether a file is there and has the mark."""
    try:
        require_file(path)
        with path.open("rb") as file:
            return _MARK in file.read(_BEGINNING)
    except OSError:
        return False


def refuse_other_pictures(path: Path) -> None:
    """Raises EdmHlocError if a file is there that would be written over, and has no mark."""
    if os.path.lexists(path) and not is_drawn(path):
        raise EdmHlocError(
            f"{path} is there already and was not drawn by edm-hloc: choose another name."
        )

"""Text files with one record a line: lists of pairs, poses, intrinsics."""

from __future__ import annotations

from pathlib import Path

from edm_hloc.base.errors import EdmHlocError


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines that are neither empty nor comments ("#"), stripped, with their numbers from 1.

    Args:
        path: the file, UTF-8 with or without a byte-order mark.
        what: what it holds, for the message, such as "list of pairs".

    Raises:
        EdmHlocError: the file cannot be read or is no text.
    """
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as error:
        raise EdmHlocError(f"Cannot read the {what} {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise EdmHlocError(f"Cannot read the {what} {path}: it is no text in UTF-8.") from error
    # Not `splitlines`: names may hold characters that it takes for the end of a line.
    lines = enumerate(text.split("\n"), start=1)
    return [(n, s) for n, line in lines if (s := line.strip()) and not s.startswith("#")]

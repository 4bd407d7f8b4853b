"""Reading text files: as a whole, or by lines with one record each. Durations as text."""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import require_file


def read_text(path: Path, what: str) -> str:
    """The content of a text file in UTF-8, or UTF-16 as some tables are saved on Windows.

    A byte-order mark, by which UTF-16 is known, is no part of it.

    Args:
        path: of the file.
        what: what it holds, for the error message, such as "list of pairs".

    Raises:
        EdmHlocError: the file cannot be read or is not such text.
    """
    try:
        require_file(Path(path))
        content = Path(path).read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n")  # as text files are read
    except OSError as error:
        raise EdmHlocError(f"Cannot read the {what} {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise EdmHlocError(f"Cannot read the {what} {path}: it is no text in UTF-8.") from error


def has_byte_order_mark(path: Path) -> bool:
    """Whether a text file begins with one, as some editors write it. Raises OSError."""
    with path.open("rb") as file:
        marks = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return file.read(3).startswith(marks)


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: of the file.
        what: what it holds, for the error message, such as "record of a run".

    Raises:
        EdmHlocError: the file cannot be read or holds something else.
    """
    try:
        content = json.loads(read_text(path, what))
    except (ValueError, RecursionError) as error:
        raise EdmHlocError(f"{path} is not JSON, as a {what} has to be: {error}.") from error
    if not isinstance(content, dict):
        raise EdmHlocError(f"{path} must hold an object in JSON to be a {what}.")
    return content


def filled_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a text file that hold more than white space, as they are written.

    For lists in which a line may begin with the name of a file, and so with white space or "#".

    Args:
        path: of the file, UTF-8 with or without a byte-order mark.
        what: what it holds, for the error message, such as "list of pairs".

    Returns:
        (line number from 1, line).

    Raises:
        EdmHlocError: the file cannot be read or is not text in UTF-8.
    """
    # Not `splitlines`: names may hold characters that it takes for the end of a line.
    lines = enumerate(read_text(path, what).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def read_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """The lines of a text file that are neither empty nor comments ("#").

    Args:
        path: of the file, UTF-8 with or without a byte-order mark.
        what: what it holds, for the error message, such as "list of poses".

    Returns:
        (line number from 1, line without white space at its ends).

    Raises:
        EdmHlocError: the file cannot be read or is not text in UTF-8.
    """
    lines = ((number, line.strip()) for number, line in filled_lines(path, what))
    return [(number, line) for number, line in lines if not line.startswith("#")]


def is_comment(line: str, name: str, names: Collection[str]) -> bool:
    """Whether a line of a list is a comment ("#"), not of a photo whose name begins with that.

    Args:
        line: as it is written.
        name: what it names if it is no comment.
        names: of the photos, which may have folders in front that the list lacks.
    """
    if not line.lstrip().startswith("#"):
        return False
    is_name = name in names or any(photo.endswith(f"/{name}") for photo in names)
    return not (name.startswith("#") and is_name)


def plural(number: int, singular: str, more: str | None = None) -> str:
    """A number with its noun; the plural `more` is by default the singular with an "s"."""
    return f"{number:,} {singular if number == 1 else more or singular + 's'}"


def format_duration(seconds: float) -> str:
    """A time for people: "3.1 s", "42 s", "2 min 0 s", "1 h 0 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

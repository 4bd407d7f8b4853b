"""Errors that a user can act on; the command line prints their message without a traceback."""

from __future__ import annotations

import re
from collections.abc import Sequence

QUOTED = 200
"""Number of characters of a file that a message quotes at most."""

_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # of a file; what is longer was quoted from one
_LONGEST_LINE = 1500  # of our own sentences with paths
_QUOTATION = re.compile(
    r"""(?<!\w)(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")(?!\w)""", re.DOTALL
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shortened(message: str) -> str:
    """A message for the terminal without the length and the control characters of what it quotes.

    Quotations keep their first 200 characters, as do words that are too long for a file's name or
    path; of a line that is longer than any sentence with paths the middle is left out. Our own
    sentences and paths stay as they are.
    """

    def cut(match: re.Match[str]) -> str:
        quote, text = match[0][0], match[0][1:-1]
        return match[0] if len(text) <= QUOTED else f"{quote}{text[:QUOTED]}…{quote}"

    def cut_word(match: re.Match[str]) -> str:
        return f"{match[0][:QUOTED]}…"

    message = _CONTROL.sub(lambda match: repr(match[0])[1:-1], message)
    message = _QUOTATION.sub(cut, message)
    message = re.sub(rf"\S{{{_LONGEST_PATH + 1},}}", cut_word, message)
    message = re.sub(rf"[^\s/\\]{{{_LONGEST_NAME + 1},}}", cut_word, message)
    return "\n".join(
        line if len(line) <= _LONGEST_LINE else f"{line[:QUOTED]} … {line[-QUOTED:]}"
        for line in message.split("\n")
    )


class EdmHlocError(Exception):
    """An error that the user can correct; the message names the cause, the file and the remedy.

    Args:
        message: what it quotes of a file is shortened, see `shortened`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(shortened(message))


def missing_library(what: str, error: ModuleNotFoundError, extra: str) -> EdmHlocError:
    """The error for a library that is not installed.

    Args:
        what: that needs it, a singular.
        error: of the import.
        extra: of this package that installs the library.
    """
    return EdmHlocError(f"{what} needs {error.name}: pip install 'edm_hloc[{extra}]'.")


def raise_any(problems: Sequence[str]) -> None:
    """Raises one EdmHlocError of all problems, a line each, if there are any."""
    if problems:
        raise EdmHlocError("\n".join(problems))


class BusyError(EdmHlocError):
    """Another process is at work on the same files: what it does will be there when it ends."""


class NoRoomError(EdmHlocError):
    """Something could not be stored, most often as the disk or a quota is full.

    It tells nothing of the input: what an interrupted step goes on from is kept.
    """


class NotInColmapError(EdmHlocError):
    """A camera is of a kind that COLMAP has no model for; the text is what the file calls it."""


class ImageError(EdmHlocError):
    """A photo that cannot be read; a run reports it and goes on without it."""


class WorkLeftError(Exception):
    """A run has planned work for other processes, and ends until they have done it.

    It is no `EdmHlocError`, as nothing has gone wrong: the command line prints the message and ends
    with exit code 3.
    """

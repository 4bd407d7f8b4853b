"""The standard streams of the program, which may be closed, full, or read by nobody any more."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from edm_hloc.base.errors import shortened


def give_missing() -> None:
    """Gives the program what it was started without, as after ``>&-``: what goes there is lost.

    Otherwise the first file that is opened takes the number of the closed stream, and what
    libraries say there is written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8"))


def complain(text: str) -> None:
    """Says something on the standard error stream, if that can be written."""
    with contextlib.suppress(OSError):
        print(shortened(text), file=sys.stderr, flush=True)


def output_is_written(end: str = "") -> bool:
    """Whether the standard output has taken all that was printed; what it refuses is discarded.

    Says why it has not, unless nobody reads it any more, as after ``| head -1``.

    Args:
        end: what else is printed: a failed write tells nothing of itself later on.
    """
    try:
        sys.stdout.write(end)
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            reason = error.strerror or error
            complain(
                f"edm-hloc: Cannot write to the standard output ({reason}): send it elsewhere, or "
                "make room."
            )
        _discard(sys.stdout)
        return False
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _discard(sys.stderr)
    return True


def _discard(stream: TextIO) -> None:
    """Has a stream lose what is still to be written, which would fail again at the end."""
    with contextlib.suppress(io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

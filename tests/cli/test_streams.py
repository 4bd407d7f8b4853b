"""Standard streams that are full, closed, or read by nobody: the exit code is true nevertheless."""

from __future__ import annotations

import argparse
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from edm_hloc import cli
from edm_hloc.base import progress
from edm_hloc.base.errors import EdmHlocError, WorkLeftError

FULL = Path("/dev/full")  # opened here, never replaced

needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="has no /dev/full")


@pytest.fixture(params=["buffered", "unbuffered"])
def full(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """A stream that takes nothing; unbuffered as of Python with -u."""
    descriptor = os.open(FULL, os.O_WRONLY)
    if request.param == "buffered":
        stream: TextIO = io.TextIOWrapper(os.fdopen(descriptor, "wb"))
    else:
        raw = os.fdopen(descriptor, "wb", buffering=0)
        stream = io.TextIOWrapper(raw, write_through=True)  # type: ignore[type-var]
    yield stream
    stream.close()


def ending(how: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `weights list` end so."""

    def command(args: argparse.Namespace) -> None:
        if how is not None:
            raise how

    monkeypatch.setattr(cli.weights, "_weights", command)


@needs_full
@pytest.mark.parametrize("arguments", [["weights", "list"], ["doctor"]])
def test_an_output_that_is_full_is_an_error(
    arguments: list[str],
    full: TextIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdout", full)
    assert cli.main(arguments) == 1
    assert "standard output (No space left on device)" in capsys.readouterr().err
    full.flush()  # at the end of the program nothing is left that fails


@needs_full
@pytest.mark.parametrize(
    ("how", "code"),
    [(None, 0), (EdmHlocError("why"), 1), (WorkLeftError("left"), 3), (KeyboardInterrupt(), 130)],
)
def test_a_full_error_stream_leaves_the_exit_code(
    how: BaseException | None, code: int, full: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(how, monkeypatch)
    monkeypatch.setattr(sys, "stderr", full)
    assert cli.main(["weights", "list"]) == code
    full.flush()


@needs_full
def test_the_error_of_a_command_counts_where_the_output_is_full_too(
    full: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(WorkLeftError("left"), monkeypatch)
    monkeypatch.setattr(sys, "stdout", full)
    assert cli.main(["weights", "list"]) == 3
    full.flush()


@needs_full
def test_messages_that_cannot_be_written_do_not_end_the_work(
    full: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(args: argparse.Namespace) -> None:
        logging.getLogger("edm_hloc.somewhere").warning("Skipping a photo")
        progress.say("Matching: 3 of 4 pairs")

    monkeypatch.setattr(cli.weights, "_weights", command)
    monkeypatch.setattr(sys, "stderr", full)
    assert cli.main(["weights", "list"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with >&-")
def test_a_closed_output_is_discarded() -> None:
    """What is printed goes nowhere, above all not into the first file that is opened."""
    code = "from edm_hloc.cli import main; import os; r = main(['weights', 'list'])\n"
    code += "raise SystemExit(r or os.open(os.devnull, os.O_RDONLY) < 3)"
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&-', sys.executable, code]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_whose_summary_nobody_reads_has_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(cli.report, "_write_report", written.append)
    with pytest.raises(BrokenPipeError), cli.report.reporting(tmp_path):
        raise BrokenPipeError  # of print, as with ``| head -1``
    assert written == [tmp_path]

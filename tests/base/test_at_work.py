"""A step that keeps Python's interpreter lock is seen to be at work."""

from __future__ import annotations

import ctypes
import io
import signal
import subprocess
import sys

import pytest

from edm_hloc.base import at_work as module
from edm_hloc.base.at_work import at_work


def test_lines_while_the_lock_is_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY", 0.3)
    with at_work("Adjusting"):
        ctypes.PyDLL(None).usleep(1_500_000)  # as PyDLL keeps it, unlike CDLL
        said = capfd.readouterr().err
    assert said.startswith("Adjusting: at work for 0.")
    assert len(said.splitlines()) >= 2
    assert capfd.readouterr().err.splitlines()[-1].startswith("Adjusting: done in ")


def test_a_short_step_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with at_work("Adjusting"):
        pass
    assert capfd.readouterr().err == ""


def test_an_interrupt_is_answered_and_the_end_of_the_input_ends_it() -> None:
    command = [sys.executable, "-I", "-S", module.__file__, "Adjusting", "0.05", *sys.path]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as teller:
        assert teller.stdin is not None
        assert teller.stderr is not None
        assert teller.stderr.readline().startswith("Adjusting: at work for")
        teller.send_signal(signal.SIGINT)
        lines = iter(teller.stderr.readline, "")
        assert any("Adjusting cannot be interrupted" in line for line in lines)
        teller.stdin.close()
        assert teller.wait(10) == 0


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_streams_that_are_no_files(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyError), at_work("Adjusting"):
        raise KeyError

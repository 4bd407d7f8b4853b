"""Requests to stop: the first is noted, the second ends the program."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from edm_hloc.base.stopping import StopRequest


def test_the_first_request_is_noted_and_the_second_ends_the_program(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with StopRequest("after this step") as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "\nafter this step\n"


def test_what_is_ignored_stays_ignored() -> None:
    """As Ctrl-C of a terminal is by a program that `nohup` started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest("") as stop:
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_other_threads_nothing_is_changed() -> None:
    found = []

    def enter() -> None:
        with StopRequest("") as stop:
            found.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(False, before)]

"""Progress of long steps: what lines say, when they come, and that the bar is for terminals."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from pathlib import Path

import pytest

from edm_hloc.base import progress
from edm_hloc.base.progress import ProgressText, StepProgress, track


def test_lines_say_how_many_how_fast_and_how_long() -> None:
    text = ProgressText("Matching", "pair", 3828)
    assert text.line(30.0, 60) == (
        "Matching: 60 of 3,828 pairs (1 %), 2.0 pairs a second, about 31 min 24 s left"
    )
    assert text.last_line(1914.0, 3828) == "Matching: 3,828 of 3,828 pairs (100 %) in 31 min 54 s"


def test_the_estimate_follows_a_step_that_slows_down() -> None:
    text = ProgressText("Mapping", "photo", 100)
    for seconds in range(30, 331, 30):  # a photo a second, for five and a half minutes
        text.line(seconds, seconds / 30)
    for i in range(1, 8):  # then one in a minute
        said = text.line(330 + 60 * i, 11 + i)
    assert said == "Mapping: 18 of 100 photos (18 %), 60.0 s a photo, about 1 h 22 min left"


def test_a_step_that_counts_nothing_for_a_while_is_at_work() -> None:
    text = ProgressText("Mapping", "photo", 88)
    assert text.line(30, 0) == "Mapping: 0 of 88 photos (0 %), at work for 30 s"
    text.line(60, 40)
    said = text.line(90, 40, "adjusting all cameras")
    assert said.startswith("Mapping: 40 of 88 photos (45 %), 2.2 s a photo, about ")
    assert said.endswith(" left, at work for 1 min 30 s, adjusting all cameras")


def test_without_a_number_there_is_the_time() -> None:
    text = ProgressText("Exporting", "", None)
    assert text.line(30, 0) == "Exporting: at work for 30 s"
    assert text.last_line(61, 0) == "Exporting: done in 1 min 1 s"


def test_the_estimate_of_a_resumed_step_counts_its_own_work_only() -> None:
    text = ProgressText("Verifying", "pair", 6000, before=4000)
    assert "1.0 pairs a second, about 32 min 50 s left" in text.line(30, 4030)
    share = ProgressText("Training", "%", 100, before=50)
    assert share.line(60, 51, "loss 1.2") == "Training: 51.0 %, about 49 min 0 s left, loss 1.2"


def test_names_of_many() -> None:
    assert (
        ProgressText("Localizing", "query", 2).line(1, 1).startswith("Localizing: 1 of 2 queries")
    )
    assert ProgressText("Mapping", "photo", 1).line(1, 0).startswith("Mapping: 0 of 1 photo (0 %)")


def test_lines_come_while_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)
    with StepProgress("Mapping", "photo", 5) as step:
        step.update(2)
        time.sleep(0.3)  # as in a long adjustment
        step.update(3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("Mapping: 2 of 5 photos (40 %)") for line in lines[:-1])
    assert re.fullmatch(r"Mapping: 5 of 5 photos \(100 %\) in 0\.\d s", lines[-1])


class _Window:
    """What programs with windows put in the place of the standard error stream."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


def test_any_object_may_stand_for_the_error_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)
    closed = io.StringIO()
    closed.close()
    window = _Window()
    for stream in (window, closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        with StepProgress("Mapping", "photo", 5) as step:
            time.sleep(0.12)
            step.update(5)
    assert window.text.count("Mapping: ") >= 2


def test_a_step_that_starts_anew_counts_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ProgressText("Mapping", "photo", 20)
    text.line(30, 18)
    text.restart(40, 2)
    assert text.line(50, 4) == (
        "Mapping: 4 of 20 photos (20 %), 5.0 s a photo, about 1 min 20 s left"
    )
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)
    with StepProgress("Mapping", "photo", 20) as step:
        step.update(18)
        step.restart(2, "from another pair of photos")
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert said.startswith("Mapping: 2 of 20 photos (10 %)")
    assert "from another pair of photos" in said


def test_short_steps_and_failed_ones_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(track(range(3), "Matching", "pair")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.02)

    def fail() -> None:
        for _ in track(range(3), "Matching", "pair"):
            time.sleep(0.1)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    said = capsys.readouterr().err
    assert " in " not in said  # not as if it had ended well
    time.sleep(0.1)
    assert capsys.readouterr().err == ""  # and the thread has ended
    with StepProgress("Training", "%", 100, shown=False) as step:
        step.update(3)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_log_at_info_gets_the_lines(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)
    with caplog.at_level(logging.INFO, "edm_hloc"), StepProgress("Verifying", "pair", 4):
        time.sleep(0.2)
    assert caplog.messages[0].startswith("Verifying: 0 of 4 pairs")
    printed = capsys.readouterr().err.splitlines()  # by a handler of the command line, if anything
    assert not any(line.startswith("Verifying") for line in printed)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_starts_anew_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with StepProgress("Mapping", "photo", 20) as step:
        step.update(18)
        step.restart(2)
        step.update(3)
    assert "Mapping:  25%|" in terminal.getvalue().splitlines()[-1].split("\r")[-1]


def test_a_terminal_gets_a_bar_whose_time_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_REDRAW_EVERY", 0.05)
    with StepProgress("Mapping", "photo", 5, before=1) as step:
        step.note = "adjusting"
        time.sleep(0.3)
    said = terminal.getvalue()
    assert said.count("Mapping:  20%|") >= 3
    assert "adjusting" in said
    assert " at work for " not in said


def test_no_step_hides_its_progress_without_a_terminal() -> None:
    package = Path(progress.__file__).parents[1]
    using = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "tqdm import tqdm" in path.read_text("utf-8")
    }
    assert using == {"base/progress.py", "cli/__init__.py"}

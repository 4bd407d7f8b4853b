"""Progress of long steps: a bar on a terminal, elsewhere a line every half minute.

Lines go to the log of this module where it takes messages of level INFO, and else to the standard
error stream, as the bar does: logs, pipes and notebooks show that a step is at work, and how long
it is going to take.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from edm_hloc.base.errors import shortened
from edm_hloc.base.text import format_duration

logger = logging.getLogger(__name__)

_LINE_EVERY = 30.0  # seconds
_REDRAW_EVERY = 1.0  # seconds, so that the time on a bar goes on while nothing is counted
_BAR_OF_SHARE = "{desc} {n:.1f}%|{bar}| {elapsed} {postfix}"
_RATE_OVER = 6  # lines: the estimate follows a step whose pace changes

Item = TypeVar("Item")


class ProgressText:
    """What a line says of a step, from what is done at which time; it reads no clock itself.

    Args:
        title: of the step.
        unit: what is counted, in the singular; "%" for a share of the work.
        total: number of these; None if it is not known.
        before: number that was done before the start.
    """

    def __init__(self, title: str, unit: str, total: float | None, before: float = 0) -> None:
        self._title, self._unit, self._total = title, unit, total
        # (seconds, done) at the start and when the last lines were made
        self._lines: deque[tuple[float, float]] = deque([(0.0, before)], maxlen=_RATE_OVER + 1)

    def line(self, seconds: float, done: float, note: str = "") -> str:
        """A line on the state.

        Args:
            seconds: since the start.
            done: number that is done.
            note: what else is to be said.
        """
        earlier, before = self._lines[0]
        rate = (done - before) / max(1e-9, seconds - earlier)
        quiet = len(self._lines) > 1 and done == self._lines[-1][1]
        self._lines.append((seconds, done))
        parts = [self._count(done)] if self._total is not None or done else []
        if rate and self._unit != "%":
            parts.append(self._pace(rate))
        if rate and self._total is not None and done < self._total:
            parts.append(f"about {format_duration((self._total - done) / rate)} left")
        if not rate or quiet:
            parts.append(f"at work for {format_duration(seconds)}")
        return self._put(parts, note)

    def restart(self, seconds: float, done: float) -> None:
        """Counts from `done` on: what was done before was in vain, or is another part."""
        self._lines.clear()
        self._lines.append((seconds, done))

    def last_line(self, seconds: float, done: float) -> str:
        """The line after which the step says no more."""
        counted = [self._count(done)] if self._total is not None or done else ["done"]
        return self._put([f"{counted[0]} in {format_duration(seconds)}"], "")

    def _put(self, parts: list[str], note: str) -> str:
        return f"{self._title}: {', '.join([*parts, *filter(None, [note])])}"

    def _count(self, done: float) -> str:
        if self._unit == "%":
            return f"{done:.1f} %"
        if self._total is None:
            return f"{done:,} {_plural(self._unit, done)}"
        share = f" ({math.floor(100 * done / self._total)} %)" if self._total else ""
        return f"{done:,} of {self._total:,} {_plural(self._unit, self._total)}{share}"

    def _pace(self, rate: float) -> str:
        if rate >= 1:
            return f"{rate:,.1f} {_plural(self._unit, 2)} a second"
        return f"{1 / rate:,.1f} s a {self._unit}"


def _plural(unit: str, number: float) -> str:
    if number == 1 or not unit:
        return unit
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"


class StepProgress:
    """The progress of a step, shown until `close` or the end of a ``with`` block.

    It is shown by a thread of its own, so that a step that counts nothing for minutes is seen to be
    at work; for one that keeps Python's interpreter lock see `at_work`.

    Args:
        title: of the step, as "Matching".
        unit: what is counted, in the singular, as "pair"; "%" for a share of the work, with a
            total of 100.
        total: number of these; None if it is not known.
        before: number that an earlier run has done.
        shown: False for a step that shows nothing, as on all but one of several processes.

    Attributes:
        note: what else is to be said of the state; may be changed at any time.
        done: number that is done.
    """

    def __init__(
        self,
        title: str,
        unit: str = "",
        total: float | None = None,
        *,
        before: float = 0,
        shown: bool = True,
    ) -> None:
        self.note = ""
        self.done = before
        self._start = time.monotonic()
        self._bar: tqdm[Any] | None = None
        self._text: ProgressText | None = None
        self._said = False
        self._closed = threading.Event()
        if not shown or total == 0:
            return
        if _is_terminal(sys.stderr):
            self._bar = tqdm(
                desc=title,
                unit=unit or "it",
                total=total,
                initial=before,
                bar_format=_BAR_OF_SHARE if unit == "%" else None,
            )
        else:
            self._text = ProgressText(title, unit, total, before)
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def update(self, number: float = 1) -> None:
        """Counts so many more as done; may be called from any thread that is alone in doing so."""
        self.done += number
        if self._bar is not None:
            self._bar.update(number)

    def restart(self, done: float, note: str = "") -> None:
        """Counts from `done` on again, where what was done before was in vain, or another part.

        Args:
            done: number that is done.
            note: see `note`.
        """
        self.done, self.note = done, note
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()
        elif self._text is not None:
            self._text.restart(time.monotonic() - self._start, done)

    def show(self) -> None:
        """Shows the state now."""
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=True)
        elif self._text is not None:
            self._said = True
            say(self._text.line(time.monotonic() - self._start, self.done, self.note))

    def _run(self) -> None:
        every = _LINE_EVERY if self._bar is None else _REDRAW_EVERY
        while not self._closed.wait(every):
            self.show()

    def close(self, *, finished: bool = True) -> None:
        """Ends the display; one that has shown lines ends with one on the whole step.

        Args:
            finished: False where the step was given up.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if self._bar is not None:
            self._thread.join()
            self._bar.set_postfix_str(self.note, refresh=True)
            self._bar.close()
        elif self._text is not None:
            self._thread.join()
            if self._said and finished:
                say(self._text.last_line(time.monotonic() - self._start, self.done))

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(finished=kind is None)


def track(
    items: Iterable[Item],
    title: str,
    unit: str,
    total: int | None = None,
    *,
    shown: bool = True,
) -> Iterator[Item]:
    """The items one by one, each counted as done when the next one is asked for.

    Args:
        items: to go through.
        title, unit, shown: see `StepProgress`.
        total: number of the items, where they cannot tell themselves.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with StepProgress(title, unit, total, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()


def say(line: str) -> None:
    """Says something on a long step, where its progress is shown (see the module)."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", line)
    elif sys.stderr is not None:
        # a full disk must not end what is at work, nor what some program has put in its place
        with contextlib.suppress(OSError, ValueError, AttributeError):
            print(shortened(line), file=sys.stderr, flush=True)


def _is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal: not if it is closed, or an object that only takes text."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):
        return False

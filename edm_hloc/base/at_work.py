"""Says that a step is at work, from another process: for calls that keep Python's interpreter lock.

No thread of this process can say anything while COLMAP adjusts a large model, which takes minutes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

LINE_EVERY = 30.0
"""Seconds between two lines."""
_REDRAW_EVERY = 1.0  # seconds, on a terminal


@contextlib.contextmanager
def at_work(title: str) -> Iterator[None]:
    """Shows on the standard error stream how long the ``with`` block has been at work.

    A line every half minute, on a terminal one line that counts the seconds. Where that stream is
    no file, or no process can be started, nothing is shown. An interrupt takes effect when the call
    ends that keeps the lock, which is said at once.

    Args:
        title: of the step, as "Adjusting all photos".
    """
    from edm_hloc.base.progress import say
    from edm_hloc.base.text import format_duration

    start = time.monotonic()
    teller = _teller(title)
    finished = False
    try:
        yield
        finished = True
    finally:
        if teller is not None:
            assert teller.stdin is not None
            teller.stdin.close()
            teller.wait()
    seconds = time.monotonic() - start
    if finished and seconds >= LINE_EVERY:
        say(f"{title}: done in {format_duration(seconds)}")


def _teller(title: str) -> subprocess.Popen[bytes] | None:
    """The process that shows the step until its input is closed."""
    try:
        # without what starting Python usually imports, as most steps take a fraction of a second
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, title, str(LINE_EVERY), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=sys.stderr,
        )
    except (OSError, ValueError, AttributeError):
        return None


def _tell(title: str, line_every: float, packages: list[str]) -> None:
    """Shows a step until the standard input ends, as it does with the process that wrote to it."""
    ended = threading.Event()

    def wait_for_end() -> None:
        os.read(0, 1)  # with a buffered reader Python could not end while it waits
        ended.set()

    def interrupted(*_: object) -> None:
        said = f"\n{title} cannot be interrupted: the program ends after it.\n"
        os.write(2, said.encode())  # `print` may be at work

    signal.signal(signal.SIGINT, interrupted)
    threading.Thread(target=wait_for_end, daemon=True).start()
    terminal = sys.stderr.isatty()
    every = min(_REDRAW_EVERY, line_every) if terminal else line_every
    start, shown = time.monotonic(), False
    while not ended.wait(every):
        sys.path[:] = packages
        from edm_hloc.base.text import format_duration

        line = f"{title}: at work for {format_duration(time.monotonic() - start)}"
        print(f"\r{line:<79}" if terminal else line, end="" if terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        shown = True
    if terminal and shown:
        print(file=sys.stderr)


if __name__ == "__main__":
    _tell(sys.argv[1], float(sys.argv[2]), sys.argv[3:])

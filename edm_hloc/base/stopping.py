"""Ctrl-C and a scheduler's SIGTERM as requests to end after the step at work."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest(contextlib.AbstractContextManager["StopRequest"]):
    """Whether the program was asked to end; a second Ctrl-C ends it at once.

    Only in the main thread, and only for signals that are not ignored, as those of the terminal are
    where `nohup` started the program in the background.

    Args:
        said: what is written to the standard error at the first request; None: nothing.

    Attributes:
        requested: True after a signal.
    """

    def __init__(self, said: str | None) -> None:
        self.requested = False
        self._said = said
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: it was not installed by Python, and cannot be again.
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._said is None:
            return
        with contextlib.suppress(OSError):
            os.write(2, f"\n{self._said}\n".encode())  # `print` may be at work

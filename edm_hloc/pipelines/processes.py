"""Workers that are processes of this computer, one a GPU or one per few cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pipelines.shard_queue import Done, Failure, Piece
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings

logger = logging.getLogger(__name__)

_GUARD = (
    'Put what a script of your own does below `if __name__ == "__main__":`, as each worker imports '
    "the script"
)


class ProcessCrew:
    """Spawned processes; one that dies is replaced. Use it in a ``with`` block, which ends all.

    Args:
        settings: of each worker; "cuda" gives each a GPU of its own, in turn.
        number: of processes.
        worker: what they are.

    Raises:
        EdmHlocError: this process may start none: see `check_not_importing`, or it is a pool's.

    Attributes:
        start: how `multiprocessing` starts them; a copy of this process (fork) would share the
            locks of its threads, and its GPU.
        workers: number of processes.
    """

    start: ClassVar[str] = "spawn"

    def __init__(
        self, settings: WorkerSettings, number: int, worker: type[ShardWorker] = ShardWorker
    ) -> None:
        check_not_importing()
        if multiprocessing.current_process().daemon:
            raise EdmHlocError(
                "This process is one of a multiprocessing.Pool, which may start no workers: ask "
                "for 1 worker there, or use a concurrent.futures.ProcessPoolExecutor."
            )
        self._settings, self._worker = settings, worker
        self.workers = number
        self._context: Any = multiprocessing.get_context(self.start)
        self._members: dict[Connection, tuple[int, BaseProcess]] = {}
        self._at_work: dict[Connection, Piece] = {}
        self._begun: set[Connection] = set()  # those that have answered
        try:
            for i in range(number):
                self._start(i)
        except BaseException:
            self.end()
            raise

    def room(self) -> int:
        return len(self._members) - len(self._at_work)

    def give(self, piece: Piece) -> None:
        connection = next(c for c in self._members if c not in self._at_work)
        self._at_work[connection] = piece
        try:
            connection.send(piece)
        except OSError:  # it has died while it had nothing to do: `wait` finds that out
            logger.debug("A worker died before shard %d.", piece.shard)

    def wait(self) -> list[tuple[Piece, Done | Failure]]:
        answers: list[tuple[Piece, Done | Failure]] = []
        for ready in wait([*self._at_work]):
            assert isinstance(ready, Connection)
            piece = self._at_work.pop(ready)
            try:
                answer = ready.recv()
            except (EOFError, OSError):
                _, process = self._members[ready]
                how = self._replace(ready)
                if process.exitcode == 1 and ready not in self._begun:  # of an exception, shown
                    raise EdmHlocError(
                        f"A worker ended before its first answer, for the reason above. {_GUARD}."
                    ) from None
                logger.warning("A worker died (%s) in shard %d.", how, piece.shard)
                answer = Failure("worker", f"the worker died ({how})")
            else:
                self._begun.add(ready)
                if isinstance(answer, Failure) and answer.kind in ("task", "memory"):
                    logger.warning("In shard %d: %s.", piece.shard, answer.reason)
                    if answer.kind == "memory" or self._settings.device != "cpu":
                        self._replace(ready)  # what it holds, as on a GPU, may be spoilt
            answers.append((piece, answer))
        return answers

    def end(self) -> None:
        """Ends all processes: those at work at once, the others by themselves."""
        for connection, (_, process) in self._members.items():
            if connection in self._at_work:  # interrupted, or another one failed
                process.terminate()
            connection.close()  # which ends those that wait
        for _, process in self._members.values():
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
        self._members.clear()

    def __enter__(self) -> ProcessCrew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _start(self, number: int) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(there, number, self._settings, self._worker),
            name=f"worker {number}",
            daemon=True,
        )
        process.start()
        there.close()
        self._members[here] = (number, process)

    def _replace(self, connection: Connection) -> str:
        """Starts a worker in the place of another one; gives how that one ended."""
        number, process = self._members.pop(connection)
        connection.close()
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()
        self._start(number)
        code = process.exitcode
        if code == -signal.SIGKILL:
            return "signal 9, as when memory is too small: take fewer workers or a smaller --cache"
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _serve(
    connection: Connection, number: int, settings: WorkerSettings, worker: type[ShardWorker]
) -> None:
    """A process: does the pieces that come, and sends what became of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends all of them
    import torch

    if settings.device == "cuda":
        device = f"cuda:{number % max(1, torch.cuda.device_count())}"
        settings = replace(settings, device=device)
    member = worker(settings)
    try:
        while True:
            connection.send(member.work(connection.recv()))
    except (EOFError, OSError):  # the parent has ended, or needs no more
        return


def check_not_importing() -> None:
    """Refuses to start workers in a worker that is still importing the script.

    Raises:
        EdmHlocError: it is; see `multiprocessing`'s "safe importing of the main module".
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise EdmHlocError(f"A worker has begun the script anew. {_GUARD}.")


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

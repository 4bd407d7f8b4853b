"""Workers that are actors of a Ray cluster, on any number of computers.

Ray brings the actors to computers with room for them and starts those again that have died. What
is tried again, halved and left out is decided in `shard_queue.py`, so that each failure is seen
there: calls are not repeated by Ray itself. Only numbers of shards, paths and counts go through
Ray; photos and matches are files that all computers see.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.pipelines.shard_queue import Done, Failure, Piece
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings

logger = logging.getLogger(__name__)

_IN_FLIGHT = 2  # pieces an actor has: it begins the second without waiting for an answer
_CORES = 4  # of an actor, where its computer has so many
_OVERHEAD = 3 << 29  # bytes of an actor besides its features: 1.5 GiB for libraries and one pair
_OBJECT_STORE = 100 << 20  # bytes, of a cluster of this computer: nothing large is put there
_TOKEN = (  # Ray's own message does not tell
    " and, if Ray said there that token authentication is enabled, set RAY_AUTH_MODE=token on all "
    "computers, with the ~/.ray/auth_token of that one"
)
_ANSWERS_WITHIN = 10.0  # seconds, the computer of a cluster's address
_SAY_AFTER = 30.0  # seconds without any actor
_ASK_AGAIN = 0.5  # seconds until a lost actor is asked again whether it has started


@dataclass
class _Member:
    """An actor.

    Attributes:
        handle: Ray's.
        node: identity of its computer; None until it has started there.
        pieces: what it was given, oldest first, with Ray's reference to the answer.
    """

    handle: Any
    node: str | None = None
    pieces: deque[tuple[Any, Piece]] = field(default_factory=deque)


class RayCrew:
    """Actors that load the network once; use it in a ``with`` block, which ends them.

    Args:
        settings: of each actor. Its `device` is overruled by that of the configuration or, if that
            has none, by whether the cluster has GPUs.
        address: of the cluster, as `ray.init` takes it; "local" starts one on this computer.
        number: of actors; with 0 as many as there is room for, also on computers that join later.
        worker: what they are.

    Attributes:
        workers: number of actors there is room for at first.

    Raises:
        EdmHlocError: Ray is not installed, the cluster cannot be reached, or no computer of one
            that does not grow has room for an actor.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        address: str,
        number: int,
        worker: type[ShardWorker] = ShardWorker,
    ) -> None:
        self._ray = _import_ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            self._connect(address)
        try:
            gpus = self._ray.cluster_resources().get("GPU", 0) > 0
            device = settings.config.device or ("cuda" if gpus else "cpu")
            self._needs = self._needs_of_an_actor(settings, device, number)
            settings = replace(settings, device=device, threads=int(self._needs["num_cpus"]))
            self._settings = settings
            self._actor = self._ray.remote(max_restarts=-1, max_task_retries=0, **self._needs)(
                _actor_of(self._ray, worker)
            )
            self.workers = min(number, self._room()) if number else self._room()
            self._check_room(address)
            self.workers = max(1, self.workers)
            self._number = number
            self._grows = address != "local" and not number
            self._members: list[_Member] = []
            self._starting: dict[Any, _Member] = {}
            self._lost: list[_Member] = []  # which Ray is about to start again
            self._ask_at = 0.0
            for _ in range(number or self.workers):
                self._start()
        except BaseException:
            self.end()
            raise
        self._without = time.monotonic()

    def room(self) -> int:
        return sum(_IN_FLIGHT - len(member.pieces) for member in self._members if member.node)

    def give(self, piece: Piece) -> None:
        ready = (member for member in self._members if member.node)
        member = min(ready, key=lambda member: len(member.pieces))
        member.pieces.append((member.handle.work.remote(piece), piece))

    def wait(self) -> list[tuple[Piece, Done | Failure]]:
        if self._grows and not self._starting:  # one more than there is room for, if some joins
            self._start()
        pause = _ASK_AGAIN if self._lost else _SAY_AFTER / 2
        refs = [ref for member in self._members for ref, _ in member.pieces] + [*self._starting]
        if refs:
            ready, _ = self._ray.wait(refs, num_returns=1, timeout=pause)
        else:
            time.sleep(pause)
            ready = []
        self._say_if_waiting()
        if time.monotonic() > self._ask_at:
            for member in self._lost:
                self._starting[member.handle.ready.remote()] = member
            self._lost.clear()
            self._ask_at = time.monotonic() + _ASK_AGAIN
        answers: list[tuple[Piece, Done | Failure]] = []
        for ref in ready:
            if ref in self._starting:
                self._started(ref)
                continue
            for member in self._members:
                if any(ref == other for other, _ in member.pieces):
                    answers += self._answers(member, ref)
                    break
        return answers

    def end(self) -> None:
        """Ends the actors, and the connection or cluster if it is this object's."""
        if not self._ray.is_initialized():
            return
        for member in getattr(self, "_members", ()):
            self._ray.kill(member.handle)
        if self._own:
            self._ray.shutdown()

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # ---- the cluster

    def _connect(self, address: str) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        on_sigterm = signal.getsignal(signal.SIGTERM)
        reasons = (self._ray.exceptions.RayError, OSError, RuntimeError, ValueError)
        remedy = "start it (ray start --head)"
        try:
            _check_answer(address)
            remedy += _TOKEN
            self._ray.init(address=address, **options)
        except reasons as error:
            raise EdmHlocError(
                f"Cannot reach the Ray cluster at {address!r} ({_in_short(error)}): {remedy}, and "
                "give its address or 'auto'; 'local' starts one on this computer."
            ) from error
        finally:  # Ray's own handler prints a stack trace and aborts
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)

    def _needs_of_an_actor(
        self, settings: WorkerSettings, device: str, number: int
    ) -> dict[str, float]:
        """What Ray keeps free for an actor."""
        config = settings.config
        cores = [int(node["Resources"].get("CPU", 0)) for node in self._nodes()]
        most = min([count for count in cores if count] or [1])
        if number:
            most = min(most, max(1, sum(cores) // number))
        memory = config.cache_bytes + _OVERHEAD
        if device == "cuda":
            memory = config.host_cache_bytes + _OVERHEAD
        needs: dict[str, float] = {"num_cpus": min(_CORES, most), "memory": memory}
        return {**needs, "num_gpus": 1} if device == "cuda" else needs

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _room(self) -> int:
        """The number of actors that the computers of the cluster hold."""
        names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
        wanted = {names[name]: value for name, value in self._needs.items()}
        return sum(
            int(min(node["Resources"].get(name, 0) // value for name, value in wanted.items()))
            for node in self._nodes()
        )

    def _check_room(self, address: str) -> None:
        if self.workers == 0 and address == "local":
            raise EdmHlocError(
                f"This computer has no room for one worker, which needs {self._described()}: take "
                "a smaller --cache, or leave --ray out."
            )

    def _described(self) -> str:
        gpu = "a GPU, " if "num_gpus" in self._needs else ""
        cores, memory = self._needs["num_cpus"], self._needs["memory"] / (1 << 30)
        return f"{gpu}{cores:.0f} cores and {memory:.1f} GiB of memory"

    def _say_if_waiting(self) -> None:
        now = time.monotonic()
        if any(member.node for member in self._members):
            self._without = now
        elif now - self._without > _SAY_AFTER:
            warn_once(
                f"No computer of the Ray cluster has room for a worker, which needs "
                f"{self._described()}: waiting until one has."
            )

    # ---- actors

    def _start(self) -> None:
        member = _Member(self._actor.remote(self._settings))
        self._members.append(member)
        self._starting[member.handle.ready.remote()] = member

    def _started(self, ref: Any) -> None:
        """Takes an actor into service that has started, or sees to one that has not."""
        member = self._starting.pop(ref)
        try:
            member.node = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            if "creation task" in str(error):  # by its own error, which another one would repeat
                raise EdmHlocError(f"A worker cannot start: {_in_short(error)}.") from error
            self._lost.append(member)

    def _answers(self, member: _Member, ref: Any) -> list[tuple[Piece, Done | Failure]]:
        """What has become of a piece, and of those behind it if the actor was lost."""
        position = next(i for i, (other, _) in enumerate(member.pieces) if other == ref)
        piece = member.pieces[position][1]
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            kind_and_reason = self._failure(member, error)
            answer = kind_and_reason if position == 0 else Failure("not begun", "worker lost")
        else:
            if not isinstance(answer, Failure) or answer.kind not in ("task", "memory"):
                del member.pieces[position]
                return [(piece, answer)]
            self._ray.kill(member.handle, no_restart=False)  # what it holds may be spoilt
        logger.warning("In shard %d: %s.", piece.shard, answer.reason)
        others = [other for i, (_, other) in enumerate(member.pieces) if i != position]
        member.pieces.clear()
        member.node = None
        self._lost.append(member)
        return [
            (piece, answer),
            *((other, Failure("not begun", "worker lost")) for other in others),
        ]

    def _failure(self, member: _Member, error: Exception) -> Failure:
        """The kind of an error of Ray."""
        kinds = self._ray.exceptions
        if isinstance(error, kinds.OutOfMemoryError):
            return Failure("memory", f"its computer was out of memory ({_in_short(error)})")
        if isinstance(error, kinds.RayTaskError):
            return Failure("task", _in_short(error.cause))
        alive = {node["NodeID"] for node in self._nodes()}
        left = member.node not in alive or getattr(error, "preempted", False)
        if isinstance(error, kinds.NodeDiedError) or left:
            return Failure("node", "its computer left the cluster")
        logger.debug("%s", error)  # internals of Ray: that a connection was closed
        return Failure("worker", "the worker died (it was killed or has crashed)")


def _check_answer(address: str) -> None:
    """Raises OSError if nothing answers at HOST:PORT, which Ray would ask again for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), port), timeout=_ANSWERS_WITHIN).close()


def _actor_of(ray: Any, worker: type[ShardWorker]) -> type:
    """A worker that also says on which computer it is, once it has started."""

    class Actor(worker):  # type: ignore[misc, valid-type]
        def ready(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    return Actor


def _in_short(error: BaseException) -> str:
    """The last line of an error of Ray, which says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).removesuffix(".")


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EdmHlocError(
            "Spreading over a Ray cluster needs Ray: pip install 'edm_hloc[ray]'."
        ) from error
    return ray

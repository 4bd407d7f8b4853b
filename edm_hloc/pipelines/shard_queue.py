"""What is left of a plan's shards, and what is tried again: the same for all kinds of workers.

Workers are a `Crew`: processes of this computer (`processes.py`), actors of Ray (`ray_actors.py`),
or what a test makes up. Here are no processes, no clock and no files, only the decisions:

* a shard whose worker failed is tried again, after all others;
* after three failures it is halved, and what fails again is halved again, until a pair is left that
  fails three times on its own. That pair is left out and named; all others are matched;
* a computer that leaves, a shard that had not been begun, and one that another process is at work
  on, are not the shard's fault;
* when more fails than single pairs explain, it ends.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from edm_hloc.base.errors import EdmHlocError

_TRIES = 3  # of a shard, and of a pair on its own
_TRIES_OF_NODES = 10  # of a shard: a computer may leave at any time, but not always at this shard
_IN_A_ROW = 8  # failures that end it, besides one a worker and, once something was done, …
_IN_A_ROW_A_SHARD = 4  # … these for each shard that has failed, as long as these are …
_FAILED_SHARDS = 10  # … no more than this

Kind = Literal["error", "task", "memory", "worker", "node", "not begun", "busy"]


@dataclass(frozen=True)
class Failure:
    """Why a piece of work was not done.

    Attributes:
        kind: "error", which ends everything, as bad input or a full disk; "task", an exception in
            the work; "memory", there was too little; "worker", the process died; "node", its
            computer left; "not begun", the worker was lost before it came to this piece; "busy",
            another process is at work on the shard.
        reason: a sentence without a full stop.
    """

    kind: Kind
    reason: str


@dataclass(frozen=True)
class Piece:
    """What a worker is given at a time.

    Attributes:
        shard: its number, from 1.
        part: only match the pairs at these positions of the shard's list, from the first one up to
            the second one, which is not among them; None to match what is left of the shard and to
            write its file.
        left_out: positions of the pairs that are not matched, with the reason.
    """

    shard: int
    part: tuple[int, int] | None = None
    left_out: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What a worker did for a piece.

    Attributes:
        matched: pairs that were matched now, or items of another step that were done.
        encoded: photos that were encoded now.
        matches: raw matches of these pairs.
        skipped: photos that could not be read, with the reason.
        rotated: photos that were turned upright.
    """

    matched: int = 0
    encoded: int = 0
    matches: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    rotated: tuple[str, ...] = ()

    def and_also(self, other: Done) -> Done:
        """Both together."""
        return Done(
            self.matched + other.matched,
            self.encoded + other.encoded,
            self.matches + other.matches,
            {**self.skipped, **other.skipped},
            tuple(sorted({*self.rotated, *other.rotated})),
        )


class Crew(Protocol):
    """Workers that match pieces of shards."""

    def room(self) -> int:
        """The number of pieces that can be given now."""

    def give(self, piece: Piece) -> None:
        """Gives a piece to a worker."""

    def wait(self) -> Iterable[tuple[Piece, Done | Failure]]:
        """Waits until something has happened; the pieces that are done or have failed, if any."""


class ShardQueue:
    """The pieces that are left; one piece of a shard is at work at a time.

    Args:
        sizes: number of pairs of each shard; shards are numbered from 1.
        halved: whether a shard that fails may be halved; otherwise its third failure ends all.

    Attributes:
        left_out: of shards with pairs that are left out their positions, with the reason.
        kinds: how often each kind of failure has occurred.
    """

    def __init__(self, sizes: Sequence[int], *, halved: bool = True) -> None:
        self._sizes, self._halved = sizes, halved
        self._ready = deque(range(1, len(sizes) + 1))
        self._parts: dict[int, deque[tuple[int, int]]] = {}  # of shards that are halved
        self._failed: Counter[tuple[int, tuple[int, int] | None]] = Counter()
        self._left_by_nodes: Counter[int] = Counter()
        self._at_work = self._most_at_work = 0
        self._in_a_row = 0
        self._any_done = False
        self._shards_that_failed: set[int] = set()
        self.left_out: dict[int, dict[int, str]] = {}
        self.kinds: Counter[Kind] = Counter()

    @property
    def finished(self) -> bool:
        return not self._ready and not self._at_work

    def next(self) -> Piece | None:
        """The next piece, which counts as at work from now on; None if there is none now."""
        if not self._ready:
            return None
        self._at_work += 1
        self._most_at_work = max(self._most_at_work, self._at_work)
        shard = self._ready.popleft()
        parts = self._parts.get(shard)
        return Piece(shard, parts[0] if parts else None, dict(self.left_out.get(shard, {})))

    def settle(self, piece: Piece, answer: Done | Failure) -> bool:
        """Takes note of what became of a piece; True if its shard is finished.

        Raises:
            EdmHlocError: it ends everything.
        """
        self._at_work -= 1
        if isinstance(answer, Done):
            self._in_a_row, self._any_done = 0, True
            if piece.part is None:
                return True
            self._parts[piece.shard].popleft()
            self._ready.appendleft(piece.shard)
            return False
        self.kinds[answer.kind] += 1
        if answer.kind == "error":
            raise EdmHlocError(answer.reason)
        if answer.kind == "not begun":
            self._ready.appendleft(piece.shard)
            return False
        self._ready.append(piece.shard)
        if answer.kind == "busy":
            return False
        if answer.kind == "node":
            self._left_by_nodes[piece.shard] += 1
            if self._left_by_nodes[piece.shard] < _TRIES_OF_NODES:
                return False
        self._charge(piece, answer)
        return False

    def _charge(self, piece: Piece, failure: Failure) -> None:
        """Counts a failure of a piece, and halves it or leaves a pair out where it is time."""
        self._in_a_row += 1
        self._shards_that_failed.add(piece.shard)
        most = _IN_A_ROW + self._most_at_work
        if self._any_done:
            most += _IN_A_ROW_A_SHARD * min(_FAILED_SHARDS, len(self._shards_that_failed))
        if self._in_a_row > most:
            raise EdmHlocError(
                f"{self._in_a_row} times in a row a worker failed, the last time in shard "
                f"{piece.shard}: {failure.reason}. This is not the fault of single pairs."
            )
        self._failed[piece.shard, piece.part] += 1
        failures = self._failed[piece.shard, piece.part]
        first, end = piece.part or (0, self._sizes[piece.shard - 1])
        alone = end - first == 1
        if failures < _TRIES and (piece.part is None or alone):
            return
        if not self._halved:
            raise EdmHlocError(f"Shard {piece.shard} failed {failures} times: {failure.reason}.")
        if piece.part is None and piece.shard in self._parts:  # all of its pairs are matched
            raise EdmHlocError(
                f"The file of shard {piece.shard} could not be written: {failure.reason}."
            )
        del self._failed[piece.shard, piece.part]
        parts = self._parts.setdefault(piece.shard, deque())
        if piece.part is not None:
            parts.popleft()
        if not alone:
            middle = (first + end) // 2
            parts += [(first, middle), (middle, end)]
            return
        self.left_out.setdefault(piece.shard, {})[first] = failure.reason
        number = sum(map(len, self.left_out.values()))
        if number > max(10, sum(self._sizes) // 100):
            raise EdmHlocError(
                f"Workers failed at {number} pairs, each three times on its own; the last time: "
                f"{failure.reason}. This is not the fault of single pairs."
            )


def work_off(queue: ShardQueue, crew: Crew, done: Callable[[Piece, Done, bool], None]) -> None:
    """Has a crew do all that is in a queue.

    Args:
        queue: what is to be done.
        crew: who does it.
        done: called with each piece that is done, and whether its shard is finished.

    Raises:
        EdmHlocError: see `ShardQueue.settle`.
    """
    while not queue.finished:
        while crew.room() > 0 and (piece := queue.next()) is not None:
            crew.give(piece)
        for piece, answer in crew.wait():
            finished = queue.settle(piece, answer)
            if isinstance(answer, Done):
                done(piece, answer, finished)

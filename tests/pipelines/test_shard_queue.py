"""What is tried again, halved and left out, with made-up workers: no processes, no files."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pipelines.shard_queue import Done, Failure, Piece, ShardQueue, work_off


class FakeCrew:
    """Workers that fail at given pairs, and otherwise as a random number says.

    Args:
        sizes: number of pairs of each shard.
        guilty: (shard, position) of pairs at which every worker dies.
        chance: of a failure of another kind.
    """

    def __init__(
        self, sizes: list[int], guilty: set[tuple[int, int]], chance: float = 0.0, workers: int = 3
    ) -> None:
        self.sizes, self.guilty, self.chance, self.workers = sizes, guilty, chance, workers
        self.random = random.Random(1)
        self.at_work: deque[Piece] = deque()
        self.stored: set[tuple[int, int]] = set()
        self.written: dict[int, set[int]] = {}  # the pairs that each shard's file leaves out
        self.deaths: Counter[tuple[int, int]] = Counter()

    def room(self) -> int:
        return self.workers - len(self.at_work)

    def give(self, piece: Piece) -> None:
        assert piece.shard not in [other.shard for other in self.at_work]
        self.at_work.append(piece)

    def wait(self) -> list[tuple[Piece, Done | Failure]]:
        self.at_work.rotate(self.random.randrange(len(self.at_work)))
        piece = self.at_work.popleft()
        return [(piece, self.answer(piece))]

    def answer(self, piece: Piece) -> Done | Failure:
        if self.random.random() < self.chance:
            return Failure(self.random.choice(["node", "not begun", "busy"]), "by chance")
        first, end = piece.part or (0, self.sizes[piece.shard - 1])
        wanted = [(piece.shard, i) for i in range(first, end) if i not in piece.left_out]
        new = [pair for pair in wanted if pair not in self.stored]
        for pair in new:
            if pair in self.guilty:
                self.deaths[pair] += 1
                return Failure("worker", "signal 11")
            self.stored.add(pair)
        if piece.part is None:
            self.written[piece.shard] = set(piece.left_out)
        return Done(len(new))


def run(crew: FakeCrew) -> tuple[ShardQueue, Done]:
    queue, total = ShardQueue(crew.sizes), Done()
    finished: list[int] = []

    def add(piece: Piece, done: Done, whole: bool) -> None:
        nonlocal total
        total = total.and_also(done)
        if whole:
            finished.append(piece.shard)

    work_off(queue, crew, add)
    assert sorted(finished) == list(range(1, len(crew.sizes) + 1))
    return queue, total


def test_all_shards_are_done_once() -> None:
    crew = FakeCrew([10, 3, 1, 7], set())
    queue, total = run(crew)
    assert total.matched == 21
    assert queue.left_out == {}
    assert not queue.kinds


@pytest.mark.parametrize("guilty", [{(2, 0)}, {(2, 999)}, {(1, 17), (2, 500), (2, 501), (3, 0)}])
def test_a_guilty_pair_is_found_and_left_out_and_no_other(guilty: set[tuple[int, int]]) -> None:
    crew = FakeCrew([1000, 1000, 1, 40], guilty)
    queue, _ = run(crew)
    found = {(shard, i) for shard, positions in queue.left_out.items() for i in positions}
    assert found == guilty
    assert {(k, i) for k, positions in crew.written.items() for i in positions} == guilty
    assert len(crew.stored) == 2041 - len(guilty)
    assert {reason for reasons in queue.left_out.values() for reason in reasons.values()} == {
        "signal 11"
    }
    assert max(crew.deaths.values()) <= 3 + 10 + 3  # whole, halved down to one, and alone


def test_what_is_no_shards_fault_leaves_nothing_out() -> None:
    crew = FakeCrew([30] * 40, {(7, 4)}, chance=0.3, workers=8)
    queue, _ = run(crew)
    assert queue.left_out == {7: {4: "signal 11"}}
    assert len(crew.stored) == 40 * 30 - 1
    assert {"node", "not begun", "busy", "worker"} <= queue.kinds.keys()


def test_an_error_of_the_user_ends_it_at_once() -> None:
    class Full(FakeCrew):
        def answer(self, piece: Piece) -> Done | Failure:
            return Failure("error", "Cannot write X: no space left on device")

    crew = Full([5, 5], set())
    with pytest.raises(EdmHlocError, match="no space left"):
        run(crew)


def test_it_ends_when_everything_fails() -> None:
    everything = {(shard, i) for shard in (1, 2, 3) for i in range(100)}
    crew = FakeCrew([100, 100, 100], everything)
    with pytest.raises(EdmHlocError, match=r"in a row .*signal 11.*not the fault of single pairs"):
        run(crew)
    assert sum(crew.deaths.values()) < 20


def test_it_ends_when_more_pairs_fail_than_single_ones() -> None:
    crew = FakeCrew([90] * 10, {(k, i) for k in (3, 6, 9) for i in (5, 30, 55, 80)})
    with pytest.raises(EdmHlocError, match="Workers failed at 11 pairs"):
        run(crew)


def test_a_shard_whose_file_cannot_be_written_is_named() -> None:
    class Unwritable(FakeCrew):
        def answer(self, piece: Piece) -> Done | Failure:
            answer = super().answer(piece)
            writes = piece.shard == 2 and piece.part is None
            return Failure("task", "it broke") if writes else answer

    with pytest.raises(EdmHlocError, match="file of shard 2 could not be written: it broke"):
        run(Unwritable([10, 10, 10], set()))


def test_shards_that_are_not_halved_end_it_at_the_third_failure() -> None:
    crew = FakeCrew([10, 10, 10], {(2, 5)})
    with pytest.raises(EdmHlocError, match="Shard 2 failed 3 times: signal 11"):
        work_off(ShardQueue(crew.sizes, halved=False), crew, lambda *_: None)

"""Workers with a matcher that needs no network, for processes and actors that tests start."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.pipelines.shard_plan import ShardPlan
from edm_hloc.pipelines.shard_queue import Done, Failure, Piece
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings
from tests.fakes import FakeMatcher


class NotedMatcher(FakeMatcher):
    """Notes each pair in a file of its process before it is matched, and takes its time.

    Args:
        folder: of these files.
        seconds: that a pair takes.
    """

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        super().__init__()
        folder.mkdir(exist_ok=True)
        self.seconds = seconds
        self.path = folder / f"{os.getpid()}-{time.monotonic_ns()}.txt"

    def find(self, features0: Features, features1: Features) -> Matches:
        with self.path.open("a") as file:
            file.write(f"{features0.data} {features1.data}\n")
        time.sleep(self.seconds)
        return super().find(features0, features1)


class FakeWorker(ShardWorker):
    """What `ShardWorker` is, with `NotedMatcher`; notes lie in OUT/notes."""

    seconds = 0.0

    def load(self, plan: ShardPlan) -> Matcher:
        return NotedMatcher(plan.folder.parent / "notes", self.seconds)


class SlowWorker(FakeWorker):
    seconds = 0.02


class CrewOfOne:
    """A crew that is this process, in the place of `ProcessCrew`."""

    def __init__(self, settings: WorkerSettings, number: int, _: type[ShardWorker]) -> None:
        self.workers = number
        self._worker = FakeWorker(settings)
        self._given: list[Piece] = []

    def room(self) -> int:
        return 1 - len(self._given)

    def give(self, piece: Piece) -> None:
        self._given.append(piece)

    def wait(self) -> list[tuple[Piece, Done | Failure]]:
        piece = self._given.pop()
        return [(piece, self._worker.work(piece))]

    def __enter__(self) -> CrewOfOne:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class DyingMatcher(NotedMatcher):
    """Dies at the pair of the photos of the levels 12 and 17."""

    def find(self, features0: Features, features1: Features) -> Matches:
        if {features0.data, features1.data} == {12, 17}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().find(features0, features1)


class DyingWorker(FakeWorker):
    def load(self, plan: ShardPlan) -> Matcher:
        return DyingMatcher(plan.folder.parent / "notes")


class BrokenMatcher(NotedMatcher):
    """Has a defect at the same pair."""

    def find(self, features0: Features, features1: Features) -> Matches:
        if {features0.data, features1.data} == {12, 17}:
            raise ZeroDivisionError("a defect")
        return super().find(features0, features1)


class BrokenWorker(FakeWorker):
    def load(self, plan: ShardPlan) -> Matcher:
        return BrokenMatcher(plan.folder.parent / "notes")


class StillbornWorker(FakeWorker):
    def __init__(self, settings: WorkerSettings) -> None:
        os._exit(7)


class UnimportableWorker(FakeWorker):
    def __init__(self, settings: WorkerSettings) -> None:
        raise ImportError


def noted(out: Path) -> Counter[tuple[int, int]]:
    """How often each pair was begun, by the levels of its photos."""
    lines = [line.split() for path in (out / "notes").iterdir() for line in path.open()]
    return Counter((int(a), int(b)) for a, b in lines)


def make_grey_photos(root: Path, number: int) -> list[str]:
    """Small grey photos; the level of photo i is 10 + i."""
    root.mkdir(parents=True)
    names = [f"{i:03d}.png" for i in range(number)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((50, 40 + i % 7), 10 + i, np.uint8)).save(root / name)
    return names

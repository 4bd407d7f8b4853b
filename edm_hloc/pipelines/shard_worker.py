"""A worker: does the pieces of shards that it is given, in whatever process it lives."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edm_hloc.base.errors import BusyError, EdmHlocError
from edm_hloc.matchers.base import Matcher
from edm_hloc.matchers.loading import check_device, default_device
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pipelines.plan_folder import PLAN_FOLDER, check_seen
from edm_hloc.pipelines.shard_plan import ShardPlan, load_plan, what_is_planned
from edm_hloc.pipelines.shard_queue import Done, Failure, Piece
from edm_hloc.pipelines.shards import match_part, match_shard
from edm_hloc.pipelines.work_kinds import work_shard
from edm_hloc.pipelines.work_plan import load_work

_BUSY_WAIT = 5.0  # seconds until a shard that another process is at work on is given back


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know; small enough to be sent to any number of them.

    Attributes:
        out: output folder with the plan.
        device: where the network runs; None for the fastest.
        threads: of the network on a CPU.
        config: memory and threads of the matching.
    """

    out: Path
    device: str | None
    threads: int
    config: MatchingConfig


class ShardWorker:
    """A worker, which loads the network once, when it is first needed.

    Args:
        settings: see `WorkerSettings`.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = replace(settings, config=replace(settings.config, shown=False))
        self._matcher: Matcher | None = None
        self._plan: ShardPlan | None = None

    def work(self, piece: Piece) -> Done | Failure:
        """Does a piece, and says what was done or why it was not; raises nothing."""
        try:
            check_seen(self._settings.out / PLAN_FOLDER, [self._settings.out])
            if what_is_planned(self._settings.out) in (None, "matching"):
                return self._match(piece)
            return Done(self._work(piece.shard))
        except BusyError as error:
            time.sleep(_BUSY_WAIT)
            return Failure("busy", str(error))
        except EdmHlocError as error:
            return Failure("error", str(error).removesuffix("."))
        except (MemoryError, torch.OutOfMemoryError) as error:
            return Failure("memory", f"out of memory ({_first_line(error)})")
        except Exception as error:
            return Failure("task", f"{type(error).__name__}: {_first_line(error)}")

    def load(self, plan: ShardPlan) -> Matcher:
        """The matcher of a plan.

        Raises:
            EdmHlocError: it cannot be made here.
        """
        torch.set_num_threads(self._settings.threads)
        return plan.matcher.load(self._settings.device)

    def _work(self, shard: int) -> int:
        """Does a shard of another step than matching; gives the number of items."""
        device = self._settings.device or default_device()
        check_device(device)
        torch.set_num_threads(self._settings.threads)
        return work_shard(load_work(self._settings.out), shard, torch.device(device))

    def _match(self, piece: Piece) -> Done:
        plan = self._plan = self._plan or load_plan(self._settings.out)
        pairs = plan.pairs_of(piece.shard)
        left_out = {pairs[position]: reason for position, reason in piece.left_out.items()}
        matcher = self._matcher = self._matcher or self.load(plan)
        if piece.part is None:
            done = match_shard(plan, piece.shard, matcher, self._settings.config, left_out)
        else:
            done = match_part(plan, piece.shard, piece.part, matcher, self._settings.config)
        return Done(done.matched, done.encoded, done.matches, done.skipped, done.rotated)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

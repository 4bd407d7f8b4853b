"""Matching by several processes on this computer, one a GPU or one per few cores."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import (
    MatchingConfig,
    MatchingSummary,
    match_pairs,
    run_provenance,
)
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair, unique_pairs
from edm_hloc.pipelines.shard_plan import ShardPlan, load_plan, make_plan
from edm_hloc.pipelines.shards import end_plan, match_shard, merge_shards, stored_in

logger = logging.getLogger(__name__)

_SHARDS_OF_A_WORKER = 8  # or more: the last ones end at about the same time
_MOST_PAIRS = 1000  # of a shard: what is lost of the estimate of time, and of memory for a merge
_TRIES = 3  # of a shard whose worker dies
_FEWEST_PAIRS = 20  # of a shard


def match_in_processes(
    image_root: ImageRoot,
    pairs: Sequence[Pair],
    matcher: Matcher,
    raw_directory: Path,
    config: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> MatchingSummary:
    """`match_pairs` by as many processes as `config` asks for, where the matcher has a recipe.

    Args:
        image_root, pairs, matcher, config, overwrite: see `match_pairs`.
        raw_directory: OUT/raw_matches.

    Raises:
        EdmHlocError: see `match_pairs` and `match_with_workers`.
    """
    if config is None or config.workers < 2 or not isinstance(image_root, Path):
        return match_pairs(image_root, pairs, matcher, raw_directory, config, overwrite=overwrite)
    start = time.monotonic()
    found = match_with_workers(
        raw_directory.parent, image_root, pairs, matcher, config, overwrite=overwrite
    )
    overwrite = overwrite and not found
    # what is left, and what has changed
    summary = match_pairs(image_root, pairs, matcher, raw_directory, config, overwrite=overwrite)
    return replace(
        summary,
        matched=summary.matched + found,
        resumed=summary.resumed - found,
        seconds=time.monotonic() - start,
    )


def match_with_workers(
    out: Path,
    image_root: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    config: MatchingConfig,
    *,
    overwrite: bool = False,
) -> int:
    """Matches in shards those pairs that OUT/raw_matches lacks, by several processes.

    What an interrupted call has matched is kept. A worker that dies is replaced, and its shard is
    tried again.

    Args:
        out: output folder.
        image_root: folder of the photos.
        pairs: names of two photos each.
        matcher: with a recipe.
        config: number of workers, and memory and threads of each.
        overwrite: delete raw matches of earlier calls first.

    Returns:
        The number of pairs that the workers have matched; 0 where these are too few to pay.

    Raises:
        EdmHlocError: of a worker; or a shard whose worker died three times.
    """
    if matcher.recipe is None:
        return 0
    if (out / "plan" / "plan.json").exists():
        end_plan(load_plan(out), merge=not overwrite)
    if overwrite:
        RawMatchWriter(out / "raw_matches", run_provenance(matcher), overwrite=True).close()
    present = stored_in(out / "raw_matches")
    pairs = [pair for pair in unique_pairs(pairs) if not {pair, pair[::-1]} & present.keys()]
    if len(pairs) < config.workers * _FEWEST_PAIRS:
        return 0  # the start of a worker takes longer
    shards = max(_SHARDS_OF_A_WORKER * config.workers, -(-len(pairs) // _MOST_PAIRS))
    shards = min(shards, len(pairs) // _FEWEST_PAIRS)
    plan = make_plan(out, image_root, pairs, matcher, shards=shards)
    with StepProgress("Matching", "pair", sum(plan.pairs)) as progress:
        _Team(plan, matcher.info.device.type, config).match(progress)
    merged = merge_shards(plan)
    end_plan(plan, merge=False)
    return merged.pairs


class _Team:
    """The processes, what each is at work on, and what is left."""

    def __init__(self, plan: ShardPlan, device: str, config: MatchingConfig) -> None:
        self._plan, self._device = plan, device
        self._config = replace(config, shown=False)
        self._context = multiprocessing.get_context("spawn")
        self._members: dict[Connection, tuple[int, BaseProcess]] = {}
        self._at_work: dict[Connection, int] = {}

    def match(self, progress: StepProgress) -> None:
        left = deque(range(1, len(self._plan.pairs) + 1))
        failed: Counter[int] = Counter()
        try:
            for number in range(min(self._config.workers, len(left))):
                self._start(number)
            while left or self._at_work:
                for connection in self._members:
                    if left and connection not in self._at_work:
                        self._at_work[connection] = left.popleft()
                        connection.send(self._at_work[connection])
                for ready in wait([*self._at_work]):
                    assert isinstance(ready, Connection)
                    shard = self._at_work.pop(ready)
                    try:
                        error = ready.recv()
                    except (EOFError, OSError):  # it has died
                        failed[shard] += 1
                        self._replace(ready, shard, failed[shard])
                        left.appendleft(shard)
                        continue
                    if error is not None:
                        raise EdmHlocError(error)
                    progress.update(self._plan.pairs[shard - 1])
        finally:
            self._end()

    def _start(self, number: int) -> None:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(there, self._plan.folder.parent, number, self._device, self._config),
            name=f"worker {number}",
            daemon=True,
        )
        process.start()
        there.close()
        self._members[here] = (number, process)

    def _replace(self, connection: Connection, shard: int, times: int) -> None:
        number, process = self._members.pop(connection)
        connection.close()
        process.join(timeout=10)
        ended = process.exitcode
        how = f"signal {-ended}" if ended is not None and ended < 0 else f"exit code {ended}"
        logger.warning("A worker died (%s) in shard %d of the matching.", how, shard)
        if times == _TRIES:
            raise EdmHlocError(
                f"Three workers died in shard {shard} of the matching ({how}). With signal 9 the "
                "memory was too small: take fewer workers, or a smaller --cache. To see the "
                f"reason, run edm-hloc match-shard {self._plan.folder.parent} {shard}."
            )
        self._start(number)

    def _end(self) -> None:
        for connection, (_, process) in self._members.items():
            if connection in self._at_work:  # interrupted, or another one failed
                process.terminate()
            connection.close()  # which ends those that wait
        for _, process in self._members.values():
            process.join(timeout=10)
            if process.is_alive():
                process.kill()


def _serve(
    connection: Connection, out: Path, number: int, device: str, config: MatchingConfig
) -> None:
    """A worker: matches the shards whose numbers come, and answers None or an error's message."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends all of them
    import torch

    if device == "cuda":
        device = f"cuda:{number % max(1, torch.cuda.device_count())}"
    torch.set_num_threads(max(1, _num_cores() // config.workers))
    try:
        plan = load_plan(out)
        matcher = None
        while True:
            shard = connection.recv()
            try:
                matcher = matcher or plan.matcher.load(device)
                match_shard(plan, shard, matcher, config)
            except EdmHlocError as error:
                connection.send(str(error))
            else:
                connection.send(None)
    except (EOFError, OSError):  # the parent has ended, or needs no more
        return


def automatic_workers(device: str | None = None) -> int:
    """One worker for each GPU, if the networks run on one; on a CPU one process uses all cores.

    Args:
        device: that was asked for; None for the fastest.
    """
    import torch

    return max(1, torch.cuda.device_count()) if device in (None, "cuda") else 1


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

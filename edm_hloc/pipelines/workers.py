"""Matching by many workers: processes of this computer, or actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import StepProgress, say
from edm_hloc.base.text import plural
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.matchers.loading import default_device
from edm_hloc.matching.engine import (
    MatchingConfig,
    MatchingSummary,
    match_pairs,
    run_provenance,
)
from edm_hloc.matching.left_out import left_out_path, read_left_out, without_left_out
from edm_hloc.matching.levels import forget_levels
from edm_hloc.matching.shards import shard_paths
from edm_hloc.matching.stored_index import pairs_to_match
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.pipelines.processes import ProcessCrew, num_cores
from edm_hloc.pipelines.ray_actors import RayCrew
from edm_hloc.pipelines.shard_plan import (
    ShardPlan,
    check_matcher,
    count_matched,
    find_plan,
    make_plan,
    what_is_planned,
)
from edm_hloc.pipelines.shard_queue import Crew, Done, Piece, ShardQueue, work_off
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings
from edm_hloc.pipelines.shards import end_plan, merge_shards
from edm_hloc.pipelines.work_plan import WorkPlan

logger = logging.getLogger(__name__)

_SHARDS_OF_A_WORKER = 8  # or more: the last ones end at about the same time
_MOST_PAIRS = 1000  # of a shard: what is lost of the estimate of time, and of memory for a merge
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
    """`match_pairs` by as many workers as `config` asks for, where the matcher has a recipe.

    Pairs at which workers have failed are left out and named in the summary.

    Args:
        image_root, pairs, matcher, config, overwrite: see `match_pairs`.
        raw_directory: OUT/raw_matches.

    Raises:
        EdmHlocError: see `match_pairs` and `match_with_workers`.
    """
    config = config or MatchingConfig()
    start = time.monotonic()
    if overwrite:
        left_out_path(raw_directory).unlink(missing_ok=True)
    found = None
    if config.ray is not None or config.workers > 1:
        found = match_with_workers(
            raw_directory.parent, image_root, pairs, matcher, config, overwrite=overwrite
        )
    KnownPhotos(raw_directory).note(image_root, names_in(pairs))
    left_out, wanted = read_left_out(raw_directory), without_left_out(raw_directory, pairs)
    overwrite = overwrite and found is None
    if config.ray is None and config.workers <= 1 and not overwrite:
        _tell_of_workers(raw_directory.parent, image_root, wanted, matcher)
    # what is left, and what has changed
    summary = match_pairs(image_root, wanted, matcher, raw_directory, config, overwrite=overwrite)
    if found is not None:
        summary = found.followed_by(replace(summary, resumed=summary.resumed - found.matched))
    asked = {frozenset(pair) for pair in pairs}
    named = [f"{a} and {b}: {why}" for (a, b), why in left_out.items() if {a, b} in asked]
    return replace(summary, left_out=tuple(named), seconds=time.monotonic() - start)


def _tell_of_workers(
    out: Path, image_root: ImageRoot, pairs: Sequence[Pair], matcher: Matcher
) -> None:
    """Warns where one process is going to match pairs that workers have matched already.

    Raises:
        EdmHlocError: there are no raw matches yet, and those of a plan have other settings, so that
            they could not be merged into what is going to be matched.
    """
    if what_is_planned(out) != "matching" or (plan := find_plan(out)) is None:
        return
    if not shard_paths(plan.raw_matches):
        check_matcher(plan, matcher)
    # without a plan of this matching, or with damaged shards, there is nothing to tell
    with contextlib.suppress(EdmHlocError):
        check_matcher(plan, matcher)
        left = pairs_to_match(plan.raw_matches, image_root, pairs)
        if number := count_matched(plan, image_root, left) if left else 0:
            logger.warning(
                "%s holds matches of workers that are not merged, which one process does not take "
                "over: it matches these %d pairs itself. To go on from them interrupt it, and add "
                "--workers 2 to the command.",
                plan.folder,
                number,
            )


def match_with_workers(
    out: Path,
    image_root: ImageRoot,
    pairs: Sequence[Pair],
    matcher: Matcher,
    config: MatchingConfig,
    *,
    overwrite: bool = False,
) -> MatchingSummary | None:
    """Matches in shards those pairs that OUT/raw_matches lacks, or has of photos that have changed.

    What an interrupted call has matched is kept. See `ShardQueue` for what happens when a worker
    fails.

    Args:
        out: output folder.
        image_root: folder or folders of the photos.
        pairs: names of two photos each.
        matcher: with a recipe.
        config: number and kind of workers, and memory and threads of each.
        overwrite: delete raw matches of earlier calls first.

    Returns:
        What was done; None where the pairs are too few to pay.

    Raises:
        EdmHlocError: what an interrupted call has left was made with other settings; of a worker;
            or more failed than single pairs explain.
    """
    if matcher.recipe is None:
        return None
    if (plan := find_plan(out)) is not None:
        if not overwrite:
            check_matcher(plan, matcher)
        end_plan(plan, merge=not overwrite)
    if overwrite:
        RawMatchWriter(out / "raw_matches", run_provenance(matcher), overwrite=True).close()
        forget_levels(out / "raw_matches")
    KnownPhotos(out / "raw_matches").note(image_root, names_in(pairs))
    pairs = pairs_to_match(out / "raw_matches", image_root, pairs)
    if len(pairs) < max(2, config.workers) * _FEWEST_PAIRS:
        if pairs:
            say(f"No workers are started for {plural(len(pairs), 'pair')}: matched here.")
        return None  # the start of a worker takes longer
    start = time.monotonic()
    with hire(out, config, matcher.info.device.type) as crew:
        shards = max(_SHARDS_OF_A_WORKER * crew.workers, -(-len(pairs) // _MOST_PAIRS))
        shards = min(shards, len(pairs) // _FEWEST_PAIRS)
        plan = make_plan(out, image_root, pairs, matcher, shards=shards, overwrite=overwrite)
        done = match_plan(plan, crew)
    merged = merge_shards(plan)
    end_plan(plan, merge=False)
    return MatchingSummary(
        matched=merged.pairs,
        resumed=0,
        encoded=done.encoded,
        images=plan.photos,
        skipped=merged.skipped,
        skipped_pairs=0,  # whoever goes on tries them again, and counts them
        rotated=done.rotated,
        matches=done.matches,
        seconds=time.monotonic() - start,
    )


@contextlib.contextmanager
def hire(out: Path, config: MatchingConfig, device: str | None) -> Iterator[ProcessCrew | RayCrew]:
    """The workers that a configuration asks for, for a plan in an output folder.

    Args:
        out: output folder, in which the plan may be made later.
        config: number and kind of workers, and memory and threads of each.
        device: where the networks run, None for the fastest; with Ray only if the configuration
            does not say so.

    Raises:
        EdmHlocError: Ray is not installed, or cannot be reached.
    """
    settings = WorkerSettings(out.resolve(), device, 1, config)
    if config.ray is None:
        # not None: a GPU is shared out among the processes only if all know that it is one
        settings = replace(settings, device=device or default_device())
        settings = replace(settings, threads=max(1, num_cores() // config.workers))
        with ProcessCrew(settings, config.workers, ShardWorker) as crew:
            yield crew
        return
    with RayCrew(settings, config.ray, config.workers, ShardWorker) as actors:
        yield actors


def match_plan(plan: ShardPlan, crew: Crew) -> Done:
    """Has a crew match all shards of a plan; those that are done are only checked.

    What is left out or was tried again is logged.

    Returns:
        What the workers did in all.

    Raises:
        EdmHlocError: see `match_with_workers`.
    """
    queue = ShardQueue(plan.pairs)
    total = _work_off(queue, crew, plan.pairs, "Matching", "pair")
    for shard, positions in queue.left_out.items():
        pairs = plan.pairs_of(shard)
        for position, reason in positions.items():
            names = " and ".join(pairs[position])
            logger.warning("Left out: %s, at which three workers failed: %s.", names, reason)
    return total


def do_work(plan: WorkPlan, crew: Crew) -> int:
    """Has a crew do all shards of a plan of another step than matching.

    Returns:
        The number of items that were done now.

    Raises:
        EdmHlocError: of a worker, or a shard failed three times.
    """
    queue = ShardQueue(plan.items, halved=False)
    return _work_off(queue, crew, plan.items, plan.kind.capitalize(), "item").matched


def _work_off(queue: ShardQueue, crew: Crew, sizes: Sequence[int], title: str, unit: str) -> Done:
    """Has a crew do a queue, with progress; says what was tried again."""
    total = Done()
    with StepProgress(title, unit, sum(sizes)) as progress:

        def add(piece: Piece, done: Done, finished: bool) -> None:
            nonlocal total
            total = total.and_also(done)
            if finished:
                progress.update(sizes[piece.shard - 1])

        work_off(queue, crew, add)
    counted = [f"{number} × {kind}" for kind, number in queue.kinds.items() if kind != "busy"]
    if counted:
        logger.warning("Work that was given to other workers again: %s.", ", ".join(counted))
    return total


def automatic_workers(device: str | None = None) -> int:
    """One worker for each GPU, if the networks run on one; on a CPU one process uses all cores.

    Args:
        device: that was asked for; None for the fastest.
    """
    import torch

    return max(1, torch.cuda.device_count()) if device in (None, "cuda") else 1

"""`edm-hloc plan`, `match-shard` and `merge`: matching spread over many workers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options, pair_options, workers

if TYPE_CHECKING:
    from edm_hloc.base.storage import Store
    from edm_hloc.pairs.rules import Pair
    from edm_hloc.pipelines.shard_plan import ShardPlan

_PAIRS_PER_SHARD = 1000

_FIRST_NUMBERS = {
    "SLURM_ARRAY_TASK_ID": 1,
    "AWS_BATCH_JOB_ARRAY_INDEX": 0,
    "JOB_COMPLETION_INDEX": 0,
    "PBS_ARRAY_INDEX": 1,
    "PBS_ARRAYID": 1,
    "LSB_JOBINDEX": 1,
    "SGE_TASK_ID": 1,
}
"""Variables with the number of a job in an array of Slurm, AWS Batch, Kubernetes, PBS, LSF and Grid
Engine, and the number that arrays begin with there."""


def register(command: options.AddCommand) -> None:
    sub = command("plan", _plan, "cut the matching of listed pairs into shards for many workers")
    sub.add_argument("images", metavar="IMAGES", help="folder of photos, or s3://… or gs://…")
    pair_options.add_listed_pairs(sub)
    sub.add_argument("out", metavar="OUT", help="folder that all workers see, or s3://… or gs://…")
    sub.add_argument(
        "--shards",
        type=options.between(int, 1, 10**6),
        help=f"number of shards; by default one for each {_PAIRS_PER_SHARD:,} pairs",
    )
    options.add_matcher(sub)
    options.add_overwrite(sub)

    sub = command(
        "match-shard",
        _match_shard,
        "do one shard of a plan, or all: matching, or another step that was planned with --shards",
    )
    sub.add_argument("out", metavar="OUT", help="folder of the plan")
    sub.add_argument("shard", type=int, metavar="K", nargs="?", help="number of the shard, from 1")
    sub.add_argument(
        "--from-environment",
        action="store_true",
        help="take the number from the variables that Slurm, AWS Batch, Kubernetes' indexed jobs, "
        "PBS, LSF and Grid Engine set for a job of an array",
    )
    sub.add_argument("--all", action="store_true", help="do all shards, with many workers")
    workers.add_workers(sub)
    options.add_machine(sub)

    sub = command("merge", _merge, "put the shards of a plan together, once all are matched")
    sub.add_argument("out", metavar="OUT", help="folder of the plan")
    sub.add_argument(
        "into",
        type=Path,
        metavar="INTO",
        nargs="?",
        help="where OUT is in object storage: folder of this computer for the raw matches",
    )


def _plan(args: argparse.Namespace) -> None:
    from edm_hloc.base.storage import Store, is_url
    from edm_hloc.images.roots import photo_root
    from edm_hloc.pipelines.cloud_plan import put_plan
    from edm_hloc.pipelines.shard_plan import plan_missing

    args.images = photo_root(args.images)
    store = Store(args.out) if is_url(args.out) else None
    args.out = args.out if store else Path(args.out)
    pairs = pair_options.list_pairs(args)
    matcher, overwrite = options.make_matcher(args), args.overwrite

    def shards(number: int) -> int:
        return args.shards or -(-number // _PAIRS_PER_SHARD)

    plan: ShardPlan | None
    if store is not None:
        number = shards(len(pairs))
        plan = put_plan(store, args.images, pairs, matcher, shards=number, overwrite=overwrite)
    else:
        plan = plan_missing(
            args.out, args.images, pairs, matcher, shards=shards, overwrite=overwrite
        )
        _tell_of_matched(args.out, pairs, plan)
    if plan is None:
        return
    extra = 100 * plan.extra_encodes / max(1, plan.photos)
    number, place, out = len(plan.pairs), store or plan.folder, quote(str(args.out))
    print(f"Shards      {number:,} of up to {max(plan.pairs):,} pairs, in {place}")
    print(f"Encodes     {extra:.0f} % more than in one process: photos that are in several shards")
    print(
        f"Next        edm-hloc match-shard {out} K, for K from 1 to {len(plan.pairs)}, on any "
        f"computers;\n            then edm-hloc merge {out}{' INTO' if store else ''}"
    )


def _tell_of_matched(out: Path, pairs: Sequence[Pair], plan: ShardPlan | None) -> None:
    """Says how many of the listed pairs are matched already, and so not planned."""
    from edm_hloc.base.text import plural
    from edm_hloc.matching.left_out import left_out_path, without_left_out

    raw = out / "raw_matches"
    matched = len(pairs) - (0 if plan is None else sum(plan.pairs))
    if matched:
        left_out = len(pairs) - len(without_left_out(raw, pairs))
        print(f"Matched     {matched - left_out:,} of {len(pairs):,} pairs before: {raw}")
        if left_out:
            left = plural(left_out, "pair")
            print(f"Left out    {left}; to match them again, remove {left_out_path(raw)}")
    if plan is None:
        print("Planned     nothing: no pair is left to match")
    elif done := len(plan.pairs) - len(plan.left()):
        print(f"Kept        {plural(done, 'shard')} with matches, which match-shard checks")


def shard_from_environment(environment: Mapping[str, str]) -> int:
    """The number of the shard, from 1, of a job in an array.

    Raises:
        EdmHlocError: none of the known variables holds a number, or it is below the first one.
    """
    for name, first in _FIRST_NUMBERS.items():
        text = environment.get(name, "")
        if text.isdecimal():
            if int(text) < first:
                raise EdmHlocError(f"{name} is {text}: number the jobs of the array from {first}.")
            return int(text) - first + 1
    raise EdmHlocError(
        f"None of {', '.join(_FIRST_NUMBERS)} holds a number: is this a job of an array? Otherwise "
        "give the number of the shard."
    )


def _match_shard(args: argparse.Namespace) -> None:
    from edm_hloc.base.storage import Store, is_url
    from edm_hloc.pipelines.shard_plan import load_plan, number_of_shards, what_is_planned

    if (args.shard is not None) + args.from_environment + args.all != 1:
        raise EdmHlocError("Give the number of the shard, or --from-environment, or --all.")
    if args.all:
        if is_url(args.out):
            raise EdmHlocError(
                f"--all needs a plan in a folder: the shards of {args.out} are matched one by one, "
                "by their numbers."
            )
        args.out = Path(args.out)
        _match_all(args)
        return
    if args.workers is not None or args.ray is not None:
        raise EdmHlocError("--workers and --ray are for --all: add that, or leave them out.")
    shard = shard_from_environment(os.environ) if args.shard is None else args.shard
    if is_url(args.out):
        _match_shard_in_store(args, Store(args.out), shard)
        return
    args.out = Path(args.out)
    if args.from_environment and shard > number_of_shards(args.out):
        print(f"Nothing     is to be done: {args.out} has no shard {shard}")
        return
    if what_is_planned(args.out) not in (None, "matching"):
        _work_shard(args, shard)
        return
    plan = load_plan(args.out)
    _match(args, plan, shard)
    print(f"Written     {plan.file_of(shard)}")


def _match_shard_in_store(args: argparse.Namespace, store: Store, shard: int) -> None:
    """A shard of a plan in object storage."""
    from edm_hloc.pipelines.cloud_plan import get_plan, is_put, put_shard

    plan = get_plan(store, shard)
    number = len(plan.pairs)
    if args.from_environment and shard > number:
        print(f"Nothing     is to be done: {store} has no shard {shard}")
        return
    if 1 <= shard <= number and is_put(store, plan, shard):
        print(f"Shard       {shard} of {number} was matched already")
        return
    _match(args, plan, shard)
    put_shard(store, plan, shard)
    print(f"Written     {store}/{plan.file_of(shard).name}")


def _match(args: argparse.Namespace, plan: ShardPlan, shard: int) -> None:
    from edm_hloc.pipelines.shards import match_shard

    plan.pairs_of(shard)  # an error before the network is loaded
    matcher = plan.matcher.load(args.device)
    print(f"Weights     {matcher.info.weights}, on {matcher.info.device}")
    summary = match_shard(plan, shard, matcher, options.matching_config(args))
    kept = summary.pairs - summary.matched
    print(
        f"Shard       {shard} of {len(plan.pairs)}: {summary.matched:,} pairs matched, {kept:,} "
        f"were there already or skipped; {summary.encoded:,} photos encoded"
    )
    for name, reason in summary.skipped.items():
        print(f"Skipped     {name}: {reason}")


def _work_shard(args: argparse.Namespace, shard: int) -> None:
    """A shard of another step than matching."""
    import torch

    from edm_hloc.matchers.loading import check_device, default_device
    from edm_hloc.pipelines.work_kinds import work_shard
    from edm_hloc.pipelines.work_plan import load_work

    plan = load_work(args.out)
    device = args.device or default_device()
    check_device(device)
    number = work_shard(plan, shard, torch.device(device))
    print(
        f"Shard       {shard} of {len(plan.items)} of {plan.kind}: {number:,} of "
        f"{plan.items[shard - 1]:,} items done now"
    )
    print(f"Written     {plan.file_of(shard)}")


def _match_all(args: argparse.Namespace) -> None:
    from edm_hloc.pipelines.shard_plan import load_plan, what_is_planned
    from edm_hloc.pipelines.work_plan import load_work
    from edm_hloc.pipelines.workers import do_work, hire, match_plan

    if what_is_planned(args.out) not in (None, "matching"):
        work = load_work(args.out)
        with hire(args.out, options.matching_config(args), args.device) as crew:
            number = do_work(work, crew)
        print(
            f"Shards      {len(work.items):,} of {work.kind} are done: {number:,} of "
            f"{sum(work.items):,} items now"
        )
        print("Next        the command that planned them")
        return
    plan = load_plan(args.out)
    with hire(args.out, options.matching_config(args), args.device) as crew:
        done = match_plan(plan, crew)
    print(
        f"Shards      {len(plan.pairs):,} are matched: {done.matched:,} pairs now, "
        f"{sum(plan.pairs) - done.matched:,} were there already or skipped; {done.encoded:,} "
        "photos encoded"
    )
    for name, reason in done.skipped.items():
        print(f"Skipped     {name}: {reason}")
    print(f"Next        edm-hloc merge {quote(str(args.out))}")


def _merge(args: argparse.Namespace) -> None:
    from edm_hloc.base.storage import Store, is_url
    from edm_hloc.matching.left_out import left_out_path
    from edm_hloc.pipelines.cloud_plan import get_shards
    from edm_hloc.pipelines.shard_plan import load_plan
    from edm_hloc.pipelines.shards import merge_shards

    if is_url(args.out) != (args.into is not None):
        raise EdmHlocError(
            "Give merge a folder of this computer as INTO where OUT is in object storage, and "
            "only there."
        )
    if args.into is not None:
        plan, out = get_shards(Store(args.out), args.into), args.into
    else:
        out = Path(args.out)
        plan = load_plan(out)
    summary = merge_shards(plan)
    print(f"Merged      {summary.pairs:,} pairs of {summary.shards:,} shards: {plan.raw_matches}")
    for name, reason in summary.skipped.items():
        print(f"Skipped     {name}: {reason}")
    for (first, second), reason in summary.left_out.items():
        print(f"Left out    {first} and {second}: {reason}")
    if summary.left_out:
        print(f"            To match them again, remove {left_out_path(plan.raw_matches)}")
    print(
        f"Next        the command that needs the matches, with the same pairs, photos and settings "
        f"and with {out} as OUT: it finds all of them matched"
    )

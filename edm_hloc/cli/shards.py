"""`edm-hloc plan`, `match-shard` and `merge`: matching spread over many workers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options

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
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    options.add_listed_pairs(sub)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder that all workers see")
    either = sub.add_mutually_exclusive_group()
    either.add_argument("--shards", type=options.between(int, 1, 10**6), help="number of shards")
    either.add_argument(
        "--pairs-per-shard",
        type=options.between(int, 1),
        default=1000,
        metavar="N",
        help="pairs of a shard, unless --shards is given",
    )
    options.add_matcher(sub)
    options.add_overwrite(sub)

    sub = command(
        "match-shard",
        _match_shard,
        "do one shard of a plan: matching, or another step that was planned with --shards",
    )
    sub.add_argument("out", type=Path, metavar="OUT", help="folder of the plan")
    sub.add_argument("shard", type=int, metavar="K", nargs="?", help="its number, from 1")
    sub.add_argument(
        "--from-environment",
        action="store_true",
        help="take the number from the variables that Slurm, AWS Batch, Kubernetes' indexed jobs, "
        "PBS, LSF and Grid Engine set for a job of an array",
    )
    options.add_machine(sub)

    sub = command("merge", _merge, "put the shards of a plan together, once all are matched")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder of the plan")


def _plan(args: argparse.Namespace) -> None:
    from edm_hloc.pipelines.shard_plan import make_plan

    pairs = options.list_pairs(args)
    plan = make_plan(
        args.out,
        args.images,
        pairs,
        options.make_matcher(args),
        shards=args.shards or -(-len(pairs) // args.pairs_per_shard),
        overwrite=args.overwrite,
    )
    extra = 100 * plan.extra_encodes / max(1, plan.photos)
    print(f"Shards      {len(plan.pairs):,} of up to {max(plan.pairs):,} pairs, in {plan.folder}")
    print(f"Encodes     {extra:.0f} % more than in one process: photos that are in several shards")
    print(
        f"Next        edm-hloc match-shard {args.out} K, for K from 1 to {len(plan.pairs)}, on any "
        f"computers;\n            then edm-hloc merge {args.out}"
    )


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
    from edm_hloc.pipelines.shard_plan import load_plan, number_of_shards, what_is_planned
    from edm_hloc.pipelines.shards import match_shard

    if (args.shard is None) != args.from_environment:
        raise EdmHlocError("Give the number of the shard, or --from-environment.")
    shard = shard_from_environment(os.environ) if args.shard is None else args.shard
    if args.from_environment and shard > number_of_shards(args.out):
        print(f"Nothing     is to be done: {args.out} has no shard {shard}")
        return
    if what_is_planned(args.out) not in (None, "matching"):
        _work_shard(args, shard)
        return
    plan = load_plan(args.out)
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
    print(f"Written     {plan.file_of(shard)}")


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


def _merge(args: argparse.Namespace) -> None:
    from edm_hloc.pipelines.shard_plan import load_plan
    from edm_hloc.pipelines.shards import merge_shards

    plan = load_plan(args.out)
    summary = merge_shards(plan)
    print(f"Merged      {summary.pairs:,} pairs of {summary.shards:,} shards: {plan.raw_matches}")
    for name, reason in summary.skipped.items():
        print(f"Skipped     {name}: {reason}")
    print(
        f"Next        the command that needs the matches, with the same pairs, photos and settings "
        f"and with {args.out} as OUT: it finds all of them matched"
    )

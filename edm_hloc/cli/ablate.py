"""`edm-hloc ablate`: trains variants of the network alike and prints their table."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.errors import missing_library
from edm_hloc.base.files import make_folder
from edm_hloc.cli import options


def register(command: options.AddCommand) -> None:
    sub = command(
        "ablate", _ablate, "train variants of the network on rendered pairs and compare them"
    )
    sub.add_argument("out", type=Path, metavar="OUT", help="folder of the runs and of the table")
    sub.add_argument(
        "--variants",
        default="all",
        metavar="NAMES",
        help="separated by commas: full, layers-1, layers-3, bins-8, bins-32, one-way, "
        "no-selection, gaussian, l1, l2, plain-attention, summed, narrow, wide; or all",
    )
    length = sub.add_mutually_exclusive_group()
    length.add_argument(
        "--minutes",
        type=options.between(float, 0.01),
        default=10.0,
        help="length of each run by the clock",
    )
    length.add_argument(
        "--steps",
        type=options.between(int, 1),
        help="instead, of each run in steps: then the machine's load makes no difference",
    )
    sub.add_argument(
        "--seeds", type=options.between(int, 1, 101), default=2, help="runs of each variant"
    )
    sub.add_argument(
        "--initial",
        metavar="WEIGHTS",
        help="a name or a path: train the fine stage alone and anew behind the rest of these "
        "weights, which takes its variants (full, bins-*, one-way, no-selection, gaussian, l1, l2)",
    )
    sub.add_argument("--textures", type=Path, help="folder of photos for the rendered pairs")
    sub.add_argument("--threads", type=options.between(int, 1, 1025), help="threads of the CPU")


def _ablate(args: argparse.Namespace) -> None:
    try:
        from edm_hloc.training import ablation
    except ModuleNotFoundError as error:
        raise missing_library("Training", error, "train") from None
    import torch

    make_folder(args.out)
    minutes = None if args.steps else args.minutes
    textures = None if args.textures is None else str(args.textures)
    base = ablation.ablation_base(minutes, args.steps, textures, args.initial)
    everything = ablation.VARIANTS if args.initial is None else ablation.FINE_VARIANTS
    names = list(everything) if args.variants == "all" else args.variants.split(",")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    length = f"{args.steps} steps" if args.steps else f"{args.minutes:g} minutes"
    print(f"Training    variants: {len(names)}, seeds: {args.seeds}, length of a run: {length}")
    stripped = [name.strip() for name in names]
    rows = ablation.run_ablation(stripped, base, range(args.seeds), args.out)
    print(ablation.ablation_table(rows))
    print(f"Written     {args.out / 'ablation.md'} and ablation.csv, beside the runs")

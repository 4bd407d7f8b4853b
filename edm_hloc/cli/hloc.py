"""`edm-hloc hloc`, `doctor` and `repair-database`: working with an installed hloc."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from edm_hloc.cli import options
from edm_hloc.cli.streams import complain

UNSAFE_TO_INTERRUPT = ("match_dense", "pipelines.Aachen_v1_1.pipeline_loftr")
"""Modules of hloc that take the unfinished pairs of an interrupted run for finished ones."""


def register(command: options.AddCommand) -> None:
    sub = command("hloc", _hloc, "run a module of hloc that can use EDM and EfficientLoFTR")
    sub.add_argument(
        "module", metavar="MODULE", help="name of the module, for instance match_dense"
    )
    sub.add_argument(
        "arguments",
        type=str,  # also empty ones
        nargs=argparse.REMAINDER,
        metavar="...",
        help="arguments of the module",
    )

    command(
        "doctor", _doctor, "show what is installed and which known breakages of hloc apply to it"
    )

    sub = command(
        "repair-database", _repair_database, "repair a COLMAP database that hloc wrote, in place"
    )
    sub.add_argument("database", type=Path, metavar="DATABASE", help="hloc's database.db")


def _hloc(args: argparse.Namespace) -> None:
    from edm_hloc.interop.hloc_plugin import run_module

    module = args.module.removeprefix("hloc.")
    try:
        run_module(module, args.arguments)
    except KeyboardInterrupt:
        again = " Delete its match file first, or pairs stay unfinished." * (
            module in UNSAFE_TO_INTERRUPT
        )
        complain(f"\nedm-hloc: hloc.{module} was interrupted.{again}")
        raise SystemExit(130) from None


def _doctor(args: argparse.Namespace) -> None:
    from edm_hloc.interop.doctor import diagnose

    found = diagnose()
    for name, version in found.versions.items():
        print(f"{name:<14}{version or 'not installed'}")
    for breakage in found.breakages:
        print()
        for label, text in (("Problem", breakage.problem), ("Remedy", breakage.remedy)):
            print(textwrap.fill(f"{label:<14}{text}", 100, subsequent_indent=" " * 14))
    if not found.breakages:
        print("\nNo known breakage applies.")


def _repair_database(args: argparse.Namespace) -> None:
    from edm_hloc.interop.repair import repair_database

    done = repair_database(args.database)
    if not done.repaired:
        print(f"Nothing to repair: {done.pairs:,} verified pairs, all with a configuration.")
        return
    print(f"Repaired    {done.repaired:,} of {done.pairs:,} pairs, {done.matches:,} matches")
    print(f"Written     {args.database}")

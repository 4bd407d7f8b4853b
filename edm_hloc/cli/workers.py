"""Options that spread a command over many workers: --workers, --ray and --shards."""

from __future__ import annotations

import argparse
import importlib.util

from edm_hloc.base.errors import missing_library
from edm_hloc.cli import options


def add_workers(sub: argparse.ArgumentParser) -> None:
    """Add --workers and --ray, which `options.matching_config` reads."""
    sub.add_argument(
        "--workers",
        type=_number_of_workers,
        metavar="N",
        help="processes that match side by side, each on a GPU of its own if there are several; "
        "auto: one for each GPU. On a CPU one process uses all cores. With --ray: number of its "
        "workers, by default as many as there is room for",
    )
    sub.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="match on a Ray cluster, whose computers see photos and output under the same paths; "
        "auto: the one this computer belongs to; local: one that is started here",
    )


def check_ray(args: argparse.Namespace) -> None:
    """Raises EdmHlocError if Ray is asked for and not installed: before the steps without it."""
    if getattr(args, "ray", None) is not None and importlib.util.find_spec("ray") is None:
        raise missing_library("--ray", ModuleNotFoundError(name="ray"), "ray")


def add_shards(sub: argparse.ArgumentParser) -> None:
    """Add --shards, which `options.matching_config` reads."""
    sub.add_argument(
        "--shards",
        type=options.between(int, 1, 10**6),
        metavar="N",
        help="leave the steps that take long to other computers: plan the next one in N shards and "
        "end with exit code 3; after edm-hloc match-shard has done them, the same command goes on",
    )


def _number_of_workers(text: str) -> int | str:
    return text if text == "auto" else options.between(int, 1, 1000)(text)

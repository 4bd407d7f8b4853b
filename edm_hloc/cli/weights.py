"""`edm-hloc weights`: list, download or check trained weights."""

from __future__ import annotations

import argparse

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options


def register(command: options.AddCommand) -> None:
    sub = command("weights", _weights, "list, download or check trained weights")
    sub.add_argument(
        "action",
        choices=("list", "pull", "verify"),
        help="list the known weights, download some (pull), or check their SHA-256 (verify)",
    )
    sub.add_argument("name", nargs="?", help="name of the weights, for pull and verify")


def _weights(args: argparse.Namespace) -> None:
    from edm_hloc.models.registry import REGISTRY

    if args.action != "list" and args.name is None:
        raise EdmHlocError(f"Which weights? Known names: {', '.join(REGISTRY)}.")
    if args.action == "list":
        for entry in REGISTRY.values():
            state = f"at {entry.path}" if entry.path.is_file() else "not on this computer"
            print(f"{entry.name:<12}{entry.architecture:<7}{entry.licence:<12}{state}")
            print(f"{'':<12}{entry.description}")
        return
    from edm_hloc.models import weights  # and torch

    if args.action == "pull":
        print(f"Weights     {args.name} are at {weights.pull(args.name)}")
    else:
        print(f"Weights     {args.name} are as they should be: SHA-256 {weights.verify(args.name)}")

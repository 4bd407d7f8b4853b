"""The command `edm-hloc train`: its arguments, and the configuration of the run they describe."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.training.config import PRESETS, RealData, load_config

_MOST_THREADS = 1024


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line; without `argv` those of the process."""
    parser = argparse.ArgumentParser(prog="edm-hloc train", description="Train EDM.")
    parser.add_argument(
        "config", nargs="?", default="edm_s", help=f"JSON file or preset ({', '.join(PRESETS)})"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the run's files")
    parser.add_argument("--minutes", type=float, help="length of the run by the clock")
    parser.add_argument("--steps", type=int, help="length of the run in steps")
    parser.add_argument("--textures", help="folder of photos, or packed texture bank")
    parser.add_argument("--initial", help="checkpoint, or weights by path or name, to start from")
    parser.add_argument("--colmap", metavar="MODEL", help="a COLMAP model to train on")
    parser.add_argument("--images", metavar="DIR", help="its photos")
    parser.add_argument("--seed", type=int, help="of the weights, the data and the sampling")
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, … of Lightning Fabric")
    parser.add_argument("--devices", default="auto", help="number of devices")
    parser.add_argument("--threads", type=int, help="threads of the CPU in each process")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="any other setting, such as --set learning_rate=1e-3 or --set origin=corner",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; see `parse_arguments`.

    Raises:
        EdmHlocError: an argument is wrong, or see `run_training`.
    """
    arguments = parse_arguments(argv)
    names = ("minutes", "steps", "textures", "initial", "seed")
    overrides: dict[str, Any] = {
        n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None
    }
    if "minutes" in overrides or "steps" in overrides:  # the one given replaces the preset's
        overrides = {"minutes": None, "steps": None, **overrides}
    if (arguments.colmap is None) != (arguments.images is None):
        raise EdmHlocError("--colmap (the model) and --images (its photos) go together")
    if arguments.colmap is not None:
        data = RealData("colmap", arguments.images, arguments.colmap, share=0.75)
        overrides["real"] = [dataclasses.asdict(data)]
    for setting in arguments.set:
        name, _, value = setting.partition("=")
        earlier: Any = overrides.get(name)
        try:
            given = json.loads(value)
        except (ValueError, RecursionError):
            given = value
        both = isinstance(given, dict) and isinstance(earlier, dict)
        overrides[name] = earlier | given if both else given
    config = load_config(arguments.config, overrides)
    if arguments.threads is not None and not 1 <= arguments.threads <= _MOST_THREADS:
        raise EdmHlocError(
            f"--threads must be from 1 to {_MOST_THREADS:,}, not {arguments.threads}"
        )
    # Lightning takes long to import, and neither --help nor a wrong setting needs it.
    import torch

    from edm_hloc.training.trainer import run_training

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    devices = int(arguments.devices) if str(arguments.devices).isdigit() else arguments.devices
    run_training(config, arguments.out, accelerator=arguments.accelerator, devices=devices)

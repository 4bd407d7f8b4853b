"""Train EDM: a loop over Lightning Fabric that can be killed and resumed at any time.

    python -m edm_hloc.training.trainer edm_s --minutes 25 --textures PHOTOS --out RUN

writes to RUN: config.json, checkpoint.pt, training.csv, validation.csv, curves.png and
weights.safetensors (averaged weights in half precision).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.version import __version__
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import EDMConfig
from edm_hloc.models.weights import config_from_json, metadata_of, read_state, stored_config
from edm_hloc.training.config import PRESETS, RealData, TrainConfig, load_config
from edm_hloc.training.curves import CurveFile, draw_curves
from edm_hloc.training.ema import averaged_copy, update_average
from edm_hloc.training.export import export_weights
from edm_hloc.training.sources import (
    BatchSource,
    Prefetcher,
    add_real,
    build_synthetic,
    mix_seeds,
)
from edm_hloc.training.step import PairBatch, TrainingStep, initialise
from edm_hloc.training.validation import RealPair, load_real_pairs, validate, validate_real

logger = logging.getLogger(__name__)

ROWS_PER_RUN = 400  # of training.csv, at most about
MAX_SKIPPED = 50  # steps in a row without a finite gradient
STREAM_DATA, STREAM_STEP, STREAM_SHAPE, STREAM_VALIDATION, STREAM_WEIGHTS = range(5)
BUDGET = ("minutes", "steps")  # may differ when a run is resumed


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        model: averaged weights, in evaluation mode.
        steps, pairs: since the start, over all resumes and processes.
        hours: likewise.
        validation: the last one's numbers.
    """

    model: EDM
    steps: int
    pairs: int
    hours: float
    validation: dict[str, float]


@dataclasses.dataclass
class _Progress:
    step: int = 0
    pairs: int = 0
    seconds: float = 0.0
    skipped: int = 0
    earlier_pairs: int = 0  # in the runs whose weights this one started from
    earlier_seconds: float = 0.0


class _Clock:
    """Seconds of training, over all resumes."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


def run_training(
    config: TrainConfig,
    out: Path,
    *,
    source: BatchSource | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    stop_after_steps: int | None = None,
) -> TrainResult:
    """Train a network, or continue where a run in `out` was interrupted.

    The learning rate and the image sizes follow the share of the budget that is spent, so that
    a run by the clock is annealed in time on any machine.

    Args:
        config: the run. Exactly one of `minutes` and `steps` is its budget.
        out: directory of the run's files.
        source: of training and validation pairs; by default as `config` says.
        accelerator, devices: of Lightning Fabric.
        stop_after_steps: interrupt the run there, as a kill after a checkpoint would.

    Raises:
        EdmHlocError: for a malformed configuration, if `out` holds a run with another one, or
            if the loss diverges.
    """
    if (config.minutes is None) == (config.steps is None):
        raise EdmHlocError("give a training run its length: either minutes or steps")
    try:
        fabric = Fabric(accelerator=accelerator, devices=devices, precision=config.precision)  # type: ignore[arg-type]
    except Exception as error:  # Lightning raises almost anything
        raise EdmHlocError(
            f"cannot train with accelerator {accelerator!r}, devices {devices!r} and precision "
            f"{config.precision!r}: {error}"
        ) from error
    fabric.launch()
    torch.manual_seed(mix_seeds(config.seed, STREAM_WEIGHTS))
    model = EDM(config.model)
    initialise(model)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = averaged_copy(model)
    progress = _Progress()

    out.mkdir(parents=True, exist_ok=True)
    checkpoint = _read_checkpoint(out / "checkpoint.pt", config)
    if checkpoint is not None:
        progress = _Progress(**checkpoint["progress"])
        model.load_state_dict(checkpoint["model"])
        average.load_state_dict(checkpoint["average"])
        logger.info("resuming %s at step %d", out, progress.step)
    elif config.initial is not None:
        earlier = _load_initial(Path(config.initial), model, average)
        progress.earlier_pairs = earlier.pairs + earlier.earlier_pairs
        progress.earlier_seconds = earlier.seconds + earlier.earlier_seconds
    module, optimizer = fabric.setup(TrainingStep(model, config), _optimizer(model, config))
    if checkpoint is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    average = average.to(fabric.device)

    synthetic = source or build_synthetic(config, fabric.device)
    training = synthetic if source else add_real(config, synthetic)
    run = _Run(
        config, out, fabric, module, model, average, optimizer, training, synthetic, progress
    )
    return run.train(stop_after_steps)


class _Run:
    """The loop and its periodic duties."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        fabric: Fabric,
        module: nn.Module,
        model: EDM,
        average: EDM,
        optimizer: torch.optim.Optimizer,
        source: BatchSource,
        validation_source: BatchSource,
        progress: _Progress,
    ) -> None:
        self.config, self.out, self.fabric, self.source = config, out, fabric, source
        self.module, self.model, self.average = module, model, average
        self.optimizer, self.progress = optimizer, progress
        self.validation_source = validation_source
        self.clock = _Clock(progress.seconds)
        self.real_pairs: list[RealPair] = []
        if config.validation_pairs is not None and config.validation_images is not None:
            self.real_pairs = load_real_pairs(
                Path(config.validation_pairs), Path(config.validation_images)
            )
        self.last_validation: dict[str, float] = {}
        self.saved_step = -1
        if fabric.is_global_zero:
            # Made before training draws from the same source in another thread.
            self.validation_batches = [
                self._validation_set(i, *shape)
                for i, shape in enumerate(config.validation_sets if config.validations else ())
            ]
            self.training_curve = CurveFile(out / "training.csv", progress.step)
            self.validation_curve = CurveFile(out / "validation.csv", progress.step)
            (out / "config.json").write_text(config.to_json() + "\n")

    def share(self, step: int) -> float:
        """Share of the budget that is spent before `step`; of the clock, now."""
        if self.config.steps is not None:
            return step / self.config.steps
        assert self.config.minutes is not None
        return self.clock.seconds / (60 * self.config.minutes)

    def make_batch(self, step: int) -> PairBatch:
        seed = self.config.seed
        shape_rng = np.random.default_rng((seed, STREAM_SHAPE, step))  # the same on all processes
        shape = self.config.batch_shape(self.share(step), shape_rng)
        return self.source.batch(
            *shape, seed=mix_seeds(seed, STREAM_DATA, self.fabric.global_rank, step)
        )

    def train(self, stop_after_steps: int | None) -> TrainResult:
        config, progress = self.config, self.progress
        share = self.share(progress.step)
        bar = tqdm(
            total=100,
            desc="training",
            unit="%",
            disable=None if self.fabric.is_global_zero else True,
            bar_format="{desc} {n:.1f}%|{bar}| {elapsed} {postfix}",
        )
        duties = {  # name: (times in the run, the last share at which it was done)
            "row": [ROWS_PER_RUN, share],
            "checkpoint": [config.checkpoints, share],
            "validation": [config.validations, share],
        }
        skipped_in_row, totals = 0, _Totals()
        with bar, Prefetcher(self.make_batch, progress.step) as batches:
            while share < 1.0 and progress.step != stop_after_steps:
                loss, metrics = self.step(next(batches), share)
                progress.step += 1
                progress.pairs += metrics.pop("pairs") * self.fabric.world_size
                skipped_in_row = skipped_in_row + 1 if metrics.pop("skipped") else 0
                if skipped_in_row > MAX_SKIPPED:
                    raise EdmHlocError(
                        f"training diverged: no finite gradient since {MAX_SKIPPED} steps; "
                        "lower the learning rate and start from an earlier checkpoint"
                    )
                totals.add({"loss": loss, **metrics})
                share = self.fabric.broadcast(self.share(progress.step))
                progress.seconds = self.clock.seconds
                if self._due(duties["row"], share):
                    row = totals.mean()
                    self._log(row, share, totals)
                    bar.set_postfix_str(f"loss {row['loss']:.3f} fine {row['fine_error']:.2f} px")
                    totals = _Totals()
                bar.update(100 * min(share, 1.0) - bar.n)
                if self._due(duties["validation"], share):
                    self.validate()
                if self._due(duties["checkpoint"], share):
                    self.save()
        if progress.step != self.saved_step:
            self.save()
        return TrainResult(
            self.average,
            progress.step,
            progress.pairs,
            progress.seconds / 3600,
            self.last_validation,
        )

    @staticmethod
    def _due(duty: list[float], share: float) -> bool:
        times, last = duty
        due = math.floor(share * times) > math.floor(last * times)
        duty[1] = share
        return due

    def step(self, batch: PairBatch, share: float) -> tuple[torch.Tensor, dict[str, Any]]:
        config, step = self.config, self.progress.step
        batch = batch.to(self.fabric.device)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(share)
        rng = np.random.default_rng((config.seed, STREAM_STEP, step))
        longest = max(batch.image0.shape[-2:])
        seed = mix_seeds(config.seed, STREAM_STEP, self.fabric.global_rank, step)
        loss, metrics = self.module(batch, config.draw_position_scale(longest, rng), seed)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=config.clip, error_if_nonfinite=False
        )
        assert norm is not None
        # The norm is of the mean gradient over all processes, so that all decide alike.
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
            update_average(self.average, self.model, config.ema, step)
        else:
            self.progress.skipped += 1
        return loss.detach(), {**metrics, "pairs": len(batch.image0), "skipped": not finite}

    def _log(self, row: dict[str, float], share: float, totals: _Totals) -> None:
        if not self.fabric.is_global_zero:
            return
        progress = self.progress
        self.training_curve.add(
            {
                "step": progress.step,
                "pairs": progress.pairs,
                "minutes": progress.seconds / 60,
                "share": share,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                **row,
                "pairs_per_s": totals.steps * progress.pairs / progress.step / totals.seconds,
                "skipped": progress.skipped,
            }
        )

    def validate(self) -> None:
        """Validate the averaged weights on the fixed pairs; on the first process alone."""
        if not self.fabric.is_global_zero:
            return
        config = self.config
        self.last_validation = {}
        for (_, height, width), batches in zip(
            config.validation_sets, self.validation_batches, strict=True
        ):
            result = validate(self.average, batches, config.threshold, config.refined)
            self.last_validation |= {f"{k}_{width}x{height}": v for k, v in result.items()}
        if self.real_pairs:
            real = validate_real(self.average, self.real_pairs, config.threshold)
            self.last_validation |= {f"{k}_real": v for k, v in real.items()}
        progress = self.progress
        self.validation_curve.add(
            {
                "step": progress.step,
                "pairs": progress.pairs,
                "minutes": progress.seconds / 60,
                **self.last_validation,
            }
        )
        logger.info("step %d: %s", progress.step, self.last_validation)

    def _validation_set(self, number: int, pairs: int, height: int, width: int) -> list[PairBatch]:
        """Pairs that depend on the size and not on the run's seed, in batches of two."""
        return [
            self.validation_source.batch(
                2, height, width, seed=mix_seeds(STREAM_VALIDATION, number, i)
            ).to(self.fabric.device)
            for i in range(math.ceil(pairs / 2))
        ]

    def save(self) -> None:
        """Write checkpoint, weights and the picture, each whole or not at all."""
        progress = self.progress
        self.saved_step = progress.step
        if not self.fabric.is_global_zero:
            return
        content = {
            "config": self.config.to_json(),
            "progress": dataclasses.asdict(progress),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.out / "checkpoint.tmp"
        torch.save(content, temporary)
        temporary.replace(self.out / "checkpoint.pt")
        export_weights(
            self.average,
            self.out / "weights.safetensors",
            {
                "format": "pt",
                **metadata_of(self.config.model, self.config.threshold, "centre"),
                "training": json.dumps(dataclasses.asdict(self.config)),
                "steps": progress.step,
                "pairs": progress.pairs + progress.earlier_pairs,
                "hours": round((progress.seconds + progress.earlier_seconds) / 3600, 3),
                "seed": self.config.seed,
                "edm_hloc": __version__,
            },
        )
        draw_curves(self.out)


class _Totals:
    """Running means of scalars, left on their device until asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self.steps = 0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def add(self, values: dict[str, torch.Tensor]) -> None:
        self.steps += 1
        for name, value in values.items():
            value = value.double().nan_to_num(0.0)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def mean(self) -> dict[str, float]:
        return {name: float(total) / self.steps for name, total in self._sums.items()}


def _optimizer(model: EDM, config: TrainConfig) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def _read_checkpoint(path: Path, config: TrainConfig) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        then = json.loads(checkpoint["config"])
    except Exception as error:
        raise EdmHlocError(f"{path} is not a checkpoint of edm_hloc: {error}") from error
    now, defaults = json.loads(config.to_json()), json.loads(TrainConfig().to_json())
    differing = [k for k in now if k not in BUDGET and now[k] != then.get(k, defaults[k])]
    if differing:
        raise EdmHlocError(
            f"{path} belongs to a run with other settings ({', '.join(differing)}); choose another "
            "output directory, and name the checkpoint as `initial` to start from its weights"
        )
    return checkpoint


def _load_initial(path: Path, model: EDM, average: EDM) -> _Progress:
    """Load weights; gives what is known of the training behind them."""
    progress = _Progress()
    try:
        if path.suffix == ".safetensors":
            state, known = read_state(path)
            average_state, network = state, stored_config(known, path)
            progress.pairs = int(known.get("pairs", 0))
            progress.seconds = 3600 * float(known.get("hours", 0))
        else:
            state, average_state, network, progress = _read_run(path)
        if network is not None:
            _check_network(network, model.config)
        model.load_state_dict(state)
        average.load_state_dict(average_state)
    except Exception as error:
        raise EdmHlocError(f"cannot start training from {path}: {error}") from error
    return progress


def _read_run(path: Path) -> tuple[dict[str, Any], dict[str, Any], EDMConfig, _Progress]:
    """Weights, their average, network and progress of a checkpoint."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        network = config_from_json(json.dumps(json.loads(checkpoint["config"])["model"]))
        progress = _Progress(**checkpoint["progress"])
        return checkpoint["model"], checkpoint["average"], network, progress
    except OSError:
        raise
    except Exception as error:  # torch.load raises almost anything
        raise EdmHlocError("it is damaged, or no checkpoint.pt of a training run") from error


def _check_network(theirs: EDMConfig, ours: EDMConfig) -> None:
    """Refuse weights of another network, even where their shapes fit."""
    # Another size of the training images changes no weight's meaning.
    theirs = dataclasses.replace(theirs, train_size=ours.train_size)
    then, now = dataclasses.asdict(theirs), dataclasses.asdict(ours)
    differing = json.dumps({k: v for k, v in then.items() if v != now[k]})
    if theirs != ours:
        raise EdmHlocError(f"they are of another network; train it with --set 'model={differing}'")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edm-hloc train", description="Train EDM.")
    parser.add_argument(
        "config", nargs="?", default="edm_s", help=f"JSON file or preset ({', '.join(PRESETS)})"
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the run's files")
    parser.add_argument("--minutes", type=float, help="length of the run by the clock")
    parser.add_argument("--steps", type=int, help="length of the run in steps")
    parser.add_argument("--textures", help="folder of photos, or packed texture bank")
    parser.add_argument("--initial", help="checkpoint or safetensors to start from")
    parser.add_argument("--colmap", metavar="MODEL", help="a COLMAP model to train on")
    parser.add_argument("--images", metavar="DIR", help="its photos")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--accelerator", default="auto", help="cpu, cuda, … of Lightning Fabric")
    parser.add_argument("--devices", default="auto", help="how many")
    parser.add_argument("--threads", type=int, help="of the CPU, for each process")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="any other setting, such as --set learning_rate=1e-3",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the trainer; see `parse_arguments`."""
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
        try:
            overrides[name] = json.loads(value)
        except ValueError:
            overrides[name] = value
    config = load_config(arguments.config, overrides)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    devices = int(arguments.devices) if str(arguments.devices).isdigit() else arguments.devices
    run_training(config, arguments.out, accelerator=arguments.accelerator, devices=devices)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()

"""Training of EDM: a loop over Lightning Fabric that can be interrupted and resumed at any time.

A run writes to its folder: config.json, checkpoint.pt, training.csv, validation.csv, curves.png and
weights.safetensors (the averaged weights in half precision).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, make_folder, write_whole
from edm_hloc.base.progress import StepProgress
from edm_hloc.base.stopping import StopRequest
from edm_hloc.base.version import __version__
from edm_hloc.models.edm import EDM
from edm_hloc.models.weights_file import metadata_of
from edm_hloc.training.checkpoint import (
    Progress,
    TrainingState,
    check_checkpoint,
    load_initial,
    read_checkpoint,
    reading_checkpoint,
    refuse_foreign_folder,
    save_checkpoint,
)
from edm_hloc.training.config import TrainConfig
from edm_hloc.training.curves import CurveFile, draw_curves
from edm_hloc.training.ema import averaged_copy, update_average
from edm_hloc.training.export import export_weights
from edm_hloc.training.sources import (
    BatchSource,
    Prefetcher,
    build_mixture,
    build_synthetic,
    mix_seeds,
)
from edm_hloc.training.step import PairBatch, TrainingStep, initialise
from edm_hloc.training.validation import RealPair, load_real_pairs, validate, validate_real

logger = logging.getLogger(__name__)

ROWS_PER_RUN = 400  # of training.csv, at most about
MAX_SKIPPED = 50  # steps in a row without a finite gradient
STREAM_DATA, STREAM_STEP, STREAM_SHAPE, STREAM_VALIDATION, STREAM_WEIGHTS = range(5)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """Result of a run, over all resumes and processes.

    Attributes:
        model: the network with the averaged weights, in evaluation mode.
        steps, pairs: number of optimiser steps and of training pairs.
        validation: figures of the last validation.
    """

    model: EDM
    steps: int
    pairs: int
    validation: dict[str, float]


def run_training(
    config: TrainConfig,
    out: Path,
    *,
    source: BatchSource | None = None,
    accelerator: str = "auto",
    devices: int | str = "auto",
    stop_after_steps: int | None = None,
) -> TrainResult:
    """Trains a network, or continues an interrupted run.

    The learning rate and the image sizes depend on the share of the run's length that has passed,
    so that a run of a given time ends at a learning rate of zero on any machine.

    Args:
        config: the run. Exactly one of `minutes` and `steps` gives its length.
        out: folder of the run's files; if it holds a checkpoint, the run continues from there.
        source: of training and validation pairs; by default as `config` says.
        accelerator, devices: of Lightning Fabric.
        stop_after_steps: ends the call after this step, as if the run were interrupted there.

    Raises:
        EdmHlocError: the configuration is malformed, `out` holds a run with another one or files
            that are of no run, another process trains into it, or the loss diverges.
        KeyboardInterrupt: the user or a scheduler (SIGTERM) asked it to end. The step that was
            begun is finished and saved before.
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
    make_folder(out)
    # before `launch`, which starts the other processes; these run this function as well
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    with FolderLock(out) if first else nullcontext():
        if first:
            refuse_foreign_folder(out)
        fabric.launch()
        state = _initial_state(config, out, fabric)
        if source is None:
            rendered = build_synthetic(config, fabric.device)
            run = _Run(config, out, fabric, state, build_mixture(config, rendered), rendered)
        else:
            run = _Run(config, out, fabric, state, source, source)
        return run.train(stop_after_steps)


def _initial_state(config: TrainConfig, out: Path, fabric: Fabric) -> TrainingState:
    """The state from which the run starts, or that of its checkpoint."""
    torch.manual_seed(mix_seeds(config.seed, STREAM_WEIGHTS))
    model = EDM(config.model)
    initialise(model)
    # oneDNN corrupts the heap in the backward pass of a strided 1×1 convolution of fewer channels.
    if fabric.device.type != "cpu" or min(config.model.widths) >= 16:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = averaged_copy(model)
    progress = Progress()
    path = out / "checkpoint.pt"
    checkpoint = read_checkpoint(path, config)
    if checkpoint is not None:
        with reading_checkpoint(path):
            progress = Progress(**checkpoint["progress"])
            check_checkpoint(checkpoint, path)
            model.load_state_dict(checkpoint["model"])
            average.load_state_dict(checkpoint["average"])
        logger.info("resuming %s at step %d", out, progress.step)
    elif config.initial is not None:
        anew = config.trained == "fine-anew"
        earlier = load_initial(config.initial, model, average, config.origin, anew)
        progress.earlier_pairs = earlier.pairs + earlier.earlier_pairs
        progress.earlier_seconds = earlier.seconds + earlier.earlier_seconds
    if config.trained != "all":  # the rest stays as it is exported: no gradient, no statistics
        for part, kept in ((model.backbone, average.backbone), (model.neck, average.neck)):
            part.load_state_dict(kept.state_dict())
            part.requires_grad_(False).eval()
    optimizer = _optimizer(model, config)
    if config.residual in ("l1", "l2"):  # no use of the flow, for which other processes would wait
        model.fine_matching.flow.requires_grad_(False)
    module, optimizer = fabric.setup(TrainingStep(model, config), optimizer)
    if checkpoint is not None:
        with reading_checkpoint(path):
            optimizer.load_state_dict(checkpoint["optimizer"])
    return TrainingState(module, model, average.to(fabric.device), optimizer, progress)


def _optimizer(model: EDM, config: TrainConfig) -> torch.optim.AdamW:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


class _Run:
    """The training loop with its periodic validation and saving."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        fabric: Fabric,
        state: TrainingState,
        training: BatchSource,
        validation: BatchSource,
    ) -> None:
        self.config, self.out, self.fabric, self.source = config, out, fabric, training
        self.state, self.progress = state, state.progress
        self.clock = _Clock(state.progress.seconds)  # anew where training starts
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
                [batch.to(fabric.device) for batch in _validation_set(validation, i, *shape)]
                for i, shape in enumerate(config.validation_sets if config.validations else ())
            ]
            self.training_curve = CurveFile(out / "training.csv", self.progress.step)
            self.validation_curve = CurveFile(out / "validation.csv", self.progress.step)
            write_whole(out / "config.json", config.to_json() + "\n")

    def train(self, stop_after_steps: int | None) -> TrainResult:
        """Trains until the end of the run, or until the given step."""
        config, progress = self.config, self.progress
        self.fabric.barrier()  # until the first process has made the validation pairs
        self.clock = _Clock(progress.seconds)
        share = self.share(progress.step)
        shown, begun = self.fabric.is_global_zero, 100 * min(share, 1.0)
        bar = StepProgress("Training", "%", 100, before=begun, shown=shown)
        row_due, checkpoint_due, validation_due = (
            _Schedule(times, share)
            for times in (ROWS_PER_RUN, config.checkpoints, config.validations)
        )
        skipped_in_row, means, stopped = 0, _RunningMeans(), False
        said = "Training ends with this step and saves it; Ctrl-C again ends it now."
        stop = StopRequest(said if shown else None)
        with stop, bar, Prefetcher(self.make_batch, progress.step) as batches:
            while share < 1.0 and progress.step != stop_after_steps and not stopped:
                loss, metrics = self.step(next(batches), share)
                progress.step += 1
                progress.pairs += metrics.pop("pairs") * self.fabric.world_size
                skipped_in_row = skipped_in_row + 1 if metrics.pop("skipped") else 0
                if skipped_in_row > MAX_SKIPPED:
                    raise EdmHlocError(
                        f"training diverged: no finite gradient since {MAX_SKIPPED} steps; "
                        "lower the learning rate and start from an earlier checkpoint"
                    )
                means.add({"loss": loss, **metrics})
                share, stopped = self.fabric.broadcast((self.share(progress.step), stop.requested))
                progress.seconds = self.clock.seconds
                if row_due(share):
                    row = means.values()
                    self.add_row(row, share, means)
                    bar.note = f"loss {row['loss']:.3f} fine {row['fine_error']:.2f} px"
                    means = _RunningMeans()
                bar.update(100 * min(share, 1.0) - bar.done)
                if validation_due(share):
                    self.validate()
                if checkpoint_due(share):
                    self.save()
        if progress.step != self.saved_step:
            self.save()
        if stopped and share < 1.0:
            raise KeyboardInterrupt
        return TrainResult(
            self.state.average,
            progress.step,
            progress.pairs,
            self.last_validation,
        )

    def share(self, step: int) -> float:
        """Share of the run's length that has passed: before `step`, or by the clock."""
        if self.config.steps is not None:
            return step / self.config.steps
        assert self.config.minutes is not None
        return self.clock.seconds / (60 * self.config.minutes)

    def make_batch(self, step: int) -> PairBatch:
        """The batch of this process for a step."""
        seed = self.config.seed
        shape_rng = np.random.default_rng((seed, STREAM_SHAPE, step))  # the same on all processes
        shape = self.config.batch_shape(self.share(step), shape_rng)
        return self.source.batch(
            *shape, seed=mix_seeds(seed, STREAM_DATA, self.fabric.global_rank, step)
        )

    def step(self, batch: PairBatch, share: float) -> tuple[torch.Tensor, dict[str, Any]]:
        """One optimiser step: the loss and the figures of `TrainingStep`, pairs and skipped."""
        config, step, state = self.config, self.progress.step, self.state
        batch = batch.to(self.fabric.device)
        for group in state.optimizer.param_groups:
            group["lr"] = config.learning_rate_at(share)
        rng = np.random.default_rng((config.seed, STREAM_STEP, step))
        longest = max(batch.image0.shape[-2:])
        seed = mix_seeds(config.seed, STREAM_STEP, self.fabric.global_rank, step)
        buffers = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
        loss, metrics = state.module(batch, config.draw_position_scale(longest, rng), seed)
        state.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            state.module, state.optimizer, max_norm=config.clip, error_if_nonfinite=False
        )
        assert norm is not None
        # The norm is of the mean gradient over all processes, so that all decide alike.
        finite = bool(torch.isfinite(norm))
        if finite:
            state.optimizer.step()
            update_average(state.average, state.model, config.ema, step)
        else:  # what spoilt the gradient is in the statistics of normalisation as well
            state.model.load_state_dict(buffers, strict=False)
            self.progress.skipped += 1
        return loss.detach(), {**metrics, "pairs": len(batch.image0), "skipped": not finite}

    def add_row(self, row: dict[str, float], share: float, means: _RunningMeans) -> None:
        """Appends a row to training.csv; on the first process alone."""
        if not self.fabric.is_global_zero:
            return
        progress = self.progress
        self.training_curve.add(
            {
                "step": progress.step,
                "pairs": progress.pairs,
                "minutes": progress.seconds / 60,
                "share": share,
                "learning_rate": self.state.optimizer.param_groups[0]["lr"],
                **row,
                "pairs_per_s": means.steps * progress.pairs / progress.step / means.seconds,
                "skipped": progress.skipped,
            }
        )

    def validate(self) -> None:
        """Validates the averaged weights on the fixed pairs; on the first process alone."""
        if not self.fabric.is_global_zero:
            return
        config, average, progress = self.config, self.state.average, self.progress
        self.last_validation = {}
        for (_, height, width), batches in zip(
            config.validation_sets, self.validation_batches, strict=True
        ):
            result = validate(average, batches, config.threshold, config.refined)
            self.last_validation |= {f"{k}_{width}x{height}": v for k, v in result.items()}
        if self.real_pairs:
            real = validate_real(average, self.real_pairs, config.threshold, config.origin)
            self.last_validation |= {f"{k}_real": v for k, v in real.items()}
        self.validation_curve.add(
            {
                "step": progress.step,
                "pairs": progress.pairs,
                "minutes": progress.seconds / 60,
                **self.last_validation,
            }
        )
        logger.info("step %d: %s", progress.step, self.last_validation)

    def save(self) -> None:
        """Writes checkpoint, weights and curves; on the first process alone."""
        progress = self.progress
        self.saved_step = progress.step
        if not self.fabric.is_global_zero:
            return
        save_checkpoint(self.out / "checkpoint.pt", self.config, self.state)
        export_weights(
            self.state.average,
            self.out / "weights.safetensors",
            {
                "format": "pt",
                **metadata_of(self.config.model, self.config.threshold, self.config.origin),
                "training": json.dumps(dataclasses.asdict(self.config.without_folders())),
                "steps": progress.step,
                "pairs": progress.pairs + progress.earlier_pairs,
                "hours": round((progress.seconds + progress.earlier_seconds) / 3600, 3),
                "seed": self.config.seed,
                "edm_hloc": __version__,
            },
        )
        draw_curves(self.out)


def _validation_set(
    source: BatchSource, number: int, pairs: int, height: int, width: int
) -> list[PairBatch]:
    """Pairs that depend on their size and not on the run's seed, in batches of two."""
    return [
        source.batch(2, height, width, seed=mix_seeds(STREAM_VALIDATION, number, i))
        for i in range(math.ceil(pairs / 2))
    ]


class _Clock:
    """Seconds of training, over all resumes."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class _Schedule:
    """Whether something is due that is to be done a number of times, evenly over the run."""

    def __init__(self, times: int, share: float) -> None:
        self._times, self._last = times, share

    def __call__(self, share: float) -> bool:
        due = math.floor(share * self._times) > math.floor(self._last * self._times)
        self._last = share
        return due


class _RunningMeans:
    """Means of scalars over steps; the sums stay on their device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}  # of the values, and their number
        self.steps = 0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first step of these means."""
        return time.monotonic() - self._start

    def add(self, values: dict[str, torch.Tensor]) -> None:
        """Adds the scalars of one step; those that are not finite do not count."""
        self.steps += 1
        for name, value in values.items():
            value, known = value.double(), value.isfinite().double()
            added = torch.stack([value.nan_to_num(0.0, 0.0, 0.0), known])
            self._sums[name] = self._sums[name] + added if name in self._sums else added

    def values(self) -> dict[str, float]:
        """NaN where no value was finite."""
        return {name: float(total / number) for name, (total, number) in self._sums.items()}

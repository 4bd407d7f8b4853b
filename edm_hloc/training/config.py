"""Configuration of a training run: a frozen dataclass that is stored as JSON, and presets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import Origin
from edm_hloc.base.settings import check_types, fits
from edm_hloc.base.text import read_json_object
from edm_hloc.models.types import CONFIGS, STRIDE, EDMConfig, RefinedImage

Residual = Literal["laplace", "gaussian", "l1", "l2"]
"""Distribution of the residuals, see `losses.residual_log_likelihood`."""


@dataclass(frozen=True)
class Stage:
    """Image sizes in one part of the run.

    Attributes:
        until: share of the run at which the stage ends; 1 for the last one.
        sides: smallest and largest √(width·height) in pixels; drawn log-uniformly.
        pixels: number of pixels of image 0 of all pairs in a process' batch, which decides the
            number of pairs, so that batches of all image sizes cost the same.
    """

    until: float
    sides: tuple[int, int]
    pixels: int


@dataclass(frozen=True)
class RealData:
    """A data set of real training pairs; the formats are described in `scenes`.

    Attributes:
        format: "megadepth", "scannet", "colmap" or "reconstruction".
        root: folder of the data; for the last two of the photos.
        index: folder of LoFTR's index files; for "colmap" of the model, for "reconstruction" what
            `edm-hloc reconstruct` has written.
        min_overlap: smallest overlap score of a pair in the index files.
        share: share of the training batches that come from this data set.
    """

    format: Literal["megadepth", "scannet", "colmap", "reconstruction"]
    root: str
    index: str
    min_overlap: float = 0.4
    share: float = 0.5


_LARGEST_SIDE = 4096  # px
_MOST = 10**12
_RANGES: dict[str, tuple[float, float]] = {
    "minutes": (0, 10**7),
    "steps": (0, _MOST),
    "largest_aspect": (1, 16),
    "position_scaling": (0, 1),
    "position_extent": (1, 10**6),
    "learning_rate": (0, 10**6),
    "warmup": (0, 0.99),
    "weight_decay": (0, 10**6),
    "clip": (0, _MOST),
    "ema": (0, 1),
    "focal_alpha": (0, 1),
    "focal_gamma": (0, 100),
    "wrong_weight": (0, 10**6),
    "fine_weight": (0, 10**6),
    "fine_matches": (1, 10**6),
    "true_matches": (0, 10**6),
    "tolerance": (0, 1),
    "difficulty": (0, 1),
    "repeated": (0, 1),
    "relief": (0, 1),
    "seed": (0, 2**63 - 1),
    "threshold": (0, 1),
    "validations": (0, 10**6),
    "checkpoints": (0, 10**6),
}
"""Least and largest values of the settings that are numbers; NaN is in none."""


def _check_stage(stage: Stage) -> None:
    if not fits(stage.until, float) or not fits(stage.sides, tuple[int, int]):
        raise EdmHlocError(f"a training stage needs a share and two sides in px, not {stage}")
    if not fits(stage.pixels, int) or not 0 < stage.pixels <= _MOST:
        raise EdmHlocError(f"a training stage needs a number of pixels, not {stage.pixels!r}")
    if not 0 < stage.until <= 1 or stage.sides[0] > stage.sides[1]:
        raise EdmHlocError(f"a training stage needs a share up to 1 and rising sides, not {stage}")


@dataclass(frozen=True)
class TrainConfig:
    """All settings that determine the result of a run, apart from the machine's speed.

    Attributes:
        model: configuration of the network.
        origin: where (0, 0) of the network's pixel frame lies. "centre", the default, is hloc's
            frame, in which the network's keypoints need no conversion; "corner" is that of networks
            trained on MegaDepth's intrinsics, such as the authors', for runs that start from them.
            It is stored with the weights.
        minutes: length of the run in minutes (exactly one of `minutes` and `steps` is given).
        steps: length of the run in optimiser steps.
        stages: image sizes in the course of the run.
        largest_aspect: largest ratio of width and height, and of height and width; ratios are
            drawn log-uniformly.
        position_scaling: share of the batches in which the positions of self-attention are scaled,
            so that the network learns positions beyond its training images.
        position_extent: longest side in pixels of the images whose positions the scaled ones cover.
        schedule: of the learning rate: "cosine" to 0, or "paper", halved after 8, 12, 16, 20 and 24
            thirtieths of the run.
        learning_rate: its peak.
        warmup: share of the run in which the learning rate rises linearly to its peak.
        weight_decay: of AdamW, on weights; normalisation layers and biases have none.
        clip: largest norm of the gradient.
        ema: decay per step of the moving average of the weights, which is what is exported.
        focal_alpha, focal_gamma: α and γ of the focal loss (Eq. 6).
        wrong_weight: weight of the loss of wrong matches (`losses.wrong_match_loss`), which lowers
            the probability of a cell's best match where that is surely wrong.
        fine_weight: weight of the fine stage's loss (Eq. 9).
        residual: family of the base distribution of the residuals (Eq. 7), or "l1" or "l2" for a
            plain error, with which σ says nothing and `refined` has to name an image.
        fine_matches: number of coarse matches of a pair on which the fine stage is trained.
        true_matches: minimum number of correct ones among these; wrong predictions are replaced by
            the ground truth up to it.
        tolerance: relative difference of depths above which a point counts as occluded.
        textures: folder of photos or packed texture bank; None for procedural textures.
        difficulty: range within [0, 1] from which the difficulty of the rendered pairs is drawn for
            each batch.
        repeated: share of the batches whose scenes have repeated façades and tiles on all surfaces
            and overlap little, so that many points have twins in the other image and nothing else.
        relief: share of the batches whose pairs are views of photos that became reliefs
            (`relief_pairs.ReliefSampler`); the photos are the textures.
        real: data sets of real pairs for a share of the batches; all shares sum to at most 1.
        initial: checkpoint, or weights by path or name, to start from; None for random weights.
        precision: of Lightning Fabric, such as "32-true" or "bf16-mixed".
        seed: of the weights, the data and the sampling.
        validation_sets: (number of pairs, height, width) of the rendered validation sets.
        validation_images, validation_pairs: folder of photos and list of pairs in SuperGlue's
            format `pairs_with_gt` for validation on real pairs; None for none.
        refined: image in which matches leave the grid in validation; "best" selects it by σ.
        trained: "fine" leaves all but the fine stage as it is. A step then costs a fraction, and
            the coarse matches do not change. "fine-anew" does the same, but takes the initial
            weights for the rest only: the fine stage has random ones and can be another one.
        threshold: smallest confidence of a match in the curves and in validation; it is stored with
            the weights as the threshold of inference.
        validations, checkpoints: number of validations and checkpoints, evenly over the run.
    """

    model: EDMConfig = CONFIGS["edm_s"]
    origin: Origin = "centre"
    minutes: float | None = None
    steps: int | None = None
    stages: tuple[Stage, ...] = (Stage(1.0, (160, 256), 16 * 192 * 192),)
    largest_aspect: float = 1.6
    position_scaling: float = 0.5
    position_extent: int = 1024
    schedule: Literal["cosine", "paper"] = "cosine"
    learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    clip: float = 0.5
    ema: float = 0.995
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    wrong_weight: float = 0.0
    fine_weight: float = 0.2
    residual: Residual = "laplace"
    fine_matches: int = 96
    true_matches: int = 32
    tolerance: float = 0.05
    textures: str | None = None
    difficulty: tuple[float, float] = (0.1, 0.8)
    repeated: float = 0.0
    relief: float = 0.0
    real: tuple[RealData, ...] = ()
    initial: str | None = None
    precision: str = "32-true"
    seed: int = 0
    validation_sets: tuple[tuple[int, int, int], ...] = ((24, 256, 256), (16, 480, 640))
    validation_images: str | None = None
    validation_pairs: str | None = None
    refined: RefinedImage = "best"
    trained: Literal["all", "fine", "fine-anew"] = "all"
    threshold: float = 0.2
    validations: int = 10
    checkpoints: int = 30

    def __post_init__(self) -> None:
        check_types(self, "the training setting")
        for data in self.real:
            check_types(data, "of real training data the setting")
        if self.residual in ("l1", "l2") and self.refined == "best":
            raise EdmHlocError(
                f"a training run with residual {self.residual} teaches the network no σ: set "
                "refined to image1 or image0 as well"
            )
        if self.trained == "fine-anew" and self.initial is None:
            raise EdmHlocError("a training run with trained=fine-anew needs initial weights")
        if any(length is not None and length <= 0 for length in (self.minutes, self.steps)):
            raise EdmHlocError("a training run must be longer than 0 minutes or steps")
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not least <= number <= most:  # NaN is in no range
                    raise EdmHlocError(
                        f"the training setting {name} must be from {least:,} to {most:,}, "
                        f"not {number}"
                    )
        sizes = [side for shape in self.validation_sets for side in shape[1:]]
        for stage in self.stages:
            _check_stage(stage)
            sizes += stage.sides
        if any(not STRIDE <= side <= _LARGEST_SIDE for side in sizes):
            raise EdmHlocError(
                f"training images must have sides from {STRIDE} to {_LARGEST_SIDE:,} px, "
                f"not {max(sizes, key=abs)}"
            )
        if any(not 0 < shape[0] <= _MOST for shape in self.validation_sets):
            raise EdmHlocError("a validation set must have at least one pair")
        if any(not 0 <= r.share <= 1 for r in self.real):
            raise EdmHlocError("the shares of real training data must be from 0 to 1")
        ends = [s.until for s in self.stages]
        if not ends or ends[-1] != 1.0 or ends != sorted(ends):
            raise EdmHlocError(f"training stages must end at rising shares up to 1.0, got {ends}")
        if self.repeated + self.relief + sum(r.share for r in self.real) > 1 + 1e-9:
            raise EdmHlocError(
                "the shares of repeated textures, reliefs and real training data exceed 1"
            )
        if (self.validation_images is None) != (self.validation_pairs is None):
            raise EdmHlocError("`validation_images` and `validation_pairs` go together")

    def without_folders(self) -> TrainConfig:
        """The same settings with the last component of each path: what weights that are given away
        say of their training, without this computer's folders."""

        def name(path: str | None) -> str | None:
            return None if path is None else Path(path).name

        return dataclasses.replace(
            self,
            textures=name(self.textures),
            initial=name(self.initial),
            real=tuple(
                dataclasses.replace(r, root=Path(r.root).name, index=Path(r.index).name)
                for r in self.real
            ),
            validation_images=name(self.validation_images),
            validation_pairs=name(self.validation_pairs),
        )

    def batch_shape(self, progress: float, rng: np.random.Generator) -> tuple[int, int, int]:
        """Draws the number of pairs, height and width of a batch.

        Args:
            progress: share of the run that has passed, in [0, 1].
            rng: random numbers.
        """
        stage = next((s for s in self.stages if progress < s.until), self.stages[-1])
        side = math.exp(rng.uniform(*np.log(stage.sides)))
        aspect = math.exp(rng.uniform(-1.0, 1.0) * math.log(self.largest_aspect))
        height, width = (
            max(1, round(v / STRIDE)) * STRIDE
            for v in (side / math.sqrt(aspect), side * math.sqrt(aspect))
        )
        # Batch normalisation needs more than one pair.
        return max(2, round(stage.pixels / (height * width))), height, width

    def draw_position_scale(self, longest: int, rng: np.random.Generator) -> float:
        """Draws the factor on the positions in self-attention for a batch.

        Args:
            longest: longest side of its images in pixels.
            rng: random numbers.
        """
        if rng.random() >= self.position_scaling:
            return 1.0
        return math.exp(rng.uniform(0.0, max(0.0, math.log(self.position_extent / longest))))

    def learning_rate_at(self, progress: float) -> float:
        """Learning rate where a share `progress` in [0, 1] of the run has passed."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        if self.schedule == "paper":
            halvings = sum(progress >= epoch / 30 for epoch in (8, 12, 16, 20, 24))
            return float(self.learning_rate * 0.5**halvings)
        decayed = (min(progress, 1.0) - self.warmup) / (1.0 - self.warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * decayed))

    def to_json(self) -> str:
        """All settings as a JSON object, which `config_from_dict` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)


_FROM_SCRATCH_ON_CPU = TrainConfig(
    # Batches of each of two processes with one core each, faster than one process with two cores.
    stages=(
        Stage(0.65, (160, 224), 4 * 192 * 192),
        Stage(0.9, (192, 320), 4 * 192 * 192),
        Stage(1.0, (256, 416), 6 * 192 * 192),
    ),
    learning_rate=1.5e-3,
    true_matches=96,
    difficulty=(0.0, 0.7),
)

_ON_GPU = dataclasses.replace(
    _FROM_SCRATCH_ON_CPU,
    stages=(
        Stage(0.6, (192, 288), 64 * 240 * 240),
        Stage(0.85, (256, 448), 64 * 240 * 240),
        Stage(1.0, (384, 704), 64 * 240 * 240),
    ),
    difficulty=(0.1, 0.8),
    fine_matches=256,
    true_matches=256,
    learning_rate=2e-3,
    ema=0.999,
    precision="bf16-mixed",
)

PRESETS: dict[str, TrainConfig] = {
    "edm_s": _FROM_SCRATCH_ON_CPU,
    # For one data-centre GPU.
    "edm_s_gpu": _ON_GPU,
    "edm": dataclasses.replace(_ON_GPU, model=dataclasses.replace(CONFIGS["edm"], train_size=None)),
    # Image size, batch size and schedule of the paper: 30 epochs of 36,800 pairs.
    "edm_paper": TrainConfig(
        model=CONFIGS["edm"],
        steps=30 * 36800 // 32,
        stages=(Stage(1.0, (832, 832), 32 * 832 * 832),),
        largest_aspect=1.0,
        position_scaling=0.0,
        schedule="paper",
        warmup=0.1,
        fine_matches=2048,
        ema=0.9999,
    ),
}


def config_from_dict(
    values: Mapping[str, Any], base: TrainConfig = PRESETS["edm_s"]
) -> TrainConfig:
    """A configuration from the fields that differ from `base`.

    Args:
        values: fields by name, nested as in `TrainConfig.to_json`; `model` may also be the name of
            a network.
        base: configuration with the other fields.

    Raises:
        EdmHlocError: a field is unknown, or its value malformed.
    """
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise EdmHlocError(f"unknown training settings {unknown}; known are {sorted(known)}")
    converted = dict(values)
    try:
        if "model" in values:
            converted["model"] = _model_from(values["model"], base.model)
        if "stages" in values:
            converted["stages"] = tuple(
                Stage(s["until"], tuple(s["sides"]), s["pixels"]) for s in values["stages"]
            )
        if "real" in values:
            converted["real"] = tuple(RealData(**r) for r in values["real"])
        if "difficulty" in values:
            converted["difficulty"] = tuple(values["difficulty"])
        if "validation_sets" in values:
            converted["validation_sets"] = tuple(tuple(v) for v in values["validation_sets"])
        return dataclasses.replace(base, **converted)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise EdmHlocError(f"training settings are malformed: {error}") from error


def _model_from(value: str | Mapping[str, Any], base: EDMConfig) -> EDMConfig:
    if isinstance(value, str):
        if value not in CONFIGS:
            raise EdmHlocError(f"unknown network {value!r}; known are {sorted(CONFIGS)}")
        return CONFIGS[value]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    return dataclasses.replace(base, **fields)


def load_config(name: str, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """A configuration by the name of a preset, or from a JSON file.

    Args:
        name: a key of `PRESETS`, or the path of a JSON file with the fields that differ from the
            preset that it names as "preset" (by default edm_s).
        overrides: fields that take precedence, as for `config_from_dict`; of the network those
            that are given.

    Raises:
        EdmHlocError: there is no such preset or file, or the file is malformed.
    """
    if name in PRESETS:
        base, values = PRESETS[name], {}
    else:
        if not Path(name).exists():
            raise EdmHlocError(f"{name} is neither a file nor a preset ({', '.join(PRESETS)})")
        values = read_json_object(Path(name), "file of training settings")
        preset = values.pop("preset", "edm_s")
        if not isinstance(preset, str) or preset not in PRESETS:
            raise EdmHlocError(f"{name} names the unknown preset {preset!r}: {', '.join(PRESETS)}")
        base = PRESETS[preset]
        if "model" in values:  # what `overrides` says of the network differs from the file's
            base = config_from_dict({"model": values.pop("model")}, base)
    return config_from_dict({**values, **(overrides or {})}, base)

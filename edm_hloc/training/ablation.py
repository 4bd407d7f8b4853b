"""Ablations: variants of the network and of its training, each trained alike, in one table.

The rows of Tables 7 to 9 of the paper that are settings, at a budget that a desk computer has: the
variants are trained on rendered pairs and compared on fixed ones that none was trained on. From
random weights ten minutes show how fast a variant learns. Behind the rest of a trained network, the
fine stage alone learns enough in that time to tell some of its variants apart.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, make_folder, write_whole
from edm_hloc.models import weights
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import EDMConfig
from edm_hloc.training.config import PRESETS, Stage, TrainConfig, config_from_dict
from edm_hloc.training.sources import BatchSource, build_synthetic, mix_seeds
from edm_hloc.training.step import PairBatch
from edm_hloc.training.trainer import run_training
from edm_hloc.training.validation import validate

logger = logging.getLogger(__name__)


class Variant(NamedTuple):
    """A row of the table.

    Attributes:
        text: what differs from the first row.
        settings: fields of `TrainConfig`, as for `config_from_dict`.
    """

    text: str
    settings: Mapping[str, Any]


_PAIR = ["self", "cross"]
VARIANTS: dict[str, Variant] = {
    "full": Variant("as it is", {}),
    "layers-1": Variant("L = 1", {"model": {"layers": _PAIR}}),
    "layers-3": Variant("L = 3", {"model": {"layers": 3 * _PAIR}}),
    "bins-8": Variant("8 bins", {"model": {"bins": 8}}),
    "bins-32": Variant("32 bins", {"model": {"bins": 32}}),
    "one-way": Variant(
        "refined in one direction", {"model": {"bidirectional": False}, "refined": "image1"}
    ),
    "no-selection": Variant("no selection by σ", {"refined": "image1"}),
    "gaussian": Variant("Gaussian residuals", {"residual": "gaussian"}),
    "l1": Variant("L1, no σ", {"residual": "l1", "refined": "image1"}),
    "l2": Variant("L2, no σ", {"residual": "l2", "refined": "image1"}),
    "plain-attention": Variant(
        "queries and keys not normalised", {"model": {"normalised_attention": False}}
    ),
    "summed": Variant("maps summed, not injected", {"model": {"injection": "summed"}}),
    "narrow": Variant("half the channels", {"model": {"widths": [8, 16, 32, 64, 64], "heads": 2}}),
    "wide": Variant(
        "twice the channels", {"model": {"widths": [32, 64, 128, 256, 256], "heads": 8}}
    ),
}
"""By name; the first one is what the others differ from. Widths are those of `edm_s`'s."""


FINE_VARIANTS = (
    "full", "bins-8", "bins-32", "one-way", "no-selection", "gaussian", "l1", "l2"
)  # fmt: skip
"""Those that differ in the fine stage alone."""

FIGURES = ("coarse_precision", "coarse_recall", "fine_error", "matches")


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """Results of one variant on the validation pairs.

    Attributes:
        name: of the variant.
        parameters: of the network without the flow, which is for training only.
        seeds: number of runs.
        pairs: mean number of training pairs.
        figures: mean and standard deviation over the runs of coarse_precision, coarse_recall,
            fine_error in px and matches, each the mean over the pairs.
        change: of the fine error against the first row's on the same pair: the mean over the pairs
            of its relative difference, and the standard error of this mean; of the first row 0.
    """

    name: str
    parameters: int
    seeds: int
    pairs: float
    figures: Mapping[str, tuple[float, float]]
    change: tuple[float, float]


def ablation_base(
    minutes: float | None, steps: int | None, textures: str | None, initial: str | None = None
) -> TrainConfig:
    """What all runs of a table have in common.

    From random weights, images are small and the pairs easy, so that minutes teach a network what
    can be compared. Behind trained weights they are as in training.

    Args:
        minutes, steps: length of a run; one of them is None.
        textures: as of `TrainConfig`.
        initial: weights by name or path, of which all but the fine stage is kept; None for random
            weights.

    Raises:
        WeightsError: there are no such weights.
    """
    base = dataclasses.replace(
        PRESETS["edm_s"], minutes=minutes, steps=steps, textures=textures, validations=0
    )
    if initial is None:
        return dataclasses.replace(
            base,
            stages=(Stage(1.0, (128, 192), 6 * 160 * 160),),
            learning_rate=2e-3,
            difficulty=(0.0, 0.3),
            validation_sets=((48, 192, 256),),
        )
    model, info = weights.load(initial)
    return dataclasses.replace(
        base,
        model=model.config,
        origin=info.origin,
        initial=str(info.path),
        trained="fine-anew",
        stages=(Stage(1.0, (224, 320), 4 * 192 * 192),),
        learning_rate=2e-3,
        fine_matches=512,  # all that inference would take
        true_matches=384,
        difficulty=(0.05, 0.8),
        validation_sets=((24, 480, 640),),
    )


def variant_config(name: str, base: TrainConfig, seed: int) -> TrainConfig:
    """The training configuration of a variant.

    Raises:
        EdmHlocError: there is no such variant, or it is more than another fine stage and the base
            trains no more than that.
    """
    if name not in VARIANTS:
        raise EdmHlocError(f"There is no variant {name!r}; there are {', '.join(VARIANTS)}.")
    if base.trained != "all" and name not in FINE_VARIANTS:
        raise EdmHlocError(
            f"The variant {name} is more than another fine stage: leave out --initial to train it "
            f"from random weights, or choose from {', '.join(FINE_VARIANTS)}."
        )
    return config_from_dict({**VARIANTS[name].settings, "seed": seed}, base)


def run_ablation(
    names: Sequence[str],
    base: TrainConfig,
    seeds: Sequence[int],
    out: Path,
) -> list[AblationRow]:
    """Trains all variants with all seeds, on the CPU or the fastest device of Lightning's choice.

    Each run has its folder `out/NAME-seedN`; variants that differ in what is made of the answers
    have one in common. Finished runs are not repeated and interrupted ones continue, so the same
    call goes on, or adds variants and seeds. Writes `out/ablation.csv` and `out/ablation.md` after
    each variant.

    Args:
        names: some of `VARIANTS`; the first is what the others are compared with.
        base: what all runs have in common, see `ablation_base`.
        seeds: of the weights and of the training data.
        out: folder of the runs.

    Raises:
        EdmHlocError: an unknown variant, another process is at work in `out`, or as
            `run_training`.
    """
    configs = {name: [variant_config(name, base, seed) for seed in seeds] for name in names}
    make_folder(out)
    with FolderLock(out):
        return _run_variants(configs, base, seeds, out)


def _run_variants(
    configs: Mapping[str, Sequence[TrainConfig]],
    base: TrainConfig,
    seeds: Sequence[int],
    out: Path,
) -> list[AblationRow]:
    """Trains and evaluates the configurations of each variant, one for each of the seeds."""
    source = build_synthetic(base, torch.device("cpu"))
    batches = _validation_pairs(source, base)
    rows: list[AblationRow] = []
    reference: np.ndarray | None = None
    for name, of_seeds in configs.items():
        found, trained_on = [], []
        for seed, config in zip(seeds, of_seeds, strict=True):
            owner = _trained_as(name, config, base)
            folder = out / f"{owner}-seed{seed}"
            logger.info("%s, seed %d", owner, seed)
            training = variant_config(owner, base, seed)
            result = run_training(training, folder, source=source, devices=1)
            model, _ = weights.load(folder / "weights.safetensors")
            trained_on.append(result.pairs)
            found.append([validate(model, [b], config.threshold, config.refined) for b in batches])
        values = {k: np.array([[pair[k] for pair in run] for run in found]) for k in FIGURES}
        errors = _mean(values["fine_error"], 0)
        reference = errors if reference is None else reference
        rows.append(
            AblationRow(
                name,
                _parameters(of_seeds[0].model),
                len(of_seeds),
                float(np.mean(trained_on)),
                {k: _over_runs(v) for k, v in values.items()},
                _over_pairs(errors / reference - 1),
            )
        )
        write_whole(out / "ablation.md", ablation_table(rows) + "\n")
        write_whole(out / "ablation.csv", _csv(rows))
    return rows


def _validation_pairs(source: BatchSource, base: TrainConfig) -> list[PairBatch]:
    """The pairs of the last validation set, one by one; they do not depend on any seed of a run."""
    pairs, height, width = base.validation_sets[-1]
    return [source.batch(1, height, width, seed=mix_seeds(pairs, i)) for i in range(pairs)]


def _trained_as(name: str, config: TrainConfig, base: TrainConfig) -> str:
    """The first variant whose training is that of `name`: they may differ in `refined`."""

    def training(settings: TrainConfig) -> TrainConfig:
        return dataclasses.replace(settings, refined="image1")

    others = FINE_VARIANTS if base.trained != "all" else tuple(VARIANTS)
    return next(
        other
        for other in (*others, name)
        if training(variant_config(other, base, config.seed)) == training(config)
    )


def _parameters(model: EDMConfig) -> int:
    network = EDM(model)
    flow = sum(p.numel() for p in network.fine_matching.flow.parameters())
    return sum(p.numel() for p in network.parameters()) - flow


def _over_runs(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation over the runs (R, P) of the mean over the pairs.

    A pair without a match has no error, and the others stand for it.
    """
    means = _mean(values, 1)
    known = means[np.isfinite(means)]
    return (float(known.mean()), float(known.std())) if len(known) else (float("nan"),) * 2


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean along an axis of the values that are known; NaN where none is."""
    return np.asarray(np.ma.masked_invalid(values).mean(axis).filled(np.nan))


def _over_pairs(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error over the pairs (P,) whose value is known."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std(ddof=1) / np.sqrt(len(known)))


def ablation_table(rows: Sequence[AblationRow]) -> str:
    """The rows as a Markdown table; what is ± is the standard deviation over the seeds.

    The last column is the change of the fine error against the first row, with its standard error
    over the validation pairs.
    """
    lines = [
        "| variant | | million parameters | pairs | seeds | precision % | recall % | matches "
        "| fine error px | against the first row % |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        precision, recall, error, matches = (row.figures[figure] for figure in FIGURES)
        cells = (
            row.name,
            VARIANTS[row.name].text,
            f"{row.parameters / 1e6:.2f}",
            f"{row.pairs:,.0f}",
            str(row.seeds),
            f"{100 * precision[0]:.1f} ± {100 * precision[1]:.1f}",
            f"{100 * recall[0]:.1f} ± {100 * recall[1]:.1f}",
            f"{matches[0]:,.0f} ± {matches[1]:,.0f}",
            "–" if np.isnan(error[0]) else f"{error[0]:.3f} ± {error[1]:.3f}",
            "–" if np.isnan(row.change[0]) or row is rows[0] else _percent(row.change),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(change: tuple[float, float]) -> str:
    return f"{100 * change[0]:+.1f} ± {100 * change[1]:.1f}"


def _csv(rows: Sequence[AblationRow]) -> str:
    names = [f"{figure}{end}" for figure in (*FIGURES, "change") for end in ("", "_spread")]
    lines = [",".join(["variant", "parameters", "seeds", "pairs", *names])]
    for row in rows:
        numbers = [value for figure in FIGURES for value in row.figures[figure]]
        cells = [row.name, row.parameters, row.seeds, row.pairs, *numbers, *row.change]
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"

"""Ablations: variants of the network and of its training, each trained alike, in one table.

The rows of Tables 7 to 9 of the paper that are settings, at a budget that a desk computer has: the
variants are trained on rendered pairs and compared on fixed ones that none was trained on.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import EDMConfig
from edm_hloc.training.config import TrainConfig, config_from_dict
from edm_hloc.training.sources import BatchSource
from edm_hloc.training.trainer import run_training

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


@dataclasses.dataclass(frozen=True)
class AblationRow:
    """Results of one variant.

    Attributes:
        name: of the variant.
        parameters: of the network without the flow, which is for training only.
        seeds: number of runs.
        pairs: mean number of training pairs.
        figures: mean and standard deviation over the runs of coarse_precision, coarse_recall,
            fine_error in px and matches, on the last validation set.
    """

    name: str
    parameters: int
    seeds: int
    pairs: float
    figures: Mapping[str, tuple[float, float]]


FIGURES = ("coarse_precision", "coarse_recall", "fine_error", "matches")


def variant_config(name: str, base: TrainConfig, seed: int) -> TrainConfig:
    """The training configuration of a variant.

    Raises:
        EdmHlocError: there is no such variant.
    """
    if name not in VARIANTS:
        raise EdmHlocError(f"There is no variant {name!r}; there are {', '.join(VARIANTS)}.")
    return config_from_dict({**VARIANTS[name].settings, "seed": seed}, base)


def run_ablation(
    names: Sequence[str],
    base: TrainConfig,
    seeds: Sequence[int],
    out: Path,
    source: BatchSource | None = None,
) -> list[AblationRow]:
    """Trains all variants with all seeds, on the CPU or the fastest device of Lightning's choice.

    Each run has its folder `out/NAME-seedN`. Finished runs are not repeated and interrupted ones
    continue, so the same call goes on, or adds variants and seeds. Writes `out/ablation.csv` and
    `out/ablation.md` after each variant.

    Args:
        names: some of `VARIANTS`.
        base: what all runs have in common, with their length.
        seeds: of the weights and of the training data.
        out: folder of the runs.
        source: of the pairs; by default rendered as `base` says.

    Raises:
        EdmHlocError: an unknown variant, or as `run_training`.
    """
    configs = {name: [variant_config(name, base, seed) for seed in seeds] for name in names}
    make_folder(out)
    rows = []
    for name, of_seeds in configs.items():
        found = []
        for seed, config in zip(seeds, of_seeds, strict=True):
            folder = out / f"{name}-seed{seed}"
            logger.info("%s, seed %d", name, seed)
            run_training(config, folder, source=source, devices=1)
            found.append(_last_validation(folder, config))
        rows.append(_row(name, of_seeds[0].model, found))
        write_whole(out / "ablation.md", ablation_table(rows) + "\n")
        write_whole(out / "ablation.csv", _csv(rows))
    return rows


def _row(name: str, model: EDMConfig, found: Sequence[Mapping[str, float]]) -> AblationRow:
    network = EDM(model)
    flow = sum(p.numel() for p in network.fine_matching.flow.parameters())
    parameters = sum(p.numel() for p in network.parameters()) - flow
    values = {figure: np.array([f[figure] for f in found]) for figure in FIGURES}
    # a run without a match has no error; the other seeds' stand for it
    known = {k: v[np.isfinite(v)] for k, v in values.items()}
    figures = {
        k: (float(v.mean()), float(v.std())) if len(v) else (float("nan"), float("nan"))
        for k, v in known.items()
    }
    pairs = float(np.mean([f["pairs"] for f in found]))
    return AblationRow(name, parameters, len(found), pairs, figures)


def _last_validation(folder: Path, config: TrainConfig) -> dict[str, float]:
    """The figures of a finished run on its last, largest validation set."""
    path = folder / "validation.csv"
    try:
        with path.open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        _, height, width = config.validation_sets[-1]
        found = {figure: float(last[f"{figure}_{width}x{height}"]) for figure in FIGURES}
        return {"pairs": float(last["pairs"]), **found}
    except (OSError, IndexError, KeyError, ValueError) as error:
        raise EdmHlocError(
            f"{path} has no validation of the finished run: delete {folder} to train it again."
        ) from error


def ablation_table(rows: Sequence[AblationRow]) -> str:
    """The rows as a Markdown table; what is ± is the standard deviation over the seeds."""
    lines = [
        "| variant | | million parameters | pairs | seeds | precision % | recall % | fine error px "
        "| matches |",
        "|---" * 9 + "|",
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
            "–" if np.isnan(error[0]) else f"{error[0]:.2f} ± {error[1]:.2f}",
            f"{matches[0]:,.0f} ± {matches[1]:,.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _csv(rows: Sequence[AblationRow]) -> str:
    names = [f"{figure}{end}" for figure in FIGURES for end in ("", "_sd")]
    lines = [",".join(["variant", "parameters", "seeds", "pairs", *names])]
    for row in rows:
        numbers = [value for figure in FIGURES for value in row.figures[figure]]
        cells = [row.name, row.parameters, row.seeds, row.pairs, *numbers]
        lines.append(",".join(map(str, cells)))
    return "\n".join(lines) + "\n"

"""Rows of Markdown tables of runs of `edm-hloc reconstruct`: presets.py and network_sizes.py."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edm_hloc import cli
from edm_hloc.base.colmap import ModelStatistics
from edm_hloc.evaluation.models import ModelComparison

MODEL_COLUMNS = "points", "track", "error px", "rotation °", "position %"


def heading(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def reconstruct(images: Path, out: Path, options: Sequence[str]) -> dict[str, Any]:
    """Runs the command without its output and returns the results in OUT/run.json.

    Raises:
        SystemExit: the command failed.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(["reconstruct", str(images), str(out), *options])
    if code:
        raise SystemExit(code)
    results: dict[str, Any] = json.loads((out / "run.json").read_text())["results"]
    return results


def model_cells(
    model: ModelStatistics | ModelComparison, truth: ModelComparison | None, digits: int
) -> list[str]:
    """The cells of `MODEL_COLUMNS`; errors of the cameras only with a comparison with the truth."""
    errors = ["", ""]
    if truth is not None:
        errors = [f"{e:.{digits}f}" for e in (truth.rotation_median, truth.position_median)]
    return [
        f"{model.points:,}",
        f"{model.mean_track_length:.2f}",
        f"{model.mean_reprojection_error:.2f}",
        *errors,
    ]

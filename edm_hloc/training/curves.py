"""Curves of a training run: CSV files that are continued when a run resumes, and their plot."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole

logger = logging.getLogger(__name__)


class CurveFile:
    """A CSV file of rows with an increasing `step`; its columns are those of the first row.

    Args:
        path: the file; rows after `last_step` are removed from it.
        last_step: the step from which the run continues.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        rows = [r for r in read_curve(path) if r["step"] <= last_step]
        if not rows:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(_rounded(row))
        write_whole(path, text.getvalue())

    def add(self, row: dict[str, float]) -> None:
        """Appends one row; floating-point numbers get six significant digits."""
        try:
            fresh = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if fresh:
                    writer.writeheader()
                writer.writerow(_rounded(row))
        except OSError as error:
            raise EdmHlocError(f"Cannot write {self.path}: {error.strerror or error}.") from error


def _rounded(row: dict[str, float]) -> dict[str, float | str]:
    return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve file in order; none if it does not exist."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows: list[dict[str, float]] = [
                {k: int(v) if k in ("step", "pairs") else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)
            ]
        if any("step" not in row for row in rows):
            raise ValueError("no column step")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise EdmHlocError(
            f"{path} is damaged or no curve of edm-hloc train: move it away."
        ) from error
    return rows


def draw_curves(directory: Path) -> None:
    """Plots training.csv and validation.csv of a run to curves.png, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no picture of the curves: matplotlib is not installed")
        return
    training = read_curve(directory / "training.csv")
    validation = read_curve(directory / "validation.csv")
    figure = Figure(figsize=(12, 7), layout="constrained")
    axes = figure.subplots(2, 3).flat
    for axis, column, unit in zip(
        axes,
        ("loss", "coarse_precision", "fine_error", "learning_rate", "coarse_recall", "pairs_per_s"),
        ("", "within a cell", "median, px", "", "within a cell", "1/s"),
        strict=True,
    ):
        axis.plot([r["pairs"] for r in training], [r[column] for r in training], lw=0.7)
        for name in (k for k in (validation[0] if validation else {}) if k.startswith(column)):
            x, y = [r["pairs"] for r in validation], [r[name] for r in validation]
            axis.plot(x, y, "o-", ms=3, label=name.removeprefix(column).strip("_"))
            axis.legend(fontsize=7)
        axis.set(xlabel="training pairs", title=f"{column} {f'({unit})' if unit else ''}")
        axis.grid(alpha=0.3)
    figure.savefig(directory / "curves.png", dpi=90)

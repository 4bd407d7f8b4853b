"""The area under the cumulative curve of errors, by which poses and homographies are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np


class _Grouped(Protocol):
    @property
    def group(self) -> str: ...


AnyGrouped = TypeVar("AnyGrouped", bound=_Grouped)

SEEDS = range(5)
"""Seeds of RANSAC. One random draw changes an AUC by more than matchers differ."""


def area_under_curve(errors: Sequence[float], thresholds: Sequence[float]) -> list[float]:
    """Area under the cumulative curve (AUC) of errors up to each threshold, in [0, 1].

    The curve of recall over error is interpolated linearly, as in SuperGlue's evaluation.

    Args:
        errors: one of each pair; infinite where nothing was found.
        thresholds: in the unit of the errors.

    Raises:
        ValueError: there is no error.
    """
    if not len(errors):
        raise ValueError("there is no error to average")
    ordered = np.concatenate([[0.0], np.sort(np.asarray(errors, float))])
    recall = np.arange(len(ordered)) / (len(ordered) - 1)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x = np.append(ordered[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return areas


def mean_areas(
    errors: Sequence[Sequence[float]], thresholds: Sequence[float]
) -> tuple[tuple[float, ...], float]:
    """Mean of the AUCs over the seeds in %, and the standard deviation of the first of them.

    Args:
        errors: for each pair, one error for each seed.
        thresholds: in the unit of the errors.
    """
    areas = 100 * np.array(
        [area_under_curve(of_seed, thresholds) for of_seed in zip(*errors, strict=True)]
    )
    return tuple(map(float, areas.mean(axis=0))), float(areas[:, 0].std())


def in_groups(results: Sequence[AnyGrouped]) -> dict[str, list[AnyGrouped]]:
    """All results as "all", then those of each group by its name if there are several."""
    groups = sorted({result.group for result in results})
    chosen = {"all": list(results)}
    if len(groups) > 1:
        chosen |= {group: [r for r in results if r.group == group] for group in groups}
    return chosen


def areas_text(areas: Sequence[float], spread: float) -> str:
    """The AUCs of all thresholds for a table, the first one with its spread over the seeds."""
    first, *others = (f"{a:.1f}" for a in areas)
    return " / ".join([f"{first} ± {spread:.1f}", *others])


def as_json(result: Any) -> dict[str, Any]:
    """The fields of a pair's results for JSON, which has no infinity: failures become None."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(errors) for name, errors in value.items()}
        if isinstance(value, tuple):
            return [float(error) if np.isfinite(error) else None for error in value]
        return value

    return {name: finite(value) for name, value in dataclasses.asdict(result).items()}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text below the names of their columns, as a table in Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

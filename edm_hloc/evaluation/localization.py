"""Poses of queries beside the true ones: recall at the benchmarks' thresholds, median errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.pose_pairs import rotation_angle
from edm_hloc.localization.poses import read_poses

Thresholds = Sequence[tuple[float, float]]
"""Greatest errors of position, in the world's unit, and of rotation, in degrees."""

# Aachen's own benchmark gives 5 m in the place of 1 m.
AACHEN_THRESHOLDS: Thresholds = ((0.25, 2.0), (0.5, 5.0), (1.0, 10.0))
INLOC_THRESHOLDS: Thresholds = ((0.25, 10.0), (0.5, 10.0), (1.0, 10.0))


@dataclass(frozen=True)
class LocalizationErrors:
    """How good the poses of one group of queries are.

    Attributes:
        group: its name, such as "day".
        queries: how many have a true pose; those without an answer count as wrong.
        answered: how many have a pose.
        recall: part of all queries within each threshold, 0 to 1.
        position_median: of the answered queries, in the world's unit.
        rotation_median: of the answered queries, degrees.
        position_max, rotation_max: of the answered queries.
    """

    group: str
    queries: int
    answered: int
    recall: tuple[float, ...]
    position_median: float
    rotation_median: float
    position_max: float
    rotation_max: float


def pose_errors(pose: pycolmap.Rigid3d, truth: pycolmap.Rigid3d) -> tuple[float, float]:
    """Distance of the two camera centres, and angle between the orientations in degrees."""
    position = np.linalg.norm(pose.inverse().translation - truth.inverse().translation)
    difference = pose.rotation.matrix() @ truth.rotation.matrix().T
    return float(position), float(rotation_angle(difference))


def evaluate(
    poses: Mapping[str, pycolmap.Rigid3d],
    truth: Mapping[str, Mapping[str, pycolmap.Rigid3d]],
    thresholds: Thresholds = AACHEN_THRESHOLDS,
) -> list[LocalizationErrors]:
    """Measures poses, one answer for each group of the truth.

    Args:
        poses: cam_from_world by name, with or without folders as in a submission.
        truth: true poses by group and name.
        thresholds: what counts as right.

    Raises:
        EdmHlocError: none of the queries has a pose.
    """
    if not any(_find(poses, name) for group in truth.values() for name in group):
        raise EdmHlocError(
            "None of the true queries has a pose: the names are like "
            f"{next(iter(poses), 'nothing')!r}, the true ones like "
            f"{next((name for group in truth.values() for name in group), 'nothing')!r}."
        )
    return [_evaluate(group, poses, true, thresholds) for group, true in truth.items()]


def _find(poses: Mapping[str, pycolmap.Rigid3d], name: str) -> pycolmap.Rigid3d | None:
    return poses.get(name, poses.get(name.rpartition("/")[2]))


def _evaluate(
    group: str,
    poses: Mapping[str, pycolmap.Rigid3d],
    truth: Mapping[str, pycolmap.Rigid3d],
    thresholds: Thresholds,
) -> LocalizationErrors:
    found = [(pose, true) for name, true in truth.items() if (pose := _find(poses, name))]
    errors = np.array([pose_errors(*pair) for pair in found]).reshape(-1, 2)
    median = np.median(errors, axis=0) if len(errors) else np.full(2, np.nan)
    worst = errors.max(axis=0) if len(errors) else np.full(2, np.nan)
    return LocalizationErrors(
        group=group,
        queries=len(truth),
        answered=len(found),
        recall=tuple(
            float(np.sum((errors <= limits).all(axis=1))) / max(1, len(truth))
            for limits in thresholds
        ),
        position_median=float(median[0]),
        rotation_median=float(median[1]),
        position_max=float(worst[0]),
        rotation_max=float(worst[1]),
    )


def read_truth(folder: Path) -> dict[str, dict[str, pycolmap.Rigid3d]]:
    """True poses by group, from a folder with one file of poses a group (see `write_poses`).

    Raises:
        EdmHlocError: there are none.
    """
    files = sorted(Path(folder).glob("*.txt")) if Path(folder).is_dir() else [Path(folder)]
    if not files:
        raise EdmHlocError(f"No files of true poses, GROUP.txt, in {folder}.")
    return {file.stem: read_poses(file) for file in files}


def table(errors: Sequence[LocalizationErrors], thresholds: Thresholds) -> str:
    """The errors as text, one line a group."""
    limits = [f"{position:g} m, {rotation:g}°" for position, rotation in thresholds]
    heads = ["", "queries", "answered", *limits, "median m", "median °"]
    rows = [heads]
    for e in errors:
        recall = [f"{100 * r:.1f} %" for r in e.recall]
        medians = [f"{e.position_median:.4f}", f"{e.rotation_median:.4f}"]
        rows.append([e.group, str(e.queries), str(e.answered), *recall, *medians])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )

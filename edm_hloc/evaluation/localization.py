"""Errors of localized queries: recall at the benchmarks' thresholds, median and largest errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import same_images
from edm_hloc.evaluation.pose_pairs import rotation_angle
from edm_hloc.localization.poses import read_poses

Thresholds = Sequence[tuple[float, float]]
"""Largest errors of position, in units of the world frame, and of rotation, in degrees."""

# The benchmark's own table has 5 m in place of 1 m.
AACHEN_THRESHOLDS: Thresholds = ((0.25, 2.0), (0.5, 5.0), (1.0, 10.0))
INLOC_THRESHOLDS: Thresholds = ((0.25, 10.0), (0.5, 10.0), (1.0, 10.0))


# A file of poses in another form fits the truth in that form at least so many times better.
_FAR_BETTER, _ROUGHLY = 10.0, 10.0  # of positions; degrees


def _real_part_last(pose: pycolmap.Rigid3d) -> pycolmap.Rigid3d:
    """The pose of a line with qx qy qz qw, which was read as qw qx qy qz."""
    rotation = pycolmap.Rotation3d(np.roll(pose.rotation.quat, 1))
    return pycolmap.Rigid3d(rotation, pose.translation)


def _position_last(pose: pycolmap.Rigid3d) -> pycolmap.Rigid3d:
    """The pose of a line with the camera's position, which was read as the translation."""
    return pycolmap.Rigid3d(pose.rotation, -(pose.rotation * pose.translation))


_OTHER_FORMS: Mapping[str, Callable[[pycolmap.Rigid3d], pycolmap.Rigid3d]] = {
    "poses that bring cameras into the world: invert them": lambda pose: pose.inverse(),
    "the cameras' positions C in place of the translations: write -R C": _position_last,
    "quaternions with qw last: write it first": _real_part_last,
    "poses that bring cameras into the world, with qw last: write it first and invert them": (
        lambda pose: _real_part_last(pose).inverse()
    ),
    "qw last, and the cameras' positions C in place of the translations: write qw first and -R C": (
        lambda pose: _position_last(_real_part_last(pose))
    ),
}


@dataclass(frozen=True)
class LocalizationErrors:
    """Errors of the estimated poses of one group of queries.

    Attributes:
        group: its name, such as "day".
        queries: number of queries with a true pose.
        answered: number of those with an estimated pose.
        recall: share of all queries below each pair of thresholds, in [0, 1]; queries without an
            estimated pose count as failures.
        position_median, position_max: errors of the camera centre among the answered queries, in
            units of the world frame; NaN if there are none.
        rotation_median, rotation_max: likewise of the rotation, in degrees.
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
    """Distance of the camera centres in units of the world frame, and rotation error in degrees.

    Args:
        pose, truth: cam_from_world.
    """
    position = np.linalg.norm(pose.inverse().translation - truth.inverse().translation)
    difference = pose.rotation.matrix() @ truth.rotation.matrix().T
    return float(position), float(rotation_angle(difference))


def evaluate(
    poses: Mapping[str, pycolmap.Rigid3d],
    truth: Mapping[str, Mapping[str, pycolmap.Rigid3d]],
    thresholds: Thresholds = AACHEN_THRESHOLDS,
) -> list[LocalizationErrors]:
    """Compares estimated poses with the true ones, for each group of queries.

    Args:
        poses: cam_from_world by the query's path or, as in a submission, by its file name or with
            other folders, if no other query and no other pose has that file name. Poses of other
            photos count for nothing (see `poses_of_no_query`).
        truth: true cam_from_world by group and by the query's path.
        thresholds: pairs of thresholds of which the recall is computed.

    Raises:
        EdmHlocError: none of the queries has an estimated pose.
    """
    answers = {query: poses[name] for name, query in _pairs_of_names(poses, truth)}
    if not answers:
        raise EdmHlocError(
            "None of the true queries has a pose: the names are like "
            f"{next(iter(poses), 'nothing')!r}, the true ones like "
            f"{next((name for group in truth.values() for name in group), 'nothing')!r}."
        )
    return [_evaluate(group, answers, true, thresholds) for group, true in truth.items()]


def other_form(
    poses: Mapping[str, pycolmap.Rigid3d],
    truth: Mapping[str, Mapping[str, pycolmap.Rigid3d]],
) -> tuple[str, list[bool]] | None:
    """The form in which poses would fit the truth far better than as they were read.

    Args:
        poses, truth: as of `evaluate`.

    Returns:
        The form in words, and whether it is the true poses that may be in it: False, True or both
        where the one would do as well as the other. None if the poses fit no better in any form.
    """
    true = {name: pose for group in truth.values() for name, pose in group.items()}
    pairs = [(poses[name], true[query]) for name, query in _pairs_of_names(poses, truth)]
    position, rotation = np.median([pose_errors(*pair) for pair in pairs], axis=0)
    found: dict[tuple[str, bool], float] = {}
    for form, read in _OTHER_FORMS.items():
        for of_truth in (False, True):
            errors = [
                pose_errors(pose, read(other)) if of_truth else pose_errors(read(pose), other)
                for pose, other in pairs
            ]
            distance, angle = np.median(errors, axis=0)
            if angle <= min(_ROUGHLY, rotation + 1e-3) and _FAR_BETTER * distance < position:
                found[form, of_truth] = max(float(distance), 1e-6 * float(position))
    if not found:
        return None
    best, _ = min(found, key=found.__getitem__)
    least = min(found.values())
    return best, [
        of_truth
        for (form, of_truth), distance in found.items()
        if form == best and distance <= _FAR_BETTER * least
    ]


def poses_of_no_query(poses: Collection[str], truth: Mapping[str, Collection[str]]) -> list[str]:
    """Names of the poses that `evaluate` finds no true query for."""
    known = {name for name, _ in _pairs_of_names(poses, truth)}
    return [name for name in poses if name not in known]


def _pairs_of_names(
    poses: Collection[str], truth: Mapping[str, Collection[str]]
) -> list[tuple[str, str]]:
    """The name of each pose that is of a true query, and the query's."""
    return same_images(poses, dict.fromkeys(name for group in truth.values() for name in group))


def _evaluate(
    group: str,
    answers: Mapping[str, pycolmap.Rigid3d],
    truth: Mapping[str, pycolmap.Rigid3d],
    thresholds: Thresholds,
) -> LocalizationErrors:
    found = [(answers[name], true) for name, true in truth.items() if name in answers]
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


def read_truth(
    folder: Path, answers: Collection[str] = ()
) -> dict[str, dict[str, pycolmap.Rigid3d]]:
    """Reads true poses by group: a folder with one file GROUP.txt for each group, or one file.

    The lines are those of `write_poses`. Those that begin with "#" are comments, even if they are
    poses, unless `answers` has their name and no space follows the "#".

    Args:
        folder: the folder or file.
        answers: names of the estimated poses.

    Raises:
        EdmHlocError: there is no file, or one of them is malformed.
    """
    files = sorted(Path(folder).glob("[!.]*.txt")) if Path(folder).is_dir() else [Path(folder)]
    if not files:
        raise EdmHlocError(f"No files of true poses, GROUP.txt, in {folder}.")
    names = [name for name in answers if not re.match(r"#\s", name)]
    return {file.stem: read_poses(file, names) for file in files}


def table(errors: Sequence[LocalizationErrors], thresholds: Thresholds) -> str:
    """The errors as a table in plain text, one line for each group."""
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

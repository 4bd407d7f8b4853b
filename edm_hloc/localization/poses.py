"""Camera poses as seven numbers, and text files with one pose a line.

A pose is camera-from-world in COLMAP's convention, written qw qx qy qz tx ty tz.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import filled_lines, is_comment


def to_numbers(pose: pycolmap.Rigid3d) -> tuple[float, ...]:
    """qw, qx, qy, qz, tx, ty, tz with a unit quaternion and qw ≥ 0."""
    quaternion = np.roll(pose.rotation.quat, 1)  # pycolmap has w last
    quaternion = quaternion / np.linalg.norm(quaternion)
    if quaternion[0] < 0:
        quaternion = -quaternion
    return tuple(float(number) for number in (*quaternion, *pose.translation))


def to_rigid(numbers: Sequence[float]) -> pycolmap.Rigid3d:
    """The pose of qw, qx, qy, qz, tx, ty, tz; the inverse of `to_numbers`."""
    quaternion = np.roll(np.array(numbers[:4]), -1)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(quaternion), np.array(numbers[4:7]))


def write_poses(
    path: Path, poses: Mapping[str, pycolmap.Rigid3d], *, basenames: bool = False
) -> None:
    """Writes one pose a line: name qw qx qy qz tx ty tz.

    Args:
        path: the text file.
        poses: cam_from_world by image name.
        basenames: write names without their folders, as visuallocalization.net expects them.

    Raises:
        EdmHlocError: two names are the same without folders, or the file cannot be written.
    """
    if basenames:
        check_basenames(poses)
    lines = []
    for name, pose in poses.items():
        written = name.rpartition("/")[2] if basenames else name
        lines.append(" ".join([written, *map(repr, to_numbers(pose))]) + "\n")
    write_whole(path, "".join(lines))


def check_basenames(queries: Iterable[str]) -> None:
    """Raises EdmHlocError if two queries have the same name without folders."""
    names = [query.rpartition("/")[2] for query in queries]
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise EdmHlocError(
            f"Two queries are called {twice[0]}: the benchmark tells them apart by their names "
            "without folders."
        )


def read_poses(path: Path, names: Collection[str] | None = None) -> dict[str, pycolmap.Rigid3d]:
    """Reads cam_from_world by name from a file of `write_poses` or a benchmark's submission.

    Quaternions may have any length, as they have where they were rounded.

    Args:
        path: of the file.
        names: of the photos; those that begin with "#" are known by it from poses in comments. None
            if they are not known: all poses are read.

    Raises:
        EdmHlocError: the file cannot be read, a line is not a pose, or a name has two poses.
    """
    poses: dict[str, pycolmap.Rigid3d] = {}
    for line in read_pose_lines(path):
        if names is not None and is_comment(line.name, line.name, names):
            continue
        if line.problem:
            raise EdmHlocError(f"{path}, line {line.number}: {line.problem}.")
        quaternion = np.array(line.pose[:4]) / np.linalg.norm(line.pose[:4])
        pose = to_rigid([*quaternion, *line.pose[4:]])
        if to_numbers(poses.setdefault(line.name, pose)) != to_numbers(pose):
            raise EdmHlocError(
                f"{path}, line {line.number}: {line.name} is there a second time, with another "
                "pose: remove one of the two."
            )
    return poses


@dataclass(frozen=True)
class PoseLine:
    """One line of a file of poses, which may be wrong.

    Attributes:
        number: of the line, from 1.
        name: of the image.
        pose: qw, qx, qy, qz, tx, ty, tz, not normalised; anything if there is a `problem`.
        problem: why the line is not a pose; empty if it is.
    """

    number: int
    name: str
    pose: tuple[float, ...]
    problem: str


def read_pose_lines(path: Path) -> list[PoseLine]:
    """Reads a file of poses line by line, wrong lines included.

    Lines that begin with "#" are comments, unless they are poses: names may begin with it.

    Raises:
        EdmHlocError: the file cannot be read.
    """
    found = [_parse(number, line) for number, line in filled_lines(path, "file of poses")]
    return [line for line in found if not (line.problem and line.name.lstrip().startswith("#"))]


def _parse(number: int, line: str) -> PoseLine:
    words = line.rsplit(maxsplit=7)
    try:
        pose = tuple(float(word) for word in words[1:])
    except ValueError:
        pose = ()
    problem = ""
    if len(pose) != 7:
        problem = "expected 'name qw qx qy qz tx ty tz'"
    elif not np.isfinite(pose).all() or not any(pose[:4]):
        problem = "not a pose: numbers must be finite and the quaternion not zero"
    elif _is_unit(pose[3:]) and not _is_unit(pose[:4]):
        problem = "the quaternion comes last; expected 'name qw qx qy qz tx ty tz'"
    return PoseLine(number, words[0], pose, problem)


def _is_unit(quaternion: Sequence[float]) -> bool:
    """Whether the length of a quaternion is 1, but for rounding."""
    return abs(float(np.linalg.norm(quaternion)) - 1) < 1e-3

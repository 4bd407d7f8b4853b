"""Camera poses as numbers, and files with one pose a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole


def to_numbers(pose: pycolmap.Rigid3d) -> tuple[float, ...]:
    """qw, qx, qy, qz, tx, ty, tz with a unit quaternion, qw not negative."""
    quaternion = np.roll(pose.rotation.quat, 1)
    quaternion = quaternion / np.linalg.norm(quaternion)
    if quaternion[0] < 0:
        quaternion = -quaternion
    return tuple(float(number) for number in (*quaternion, *pose.translation))


def to_rigid(numbers: Sequence[float]) -> pycolmap.Rigid3d:
    """The pose of `to_numbers`."""
    quaternion = np.roll(np.array(numbers[:4]), -1)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(quaternion), np.array(numbers[4:7]))


def write_poses(
    path: Path, poses: Mapping[str, pycolmap.Rigid3d], *, basenames: bool = False
) -> None:
    """Writes one pose a line: name qw qx qy qz tx ty tz, camera from world.

    Args:
        path: the file.
        poses: by name.
        basenames: write names without their folders, as the benchmarks want them.

    Raises:
        EdmHlocError: two names are the same without folders, or the file cannot be written.
    """
    lines: dict[str, str] = {}
    for name, pose in poses.items():
        short = name.rpartition("/")[2] if basenames else name
        if short in lines:
            raise EdmHlocError(f"Two queries are called {short}: the benchmark needs other names.")
        lines[short] = " ".join([short, *map(repr, to_numbers(pose))])
    write_whole(path, "".join(f"{line}\n" for line in lines.values()))


def read_poses(path: Path) -> dict[str, pycolmap.Rigid3d]:
    """Reads a file of `write_poses`, or a benchmark's submission.

    Raises:
        EdmHlocError: it cannot be read, or a line is something else.
    """
    poses = {}
    for number, line in pose_lines(path):
        name, numbers, problem = parse_pose(line)
        if problem:
            raise EdmHlocError(f"{path}, line {number}: {problem}.")
        poses[name] = to_rigid(numbers)
    return poses


def pose_lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EdmHlocError(f"Cannot read the poses {path}: {reason}.") from error
    lines = enumerate(text.split("\n"), start=1)
    return [(n, s) for n, line in lines if (s := line.strip()) and not s.startswith("#")]


def parse_pose(line: str) -> tuple[str, list[float], str]:
    """Name, seven numbers, and what is wrong."""
    words = line.rsplit(maxsplit=7)
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        numbers = []
    if len(numbers) != 7:
        return words[0], numbers, "expected 'name qw qx qy qz tx ty tz'"
    if not np.isfinite(numbers).all() or not any(numbers[:4]):
        return words[0], numbers, "not a pose: numbers must be finite and the quaternion not zero"
    return words[0], numbers, ""

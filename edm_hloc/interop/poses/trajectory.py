"""Lists of poses: TUM's trajectories, and poses by the photos' names as benchmarks have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import say
from edm_hloc.base.text import read_lines
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand, pose_from_world
from edm_hloc.localization.poses import read_poses
from edm_hloc.pairs.rules import in_natural_order

_APART = 0.02  # seconds between a pose and its photo, at most, as TUM's own tools have it
_STAMP = re.compile(r"\d+(?:\.\d+)?")


def read_trajectory(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses of lines "timestamp tx ty tz qx qy qz qw" (world from camera), or of `write_poses`.

    Photos are found by the timestamps in their names, those nearest in time within 0.02 s. Where
    that finds neither most of the photos nor of the poses, the names hold other numbers: if there
    are as many photos as poses, both are taken in their order.

    Raises:
        EdmHlocError: a line is no pose, or poses and photos do not fit.
    """
    lines = read_lines(path, "trajectory")
    if not lines or _is_named(lines[0][1].replace(",", " ").split()):
        poses = read_poses(path, photos.names)
        if not poses:
            raise EdmHlocError(f"{path} holds no pose.")
        names = photos.find(list(poses))
        return [
            GivenPose(name, pose)
            for name, pose in zip(names, poses.values(), strict=True)
            if name is not None
        ]
    stamps, given = [], []
    for number, line in lines:
        words = line.replace(",", " ").split()
        try:
            values = [float(word) for word in words]
            if len(values) != 8 or not np.isfinite(values).all() or not any(values[4:]):
                raise ValueError
        except ValueError:
            raise EdmHlocError(
                f"{path}, line {number}: expected 'timestamp tx ty tz qx qy qz qw', world from "
                f"camera; found {line[:100]!r}."
            ) from None
        quaternion = np.array(values[4:]) / np.linalg.norm(values[4:])
        matrix = np.column_stack([pycolmap.Rotation3d(quaternion).matrix(), values[1:4]])
        stamps.append(values[0])
        given.append(pose_from_world(matrix, f"{path}, line {number}"))
    found = _by_time(np.array(stamps), photos)
    if 2 * len(found) <= min(len(stamps), len(photos.names)):  # a few are so by chance
        known = f"{len(found)} of {len(photos.names)} photos"
        if len(stamps) != len(photos.names):
            raise EdmHlocError(
                f"{path}: {known} in {photos.root} are named by a timestamp within {_APART} s of a "
                f"pose ({stamps[0]:.6f} is the first), and there are {len(stamps)} poses: name the "
                "photos by their timestamps, or give as many."
            )
        say(
            f"Poses: taken in the order of the photos' names, as {known} are named by a timestamp "
            f"of {path}."
        )
        found = dict(enumerate(in_natural_order(photos.names)))
    return [GivenPose(name, given[i]) for i, name in found.items()]


def _by_time(stamps: np.ndarray, photos: PhotosAtHand) -> dict[int, str]:
    """Photos by the number of the pose nearest in time, each pose and photo once."""
    near: dict[int, tuple[float, str]] = {}
    for name in photos.names:
        numbers = _STAMP.findall(Path(name).stem)
        if not numbers:
            continue
        time = float(max(numbers, key=len))
        time *= 1e-9 if time > 1e17 else 1.0  # nanoseconds, as of EuRoC
        i = int(np.abs(stamps - time).argmin())
        apart = abs(float(stamps[i]) - time)
        if apart <= _APART and (i not in near or apart < near[i][0]):
            near[i] = apart, name
    return {i: name for i, (_, name) in sorted(near.items())}


def _is_named(words: Sequence[str]) -> bool:
    """Whether a line begins with a name, which may be "2024 trip.jpg", not with a timestamp."""
    return not all(map(_is_number, words[: max(1, len(words) - 7)]))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True

"""Lists of poses: TUM's and KITTI's trajectories, and poses by the photos' names."""

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
_TUM, _KITTI = 8, 12  # numbers in a line
_STAMP = re.compile(r"\d+(?:\.\d+)?")


def read_trajectory(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses of TUM's or KITTI's lines (both world from camera), or of `write_poses`.

    TUM's lines are "timestamp tx ty tz qx qy qz qw". Photos are found by the timestamps in their
    names, those nearest in time within 0.02 s; both may be in nanoseconds. Where that finds neither
    most of the photos nor of the poses, the names hold other numbers: if there are as many photos
    as poses, both are taken in their order. KITTI's lines are the twelve numbers of a (3, 4) matrix
    by rows. They belong to the photos in their order, if these are as many, or else by the photos'
    numbers, from 0.

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
    values = [_numbers(path, number, line) for number, line in lines]
    if len({len(row) for row in values}) > 1:
        raise EdmHlocError(
            f"{path}: its lines have different numbers of columns ({len(values[0])} in the first): "
            "it is damaged."
        )
    given = [
        pose_from_world(_matrix(row), f"{path}, line {number}")
        for row, (number, _) in zip(values, lines, strict=True)
    ]
    if len(values[0]) == _KITTI:
        found = _by_number(path, len(given), photos)
    else:
        found = _by_stamps(path, [row[0] for row in values], photos)
    return [GivenPose(name, given[i]) for i, name in found.items()]


def _numbers(path: Path, number: int, line: str) -> list[float]:
    """The numbers of a line: eight of TUM's or twelve of KITTI's."""
    try:
        values = [float(word) for word in line.replace(",", " ").split()]
        if len(values) not in (_TUM, _KITTI) or not np.isfinite(values).all():
            raise ValueError
        if len(values) == _TUM and not any(values[4:]):
            raise ValueError
    except ValueError:
        raise EdmHlocError(
            f"{path}, line {number}: expected 'timestamp tx ty tz qx qy qz qw' or the twelve "
            f"numbers of a matrix as KITTI has them, world from camera; found {line[:100]!r}."
        ) from None
    return values


def _matrix(values: Sequence[float]) -> np.ndarray:
    """(3, 4) world_from_cam of the numbers of a line."""
    if len(values) == _KITTI:
        return np.array(values).reshape(3, 4)
    quaternion = np.array(values[4:]) / np.linalg.norm(values[4:])
    return np.column_stack([pycolmap.Rotation3d(quaternion).matrix(), values[1:4]])


def _by_stamps(path: Path, stamps: Sequence[float], photos: PhotosAtHand) -> dict[int, str]:
    """Photos by the number of their pose: by the times in their names, or else in their order."""
    stamps = [_seconds(stamp) for stamp in stamps]
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
    return found


def _by_number(path: Path, poses: int, photos: PhotosAtHand) -> dict[int, str]:
    """Photos by the number of their pose: in their order if as many, or else by their names."""
    if len(photos.names) == poses:
        return dict(enumerate(in_natural_order(photos.names)))
    numbers = [re.findall(r"\d+", Path(name).stem) for name in photos.names]
    found = {int(n[-1]): name for n, name in zip(numbers, photos.names, strict=True) if n}
    if len(found) < len(photos.names) or max(found, default=0) >= poses:
        raise EdmHlocError(
            f"{path} has {poses} poses for {len(photos.names)} photos in {photos.root}: name these "
            "by their numbers in the file, from 0, as 000012.png, or give as many."
        )
    return found


def _seconds(stamp: float) -> float:
    """A timestamp in seconds, which EuRoC and ORB-SLAM3 write in nanoseconds."""
    return stamp * 1e-9 if stamp > 1e17 else stamp


def _by_time(stamps: np.ndarray, photos: PhotosAtHand) -> dict[int, str]:
    """Photos by the number of the pose nearest in time, each pose and photo once."""
    near: dict[int, tuple[float, str]] = {}
    for name in photos.names:
        numbers = _STAMP.findall(Path(name).stem)
        if not numbers:
            continue
        time = _seconds(float(max(numbers, key=len)))
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

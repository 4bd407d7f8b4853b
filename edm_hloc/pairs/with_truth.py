"""Image pairs with their true relative pose: SuperGlue's lists and LoFTR's index files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_lines


class PairWithPose(NamedTuple):
    """Two images with their true intrinsics and relative pose.

    Attributes:
        name0, name1: of the images, relative to their folder.
        rotation0, rotation1: rotation of the images in quarter turns, as their EXIF data say.
        K0, K1: (3, 3) intrinsics, with the centre of the top-left pixel at (0, 0).
        T_0to1: (4, 4) from camera 0 to camera 1.
    """

    name0: str
    name1: str
    rotation0: int
    rotation1: int
    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray


def read_pairs_with_gt(path: Path) -> list[PairWithPose]:
    """Reads a list of pairs with their truth, in the format of SuperGlue's evaluation.

    A line has two names, two EXIF rotations, K0 and K1 (9 numbers each, row by row) and T_0to1 (16
    numbers). Empty lines and comments ("#") are skipped.

    Raises:
        EdmHlocError: the file cannot be read, or a line is something else.
    """
    pairs = []
    for number, line in read_lines(path, "list of pairs"):
        words = line.split()
        try:
            values = np.array(words[4:], dtype=float)
            if len(values) != 34 or not np.isfinite(values).all():
                raise ValueError
            pairs.append(
                PairWithPose(
                    words[0],
                    words[1],
                    int(words[2]),
                    int(words[3]),
                    values[:9].reshape(3, 3),
                    values[9:18].reshape(3, 3),
                    values[18:].reshape(4, 4),
                )
            )
        except ValueError:
            raise EdmHlocError(
                f"{path}, line {number}: not a pair with its truth (two names, two rotations, "
                "K0, K1 and T_0to1: 38 words)."
            ) from None
    return pairs


def write_pairs_with_gt(path: Path, pairs: Iterable[PairWithPose]) -> None:
    """Writes a list that `read_pairs_with_gt` reads; names must not hold white space.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    lines = []
    for pair in pairs:
        numbers = np.concatenate([m.ravel() for m in (pair.K0, pair.K1, pair.T_0to1)])
        words = [pair.name0, pair.name1, str(pair.rotation0), str(pair.rotation1)]
        lines.append(" ".join([*words, *(f"{v:.17g}" for v in numbers)]))
    write_whole(path, "\n".join(lines) + "\n")


def read_index(path: Path, *required: str) -> dict[str, Any]:
    """The arrays of one of LoFTR's index files (.npz), by name.

    Args:
        path: of the file. It is unpickled: read only files that you trust.
        required: names that must be there.

    Raises:
        EdmHlocError: the file cannot be read, or lacks a required array.
    """
    try:
        with np.load(path, allow_pickle=True) as file:  # the format has arrays of objects
            content = dict(file)
    except Exception as error:  # unpickling raises anything
        raise EdmHlocError(f"{path} is not an index file as LoFTR has them: {error}.") from error
    missing = [name for name in required if name not in content]
    if missing:
        raise EdmHlocError(f"The index file {path} lacks {', '.join(missing)}.")
    return content


def read_scannet_pose(scene: Path, frame: int) -> np.ndarray:
    """The pose of a frame of ScanNet: (4, 4) cam_from_world, the inverse of what the file holds.

    Args:
        scene: folder of the scene.
        frame: number of the frame.

    Raises:
        ImageError: the pose cannot be read, or is not finite because ScanNet's tracking failed.
    """
    path = scene / "pose" / f"{frame}.txt"
    try:
        world_from_cam = np.loadtxt(path).reshape(4, 4)
        if not np.isfinite(world_from_cam).all():
            raise ValueError("it is not finite")
    except (OSError, ValueError) as error:
        raise ImageError(f"Cannot read the pose {path}: {error}.") from error
    return np.linalg.inv(world_from_cam)

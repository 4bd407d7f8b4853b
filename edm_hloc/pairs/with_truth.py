"""Lists of image pairs with their true relative pose, in SuperGlue's format `pairs_with_gt`.

Intrinsics are in hloc's pixel frame, as in all lists that are published in this format:

- YFCC (`yfcc_test_pairs_with_gt.txt`): the principal point is ((w − 1) / 2, (h − 1) / 2), which is
  (319.5, 213.0) for a photo of 640 × 427 px.
- ScanNet (`scannet_test_pairs_with_gt.txt`): K is that of ScanNet's colour camera at 1296 × 968 px,
  whose pixel frame is hloc's (see `index_files.scannet_intrinsics`). SuperGlue's own code rotates
  it with w − 1 − cx, which holds in this frame alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_lines


class PairWithPose(NamedTuple):
    """Two images, their intrinsics and their relative pose.

    Attributes:
        name0, name1: paths of the images, relative to their folder.
        rotation0, rotation1: EXIF rotations in quarter turns.
        K0, K1: (3, 3) intrinsics in hloc's pixel frame.
        T_0to1: (4, 4), from the coordinates of camera 0 to those of camera 1.
    """

    name0: str
    name1: str
    rotation0: int
    rotation1: int
    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray


def read_pairs_with_gt(path: Path) -> list[PairWithPose]:
    """Reads a list of pairs.

    A line holds the two names, the two EXIF rotations, K0 and K1 (9 numbers each, row by row) and
    T_0to1 (16 numbers). Empty lines and comments ("#") are skipped.

    Raises:
        EdmHlocError: the file cannot be read, or a line is malformed; the message has its number.
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
                f"{path}, line {number}: not a pair with its relative pose (two names, two "
                "rotations, K0, K1 and T_0to1: 38 words)."
            ) from None
    return pairs


def write_pairs_with_gt(path: Path, pairs: Iterable[PairWithPose]) -> None:
    """Writes a list that `read_pairs_with_gt` reads; names must not contain white space.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    lines = []
    for pair in pairs:
        numbers = np.concatenate([m.ravel() for m in (pair.K0, pair.K1, pair.T_0to1)])
        words = [pair.name0, pair.name1, str(pair.rotation0), str(pair.rotation1)]
        lines.append(" ".join([*words, *(f"{v:.17g}" for v in numbers)]))
    write_whole(path, "\n".join(lines) + "\n")

"""Turns the true cameras of data sets into a list of poses that `edm-hloc compare` reads.

    python benchmarks/true_poses.py FORM FILE IMAGES POSES
    edm-hloc compare OUT/model POSES --images IMAGES

FORM is one of

    middlebury  `*_par.txt` of the multi-view benchmark: name, K, R, t (camera from world)
    tartanair   `pose_left.txt`: tx ty tz qx qy qz qw, world from a camera that looks along x
    tsukuba     tx ty tz and a 3×3 rotation by rows, world from camera, this with the axes of
                OpenGL, as in the copy of felixchenfy/Monocular-Visual-Odometry-Data

The second and third have no names: photo number n, the last number of its name, has the n-th line,
from 0. Other forms need no conversion: `edm-hloc compare` reads nerfstudio's and Blender's
transforms.json and the trajectories of TUM and KITTI. POSES has a line `name qw qx qy qz tx ty tz`
(camera from world) for each photo in IMAGES.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_lines
from edm_hloc.images.find import find_images
from edm_hloc.interop.poses.given import OPENGL, pose_from_world
from edm_hloc.localization.poses import write_poses

_TARTANAIR_AXES = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
"""COLMAP's camera axes (right, down, forward) to TartanAir's (forward, right, down)."""


def _middlebury(numbers: np.ndarray) -> np.ndarray:
    """(3, 4) world_from_cam of the 9 numbers of K, 9 of R and 3 of t."""
    R, t = numbers[9:18].reshape(3, 3), numbers[18:]
    return np.column_stack([R.T, -R.T @ t])


def _tartanair(numbers: np.ndarray) -> np.ndarray:
    """(3, 4) world_from_cam of a place and a quaternion x, y, z, w."""
    R = pycolmap.Rotation3d(numbers[3:] / np.linalg.norm(numbers[3:])).matrix()
    return np.column_stack([R @ _TARTANAIR_AXES, numbers[:3]])


def _tsukuba(numbers: np.ndarray) -> np.ndarray:
    """(3, 4) world_from_cam of a place and a rotation between OpenGL's axes by rows."""
    return np.column_stack([OPENGL @ numbers[3:].reshape(3, 3) @ OPENGL, numbers[:3]])


FORMS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "middlebury": (21, _middlebury),
    "tartanair": (7, _tartanair),
    "tsukuba": (12, _tsukuba),
}
"""How many numbers a line has, and what they mean."""


def true_poses(form: str, file: Path, images: Path) -> dict[str, pycolmap.Rigid3d]:
    """cam_from_world of the photos in a folder by name.

    Raises:
        EdmHlocError: a line is not of the form, or a photo has no line.
    """
    columns, world_from_cam = FORMS[form]
    by_key: dict[str, pycolmap.Rigid3d] = {}
    for number, line in read_lines(file, "poses"):
        words = line.split()
        named = form == "middlebury"
        if named and len(words) == 1:  # their number
            continue
        key, where = words[0] if named else str(len(by_key)), f"{file}, line {number}"
        try:
            numbers = np.array(words[named:], np.float64)
        except ValueError:
            numbers = np.empty(0)
        if len(numbers) != columns:
            raise EdmHlocError(f"{where}: expected {columns} numbers, found {line[:80]!r}.")
        by_key[key] = pose_from_world(world_from_cam(numbers), where)
    found = {}
    for name in find_images(images):
        numbers_in = re.findall(r"\d+", Path(name).stem)
        key = (
            name.rpartition("/")[2] if form == "middlebury" else str(int((numbers_in or [-1])[-1]))
        )
        if key not in by_key:
            raise EdmHlocError(f"{file} has no pose for {name}.")
        found[name] = by_key[key]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("file", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("poses", type=Path)
    args = parser.parse_args()
    try:
        poses = true_poses(args.form, args.file, args.images)
        write_poses(args.poses, poses)
    except EdmHlocError as error:
        parser.exit(1, f"{error}\n")
    print(f"{len(poses)} poses in {args.poses}")


if __name__ == "__main__":
    main()

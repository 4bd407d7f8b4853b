"""LoFTR's index files: pairs of MegaDepth's and ScanNet's images with intrinsics and poses.

The two data sets define their intrinsics in different pixel frames, neither of which a file names.
Each has one function that converts K into hloc's frame, with the evidence for it; the readers give
K in hloc's frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.frames import from_colmap
from edm_hloc.pairs.arrays import load_arrays

SCANNET_DEPTH_SIZE = (640, 480)  # width, height in pixels
_SCANNET_COLOUR_SIZE = (1296, 968)
_FIRST_SCANNET_TEST_SCENE = 707  # scenes 0–706 are those of training and validation


def megadepth_intrinsics(K: np.ndarray) -> np.ndarray:
    """(3, 3) intrinsics of a MegaDepth index file → hloc's pixel frame.

    They come from COLMAP's undistorted images: the principal point is (w / 2, h / 2) exactly, with
    (0, 0) at the outer corner of the top-left pixel. In all 998 images of LoFTR's test indices, cx
    and cy are multiples of ½: 800.0 for photos 1,600 px wide, 799.5 for 1,599 px, 507.0 for
    1,014 px.
    """
    converted = np.array(K, float).reshape(3, 3)
    converted[:2, 2] = from_colmap(converted[:2, 2])
    return converted


def scannet_intrinsics(K: np.ndarray, scene: int) -> np.ndarray:
    """(3, 3) intrinsics of a ScanNet `intrinsics.npz` → hloc's pixel frame of 640 × 480 px.

    ScanNet's own frame is hloc's: uncalibrated depth cameras have the principal point
    (319.5, 239.5) for 640 × 480 px, and in calibrated ones it is that of the colour camera times
    639/1295 and 479/967, which maps the centres of the first and the last pixel to each other.
    LoFTR has two files:

    - `data/scannet/intrinsics.npz`, scenes 0–706, holds the depth cameras' intrinsics: they are
      left as they are.
    - `assets/scannet_test_1500/intrinsics.npz`, scenes 707–806, holds the colour cameras', each row
      times 640/1296 or 480/968. Resizing by s maps c to (c + ½)·s − ½ rather than c·s, so that
      (1 − s)/2 ≈ 0.25 px are subtracted. Sensors that are in both files then agree to 0.003 px.

    Args:
        K: 9 numbers, or the 16 of a (4, 4) matrix.
        scene: its number, 707 in scene0707_00.
    """
    converted = np.array(K, float)
    if converted.size == 16:
        converted = converted.reshape(4, 4)[:3, :3]
    converted = converted.reshape(3, 3)
    if scene >= _FIRST_SCANNET_TEST_SCENE:
        scale = np.divide(SCANNET_DEPTH_SIZE, _SCANNET_COLOUR_SIZE)
        converted[:2, 2] -= (1 - scale) / 2
    return converted


@dataclass(frozen=True)
class MegaDepthIndex:
    """The images and pairs of one scene; an image is known by its number in the file.

    Attributes:
        path: of the index file.
        pairs: numbers of the two images of each pair.
        overlaps: (P,) overlap scores of the pairs.
    """

    path: Path
    pairs: tuple[tuple[int, int], ...]
    overlaps: np.ndarray
    _content: Mapping[str, Any]

    def image_path(self, number: int) -> str:
        """Path of a photo, relative to the root of the data."""
        return str(self._content["image_paths"][number])

    def depth_path(self, number: int) -> str:
        """Path of an H5 file with the entry `depth` (H, W), relative to the root of the data.

        Raises:
            EdmHlocError: the index file has no depth maps.
        """
        if "depth_paths" not in self._content:
            raise EdmHlocError(f"The index file {self.path} lacks depth_paths.")
        return str(self._content["depth_paths"][number])

    def K(self, number: int) -> np.ndarray:
        """(3, 3) intrinsics in hloc's pixel frame of the photo at its full size."""
        return megadepth_intrinsics(self._content["intrinsics"][number])

    def T_0to1(self, number0: int, number1: int) -> np.ndarray:
        """(4, 4), from the coordinates of the first camera to those of the second."""
        pose0, pose1 = (np.asarray(self._content["poses"][n], float) for n in (number0, number1))
        T: np.ndarray = pose1 @ np.linalg.inv(pose0)
        return T


def read_megadepth_index(path: Path, *, with_depth: bool = False) -> MegaDepthIndex:
    """Reads the index file of a scene.

    Args:
        path: an `*.npz` file. It has `image_paths`, `intrinsics` (N, 3, 3), `poses` (N, 4, 4),
            which are cam_from_world, and `pair_infos`, a list of ((i, j), overlap, …).
        with_depth: whether it must have `depth_paths` as well.

    Raises:
        EdmHlocError: the file cannot be read, or lacks an entry.
    """
    depth = ["depth_paths"] if with_depth else []
    content = _read_index(path, "image_paths", *depth, "intrinsics", "poses", "pair_infos")
    infos = content["pair_infos"]
    return MegaDepthIndex(
        path,
        tuple((int(info[0][0]), int(info[0][1])) for info in infos),
        np.array([float(info[1]) for info in infos]),
        content,
    )


class ScanNetIntrinsics:
    """The file `intrinsics.npz` beside ScanNet's index files.

    Args:
        path: an `*.npz` file with one array of 9 or 16 numbers for each scan.

    Raises:
        EdmHlocError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = _read_index(path)

    def K(self, scan: str) -> np.ndarray:
        """(3, 3) intrinsics of a scan, such as "scene0707_00", in hloc's frame at 640 × 480 px.

        Raises:
            EdmHlocError: the file lacks the scan.
        """
        if scan not in self._content:
            raise EdmHlocError(f"The index file {self.path} lacks {scan}.")
        return scannet_intrinsics(self._content[scan], int(scan[len("scene") :][:4]))


@dataclass(frozen=True)
class ScanNetIndex:
    """Pairs of ScanNet's frames.

    Attributes:
        pairs: scan, such as "scene0707_00", and numbers of its two frames.
        overlaps: (P,) overlap scores of the pairs; None in LoFTR's list of test pairs.
    """

    pairs: tuple[tuple[str, int, int], ...]
    overlaps: np.ndarray | None


def read_scannet_index(path: Path, *, with_overlap: bool = False) -> ScanNetIndex:
    """Reads an index file of ScanNet.

    Args:
        path: an `*.npz` file with `name` (P, 4), rows of scene, scan, frame and frame; for training
            also `score` (P,), the overlap.
        with_overlap: whether the file must have `score`.

    Raises:
        EdmHlocError: the file cannot be read, or lacks an entry.
    """
    content = _read_index(path, "name", *(["score"] if with_overlap else []))
    pairs = tuple(
        (f"scene{int(scene):04d}_{int(scan):02d}", int(frame0), int(frame1))
        for scene, scan, frame0, frame1 in content["name"]
    )
    score = content.get("score")
    return ScanNetIndex(pairs, None if score is None else np.asarray(score))


def read_scannet_pose(scan: Path, frame: int) -> np.ndarray:
    """(4, 4) cam_from_world of a frame; the file `pose/FRAME.txt` of a scan holds its inverse.

    Raises:
        ImageError: it cannot be read, or is not finite, as where ScanNet lost track.
    """
    path = scan / "pose" / f"{frame}.txt"
    try:
        world_from_cam = np.loadtxt(path).reshape(4, 4)
        if not np.isfinite(world_from_cam).all():
            raise ValueError("it is not finite")
    except (OSError, ValueError) as error:
        raise ImageError(f"Cannot read the pose {path}: {error}.") from error
    return np.linalg.inv(world_from_cam)


def _read_index(path: Path, *required: str) -> dict[str, Any]:
    """The arrays of an index file by name; EdmHlocError if it is none or lacks one `required`."""
    try:
        # The format has object arrays; MegaDepth's files are pickled dictionaries in spite of their
        # suffix.
        content = load_arrays(path)
    except Exception as error:  # pickles raise anything
        raise EdmHlocError(f"{path} is not an index file as LoFTR has them: {error}.") from error
    missing = [name for name in required if name not in content]
    if missing:
        raise EdmHlocError(f"The index file {path} lacks {', '.join(missing)}.")
    return content

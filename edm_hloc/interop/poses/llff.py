"""LLFF's `poses_bounds.npy`, which NeRF's and many later programs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand, pose_from_world
from edm_hloc.interop.poses.records import checked_camera, pixels, positive

_NUMBERS = 17  # 15 of a (3, 5) matrix by rows, and the nearest and farthest depth


def read_llff(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and focal lengths of a `poses_bounds.npy`, in its own world.

    Each row has a (3, 5) matrix: the camera's axes in the world, which point down, right and
    backwards, its place, and height, width and focal length in pixels. The principal point is in
    the middle. Rows belong to the photos in the plain order of their names.

    Raises:
        EdmHlocError: the file is damaged or another, or there are not as many photos as rows.
    """
    rows = _rows(path)
    names = sorted(photos.names)
    if len(rows) != len(names):
        raise EdmHlocError(
            f"{path} has poses for {len(rows)} photos, and {photos.root} has {len(names)}; the "
            "file does not name them: give the folder with just the photos that it was made of."
        )
    given = []
    cameras: dict[tuple[float, ...], pycolmap.Camera] = {}
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        where = f"{path}, row {number} ({name})"
        matrix = row[:15].reshape(3, 5)
        own = dict(zip(("height", "width", "focal length"), map(float, matrix[:, 4]), strict=True))
        width, height = (pixels(own, key, where) for key in ("width", "height"))
        focal = positive(own, "focal length", where)
        key = width, height, focal
        if key not in cameras:
            params = [focal, width / 2, height / 2]
            cameras[key] = checked_camera("SIMPLE_PINHOLE", (width, height), params, where)
        down, right, backwards, place = matrix[:, :4].T
        world_from_cam = np.column_stack([right, down, -backwards, place])
        given.append(GivenPose(name, pose_from_world(world_from_cam, where), cameras[key]))
    return given


def _rows(path: Path) -> np.ndarray:
    """(N, 17) finite numbers of a file. Raises EdmHlocError where it holds something else."""
    try:
        rows = np.load(path, allow_pickle=False)
        if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu":
            raise ValueError("it holds no numbers")
        if rows.ndim != 2 or rows.shape[1] != _NUMBERS:
            raise ValueError(f"its array is of shape {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("a number in it is not finite")
    except OSError as error:
        raise EdmHlocError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise EdmHlocError(
            f"{path} is not LLFF's poses_bounds.npy, an array with {_NUMBERS} numbers for each "
            f"photo: {error}."
        ) from error
    return rows.astype(np.float64)

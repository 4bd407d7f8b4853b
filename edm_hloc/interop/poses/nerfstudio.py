"""nerfstudio's `transforms.json`, and that of instant-ngp and of Blender's NeRF data."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, ImageError, NotInColmapError
from edm_hloc.base.files import write_whole
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_json_object
from edm_hloc.images.intrinsics import is_fisheye, transforms_camera
from edm_hloc.interop.exports import nerfstudio_frames
from edm_hloc.interop.poses.given import OPENGL, GivenPose, PhotosAtHand, pose_from_world
from edm_hloc.interop.poses.records import report_not_in_colmap

_INTRINSICS = {
    *("camera_model", "is_fisheye", "w", "h", "fl_x", "fl_y", "cx", "cy", "distortion_params"),
    *("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2"),
    *("camera_angle_x", "camera_angle_y", "x_fov", "y_fov"),
}
_PARTS = {"train_filenames", "val_filenames", "test_filenames"}  # file_path of some frames each


def read_nerfstudio(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of a `transforms.json`, in the world of its `transform_matrix`.

    Raises:
        EdmHlocError: the file is damaged or another, or all cameras are such as COLMAP has not.
    """
    record = read_json_object(path, "transforms.json")
    frames = record.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise EdmHlocError(f"{path} has no list of frames, as a transforms.json of nerfstudio has.")
    given = []
    not_in_colmap: Counter[str] = Counter()
    same: dict[str, pycolmap.Camera] = {}
    names = photos.find([str(frame.get("file_path")) for frame in frames])
    for number, (frame, name) in enumerate(zip(frames, names, strict=True)):
        where = f"{path}, frame {number} ({frame.get('file_path', 'without file_path')})"
        try:
            if "file_path" not in frame:
                raise ValueError("there is no file_path")
            matrix = np.array(frame["transform_matrix"], np.float64)
            if matrix.shape not in ((4, 4), (3, 4)):
                raise ValueError(f"transform_matrix is of shape {matrix.shape}")
        except (KeyError, ValueError, TypeError) as error:
            raise EdmHlocError(
                f"{where}: expected file_path and transform_matrix of 4 × 4 ({error})."
            ) from error
        if name is None:
            continue
        matrix = matrix[:3].copy()
        matrix[:, :3] = matrix[:, :3] @ OPENGL
        try:
            camera = _camera({**record, **frame}, photos, name, where)
        except ImageError as error:
            warn_once(f"Skipping a photo: {error}")
            continue
        except NotInColmapError as error:
            not_in_colmap[str(error)] += 1
            continue
        if camera is not None:  # one object for all frames of equal intrinsics
            camera = same.setdefault(str(camera.todict()), camera)
        given.append(GivenPose(name, pose_from_world(matrix, where), camera))
    report_not_in_colmap(path, not_in_colmap, len(given))
    return given


def _camera(
    own: Mapping[str, Any], photos: PhotosAtHand, name: str, where: str
) -> pycolmap.Camera | None:
    fisheye = is_fisheye(own)
    if "fl_x" in own:
        for key in ("fl_x", "fl_y", "w", "h"):
            value = own.get(key, 1)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise EdmHlocError(f"{where}: {key} is {value!r}; it must be a positive number.")
        has_size = "w" in own and "h" in own
        width, height = (own["w"], own["h"]) if has_size else photos.size(name)
        middle = {"cx": width / 2, "cy": height / 2}
        size = {"w": width, "h": height}
        return transforms_camera({**middle, "fl_y": own["fl_x"], **own, **size}, where)
    if "camera_angle_x" in own:
        try:
            angle = float(own["camera_angle_x"])
        except (ValueError, TypeError):
            angle = 0.0
        if not 0 < angle < math.pi:
            raise EdmHlocError(f"{where}: camera_angle_x must be between 0 and π radians.")
        width, height = photos.size(name)
        focal = width / 2 / math.tan(angle / 2)
        if fisheye:  # the angle stands for the same focal length in instant-ngp
            lens = {"w": width, "h": height, "fl_x": focal, "fl_y": focal}
            return transforms_camera({"cx": width / 2, "cy": height / 2, **own, **lens}, where)
        return pycolmap.Camera(
            model="SIMPLE_PINHOLE",
            width=width,
            height=height,
            params=[focal, width / 2, height / 2],
        )
    return None


def write_nerfstudio(
    source: Path, out: Path, model: pycolmap.Reconstruction, photos: PhotosAtHand
) -> None:
    """Writes a `transforms.json` with the poses and intrinsics of a model in place of its own.

    Each frame has its own intrinsics and the path of its photo at hand. Frames whose photo is not
    in the model are left out. Everything else stays, with paths that hold from where `out` is.

    Args:
        source: the file that was read.
        out: the file to write.
        model: refined poses, in the world of the file.
        photos: the photos at hand.

    Raises:
        EdmHlocError: a camera model is unknown to nerfstudio; fisheye and other cameras are mixed;
            the source cannot be read any more, or a file cannot be written.
    """
    record = read_json_object(source, "transforms.json")
    kind, refined = nerfstudio_frames(model)
    folder = out.parent

    def kept(given: Mapping[str, Any]) -> dict[str, Any]:
        """What stays of a frame or of the file: nerfstudio prefers intrinsics of the file."""
        others = {key: value for key, value in given.items() if key not in _INTRINSICS}
        for key, value in others.items():
            is_path = key.endswith("_path") and isinstance(value, str)
            if is_path and not Path(value).is_absolute():
                others[key] = _path_from(folder, source.parent / value)
        return others

    paths = {name: _path_from(folder, photos.root / name) for name in refined}
    frames = []
    names = photos.find([str(frame["file_path"]) for frame in record["frames"]])
    for frame, name in zip(record["frames"], names, strict=True):
        if name in refined:
            lens = refined[name]
            if "is_fisheye" in {**record, **frame}:  # instant-ngp wants it beside k1
                lens = {**lens, "is_fisheye": kind == "OPENCV_FISHEYE"}
            frames.append({**kept(frame), "file_path": paths[name], **lens})
    written = {**kept(record), "camera_model": kind, "frames": frames}
    for part in _PARTS & record.keys():
        if not isinstance(record[part], list):
            continue
        names = photos.find(list(map(str, record[part])))
        written[part] = [paths[name] for name in names if name in refined]
    write_whole(out, json.dumps(written, indent=2))


def _path_from(folder: Path, path: Path) -> str:
    """A path relative to a folder; absolute on another drive."""
    path = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:
        return path.as_posix()

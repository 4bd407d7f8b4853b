"""nerfstudio's `transforms.json`, and that of instant-ngp and of Blender's NeRF data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_json_object
from edm_hloc.images.intrinsics import transforms_camera
from edm_hloc.interop.exports import nerfstudio_camera
from edm_hloc.interop.poses.given import OPENGL, GivenPose, PhotosAtHand, pose_from_world


def read_nerfstudio(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of a `transforms.json`, in the world of its `transform_matrix`.

    Raises:
        EdmHlocError: the file is damaged or another.
    """
    record = read_json_object(path, "transforms.json")
    frames = record.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise EdmHlocError(f"{path} has no list of frames, as a transforms.json of nerfstudio has.")
    given = []
    same: dict[str, pycolmap.Camera] = {}
    for number, frame in enumerate(frames):
        where = f"{path}, frame {number} ({frame.get('file_path', 'without file_path')})"
        try:
            name = photos.find(str(frame["file_path"]))
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
        camera = _camera({**record, **frame}, photos, name, where)
        if camera is not None:  # one object for all frames of equal intrinsics
            camera = same.setdefault(str(camera.todict()), camera)
        given.append(GivenPose(name, pose_from_world(matrix, where), camera))
    return given


def _camera(
    own: Mapping[str, Any], photos: PhotosAtHand, name: str, where: str
) -> pycolmap.Camera | None:
    if "fl_x" in own:
        sizes = dict(zip(("w", "h"), photos.size(name), strict=True))
        for key in ("fl_x", "fl_y", "w", "h"):
            value = own.get(key, 1)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise EdmHlocError(f"{where}: {key} is {value!r}; it must be a positive number.")
        width, height = own.get("w", sizes["w"]), own.get("h", sizes["h"])
        middle = {"w": width, "h": height, "cx": width / 2, "cy": height / 2}
        return transforms_camera({**middle, "fl_y": own["fl_x"], **own}, where)
    if "camera_angle_x" in own:
        try:
            angle = float(own["camera_angle_x"])
        except (ValueError, TypeError):
            angle = 0.0
        if not 0 < angle < math.pi:
            raise EdmHlocError(f"{where}: camera_angle_x must be between 0 and π radians.")
        width, height = photos.size(name)
        focal = width / 2 / math.tan(angle / 2)
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

    Everything else in the file stays. Frames whose photo is not in the model are left out.

    Args:
        source: the file that was read.
        out: the file to write.
        model: refined poses, in the world of the file.
        photos: the photos at hand.

    Raises:
        EdmHlocError: the source cannot be read any more, or a file cannot be written.
    """
    record = read_json_object(source, "transforms.json")
    images = posed_images(model)
    frames = []
    for frame in record["frames"]:
        image = images.get(photos.find(str(frame["file_path"])) or "")
        if image is None:
            continue
        world_from_cam = np.eye(4)
        world_from_cam[:3] = image.cam_from_world().inverse().matrix()
        world_from_cam[:3, :3] = world_from_cam[:3, :3] @ OPENGL
        intrinsics = nerfstudio_camera(model.cameras[image.camera_id])
        kind = intrinsics.pop("camera_model")
        frames.append({**frame, **intrinsics, "transform_matrix": world_from_cam.tolist()})
        record["camera_model"] = kind
    write_whole(out, json.dumps({**record, "frames": frames}, indent=2))

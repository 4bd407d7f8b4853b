"""Reading of COLMAP's `rig_config.json`: COLMAP's own reader dies of some files, and passes over
what is wrong in others."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_text
from edm_hloc.base.text_models import lens_fault

_WHAT = (
    'a list of objects with "cameras", each with an "image_prefix", one of them the "ref_sensor"'
)


def read_rigs(file: Path) -> list[pycolmap.RigConfig]:
    """The rigs that a file in the format of COLMAP's `rig_config.json` describes.

    Returns:
        Rigs of one camera or more, no two of one prefix, one of them the reference, which has no
        pose. Rotations have length 1; cameras have a width and height of 0, which the file does
        not tell.

    Raises:
        EdmHlocError: the file cannot be read, is damaged, or says what cannot be.
    """
    try:
        content = json.loads(read_text(file, "configuration of rigs"))
    except (ValueError, RecursionError) as error:
        raise EdmHlocError(
            f"{file} is damaged or no configuration of rigs: it is not JSON ({error})."
        ) from error
    if content == []:
        raise EdmHlocError(f"{file} describes no rig.")
    rigs = []
    for number, entry in enumerate(content if isinstance(content, list) else [None], start=1):
        cameras = entry.get("cameras") if isinstance(entry, dict) else None
        if not isinstance(cameras, list) or not cameras:
            raise EdmHlocError(f"{file} is damaged or no configuration of rigs: {_WHAT}.")
        rig = pycolmap.RigConfig()
        # COLMAP wants the reference first
        rig.cameras = sorted(
            (_camera(camera, file) for camera in cameras), key=lambda camera: not camera.ref_sensor
        )
        if sum(camera.ref_sensor for camera in rig.cameras) != 1:
            raise EdmHlocError(
                f'{file}: one camera of rig {number} has to be its reference, with "ref_sensor": '
                "true, and only one."
            )
        rigs.append(rig)
    prefixes = Counter(camera.image_prefix for rig in rigs for camera in rig.cameras)
    prefix, times = prefixes.most_common(1)[0]
    if times > 1:
        raise EdmHlocError(f"{file} has {times} cameras with the image_prefix {prefix!r}.")
    return rigs


def _camera(entry: Any, file: Path) -> pycolmap.RigConfigCamera:
    if not isinstance(entry, dict) or not isinstance(entry.get("image_prefix"), str):
        raise EdmHlocError(f"{file} is damaged or no configuration of rigs: {_WHAT}.")
    camera = pycolmap.RigConfigCamera()
    camera.image_prefix = entry["image_prefix"].replace("\\", "/")  # as Windows writes folders
    where = f"{file}, camera {camera.image_prefix!r}:"
    reference = entry.get("ref_sensor", False)
    if not isinstance(reference, bool):
        raise EdmHlocError(f'{where} "ref_sensor" is {reference!r}, and has to be true or false.')
    camera.ref_sensor = reference
    rotation, translation = (
        _numbers(entry, f"cam_from_rig_{part}", where) for part in ("rotation", "translation")
    )
    if (rotation is None) != (translation is None):
        raise EdmHlocError(
            f"{where} its pose needs both cam_from_rig_rotation and cam_from_rig_translation; "
            "without either, it is found from the photos."
        )
    if rotation is not None and translation is not None:
        camera.cam_from_rig = _pose(rotation, translation, where)
        if reference:
            raise EdmHlocError(
                f"{where} it is the reference, which has no pose in the rig: leave it out."
            )
    model, params = entry.get("camera_model_name"), _numbers(entry, "camera_params", where)
    if (model is None) != (params is None):
        raise EdmHlocError(f"{where} camera_model_name and camera_params go together.")
    if params is not None:
        camera.camera = _intrinsics(model, params, where)
    return camera


def _numbers(entry: dict[str, Any], key: str, where: str) -> list[float] | None:
    """Finite numbers, None if there is no such key."""
    values = entry.get(key)
    if values is None:
        return None
    try:
        if not isinstance(values, list):
            raise ValueError
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise EdmHlocError(f"{where} {key} is no list of numbers.") from None
    if not all(map(math.isfinite, numbers)):
        raise EdmHlocError(f"{where} {key} holds a number that is not finite.")
    return numbers


def _pose(rotation: list[float], translation: list[float], where: str) -> pycolmap.Rigid3d:
    length = math.hypot(*rotation)
    if len(rotation) != 4 or length < 1e-6:
        raise EdmHlocError(f"{where} cam_from_rig_rotation is no quaternion [w, x, y, z].")
    if len(translation) != 3:
        raise EdmHlocError(f"{where} cam_from_rig_translation is not [x, y, z].")
    w, x, y, z = (value / length for value in rotation)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([x, y, z, w])), np.array(translation))


def _intrinsics(model: Any, params: list[float], where: str) -> pycolmap.Camera:
    models = pycolmap.CameraModelId.__members__
    if model not in models or model == "INVALID":
        raise EdmHlocError(f"{where} COLMAP has no camera model {model!r}.")
    camera = pycolmap.Camera(model=model, width=0, height=0, params=params)
    if reason := lens_fault(camera):
        raise EdmHlocError(f"{where} {reason}.")
    if not len(camera.focal_length_idxs()):
        raise EdmHlocError(
            f"{where} {model} is a camera of all directions, which has no focal length. Photos in "
            "rigs need one: give the camera of perspective views."
        )
    return camera

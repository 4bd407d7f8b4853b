"""COLMAP's text models, often written by hand: checked line by line, and put in order.

`images.txt` has two lines an image: `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`, and the points,
which may be empty. Editors and scripts leave empty lines out; COLMAP then takes the next image for
points. It also takes quaternions of any length as they are, and sizes and numbers of any kind.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_lines, read_text

logger = logging.getLogger(__name__)

_NOT_UNIT = 1e-6  # rounding of numbers as programs write them; what differs more is rescaled
_SURPRISING = 1e-2  # a quaternion that differs more from length 1 is worth a warning


def check_cameras_txt(path: Path) -> None:
    """Raises EdmHlocError, with the line, if a camera of `cameras.txt` cannot be."""
    for number, line in read_lines(path, "cameras of the model"):
        fields = line.split()
        try:
            camera_id, width, height = int(fields[0]), int(fields[2]), int(fields[3])
            params = [float(value) for value in fields[4:]]
            if camera_id < 0 or width < 0 or height < 0:
                raise ValueError("negative numbers")
            camera = pycolmap.Camera(
                model=fields[1], width=width, height=height, params=params, camera_id=camera_id
            )
        except Exception as error:  # pycolmap raises almost anything
            raise _wrong(path, number, line, "CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS") from error
        reason = camera_fault(camera)
        if reason:
            raise EdmHlocError(f"{path}, line {number}: {reason}. Correct the file.")


def camera_fault(camera: pycolmap.Camera) -> str:
    """What makes a camera impossible; empty if nothing does."""
    if camera.width <= 0 or camera.height <= 0:
        return f"the camera has a size of {camera.width} × {camera.height} pixels"
    if not all(map(math.isfinite, camera.params)):
        return "a parameter of the camera is no finite number"
    if not camera.verify_params():
        return f"{camera.model.name} has another number of parameters than {len(camera.params)}"
    focal = [camera.params[i] for i in camera.focal_length_idxs()]
    if min(focal, default=1) <= 0:
        return f"the camera has a focal length of {min(focal):g} pixels"
    return ""


def images_txt_in_order(path: Path) -> str | None:
    """The content of `images.txt` as COLMAP wants it; None if it is so already.

    Empty lines that are missing are put in, and quaternions are made to have length 1.

    Raises:
        EdmHlocError: a line is neither an image nor its points, or holds impossible numbers.
    """
    lines = read_text(path, "images of the model").split("\n")
    if lines[-1] == "":
        del lines[-1]
    changed = False
    result = []
    surprising = []  # line and length
    i = 0
    while i < len(lines):
        line, number = lines[i].strip(), i + 1
        i += 1
        if not line or line.startswith("#"):
            continue
        fields, length = _pose_fields(path, number, line)
        changed |= abs(length - 1) > _NOT_UNIT
        if abs(length - 1) > _SURPRISING:
            surprising.append((number, length))
        result.append(" ".join(fields))
        points = lines[i].strip() if i < len(lines) else None
        if points is None or _is_image(points):
            changed = True
            points = ""
        else:
            i += 1
        if len(points.split()) % 3:
            expected = "the points X Y POINT3D_ID of the image above, or an empty line"
            raise _wrong(path, i, points, expected)
        result.append(points)
    if surprising:
        logger.warning(
            "%s has %d quaternions that are not of length 1 (the first, in line %d, of %.4g); they "
            "are divided by their length. Is their order QW QX QY QZ?",
            path,
            len(surprising),
            *surprising[0],
        )
    return "\n".join(result) + "\n" if changed else None


def _pose_fields(path: Path, number: int, line: str) -> tuple[list[str], float]:
    """The ten fields of an image with a quaternion of length 1, and the length that it had."""
    fields = line.split(maxsplit=9)
    try:
        if len(fields) < 10 or int(fields[0]) < 0 or int(fields[8]) < 0:
            raise ValueError("not an image")
        numbers = [float(value) for value in fields[1:8]]
    except ValueError as error:
        expected = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line with points or none"
        raise _wrong(path, number, line, expected) from error
    length = math.hypot(*numbers[:4])
    if not all(map(math.isfinite, numbers)) or length < _NOT_UNIT:
        raise EdmHlocError(
            f"{path}, line {number}: the pose of {fields[9][:100]} is not possible (quaternion and "
            "position must be finite, and the quaternion not zero). Correct or remove the image."
        )
    if abs(length - 1) > _NOT_UNIT:
        fields[1:5] = [repr(q / length) for q in numbers[:4]]
    return fields, length


def _is_image(line: str) -> bool:
    """Whether a line where points are expected is an image: its tenth field is no number."""
    fields = line.split(maxsplit=9)
    if len(fields) < 10:
        return False
    try:
        [float(value) for value in fields[:9]]
    except ValueError:
        return False
    try:
        float(fields[9].split()[0])
    except ValueError:
        return True
    return False


def _wrong(path: Path, number: int, line: str, expected: str) -> EdmHlocError:
    return EdmHlocError(f"{path}, line {number}: expected {expected}; found {line[:100]!r}.")

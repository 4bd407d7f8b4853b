"""COLMAP's text models, often written by hand: checked line by line, and put in order.

`images.txt` has two lines an image: `IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME`, and the points,
which may be empty. Editors and scripts leave empty lines out; COLMAP then takes the next image for
points. It also takes quaternions of any length as they are, and sizes and numbers of any kind.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_lines, read_text

logger = logging.getLogger(__name__)

_NOT_UNIT = 1e-6  # rounding of numbers as programs write them; what differs more is rescaled
_SURPRISING = 1e-2  # a quaternion that differs more from length 1 is worth a warning
_NUMBER = re.compile(rb"# Number of \w+: (\d+)")  # in the head of each file that COLMAP writes


def check_text_model(path: Path) -> None:
    """Raises EdmHlocError, with file and line, for what a text model lists twice or cannot be.

    The images are left to `images_txt_in_order`.
    """
    _check_cameras(path / "cameras.txt")
    for name, kind, check in (
        ("points3D.txt", "point", _check_point),
        ("rigs.txt", "rig", _check_rig),
        ("frames.txt", "frame", _check_frame),
    ):
        file = path / name
        if not file.is_file():
            continue
        lines: dict[int, int] = {}
        for number, line in read_lines(file, f"{kind}s of the model"):
            record_id = check(file, number, line)
            _refuse_twice(file, number, kind, lines.setdefault(record_id, number), record_id)


def check_written_text(folder: Path) -> None:
    """Raises EdmHlocError if a file of a model that COLMAP has just written has lost its end."""
    for path in sorted(folder.glob("*.txt")):
        told, lines, line = None, 0, b""
        with path.open("rb") as file:
            for line in file:
                lines += not line.startswith(b"#")
                told = told or _NUMBER.match(line)
        expected = int(told[1]) * (2 if path.name == "images.txt" else 1) if told else lines
        if not line.endswith(b"\n") or lines != expected:
            raise EdmHlocError(f"{path} is cut off.")


def _refuse_twice(path: Path, number: int, kind: str, first: int, record_id: int) -> None:
    """Raises EdmHlocError unless `first`, where an id was met first, is this line."""
    if first != number:
        raise EdmHlocError(
            f"{path}, line {number}: the id {record_id} belongs to the {kind} in line {first} "
            "already. Remove one of them, or give it another id."
        )


def _check_point(path: Path, number: int, line: str) -> int:
    fields = line.split()
    try:
        point = int(fields[0])
        position = [float(value) for value in fields[1:4]]
        colour = [int(value) for value in fields[4:7]]
        if not math.isfinite(float(fields[7])):
            raise ValueError("no error in pixels")
        if point < 0 or len(fields) % 2 or not all(0 <= value < 256 for value in colour):
            raise ValueError("not a point")
    except (ValueError, IndexError) as error:
        expected = "POINT3D_ID X Y Z R G B ERROR, then pairs of IMAGE_ID POINT2D_IDX"
        raise _wrong(path, number, line, expected) from error
    if not all(map(math.isfinite, position)):
        raise EdmHlocError(
            f"{path}, line {number}: the position of point {point} is not finite. "
            "Correct or remove the point."
        )
    return point


def _check_rig(path: Path, number: int, line: str) -> int:
    fields = line.split()
    try:
        rig, sensors = int(fields[0]), int(fields[1])
        position = 2
        for i in range(sensors):
            int(fields[position + 1])
            position += 2
            if i > 0:  # relative to the first sensor, the reference
                position += 1
                if int(fields[position - 1]):
                    pose = [float(value) for value in fields[position : position + 7]]
                    position += 7
                    if not all(map(math.isfinite, pose)):
                        raise ValueError("not finite")
        if rig < 0 or sensors < 0 or position != len(fields):
            raise ValueError("not a rig")
    except (ValueError, IndexError) as error:
        expected = (
            "RIG_ID NUM_SENSORS REF_SENSOR_TYPE REF_SENSOR_ID, then for each other sensor "
            "SENSOR_TYPE SENSOR_ID HAS_POSE and its pose QW QX QY QZ TX TY TZ in finite numbers"
        )
        raise _wrong(path, number, line, expected) from error
    return rig


def _check_frame(path: Path, number: int, line: str) -> int:
    fields = line.split()
    try:
        frame, _, images = int(fields[0]), int(fields[1]), int(fields[9])
        pose = [float(value) for value in fields[2:9]]
        if frame < 0 or len(fields) != 10 + 3 * images or not all(map(math.isfinite, pose)):
            raise ValueError("not a frame")
        [int(value) for i in range(images) for value in fields[11 + 3 * i : 13 + 3 * i]]
    except (ValueError, IndexError) as error:
        expected = (
            "FRAME_ID RIG_ID QW QX QY QZ TX TY TZ in finite numbers, NUM_DATA_IDS, then for each "
            "SENSOR_TYPE SENSOR_ID DATA_ID"
        )
        raise _wrong(path, number, line, expected) from error
    return frame


def _check_cameras(path: Path) -> None:
    """Raises EdmHlocError, with the line, if a camera of `cameras.txt` cannot be."""
    lines: dict[int, int] = {}
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
        _refuse_twice(path, number, "camera", lines.setdefault(camera_id, number), camera_id)


def camera_fault(camera: pycolmap.Camera) -> str:
    """What makes a camera impossible; empty if nothing does."""
    if camera.width <= 0 or camera.height <= 0:
        return f"the camera has a size of {camera.width} × {camera.height} pixels"
    return lens_fault(camera)


def lens_fault(camera: pycolmap.Camera) -> str:
    """`camera_fault` of a camera whose size need not be known.

    To be asked of each camera that somebody gives before any other use: with too few parameters
    COLMAP reads memory that is not there.
    """
    if not all(map(math.isfinite, camera.params)):
        return "a parameter of the camera is no finite number"
    if not camera.verify_params():
        expected, given = camera.params_info, len(camera.params)
        return f"{camera.model.name} has another number of parameters than {given}: {expected}"
    focal = [camera.params[i] for i in camera.focal_length_idxs()]
    if min(focal, default=1) <= 0:
        return f"the camera has a focal length of {min(focal):g} pixels"
    return ""


def images_txt_in_order(path: Path) -> tuple[str | None, dict[int, str]]:
    """`images.txt` as COLMAP wants it, and the names in it.

    Empty lines that are missing are put in, and quaternions are made to have length 1.

    Returns:
        The content in order, None if it is so already; and the images' names, by id.

    Raises:
        EdmHlocError: a line is neither an image nor its points, or holds impossible numbers; or
            an id appears twice.
    """
    lines = read_text(path, "images of the model").split("\n")
    if lines[-1] == "":
        del lines[-1]
    changed = False
    result = []
    surprising = []  # line and length
    lines_of: dict[int, int] = {}  # by id
    names = {}
    i = 0
    while i < len(lines):
        line, number = lines[i].strip(), i + 1
        i += 1
        if not line or line.startswith("#"):
            continue
        fields, length = _pose_fields(path, number, line)
        image_id = int(fields[0])
        _refuse_twice(path, number, "image", lines_of.setdefault(image_id, number), image_id)
        changed |= abs(length - 1) > _NOT_UNIT
        if abs(length - 1) > _SURPRISING:
            surprising.append((number, length))
        result.append(" ".join(fields))
        names[image_id] = fields[9]
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
    return "\n".join(result) + "\n" if changed else None, names


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
    """Whether a line where points are expected is an image: nine numbers, then a name.

    Names may begin with a number: "2024 trip.jpg".
    """
    fields = line.split(maxsplit=9)
    if len(fields) < 10:
        return False
    try:
        [float(value) for value in fields[:9]]
    except ValueError:
        return False
    name = fields[9].split()
    try:
        float(name[0]), float(name[-1])
    except ValueError:
        return True
    return False


def _wrong(path: Path, number: int, line: str, expected: str) -> EdmHlocError:
    return EdmHlocError(f"{path}, line {number}: expected {expected}; found {line[:100]!r}.")

"""Cameras in the files of calibration tools: OpenCV (YAML, XML, JSON), ROS, Kalibr, ORB-SLAM.

These tools agree on OpenCV's models and pixel frame, but not on names. Files are read line by line
rather than by OpenCV's reader, which takes no other YAML than its own and crashes on damaged files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_text

SUFFIXES = (".yaml", ".yml", ".xml", ".json")
"""Endings of such files."""

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.?\b(?:nan|inf)\b")
_KEY = re.compile(r"( *)([\"']?)([\w .-]+)\2 *:(?:\s|$)(.*)")
# Names in lower case, without "_", "-" and spaces; the digit tells the cameras of a rig apart.
_MATRIX = re.compile(r"(?:cameramatrix|cammatrix|intrinsics?|intrinsicmatrix|mtx|k|m)(\d?)")
_DISTORTION = re.compile(
    r"(?:distortion|distortioncoeff(?:icient)?s?|distcoeff(?:icient)?s?|dist|d)(\d?)"
)
_WIDTHS, _HEIGHTS = ("imagewidth", "width", "w"), ("imageheight", "height", "h")
_SIZES = ("imagesize", "resolution", "imgsize")
_SCALAR = re.compile(
    r"(?:^|[\s{,\".])(fx|fy|cx|cy|mu|mv|u0|v0|[kp]\d|width|height|image_width|image_height)\"? *: *"
    r"([-+.\deE]+)"
)
_FISHEYE = re.compile(
    r"fisheye(?!\w*\"?\s*[:>]\s*\"?(?:0|false|no)\b)|equidistant|kannala", re.IGNORECASE
)
_TELLS_MODEL = re.compile(
    r"(?:camera|distortion|model)[_.]?(?:model|type)|fisheye|equidistant|kannala", re.IGNORECASE
)
_UNREAD = re.compile(
    r"(?:camera|distortion|model)[_.]?(?:model|type)\"?[\s:>]+\"?"
    r"(omni\w*|mei|eucm|ds|double_?sphere|fov|scaramuzza|ocam\w*|unified\w*)\b",
    re.IGNORECASE,
)


class _Found(NamedTuple):
    """Numbers of a camera: fx, fy, cx, cy in OpenCV's pixel frame, and the distortion."""

    lens: Sequence[float]
    distortion: Sequence[float]
    size: Sequence[float]


def read_calibration(path: Path) -> dict[str, pycolmap.Camera]:
    """The cameras in a file of a calibration tool, in COLMAP's pixel frame.

    A camera's width and height are 0 where the file does not tell for which photos it is.

    Args:
        path: of the file. It holds a matrix of 3 × 3 under a name like ``camera_matrix`` or ``K``,
            or fx, fy, cx and cy, and the distortion under one like ``distortion_coefficients``.

    Returns:
        Cameras by their names in the file; the name is empty if there is one only.

    Raises:
        EdmHlocError: the file cannot be read, holds no camera, or one that COLMAP has no model for.
    """
    text = read_text(path, "intrinsics")
    unread = _UNREAD.search(text)
    if unread:
        raise EdmHlocError(
            f"{path}: cameras of the model {unread[1]!r} are not read. Calibrate with OpenCV's "
            "pinhole or fisheye model, or give the camera in COLMAP's form."
        )
    entries = _entries(path, text)
    found = _by_matrices(path, entries)
    if not found:  # Kalibr's cam0 and cam1
        inner = {name: _by_matrices(path, _blocks(block)) for name, block in entries.items()}
        found = {name: next(iter(cameras.values())) for name, cameras in inner.items() if cameras}
    if not found:
        found = _by_scalars(path, text)
    if not found:
        raise EdmHlocError(
            f"{path} holds no camera: expected a calibration of OpenCV, ROS or Kalibr with a "
            "matrix of 3 × 3 named camera_matrix or K, or nerfstudio's transforms.json."
        )
    fisheye = bool(_FISHEYE.search(text)) if _TELLS_MODEL.search(text) else None
    cameras = {name: _camera(path, camera, fisheye) for name, camera in found.items()}
    return {"": next(iter(cameras.values()))} if len(cameras) == 1 else cameras


# --------------------------------------------------------------------------- what the file says


def _entries(path: Path, text: str) -> dict[str, str]:
    """The text of each entry, by its name."""
    try:
        if text.lstrip().startswith("{"):
            return {str(key): json.dumps(value) for key, value in json.loads(text).items()}
        if text.lstrip().startswith("<"):
            return {
                child.tag: child.findtext("data") or "".join(child.itertext())
                for child in ElementTree.fromstring(text)
            }
    except (ValueError, RecursionError, ElementTree.ParseError) as error:
        raise EdmHlocError(f"Cannot read the intrinsics {path}: {error}.") from error
    return _blocks(text)


def _blocks(text: str) -> dict[str, str]:
    """The entries of YAML: by name what stands behind it and in the lines below it."""
    lines = [(line, _KEY.match(line)) for line in text.splitlines() if line.strip()[:1] not in "#%"]
    least = min((len(key[1]) for _, key in lines if key), default=0)
    blocks: dict[str, str] = {}
    name = ""
    for line, key in lines:
        if key and len(key[1]) == least:
            name = key[3]
            blocks[name] = key[4]
        elif name:
            blocks[name] += f"\n{line}"
    return blocks


def _numbers(block: str) -> list[float]:
    """The numbers in an entry; of a matrix with rows, cols and data those of its data."""
    data = re.search(r"\bdata\"?\s*:?\s*\[([^\]]*)\]", block)
    block = data[1] if data else block.rpartition("data")[2]
    # YAML's .nan and -.inf have a point too many for Python
    return [float(re.sub(r"\.(?=[ni])", "", n)) for n in _NUMBER.findall(block.casefold())]


def _by_matrices(path: Path, entries: Mapping[str, str]) -> dict[str, _Found]:
    """Cameras by the digit of their names, from entries with a matrix."""
    plain = {re.sub(r"[\W_]", "", name).casefold(): block for name, block in entries.items()}
    lenses: dict[str, Sequence[float]] = {}
    distortions: dict[str, Sequence[float]] = {}
    for name, block in plain.items():
        if match := _MATRIX.fullmatch(name):
            numbers = _numbers(block)
            if len(numbers) == 9:
                lenses.setdefault(match[1], _lens(path, numbers))
            elif len(numbers) == 4 and name.startswith("intrinsic"):
                lenses.setdefault(match[1], numbers)  # Kalibr's
        elif match := _DISTORTION.fullmatch(name):
            distortions.setdefault(match[1], _numbers(block))
    size = [n for keys in (_WIDTHS, _HEIGHTS) for key in keys for n in _numbers(plain.get(key, ""))]
    for key in _SIZES:
        size = size or _numbers(plain.get(key, ""))
    return {
        label: _Found(lens, distortions.get(label, distortions.get("", [])), size)
        for label, lens in lenses.items()
    }


def _lens(path: Path, matrix: Sequence[float]) -> list[float]:
    """fx, fy, cx, cy of a matrix of 3 × 3 by rows, or by columns as MATLAB's."""
    K = np.reshape(matrix, (3, 3))
    if K[2, :2].any() and not K[:2, 2].any():
        K = K.T
    if K[2].tolist() != [0, 0, 1] or K[1, 0] or abs(K[0, 1]) > 1e-3 * abs(K[0, 0]):
        raise EdmHlocError(
            f"{path}: not a camera matrix [fx 0 cx; 0 fy cy; 0 0 1] without skew: {matrix}."
        )
    return [float(K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))]


def _by_scalars(path: Path, text: str) -> dict[str, _Found]:
    """The camera of a file with fx, fy, cx and cy (of ORB-SLAM), or mu, mv, u0, v0 (camodocal)."""
    values: dict[str, float] = {}
    for name, word in _SCALAR.findall(text):
        numbers = _numbers(word)
        if numbers and values.setdefault(name, numbers[0]) != numbers[0] and name in ("fx", "mu"):
            raise EdmHlocError(f"{path} holds several cameras: give the file of one.")
    size = [values[k] for k in ("width", "height", "image_width", "image_height") if k in values]
    if values.keys() >= {"fx", "fy", "cx", "cy"}:
        fisheye = _FISHEYE.search(text) is not None
        names = "fx fy cx cy", "k1 k2 k3 k4" if fisheye else "k1 k2 p1 p2 k3"
    elif values.keys() >= {"mu", "mv", "u0", "v0"}:
        names = "mu mv u0 v0", "k2 k3 k4 k5"
    else:
        return {}
    lens, distortion = ([values.get(name, 0.0) for name in some.split()] for some in names)
    return {"": _Found(lens, distortion, size)}


# --------------------------------------------------------------------------- COLMAP's camera


def _camera(path: Path, found: _Found, fisheye: bool | None) -> pycolmap.Camera:
    """COLMAP's camera of a calibration.

    Args:
        path: of the file, for messages.
        found: numbers of the camera.
        fisheye: whether the lens is one; None if the file names no model.

    Raises:
        EdmHlocError: COLMAP has no such camera.
    """
    distortion = list(found.distortion)
    while distortion and not distortion[-1] and len(distortion) > (4 if any(distortion) else 0):
        distortion.pop()
    if fisheye:
        model, most = "OPENCV_FISHEYE", 4
    elif not distortion:
        model, most = "PINHOLE", 0
    elif len(distortion) <= 4:
        model, most = "OPENCV", 4
        if len(found.distortion) == 4 and fisheye is None:
            warn_once(
                f"{path}: the four distortion coefficients are taken as k1, k2, p1, p2 of a common "
                "lens. For those of a fisheye lens add the line fisheye_model: 1."
            )
    else:
        model, most = "FULL_OPENCV", 8
    if len(distortion) > most:
        raise EdmHlocError(
            f"{path} has {len(distortion)} distortion coefficients; COLMAP's camera model {model} "
            f"has {most}. Calibrate without the others."
        )
    distortion += [0.0] * (most - len(distortion))
    params = [*found.lens[:2], *to_colmap(found.lens[2:]), *distortion]
    size = [int(side) for side in found.size if np.isfinite(side) and 0 < side < 1e6]
    width, height = size if len(size) == 2 else (0, 0)
    if not np.isfinite(params).all() or min(params[:2]) <= 0 or len(found.size) not in (0, 2):
        raise EdmHlocError(f"{path} holds no possible camera: {params}, size {list(found.size)}.")
    return pycolmap.Camera(model=model, width=width, height=height, params=params)

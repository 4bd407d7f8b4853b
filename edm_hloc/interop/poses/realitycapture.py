"""RealityCapture's CSV of internal and external camera parameters (Export, Registration)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import is_comment, read_text
from edm_hloc.images.intrinsics import brown_model
from edm_hloc.interop.poses.given import OPENGL, GivenPose, PhotosAtHand, pose_from_world

_FILM = 36.0  # mm along the longer side of the photo, to which f, px and py refer
_ALIASES = {"heading": ("heading", "yaw"), "alt": ("alt", "z", "altitude")}
_NEEDED = ("name", "x", "y", "alt", "heading", "pitch", "roll")


def read_realitycapture(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and, where the file has f, intrinsics; x is east, y north, in the file's units.

    A camera with heading, pitch and roll 0 looks straight down with its upper edge to the north;
    heading turns clockwise, pitch lifts the view (90° is level), roll turns about the view.

    Raises:
        EdmHlocError: the file is damaged or another.
    """
    lines = read_text(path, "cameras of RealityCapture").split("\n")
    start = next((i for i, line in enumerate(lines) if "name" in line.lower()), None)
    if start is None:
        raise EdmHlocError(_expected(path, "it has no line with the names of the columns"))
    mark = ";" if lines[start].count(";") > lines[start].count(",") else ","
    columns = [c.strip().lstrip("#").strip().lower() for c in lines[start].split(mark)]
    place = {c: columns.index(c) for c in columns}
    for wanted, others in _ALIASES.items():
        written = next((other for other in others if other in place), None)
        if written is not None:
            place[wanted] = place[written]
    missing = [column for column in _NEEDED if column not in place]
    if missing:
        raise EdmHlocError(_expected(path, f"it lacks {', '.join(missing)}"))
    given = []
    same: dict[str, pycolmap.Camera] = {}
    reader = csv.reader(lines[start + 1 :], delimiter=mark)
    rows = []
    for words in filter(None, reader):
        written = (words + [""] * len(place))[place["name"]].strip()
        if not is_comment(words[0], written, photos.names):
            rows.append((start + 1 + reader.line_num, words, written))
    names = photos.find([written for _, _, written in rows])
    for (number, words, _), name in zip(rows, names, strict=True):
        where = f"{path}, line {number}"
        try:
            row = {c: float(words[i]) for c, i in place.items() if c != "name" and words[i].strip()}
            place_of_camera = [row[c] for c in ("x", "y", "alt")]
            angles = [row[c] for c in ("heading", "pitch", "roll")]
        except (ValueError, IndexError, KeyError):
            raise EdmHlocError(
                f"{where}: expected numbers; found {mark.join(words)[:100]!r}."
            ) from None
        if name is None:
            continue
        if row.get("k4"):
            warn_once(f"{path}: the distortion's k4 is not in COLMAP's models and is left out.")
        matrix = np.column_stack([_axes(*angles) @ OPENGL, place_of_camera])
        camera = None
        if "f" in row:
            try:
                camera = _camera(row, photos.size(name), where)
            except ImageError as error:
                warn_once(f"Skipping a photo: {error}")
                continue
            camera = same.setdefault(str(camera.todict()), camera)
        given.append(GivenPose(name, pose_from_world(matrix, where), camera))
    return given


def _expected(path: Path, why: str) -> str:
    return (
        f"{path} is not RealityCapture's CSV of cameras: {why}. Export it by Alignment, Export, "
        "Registration, Internal/External camera parameters."
    )


def _axes(heading: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) world axes (east, north, up) of OpenGL's camera; angles in degrees."""

    def turn(angle: float, first: int, second: int) -> np.ndarray:
        R = np.eye(3)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        R[[first, second], [first, second]] = c
        R[first, second], R[second, first] = -s, s
        return R

    return np.asarray(turn(-heading, 0, 1) @ turn(pitch, 1, 2) @ turn(roll, 2, 0))


def _camera(row: Mapping[str, float], size: tuple[int, int], where: str) -> pycolmap.Camera:
    if row["f"] <= 0:
        raise EdmHlocError(f"{where}: the focal length f is {row['f']:g}; it must be positive.")
    unit = max(size) / _FILM
    lens = [row["f"] * unit] * 2
    lens += [
        side / 2 + row.get(key, 0.0) * unit for side, key in zip(size, ("px", "py"), strict=True)
    ]
    k1, k2, k3, t1, t2 = (row.get(key, 0.0) for key in ("k1", "k2", "k3", "t1", "t2"))
    model, distortion = brown_model(k1, k2, t1, t2, k3)
    width, height = size
    return pycolmap.Camera(model=model, width=width, height=height, params=[*lens, *distortion])

"""OpenSfM's and ODM's `reconstruction.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, ImageError, NotInColmapError
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_text
from edm_hloc.images.intrinsics import brown_model
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand
from edm_hloc.interop.poses.records import (
    checked_camera,
    number,
    numbers,
    pixels,
    positive,
    report_not_in_colmap,
)

_FISHEYES = ("fisheye_opencv", "fisheye62", "fisheye624")
_FISHEYE_KEYS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "s0", "s1", "s2", "s3")


def read_opensfm(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of the largest reconstruction of a file, in its own world.

    A shot has the pose of the world in the camera, as an angle-axis vector in radians and a
    translation; the camera looks along z with y down. Focal lengths and the principal point, which
    counts from the middle of the photo, are in units of its longer side.

    Raises:
        EdmHlocError: the file is damaged or another, or all cameras are such as COLMAP has not.
    """
    parts = _reconstructions(path)
    largest = max(parts, key=lambda part: len(part["shots"]))
    if len(parts) > 1:
        total = sum(len(part["shots"]) for part in parts)
        warn_once(
            f"{path} holds {len(parts)} reconstructions, which have no common frame: only the "
            f"largest is read, with {len(largest['shots']):,} of the {total:,} posed photos."
        )
    shots = largest["shots"]
    given = []
    cameras: dict[str, pycolmap.Camera] = {}
    not_in_colmap: Counter[str] = Counter()
    for (text, shot), name in zip(shots.items(), photos.find(list(shots)), strict=True):
        where = f"{path}, shot {text}"
        if not isinstance(shot, dict):
            raise EdmHlocError(_expected(path, f"the shot {text} is no object"))
        rotation = numbers(shot.get("rotation"), 3, "rotation", where)
        translation = numbers(shot.get("translation"), 3, "translation", where)
        if name is None:
            continue
        key = str(shot.get("camera"))
        own = largest["cameras"].get(key)
        if not isinstance(own, dict):
            raise EdmHlocError(f"{where}: the file has no camera {key!r}. Export it again.")
        try:
            if key not in cameras:
                cameras[key] = _camera(own, photos, name, f"{path}, camera {key}")
        except NotInColmapError as error:
            not_in_colmap[str(error)] += 1
            continue
        except ImageError as error:
            warn_once(f"Skipping a photo: {error}")
            continue
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array(rotation)), np.array(translation))
        given.append(GivenPose(name, pose, cameras[key]))
    report_not_in_colmap(path, not_in_colmap, len(given))
    return given


def _reconstructions(path: Path) -> list[dict[str, Any]]:
    """The reconstructions of a file, which have cameras and shots by name, at least one shot."""
    try:
        parts = json.loads(read_text(path, "reconstruction of OpenSfM"))
    except (ValueError, RecursionError) as error:
        raise EdmHlocError(_expected(path, f"it is not JSON ({error})")) from error
    if not isinstance(parts, list):
        raise EdmHlocError(_expected(path, "it is no list"))
    for part in parts:
        if not isinstance(part, dict) or not all(
            isinstance(part.get(key), dict) for key in ("cameras", "shots")
        ):
            raise EdmHlocError(_expected(path, "an entry lacks cameras or shots"))
    if not any(part["shots"] for part in parts):
        raise EdmHlocError(
            f"{path} has a pose for no photo: OpenSfM could place none, so look at its report."
        )
    return parts


def _expected(path: Path, why: str) -> str:
    return (
        f"{path} is not OpenSfM's reconstruction.json, a list of reconstructions with cameras and "
        f"shots: {why}. Take the one of OpenSfM's folder, or of opensfm/ in ODM's."
    )


def _camera(own: Mapping[str, Any], photos: PhotosAtHand, name: str, where: str) -> pycolmap.Camera:
    """COLMAP's camera; the size is that of the photo `name` where the file does not tell it.

    Raises:
        NotInColmapError: COLMAP has no such model.
        ImageError: the photo, whose size is needed, cannot be read.
        EdmHlocError: the values are no possible camera.
    """
    kind = str(own.get("projection_type", "perspective"))
    if number(own, "width", where, 0) and number(own, "height", where, 0):
        width, height = (pixels(own, key, where) for key in ("width", "height"))
    else:
        width, height = photos.size(name)
    unit = max(width, height)

    def value(key: str) -> float:
        return number(own, key, where, 0.0)

    centre = [width / 2 + value("c_x") * unit, height / 2 + value("c_y") * unit]
    if kind in ("perspective", "fisheye"):
        model = "RADIAL" if kind == "perspective" else "RADIAL_FISHEYE"
        lens = [positive(own, "focal", where) * unit, width / 2, height / 2]
        distortion = [value("k1"), value("k2")]
    elif kind in ("brown", "radial", "simple_radial", *_FISHEYES):
        lens = [positive(own, f"focal_{axis}", where) * unit for axis in "xy"] + centre
        if kind in _FISHEYES:
            model, distortion = _fisheye(kind, [value(key) for key in _FISHEYE_KEYS])
        else:
            model, distortion = brown_model(*(value(key) for key in ("k1", "k2", "p1", "p2", "k3")))
    else:
        raise NotInColmapError(kind)
    return checked_camera(model, (width, height), [*lens, *distortion], where)


def _fisheye(kind: str, values: list[float]) -> tuple[str, list[float]]:
    """COLMAP's model of an equidistant projection with so many coefficients, and its parameters.

    COLMAP's model with all of these applies p1, p2 and s to the point that k1 to k6 have moved
    already, OpenSfM to the point before: the two are equal where one of both kinds is missing.
    """
    k1, k2, k3, k4, k5, k6, p1, p2, s0, s1, s2, s3 = values
    if kind == "fisheye_opencv" or not any(values[4:]):
        return "OPENCV_FISHEYE", [k1, k2, k3, k4]
    if not any((k5, k6, s1, s3)):
        return "THIN_PRISM_FISHEYE", [k1, k2, p1, p2, k3, k4, s0, s2]
    if not any(values[6:]) or not any(values[:6]):
        return "RAD_TAN_THIN_PRISM_FISHEYE", [*values[:6], p2, p1, s0, s1, s2, s3]
    raise NotInColmapError(f"{kind} with k5, k6, s1 or s3 beside p or s")

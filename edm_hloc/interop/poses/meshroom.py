"""Meshroom's (AliceVision's) `cameras.sfm`, and the same as `sfm.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, NotInColmapError
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_json_object
from edm_hloc.images.intrinsics import brown_model
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand, pose_from_world
from edm_hloc.interop.poses.records import (
    checked_camera,
    number,
    numbers,
    objects,
    pixels,
    positive,
    report_not_in_colmap,
)

_Version = tuple[int, ...]
_NEWEST = (1, 2, 11)  # version of the format whose conventions are known
_LEAST_ANGLE = 1e-8  # of fisheye1, below which AliceVision takes it for none
# distortion of a pinhole camera by the type that intrinsics had before version 1.2.8
_OLD_TYPES = {
    "pinhole": "none",
    "radial1": "radialk1",
    "radial3": "radialk3",
    "brown": "brown",
    "fisheye4": "fisheye",
    "fisheye1": "fisheye1",
}
_COUNTS = {"none": 0, "radialk1": 1, "radialk3": 3, "brown": 5, "fisheye": 4, "fisheye1": 1}


def read_meshroom(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of the views that have a pose, in the file's own world.

    A pose is the camera's centre and the rotation of the world into the camera, which looks along
    z with y down, column by column. The principal point and the focal length are written otherwise
    in each version of the format, which the file tells. Views of a rig are taken apart.

    Raises:
        EdmHlocError: the file is damaged or another, or all cameras are such as COLMAP has not.
    """
    record = read_json_object(path, "file of Meshroom's cameras")
    version = _version(path, record)
    views = objects(record, "views", path)
    poses = {
        str(pose.get("poseId")): _pose(pose.get("pose"), f"{path}, pose {pose.get('poseId')}")
        for pose in objects(record, "poses", path)
    }
    if not views or not poses:
        raise EdmHlocError(
            f"{path} has no {'poses' if views else 'views'}: take the cameras.sfm of Meshroom's "
            "node StructureFromMotion, or what ConvertSfMFormat makes of its result."
        )
    rigs = _Rigs(path, record, views)
    intrinsics = {str(own.get("intrinsicId")): own for own in objects(record, "intrinsics", path)}
    cameras: dict[str, pycolmap.Camera] = {}
    not_in_colmap: Counter[str] = Counter()
    given = []
    posed = [view for view in views if str(view.get("poseId")) in poses]
    names = photos.find([_file_of(path, view) for view in posed])
    for view, name in zip(posed, names, strict=True):
        key, where = str(view.get("intrinsicId")), f"{path}, view {view.get('path')}"
        pose = rigs.place(view, poses[str(view.get("poseId"))], where)
        if name is None or pose is None:
            continue
        try:
            if key in intrinsics and key not in cameras:
                where_camera = f"{path}, intrinsics {key}"
                cameras[key] = _camera(intrinsics[key], version, where_camera)
        except NotInColmapError as error:
            not_in_colmap[str(error)] += 1
            continue
        given.append(GivenPose(name, pose, cameras.get(key)))
    report_not_in_colmap(path, not_in_colmap, len(given))
    return given


def _version(path: Path, record: Mapping[str, Any]) -> _Version:
    where = f"{path}, as cameras of Meshroom"
    version = tuple(int(part) for part in numbers(record.get("version"), 3, "version", where))
    if version > _NEWEST:
        warn_once(
            f"{path} is of version {'.'.join(map(str, version))} of Meshroom's format, and is read "
            f"as one of {'.'.join(map(str, _NEWEST))}: are focal lengths and poses plausible?"
        )
    return version


def _file_of(path: Path, view: Mapping[str, Any]) -> str:
    if not isinstance(view.get("path"), str):
        raise EdmHlocError(f"{path}: the view {view.get('viewId')} has no path. Export it again.")
    return str(view["path"])


def _pose(pose: object, where: str) -> pycolmap.Rigid3d:
    """cam_from_world of a pose's `transform`, or of one that is written without it."""
    own = pose.get("transform", pose) if isinstance(pose, dict) else None
    if not isinstance(own, dict):
        raise EdmHlocError(f"{where}: there is no transform. Export the file again.")
    world_from_cam = np.reshape(numbers(own.get("rotation"), 9, "rotation", where), (3, 3))
    centre = numbers(own.get("center"), 3, "center", where)
    return pose_from_world(np.column_stack([world_from_cam, centre]), where)


class _Rigs:
    """The places of cameras in rigs.

    Args:
        path: the file.
        record: its content.
        views: all views, which tell what poses are of rigs: several views share them.
    """

    def __init__(self, path: Path, record: Mapping[str, Any], views: list[dict[str, Any]]) -> None:
        self._path = path
        self._rigs = {
            str(rig.get("rigId")): objects(rig, "subPoses", f"{path}, rig {rig.get('rigId')}")
            for rig in objects(record, "rigs", path)
        }
        self._uses = Counter(str(view.get("poseId")) for view in views if "rigId" in view)

    def place(
        self, view: Mapping[str, Any], pose: pycolmap.Rigid3d, where: str
    ) -> pycolmap.Rigid3d | None:
        """cam_from_world of a view; None if its place in its rig was not found.

        Args:
            view: as the file has it.
            pose: its own, or its rig's.
            where: file and view, for the message.
        """
        alone = str(view.get("isPoseIndependant", "true")).lower() in ("true", "1")
        if "rigId" not in view or (alone and self._uses[str(view.get("poseId"))] < 2):
            return pose
        places = self._rigs.get(str(view["rigId"]), [])
        index = int(number(view, "subPoseId", where))
        if not 0 <= index < len(places):
            raise EdmHlocError(
                f"{where}: its rig {view['rigId']} has no camera {index}. Export the file again."
            )
        if places[index].get("status") == "uninitialized":
            return None
        warn_once(
            f"{self._path} holds cameras in rigs, which are taken apart: each photo gets a pose of "
            "its own."
        )
        return _pose(places[index].get("pose"), f"{where}, camera {index} of its rig") * pose


def _camera(own: Mapping[str, Any], version: _Version, where: str) -> pycolmap.Camera:
    """COLMAP's camera of intrinsics.

    Raises:
        NotInColmapError: COLMAP has no such model.
        EdmHlocError: the values are no possible camera.
    """
    distortion = _distortion(own, version)
    size = [pixels(own, key, where) for key in ("width", "height")]
    centre = numbers(own.get("principalPoint"), 2, "principalPoint", where)
    if version >= (1, 2, 1):
        centre = [side / 2 + offset for side, offset in zip(size, centre, strict=True)]
    lens = [*_focal_lengths(own, version, size, where), *centre]
    count = _COUNTS[distortion]
    values = own.get("distortionParams") or [0.0] * count  # "" stands for an empty list
    values = numbers(values, count, "distortionParams", where) if count else []
    if distortion == "fisheye":
        model = "OPENCV_FISHEYE"
    elif distortion == "fisheye1" and values[0] > _LEAST_ANGLE:
        model = "FOV"
    elif distortion == "brown":
        k1, k2, k3, t1, t2 = values
        model, values = brown_model(k1, k2, t1, t2, k3)
    elif distortion in ("radialk1", "radialk3"):
        k1, k2, k3 = [*values, 0.0, 0.0][:3]
        model, values = brown_model(k1, k2, 0.0, 0.0, k3)
    else:
        model, values = "PINHOLE", []
    return checked_camera(model, size, [*lens, *values], where)


def _distortion(own: Mapping[str, Any], version: _Version) -> str:
    """Kind of the distortion of a pinhole camera. Raises NotInColmapError for another."""
    projection = str(own.get("type", "")).lower()
    if version < (1, 2, 8) or "distortionType" not in own:
        if projection not in _OLD_TYPES:
            raise NotInColmapError(projection)
        return _OLD_TYPES[projection]
    distortion = str(own.get("distortionType", "none")).lower()
    undistortion = str(own.get("undistortionType", "none")).lower()
    if projection != "pinhole":
        raise NotInColmapError(projection)
    if undistortion != "none" or distortion not in _COUNTS:
        raise NotInColmapError(distortion if undistortion == "none" else undistortion)
    return distortion


def _focal_lengths(
    own: Mapping[str, Any], version: _Version, size: list[int], where: str
) -> list[float]:
    """Focal lengths along x and y in pixels."""
    if version < (1, 2, 0):
        return [positive(own, "pxFocalLength", where)] * 2
    if version < (1, 2, 2):
        both = numbers(own.get("pxFocalLength"), 2, "pxFocalLength", where)
        return [positive({"pxFocalLength": focal}, "pxFocalLength", where) for focal in both]
    # since 1.2.11 the sensor's width is written as that of the longer side
    side = size[0] if version < (1, 2, 11) else max(size)
    ratio = positive({"pixelRatio": 1, **own}, "pixelRatio", where)
    focal = positive(own, "focalLength", where) * side
    focal /= positive({"sensorWidth": 36.0, **own}, "sensorWidth", where)
    if version < (1, 2, 5):  # the ratio was that of the focal lengths
        return [focal, focal / ratio]
    if version < (1, 2, 11):
        return [focal, focal * ratio]
    return [focal / ratio, focal]

"""Metashape's cameras in XML (File, Export, Export Cameras)."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_text
from edm_hloc.images.intrinsics import brown_model
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand, pose_from_world

_SKEW = 0.5  # px over half a photo that Metashape's b2 and k4 may make before they are missed


def read_metashape(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of all aligned cameras, in the chunk's own frame.

    A camera of Metashape looks along z with y down; the centre of the top-left pixel is at
    (0.5, 0.5) as in COLMAP, and cx, cy count from the middle of the photo.

    Raises:
        EdmHlocError: the file is damaged or another, or has a camera that COLMAP has not.
    """
    try:
        root = ElementTree.fromstring(read_text(path, "cameras of Metashape"))
    except ElementTree.ParseError as error:
        raise EdmHlocError(f"{path} is damaged or no XML: {error}.") from error
    if root.tag != "document" or root.find("chunk/cameras") is None:
        raise EdmHlocError(
            f"{path} is not Metashape's XML of cameras (a document with a chunk with cameras): "
            "make it by File, Export, Export Cameras, as Agisoft XML."
        )
    if not any(c.find("transform") is not None for c in root.iterfind("chunk/cameras//camera")):
        raise EdmHlocError(
            f"{path}: none of its cameras has a pose (a transform): align the photos in Metashape, "
            "then export the cameras again."
        )
    given: list[GivenPose] = []
    for chunk in root.findall("chunk"):
        sensors = {s.get("id"): s for s in chunk.iterfind("sensors/sensor")}
        cameras = {key: _camera(path, sensor) for key, sensor in sensors.items()}
        aligned = list(chunk.iterfind("cameras//camera"))
        names = photos.find([camera.get("label", "") for camera in aligned])
        for camera, name in zip(aligned, names, strict=True):
            label, text = camera.get("label", ""), camera.findtext("transform")
            if text is None or name is None:  # not aligned, or of another folder
                continue
            where = f"{path}, camera {label}"
            try:
                matrix = np.array(text.split(), np.float64).reshape(4, 4)
            except ValueError:
                raise EdmHlocError(f"{where}: its transform is not 16 numbers.") from None
            pose = pose_from_world(matrix, where)
            given.append(GivenPose(name, pose, cameras.get(camera.get("sensor_id"))))
    return given


def _camera(path: Path, sensor: Element) -> pycolmap.Camera | None:
    """COLMAP's camera of a sensor; None where it was not calibrated."""
    calibrations = sensor.findall("calibration")
    adjusted = [c for c in calibrations if c.get("class") == "adjusted"]
    if not calibrations:
        return None
    calibration = (adjusted or calibrations)[0]
    size = calibration.find("resolution")
    size = sensor.find("resolution") if size is None else size
    if size is None or calibration.find("f") is None:
        return None
    where = f"{path}, sensor {sensor.get('label', sensor.get('id', ''))}"
    try:
        width, height = int(size.get("width", "")), int(size.get("height", ""))
        value = {child.tag: float(child.text or "") for child in calibration if child.text}
    except ValueError:
        width, height, value = 0, 0, {}
    if width <= 0 or height <= 0 or value.get("f", 0) <= 0:
        raise EdmHlocError(f"{where}: its calibration holds no possible numbers.")
    kind = calibration.get("type", sensor.get("type", "frame"))
    b1, b2, k4 = (value.get(key, 0.0) for key in ("b1", "b2", "k4"))
    lens = [value["f"] + b1, value["f"]]
    lens += [width / 2 + value.get("cx", 0.0), height / 2 + value.get("cy", 0.0)]
    k1, k2, k3, p1, p2 = (value.get(key, 0.0) for key in ("k1", "k2", "k3", "p1", "p2"))
    reach = float(np.hypot(width, height)) / 2
    if kind == "fisheye":
        model, distortion = "OPENCV_FISHEYE", [k1, k2, k3, k4]
        lost = abs(b2) + abs(value["f"]) * (abs(p1) + abs(p2))
    elif kind == "frame":
        # Metashape's p1 and p2 are OpenCV's p2 and p1
        lost = abs(b2) + abs(k4) * value["f"] * (reach / value["f"]) ** 9
        model, distortion = brown_model(k1, k2, p2, p1, k3)
    else:
        raise EdmHlocError(
            f"{where}: cameras of the type {kind} are not in COLMAP: undistort the photos first."
        )
    if lost > _SKEW:
        warn_once(
            f"{where}: b2 and k4 of frame cameras, or p1 and p2 of fisheyes, are not in COLMAP's "
            f"models and are left out, which is up to {lost:.1f} px. --refine-intrinsics may help."
        )
    return pycolmap.Camera(model=model, width=width, height=height, params=[*lens, *distortion])

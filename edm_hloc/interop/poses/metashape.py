"""Metashape's cameras in XML (File, Export, Export Cameras)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, NotInColmapError
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import read_text
from edm_hloc.images.intrinsics import brown_model
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand, pose_from_world
from edm_hloc.interop.poses.records import numbers, positive, report_not_in_colmap

_SKEW = 0.5  # px over half a photo that Metashape's b2 and k4 may make before they are missed


def read_metashape(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of all aligned cameras, in the chunk's own frame.

    Cameras of one component stay in its frame. Those of several are brought into the chunk's; where
    one of these components has no place in it, only the cameras of the largest are read.

    A camera of Metashape looks along z with y down; the centre of the top-left pixel is at
    (0.5, 0.5) as in COLMAP, and cx, cy count from the middle of the photo.

    Raises:
        EdmHlocError: the file is damaged or another, or all cameras are such as COLMAP has not.
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
    not_in_colmap: Counter[str] = Counter()
    for chunk in root.findall("chunk"):
        given += _of_chunk(path, chunk, photos, not_in_colmap)
    report_not_in_colmap(path, not_in_colmap, len(given))
    return given


def _of_chunk(
    path: Path, chunk: Element, photos: PhotosAtHand, not_in_colmap: Counter[str]
) -> list[GivenPose]:
    """Poses and intrinsics of a chunk; what COLMAP has no camera for is counted by its kind."""
    sensors = {s.get("id"): s for s in chunk.iterfind("sensors/sensor")}
    cameras: dict[str | None, pycolmap.Camera | None] = {}
    aligned = list(chunk.iterfind("cameras//camera"))
    names = photos.find([camera.get("label", "") for camera in aligned])
    posed = [
        (camera, name, text)
        for camera, name in zip(aligned, names, strict=True)
        if (text := camera.findtext("transform")) is not None and name is not None
    ]  # without those that are not aligned, or of another folder
    places = _places(path, chunk, [camera for camera, _, _ in posed])
    given = []
    for camera, name, text in posed:
        where = f"{path}, camera {camera.get('label', '')}"
        component, key = camera.get("component_id"), camera.get("sensor_id")
        if component not in places:
            continue
        try:
            matrix = np.array(text.split(), np.float64).reshape(4, 4)
        except ValueError:
            raise EdmHlocError(f"{where}: its transform is not 16 numbers.") from None
        scale, chunk_from_component = places[component]
        matrix[:3, 3] *= scale
        pose = pose_from_world(chunk_from_component @ matrix, where)
        try:
            if key in sensors and key not in cameras:
                cameras[key] = _camera(path, sensors[key])
        except NotInColmapError as error:
            not_in_colmap[str(error)] += 1
            continue
        given.append(GivenPose(name, pose, cameras.get(key)))
    return given


_Place = tuple[float, np.ndarray]  # scale, and (4, 4) rotation and translation, into the chunk


def _places(path: Path, chunk: Element, posed: list[Element]) -> dict[str | None, _Place]:
    """The places of the components whose cameras are read, by their ids.

    Raises:
        EdmHlocError: a place is damaged.
    """
    aligned = chunk.iterfind("cameras//camera[transform]")
    if len({camera.get("component_id") for camera in aligned}) < 2:
        return {camera.get("component_id"): (1.0, np.eye(4)) for camera in posed}
    places = {
        component.get("id"): place
        for component in chunk.iterfind("components/component")
        if (place := _place(path, component)) is not None
    }
    photos = Counter(camera.get("component_id") for camera in posed)
    if photos.keys() <= places.keys():
        return places
    largest, count = photos.most_common(1)[0]
    if count < photos.total():
        warn_once(
            f"{path}: not all of the {len(photos)} components have a place in the chunk (a "
            f"transform): only the {count} of {photos.total()} photos of the largest are read. "
            "Align all photos together in Metashape, and export the cameras again."
        )
    return {largest: (1.0, np.eye(4))}


def _place(path: Path, component: Element) -> _Place | None:
    """Where a component is in its chunk; None if the file does not tell."""
    where = f"{path}, component {component.get('label', component.get('id', ''))}"
    rotation, translation, scale = (
        component.findtext(f"transform/{key}") for key in ("rotation", "translation", "scale")
    )
    if rotation is None or translation is None or scale is None:
        return None
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(numbers(rotation.split(), 9, "rotation", where), (3, 3))
    matrix[:3, 3] = numbers(translation.split(), 3, "translation", where)
    return positive({"scale": scale}, "scale", where), matrix


def _camera(path: Path, sensor: Element) -> pycolmap.Camera | None:
    """COLMAP's camera of a sensor; None where it was not calibrated.

    Raises:
        NotInColmapError: COLMAP has no such model.
        EdmHlocError: the values are no possible camera.
    """
    calibrations = sensor.findall("calibration")
    adjusted = [c for c in calibrations if c.get("class") == "adjusted"]
    calibration = next(iter(adjusted or calibrations), None)
    kind = (sensor if calibration is None else calibration).get("type", sensor.get("type", "frame"))
    if kind not in ("frame", "fisheye"):
        raise NotInColmapError(kind)
    if calibration is None:
        return None
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
    b1, b2, k4 = (value.get(key, 0.0) for key in ("b1", "b2", "k4"))
    lens = [value["f"] + b1, value["f"]]
    lens += [width / 2 + value.get("cx", 0.0), height / 2 + value.get("cy", 0.0)]
    k1, k2, k3, p1, p2 = (value.get(key, 0.0) for key in ("k1", "k2", "k3", "p1", "p2"))
    reach = float(np.hypot(width, height)) / 2
    if kind == "fisheye":
        model, distortion = "OPENCV_FISHEYE", [k1, k2, k3, k4]
        lost = abs(b2) + abs(value["f"]) * (abs(p1) + abs(p2))
    else:
        # Metashape's p1 and p2 are OpenCV's p2 and p1
        lost = abs(b2) + abs(k4) * value["f"] * (reach / value["f"]) ** 9
        model, distortion = brown_model(k1, k2, p2, p1, k3)
    if lost > _SKEW:
        warn_once(
            f"{where}: b2 and k4 of frame cameras, or p1 and p2 of fisheyes, are not in COLMAP's "
            f"models and are left out, which is up to {lost:.1f} px. --refine-intrinsics may help."
        )
    return pycolmap.Camera(model=model, width=width, height=height, params=[*lens, *distortion])

"""Cameras for Agisoft Metashape: the XML of File > Import > Import Cameras."""

from __future__ import annotations

from pathlib import PurePosixPath
from xml.etree import ElementTree

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.files import write_whole
from edm_hloc.interop.targets.undistorted import Undistorted

NAME = "cameras.xml"


def write_metashape(undistorted: Undistorted) -> None:
    """Writes cameras.xml: a sensor for each camera, and the poses by the photos' labels.

    Metashape's camera looks along z with y down, as COLMAP's, and the centre of its top-left pixel
    is (0.5, 0.5). A transform is world from camera, row by row. The principal point counts from the
    photo's centre, the focal length along x is f + b1.
    """
    model = undistorted.model
    document = ElementTree.Element("document", version="1.4.0")
    chunk = ElementTree.SubElement(document, "chunk", label="edm_hloc", enabled="true")
    posed = posed_images(model)
    used = sorted({image.camera_id for image in posed.values()})
    sensors = ElementTree.SubElement(chunk, "sensors", next_id=str(len(used)))
    for number, camera_id in enumerate(used):
        _add_sensor(sensors, number, model.cameras[camera_id])
    cameras = ElementTree.SubElement(chunk, "cameras", next_id=str(len(posed)), next_group_id="0")
    for number, (name, image) in enumerate(posed.items()):
        camera = ElementTree.SubElement(
            cameras,
            "camera",
            id=str(number),
            sensor_id=str(used.index(image.camera_id)),
            label=PurePosixPath(name).stem,
        )
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        _add_text(camera, "transform", " ".join(map(repr, pose.ravel().tolist())))
        _add_text(camera, "orientation", "1")
    ElementTree.indent(document)
    text = ElementTree.tostring(document, "utf-8", xml_declaration=True)
    write_whole(undistorted.out / NAME, text)


def _add_sensor(sensors: ElementTree.Element, number: int, camera: pycolmap.Camera) -> None:
    fx, fy, cx, cy = map(float, camera.params)
    size = {"width": str(camera.width), "height": str(camera.height)}
    sensor = ElementTree.SubElement(
        sensors, "sensor", id=str(number), label=f"camera {camera.camera_id}", type="frame"
    )
    ElementTree.SubElement(sensor, "resolution", size)
    # "class" is no name that Python takes for an argument
    kind = {"type": "frame", "class": "adjusted"}
    calibration = ElementTree.SubElement(sensor, "calibration", kind)
    ElementTree.SubElement(calibration, "resolution", size)
    values = {"f": fy, "cx": cx - camera.width / 2, "cy": cy - camera.height / 2, "b1": fx - fy}
    for name, value in values.items():
        if value or name != "b1":
            _add_text(calibration, name, repr(value))


def _add_text(parent: ElementTree.Element, name: str, text: str) -> None:
    ElementTree.SubElement(parent, name).text = text

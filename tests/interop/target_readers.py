"""Readers of the layouts that models are exported in, each as strict as the program's own.

They are written after the formats' descriptions and give, for each photo, its K in COLMAP's pixel
frame, its size, and camera from world (3, 4).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from xml.etree import ElementTree

import numpy as np


class View(NamedTuple):
    K: np.ndarray
    size: tuple[int, int]
    cam_from_world: np.ndarray


def _matrix(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def rotation(w: float, x: float, y: float, z: float) -> np.ndarray:
    assert abs(w * w + x * x + y * y + z * z - 1) < 1e-9
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _inverse(world_from_cam: np.ndarray) -> np.ndarray:
    R, t = world_from_cam[:3, :3], world_from_cam[:3, 3]
    assert np.allclose(R @ R.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(R) > 0
    return np.column_stack([R.T, -R.T @ t])


# --------------------------------------------------------------------------- COLMAP's layouts


def _take(file: BinaryIO, kinds: str) -> tuple:
    return struct.unpack(f"<{kinds}", file.read(struct.calcsize(f"<{kinds}")))


def read_splat(folder: Path) -> dict[str, View]:
    """As the readers of Gaussian splatting: binary, PINHOLE only, no folders in the names."""
    lenses = {}
    with (folder / "sparse/0/cameras.bin").open("rb") as file:
        for _ in range(_take(file, "Q")[0]):
            camera_id, model, width, height = _take(file, "IiQQ")
            assert model == 1, "PINHOLE"
            lenses[camera_id] = _matrix(*_take(file, "4d")), (width, height)
        assert not file.read()
    views = {}
    with (folder / "sparse/0/images.bin").open("rb") as file:
        for _ in range(_take(file, "Q")[0]):
            _, *pose, camera_id = _take(file, "I7dI")
            name = b"".join(iter(lambda: file.read(1), b"\0")).decode()
            points = _take(file, "Q")[0]
            file.read(24 * points)
            assert "/" not in name
            assert (folder / "images" / name).is_file()
            views[name] = View(*lenses[camera_id], np.column_stack([rotation(*pose[:4]), pose[4:]]))
        assert not file.read()
    return views


def read_ply(path: Path) -> np.ndarray:
    """The vertices of a binary PLY with normals and colours, which splat readers ask for."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [line.split()[1:] for line in lines if line.startswith("property")]
    table = np.frombuffer(body, [(name, kinds[kind]) for kind, name in fields])
    assert f"element vertex {len(table)}" in lines
    assert {"x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"} <= set(table.dtype.names)
    return table


def read_openmvs(folder: Path) -> dict[str, View]:
    """As InterfaceCOLMAP: text in `sparse`, split at white space, tracks of no point empty."""

    def lines(name: str) -> Iterator[list[str]]:
        for line in (folder / "sparse" / name).read_text("utf-8").split("\n")[:-1]:
            if not line.startswith("#"):
                yield line.split()

    lenses = {}
    for camera_id, model, width, height, *params in lines("cameras.txt"):
        assert model == "PINHOLE"
        lenses[camera_id] = _matrix(*map(float, params)), (int(width), int(height))
    views = {}
    rows = list(lines("images.txt"))
    for row, points in zip(rows[::2], rows[1::2], strict=True):
        _, *pose, camera_id, name = row
        assert len(points) % 3 == 0
        numbers = [float(value) for value in pose]
        R = rotation(*numbers[:4])
        views[name] = View(*lenses[camera_id], np.column_stack([R, numbers[4:]]))
        assert (folder / "images" / name).is_file()
    for point in lines("points3D.txt"):
        assert len(point) >= 10
        assert len(point) % 2 == 0
    return views


# --------------------------------------------------------------------------- others


def read_nerfstudio(folder: Path) -> dict[str, View]:
    """transforms.json: world from camera with OpenGL's axes; masks for all photos or for none."""
    record = json.loads((folder / "transforms.json").read_text())
    assert record["camera_model"] == "OPENCV"
    world = np.vstack([record["applied_transform"], [0, 0, 0, 1]])
    assert len({"mask_path" in frame for frame in record["frames"]}) == 1
    views = {}
    for frame in record["frames"]:
        assert (folder / frame["file_path"]).is_file()
        assert (folder / frame.get("mask_path", frame["file_path"])).is_file()
        assert [frame[k] for k in ("k1", "k2", "p1", "p2")] == [0, 0, 0, 0]
        pose = np.linalg.inv(world) @ np.array(frame["transform_matrix"])
        pose = pose * [1, -1, -1, 1]
        K = _matrix(*(frame[k] for k in ("fl_x", "fl_y", "cx", "cy")))
        views[Path(frame["file_path"]).name] = View(K, (frame["w"], frame["h"]), _inverse(pose))
    return views


def read_metashape(folder: Path) -> dict[str, View]:
    """cameras.xml: principal points from the photo's centre, transforms world from camera."""
    document = ElementTree.parse(folder / "cameras.xml").getroot()
    assert document.tag == "document"
    chunk = document.find("chunk")
    lenses = {}
    for sensor in chunk.find("sensors"):
        calibration = sensor.find("calibration")
        assert (calibration.get("type"), calibration.get("class")) == ("frame", "adjusted")
        assert calibration.find("resolution").attrib == sensor.find("resolution").attrib
        width, height = (int(sensor.find("resolution").get(s)) for s in ("width", "height"))
        value = {child.tag: float(child.text) for child in calibration if child.text}
        assert set(value) <= {"f", "cx", "cy", "b1"}, "no distortion is left"
        fx, cx, cy = value["f"] + value.get("b1", 0), width / 2 + value["cx"], value["cy"]
        K = _matrix(fx, value["f"], cx, height / 2 + cy)
        lenses[sensor.get("id")] = K, (width, height)
    views = {}
    for camera in chunk.find("cameras"):
        (photo,) = (folder / "images").glob(f"{camera.get('label')}.*")  # Metashape's label
        pose = np.array([float(v) for v in camera.find("transform").text.split()]).reshape(4, 4)
        views[photo.name] = View(*lenses[camera.get("sensor_id")], _inverse(pose))
    return views


def read_kapture(folder: Path) -> dict[str, View]:
    """The CSV files of kapture 1.1: camera from world."""

    def table(name: str) -> list[list[str]]:
        first, *lines = (folder / name).read_text("utf-8").splitlines()
        assert first == "# kapture format: 1.1"
        return [[v.strip() for v in line.split(",")] for line in lines if line[0] != "#"]

    lenses = {}
    for device, _, kind, model, width, height, *params in table("sensors/sensors.txt"):
        assert (kind, model) == ("camera", "PINHOLE")
        lenses[device] = _matrix(*map(float, params)), (int(width), int(height))
    poses = {}
    for time, device, *pose in table("sensors/trajectories.txt"):
        numbers = [float(value) for value in pose]
        poses[time, device] = np.column_stack([rotation(*numbers[:4]), numbers[4:]])
    views = {}
    for time, device, name in table("sensors/records_camera.txt"):
        assert (folder / "sensors/records_data" / name).is_file()
        views[name] = View(*lenses[device], poses[time, device])
    return views

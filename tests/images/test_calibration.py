"""Known intrinsics in the files of calibration tools."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.intrinsics import load_intrinsics

K = np.array([[500.0, 0, 319.5], [0, 501, 239.5], [0, 0, 1]])
LENS = [500, 501, 320, 240]  # in COLMAP's frame
CURVED = [0.1, 0.2, 0.001, 0.002]

ROS = """image_width: 640
image_height: 480
camera_name: front
camera_matrix:
  rows: 3
  cols: 3
  data: [500, 0.0, 319.5, 0.0, 501, 239.5, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [0.1, 0.2, 0.001, 0.002, 0.0]
projection_matrix:
  rows: 3
  cols: 4
  data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
"""
BARE = re.sub(r"\b0\.(?=\d)", ".", ROS)  # .1 for 0.1
KALIBR = """cam0:
  T_cam_imu:
  - [0.01, -0.99, 0.004, -0.02]
  - [0.99, 0.01, 0.02, -0.06]
  camera_model: pinhole
  distortion_coeffs: [0.1, 0.2, 0.001, 0.002]
  distortion_model: radtan
  intrinsics: [500.0, 501.0, 319.5, 239.5]
  resolution: [640, 480]
"""
ORB = """%YAML:1.0
# a comment
Camera.type: "PinHole"
Camera.fx: 500.0
Camera.fy: 501.0
Camera.cx: 319.5
Camera.cy: 239.5
Camera.k1: 0.1
Camera.k2: 0.2
Camera.p1: 0.001
Camera.p2: 0.002
Camera.width: 640
Camera.height: 480
"""
BY_HAND = """{"camera_matrix": [[500, 0, 319.5], [0, 501, 239.5], [0, 0, 1]],
"dist_coeffs": [[0.1, 0.2, 0.001, 0.002, 0]], "image_size": [640, 480]}"""
MATLAB = """M: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 500, 0, 0, 0, 501, 0,
       319.5, 239.5, 1 ]
"""


def write(path: Path, **entries: object) -> Path:
    """A file as OpenCV writes it."""
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    for name, value in entries.items():
        storage.write(name, np.array(value, float) if isinstance(value, list) else value)
    storage.release()
    return path


def read(path: Path, name: str = "a.jpg") -> pycolmap.Camera:
    return load_intrinsics(path, [name])[name]


@pytest.mark.parametrize("end", ["yml", "yaml", "xml", "json"])
@pytest.mark.parametrize(
    ("matrix", "distortion", "coefficients", "fisheye", "model", "params"),
    [
        ("camera_matrix", "distortion_coefficients", [*CURVED, 0], 0, "OPENCV", CURVED),
        ("Camera_Matrix", "Distortion_Coefficients", [*CURVED, 0.3], 0, "FULL_OPENCV",
         [*CURVED, 0.3, 0, 0, 0]),
        ("cameraMatrix", "distCoeffs", [*CURVED, 3, 4, 5, 6], 0, "FULL_OPENCV",
         [*CURVED, 3, 4, 5, 6]),
        ("K", "D", [1.0, 2, 3, 4], 1, "OPENCV_FISHEYE", [1, 2, 3, 4]),
        ("M1", "D1", [0.0] * 5, 0, "PINHOLE", []),
        ("mtx", "dist", [[*CURVED, 0.0]], 0, "OPENCV", CURVED),
    ],
)  # fmt: skip
def test_files_of_opencv(
    matrix: str,
    distortion: str,
    coefficients: list[float],
    fisheye: int,
    model: str,
    params: list[float],
    end: str,
    tmp_path: Path,
) -> None:
    given = {"image_width": 640, "image_height": 480, matrix: K, distortion: coefficients}
    if fisheye:
        given["fisheye_model"] = 1
    more = {"avg_reprojection_error": 0.3, "image_points": np.ones((20, 30, 2)) / 3}
    camera = read(write(tmp_path / f"camera.{end}", **given, **more))
    assert (camera.model_name, camera.width, camera.height) == (model, 640, 480)
    np.testing.assert_allclose(camera.params, [*LENS, *params])
    # the same ray as OpenCV's, whose top-left pixel has its centre at (0, 0)
    ray = np.array([0.2, -0.1, 1.0])
    if fisheye:
        seen = cv2.fisheye.projectPoints(ray.reshape(1, 1, 3), np.zeros(3), np.zeros(3), K,
                                         np.array(coefficients))[0]  # fmt: skip
    else:
        seen = cv2.projectPoints(ray, np.zeros(3), np.zeros(3), K, np.array(coefficients))[0]
    np.testing.assert_allclose(camera.img_from_cam(ray), seen.ravel() + 0.5, atol=1e-9)


@pytest.mark.parametrize("text", [ROS, BARE, f"%YAML:1.0\n---\n{ROS}", KALIBR, ORB, BY_HAND])
def test_files_of_other_tools(text: str, tmp_path: Path) -> None:
    path = tmp_path / ("camera.json" if text.startswith("{") else "camera.yaml")
    path.write_text(text)
    camera = read(path)
    assert camera.model_name in ("OPENCV", "FULL_OPENCV")
    assert (camera.width, camera.height) == (640, 480)
    np.testing.assert_allclose(camera.params[:8], [*LENS, *CURVED])
    assert not camera.params[8:].any()
    if text == KALIBR:
        path.write_text(text.replace("radtan", "equidistant"))
        assert read(path).model_name == "OPENCV_FISHEYE"


def test_a_matrix_by_columns(tmp_path: Path) -> None:
    path = tmp_path / "camera.yml"
    path.write_text(MATLAB)
    np.testing.assert_allclose(read(path).params, LENS)


def test_a_camera_for_photos_of_unknown_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenCV's calibration of a stereo rig does not tell it."""
    warn_once.cache_clear()
    known = load_intrinsics(write(tmp_path / "camera.yml", M1=K, D1=[0.0] * 5), ["a.png", "b.png"])
    for name in known:
        Image.new("L", (640, 480)).save(tmp_path / name)
    cameras, _ = photo_cameras(tmp_path, list(known), CameraOptions(known=known))
    assert (cameras["a.png"].width, cameras["a.png"].height) == (640, 480)
    np.testing.assert_allclose(cameras["a.png"].params, LENS)
    assert "taken to be for 640 × 480 pixels, as a.png and 1 more have" in caplog.text
    Image.new("L", (320, 240)).save(tmp_path / "b.png")
    with pytest.raises(EdmHlocError, match=r"b\.png has 320 × 240 .*image_width: W"):
        photo_cameras(tmp_path, list(known), CameraOptions(known=known))


def test_cameras_of_a_rig_are_told_apart_by_folders(tmp_path: Path) -> None:
    path = tmp_path / "camchain.yaml"
    path.write_text(KALIBR + KALIBR.replace("cam0", "cam1").replace("500.0", "600.0"))
    found = load_intrinsics(path, ["cam0/a.jpg", "cam1/a.jpg"])
    assert [camera.params[0] for camera in found.values()] == [500, 600]
    with pytest.raises(EdmHlocError, match=r"the cameras cam0, cam1, and a\.jpg is in no folder"):
        read(path)
    with pytest.raises(EdmHlocError, match="the cameras 1, 2"):
        read(write(tmp_path / "stereo.yml", M1=K, M2=K + np.diag([1, 1, 0])))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KALIBR.replace("pinhole", "omni"), "'omni' are not read"),
        ("hello: world\n- x: [", "holds no camera"),
        ("a: " + "[" * 200_000, "holds no camera"),  # OpenCV's own reader crashes
        ("{" * 100_000, "Cannot read the intrinsics"),
        ("<a>" * 50_000, "Cannot read the intrinsics"),
        (ROS.replace("500, 0.0,", "500, 3.0,"), "without skew"),
        (ROS.replace("0.002, 0.0]", "0.002, 0, 0, 0, 0, 0.5]"), "COLMAP's camera model"),
        (ROS.replace("501", "nan"), "no possible camera"),
        (ROS.replace("501", ".NaN"), "no possible camera"),
        (ROS.replace("501", "-.inf"), "no possible camera"),
        (ROS.replace("500,", "-500,"), "no possible camera"),
        (ROS.replace("image_height: 480", ""), "no possible camera"),
        (ORB + "Camera2.fx: 400\n", "several cameras"),
        ("", "holds no camera"),
    ],
)
def test_what_is_no_camera(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(text)
    with pytest.raises(EdmHlocError, match=message) as error:
        read(path)
    assert "camera.yaml" in str(error.value)


def test_four_coefficients_may_be_of_either_lens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    caplog.set_level(logging.WARNING)
    assert read(write(tmp_path / "camera.yml", K=K, D=CURVED)).model_name == "OPENCV"
    assert "add the line fisheye_model: 1" in caplog.text
    caplog.clear()
    write(tmp_path / "camera.yml", K=K, D=CURVED, fisheye_model=0)
    assert read(tmp_path / "camera.yml").model_name == "OPENCV"
    assert caplog.text == ""


def test_a_path_of_nothing_but_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EdmHlocError, match="Cannot read the intrinsics"):
        load_intrinsics(Path(" "), ["a.jpg"])

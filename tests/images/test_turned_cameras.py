"""Cameras of photos that were turned by 90°: the same rays, at turned pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.images.cameras import possible_cameras, turned_cameras

MODELS = {
    "SIMPLE_PINHOLE": [300, 151, 98],
    "PINHOLE": [300, 310, 151, 98],
    "SIMPLE_RADIAL": [300, 151, 98, 0.05],
    "RADIAL": [300, 151, 98, 0.05, -0.01],
    "OPENCV": [300, 310, 151, 98, 0.05, -0.01, 0.002, -0.003],
    "FULL_OPENCV": [300, 310, 151, 98, 0.05, -0.01, 0.002, -0.003, 0.01, 0.02, 0.01, 0.0],
    "OPENCV_FISHEYE": [200, 210, 151, 98, 0.01, -0.01, 0.002, -0.001],
}


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("landscape", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_turned_cameras_see_the_same_at_turned_pixels(
    model: str, landscape: bool, way: int
) -> None:
    size = (313, 201) if landscape else (201, 313)
    clockwise = landscape == (way == 0)
    camera = pycolmap.Camera(model=model, width=size[0], height=size[1], params=MODELS[model])
    turned = turned_cameras(camera)[way]
    assert (turned.width, turned.height) == (size[1], size[0])
    points = np.random.default_rng(0).uniform([-0.4, -0.4, 1.1], [0.4, 0.4, 1.9], (50, 3))
    x, y, z = points.T
    in_turned = np.stack([-y, x, z] if clockwise else [y, -x, z], axis=1)
    u, v = camera.img_from_cam(points).T
    expected = np.stack([size[1] - v, u] if clockwise else [v, size[0] - u], axis=1)
    assert turned.img_from_cam(in_turned) == pytest.approx(expected)


def test_no_turned_camera_of_other_models() -> None:
    parameters = [300, 310, 151, 98, *[0.01] * 8]
    camera = pycolmap.Camera(model="THIN_PRISM_FISHEYE", width=313, height=201, params=parameters)
    assert turned_cameras(camera) == []
    centred = pycolmap.Camera(
        model="RADIAL", width=313, height=201, params=[300, 156.5, 100.5, 0, 0]
    )
    assert len(turned_cameras(centred)) == 1  # both ways alike


def test_photos_on_their_side_may_be_of_the_camera_of_the_others(tmp_path: Path) -> None:
    for name, size in (("wide", (64, 48)), ("upright", (48, 64)), ("square", (48, 48))):
        Image.new("L", size).save(tmp_path / f"{name}.jpg")
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=64, height=48, params=[70.0, 33.0, 20.0, 0.1]
    )
    names = ["wide.jpg", "upright.jpg", "square.jpg"]
    known = dict.fromkeys(["a", "b", "c"], camera)
    found = possible_cameras(tmp_path, names, known)
    assert found.keys() == {"wide.jpg", "upright.jpg"}
    assert found["wide.jpg"] == [camera]
    assert [c.params.tolist() for c in found["upright.jpg"]] == [
        [70.0, 48.0 - 20.0, 33.0, 0.1],
        [70.0, 20.0, 64.0 - 33.0, 0.1],
    ]
    # of another camera, which took photos of these sides
    other = pycolmap.Camera(model="SIMPLE_PINHOLE", width=48, height=64, params=[90.0, 24, 32])
    found = possible_cameras(tmp_path, names, {**known, "d": other})
    assert found.keys() == {"wide.jpg"}

"""Cameras and models for photos that are stored in another size."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.images.sizes import camera_for_size, fit_model


def camera(width: int, height: int) -> pycolmap.Camera:
    params = [0.8 * width, width / 2, height / 2, 0.02]
    return pycolmap.Camera(
        camera_id=1, model="SIMPLE_RADIAL", width=width, height=height, params=params
    )


@pytest.mark.parametrize(
    ("own", "size"),
    [
        ((640, 480), (320, 240)),
        ((640, 480), (1280, 960)),
        ((4946, 3286), (1237, 822)),  # images_4 of a benchmark: both sides rounded up
        ((4946, 3286), (1236, 821)),  # both cut
        ((5616, 3744), (512, 341)),
        ((480, 640), (240, 320)),
    ],
)
def test_one_factor_scales_the_camera(own: tuple[int, int], size: tuple[int, int]) -> None:
    scaled = camera_for_size(camera(*own), size, Path("a.jpg"), "the model m")
    assert (scaled.width, scaled.height) == size
    expected = [0.8 * size[0], size[0] / 2, size[1] / 2, 0.02]
    np.testing.assert_allclose(scaled.params, expected, rtol=2e-3)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((480, 640), "turned by 90°"),
        ((240, 320), "turned by 90°"),
        ((640, 360), "cropped"),
        ((500, 480), "cropped"),
        ((640, 640), "cropped"),
    ],
)
def test_other_photos_are_refused(size: tuple[int, int], message: str) -> None:
    with pytest.raises(EdmHlocError, match=message) as error:
        camera_for_size(camera(640, 480), size, Path("photos/a.jpg"), "the model m")
    assert "photos/a.jpg" in str(error.value)
    assert "the model m is for 640 × 480 pixels" in str(error.value)
    assert f"has {size[0]} × {size[1]}" in str(error.value)


def model(names: list[str]) -> pycolmap.Reconstruction:
    """Photos of one camera, each with a keypoint at (100, 50) that shows one point."""
    made = pycolmap.Reconstruction()
    made.add_camera_with_trivial_rig(camera(640, 480))
    track = pycolmap.Track()
    for i, name in enumerate(names, start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=i)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([100.0, 50.0]))])
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([i, 0.0, 0.0]))
        made.add_image_with_trivial_frame(image, pose)
        track.add_element(i, 0)
    made.add_point3D(np.array([0.0, 0, 5]), track, np.zeros(3, np.uint8))
    return made


def save(folder: Path, sizes: dict[str, tuple[int, int]]) -> list[str]:
    for name, size in sizes.items():
        Image.new("L", size).save(folder / name)
    return list(sizes)


def test_a_model_beside_reduced_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    names = save(tmp_path, {"a.png": (160, 120), "b.png": (160, 120)})
    fitted, scaled = fit_model(model([*names, "missing.png"]), tmp_path, "the model m")
    assert scaled == dict.fromkeys(names, (160, 120))
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "The model m has cameras for 640 × 480 pixels, but a.png and 1 more have 160 × 120: the "
        "cameras were scaled by 0.25."
    ]
    for image in fitted.images.values():
        if image.name in names:
            own = fitted.cameras[image.camera_id]
            assert own.params.tolist() == [128.0, 80.0, 60.0, 0.02]
            assert image.points2D[0].xy.tolist() == [25.0, 12.5]


def test_photos_of_one_camera_in_several_sizes(tmp_path: Path) -> None:
    sizes = {"a.png": (640, 480), "b.png": (320, 240), "c.png": (640, 480), "d.png": (1280, 960)}
    fitted, scaled = fit_model(model(save(tmp_path, sizes)), tmp_path, "the model m")
    assert scaled == {"b.png": (320, 240), "d.png": (1280, 960)}
    assert len(fitted.cameras) == 3
    for image in fitted.images.values():
        own = fitted.cameras[image.camera_id]
        factor = sizes[image.name][0] / 640
        assert (own.width, own.height) == sizes[image.name]
        assert own.focal_length == 512 * factor
        assert image.points2D[0].xy.tolist() == [100 * factor, 50 * factor]
        assert image.points2D[0].point3D_id == 1
        assert image.cam_from_world().translation[0] == image.image_id
    assert fitted.points3D[1].track.length() == 4


def test_a_model_of_its_own_photos_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = save(tmp_path, {"a.png": (640, 480), "b.png": (640, 480)})
    made = model(names)
    fitted, scaled = fit_model(made, tmp_path, "the model m")
    assert (fitted is made, scaled, caplog.text) == (True, {}, "")
    save(tmp_path, {"b.png": (480, 640)})
    with pytest.raises(EdmHlocError, match=r"b\.png in the model m .* turned"):
        fit_model(made, tmp_path, "the model m")

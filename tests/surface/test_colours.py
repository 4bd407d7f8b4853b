"""Colours of points from the photos that see them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from edm_hloc.surface.cloud import Cloud
from edm_hloc.surface.colours import ReducedPhoto, colours_of

BEHIND, BEFORE = [200, 40, 10], [20, 90, 220]


def _model(names: list[str]) -> pycolmap.Reconstruction:
    """Cameras at the origin and one to the right, which look along z."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(
        camera_id=1, model="SIMPLE_PINHOLE", width=400, height=300, params=[400, 200, 150]
    )
    model.add_camera_with_trivial_rig(camera)
    for number, name in enumerate(names, start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        centre = np.array([1.0 * (number - 1), 0, 0])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(), -centre))
    return model


def _wall(depth: float, low: float, high: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(low, high, 0.02), np.arange(-0.5, 0.5, 0.02))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, depth)], axis=1)


@pytest.fixture
def cloud() -> Cloud:
    """A wall at a depth of 4, and before it a panel at 2 that hides its left part from photo 1."""
    points = np.concatenate([_wall(4.0, -1.0, 1.5), _wall(2.0, -0.5, 0.0)])
    normals = np.tile([0, 0, -1.0], (len(points), 1))
    return Cloud(points, normals, np.full(len(points), 0.02))


def _photos(folder: Path) -> None:
    """What the two cameras see of wall and panel."""
    for number, name in enumerate(["a.png", "b.png"]):
        pixels = np.full((300, 400, 3), BEHIND, np.uint8)
        left, right = ((x - number) / 2 * 400 + 200 for x in (-0.5, 0.0))
        pixels[:, max(0, round(left)) : max(0, round(right))] = BEFORE
        cv2.imwrite(str(folder / name), pixels[:, :, ::-1])


def test_what_is_hidden_has_the_colour_of_the_photo_that_sees_it(
    cloud: Cloud, tmp_path: Path
) -> None:
    _photos(tmp_path)
    found = colours_of(cloud, _model(["a.png", "b.png"]), tmp_path, 400)
    wall = cloud.points[:, 2] == 4
    off = np.abs(found - np.where(wall[:, None], BEHIND, BEFORE)).max(axis=1)
    assert np.mean(off < 12) > 0.97  # but at the outline
    inner = wall & (np.abs(cloud.points[:, 0] + 0.5) < 0.3)  # hidden from the first photo
    assert np.mean(off[inner] < 12) == 1


def test_what_no_photo_sees_is_grey(cloud: Cloud, tmp_path: Path) -> None:
    _photos(tmp_path)
    averted = Cloud(cloud.points, -cloud.normals, cloud.spacings)
    assert (colours_of(averted, _model(["a.png"]), tmp_path, 400) == 128).all()


def test_a_photo_that_cannot_be_read_is_named(
    cloud: Cloud, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _photos(tmp_path)
    (tmp_path / "b.png").write_bytes(b"no photo")
    found = colours_of(cloud, _model(["a.png", "b.png"]), tmp_path, 400)
    assert "b.png" in caplog.text
    hidden = (cloud.points[:, 2] == 4) & (np.abs(cloud.points[:, 0] + 0.5) < 0.2)
    assert (found[hidden] == 128).all()
    assert (found[~hidden] != 128).any()
    # at its rim it has the colour of what is beside it
    beside = (cloud.points[:, 2] == 4) & (np.abs(cloud.points[:, 0] + 0.05) < 0.04)
    assert (found[beside] != 128).all()


def test_a_pixel_is_half_a_voxel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    pixels[:, 800:] = [10, 200, 30]
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    photo = ReducedPhoto.read(tmp_path / "a.png", 400)  # voxels of 16 px, so blocks of 8
    assert photo.pixels.shape == (150, 200, 3)
    assert photo.at(np.array([[1203.5, 899.5]]))[0] == pytest.approx([30, 200, 10])
    block = pixels[400:408, 80:88, ::-1].mean(axis=(0, 1))
    assert photo.at(np.array([[83.5, 403.5]]))[0] == pytest.approx(block, abs=1)

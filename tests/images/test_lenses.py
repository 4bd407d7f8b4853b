"""The disc that a circular fisheye lens draws, and panoramas."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.images.lenses import image_circle, is_panorama, most_of


def textured(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(H, W) uint8, with a sky and dark patches as large as a fifth of the photo."""
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (8, 8)).astype(np.float32)
    grey = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    return np.clip(grey + rng.normal(0, 12, (height, width)), 0, 255).astype(np.uint8)


def disc(
    size: tuple[int, int], centre: tuple[float, float], radius: float, seed: int = 0
) -> np.ndarray:
    """(H, W) uint8: bright content inside of a circle, and noise near black outside of it."""
    photo = np.clip(textured(size, seed) // 2 + 90, 0, 255)
    y, x = np.mgrid[: size[1], : size[0]]
    outside = np.hypot(x - centre[0], y - centre[1]) > radius
    photo[outside] = np.random.default_rng(seed).integers(0, 12, int(outside.sum()))
    return photo.astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "centre", "radius"),
    [
        ((480, 480), (239.5, 239.5), 236),
        ((471, 313), (240, 150), 140),
        ((1920, 1080), (950, 545), 700),  # above and below it reaches beyond the photo
        ((1200, 1200), (600, 600), 640),  # on all four sides
    ],
)
def test_diameter_of_a_disc(
    tmp_path: Path, size: tuple[int, int], centre: tuple[float, float], radius: float
) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), disc(size, centre, radius))
    assert image_circle(path) == pytest.approx(2 * radius, rel=0.02)


def test_a_dark_figure_at_the_rim_does_not_matter(tmp_path: Path) -> None:
    photo = disc((600, 600), (300, 300), 290)
    cv2.ellipse(photo, (300, 590), (110, 120), 0, 0, 360, 5, -1)  # who holds the camera
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    assert image_circle(tmp_path / "a.png") == pytest.approx(580, rel=0.02)


def lamp() -> np.ndarray:
    """A night scene: black but for what a lamp shines on."""
    y, x = np.mgrid[:480, :640]
    shine = np.exp(-((x - 200) ** 2 / 90**2 + (y - 300) ** 2 / 60**2))
    return (textured((640, 480)) * shine).astype(np.uint8)


def framed() -> np.ndarray:
    """A scan before black: its border is a rectangle."""
    photo = np.zeros((480, 640), np.uint8)
    photo[60:420, 90:550] = textured((460, 360)) // 2 + 90
    return photo


@pytest.mark.parametrize(
    "photo",
    [
        textured((640, 480)),
        np.zeros((480, 640), np.uint8),
        np.full((480, 640), 200, np.uint8),
        np.zeros((1, 1), np.uint8),
        lamp(),
        framed(),
        disc((640, 480), (320, 240), 400),  # over the corners: nothing is black
        disc((640, 480), (110, 120), 100),  # a moon, not the lens
    ],
    ids=["photo", "black", "bright", "pixel", "lamp", "scan", "uncut", "moon"],
)
def test_other_photos_show_none(tmp_path: Path, photo: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), photo)
    assert image_circle(tmp_path / "a.png") is None


def test_most_of_the_photos_must_show_it(tmp_path: Path) -> None:
    names = [f"{k:02d}.png" for k in range(12)]
    for k, name in enumerate(names):
        photo = textured((320, 320), k) if k == 5 else disc((320, 320), (160, 160), 156, k)
        cv2.imwrite(str(tmp_path / name), photo)
    (tmp_path / names[0]).write_bytes(b"damaged")
    found = most_of(tmp_path, names, image_circle)
    assert 5 <= len(found) <= 8
    assert set(found) < set(names[1:])
    for name in names[:9]:
        cv2.imwrite(str(tmp_path / name), textured((320, 320)))
    assert most_of(tmp_path, names, image_circle) == []
    assert most_of(tmp_path, [], image_circle) == []
    with pytest.raises(ImageError, match=r"none\.png"):
        image_circle(tmp_path / "none.png")


def test_metadata_tell_of_a_panorama(tmp_path: Path) -> None:
    photo = Image.fromarray(textured((600, 250)))
    xmp = b'<x:xmpmeta><rdf:Description GPano:ProjectionType="equirectangular"/></x:xmpmeta>'
    photo.save(tmp_path / "a.jpg", xmp=xmp)
    assert is_panorama(tmp_path / "a.jpg")
    photo.save(tmp_path / "b.jpg", xmp=xmp.replace(b"equirectangular", b"cylindrical"))
    assert not is_panorama(tmp_path / "b.jpg")
    photo.save(
        tmp_path / "c.jpg",
        xmp=b"<GPano:ProjectionType>equirectangular</GPano:ProjectionType>",
    )
    assert is_panorama(tmp_path / "c.jpg")
    photo.save(tmp_path / "d.png")
    assert not is_panorama(tmp_path / "d.png")
    with pytest.raises(ImageError, match=r"none\.jpg"):
        is_panorama(tmp_path / "none.jpg")


def test_known_intrinsics_of_a_model_of_panoramas_are_refused(tmp_path: Path) -> None:
    """They have no focal length, and would end the mapping after all of the matching."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 1, 640, 320)
    )
    image = pycolmap.Image(name="sphere.jpg", image_id=1, camera_id=1)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    model.write_text(tmp_path)
    with pytest.raises(EdmHlocError, match=r"of sphere\.jpg is EQUIRECTANGULAR, .*edm-hloc views"):
        load_intrinsics(tmp_path, ["sphere.jpg"])

"""Photos with an EXIF orientation: seen upright, with points in the pixels as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from edm_hloc.base.errors import ImageError
from edm_hloc.base.frames import PixelTransform, upright_axes, upright_size
from edm_hloc.base.matches import Matches
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.decode import photo_size
from edm_hloc.images.exif import read_header
from edm_hloc.images.load import load_image, load_photo
from edm_hloc.images.pictures import draw_matches
from tests.images.pixels import HEIGHT, STORED_AT, WIDTH, store_turned, turned_as


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_frames_of_all_orientations(
    tmp_path: Path, photo: Image.Image, orientation: int, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    store_turned(photo, path, orientation, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(path) as opened:  # Pillow knows the eight orientations
        assert ImageOps.exif_transpose(opened).size == (WIDTH, HEIGHT)
    photo.save(tmp_path / "upright.png")
    for resize_max, divisor in ((None, 1), (320, 32)):
        options = {"resize_max": resize_max, "divisor": divisor, "grayscale": False}
        upright, image = (load_image(p, **options) for p in (tmp_path / "upright.png", path))
        np.testing.assert_array_equal(image.tensor, upright.tensor)
        assert image.transform.scale == upright.transform.scale
    width, height = image.original_size
    assert (width, height) == photo_size(path)
    assert upright_size((width, height), orientation) == (WIDTH, HEIGHT)
    assert image.exif_orientation == orientation

    u, v = np.random.default_rng(0).integers(0, [[WIDTH], [HEIGHT]], (2, 100))
    u, v = np.append(u, [0, WIDTH - 1, 0]), np.append(v, [0, HEIGHT - 1, HEIGHT - 1])
    x, y = STORED_AT[orientation](u, v, width, height)
    whole = load_image(path, resize_max=None, divisor=1, grayscale=False).transform
    at = whole.to_original(np.stack([u, v], axis=1).astype(np.float32))
    assert at.dtype == np.float32
    np.testing.assert_array_equal(at, np.stack([x, y], axis=1))
    np.testing.assert_array_equal(whole.to_network(at), np.stack([u, v], axis=1))
    # the same pixels of the file, and the network's own frame on the way there and back
    stored = turned_as(photo, orientation)
    np.testing.assert_array_equal(stored[y, x], np.asarray(photo)[v, u])
    of_network = upright.transform.to_network(np.stack([u, v], axis=1).astype(float))
    np.testing.assert_allclose(image.transform.to_original(of_network), at, atol=1e-9)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_mirrored_photos_are_shown_but_not_used(
    tmp_path: Path, photo: Image.Image, orientation: int, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    store_turned(photo, path, orientation)
    assert load_image(path).exif_orientation == orientation
    if np.linalg.det(upright_axes(orientation)) > 0:
        assert load_photo(path).original_size == read_header(path).size
        assert photo_cameras(tmp_path, [path.name], CameraOptions())[0].keys() == {path.name}
        return
    for read in (load_photo, read_header):
        with pytest.raises(
            ImageError, match=rf"{path.name}: its EXIF .* \({orientation}\) mirrors"
        ):
            read(path)
    cameras, skipped = photo_cameras(tmp_path, [path.name], CameraOptions())
    assert cameras == {}
    assert "Store it as it is shown" in skipped[path.name]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_corner_stays_a_corner_and_directions_turn_along(orientation: int) -> None:
    size = (600, 400)
    transform = PixelTransform((2.5, 1.5), orientation, size)
    width, height = upright_size(size, orientation)
    corners = np.array([[0, 0], [width / 2.5, 0], [0, height / 1.5]]) - 0.5
    there = transform.to_original(corners) + 0.5
    assert {0.0, 600.0} >= set(there[:, 0])
    assert {0.0, 400.0} >= set(there[:, 1])
    axes = upright_axes(orientation)
    np.testing.assert_array_equal(axes[:2, 0], np.sign(there[1] - there[0]))
    np.testing.assert_array_equal(axes[:2, 1], np.sign(there[2] - there[0]))
    np.testing.assert_array_equal(axes[2], [0, 0, 1])


def test_a_picture_shows_both_photos_upright(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    store_turned(photo, tmp_path / "b.png", 6)
    none = Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    picture = draw_matches(tmp_path / "a.png", tmp_path / "b.png", none)
    np.testing.assert_array_equal(picture[:HEIGHT, :WIDTH], picture[:HEIGHT, -WIDTH:])

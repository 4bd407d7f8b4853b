"""Focal lengths of EXIF data that are right, that can be mended, and that cannot be."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from edm_hloc.base.log import warn_once
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.exif import exif_focal_length, read_header

FOCAL, FILM, WIDTH, HEIGHT = 0x920A, 0xA405, 0xA002, 0xA003
RESOLUTION, UNIT, ZOOM = 0xA20E, 0xA210, 0xA404
# 32 mm and 3,810 px an inch, 150 a mm: 4,800 px of the sensor's 5,616
SLR = {FOCAL: 32.0, RESOLUTION: 3810.0, UNIT: 2, WIDTH: 5616, HEIGHT: 3744}
DIAGONAL = float(np.hypot(36, 24))


def photo(path: Path, size: tuple[int, int], tags: dict[int, float]) -> Path:
    data = Image.Exif()
    data[0x010F], data[0x0110] = "Maker", "Model"
    numbers = {tag: IFDRational(n) if isinstance(n, float) else n for tag, n in tags.items()}
    data.get_ifd(0x8769).update(numbers)
    Image.new("L", size).save(path, exif=data)
    return path


@pytest.mark.parametrize(
    ("size", "tags", "focal", "warning"),
    [
        ((5616, 3744), SLR, 4800, ""),
        ((512, 341), SLR, 4800 * 512 / 5616, "before its size was changed: 438 px is taken"),
        ((341, 512), SLR, 4800 * 512 / 5616, "438 px is taken"),  # turned as well
        ((512, 512), SLR, None, "before its size was changed: it is not used"),
        ((512, 341), SLR | {UNIT: 3, RESOLUTION: 1500.0}, 4800 * 512 / 5616, "438 px is taken"),
        ((640, 480), {FILM: 36}, 36 * 800 / DIAGONAL, ""),
        ((640, 480), {FILM: 1}, None, "give a focal length of 18 px, which no lens has"),
        ((640, 480), {FILM: 65535}, None, "which no lens has in a photo of this size"),
        ((512, 341), SLR | {FILM: 65535}, 4800 * 512 / 5616, "438 px is taken"),
        ((640, 480), {}, None, ""),
        ((640, 480), {FILM: 0}, None, ""),
    ],
)
def test_focal_length(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    size: tuple[int, int],
    tags: dict[int, float],
    focal: float | None,
    warning: str,
) -> None:
    warn_once.cache_clear()
    path = photo(tmp_path / "a.jpg", size, tags)
    with caplog.at_level(logging.WARNING):
        found = exif_focal_length(path)
    assert found == (None if focal is None else pytest.approx(focal, rel=1e-3))
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)
    if warning:
        assert str(path) in caplog.text


def test_impossible_focal_lengths_in_formats_that_colmap_does_not_read(tmp_path: Path) -> None:
    assert exif_focal_length(photo(tmp_path / "a.webp", (640, 480), {FILM: 65535})) is None
    found = exif_focal_length(photo(tmp_path / "b.webp", (640, 480), {FILM: 36}))
    assert found == pytest.approx(36 * 800 / DIAGONAL)
    assert exif_focal_length(photo(tmp_path / "c.webp", (640, 480), {FOCAL: 32.0})) is None
    # As cameras write them that store HEIC: pixels of the sensor, and no 35 mm equivalent
    assert exif_focal_length(photo(tmp_path / "d.webp", (5616, 3744), SLR)) == pytest.approx(4800)
    found = exif_focal_length(photo(tmp_path / "e.webp", (512, 341), SLR))
    assert found == pytest.approx(4800 * 512 / 5616)


def test_photos_without_a_possible_focal_length_share_no_camera(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg"]
    for name in names:
        photo(tmp_path / name, (640, 480), {FILM: 1})
        assert not read_header(tmp_path / name).has_focal_length
    cameras, _ = photo_cameras(tmp_path, names, CameraOptions())
    assert len({camera.camera_id for camera in cameras.values()}) == 2
    assert not any(camera.has_prior_focal_length for camera in cameras.values())
    for name in names:  # reduced: one camera, with the focal length of the reduced photo
        photo(tmp_path / name, (512, 341), SLR)
    cameras, _ = photo_cameras(tmp_path, names, CameraOptions())
    assert cameras["a.jpg"] is cameras["b.jpg"]
    assert cameras["a.jpg"].mean_focal_length() == pytest.approx(4800 * 512 / 5616)


@pytest.mark.parametrize(
    ("tags", "shared"),
    [
        ({}, True),
        ({ZOOM: 1.0}, True),
        ({ZOOM: 0.0}, True),  # not used
        ({ZOOM: 1.5}, False),
        ({WIDTH: 4000, HEIGHT: 3000}, True),  # reduced
        ({WIDTH: 3000, HEIGHT: 4000}, True),  # turned as well
        ({WIDTH: 4000, HEIGHT: 2250}, False),  # cropped, as the shape is another
    ],
)
def test_zoomed_and_cropped_photos_do_not_share_a_camera(
    tmp_path: Path, tags: dict[int, float], shared: bool
) -> None:
    photo(tmp_path / "a.jpg", (640, 480), {FILM: 36})
    photo(tmp_path / "b.jpg", (640, 480), {FILM: 36} | tags)
    cameras, _ = photo_cameras(tmp_path, ["a.jpg", "b.jpg"], CameraOptions())
    assert (cameras["a.jpg"] is cameras["b.jpg"]) == shared

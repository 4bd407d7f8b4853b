"""Photos of more than 8 bits that do not fill them are stretched, all of a folder alike."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.log import warn_once
from tests.images.pixels import stored


def save(folder: Path, scene: np.ndarray, low: float, high: float, suffix: str) -> list[Path]:
    """Three photos of the scene with values from `low` to `high`; the last two are darker."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, brightness in enumerate((1.0, 0.7, 0.5)):
        values = low + (high - low) * brightness * scene
        paths.append(folder / f"{number}{suffix}")
        if values.dtype == np.float32 and suffix == ".float.tif":
            Image.fromarray(values).save(paths[-1])
        else:
            cv2.imwrite(str(paths[-1]), values.astype(np.uint16))
    return paths


@pytest.mark.parametrize(
    ("low", "high", "suffix"),
    [
        (0, 4095, ".tif"),  # 12 bits
        (0, 4095, ".png"),
        (64, 1023, ".pgm"),  # 10 bits
        (28_900, 30_100, ".tif"),  # hundredths of a kelvin
        (12.5, 38.0, ".float.tif"),  # degrees
    ],
)
def test_values_that_do_not_fill_the_file_are_stretched(
    tmp_path: Path,
    scene: np.ndarray,
    low: float,
    high: float,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grey = np.ascontiguousarray(scene[..., 0])
    paths = save(tmp_path / "photos", grey, low, high, suffix)
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        pixels = [stored(path) for path in paths]
    # the brightest fills the range; a smooth scene has few values at its ends
    assert np.percentile(pixels[0], 1) < 60
    assert np.percentile(pixels[0], 99) > 200
    assert np.corrcoef(pixels[0].ravel(), grey.ravel())[0, 1] > 0.999
    # alike: the same value of the file is the same grey in all photos
    inside = (pixels[0] > 5) & (pixels[0] < 250) & (pixels[2] > 5)
    slopes = [np.polyfit(grey[inside], p[inside], 1)[0] for p in pixels]
    assert slopes[1] / slopes[0] == pytest.approx(0.7, abs=0.01)
    assert slopes[2] / slopes[0] == pytest.approx(0.5, abs=0.01)
    assert len(caplog.records) == 1
    assert "stretched to black and white, in all of them alike" in caplog.text
    assert str(tmp_path / "photos") in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_colours_of_12_bits_keep_them(tmp_path: Path, scene: np.ndarray, suffix: str) -> None:
    paths = save(tmp_path / "photos", scene, 0, 4095, suffix)
    colours = stored(paths[0], grayscale=False)
    assert len(np.unique(colours)) > 1000  # Pillow's 8 bits would leave 16
    order = [np.corrcoef(colours[..., 2 - i].ravel(), scene[..., i].ravel())[0, 1] for i in (0, 2)]
    assert min(order) > 0.999
    assert stored(paths[0]).max() > 200


def test_a_full_range_and_other_folders_are_left_alone(
    tmp_path: Path, scene: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    full = save(tmp_path / "full", scene[..., 0], 0, 65535, ".tif")
    save(tmp_path / "dark", scene[..., 0], 0, 4095, ".tif")
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        for path, brightness in zip(full, (1.0, 0.7, 0.5), strict=True):
            assert np.abs(stored(path) - scene[..., 0] * brightness * 255).max() < 0.01
    assert not caplog.records


@pytest.mark.parametrize("other", [None, np.uint8])
def test_the_whole_folder_tells_the_levels(tmp_path: Path, other: type | None) -> None:
    """Also where most of its photos are of another type."""
    rng = np.random.default_rng(0)
    for i in range(40):
        values = rng.integers(1000, 2000, (8, 8)) + (5000 if i >= 30 else 0)
        kind = other if other and i not in (1, 39) else np.uint16
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), values.astype(kind))
    dark, bright = (stored(tmp_path / name) for name in ("01.png", "39.png"))
    assert 0 < dark.mean() < 60
    assert 200 < bright.mean() < 254


@pytest.mark.parametrize(
    ("low", "high", "no_data", "kind"),
    [
        (20, 30, -9999, np.float32),  # degrees
        (20, 30, -3.4028235e38, np.float32),
        (0, 1, 3.4028235e38, np.float32),
        (28_900, 30_100, 0, np.uint16),  # hundredths of a kelvin
    ],
)
def test_what_was_not_measured_does_not_count(
    tmp_path: Path, scene: np.ndarray, low: float, high: float, no_data: float, kind: type
) -> None:
    grey = scene[..., 0]
    values = (low + (high - low) * grey).astype(kind)
    rows = len(values) // 40
    values[:rows] = no_data
    for name in ("a.tif", "b.tif"):
        Image.fromarray(values).save(tmp_path / name)
    pixels = stored(tmp_path / "a.tif")
    assert np.percentile(pixels[rows:], 1) < 60
    assert np.percentile(pixels[rows:], 99) > 200
    assert np.corrcoef(pixels[rows:].ravel(), grey[rows:].ravel())[0, 1] > 0.999
    assert np.all(pixels[:rows] == (255 if no_data > high else 0))


def test_negative_values_are_seen(tmp_path: Path, scene: np.ndarray) -> None:
    grey = scene[..., 0]
    values = grey.astype(np.float32) - 0.5
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    pixels = stored(tmp_path / "a.tif")
    assert np.corrcoef(pixels.ravel()[1:], grey.ravel()[1:])[0, 1] > 0.999
    assert pixels[0, 0] == 0


def test_photos_of_fewer_bits_than_the_others_are_named(
    tmp_path: Path, scene: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    grey = np.ascontiguousarray(scene[..., 0])
    paths = save(tmp_path / "photos", grey, 0, 4095, ".png")
    cv2.imwrite(str(tmp_path / "photos" / "full.png"), (grey * 65535).astype(np.uint16))
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        assert stored(paths[0]).mean() < 16
    assert "of which 3 of 4 use a sixteenth or less, such as 0.png" in caplog.text
    assert "belong in a folder of their own" in caplog.text


def test_photos_under_wrong_endings_count(tmp_path: Path, scene: np.ndarray) -> None:
    grey = np.ascontiguousarray(scene[..., 0])
    for path in save(tmp_path / "photos", grey, 0, 4095, ".png"):
        path.rename(path.with_suffix(".jpg"))
    assert stored(tmp_path / "photos" / "0.jpg").max() > 200

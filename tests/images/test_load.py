"""Loading: the size of the network's input, resizing, and the pixel frames."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.load import load_image, network_size
from tests.images.pixels import HEIGHT, WIDTH


@pytest.mark.parametrize(
    ("size", "resize_max", "divisor", "expected"),
    [
        ((1536, 1024), 1024, 32, (1024, 672)),  # 682.67 is nearer to 672 than to 704
        ((1024, 1536), 1024, 32, (672, 1024)),
        ((471, 313), 1024, 32, (480, 320)),
        ((471, 313), 480, 32, (480, 320)),
        ((471, 313), 471, 32, (448, 320)),  # 480 would be above the limit
        ((471, 313), None, 1, (471, 313)),
        ((1000, 700), 1000, 32, (992, 704)),
        ((1, 1), 1024, 32, (32, 32)),
        ((5, 700), 1024, 32, (32, 704)),
        ((5, 700), 320, 32, (32, 320)),
        ((10000, 8000), 1024, 32, (1024, 832)),  # 819.2
        ((100000, 10), 1024, 32, (1024, 32)),
        ((640, 480), 32, 32, (32, 32)),
        ((641, 481), None, 32, (640, 480)),
        ((640, 480), 640, 8, (640, 480)),
    ],
)
def test_network_size(
    size: tuple[int, int], resize_max: int | None, divisor: int, expected: tuple[int, int]
) -> None:
    assert network_size(*size, resize_max=resize_max, divisor=divisor) == expected


@given(
    st.integers(1, 20000),
    st.integers(1, 20000),
    st.none() | st.integers(32, 4000),
    st.sampled_from([1, 8, 32]),
)
def test_network_size_properties(
    width: int, height: int, resize_max: int | None, divisor: int
) -> None:
    size = network_size(width, height, resize_max=resize_max, divisor=divisor)
    scale = min(1.0, (resize_max or np.inf) / max(width, height))
    for side, original in zip(size, (width, height), strict=True):
        assert side % divisor == 0
        assert side >= divisor
        assert resize_max is None or side <= resize_max
        # the nearest multiple, one less where it would be too large
        assert side - original * scale <= max(divisor / 2, divisor - original * scale) + 1e-6
        assert original * scale - side <= divisor + 1e-6


def test_a_size_below_the_divisor_is_refused(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.png")
    with pytest.raises(EdmHlocError, match="31 px"):
        load_image(tmp_path / "a.png", resize_max=31)


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (5, 700), (700, 5), (31, 33), (40000, 3), (2, 4000)]
)
@pytest.mark.parametrize("grayscale", [True, False])
def test_extreme_sizes(tmp_path: Path, width: int, height: int, grayscale: bool) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (width, height), (51, 51, 51)).save(path)
    image = load_image(path, resize_max=320, grayscale=grayscale)
    size = network_size(width, height, resize_max=320)
    assert image.tensor.shape == (1 if grayscale else 3, size[1], size[0])
    assert image.original_size == (width, height)
    np.testing.assert_allclose(image.tensor.numpy(), 51 / 255, atol=1e-6)
    assert image.transform.scale == (width / size[0], height / size[1])


def test_eighty_megapixels(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").resize((10000, 8000)).save(path)
    image = load_image(path)
    assert image.tensor.shape == (1, 832, 1024)
    assert image.original_size == (10000, 8000)
    # a gradient from black at the top to white at the bottom
    np.testing.assert_allclose(image.tensor[0, :, 500], (np.arange(832) + 0.5) / 832, atol=0.01)


@pytest.mark.slow
def test_two_hundred_megapixels(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """More than Pillow's global limit lets through, and phones take such photos."""
    path = tmp_path / "a.jpg"
    noise = Image.effect_noise((4080, 3060), 60)  # a flat picture would be no photo
    noise.resize((16320, 12240), Image.Resampling.NEAREST).save(path)
    limit = Image.MAX_IMAGE_PIXELS
    assert load_image(path).tensor.shape == (1, 768, 1024)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert not recwarn.list


# --------------------------------------------------------------------------- pixel frames


def blob(width: int, height: int, x: float, y: float, sigma: float) -> np.ndarray:
    columns = np.exp(-((np.arange(width) - x) ** 2) / (2 * sigma**2))
    rows = np.exp(-((np.arange(height) - y) ** 2) / (2 * sigma**2))
    return np.outer(rows, columns)


@pytest.mark.parametrize(
    ("resize_max", "divisor"),
    [
        (256, 32),  # shrinks both sides, unevenly
        (320, 8),
        (1024, 32),  # 471 → 480, 313 → 320: enlarges both
        (471, 32),  # 471 → 448, 313 → 320: one shrinks, the other grows
        (None, 1),
    ],
)
def test_a_blob_keeps_its_place(tmp_path: Path, resize_max: int | None, divisor: int) -> None:
    centre = np.array([[301.3, 97.8]])
    pixels = blob(WIDTH, HEIGHT, *centre[0], sigma=9)
    cv2.imwrite(str(tmp_path / "a.png"), np.round(pixels * 65535).astype(np.uint16))
    image = load_image(tmp_path / "a.png", resize_max=resize_max, divisor=divisor)
    weights = image.tensor[0].double().numpy()
    rows, columns = np.indices(weights.shape)
    centroid = np.array([[(weights * columns).sum(), (weights * rows).sum()]]) / weights.sum()
    np.testing.assert_allclose(image.transform.to_original(centroid), centre, atol=0.005)
    np.testing.assert_allclose(image.transform.to_network(centre), centroid, atol=0.005)


def test_one_step_averages_like_integration(tmp_path: Path) -> None:
    """Shrinking is the mean over each output pixel's area: exact for whole factors."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png", resize_max=32, divisor=1)
    assert image.tensor.shape == (1, 19, 32)
    image = load_image(tmp_path / "a.png", resize_max=80, divisor=16)
    means = pixels.reshape(48, 2, 80, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(image.tensor[0].numpy() * 255, means, atol=0.51)


def test_threads_agree(tmp_path: Path, photo: Image.Image) -> None:
    paths = []
    for i, suffix in enumerate(["jpg", "png", "tif", "webp"] * 3):
        paths.append(tmp_path / f"{i}.{suffix}")
        photo.rotate(10 * i).save(paths[-1])
    alone = [load_image(path, resize_max=256).tensor for path in paths]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda path: load_image(path, resize_max=256).tensor, paths * 3)
        for expected, got in zip(alone * 3, together, strict=True):
            assert torch.equal(expected, got)

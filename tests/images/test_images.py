"""Finding, decoding and resizing photos: formats, damage, orientation, the pixel frames."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tracemalloc
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import open_header, photo_size
from edm_hloc.images.find import find_images, image_stamps
from edm_hloc.images.load import load_image, network_size

WIDTH, HEIGHT = 471, 313


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A smooth colour picture, (313, 471, 3) float in [0, 1], with black and white in it."""
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.fixture(scope="module")
def photo(scene: np.ndarray) -> Image.Image:
    return Image.fromarray((scene * 255).astype(np.uint8))


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601, what JPEG, OpenCV and Pillow take for grey."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def stored(path: Path, grayscale: bool = True) -> np.ndarray:
    """All pixels of a file whose sides are multiples of 1, in [0, 255], (H, W) or (H, W, 3)."""
    tensor = load_image(path, resize_max=None, divisor=1, grayscale=grayscale).tensor
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    pixels = tensor.numpy() * 255
    return pixels[0] if grayscale else pixels.transpose(1, 2, 0)


# --------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 75, "progressive": True, "subsampling": 0},
        {"quality": 60, "subsampling": 2},
    ],
)
def test_jpeg_is_what_opencv_reads(
    tmp_path: Path, scene: np.ndarray, options: dict[str, int]
) -> None:
    path = tmp_path / "a.jpg"
    # garish, so that the luma of the clipped RGB is not the stored luma
    Image.fromarray(np.uint8(scene > 0.5) * 255).save(path, **options)
    ignore = cv2.IMREAD_IGNORE_ORIENTATION
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE | ignore).astype(float)
    colour = cv2.imread(str(path), cv2.IMREAD_COLOR | ignore)[..., ::-1].astype(float)
    assert np.abs(stored(path) - grey).max() <= 1.001
    assert np.abs(stored(path, grayscale=False) - colour).max() <= 1.001


@pytest.mark.parametrize(
    ("name", "mode", "options", "tolerance"),
    [
        ("a.png", "RGB", {}, 1),
        ("a.png", "RGBA", {}, 1),
        ("a.png", "L", {}, 1),
        ("a.png", "LA", {}, 1),
        ("a.png", "P", {}, 1),
        ("a.tif", "RGB", {}, 1),
        ("a.tif", "RGB", {"compression": "tiff_lzw"}, 1),
        ("a.tiff", "RGBA", {"compression": "tiff_deflate"}, 1),
        ("a.tif", "L", {}, 1),
        ("a.tif", "CMYK", {}, 1.5),
        ("a.jpg", "CMYK", {"quality": 95}, 12),
        ("a.jpg", "L", {"quality": 95}, 8),
        ("a.webp", "RGB", {"lossless": True}, 1),
        ("a.webp", "RGBA", {"lossless": True, "exact": True}, 1),
        ("a.webp", "RGB", {"quality": 95}, 12),
        ("a.bmp", "RGB", {}, 1),
        ("a.ppm", "RGB", {}, 1),
        ("a.pgm", "L", {}, 1),
        ("A.PNG", "RGB", {}, 1),
    ],
)
def test_formats(
    tmp_path: Path,
    photo: Image.Image,
    name: str,
    mode: str,
    options: dict[str, object],
    tolerance: float,
) -> None:
    image = photo.convert(mode)
    if mode in ("RGBA", "LA"):  # what is transparent has colour all the same
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    path = tmp_path / name
    image.save(path, **options)
    loaded = load_image(path, resize_max=None, divisor=1)
    assert loaded.original_size == (WIDTH, HEIGHT)
    assert loaded.exif_orientation == 1
    rgb = np.asarray(image.convert("RGB") if mode == "P" else photo).astype(float)
    assert np.abs(stored(path) - luma(rgb)).max() <= tolerance
    expected = rgb if "L" not in mode else np.repeat(luma(rgb)[..., None], 3, axis=2)
    assert np.abs(stored(path, grayscale=False) - expected).max() <= 1.5 * tolerance


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.ppm"])
def test_sixteen_bits(tmp_path: Path, scene: np.ndarray, name: str) -> None:
    scene = scene[:61, :83]  # Pillow takes its time over 16-bit PPM
    pixels = (scene * 65535).astype(np.uint16)
    if name != "a.ppm":
        cv2.imwrite(str(tmp_path / name), pixels[..., 0])
        # all bits of grey are kept
        assert np.abs(stored(tmp_path / name) - scene[..., 0] * 255).max() < 0.01
        assert np.abs(stored(tmp_path / name, False) - scene[..., :1] * 255).max() < 0.01
    if name != "a.pgm":
        path = tmp_path / f"rgb-{name}"
        cv2.imwrite(str(path), pixels)
        assert np.abs(stored(path, False) - scene[..., ::-1] * 255).max() <= 1
        assert np.abs(stored(path) - luma(scene[..., ::-1]) * 255).max() <= 2


def test_sixteen_bits_of_a_dark_photo_are_not_brightened(tmp_path: Path) -> None:
    for name in ("a.png", "a.pgm", "a.tif"):
        cv2.imwrite(str(tmp_path / name), np.full((40, 40), 257 // 2, np.uint16))
        assert stored(tmp_path / name).max() == pytest.approx(0.5, abs=0.01)


def test_one_bit(tmp_path: Path, photo: Image.Image) -> None:
    bits = photo.convert("1")
    for name, options in (("a.png", {}), ("a.tif", {"compression": "group4"})):
        bits.save(tmp_path / name, **options)
        np.testing.assert_array_equal(stored(tmp_path / name), np.asarray(bits) * 255.0)


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_tiff(tmp_path: Path, scene: np.ndarray, white: float) -> None:
    grey = scene[..., 0] / scene[..., 0].max()
    grey[0, :3] = (np.nan, np.inf, -1)
    Image.fromarray((grey * np.float32(white)).astype(np.float32)).save(tmp_path / "a.tif")
    grey[0, :3] = 0
    assert np.abs(stored(tmp_path / "a.tif") - grey * 255).max() < 0.01


def test_palette_with_transparency_is_silent(
    tmp_path: Path, photo: Image.Image, recwarn: pytest.WarningsRecorder
) -> None:
    photo.quantize(16).save(tmp_path / "a.png", transparency=b"\x00\x80\xff")
    stored(tmp_path / "a.png")
    stored(tmp_path / "a.png", grayscale=False)
    assert not recwarn.list


# --------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
    ],
)
def test_exif_orientation_is_ignored_and_reported(
    tmp_path: Path,
    photo: Image.Image,
    name: str,
    options: dict[str, object],
    orientation: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(path, exif=exif, **options)
    (tmp_path / "other").write_bytes(path.read_bytes())
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        image = load_image(path)
        load_image(tmp_path / "other")
    assert image.exif_orientation == orientation
    assert image.original_size == photo_size(path) == (WIDTH, HEIGHT)
    assert np.abs(stored(path, False) - np.asarray(photo)).max() <= 6
    # one warning, however many photos there are: summaries and report name them
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (orientation != 1)
    assert all("EXIF orientations are ignored" in text for text in warnings)


@pytest.mark.parametrize("value", [0, 9, 300])
def test_senseless_orientations_are_taken_for_none(
    tmp_path: Path, photo: Image.Image, value: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").exif_orientation == 1


def test_damaged_exif_does_no_harm(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage that is no TIFF header")
    assert load_image(tmp_path / "a.jpg").exif_orientation == 1


# --------------------------------------------------------------------------- unreadable files


def encoded(photo: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("BMP", {}),
        ("PPM", {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # Pillow's, of the damage
def test_truncated_files(
    tmp_path: Path, photo: Image.Image, kind: str, options: dict[str, object]
) -> None:
    data = encoded(photo, kind, **options)
    path = tmp_path / "photo one.jpg"
    path.write_bytes(data)
    whole = stored(path)
    for length in [1, 2, 4, 30, 200, *np.linspace(300, 0.98 * len(data), 8).astype(int)]:
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=r"photo one\.jpg: \S"):
            load_image(path)
    # without its last bytes: refused, or every pixel is right
    path.write_bytes(data[:-6])
    with contextlib.suppress(ImageError):
        np.testing.assert_array_equal(stored(path), whole)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"Dear diary, today I took no photo.", "not a JPEG"),
        (b"\xff\xd8\xff", "not a JPEG"),
        (b"P", "not a JPEG"),
        (b"P5 0 0 255\n", ""),
        (b"GIF89a" + bytes(50), "not a JPEG"),
    ],
)
def test_files_that_are_no_images(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "diary.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=rf"diary\.jpg: .*{reason}"):
        load_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg: No such file"):
        load_image(tmp_path / "none.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match=r"folder\.jpg"):
        load_image(tmp_path / "folder.jpg")


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damage
def test_damage_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    changes: list[tuple[float, bytes]],
) -> None:
    data = bytearray(encoded(Image.linear_gradient("L").resize((50, 40)), kind))
    for where, what in changes:
        start = int(where * (len(data) - 1))
        data[start : start + len(what)] = what
    path = tmp_path_factory.mktemp("damage") / "a.jpg"
    path.write_bytes(data)
    with contextlib.suppress(ImageError):
        assert torch.isfinite(load_image(path, resize_max=64).tensor).all()


def test_a_header_that_promises_too_much(tmp_path: Path, photo: Image.Image) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 90000 90000 255\n" + bytes(1000))
    with pytest.raises(ImageError, match=r"a\.pgm: 90000 × 90000 pixels are too many"):
        load_image(path)


def test_headers_are_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    with path.open("wb") as file:
        file.write(b"P6 9000 8000 255\n")
        file.truncate(1 << 28)
    tracemalloc.start()
    try:
        assert photo_size(path) == (9000, 8000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with open_header(path) as image:
        file = image.fp
    assert file.closed


def test_headers_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("Dear diary, today I took no photo.")
    for name, reason in (
        ("none", "No such file or directory"),
        ("folder", "Is a directory"),
        ("empty", "not a JPEG"),
        ("text", "not a JPEG"),
    ):
        with pytest.raises(ImageError, match=rf"Cannot read image .*{name}\.jpg: {reason}"):
            photo_size(tmp_path / f"{name}.jpg")


# --------------------------------------------------------------------------- size


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
    Image.new("L", (16320, 12240), 128).save(path)
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


def test_pixel_transform_closed_form() -> None:
    transform = PixelTransform((1.5, 4.0))
    network = np.array([[0, 0], [-0.5, -0.5], [1, 2]], np.float32)
    original = transform.to_original(network)
    assert original.dtype == np.float32
    # the corner of the image stays its corner
    np.testing.assert_allclose(original, [[0.25, 1.5], [-0.5, -0.5], [1.75, 9.5]])
    np.testing.assert_allclose(transform.to_network(original), network, atol=1e-6)
    assert transform.to_original(np.zeros((0, 2))).shape == (0, 2)
    assert transform.to_original(np.array([[1, 1]])).dtype == np.float64
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        transform.to_original(np.zeros((2, 3)))


@given(
    st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    st.lists(st.tuples(st.floats(-1, 9999), st.floats(-1, 9999)), min_size=1),
)
def test_pixel_transform_round_trip(
    scale: tuple[float, float], points: list[tuple[float, float]]
) -> None:
    transform = PixelTransform(scale)
    keypoints = np.array(points)
    back = transform.to_network(transform.to_original(keypoints))
    np.testing.assert_allclose(back, keypoints, rtol=1e-9, atol=1e-9)


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


# --------------------------------------------------------------------------- finding


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_find_images(tmp_path: Path) -> None:
    images = [
        "IMG_2.JPG",
        "IMG_10.jpeg",
        "a b/c - d.png",
        "a b/ünïcødé.TIFF",
        "a-b/x.tif",
        "deep/er/日本.webp",
        "deep/y.bmp",
        "z.pgm",
        "z.ppm",
    ]
    others = [
        ".hidden.jpg",
        "._IMG_2.JPG",
        ".thumbs/1.jpg",
        "deep/.git/2.jpg",
        "notes.txt",
        "jpg",
        "movie.mp4",
        "b.jpg.part",
        "IMG_3.CR2",
    ]
    touch(tmp_path, *images, *others)
    (tmp_path / "folder.jpg").mkdir()
    found = find_images(tmp_path)
    as_stored = {unicodedata.normalize("NFC", name) for name in found}
    assert as_stored == set(images)
    assert found == sorted(found)
    assert all((tmp_path / name).is_file() for name in found)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "a/1.jpg", "b/2.jpg")
    touch(tmp_path, "elsewhere/3.jpg", "single.jpg")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "4.jpg").symlink_to(tmp_path / "single.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "gone").symlink_to(tmp_path / "gone")
    found = find_images(root)
    assert [name for name in found if "up" not in name] == [
        "4.jpg",
        "a/1.jpg",
        "b/2.jpg",
        "link/3.jpg",
    ]
    assert not any("up" in name or "self" in name for name in found)
    # each of two folders linked into the other
    (root / "a" / "to-b").symlink_to(root / "b")
    (root / "b" / "to-a").symlink_to(root / "a")
    assert "a/to-b/2.jpg" in find_images(root)


@pytest.mark.skipif(sys.platform != "linux", reason="not every file system holds such names")
@pytest.mark.parametrize("name", [b"new\nline.jpg", b"tab\there.jpg", b"latin-\xe9.jpg"])
def test_names_no_list_can_hold_are_left_out(
    tmp_path: Path, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "good one.jpg")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        assert find_images(tmp_path) == ["good one.jpg"]
    assert len(caplog.records) == 1
    assert "rename" in caplog.text


def test_photos_of_other_kinds_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.GIF", "sub/b.gif", "sub/c.cr2", ".hidden.gif", "notes.txt")
    with pytest.raises(EdmHlocError, match=r"No images.* 3 files \(\.cr2, \.gif\) .* to JPEG\.$"):
        find_images(tmp_path)
    touch(tmp_path, "d.jpg")
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        for _ in range(2):
            assert find_images(tmp_path) == ["d.jpg"]
    assert [record.getMessage() for record in caplog.records] == [
        f"In {tmp_path} 3 files (.cr2, .gif) are of a kind that is not read: convert them to JPEG."
    ]


def test_heic_is_found_only_where_it_can_be_read(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(photo).save(tmp_path / "a.HEIC", quality=-1, chroma=444)
    assert find_images(tmp_path) == ["a.HEIC"]
    assert photo_size(tmp_path / "a.HEIC") == (WIDTH, HEIGHT)
    colours = np.abs(stored(tmp_path / "a.HEIC", grayscale=False) - np.asarray(photo))
    assert np.median(colours) <= 2
    assert colours.max() <= 12
    monkeypatch.setattr("edm_hloc.images.decode.heic_reader", lambda: None)
    with pytest.raises(EdmHlocError, match=r"1 files \(\.heic\).*pip install 'edm_hloc\[heic\]'"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match=r"a\.HEIC: HEIC, which needs pillow-heif: pip install"):
        load_image(tmp_path / "a.HEIC")


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match=r"No such folder.*nowhere"):
        find_images(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt", ".hidden.jpg")
    with pytest.raises(EdmHlocError, match=r"No images.*\.jpeg"):
        find_images(tmp_path)
    with pytest.raises(EdmHlocError, match=r"No such folder.*notes\.txt"):
        find_images(tmp_path / "notes.txt")


def test_image_stamps(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    path = tmp_path / "a b" / "1.jpg"
    path.write_bytes(b"123")
    os.utime(path, ns=(5, 1_700_000_000_123_456_700))
    stamps = image_stamps(tmp_path, ["a b/1.jpg", "none.jpg"])
    assert set(stamps) == {"a b/1.jpg"}
    size, mtime = stamps["a b/1.jpg"]
    assert size == 3
    assert mtime == path.stat().st_mtime_ns
    path.write_bytes(b"1234")
    assert image_stamps(tmp_path, ["a b/1.jpg"]) != stamps

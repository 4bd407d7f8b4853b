"""Decoding: formats, orientation, damaged files, headers."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edm_hloc.base.errors import ImageError
from edm_hloc.images.decode import decode, open_header, photo_size
from edm_hloc.images.load import load_image
from tests.images.pixels import HEIGHT, WIDTH, stored


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601, what JPEG, OpenCV and Pillow take for grey."""
    return rgb @ np.array([0.299, 0.587, 0.114])


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


def _with_orientation(file: bytes, orientation: int) -> bytes:
    """A PNG or little-endian TIFF of OpenCV, with an EXIF orientation."""
    entry = struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    if file.startswith(b"\x89PNG"):
        chunk = b"eXIf" + b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
        size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
        return file[:33] + size + chunk + check + file[33:]
    file += bytes(len(file) % 2)
    (at,) = struct.unpack_from("<I", file, 4)
    (number,) = struct.unpack_from("<H", file, at)
    entries = [file[i : i + 12] for i in range(at + 2, at + 2 + 12 * number, 12)]
    entries = [e for e in entries if e[:2] != entry[:2]] + [entry]
    entries.sort(key=lambda e: struct.unpack("<H", e[:2]))
    tags = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return file[:4] + struct.pack("<I", len(file)) + file[8:] + tags


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_colours_keep_their_bits_whatever_their_orientation(
    suffix: str, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    file, path = cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes(), tmp_path / f"a{suffix}"
    for orientation in range(1, 9):
        path.write_bytes(_with_orientation(file, orientation))
        for grayscale in (True, False):
            found, read = decode(path, grayscale)
            assert read == orientation
            np.testing.assert_array_equal(found, pixels)  # as stored
            assert found.dtype == np.uint16
    assert photo_size(path) == (30, 20)


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
def test_pixels_are_those_stored_whatever_the_exif_orientation(
    tmp_path: Path,
    photo: Image.Image,
    name: str,
    options: dict[str, object],
    orientation: int,
) -> None:
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(path, exif=exif, **options)
    pixels, told = decode(path, grayscale=False)
    assert told == load_image(path).exif_orientation == orientation
    assert load_image(path).original_size == photo_size(path) == (WIDTH, HEIGHT)
    assert np.abs(pixels.astype(int) - np.asarray(photo)).max() <= 6


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
    other = tmp_path / "b.ppm"
    other.write_bytes(b"P6 1 1 255\n\0\0\0")
    photo_size(other)  # what is imported once does not count
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
        ("empty", "the file is empty"),
        ("text", "not a JPEG"),
    ):
        with pytest.raises(ImageError, match=rf"Cannot read image .*{name}\.jpg: {reason}"):
            photo_size(tmp_path / f"{name}.jpg")


def flat_png(side: int) -> bytes:
    """A white picture, made without its pixels in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    packer = zlib.compressobj()
    row = b"\0" + b"\xff" * side
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(flat_png(12_000))
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"a\.png: 12000 × 12000 pixels in a file of [\d,]+ bytes"):
        load_image(path)
    assert time.monotonic() - started < 0.2  # it is not decoded
    path.write_bytes(flat_png(2_000))  # small ones may be as flat as they like
    assert load_image(path, resize_max=64).tensor.min() == 1


@pytest.mark.parametrize(
    ("kind", "channels", "told"),
    [
        (np.float32, 3, "a TIFF with 3 channels of 32-bit floating-point numbers"),
        (np.float64, 1, "a TIFF with a channel of 64-bit floating-point numbers"),
    ],
)
def test_kinds_of_tiff_that_are_not_read_are_told(
    tmp_path: Path, kind: type, channels: int, told: str
) -> None:
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), np.full((20, 30, channels), 0.5, kind))
    for read in (photo_size, lambda p: decode(p, grayscale=True)):
        with pytest.raises(ImageError, match=f"{told}, which is not read: convert it to"):
            read(path)
    path.write_bytes(path.read_bytes()[:8])
    with pytest.raises(ImageError, match=r"not a JPEG.* or damaged"):
        photo_size(path)

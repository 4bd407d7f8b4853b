"""Finding photos below a folder."""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.images.decode import photo_size
from edm_hloc.images.find import find_images, image_stamps
from edm_hloc.images.load import load_image
from tests.images.pixels import HEIGHT, WIDTH, stored


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

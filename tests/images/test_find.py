"""Finding photos below a folder."""

from __future__ import annotations

import json
import logging
import os
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, features
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_text
from edm_hloc.images.decode import photo_orientation, photo_size
from edm_hloc.images.find import find_images, image_stamps
from edm_hloc.images.load import load_image
from edm_hloc.images.pictures import write_picture
from edm_hloc.images.roots import photo_root
from edm_hloc.report.model_pictures import VIEWPOINTS
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
        "deep/@eaDir/y.bmp/SYNOPHOTO_THUMB_XL.jpg",
        "__MACOSX/IMG_2.JPG",
        "#recycle/old.jpg",
        "$RECYCLE.BIN/S-1/old.jpg",
        "@Recycle/old.jpg",
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


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_pictures_that_were_drawn_here_are_no_photos(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for name in (f"matches{ending}", "views/overview.png", "views/top.png", "sub/other.png"):
        write_picture(tmp_path / name, picture)
    assert Image.open(tmp_path / f"matches{ending}").size == (64, 48)
    assert cv2.imread(str(tmp_path / f"matches{ending}")).shape == (48, 64, 3)
    touch(tmp_path, "matches.h5", "a.jpg", "a.h5", "views/b.jpg")
    assert find_images(tmp_path) == ["a.jpg", "sub/other.png", "views/b.jpg"]
    for folder in (tmp_path, tmp_path / "views"):
        assert caplog.text.count(f"In {folder} the pictures that edm-hloc has drawn") == 1
    write_picture(tmp_path / f"matches{ending}", picture)  # once more over its own
    mine = tmp_path / f"mine{ending}"
    mine.write_bytes(b"a photo")
    with pytest.raises(EdmHlocError, match="not drawn by edm-hloc: choose another name"):
        write_picture(mine, picture)
    assert mine.read_bytes() == b"a photo"


def test_photos_in_an_output_folder_are_not_left_out_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a run was written into the folder of its photos, beside others."""
    touch(tmp_path, "day1/a.jpg", "day2/b.jpg", "out/report.html")
    for name in ("day1", "out"):
        write_whole(tmp_path / name / "run.json", json.dumps({"settings": {}}, indent=2))
    assert find_images(tmp_path) == ["day2/b.jpg"]
    assert f"The photos in {tmp_path / 'day1'} are left out" in caplog.text
    assert "photos in" not in caplog.text.replace(f"photos in {tmp_path / 'day1'} ", "")
    assert find_images(tmp_path / "day1") == ["a.jpg"]


def test_the_name_by_which_a_folder_of_views_is_known() -> None:
    assert "overview" in VIEWPOINTS  # `find` looks for overview.png


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


def test_raw_files_and_depth_maps_beside_photos_need_no_conversion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "a.ARW", "b.exr", "depth/a.exr", "sub/c.JPG", "sub/c.CR2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a.jpg", "sub/c.JPG"]
    assert not caplog.text
    (tmp_path / "sub" / "a.ARW").touch()  # of another folder: another photo
    find_images(tmp_path)
    assert "1 files (.arw) are of a kind that is not read: convert them" in caplog.text
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "b.exr").touch()
    with pytest.raises(EdmHlocError, match=r"1 files \(.exr\) are of a kind that is not read"):
        find_images(tmp_path / "only")


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


def test_avif_keeps_its_orientation_in_the_exif_data(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "avif" not in features.get_supported():
        pytest.skip("this Pillow has no AVIF")
    tags = Image.Exif()
    tags[ExifTag.Orientation] = 6
    photo.save(tmp_path / "a.avif", quality=95, exif=tags)
    assert find_images(tmp_path) == ["a.avif"]
    assert photo_size(tmp_path / "a.avif") == (WIDTH, HEIGHT)
    assert photo_orientation(tmp_path / "a.avif") == 6
    upright = np.rot90(np.asarray(photo), -1)
    assert np.abs(stored(tmp_path / "a.avif", grayscale=False) - upright).mean() < 5
    monkeypatch.delitem(Image.OPEN, "AVIF")  # an old version of Pillow
    monkeypatch.setattr(features, "get_supported", list)
    with pytest.raises(ImageError, match=r"a\.avif: AVIF, which needs Pillow 11\.3 or newer"):
        load_image(tmp_path / "a.avif")


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


def test_every_ending_of_a_jpeg_is_found_and_read(tmp_path: Path, photo: Image.Image) -> None:
    names = ["a.jfif", "b.jpe", "c.JFIF", "d.mpo", "e.jps", "f.pnm", "g.pbm", "h.tga", "i.jp2"]
    for name in names:
        kind = {"f": "PPM", "g": "PPM", "h": "TGA", "i": "JPEG2000"}.get(name[0], "JPEG")
        options = {"quality": 95} if kind == "JPEG" else {}
        (photo.convert("1") if name[0] == "g" else photo).save(tmp_path / name, kind, **options)
    assert find_images(tmp_path) == sorted(names)
    for name in names:
        assert photo_size(tmp_path / name) == (WIDTH, HEIGHT)
        if name != "g.pbm":
            difference = stored(tmp_path / name, grayscale=False) - np.asarray(photo)
            assert np.abs(difference).mean() < 3


def test_an_mpo_is_its_first_photo(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert find_images(tmp_path) == ["a.mpo"]
    assert np.abs(stored(tmp_path / "a.mpo", False) - np.asarray(photo)).mean() < 12


def test_photos_under_other_names_are_named(
    tmp_path: Path, photo: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("0001", "b.jpg_original", "c.dat"):
        photo.save(tmp_path / name, "JPEG")
    (tmp_path / "notes.txt").write_text("II* begins like that, but longer")
    with pytest.raises(EdmHlocError, match=r"3 files look like photos.*\(0001, b\.jpg_original"):
        find_images(tmp_path)
    touch(tmp_path, "d.jpg", "e.jxl", "f.exr", "g.pef")
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        assert find_images(tmp_path) == ["d.jpg"]
    assert "2 files (.jxl, .pef)" in caplog.text
    assert "0001" in caplog.text


def test_a_film_says_how_to_make_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "walk.MP4", "one.jpg", "photos.zip")
    command = r"edm-hloc frames .*walk\.MP4 frames\. .*--pairs sequential"
    with pytest.raises(EdmHlocError, match=rf"walk\.MP4 is a film.*{command}"):
        find_images(tmp_path / "walk.MP4")
    with pytest.raises(EdmHlocError, match="is one photo, not a folder"):
        find_images(tmp_path / "one.jpg")
    with pytest.raises(EdmHlocError, match=r"is an archive.*unpack"):
        find_images(tmp_path / "photos.zip")
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        assert find_images(tmp_path) == ["one.jpg"]
    assert "1 films such as walk.MP4 are not read" in caplog.text
    (tmp_path / "one.jpg").unlink()
    with pytest.raises(EdmHlocError, match=command):
        find_images(tmp_path)


_EXPORT = json.dumps({"made_by": "edm-hloc export-model", "for": "gsplat"}, indent=1)


def test_output_inside_the_photos_is_not_searched(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/views/top.png", "old/images/b.jpg", "sub/c.jpg", "other/d.jpg")
    touch(tmp_path, "splat/images/a.jpg", "other/export.json")
    write_whole(tmp_path / "splat" / "export.json", _EXPORT)  # of the same photos
    write_whole(tmp_path / "old" / "run.json", json.dumps({"settings": {}}, indent=2))
    write_whole(tmp_path / "other" / "run.json", '{"made": "by another program"}')
    assert find_images(tmp_path, [tmp_path / "out", tmp_path / "none"]) == [
        *("a.jpg", "other/d.jpg", "sub/c.jpg")
    ]
    masked = find_images(tmp_path, [tmp_path / "other" / "d.jpg", tmp_path / "out"])
    assert masked == ["a.jpg", "sub/c.jpg"]  # d.jpg is the mask of all photos
    # a folder that is given is searched, whatever it is
    assert find_images(tmp_path / "old") == ["images/b.jpg"]
    assert "a.jpg" in find_images(tmp_path, [tmp_path])


@pytest.mark.skipif(sys.platform != "linux", reason="not every file system holds such names")
def test_photos_in_object_storage_are_found_by_the_same_rules(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("fsspec", reason="object storage needs fsspec")
    touch(tmp_path, "a.jpg", "._a.jpg", ".thumbs/b.jpg", "tab\there.jpg", "sub/c.PNG", "sub/d.mp4")
    touch(tmp_path, "old/images/e.jpg", "other/f.jpg", "run.json", "notes.txt", "x/images/g.jpg")
    write_whole(tmp_path / "x" / "export.json", _EXPORT)
    write_whole(tmp_path / "old" / "run.json", json.dumps({"settings": {}}, indent=2))
    write_whole(tmp_path / "other" / "run.json", '{"made": "by another program"}')
    address = f"file://{tmp_path}"
    for root in (tmp_path, photo_root(address)):
        caplog.clear()
        assert find_images(root) == ["a.jpg", "other/f.jpg", "sub/c.PNG"]
        assert "tab\\there.jpg" in caplog.text
        assert f"In {root} 1 films such as sub/d.mp4 are not read" in caplog.text
    (tmp_path / "sub" / "c.PNG").unlink()
    with pytest.raises(EdmHlocError, match=r"No images in file:.*1 films such as d\.mp4"):
        find_images(photo_root(f"{address}/sub"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_what_is_no_file_is_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    (tmp_path / "folder").symlink_to("folder")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "gone.tif").symlink_to("nowhere")
    with caplog.at_level(logging.WARNING, "edm_hloc"):
        assert find_images(tmp_path) == ["a.jpg"]
    for name, reason in (
        ("pipe.jpg", "it is a pipe, not a file"),
        ("self.jpg", "it is a link to itself"),
        ("null.png", "it is a device, not a file"),
        ("gone.tif", "it is a link to something that is not there"),
    ):
        assert f"{tmp_path / name} is left out: {reason}." in caplog.text
    with pytest.raises(ImageError, match=r"pipe\.jpg: it is a pipe"):
        load_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg: it is a pipe"):
        photo_size(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "self.jpg"):
        with pytest.raises(EdmHlocError, match=rf"list of pairs {path}: \S"):
            read_text(path, "list of pairs")

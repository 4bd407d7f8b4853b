"""Views of panoramas: what a direction looks like is the same in the panorama and in every view."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from edm_hloc import cli
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.panoramas import RIG, cut_panoramas, panorama_pixels, view_rotation

WIDTH, HEIGHT = 786, 393  # odd height


def directions(size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) unit vectors of a panorama's pixels: x to the right, y down, z at its middle."""
    width, height = size
    longitude = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    latitude = (0.5 - (np.arange(height) + 0.5) / height) * np.pi
    longitude, latitude = np.meshgrid(longitude, latitude)
    return np.stack(
        [
            np.cos(latitude) * np.sin(longitude),
            -np.sin(latitude),
            np.cos(latitude) * np.cos(longitude),
        ],
        axis=-1,
    )


def write_panorama(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), exif: bool = False) -> None:
    """The colour of a direction d is 127.5 + 100 d."""
    colours = np.rint(127.5 + 100 * directions(size)).astype(np.uint8)
    tags = Image.Exif()
    if exif:
        tags[ExifTag.Make] = "Ricoh"
        tags[ExifTag.Orientation] = 1
        tags[ExifTag.GPSInfo] = {1: "N", 2: (50.0, 1.0, 2.0), 3: "E", 4: (8.0, 1.0, 2.0)}
    Image.fromarray(colours).save(
        path, exif=tags, **({"quality": 100} if path.suffix == ".jpg" else {})
    )


def test_pixels_of_directions() -> None:
    pixels = panorama_pixels(directions((WIDTH, HEIGHT)), (WIDTH, HEIGHT))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    assert np.abs(pixels - np.stack([columns, rows], axis=-1)).max() < 1e-9
    right = view_rotation(90.0).T @ [0, 0, 1.0]  # the rig's direction of that view's axis
    assert right == pytest.approx([1, 0, 0])


def test_views_show_the_directions_that_the_rig_says(tmp_path: Path) -> None:
    (tmp_path / "panoramas/inside").mkdir(parents=True)
    write_panorama(tmp_path / "panoramas/a.png", exif=True)
    write_panorama(tmp_path / "panoramas/inside/b.png")
    names = ["a.png", "inside/b.png"]
    out = tmp_path / "views"
    cut = cut_panoramas(tmp_path / "panoramas", names, out)
    assert cut.names == tuple(names)
    assert cut.side == round(WIDTH / np.pi / 2) * 2
    (rig,) = pycolmap.read_rig_config(out / RIG)
    assert [c.image_prefix for c in rig.cameras] == [f"{v}/" for v in cut.views]
    assert [c.ref_sensor for c in rig.cameras] == [True, *[False] * 5]
    model, width, height, *parameters = cut.intrinsics.split()
    assert (model, width, height) == ("SIMPLE_PINHOLE", str(cut.side), str(cut.side))
    camera = pycolmap.Camera(
        model=model, width=cut.side, height=cut.side, params=list(map(float, parameters))
    )
    assert np.degrees(2 * np.arctan(cut.side / 2 / camera.focal_length)) == pytest.approx(90)
    rows, columns = np.mgrid[: cut.side, : cut.side]
    pixels = np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5
    rays = np.column_stack([camera.cam_from_img(pixels), np.ones(len(pixels))])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    for sensor in rig.cameras:
        assert sensor.camera.params == pytest.approx(camera.params)
        R = np.eye(3) if sensor.ref_sensor else sensor.cam_from_rig.rotation.matrix()
        expected = 127.5 + 100 * rays @ R
        for name in ("a.jpg", "inside/b.jpg"):
            shown = np.asarray(Image.open(out / sensor.image_prefix / name), float).reshape(-1, 3)
            assert np.abs(shown - expected).mean() < 1.5
            assert np.abs(shown - expected).max() < 12  # of JPEG
    exif = Image.open(out / cut.views[3] / "a.jpg").getexif()
    assert exif[ExifTag.Make] == "Ricoh"
    assert exif.get_ifd(ExifTag.GPSInfo)[2] == (50.0, 1.0, 2.0)


def test_a_second_call_writes_what_is_missing_or_older(tmp_path: Path) -> None:
    root, out = tmp_path / "panoramas", tmp_path / "views"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        write_panorama(root / name)
    cut_panoramas(root, ["a.jpg", "b.jpg"], out, directions=4)
    views = sorted(out.rglob("*.jpg"))
    assert len(views) == 8
    for path in views:
        os.utime(path, ns=(1, 1))
    os.utime(root / "a.jpg", ns=(2, 2))
    os.utime(root / "b.jpg", ns=(0, 0))
    (out / "panoramas.json").unlink()  # as older versions left it
    cut_panoramas(root, ["a.jpg", "b.jpg"], out, directions=4)
    again = {path.relative_to(out).as_posix() for path in views if path.stat().st_mtime_ns > 1}
    assert again == {f"yaw_{yaw:03d}/a.jpg" for yaw in (0, 90, 180, 270)}
    with pytest.raises(EdmHlocError, match="views of other directions"):
        cut_panoramas(root, ["a.jpg"], out, directions=6)


def test_a_panorama_that_is_replaced_by_an_older_file_is_cut_again(tmp_path: Path) -> None:
    root, out = tmp_path / "panoramas", tmp_path / "views"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        write_panorama(root / name)
    cut_panoramas(root, ["a.jpg"], out, directions=3)
    cut_panoramas(root, ["b.jpg"], out, directions=3)
    before = {path: path.read_bytes() for path in out.rglob("*.jpg")}
    Image.new("RGB", Image.open(root / "a.jpg").size, "red").save(root / "a.jpg")
    os.utime(root / "a.jpg", ns=(5, 5))
    for path in before:
        os.utime(path, ns=(9, 9))
    for _ in range(2):
        cut_panoramas(root, ["a.jpg", "b.jpg"], out, directions=3)
        times = {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in before}
        again = {name for name, time in times.items() if time != 9}
        assert again == {f"yaw_{yaw:03d}/a.jpg" for yaw in (0, 120, 240)}
    assert all((path.read_bytes() != old) == (path.name == "a.jpg") for path, old in before.items())


def test_what_is_no_panorama_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "panoramas"
    root.mkdir()
    write_panorama(root / "a.jpg")
    write_panorama(root / "a.png", (200, 100))
    Image.new("RGB", (640, 480)).save(root / "photo.jpg")
    (root / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:9000])
    cut = cut_panoramas(root, ["a.jpg", "a.png", "photo.jpg", "broken.jpg"], tmp_path / "views", 3)
    assert cut.names == ("a.jpg", "a.png")
    assert {p.name for p in (tmp_path / "views").rglob("*.jpg")} == {"a.jpg.jpg", "a.png.jpg"}
    assert set(cut.skipped) == {"photo.jpg", "broken.jpg"}
    assert "640 × 480 px, and a panorama of all directions is twice as wide as high" in caplog.text
    with pytest.raises(EdmHlocError, match=r"None of the 1 photos .* photo\.jpg is 640"):
        cut_panoramas(root, ["photo.jpg"], tmp_path / "others")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").touch()
    with pytest.raises(EdmHlocError, match="holds other things"):
        cut_panoramas(root, ["a.jpg"], tmp_path / "mine")


def test_views_of_one_size_of_panoramas_of_several(tmp_path: Path) -> None:
    for i, size in enumerate(((800, 400), (640, 320), (800, 400))):
        write_panorama(tmp_path / f"{i}.png", size)
    cut = cut_panoramas(tmp_path, ["0.png", "1.png", "2.png"], tmp_path / "views", 3)
    sizes = {Image.open(path).size for path in (tmp_path / "views").rglob("*.jpg")}
    assert sizes == {(cut.side, cut.side)} == {(254, 254)}
    assert len(json.loads((tmp_path / "views" / RIG).read_text())[0]["cameras"]) == 3


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)],
)
def test_panoramas_are_cut_upright(orientation: int, turn: Image.Transpose, tmp_path: Path) -> None:
    write_panorama(tmp_path / "a.png", (800, 400))
    tags = Image.Exif()
    tags[ExifTag.Orientation] = orientation
    stored = Image.open(tmp_path / "a.png").transpose(turn)
    stored.save(tmp_path / "turned.png", exif=tags)
    cut = cut_panoramas(tmp_path, ["a.png", "turned.png"], tmp_path / "views", 4)
    assert cut.names == ("a.png", "turned.png")
    for folder in cut.views:
        upright, turned = (
            Image.open(tmp_path / "views" / folder / f"{name}.jpg") for name in ("a", "turned")
        )
        assert np.array_equal(np.asarray(upright), np.asarray(turned))
        assert ExifTag.Orientation not in turned.getexif()


def test_what_is_in_the_folder_of_the_views(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, out = tmp_path / "panoramas", tmp_path / "views"
    (root / "inside").mkdir(parents=True)
    write_panorama(root / "a.jpg")
    write_panorama(root / "inside/b.jpg")
    for _ in range(2):
        cut_panoramas(root, ["a.jpg", "inside/b.jpg"], out, 3)
        (out / "yaw_000" / "._a.jpg").write_bytes(b"\0\5\26\7Mac OS X")
    assert not caplog.text
    cut_panoramas(root, ["a.jpg"], out, 3)
    assert f"3 views in {out} are of no panorama in {root}, such as yaw_000/inside/b.jpg" in (
        caplog.text
    )
    (out / RIG).write_bytes(b"\xff\xfe[]")
    with pytest.raises(EdmHlocError, match=r"by its rig_config\.json: choose a new folder"):
        cut_panoramas(root, ["a.jpg"], out, 3)
    (root / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:9000])
    with pytest.raises(EdmHlocError, match=r"None of the panoramas .* broken\.jpg cannot be read"):
        cut_panoramas(root, ["broken.jpg"], tmp_path / "others", 3)


def test_the_commands_that_follow_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_panorama(tmp_path / "a.jpg")
    out = tmp_path / "my views"
    assert cli.main(["views", str(tmp_path), str(out)]) == 0
    reconstruct, refine = (
        shlex.split(line.removeprefix("Next"))
        for line in capsys.readouterr().out.splitlines()
        if "edm-hloc" in line
    )
    assert reconstruct[2:4] == [str(out), "OUT"]
    assert refine[-1] == str(out / RIG)

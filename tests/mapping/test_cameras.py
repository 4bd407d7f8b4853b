"""Cameras of a database: shared by photos, from EXIF data, or known."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageDraw

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.images.cameras import (
    CameraOptions,
    cameras_of_others,
    check_cameras,
    may_share_cameras,
    photo_cameras,
)
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.images.roots import JoinedFolders
from edm_hloc.images.sizes import camera_for_size
from edm_hloc.mapping.extension import EarlierModel, extend_model
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.triangulation import triangulate
from tests.mapping import scenes
from tests.mapping.scenes import (
    CAMERA,
    NAMES,
    SIZE,
    THREADS,
    Scene,
    assert_near_truth,
    build,
    exif,
    make_scene,
    same,
)


@pytest.mark.parametrize(
    ("mode", "cameras"), [("auto", 6), ("single", 1), ("per-folder", 3), ("per-image", 6)]
)
def test_camera_modes(scene: Scene, tmp_path: Path, mode: str, cameras: int) -> None:
    options = CameraOptions(mode=mode, model="SIMPLE_PINHOLE")  # type: ignore[arg-type]
    assert build(scene, tmp_path / "d.db", options, pairs=[]).cameras == cameras
    db = pycolmap.Database.open(tmp_path / "d.db")
    assert [c.params.tolist() for c in db.read_all_cameras()] == [[768.0, 320.0, 240.0]] * cameras
    camera_of = {image.name: image.camera_id for image in db.read_all_images()}
    db.close()
    if mode == "per-folder":
        assert camera_of[NAMES[0]] == camera_of[NAMES[1]] != camera_of[NAMES[2]]


def test_sizes_never_share_a_camera(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(tmp_path, NAMES[:4])
    Image.new("L", (720, 999)).save(scene.images / NAMES[1])
    with caplog.at_level(logging.WARNING):
        imported = build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    assert imported.cameras == 2
    assert "2 sizes" in caplog.text


@pytest.mark.parametrize(
    ("case", "sharing"),
    [
        ("alike", [0, 1, 2, 3]),
        ("on its side", [0, 1, 2, 3]),
        ("another size", [0, 2, 3]),
        ("EXIF", [0, 2, 3]),
        ("single", []),
        ("two", []),
    ],
)
def test_photos_that_may_share_a_camera(tmp_path: Path, case: str, sharing: list[int]) -> None:
    names = NAMES[: 2 if case == "two" else 4]
    scene = make_scene(tmp_path, names)
    if case == "on its side":
        Image.new("L", SIZE[::-1]).save(scene.images / NAMES[1])
    elif case == "another size":
        Image.new("L", (720, 999)).save(scene.images / NAMES[1])
    elif case == "EXIF":
        Image.new("L", SIZE).save(scene.images / NAMES[1], exif=exif(35))
    options = CameraOptions(mode="single" if case == "single" else "auto")
    cameras, _ = photo_cameras(scene.images, names, options)
    groups = may_share_cameras(cameras)
    assert list(map(sorted, groups)) == ([sorted(NAMES[i] for i in sharing)] if sharing else [])
    if case in ("alike", "single"):
        imported = build(scene, tmp_path / "d.db", options, pairs=[])
        assert imported.may_share_cameras == (case == "alike")


def test_a_few_photos_of_one_size_among_many_others_stay_apart() -> None:
    def own(number: int, width: int) -> pycolmap.Camera:
        camera = pycolmap.Camera.create_from_model_name(number, "SIMPLE_RADIAL", 800, width, 600)
        camera.has_prior_focal_length = width > 1000
        return camera

    few = {f"{i}.jpg": own(i, 800) for i in range(3)}
    assert may_share_cameras(few | {f"k{i}.jpg": own(i, 1001) for i in range(3, 12)})
    assert not may_share_cameras(few | {f"k{i}.jpg": own(i, 1001) for i in range(3, 13)})


def test_exif_focal_length_as_colmap_reads_it(tmp_path: Path) -> None:
    cameras = {
        "a.jpg": exif(35),
        "b.jpg": exif(35),
        "c.jpg": exif(50),
        "d.webp": exif(28),
        "d2.webp": exif(28),
        "e.jpg": None,
        "f.jpg": exif(35, model=None),  # as some apps leave the data
        "f2.jpg": exif(35, model=None),
        "g.jpg": exif(None),  # a zoom lens at any length
        "g2.jpg": exif(None),
    }
    scene = make_scene(tmp_path, list(cameras))
    for name, data in cameras.items():
        with_exif = {"exif": data} if data else {}
        # portrait by EXIF, landscape by its pixels: the pixels count
        Image.new("RGB", SIZE).save(scene.images / name, **with_exif)
    imported = build(scene, tmp_path / "d.db", pairs=[])
    assert (imported.cameras, imported.prior_focal) == (7, 7)
    db = pycolmap.Database.open(tmp_path / "d.db")
    for image in db.read_all_images():
        camera = db.read_camera(image.camera_id)
        assert (camera.width, camera.height) == SIZE
        assert camera.has_prior_focal_length == (image.name[0] not in "eg")
        if image.name.endswith("webp"):  # which COLMAP cannot read
            assert camera.focal_length == pytest.approx(28 * 800 / np.hypot(36, 24))
        else:
            guess = pycolmap.infer_camera_from_image(scene.images / image.name)
            np.testing.assert_allclose(camera.params, guess.params)
    db.close()


def test_fisheye_lenses_need_a_focal_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["exif.jpg", "bare.jpg", "broken.jpg"]
    Image.new("L", SIZE).save(tmp_path / "exif.jpg", exif=exif(35))
    Image.new("L", SIZE).save(tmp_path / "bare.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")
    fisheye = CameraOptions(model="SIMPLE_RADIAL_FISHEYE")
    with pytest.raises(EdmHlocError, match=r"none is known of bare\.jpg"):
        check_cameras(tmp_path, names, fisheye)
    check_cameras(tmp_path, names, replace(fisheye, known={"bare.jpg": CAMERA}))
    check_cameras(tmp_path, names, replace(fisheye, mode="single"))
    assert caplog.text == ""  # broken.jpg is told of when it is skipped


def test_the_disc_of_a_fisheye_lens_tells_its_focal_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{folder}/{k}.png" for folder in ("left", "right") for k in range(3)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        radius = 230 if name.startswith("left") else 210
        photo = Image.new("L", (480, 480))
        ImageDraw.Draw(photo).circle((239.5, 239.5), radius, fill=180)
        photo.save(tmp_path / name)
    fisheye = CameraOptions(model="OPENCV_FISHEYE")
    assert check_cameras(tmp_path, names, fisheye) == []
    assert caplog.text == ""
    cameras, _ = photo_cameras(tmp_path, names, fisheye)
    assert {camera.camera_id for camera in cameras.values()} == {1, 2}  # of one folder are one
    for name, camera in cameras.items():
        radius = 230 if name.startswith("left") else 210
        assert camera.mean_focal_length() == pytest.approx(2 * radius / np.radians(190), rel=0.01)
        assert camera.has_prior_focal_length
    shared, _ = photo_cameras(tmp_path, names, replace(fisheye, mode="per-image"))
    assert len({camera.camera_id for camera in shared.values()}) == 6

    assert set(check_cameras(tmp_path, names, CameraOptions())) == set(names)
    assert "bright disc before black" in caplog.text
    assert "--camera-model OPENCV_FISHEYE" in caplog.text
    plain, _ = photo_cameras(tmp_path, names, CameraOptions())
    assert not any(camera.has_prior_focal_length for camera in plain.values())
    caplog.clear()
    given = {name: cameras[name] for name in names}  # known cameras may be of any kind
    assert check_cameras(tmp_path, names, CameraOptions(known=given)) == []
    assert caplog.text == ""

    # A new photo has no EXIF data either; other cameras of its size are no fisheye lenses.
    others = {name: cameras[name] for name in names[1:]}
    found = cameras_of_others(JoinedFolders({"left": tmp_path / "left"}), names[:1], others)
    assert found[names[0]].params.tolist() == cameras[names[3]].params.tolist()  # of three photos
    straight = dict.fromkeys(names[1:], pycolmap.Camera(model="PINHOLE", width=480, height=480))
    assert cameras_of_others(JoinedFolders({"left": tmp_path / "left"}), names[:1], straight) == {}


def test_panoramas_are_refused(tmp_path: Path) -> None:
    xmp = b'<rdf:Description GPano:ProjectionType="equirectangular"/>'
    for name in ("a.jpg", "b.jpg", "other.jpg"):
        photo = Image.new("RGB", (512, 256), "grey")
        photo.save(tmp_path / name, **({} if name == "other.jpg" else {"xmp": xmp}))
    with pytest.raises(EdmHlocError, match=r"panoramas of all directions, as a\.jpg is"):
        check_cameras(tmp_path, ["a.jpg", "b.jpg", "other.jpg"], CameraOptions())
    known = dict.fromkeys(
        ["a.jpg", "b.jpg"],
        pycolmap.Camera(model="PINHOLE", width=512, height=256, params=[300, 300, 256, 128]),
    )
    check_cameras(tmp_path, ["a.jpg", "b.jpg", "other.jpg"], CameraOptions(known=known))


def test_intrinsics_from_every_form(scene: Scene, tmp_path: Path) -> None:
    for path in (scene.truth, scene.truth / "cameras.txt"):
        found = load_intrinsics(path, NAMES)
        assert list(found) == NAMES
        assert all(same(camera) for camera in found.values())
    shutil.copy(scene.truth / "cameras.txt", tmp_path)  # without its images: everyone's
    assert set(load_intrinsics(tmp_path / "cameras.txt", ["x.jpg", "y.jpg"])) == {"x.jpg", "y.jpg"}

    alone, camera = tmp_path / "camera.txt", "SIMPLE_RADIAL 640 480 550.0 320 240 0.02"
    for line in (camera, f"# comment\n1 {camera}\n", camera.replace(" ", ", ")):
        alone.write_text(line)
        assert all(same(found) for found in load_intrinsics(alone, NAMES).values())
        assert len(load_intrinsics(alone, NAMES)) == len(NAMES)
    alone.write_text(f"1 {camera}")
    assert set(load_intrinsics(alone, ["1.jpg", "2.jpg"])) == {"1.jpg"}
    (tmp_path / "cameras.txt").write_text(f"1 {camera}")
    assert set(load_intrinsics(tmp_path, ["1.jpg", "2.jpg"])) == {"1.jpg", "2.jpg"}
    for lines in (f"{camera}\n{camera}0", f"1 {camera}\n2 {camera}0"):
        alone.write_text(lines)
        with pytest.raises(EdmHlocError, match=r"camera\.txt holds 2 cameras and does not tell"):
            load_intrinsics(alone, NAMES)

    listed = tmp_path / "intrinsics.txt"
    numbers = "640 480 550.0 320 240 0.02"
    listed.write_text(
        f"# comment\n{NAMES[0]} SIMPLE_RADIAL {numbers}\n\n"
        f"other/folder/g.jpg SIMPLE_RADIAL {numbers}\r\nf.jpg PINHOLE 640 480 1 2 3 4\n"
    )
    found = load_intrinsics(listed, NAMES)
    assert set(found) == {NAMES[0], "g.jpg", "f.jpg"}
    assert same(found[NAMES[0]])
    assert same(found["g.jpg"])
    assert found["f.jpg"].params.tolist() == [1, 2, 3, 4]
    listed.write_text("f.jpg;PINHOLE;640;480;1;2;3;4\ng.jpg,PINHOLE,640,480,1,2,3,5\n")
    found = load_intrinsics(listed, ["f.jpg", "g.jpg"])
    assert [camera.params.tolist() for camera in found.values()] == [[1, 2, 3, 4], [1, 2, 3, 5]]


def test_names_in_a_list_may_begin_like_a_comment(tmp_path: Path) -> None:
    lines = [
        "# a list, not PINHOLE",
        "#a.jpg PINHOLE 640 480 1 2 3 4",
        "b.jpg PINHOLE 640 480 1 1 3 4",
    ]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "# b.jpg PINHOLE 640 480 9 9 3 4"]))
    found = load_intrinsics(tmp_path / "list.txt", ["#a.jpg", "b.jpg"])
    assert [(n, c.params.tolist()) for n, c in found.items()] == [
        ("#a.jpg", [1, 2, 3, 4]),
        ("b.jpg", [1, 1, 3, 4]),
    ]
    assert set(load_intrinsics(tmp_path / "list.txt", ["a.jpg", "b.jpg"])) == {"b.jpg"}


def test_one_camera_for_all_photos(tmp_path: Path) -> None:
    text = "simple_radial 640.0 480 550.0 320 240 0.02"
    (tmp_path / "cameras.txt").write_text(f"# comment\n1 {text}\n")
    (tmp_path / "list.txt").write_text(f"a.jpg {text}\nb.jpg {text}\n")
    for given in (Path(text), tmp_path, tmp_path / "cameras.txt", tmp_path / "list.txt"):
        found = load_intrinsics(given, ["a.jpg", "b.jpg"])
        assert [(name, same(camera)) for name, camera in found.items()] == [
            ("a.jpg", True),
            ("b.jpg", True),
        ]
        assert (found["a.jpg"].width, found["a.jpg"].height) == SIZE
    for wrong in ("PINHOLE 640 480 500", "PINHOLE 640.5 480 5 5 5 5", "PINHOLE nan 480 5 5 5 5"):
        with pytest.raises(EdmHlocError, match="--known: not a camera in COLMAP's form"):
            load_intrinsics(Path(wrong), ["a.jpg"])


@pytest.mark.parametrize("how", ["text", "list", "cameras.txt", "model"])
def test_cameras_without_their_parameters_are_refused(how: str, tmp_path: Path) -> None:
    """COLMAP's focal length of such a camera is read from memory that is not there."""
    path = tmp_path / "list.txt"
    path.write_text("a.jpg PINHOLE 640 480\n")
    if how == "text":
        path = Path("PINHOLE 640 480")
    elif how in ("cameras.txt", "model"):
        path = tmp_path / "cameras.txt"
        path.write_text("1 PINHOLE 640 480\n")
    if how == "model":
        (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.jpg\n\n")
        (tmp_path / "points3D.txt").write_text("")
    with pytest.raises(EdmHlocError, match="PINHOLE has another number of parameters than 0"):
        load_intrinsics(path, ["a.jpg"])
    camera = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[])
    with pytest.raises(EdmHlocError, match=r"camera of a\.jpg in the known intrinsics cannot be"):
        camera_for_size(camera, (320, 240), Path("a.jpg"), "the known intrinsics")


def test_intrinsics_of_nerfstudio(tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    path.write_text(
        '{"w": 640, "h": 480, "fl_x": 550.0, "fl_y": 551.0, "cx": 320, "cy": 240, "k1": 0.02,'
        ' "frames": [{"file_path": "images/a.jpg"}, {"file_path": "./images/b.jpg", "fl_x": 500}]}'
    )
    found = load_intrinsics(path, ["a.jpg", "b.jpg"])
    assert found["a.jpg"].params.tolist() == [550, 551, 320, 240, 0.02, 0, 0, 0]
    assert found["b.jpg"].params.tolist() == [500, 551, 320, 240, 0.02, 0, 0, 0]
    path.write_text(path.read_text().replace("images/a", "b"))
    with pytest.raises(EdmHlocError, match=r"b\.jpg is there a second time, with another camera"):
        load_intrinsics(path, ["b.jpg"])
    path.write_text('{"frames": [], "w": 640}')
    with pytest.raises(EdmHlocError, match=r"transforms\.json holds no intrinsics"):
        load_intrinsics(path, ["a.jpg"])
    for text in ("{", "[]", '{"frames": [{"file_path": "a.jpg"}]}'):
        path.write_text(text)
        with pytest.raises(EdmHlocError, match=r"transforms\.json is not a transforms\.json"):
            load_intrinsics(path, ["a.jpg"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 640 480 500", "expected 'name MODEL width"),
        ("a.jpg PINHOLE 640 480 500", "not a camera"),
        ("a.jpg PINHOLE 640 x 5 5 5 5", "not a camera"),
        ("a.jpg PINHOLE 640 480 5 5 nan 5", "not a camera"),
        ("a.jpg SIMPLE_RADIAL 640 480 5 5 5 inf", "not a camera"),
        ("b.jpg PINHOLE 640 480 5 5 5 5", "none of the 1 images"),
        ("", "holds no intrinsics: it names no image"),
        (
            "a.jpg SIMPLE_PINHOLE 64 48 5 5 5\na.jpg SIMPLE_PINHOLE 64 48 5 5 5.0\n"
            "a.jpg SIMPLE_PINHOLE 64 48 5 5 6",
            r"list.txt: a.jpg is there a second time, with another camera: remove one",
        ),
    ],
)
def test_wrong_intrinsics(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(EdmHlocError, match=message):
        load_intrinsics(tmp_path / "list.txt", ["a.jpg"])
    with pytest.raises(EdmHlocError, match="Cannot read"):
        load_intrinsics(tmp_path / "none.txt", ["a.jpg"])
    two = "1 PINHOLE 640 480 5 5 5 5\n"
    (tmp_path / "cameras.txt").write_text(two * 2)
    with pytest.raises(EdmHlocError, match="2 cameras"):
        load_intrinsics(tmp_path / "cameras.txt", ["a.jpg"])


def test_known_intrinsics_of_another_size(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    small = pycolmap.Camera(CAMERA.todict())
    small.rescale(0.5)
    build(scene, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(NAMES, small)), pairs=[])
    db = pycolmap.Database.open(tmp_path / "d.db")
    assert [same(camera) for camera in db.read_all_cameras()] == [True]
    db.close()
    assert "scaled by 2" in caplog.text
    turned = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=480, height=640, params=[550, 240, 320, 0]
    )
    with pytest.raises(EdmHlocError, match=r"is for 480 × 640 .* turned by 90°"):
        build(scene, tmp_path / "d.db", CameraOptions(known={NAMES[0]: turned}))


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_known_intrinsics_stay_as_they_are(scene: Scene, tmp_path: Path, mapper: str) -> None:
    known = load_intrinsics(scene.truth, NAMES)
    assert build(scene, tmp_path / "d.db", CameraOptions(known=known)).cameras == 1
    options = MappingOptions(mapper=mapper, threads=1)  # type: ignore[arg-type]
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options, known=known)
    model = read_model(tmp_path / "m")
    assert len(model.cameras) == 1
    assert same(next(iter(model.cameras.values())))
    assert_near_truth(scene, tmp_path / "m", rotation=0.1, position=0.3)


def test_known_and_unknown_cameras_mix(scene: Scene, tmp_path: Path) -> None:
    known = dict.fromkeys(NAMES[:4], CAMERA)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single", known=known))
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=known)
    model = read_model(tmp_path / "m")
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert same(camera) == (image.name in known)
        assert camera.focal_length == pytest.approx(550, rel=0.02)
    options = MappingOptions(mapper="global", threads=1)
    with pytest.raises(EdmHlocError, match="all or none"):
        map_database(tmp_path / "d.db", scene.images, tmp_path / "g", options, known=known)


def test_photos_through_a_telephoto_lens_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLMAP drops cameras whose focal length is more than ten times the photo's longer side."""
    lens = pycolmap.Camera(
        camera_id=1, model="SIMPLE_RADIAL", width=640, height=480, params=[7680, 320, 240, 0]
    )
    monkeypatch.setattr(scenes, "CAMERA", lens)
    angles = np.linspace(-0.5, 0.5, len(NAMES))
    centres = 24 * np.stack([np.sin(angles), 0.1 * np.cos(5 * angles), -np.cos(angles)], axis=1)
    scene = make_scene(tmp_path, NAMES, centres=centres, outliers=0.0, number=2000)
    build(scene, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(NAMES, lens)))
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=NAMES)
    assert summary.unregistered == ()
    assert_near_truth(scene, tmp_path / "m", rotation=0.1, position=0.5)


@pytest.mark.parametrize("step", ["incremental", "global", "triangulation", "more photos"])
def test_a_known_coefficient_of_distortion_may_be_above_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """As of the TUM RGB-D benchmark's first camera; COLMAP makes no point that such a one sees."""
    params = [517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633, 0.0, 0.0, 0.0]
    lens = pycolmap.Camera(camera_id=1, model="FULL_OPENCV", width=640, height=480, params=params)
    monkeypatch.setattr(scenes, "CAMERA", lens)
    scene = make_scene(tmp_path, NAMES)
    known = dict.fromkeys(NAMES, lens)
    database, out = tmp_path / "d.db", tmp_path / "m"
    if step == "triangulation":
        _, summary = triangulate(scene.truth, scene.matched, database, out, THREADS)
    else:
        build(scene, database, CameraOptions(known=known))
        mapper = "global" if step == "global" else "incremental"
        options = MappingOptions(mapper=mapper, threads=1)
        summary = map_database(database, scene.images, out, options, known)
    if step == "more photos":
        model = read_model(out)
        model.deregister_frame(model.find_image_with_name(NAMES[-1]).frame_id)
        earlier = EarlierModel(model, NAMES[:-1])
        extended = extend_model(database, scene.images, tmp_path / "e", earlier, THREADS, known)
        assert extended is not None
        summary, out = extended[0], tmp_path / "e"
    assert summary.unregistered == ()
    assert summary.statistics.points > 400
    assert_near_truth(scene, out, rotation=0.1, position=0.3)

"""`export-model --for`: each program's files read back, by its own loader where that is there."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import ExifTags, Image

from edm_hloc import cli
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli.handover import TARGETS
from edm_hloc.images.find import find_images
from edm_hloc.interop.poses.files import read_given_poses
from edm_hloc.interop.poses.given import PhotosAtHand
from edm_hloc.interop.targets import registry, rerun
from edm_hloc.interop.targets.undistorted import PhotosOfModel, pinhole_of, plain_names, undistort
from tests.full_disk import largest_file
from tests.interop import target_readers as readers
from tests.mapping.scenes import look_at

# stored at half the size of the camera's: names with folders, spaces and the same letters
NAMES = {
    "a b/one.jpg": "a_b_one.jpg",
    "a b/two.png": "a_b_two.png",
    "a_b_one.JPG": "a_b_one_2.jpg",
    "é.3.jpg": "é_3.jpg",
}
READERS = {
    "gsplat": readers.read_splat,
    "opensplat": readers.read_splat,
    "nerfstudio": readers.read_nerfstudio,
    "metashape": readers.read_metashape,
    "kapture": readers.read_kapture,
    "openmvs": readers.read_openmvs,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a model of barrel distortion whose photos show its points as white discs."""
    folder = tmp_path_factory.mktemp("handover")
    model = pycolmap.Reconstruction()
    for camera_id, params in ((3, [560.0, 330, 236, -0.16]), (5, [600.0, 320, 240, -0.1])):
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=camera_id, model="SIMPLE_RADIAL", width=640, height=480, params=params
            )
        )
    rng = np.random.default_rng(0)
    xyz = np.array([[x, y, 0.2 * ((x + y) % 3)] for x in range(-3, 4) for y in range(-2, 3)])
    for number, name in enumerate(NAMES, start=1):
        pose = look_at(np.array([number - 2.5, 0.4 * number, -8.0]), np.zeros(3))
        camera = model.cameras[5 if number == 4 else 3]
        pixels = camera.img_from_cam(pose * xyz)
        image = pycolmap.Image(name=name, image_id=number, camera_id=camera.camera_id)
        image.points2D = [pycolmap.Point2D(xy) for xy in pixels]
        model.add_image_with_trivial_frame(image, pose)
        _draw(folder / "photos" / name, pixels / 2)
    for i, point in enumerate(xyz):
        track = pycolmap.Track()
        for image_id in model.images:
            track.add_element(image_id, i)
        model.add_point3D(point, track, rng.integers(0, 255, 3).astype(np.uint8))
    (folder / "run" / "model").mkdir(parents=True)
    model.write_binary(folder / "run" / "model")
    settings = {"settings": {"images": str(folder / "photos")}}
    (folder / "run" / "run.json").write_text(json.dumps(settings))
    return folder / "run"


def _draw(path: Path, points: np.ndarray) -> None:
    """A photo (320 × 240) with a disc of 2.5 px at each point in COLMAP's frame."""
    y, x = np.mgrid[:240, :320] + 0.5
    photo = np.full((240, 320), 20.0)
    for px, py in points:
        photo += 220 * np.clip(3 - np.hypot(x - px, y - py), 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # readers that turn photos must have no reason to
    grey = photo.clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).convert("RGB").save(path, exif=exif)


def export(*arguments: object) -> int:
    return cli.main(["export-model", *map(str, arguments)])


def check_views(views: dict[str, readers.View], run: Path, atol: float = 1e-6) -> None:
    """The poses are the model's, and the lenses those of COLMAP's undistortion."""
    model = read_model(run / "model")
    assert set(views) == set(NAMES.values())
    for name, image in posed_images(model).items():
        view = views[NAMES[name]]
        np.testing.assert_allclose(view.cam_from_world, image.cam_from_world().matrix(), atol=atol)
        camera = pycolmap.Camera(image.camera.todict())
        camera.rescale(320, 240)
        pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
        whole, size = pinhole.calibration_matrix(), np.array([pinhole.width, pinhole.height])
        off = np.rint(2 * whole[:2, 2] - size)  # cut off, as some programs know no principal point
        whole[:2, 2] -= np.maximum(0, off)
        np.testing.assert_allclose(view.K, whole, atol=atol)
        np.testing.assert_array_equal(view.size, size - abs(off))
        np.testing.assert_allclose(view.K[:2, 2], np.array(view.size) / 2, atol=0.5 + atol)


@pytest.mark.parametrize("target", sorted(READERS))
def test_each_target_is_read_back(
    target: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"{target}'s own"
    assert export(run, out, "--for", target) == 0
    said = capsys.readouterr().out
    assert "4 undistorted photos" in said
    words = shlex.split(said.partition("Next")[2])
    assert any(word == f"{out}" or word.startswith(f"{out}/") for word in words)
    check_views(READERS[target](out), run)
    photos = out / registry.TARGETS[target].photos
    assert sorted(p.name for p in photos.iterdir()) == sorted(NAMES.values())
    for photo in photos.iterdir():
        with Image.open(photo) as image:
            assert not image.getexif()


@pytest.mark.parametrize(
    ("target", "file"),
    [
        ("nerfstudio", "transforms.json"),
        ("metashape", "cameras.xml"),
        ("gsplat", "sparse/0"),
        ("openmvs", "sparse"),
    ],
)
def test_what_is_exported_comes_back_as_poses(
    target: str, file: str, run: Path, tmp_path: Path
) -> None:
    """By the readers of refine-poses, to 1e-6."""
    out = tmp_path / target
    assert export(run, out, "--for", target) == 0
    given = read_given_poses(out / file, PhotosAtHand(out / "images", find_images(out / "images")))
    views = {
        name: readers.View(
            K=image.camera.calibration_matrix(),
            size=(image.camera.width, image.camera.height),
            cam_from_world=image.cam_from_world().matrix(),
        )
        for name, image in posed_images(given.model).items()
    }
    check_views(views, run)


def test_names_of_targets_are_those_of_the_command_line() -> None:
    assert tuple(registry.TARGETS) == TARGETS


@pytest.mark.parametrize("target", ["gsplat", "openmvs"])
def test_points_are_where_the_undistorted_photos_show_them(
    target: str, run: Path, tmp_path: Path
) -> None:
    assert export(run, tmp_path / "out", "--for", target) == 0
    folder = "sparse/0" if target == "gsplat" else "sparse"
    model = pycolmap.Reconstruction(tmp_path / "out" / folder)
    checked = 0
    for image in model.images.values():
        photo = cv2.imread(str(tmp_path / "out" / "images" / image.name), cv2.IMREAD_GRAYSCALE)
        assert photo.shape == (image.camera.height, image.camera.width)
        for point in image.points2D:
            place = image.camera.img_from_cam(
                image.cam_from_world() * model.points3D[point.point3D_id].xyz
            )
            np.testing.assert_allclose(point.xy, place, atol=1e-5)
            (x, y), r = place.astype(int), 6
            if not (r < x < photo.shape[1] - r and r < y < photo.shape[0] - r):
                continue
            patch = photo[y - r : y + r + 1, x - r : x + r + 1].astype(float).clip(60) - 60
            rows, columns = np.mgrid[y - r : y + r + 1, x - r : x + r + 1] + 0.5
            centre = [(patch * columns).sum() / patch.sum(), (patch * rows).sum() / patch.sum()]
            np.testing.assert_allclose(centre, place, atol=0.15)
            checked += 1
    assert checked > 100


def test_points_of_splats_have_normals_and_colours(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out", "--for", "nerfstudio") == 0
    points = list(read_model(run / "model").points3D.values())
    for path in ("sparse/0/points3D.ply", "sparse_pc.ply"):
        table = readers.read_ply(tmp_path / "out" / path)
        xyz = np.column_stack([table[a] for a in "xyz"])
        colours = np.column_stack([table[c] for c in ("red", "green", "blue")])
        order = np.lexsort(xyz.T)
        other = np.lexsort(np.array([p.xyz for p in points]).T)
        np.testing.assert_allclose(xyz[order], np.array([p.xyz for p in points])[other], atol=1e-6)
        np.testing.assert_array_equal(colours[order], np.array([p.color for p in points])[other])


def test_masks_and_smaller_copies_fit_the_photos(run: Path, tmp_path: Path) -> None:
    """Where a photo is masked, and nowhere else, its undistorted mask is black."""
    masks = tmp_path / "masks" / "a b"
    masks.mkdir(parents=True)
    mask = np.full((240, 320), 255, np.uint8)
    mask[:, :160] = 0  # the left half, whose edge runs through the middle and stays straight there
    Image.fromarray(mask).save(masks / "one.jpg.png")
    out = tmp_path / "out"
    arguments = (run, out, "--for", "nerfstudio", "--masks", masks.parent, "--copies", 2, 4)
    assert export(*arguments) == 0
    views = readers.read_nerfstudio(out)
    for factor, end in ((1, ""), (2, "_2"), (4, "_4")):
        for name, view in views.items():
            with Image.open(out / f"images{end}" / name) as photo:
                assert photo.size == (view.size[0] // factor, view.size[1] // factor)
            written = np.asarray(Image.open(out / f"masks{end}" / f"{name}.png"))
            assert written.shape == photo.size[::-1]
            assert set(np.unique(written)) <= {0, 255}
            if name != "a_b_one.jpg":
                assert written.min() == 255
                continue
            edge = (written[written.shape[0] // 2] == 0).sum() * factor
            K = view.K  # x = 160 of the photo: 5 px left of the principal point, hardly distorted
            assert abs(edge - (K[0, 2] + 160 - 165)) <= factor
    # a copy is the mean of squares: half the K exactly
    whole = np.asarray(Image.open(out / "images" / "a_b_two.png").convert("L"), float)
    half = np.asarray(Image.open(out / "images_2" / "a_b_two.png").convert("L"), float)
    h, w = half.shape
    means = whole[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean(axis=(1, 3))
    assert np.abs(half - means).max() <= 1
    assert export(*arguments[:4]) == 0  # without masks
    assert not list(out.glob("masks*"))


def test_masks_of_the_run_that_are_not_exported_are_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    masks = tmp_path / "my masks"
    settings = {"images": str(run.parent / "photos"), "masks": str(masks)}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": settings}))
    arguments = (tmp_path / "run", tmp_path / "out", "--for", "gsplat")
    assert export(*arguments) == 0
    assert "Masks" not in capsys.readouterr().out  # they are not there
    masks.mkdir()
    assert export(*arguments) == 0
    said = capsys.readouterr().out
    assert f"Masks       of the run are left out; to undistort them: --masks '{masks}'" in said
    Image.new("L", (320, 240)).save(masks / "a_b_one.JPG.png")
    assert export(*arguments, "--masks", masks) == 0
    assert "of the run" not in capsys.readouterr().out


def test_an_export_goes_on_and_keeps_what_is_not_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".export.json.tmp").touch()  # killed at once
    assert export(run, out, "--for", "gsplat") == 0
    with pytest.raises(EdmHlocError, match="No images"):  # none but copies of those of the run
        find_images(tmp_path)
    kept, gone = out / "images" / "a_b_one.jpg", out / "images" / "a_b_two.png"
    os.utime(kept, (0, 0))
    gone.unlink()
    assert export(run, out, "--for", "gsplat", "--copies", 2) == 0  # which is not there of any
    assert gone.is_file()
    os.utime(kept, (0, 0))
    gone.unlink()
    assert export(run, out, "--for", "gsplat", "--copies", 2) == 0
    assert kept.stat().st_mtime == 0
    assert gone.is_file()
    # a photo that has changed is made again
    photos = tmp_path / "photos"
    shutil.copytree(run.parent / "photos", photos)
    Image.new("RGB", (320, 240), "red").save(photos / "a b" / "one.jpg")
    assert export(run, out, "--for", "gsplat", "--images", photos) == 0
    with Image.open(kept) as image:
        assert image.resize((1, 1)).getpixel((0, 0))[0] > 200
    assert not (out / "images_2" / "a_b_one.jpg").exists()  # it was of the other photo
    capsys.readouterr()
    assert export(run, out, "--for", "nerfstudio") == 1
    assert "exported for gsplat" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    assert export(run, tmp_path / "mine", "--for", "gsplat") == 1
    assert "holds other things" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("target", ["gsplat", "nerfstudio", "kapture"])
def test_an_export_into_the_same_folder_is_as_one_into_a_new_one(
    target: str, run: Path, tmp_path: Path
) -> None:
    """After the model, the photos and the masks have changed, in any order."""
    photos, masks, model = (tmp_path / name for name in ("photos", "masks", "model"))
    shutil.copytree(run.parent / "photos", photos)
    shutil.copytree(run / "model", model)
    masks.mkdir()
    Image.new("L", (320, 240)).save(masks / "a_b_one.JPG.png")
    rng = np.random.default_rng(3)
    for step in range(6):
        if rng.random() < 0.5:
            read = read_model(model)
            read.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.ones(3)))
            read.write_binary(model)
        name = list(NAMES)[int(rng.integers(len(NAMES)))]
        if (photos / name).exists() and rng.random() < 0.5:
            (photos / name).unlink()
        else:
            shutil.copy(run.parent / "photos" / name, photos / name)
        asked = ["--masks", masks] if rng.random() < 0.5 else []
        found = []
        for out in (tmp_path / "out", tmp_path / f"fresh{step}"):
            assert export(model, out, "--for", target, "--images", photos, *asked) == 0
            paths = sorted(out.rglob("*"))
            found.append({p.relative_to(out): p.is_file() and p.read_bytes() for p in paths})
        assert found[0] == found[1]


@pytest.mark.parametrize(
    "asked", [[], ["--text"], ["--for", "gsplat"], ["--for", "openmvs"], ["points.ply"]]
)
def test_an_export_without_room_keeps_the_earlier_one(
    asked: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    place, options = (out, asked) if asked != ["points.ply"] else (out / asked[0], [])
    assert export(run, place, *options) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    with largest_file(1500 if place == out else 400):
        assert export(run, place, *options) == 1
    assert "Cannot write" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_photos_that_are_missing_are_left_out_and_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(run.parent / "photos", photos)
    (photos / "a b" / "two.png").unlink()
    (photos / "é.3.jpg").write_bytes(b"no photo")
    out = tmp_path / "out"
    assert export(run, out, "--for", "gsplat", "--images", photos) == 0
    assert "3 undistorted" not in capsys.readouterr().out
    assert set(readers.read_splat(out)) == {"a_b_one.jpg", "a_b_one_2.jpg"}
    assert export(run, tmp_path / "none", "--for", "gsplat", "--images", tmp_path) == 1
    assert "None of the 4 photos" in capsys.readouterr().err
    alone = tmp_path / "alone"
    shutil.copytree(run / "model", alone)
    assert export(alone, tmp_path / "other", "--for", "gsplat") == 1
    assert "give their folder by --images" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_of_a_rig_only_the_photo_that_is_missing_is_left_out(run: Path, tmp_path: Path) -> None:
    model = read_model(run / "model")
    poses = {name: image.cam_from_world() for name, image in posed_images(model).items()}
    rig = pycolmap.Rig(rig_id=7)
    rig.add_ref_sensor(model.cameras[3].sensor_id)
    first, other = "a b/two.png", "é.3.jpg"  # of the cameras 3 and 5
    rig.add_sensor(model.cameras[5].sensor_id, poses[other] * poses[first].inverse())
    frames = []
    for name, image in posed_images(model).items():
        if name == other:
            continue
        frame = pycolmap.Frame(frame_id=image.image_id, rig_id=7)
        frame.rig_from_world = poses[name]
        for one in [name, other] if name == first else [name]:
            frame.add_data_id(posed_images(model)[one].data_id)
        frames.append(frame)
    model.set_rigs_and_frames([rig], frames)
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    photos = tmp_path / "photos"
    shutil.copytree(run.parent / "photos", photos)
    for missing in (first, other):
        (photos / missing).unlink()
        out = tmp_path / plain_names([missing])[missing]
        assert export(tmp_path / "model", out, "--for", "gsplat", "--images", photos) == 0
        shutil.copy(run.parent / "photos" / missing, photos / missing)
        views = readers.read_splat(out)
        assert set(views) == set(NAMES.values()) - {NAMES[missing]}
        for name in poses.keys() - {missing}:
            np.testing.assert_allclose(
                views[NAMES[name]].cam_from_world, poses[name].matrix(), atol=1e-6
            )


def test_the_largest_of_several_models_is_taken(run: Path, tmp_path: Path) -> None:
    model = read_model(run / "model")
    shutil.copytree(run / "model", tmp_path / "1")
    for name in ("a b/one.jpg", "a b/two.png"):
        model.deregister_frame(posed_images(model)[name].frame_id)
    (tmp_path / "0").mkdir()
    model.write_binary(tmp_path / "0")
    assert registry.largest_model(tmp_path) == tmp_path / "1"
    assert registry.largest_model(run) == run / "model"


def test_plain_names_are_all_different() -> None:
    names = ["a/b.jpg", "a_b.jpg", "A_b.png", "a b.heic", "c.tif", "c.webp"]
    plain = plain_names(names)
    assert len({name.lower() for name in plain.values()}) == len(names)
    assert {Path(p).stem.partition("_2")[0] for p in plain.values()} >= {"c"}
    assert (plain["c.tif"], plain["c.webp"]) == ("c.png", "c_2.jpg")


def test_plain_names_fit_file_systems_however_deep_the_folders() -> None:
    deep = "/".join(["Überführung über die Brücke"] * 8)
    names = [f"{deep}/{part}/{i}.jpg" for part in "ab" for i in range(3)]
    plain = plain_names([*names, "a/" + "x" * 178 + ".jpg"])
    assert len(set(plain.values())) == 7
    assert max(len(name.encode()) for name in plain.values()) <= 180 + len(".jpg")
    assert all("Brücke_a_1_" in plain[name] for name in names if name.endswith("a/1.jpg"))
    assert plain_names(names[:1])[names[0]] == plain[names[0]]  # whatever else is there
    assert plain["a/" + "x" * 178 + ".jpg"] == f"a_{'x' * 178}.jpg"


# --------------------------------------------------------------------------- own loaders


def test_kapture_reads_it(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("kapture")
    from kapture.io.csv import kapture_from_dir
    from kapture.io.records import get_record_fullpath

    assert export(run, tmp_path / "k", "--for", "kapture") == 0
    data = kapture_from_dir(str(tmp_path / "k"))
    views = {}
    for time, device, name in (
        (t, d, n) for t, each in data.records_camera.items() for d, n in each.items()
    ):
        pose, sensor = data.trajectories[time, device], data.sensors[device]
        assert Path(get_record_fullpath(str(tmp_path / "k"), name)).is_file()
        width, height, *params = sensor.camera_params
        K = np.array([[params[0], 0, params[2]], [0, params[1], params[3]], [0, 0, 1]])
        R = readers.rotation(*map(float, pose.r_raw))
        matrix = np.column_stack([R, pose.t_raw])
        views[name] = readers.View(K, (int(width), int(height)), matrix)
    check_views(views, run)
    points = read_model(run / "model").points3D
    assert data.points3d.shape == (len(points), 6)


def test_rerun_reads_it(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    chunk = pytest.importorskip("rerun.chunk")
    assert export(run, tmp_path / "r", "--for", "rerun") == 0
    logged: dict[str, dict[str, list]] = {}
    for part in chunk.RrdReader(tmp_path / "r" / "scene.rrd").stream():
        values = part.to_record_batch().to_pydict()
        logged.setdefault(part.entity_path, {}).update({k: v[0] for k, v in values.items()})
    views = {}
    for name in NAMES.values():
        camera = logged[f"/world/cameras/{Path(name).stem}"]
        R = np.reshape(camera["Transform3D:mat3x3"][0], (3, 3)).T  # column by column, as K
        t = np.array(camera["Transform3D:translation"][0])
        K = np.reshape(camera["Pinhole:image_from_camera"][0], (3, 3)).T
        width, height = camera["Pinhole:resolution"][0]
        matrix = np.column_stack([R.T, -R.T @ t])
        views[name] = readers.View(K, (int(width), int(height)), matrix)
        photo = tmp_path / "r" / "images" / name
        assert bytes(camera["EncodedImage:blob"][0]) == photo.read_bytes()
    check_views(views, run, atol=1e-4)  # it holds single precision
    points = read_model(run / "model").points3D
    assert len(logged["/world/points"]["Points3D:positions"]) == len(points)


def test_without_rerun_a_sentence_says_how_to_get_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    assert export(run, tmp_path / "r", "--for", "rerun") == 1
    assert "pip install 'edm_hloc[rerun]'" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_a_pipe_is_not_replaced_by_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerun, "load_rerun", Mock)
    os.mkfifo(tmp_path / "scene.rrd")
    with pytest.raises(EdmHlocError, match=r"scene\.rrd: it is a device or a pipe"):
        rerun.write_rerun(Mock(out=tmp_path))
    assert (tmp_path / "scene.rrd").is_fifo()


@pytest.mark.parametrize(
    ("principal_point", "size", "place"),
    [
        ((320.0, 240.0), (640, 480), (320.0, 240.0)),
        ((330.0, 236.25), (620, 472), (310.0, 236.25)),  # right of the middle, and above it
        ((301.9, 240.2), (604, 480), (301.9, 240.2)),
        ((500.0, 240.0), (640, 480), (500.0, 240.0)),  # 360 columns are too many
        ((-50.0, 900.0), (640, 480), (-50.0, 900.0)),  # of a part of a photo
    ],
)
def test_the_principal_point_is_brought_to_the_middle(
    principal_point: tuple[float, float], size: tuple[int, int], place: tuple[float, float]
) -> None:
    camera = pycolmap.Camera(
        camera_id=7, model="PINHOLE", width=640, height=480, params=[500, 510, *principal_point]
    )
    pinhole, _ = pinhole_of(camera)
    assert (pinhole.camera_id, pinhole.width, pinhole.height) == (7, *size)
    np.testing.assert_allclose(pinhole.params, [500, 510, *place])


@pytest.mark.parametrize("name", sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"}))
def test_every_camera_model_is_undistorted_or_refused_at_once(name: str, tmp_path: Path) -> None:
    camera = pycolmap.Camera.create_from_model_name(1, name, 60.0, 64, 48)
    x = np.array([[0.1, 0.2, 1.0], [-0.3, 0.1, 1.0], [0.0, 0.0, 1.0]])
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="a.png", image_id=1, camera_id=1)
    image.points2D = [pycolmap.Point2D(xy) for xy in camera.img_from_cam(x)]
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "photos" / "a.png")
    source, out = PhotosOfModel(tmp_path / "photos"), tmp_path / "out"
    if name == "EQUIRECTANGULAR":
        with pytest.raises(EdmHlocError, match=r"a.png is a panorama .* by edm-hloc views"):
            undistort(model, source, out, "images", "gsplat")
        assert not out.exists()
        return
    undistort(model, source, out, "images", "gsplat")
    (pinhole,) = model.cameras.values()
    with Image.open(out / "images" / "a.png") as photo:
        assert photo.size == (pinhole.width, pinhole.height)
    found = [point.xy for point in model.images[1].points2D]
    np.testing.assert_allclose(found, pinhole.img_from_cam(x), atol=1e-4)

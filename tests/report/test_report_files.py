"""Pictures and files of a model: `edm-hloc show` and `export-model`, each read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import ExifTags, Image

from edm_hloc import cli
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.images.pictures import _spread, draw_matches, ramp
from edm_hloc.interop.exports import (
    export_binary,
    export_nerfstudio,
    export_text,
    nerfstudio_camera,
)
from edm_hloc.interop.targets.registry import largest_model
from edm_hloc.mapping.output import holds_only_models
from edm_hloc.report.model_pictures import VIEWPOINTS, draw_model
from edm_hloc.report.scene import CameraView, Points, build_scene


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scene's cameras with a wall of points, two lenses and a name with spaces."""
    folder = tmp_path_factory.mktemp("model")
    read = read_model(scene / "truth")
    rng = np.random.default_rng(0)
    first = min(read.images)
    read.images[first].name = "a folder/with spaces é.jpg"
    for _ in range(400):
        read.add_point3D(
            rng.uniform(-3, 3, 3), pycolmap.Track(), rng.integers(0, 255, 3).astype(np.uint8)
        )
    read.write_binary(folder)
    return folder


# --------------------------------------------------------------------------- exports


def test_colmap_files_keep_everything(model: Path, tmp_path: Path) -> None:
    assert run("export-model", model, tmp_path / "text", "--text") == 0
    assert (tmp_path / "text" / "images.txt").is_file()
    assert run("export-model", tmp_path / "text", tmp_path / "binary") == 0
    assert not list((tmp_path / "binary").glob("*.txt"))
    a, b = read_model(model), read_model(tmp_path / "binary")
    assert set(posed_images(a)) == set(posed_images(b))
    for name, image in posed_images(a).items():
        other = posed_images(b)[name]
        np.testing.assert_allclose(
            image.cam_from_world().matrix(), other.cam_from_world().matrix(), atol=1e-9
        )
        assert a.cameras[image.camera_id] == b.cameras[other.camera_id]
    assert set(a.points3D) == set(b.points3D)
    for i, point in a.points3D.items():
        np.testing.assert_allclose(point.xyz, b.points3D[i].xyz, atol=1e-9)
        np.testing.assert_array_equal(point.color, b.points3D[i].color)


def test_ply_is_read_back(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "points.PLY"
    assert run("export-model", model, path) == 0
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "element vertex 400" in lines
    kinds = {"float": "<f4", "double": "<f8", "uchar": "u1"}
    fields = [line.split()[1:] for line in lines if line.startswith("property")]
    table = np.frombuffer(body, [(name, kinds[kind]) for kind, name in fields])
    points = list(read_model(model).points3D.values())
    xyz = np.column_stack([table[axis] for axis in "xyz"])
    colors = np.column_stack([table[c] for c in ("red", "green", "blue")])
    order, other = np.lexsort(xyz.T), np.lexsort(np.array([p.xyz for p in points]).T)
    np.testing.assert_allclose(xyz[order], np.array([p.xyz for p in points])[other], atol=1e-6)
    np.testing.assert_array_equal(colors[order], np.array([p.color for p in points])[other])
    again = pycolmap.Reconstruction()
    again.import_PLY(path)
    assert again.num_points3D() == 400


def test_nerfstudio_projects_points_to_the_same_pixels(
    model: Path, scene: Path, tmp_path: Path
) -> None:
    path = tmp_path / "transforms.json"
    assert run("export-model", model, path, "--images", scene / "images") == 0
    data = json.loads(path.read_text())
    assert (tmp_path / data["ply_file_path"]).is_file()
    assert data["camera_model"] == "OPENCV"
    read = read_model(model)
    assert len(data["frames"]) == len(posed_images(read)) == 7
    frames = {Path(frame["file_path"]).name: frame for frame in data["frames"]}
    points = np.array([p.xyz for p in read.points3D.values()])
    for name, image in posed_images(read).items():
        frame = frames[Path(name).name]
        assert Path(frame["file_path"]) == (scene / "images").resolve() / name
        # as nerfstudio does: into OpenGL's camera, then OpenCV's projection of y and z turned round
        camera_from_world = np.linalg.inv(np.array(frame["transform_matrix"]))
        seen = points @ camera_from_world[:3, :3].T + camera_from_world[:3, 3]
        ahead = seen[:, 2] < -0.1
        assert ahead.sum() > 20
        K = np.array([[frame["fl_x"], 0, frame["cx"]], [0, frame["fl_y"], frame["cy"]], [0, 0, 1]])
        distortion = np.array([frame[k] for k in ("k1", "k2", "p1", "p2")])
        turned = seen[ahead] * [1, -1, -1]
        pixels = cv2.projectPoints(turned, np.zeros(3), np.zeros(3), K, distortion)[0][:, 0]
        camera = read.cameras[image.camera_id]
        expected = camera.img_from_cam(image.cam_from_world() * points[ahead])
        np.testing.assert_allclose(pixels, expected, atol=1e-6)
        assert (frame["w"], frame["h"]) == (camera.width, camera.height)


def test_points_of_another_file_are_not_written_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other, x = (tmp_path / name for name in ("sparse_pc.ply", "x_sparse_pc.ply", "x.json"))
    own.write_text("mine")
    for _ in range(2):
        assert run("export-model", model, x) == 0
        assert f"Written     {x} and {other}" in capsys.readouterr().out
    assert json.loads(x.read_text())["ply_file_path"] == other.name
    assert own.read_text() == "mine"
    transforms = tmp_path / "transforms.json"
    assert run("export-model", model, transforms) == 1
    assert f"{own} is there already, and {transforms} does not" in capsys.readouterr().err
    assert not transforms.exists()
    x.write_bytes(x.read_bytes().replace(b"x_sparse", b"sparse"))
    x.rename(transforms)
    assert run("export-model", model, transforms) == 0
    assert own.read_bytes() == other.read_bytes()


def test_poses_of_others_are_not_written_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transforms, points = tmp_path / "transforms.json", tmp_path / "sparse_pc.ply"
    foreign = json.dumps({"w": 640, "frames": [], "ply_file_path": points.name}, indent=4)
    transforms.write_text(foreign)
    points.write_text("mine")
    assert run("export-model", model, transforms) == 1
    assert f"{transforms} was not made by edm-hloc" in capsys.readouterr().err
    assert (transforms.read_text(), points.read_text()) == (foreign, "mine")
    transforms.unlink()
    points.unlink()
    assert run("export-model", model, transforms) == 0
    record = json.loads(transforms.read_text())
    assert record.pop("made_by") == "edm-hloc export-model"
    transforms.write_text(json.dumps(record, indent=2))  # as earlier versions wrote it
    assert run("export-model", model, transforms) == 0


@pytest.mark.parametrize("text", [False, True])
def test_models_of_others_are_not_written_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bool
) -> None:
    folder, how = tmp_path / "model", ["--text"] if text else []
    read = read_model(model)
    for _ in range(2):
        assert run("export-model", model, folder, *how) == 0
        read_model(folder)
    assert holds_only_models(folder)  # so that `refine-model` may replace it
    read.write_text(folder) if text else read.write_binary(folder)  # another program changes it
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run("export-model", model, folder, *how) == 1
    assert "choose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_no_model_is_put_beside_the_record_of_a_run(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(model, out / "model")
    (out / "run.json").write_text("{}")
    for how in ([], ["--text"]):
        assert run("export-model", out, out, *how) == 1
        assert f"{out} is the folder of a run" in capsys.readouterr().err
    shutil.copytree(model, out, dirs_exist_ok=True)  # as an earlier version did
    assert largest_model(out) == out / "model"
    (out / "run.json").unlink()
    assert largest_model(out) == out


def test_names_with_spaces_are_told_of_in_text(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_text(model, tmp_path / "a")
    assert "1 photos have white space in their names, such as 'a folder/with" in caplog.text
    caplog.clear()
    export_binary(model, tmp_path / "b")
    read = read_model(model)
    read.images[min(read.images)].name = "a/b.jpg"
    (tmp_path / "m").mkdir()
    read.write_binary(tmp_path / "m")
    export_text(tmp_path / "m", tmp_path / "c")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("SIMPLE_PINHOLE", [500, 320, 240]),
        ("PINHOLE", [500, 510, 320, 240]),
        ("SIMPLE_RADIAL", [500, 320, 240, -0.1]),
        ("RADIAL", [500, 320, 240, -0.1, 0.02]),
        ("OPENCV", [500, 510, 320, 240, -0.1, 0.02, 0.003, -0.004]),
        ("SIMPLE_RADIAL_FISHEYE", [300, 320, 240, 0.05]),
        ("RADIAL_FISHEYE", [300, 320, 240, 0.05, -0.01]),
        ("OPENCV_FISHEYE", [300, 310, 320, 240, 0.05, -0.01, 0.002, -0.001]),
    ],
)
def test_distortion_is_that_of_opencv(name: str, params: list[float]) -> None:
    camera = pycolmap.Camera(model=name, width=640, height=480, params=params)
    found = nerfstudio_camera(camera)
    K = np.array([[found["fl_x"], 0, found["cx"]], [0, found["fl_y"], found["cy"]], [0, 0, 1.0]])
    rays = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 3)) + np.array([0, 0, 1])
    zero = np.zeros(3)
    if found["camera_model"] == "OPENCV_FISHEYE":
        coefficients = np.array([found[k] for k in ("k1", "k2", "k3", "k4")])
        pixels = cv2.fisheye.projectPoints(rays[:, None], zero, zero, K, coefficients)[0]
    else:
        coefficients = np.array([found[k] for k in ("k1", "k2", "p1", "p2")])
        pixels = cv2.projectPoints(rays, zero, zero, K, coefficients)[0]
    np.testing.assert_allclose(pixels.reshape(-1, 2), camera.img_from_cam(rays), atol=1e-6)


def test_exports_that_cannot_be(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export-model", model, tmp_path / "a.obj") == 1
    assert "Cannot export to .obj files" in capsys.readouterr().err
    assert run("export-model", tmp_path, tmp_path / "a.ply") == 1
    assert "No COLMAP model" in capsys.readouterr().err
    assert run("export-model", model, tmp_path / "m") == 0
    assert run("export-model", model, tmp_path / "m", "--text") == 1
    assert "holds a model in another form" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run("export-model", model, tmp_path / "file" / "m") == 1
    assert "Cannot make the folder" in capsys.readouterr().err
    strange = pycolmap.Camera(model="FOV", width=640, height=480, params=[500, 510, 320, 240, 0.9])
    with pytest.raises(EdmHlocError, match="does not know the camera model FOV"):
        nerfstudio_camera(strange)
    read = read_model(model)
    camera = next(iter(read.cameras.values()))
    if len(read.cameras) == 1:
        fisheye = pycolmap.Camera(
            model="OPENCV_FISHEYE",
            width=camera.width,
            height=camera.height,
            params=[300, 300, 160, 120, 0, 0, 0, 0],
        )
        fisheye.camera_id = 99
        read.add_camera_with_trivial_rig(fisheye)
        pose = pycolmap.Rigid3d()
        image = pycolmap.Image(name="fish.jpg", image_id=99, camera_id=99)
        read.add_image_with_trivial_frame(image, pose)
    (tmp_path / "mixed").mkdir()
    read.write_binary(tmp_path / "mixed")
    with pytest.raises(EdmHlocError, match="both fisheye and other cameras"):
        export_nerfstudio(tmp_path / "mixed", tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


# --------------------------------------------------------------------------- pictures


def test_show_writes_four_pictures(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "views"
    assert run("show", model, "--out", out, "--size", 320, 240) == 0
    assert "7 cameras, 400 points" in capsys.readouterr().out
    for viewpoint in VIEWPOINTS:
        with Image.open(out / f"{viewpoint}.png") as image:
            assert image.size == (320, 240)
            ink = (np.asarray(image.convert("RGB")) < 250).any(axis=2)
        assert 0.01 < ink.mean() < 0.8
        border = np.concatenate([ink[:2].ravel(), ink[-2:].ravel()])
        assert border.mean() < 0.2  # what is shown fits
    assert run("show", model, "--size", 4, 4) == 1
    assert run("show", tmp_path, "--out", out) == 1


@pytest.mark.parametrize("found", ["given", "by the run"])
def test_show_draws_photos_that_are_stored_on_their_side_upright(
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wall wider than high before three cameras, and the same with the camera turned by 90°."""
    rng = np.random.default_rng(0)
    wall = rng.uniform((-3, -1, 4.5), (3, 1, 5), (500, 3))
    pictures = []
    for side in ("upright", "turned", "unknown"):
        folder = tmp_path / side
        (folder / "photos").mkdir(parents=True)
        size = (320, 240) if side == "upright" else (240, 320)
        turn = np.zeros(3) if side == "upright" else np.array([0, 0, -np.pi / 2])
        stored = pycolmap.Rigid3d(pycolmap.Rotation3d(turn), np.zeros(3))
        written = pycolmap.Reconstruction()
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 300, *size)
        written.add_camera_with_trivial_rig(camera)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if side == "turned" else 1
        for k in range(3):
            pose = stored * pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([1.0 - k, 0, 0]))
            image = pycolmap.Image(name=f"{k}.jpg", image_id=k + 1, camera_id=1)
            written.add_image_with_trivial_frame(image, pose)
            Image.new("RGB", size).save(folder / "photos" / f"{k}.jpg", exif=exif)
        for point in wall:
            written.add_point3D(point, pycolmap.Track(), np.array([90, 90, 90], np.uint8))
        (folder / "model").mkdir()
        written.write(folder / "model")
        options = ["--images", folder / "photos"] if found == "given" else []
        if found == "by the run":
            settings = {"images": f"{side}/photos"}
            (folder / "run.json").write_text(json.dumps({"settings": settings}))
            monkeypatch.chdir(tmp_path)
        out = folder / "views"
        assert run("show", folder / "model", "--out", out, "--size", 320, 240, *options) == 0
        with Image.open(out / "front.png") as image:
            pictures.append(np.asarray(image).astype(int))
    monkeypatch.chdir(folder)
    capsys.readouterr()
    run("show", tmp_path / "turned/model", "--out", tmp_path / "v", "--size", 32, 24)
    stored = "Up          as the photos are stored: they are not in turned/photos (--images)"
    assert (stored in capsys.readouterr().out) == (found == "by the run")
    assert np.abs(pictures[1] - pictures[0]).max() <= 2
    assert np.abs(pictures[2] - pictures[0]).max() > 100
    assert run("show", tmp_path / "turned/model", "--images", tmp_path / "none") == 1


def test_the_nearest_point_hides_those_behind() -> None:
    wall = np.stack(np.meshgrid(np.linspace(-1, 1, 150), np.linspace(-1, 1, 150)), axis=-1)
    wall = wall.reshape(-1, 2)
    near = np.column_stack([wall, np.full(len(wall), 0.5)])
    far = np.column_stack([wall, np.full(len(wall), -0.5)])
    colors = np.repeat([[0, 200, 0], [200, 0, 0]], len(wall), axis=0).astype(np.uint8)
    tracks = np.full(len(colors), 3)
    # in the frame of COLMAP: y down, the camera looks along +z and sees `near` first
    xyz = np.concatenate([near, far]) * [1, -1, -1]
    camera = CameraView("a", pycolmap.Rigid3d(pycolmap.Rotation3d(), [0, 0, 3.0]), (0.6, 0.6))
    scene = build_scene(Points(xyz, colors, tracks, np.zeros(len(xyz))), [camera])
    picture = draw_model(scene, "front", (200, 200), cameras=False)
    middle = picture[80:120, 80:120].reshape(-1, 3).astype(int)
    assert (middle[:, 1] > middle[:, 0]).mean() > 0.95
    with_camera = draw_model(scene, "top", (200, 200)).astype(int)
    orange = (with_camera[..., 0] > with_camera[..., 2] + 80) & (with_camera[..., 1] > 30)
    assert orange.sum() > 10


def test_matches_are_drawn_where_they_are(scene: Path) -> None:
    a, b = sorted((scene / "images").iterdir())[:2]
    start, stop = np.array([[40.0, 60.0]]), np.array([[200.0, 180.0]])
    plain = draw_matches(a, b, Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)))
    drawn = draw_matches(a, b, Matches(start, stop, np.array([0.9])))
    changed = np.abs(plain[:240].astype(int) - drawn[:240]).max(axis=2) > 20
    rows, columns = np.nonzero(changed)
    left = 320 + 10
    assert abs(columns.min() - 40) <= 3
    assert abs(columns.max() - (left + 200)) <= 3
    # on the line between the two
    expected = 60 + (columns - 40) * (180 - 60) / (left + 200 - 40)
    assert np.abs(rows - expected).max() < 4
    tall = draw_matches(a, b, Matches(start, stop, np.array([0.9])), lines=0)
    assert np.abs(plain[:240].astype(int) - tall[:240]).max(axis=2)[:, 60:320].max() < 20


def test_lines_are_spread_over_the_photo() -> None:
    rng = np.random.default_rng(0)
    crowd = rng.normal([500, 500], 5, (2000, 2))
    everywhere = rng.uniform(0, 1000, (200, 2))
    points = np.vstack([crowd, everywhere])
    chosen = _spread(points, np.ones(len(points)), 150)
    assert len(set(chosen)) == 150
    assert np.mean(np.array(chosen) >= 2000) > 0.8
    assert _spread(points[:50], np.ones(50), 150) == list(range(50))
    assert ramp(np.array([0.0, 1.0])).tolist() == [[176, 120, 255], [255, 238, 80]]

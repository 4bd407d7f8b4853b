"""`edm-hloc mesh` on a rendered scene whose depth is known."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from edm_hloc import cli
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.mapping.extension import frame_change
from edm_hloc.pipelines.mesh import Surfaces
from edm_hloc.report.meshes import taken_within
from edm_hloc.surface.ply import Mesh, read_mesh
from tests.scenes import TruthMatcher


@pytest.fixture(scope="module")
def run(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the scene, with a mesh that --mesh made."""
    out = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))
        options = ["--camera-mode", "single", "--mesh", str(out / "mesh.ply")]
        assert cli.main(["reconstruct", str(scene / "images"), str(out), *options]) == 0
    return out


def _in_truth(mesh: Mesh, run: Path, scene: Path) -> np.ndarray:
    """The vertices (V, 3) in metres of the scene."""
    truth = read_model(scene / "truth")
    change = frame_change(read_model(run / "model"), truth, posed_images(truth))
    return change.scale * mesh.vertices @ change.rotation.matrix().T + change.translation


def test_the_mesh_is_the_scene(run: Path, scene: Path) -> None:
    mesh = read_mesh(run / "mesh.ply")
    vertices = _in_truth(mesh, run, scene)
    truth = read_model(scene / "truth")
    # of the vertices that photos see, most have the true depth, and most of the photos is covered
    seen, covered = [], []
    for name, image in posed_images(truth).items():
        depth = np.load((scene / "depth" / name).with_suffix(".npy"))
        camera, pose = truth.cameras[image.camera_id], image.cam_from_world()
        local = vertices @ pose.rotation.matrix().T + pose.translation
        local = local[local[:, 2] > 0.1]
        x, y = np.floor(camera.img_from_cam(local)).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
        there = depth[y[inside], x[inside]]
        off = (local[inside, 2] - there)[there > 0] / there[there > 0]
        seen.append(off[off < 0.05])  # what is farther is hidden
        hit = np.zeros(depth.shape, np.uint8)
        near = np.abs(local[inside, 2] - there) < 0.03 * np.maximum(there, 1)
        hit[y[inside][near], x[inside][near]] = 1
        covered.append(cv2.dilate(hit, np.ones((9, 9)))[depth > 0].mean())
    error = np.abs(np.concatenate(seen))
    assert np.median(error) < 0.004
    assert np.percentile(error, 80) < 0.02
    assert np.mean(covered) > 0.5


def test_faces_look_at_the_cameras(run: Path) -> None:
    mesh = read_mesh(run / "mesh.ply")
    a, b, c = (mesh.vertices[mesh.triangles[:, k]] for k in range(3))
    centres = [i.projection_center() for i in posed_images(read_model(run / "model")).values()]
    towards = np.mean(centres, axis=0) - a
    assert np.mean(np.sum(np.cross(b - a, c - a) * towards, axis=1) > 0) > 0.8


def test_colours_are_those_of_the_photos(run: Path, scene: Path) -> None:
    mesh = read_mesh(run / "mesh.ply")
    model = read_model(run / "model")
    differences = []
    for name, image in posed_images(model).items():
        pixels = cv2.imread(str(scene / "images" / name))[:, :, ::-1].astype(float)
        pixels = cv2.GaussianBlur(pixels, (0, 0), 2)
        camera = model.cameras[image.camera_id]
        for point in image.get_observation_points2D()[::9]:
            xyz = model.points3D[point.point3D_id].xyz
            nearest = np.argmin(np.linalg.norm(mesh.vertices - xyz, axis=1))
            x, y = np.minimum(point.xy.astype(int), [camera.width - 1, camera.height - 1])
            differences.append(mesh.colours[nearest] - pixels[y, x])
    assert np.abs(np.median(differences, axis=0)).max() < 6
    assert np.median(np.abs(differences)) < 20


@pytest.mark.slow
def test_glb_is_upright(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mesh", str(run), str(tmp_path / "a.glb")]) == 0
    said = capsys.readouterr().out
    data = (tmp_path / "a.glb").read_bytes()
    size = int.from_bytes(data[12:16], "little")
    document = json.loads(data[20 : 20 + size])
    accessors, primitives = document["accessors"], document["meshes"][0]["primitives"]
    triangles = sum(accessors[primitive["indices"]]["count"] // 3 for primitive in primitives)
    assert f"{triangles:,} triangles" in said
    accessor = accessors[primitives[0]["attributes"]["POSITION"]]
    start = 28 + size + document["bufferViews"][accessor["bufferView"]]["byteOffset"]
    xyz = np.frombuffer(data, "<f4", 3 * accessor["count"], start).reshape(-1, 3)
    assert len(document["images"]) == 1
    # the ground of the square is flat: the most common height is below the middle
    counts, edges = np.histogram(xyz[:, 1], 40)
    assert edges[np.argmax(counts)] < np.median(xyz[:, 1])
    plain = read_mesh(run / "mesh.ply").vertices
    assert np.ptp(xyz, axis=0).prod() != pytest.approx(np.ptp(plain, axis=0).prod())


@pytest.mark.slow
def test_a_refined_model_in_the_folder_of_the_run_has_a_mesh(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out)
    model = read_model(out / "model")
    model.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.zeros(3)))
    (out / "refined").mkdir()
    model.write(out / "refined")
    extents = []
    for name in ("model", "refined"):
        assert cli.main(["mesh", str(out / name), str(tmp_path / "a.ply")]) == 0
        extents.append(np.ptp(np.percentile(read_mesh(tmp_path / "a.ply").vertices, [5, 95], 0), 0))
    assert extents[1] == pytest.approx(2 * extents[0], rel=0.05)


def test_rooms_are_those_that_most_photos_were_taken_in() -> None:
    walls = np.random.default_rng(0).uniform(-1, 1, (3000, 3))
    assert taken_within(walls, np.array([[0, 0, 0], [0.5, -0.5, 0.3], [0, 2.0, 0]]))
    assert not taken_within(walls, np.array([[0, 0, 1.5], [0, 0, 0], [-3.0, 0, 0]]))


def test_points_have_normals_towards_the_cameras(run: Path, tmp_path: Path) -> None:
    assert cli.main(["mesh", str(run), str(tmp_path / "a.ply"), "--points"]) == 0
    data = (tmp_path / "a.ply").read_bytes()
    start = data.index(b"end_header\n") + len(b"end_header\n")
    names = [line.split()[-1] for line in data[:start].decode().splitlines() if "property" in line]
    assert names == ["x", "y", "z", "nx", "ny", "nz", "red", "green", "blue"]
    kind = np.dtype([("xyz", "<f4", 3), ("normal", "<f4", 3), ("colour", "u1", 3)])
    rows = np.frombuffer(data[start:], kind)
    assert len(rows) > 1000
    assert np.linalg.norm(rows["normal"], axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    centres = [i.projection_center() for i in posed_images(read_model(run / "model")).values()]
    towards = np.mean(centres, axis=0) - rows["xyz"]
    assert np.mean(np.sum(rows["normal"] * towards, axis=1) > 0) > 0.8
    assert cli.main(["mesh", str(run), str(tmp_path / "a.glb"), "--points"]) == 1


def test_masks_leave_their_part_out(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, masks = tmp_path / "out", tmp_path / "masks"
    shutil.copytree(run, out)
    masks.mkdir()
    record = json.loads((out / "run.json").read_text())
    for photo in (scene / "images").iterdir():
        mask = np.full((240, 320), 255, np.uint8)
        mask[:, :200] = 0
        cv2.imwrite(str(masks / f"{photo.name}.png"), mask)
    record["settings"]["masks"] = str(masks)
    (out / "run.json").write_text(json.dumps(record))
    assert cli.main(["mesh", str(out), str(tmp_path / "a.ply")]) == 0
    masked, whole = read_mesh(tmp_path / "a.ply"), read_mesh(run / "mesh.ply")
    assert 0.1 * len(whole.triangles) < len(masked.triangles) < 0.7 * len(whole.triangles)
    masks.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert cli.main(["mesh", str(out), str(tmp_path / "a.ply")]) == 1
    assert f"needs the masks of the run in {out}: No such folder" in capsys.readouterr().err


def test_photos_that_were_copied_or_damaged_since_give_the_same_surface(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(scene / "images", photos, copy_function=shutil.copyfile)
    broken = photos / "view_02.jpg"
    broken.write_bytes(broken.read_bytes()[:2000])
    arguments = ["mesh", str(run), str(tmp_path / "a.ply"), "--images", str(photos)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().err
    assert "view_02.jpg" in said
    changed, whole = read_mesh(tmp_path / "a.ply"), read_mesh(run / "mesh.ply")
    assert len(changed.triangles) == pytest.approx(len(whole.triangles), rel=0.01)
    assert np.ptp(changed.vertices, axis=0) == pytest.approx(np.ptp(whole.vertices, axis=0))
    assert np.mean(changed.colours == 128) < 0.2


def test_photos_of_another_size_give_the_same_surface_within_the_same_masks(
    run: Path, scene: Path, tmp_path: Path
) -> None:
    out, photos, masks = tmp_path / "out", tmp_path / "photos", tmp_path / "masks"
    shutil.copytree(run, out)
    photos.mkdir()
    masks.mkdir()
    record = json.loads((out / "run.json").read_text())
    record["settings"]["masks"] = str(masks)
    (out / "run.json").write_text(json.dumps(record))
    for photo in (scene / "images").iterdir():
        pixels = cv2.imread(str(photo))
        half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(photos / photo.name), half)
        mask = np.full(pixels.shape[:2], 255, np.uint8)
        mask[:, : mask.shape[1] // 3] = 0
        cv2.imwrite(str(masks / f"{photo.name}.png"), mask)
    whole, small = (Surfaces.of_run(out / "model", each) for each in (scene / "images", photos))
    np.testing.assert_array_equal(small.cloud.points, whole.cloud.points)
    np.testing.assert_array_equal(small.cloud.normals, whole.cloud.normals)
    sizes = [{(c.width, c.height) for c in each.model.cameras.values()} for each in (whole, small)]
    assert sizes == [{(320, 240)}, {(160, 120)}]  # for colours and textures


@pytest.mark.parametrize("name", ["mesh.obj", "mesh", "mesh.stl"])
def test_other_formats_are_refused_before_the_work(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["mesh", str(run), str(tmp_path / name)]) == 1
    assert "must end with .glb" in capsys.readouterr().err
    arguments = ["reconstruct", str(scene / "images"), str(tmp_path / "out"), "--mesh", name]
    assert cli.main(arguments) == 1
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.ply").mkdir()
    for name in ("file/a.ply", "folder.ply"):
        assert cli.main(["mesh", str(run), str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert "Triangulating" not in error
        assert str(tmp_path) in error


def test_panoramas_have_no_mesh(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "EQUIRECTANGULAR" not in pycolmap.CameraModelId.__members__:
        pytest.skip("this pycolmap has no panoramas")
    model = pycolmap.Reconstruction(run / "model")
    for camera in model.cameras.values():
        camera.model = pycolmap.CameraModelId.EQUIRECTANGULAR
        camera.params = [camera.width, camera.height]
    out = tmp_path / "out"
    shutil.copytree(run, out)
    model.write_binary(out / "model")
    assert cli.main(["mesh", str(out), str(tmp_path / "a.ply")]) == 1
    assert "edm-hloc views" in capsys.readouterr().err


def test_a_model_without_matches_is_told_so(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pycolmap.Reconstruction(run / "model").write_binary(tmp_path)
    arguments = [str(tmp_path), str(tmp_path / "a.ply"), "--images", str(scene / "images")]
    assert cli.main(["mesh", *arguments]) == 1
    error = capsys.readouterr().err
    assert "raw_matches" in error
    assert "reconstruct" in error
    assert not (tmp_path / "a.ply").exists()


def test_cameras_at_one_place_give_no_surface(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(run, out)
    model = pycolmap.Reconstruction(out / "model")
    for frame in model.frames.values():
        pose = frame.rig_from_world
        frame.rig_from_world = pycolmap.Rigid3d(pose.rotation, np.zeros(3))
    model.write_binary(out / "model")
    assert cli.main(["mesh", str(out), str(tmp_path / "a.ply")]) == 1
    assert "from more places" in capsys.readouterr().err


def test_files_of_others_are_not_written_over(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scan.ply", "scan.glb"):
        (tmp_path / name).write_bytes(b"a laser scan")
        assert cli.main(["mesh", str(run), str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == b"a laser scan"
    assert cli.main(["export-model", str(run), str(tmp_path / "scan.ply")]) == 1
    assert (tmp_path / "scan.ply").read_bytes() == b"a laser scan"
    for command in ("mesh", "mesh", "export-model", "export-model"):  # its own, twice
        assert cli.main([command, str(run), str(tmp_path / "own.ply")]) == 0


def test_a_folder_without_the_photos_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "new" / "a.glb"
    assert cli.main(["mesh", str(run), str(file), "--images", str(tmp_path / "empty")]) == 1
    assert "--images" in capsys.readouterr().err
    assert cli.main(["mesh", str(tmp_path / "no-run"), str(file)]) == 1
    assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir())


def test_a_page_shows_the_mesh(run: Path, tmp_path: Path) -> None:
    assert cli.main(["mesh", str(run), str(tmp_path / "a.html")]) == 0
    page = (tmp_path / "a.html").read_text("utf-8")
    start = page.index('id="mesh-data">') + len('id="mesh-data">')
    assert base64.b64decode(page[start : page.index("<", start)])[:4] == b"glTF"


def test_what_is_missing_is_named(
    run: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "out")
    (tmp_path / "out" / "run.json").unlink()
    file, images = str(tmp_path / "a.glb"), str(scene / "images")
    assert cli.main(["mesh", str(tmp_path / "out"), file, "--images", images]) == 1
    assert "run.json" in capsys.readouterr().err

"""Random models through every format and back: all points are projected to the same pixels.

Cameras of many models look past the middle of photos of odd sizes, at points near and far from the
world's origin; names hold folders, spaces, numbers, "#" and other letters than English ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import camera_text, posed_images, read_model
from edm_hloc.images.find import find_images
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.interop import exports
from edm_hloc.interop.poses.files import read_given_poses
from edm_hloc.interop.poses.given import PhotosAtHand
from edm_hloc.localization.poses import read_poses, write_poses

NAMES = [
    *("a.jpg", "b 1.jpg", "sub/a.jpg", "sub dir/d e.png", "é ü/с.jpg", "#f.jpg", "sub/#g.png"),
    *("1 (1).jpg", "2024 trip.jpg", "123.jpg", "4.5.png", "x,y.jpg", 'q"r.jpg', "&lt.jpg"),
    *("OPENCV 640 480 5.jpg", "日本.jpg", "e\u0301.jpg", "j\u00a0k.jpg", "s__t-u.jpg"),
]
PERSPECTIVE = {"SIMPLE_PINHOLE": 0, "PINHOLE": 0, "SIMPLE_RADIAL": 1, "RADIAL": 2, "OPENCV": 4}
FISHEYE = {"SIMPLE_RADIAL_FISHEYE": 1, "RADIAL_FISHEYE": 2, "OPENCV_FISHEYE": 4}
OTHERS = {"FULL_OPENCV": 8, "THIN_PRISM_FISHEYE": 8, "FOV": 1, "DIVISION": 1}
Seen = tuple[pycolmap.Camera, pycolmap.Rigid3d]


def random_camera(rng: np.random.Generator, camera_id: int, models: dict[str, int]):
    model = str(rng.choice(sorted(models)))
    width, height = (int(side) for side in rng.integers(31, 120, 2))
    camera = pycolmap.Camera.create_from_model_name(camera_id, model, 100.0, width, height)
    params = camera.params.copy()
    params[camera.focal_length_idxs()] = rng.uniform(80, 200, len(camera.focal_length_idxs()))
    params[camera.principal_point_idxs()] += rng.uniform(-9, 9, 2)
    distortion = rng.uniform(0.2, 0.8, 1) if model == "FOV" else rng.normal(0, 0.02, models[model])
    params[camera.extra_params_idxs()] = distortion
    camera.params = params
    return camera


def random_model(
    seed: int, models: dict[str, int], photos: Path
) -> tuple[dict[str, Seen], np.ndarray, pycolmap.Reconstruction]:
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-1, 3)
    middle = size * rng.uniform(-50, 50, 3)
    xyz = middle + rng.uniform(-1, 1, (20, 3)) * size
    model, number = pycolmap.Reconstruction(), 0
    for camera_id in (3, 70):
        model.add_camera_with_trivial_rig(random_camera(rng, camera_id, models))
    for name in rng.choice(NAMES, 6, replace=False).tolist():
        number += int(rng.integers(1, 9))  # ids have gaps
        R = Rotation.random(random_state=rng).as_matrix()
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(R), [0, 0, 4 * size] - R @ middle)
        camera = model.cameras[int(rng.choice([3, 70]))]
        image = pycolmap.Image(name=name, camera_id=camera.camera_id, image_id=number)
        pixels = np.asarray(camera.img_from_cam(pose * xyz))
        image.points2D = [pycolmap.Point2D(xy) for xy in pixels] if rng.random() < 0.8 else []
        model.add_image_with_trivial_frame(image, pose)
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (camera.width, camera.height)).save(photos / name)
    for i, point in enumerate(xyz[:15]):
        track = pycolmap.Track()
        for image in model.images.values():
            if image.num_points2D():
                track.add_element(image.image_id, i)
        model.add_point3D(point, track, np.zeros(3, np.uint8))
    return seen(model), xyz, model


def seen(model: pycolmap.Reconstruction) -> dict[str, Seen]:
    return {
        name: (model.cameras[image.camera_id], image.cam_from_world())
        for name, image in posed_images(model).items()
    }


def assert_same(found: dict[str, Seen], truth: dict[str, Seen], xyz: np.ndarray) -> None:
    assert set(found) == set(truth)
    for name, (camera, pose) in found.items():
        other, true = truth[name]
        assert (camera.width, camera.height) == (other.width, other.height)
        expected = np.asarray(other.img_from_cam(true * xyz))
        np.testing.assert_allclose(camera.img_from_cam(pose * xyz), expected, atol=1e-6)


@pytest.mark.parametrize("models", [PERSPECTIVE, FISHEYE, PERSPECTIVE | FISHEYE | OTHERS])
@pytest.mark.parametrize("seed", range(8))
def test_models_and_lists(seed: int, models: dict[str, int], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    truth, xyz, model = random_model(seed, models, photos)
    at_hand = PhotosAtHand(photos, find_images(photos))
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    exports.export_text(tmp_path / "model", tmp_path / "text")
    exports.export_binary(tmp_path / "text", tmp_path / "binary")
    for folder in (tmp_path / "text", tmp_path / "binary"):
        again = read_model(folder)
        assert_same(seen(again), truth, xyz)
        assert again.compute_num_observations() == model.compute_num_observations()
        assert_same(seen(read_given_poses(folder, at_hand).model), truth, xyz)
        known = load_intrinsics(folder, list(truth))
        assert_same({name: (known[name], truth[name][1]) for name in known}, truth, xyz)
    for path in (tmp_path / "text").iterdir():  # as people write it
        if path.stem in ("rigs", "frames"):
            path.unlink()
    lines = (tmp_path / "text" / "images.txt").read_text("utf-8").split("\n")
    filled = "\n".join(line for line in lines if line)
    (tmp_path / "text" / "images.txt").write_text(filled, "utf-8")
    assert_same(seen(read_model(tmp_path / "text")), truth, xyz)

    listed = "".join(f"{name} {camera_text(camera)}\n" for name, (camera, _) in truth.items())
    (tmp_path / "intrinsics.txt").write_text(listed, "utf-8")
    known = load_intrinsics(tmp_path / "intrinsics.txt", list(truth))
    write_poses(tmp_path / "poses.txt", {name: pose for name, (_, pose) in truth.items()})
    poses = read_poses(tmp_path / "poses.txt")
    assert_same({name: (known[name], poses[name]) for name in truth}, truth, xyz)
    given = read_given_poses(tmp_path / "poses.txt", at_hand, known)
    assert_same(seen(given.model), truth, xyz)


@pytest.mark.parametrize("models", [PERSPECTIVE, FISHEYE])
@pytest.mark.parametrize("seed", range(8))
def test_transforms_json(seed: int, models: dict[str, int], tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    truth, xyz, model = random_model(seed, models, photos)
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    file = tmp_path / "transforms.json"
    exports.export_nerfstudio(tmp_path / "model", file)
    record = json.loads(file.read_text())
    found = {}
    for frame in record["frames"]:  # read after nerfstudio's description
        world_from_cam = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
        lens = [frame[key] for key in ("fl_x", "fl_y", "cx", "cy", "k1", "k2")]
        own = record["camera_model"]
        lens += [frame[key] for key in (("p1", "p2") if own == "OPENCV" else ("k3", "k4"))]
        camera = pycolmap.Camera(model=own, width=frame["w"], height=frame["h"], params=lens)
        pose = pycolmap.Rigid3d(np.linalg.inv(world_from_cam)[:3])
        found[frame["file_path"].removeprefix("images/")] = camera, pose
    assert_same(found, truth, xyz)
    given = read_given_poses(file, PhotosAtHand(photos, find_images(photos)))
    assert_same(seen(given.model), truth, xyz)
    given.write_again(given.model, tmp_path / "again" / "transforms.json")
    again = read_given_poses(tmp_path / "again" / "transforms.json", given.photos)
    assert_same(seen(again.model), truth, xyz)

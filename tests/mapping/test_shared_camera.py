"""Photos of one size without EXIF data share a camera where the photos themselves say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.extension import EarlierModel, extend_model
from edm_hloc.mapping.incremental import IncrementalMapping
from edm_hloc.mapping.mappers import map_database
from tests.mapping.scenes import CAMERA, THREADS, assert_near_truth, build, make_scene

NAMES = [f"{i}.jpg" for i in range(8)]


def lens(focal: float = 1.0, off: float = 0.0) -> pycolmap.Camera:
    """The scenes' camera with another focal length, or off the middle by a share of the width."""
    camera = pycolmap.Camera(CAMERA.todict())
    camera.focal_length = focal * CAMERA.focal_length
    camera.principal_point_x += off * CAMERA.width
    return camera


@pytest.mark.parametrize("cameras", [[lens()], [lens(off=0.07)]], ids=["plain", "cropped"])
def test_photos_of_one_camera_share_it(
    tmp_path: Path, cameras: list[pycolmap.Camera], capfd: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(tmp_path, NAMES, cameras=cameras)
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == tuple(NAMES)
    (camera,) = read_model(tmp_path / "m").cameras.values()
    assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.05)
    assert "bundle_adjustment.cc" not in capfd.readouterr().err  # COLMAP's log stays silent
    if cameras[0].principal_point_x == CAMERA.principal_point_x:
        assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)


def test_cameras_that_agree_are_merged_without_mapping_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = IncrementalMapping.models

    def own(
        mapping: IncrementalMapping, focal: bool, distortion: bool
    ) -> list[pycolmap.Reconstruction]:
        assert not mapping.database.name.startswith("one-camera")
        return honest(mapping, focal, distortion)

    monkeypatch.setattr(IncrementalMapping, "models", own)
    scene = make_scene(tmp_path, NAMES, noise=0.3)
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == tuple(NAMES)
    assert summary.undistorted_photos == ()
    assert len(read_model(tmp_path / "m").cameras) == 1
    assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)


def test_a_shared_camera_whose_distortion_grows_is_tried_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on photos taken straight ahead, where a camera for each gets any focal length."""
    honest = IncrementalMapping.models

    def spoiled(
        mapping: IncrementalMapping, focal: bool, distortion: bool
    ) -> list[pycolmap.Reconstruction]:
        models = honest(mapping, focal, distortion)
        sharing = mapping.database.name.startswith("one-camera")
        for camera in list(models[0].cameras.values()) if distortion or not sharing else []:
            camera.focal_length *= 100
        return models

    monkeypatch.setattr(IncrementalMapping, "models", spoiled)
    plain = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=640, height=480, params=[500.0, 320.0, 240.0, 0.0]
    )
    scene = make_scene(tmp_path, NAMES, cameras=[plain])
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == tuple(NAMES)
    assert summary.undistorted_photos == tuple(NAMES)
    assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)


def test_photos_of_two_cameras_do_not(tmp_path: Path) -> None:
    """Their focal lengths differ by a twentieth, less than those of two lenses usually do."""
    scene = make_scene(tmp_path, NAMES, cameras=[lens(), lens(1.05)], noise=0.3)
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == ()
    model = read_model(tmp_path / "m")
    focal = np.array([model.cameras[i.camera_id].focal_length for i in model.images.values()])
    assert len(focal) == model.num_cameras() == len(NAMES)
    assert_near_truth(scene, tmp_path / "m", rotation=1.0, position=2.0)


def larger(focal: float = 1.0) -> pycolmap.Camera:
    """A camera of another size."""
    params = [focal * 620.0, 360.0, 240.0, -0.03]
    return pycolmap.Camera(model="SIMPLE_RADIAL", width=720, height=480, params=params)


@pytest.mark.parametrize("told", [pytest.param(False, marks=pytest.mark.slow), True])
def test_photos_of_each_size_share_a_camera(tmp_path: Path, told: bool) -> None:
    """Of two sizes, or of one where the cameras of the others are known."""
    scene = make_scene(tmp_path, NAMES, cameras=[lens(), larger()])
    known = dict.fromkeys(NAMES[1::2], larger()) if told else None
    build(scene, tmp_path / "d.db", CameraOptions(known=known))
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == tuple(NAMES[::2] if told else NAMES)
    model = read_model(tmp_path / "m")
    cameras = {i.name: i.camera_id for i in model.images.values()}
    assert len({cameras[name] for name in NAMES[::2]}) == 1
    assert cameras[NAMES[0]] != cameras[NAMES[1]]
    assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)


def test_one_size_that_does_not_fit_a_camera_keeps_all_apart(tmp_path: Path) -> None:
    """However well the others fit one, and however many they are."""
    cameras = [lens(), larger(), lens(), lens(), larger(1.08)]
    scene = make_scene(tmp_path, NAMES, cameras=cameras, noise=0.3)
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == ()


def test_photos_of_another_size_join_with_cameras_of_their_own(tmp_path: Path) -> None:
    """What the earlier photos share is kept; whether the new ones may share was not asked."""
    scene = make_scene(tmp_path, NAMES, cameras=[lens()] * 5 + [larger()] * 3)
    early = NAMES[:5]
    fewer = replace(scene, pairs=[p for p in scene.pairs if set(p) <= set(early)])
    build(fewer, tmp_path / "early.db")
    summary = map_database(tmp_path / "early.db", scene.images, tmp_path / "m", THREADS)
    assert summary.one_camera_photos == tuple(early)
    build(scene, tmp_path / "d.db")
    earlier = EarlierModel(read_model(tmp_path / "m"), early, one_camera=early)
    extended = extend_model(tmp_path / "d.db", scene.images, tmp_path / "e", earlier, THREADS)
    assert extended is not None
    assert extended[0].one_camera_photos == tuple(early)
    model = read_model(tmp_path / "e")
    cameras = {i.name: i.camera_id for i in model.images.values()}
    assert len(cameras) == len(NAMES)
    assert len({cameras[name] for name in early}) == 1
    assert len(set(cameras.values())) == 4


def test_known_intrinsics_of_some_photos_leave_one_camera_to_the_others(tmp_path: Path) -> None:
    """Those of the others are of one camera; of two, they are told apart as well."""
    known = dict.fromkeys(("1.jpg", "7.jpg"), CAMERA)
    others = tuple(name for name in NAMES if name not in known)
    scene = make_scene(tmp_path, NAMES, noise=0.3)
    build(scene, tmp_path / "d.db", CameraOptions(known=known))
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known)
    assert summary.one_camera_photos == others
    posed = posed_images(read_model(tmp_path / "m"))
    assert len({posed[name].camera_id for name in others}) == 1
    for name in known:
        assert posed[name].camera.params.tolist() == CAMERA.params.tolist()
    assert_near_truth(scene, tmp_path / "m", rotation=0.1, position=0.15)

    two = make_scene(tmp_path / "two", NAMES, cameras=[lens(), lens(1.05)], noise=0.3)
    known = {name: lens(1.05) for name in ("1.jpg", "7.jpg")}
    build(two, tmp_path / "two.db", CameraOptions(known=known))
    summary = map_database(tmp_path / "two.db", two.images, tmp_path / "n", THREADS, known)
    assert summary.one_camera_photos == ()


def test_intrinsics_that_become_known_leave_a_model_with_one_camera(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES, noise=0.3)
    build(scene, tmp_path / "d.db")
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    earlier = EarlierModel(read_model(tmp_path / "m"), NAMES[2:], one_camera=NAMES)
    known = dict.fromkeys(NAMES[:2], CAMERA)
    build(scene, tmp_path / "k.db", CameraOptions(known=known))
    out = tmp_path / "out"
    extended = extend_model(tmp_path / "k.db", scene.images, out, earlier, THREADS, known)
    assert extended is not None
    assert extended[0].one_camera_photos == tuple(NAMES[2:])
    posed = posed_images(read_model(out))
    assert len({posed[name].camera_id for name in NAMES[2:]}) == 1
    for name in known:
        assert posed[name].camera.params.tolist() == CAMERA.params.tolist()

"""Photos of equal EXIF data get cameras of their own where one does not fit them all."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping import mappers, shared_cameras
from edm_hloc.mapping.extension import EarlierModel, extend_model
from edm_hloc.mapping.incremental import FoundModel
from edm_hloc.mapping.mappers import map_database
from tests.mapping.scenes import THREADS, Scene, assert_near_truth, build, exif, make_scene
from tests.mapping.test_shared_camera import lens

NAMES = [f"{i}.jpg" for i in range(8)]


def cropped(folder: Path, zoom: float = 8 / 7) -> Scene:
    """Every second photo is as of a longer lens, and the EXIF data do not tell."""
    return make_scene(folder, NAMES, cameras=[lens(), lens(zoom)], noise=0.3, exif=exif(31))


@pytest.mark.parametrize("mapper", ["incremental", pytest.param("global", marks=pytest.mark.slow)])
def test_cropped_photos_of_equal_exif_data_are_told_apart(tmp_path: Path, mapper: str) -> None:
    scene = cropped(tmp_path)
    assert build(scene, tmp_path / "d.db").cameras == 1
    options = replace(THREADS, mapper=mapper)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options)
    assert summary.own_camera_photos == tuple(NAMES)
    posed = posed_images(read_model(tmp_path / "m"))
    focal = [posed[name].camera.focal_length for name in NAMES]
    assert focal[::2] == pytest.approx([550] * 4, rel=0.02)
    assert focal[1::2] == pytest.approx([550 * 8 / 7] * 4, rel=0.02)
    assert_near_truth(scene, tmp_path / "m", rotation=0.2, position=1.0)


def test_photos_of_one_camera_keep_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = cropped(tmp_path, zoom=1.0)
    build(scene, tmp_path / "d.db")
    with caplog.at_level(logging.INFO):
        summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert "with a camera for each" not in caplog.text
    assert summary.own_camera_photos == ()
    assert read_model(tmp_path / "m").num_cameras() == 1


@pytest.mark.parametrize("seed", [0, 1])  # with the first, the freer adjustment goes astray
def test_a_lens_of_two_coefficients_is_no_reason_for_cameras_of_their_own(
    tmp_path: Path, seed: int
) -> None:
    """From above, focal lengths and distortions of each photo make up for the second one."""
    params = [400.0, 320.0, 240.0, -0.1, 0.15]
    camera = pycolmap.Camera(camera_id=1, model="RADIAL", width=640, height=480, params=params)
    x = np.linspace(-1.6, 1.6, 4)
    centres = np.stack([x, 0.25 * np.cos(5 * x), np.full(4, -3.0)], axis=1)
    scene = make_scene(
        tmp_path,
        NAMES[:4],
        cameras=[camera],
        centres=centres,
        parallel=True,
        noise=0.1,
        exif=exif(31),
        seed=seed,
    )
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.own_camera_photos == ()
    assert read_model(tmp_path / "m").num_cameras() == 1


def test_an_adjustment_that_has_gone_astray_fits_nothing() -> None:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(lens())
    image = pycolmap.Image(name="a.jpg", camera_id=1, image_id=1)
    image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([9.0, 9.0]))])
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    behind = pycolmap.Track([pycolmap.TrackElement(1, 0)])
    model.add_point3D(np.array([0.0, 0.0, -1.0]), behind)
    assert shared_cameras._error(model, {"a.jpg"}) == np.inf
    assert shared_cameras._error(model, {"another.jpg"}) == 0


def test_photos_of_which_the_user_knows_better_are_not_told_apart(tmp_path: Path) -> None:
    scene = cropped(tmp_path)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    options = replace(THREADS, one_camera=False)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options)
    assert summary.own_camera_photos == ()
    assert read_model(tmp_path / "m").num_cameras() == 1


def test_a_shared_camera_that_stays_though_it_does_not_fit_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = mappers.ChosenTracks.models

    def poorer(part: mappers.ChosenTracks, refine: bool) -> list[FoundModel]:
        if part.mapping.database.name.startswith("apart"):
            return []
        return honest(part, refine)

    monkeypatch.setattr(mappers.ChosenTracks, "models", poorer)
    scene = cropped(tmp_path)
    build(scene, tmp_path / "d.db")
    with caplog.at_level(logging.WARNING):
        summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.own_camera_photos == ()
    assert (
        "8 photos, such as 0.jpg, have the same EXIF data but do not fit one camera" in caplog.text
    )
    assert "--camera-mode per-image" in caplog.text


def test_more_photos_join_cameras_that_were_told_apart(tmp_path: Path) -> None:
    scene = cropped(tmp_path)
    early = NAMES[:6]
    fewer = replace(scene, pairs=[p for p in scene.pairs if set(p) <= set(early)])
    build(fewer, tmp_path / "early.db")
    summary = map_database(tmp_path / "early.db", scene.images, tmp_path / "m", THREADS)
    assert summary.own_camera_photos == tuple(early)
    model = read_model(tmp_path / "m")
    earlier = EarlierModel(model, early, own_cameras=summary.own_camera_photos)
    build(scene, tmp_path / "d.db")
    extended = extend_model(tmp_path / "d.db", scene.images, tmp_path / "e", earlier, THREADS)
    assert extended is not None
    assert extended[0].own_camera_photos == tuple(NAMES)
    assert read_model(tmp_path / "e").num_cameras() == 8
    assert_near_truth(scene, tmp_path / "e", rotation=0.2, position=1.0)


def test_a_model_of_one_camera_is_not_extended_by_cropped_photos(tmp_path: Path) -> None:
    early = NAMES[:5]
    cameras = [lens()] * 5 + [lens(8 / 7)] * 3
    scene = make_scene(tmp_path, NAMES, cameras=cameras, noise=0.3, exif=exif(31))
    fewer = replace(scene, pairs=[p for p in scene.pairs if set(p) <= set(early)])
    build(fewer, tmp_path / "early.db")
    map_database(tmp_path / "early.db", scene.images, tmp_path / "m", THREADS)
    build(scene, tmp_path / "d.db")
    earlier = EarlierModel(read_model(tmp_path / "m"), early)
    assert earlier.model.num_cameras() == 1
    assert extend_model(tmp_path / "d.db", scene.images, tmp_path / "e", earlier, THREADS) is None

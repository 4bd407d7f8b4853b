"""Cropped photos: their lens has its principal point far from the middle, and is found."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import ModelStatistics, posed_images, read_model
from edm_hloc.cli.summaries import print_reconstruction
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.mapping.extension import EarlierModel, extend_model
from edm_hloc.mapping.incremental import refining_options
from edm_hloc.mapping.left_out import LeftOut, register_left_out
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary, parts_folder
from edm_hloc.pipelines.extending import without_calibrated
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from edm_hloc.pipelines.run import Run
from edm_hloc.report.page import make_report
from tests.mapping.scenes import NAMES, THREADS, build, make_scene
from tests.scenes import TruthMatcher

LEFT = 40  # columns that were cut off
SIZE = (320, 240)


@pytest.fixture(scope="session")
def cropped(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos of 280 × 240, with depth and their true model, for `TruthMatcher`."""
    folder = tmp_path_factory.mktemp("cropped") / "scene"
    shutil.copytree(scene, folder)
    truth = pycolmap.Reconstruction(folder / "truth")
    for camera in truth.cameras.values():
        camera.width -= LEFT
        camera.principal_point_x -= LEFT
    truth.write(folder / "truth")
    for path in sorted((folder / "images").iterdir()):
        Image.open(path).crop((LEFT, 0, *SIZE)).save(path, quality=97)
        depth = (folder / "depth" / path.name).with_suffix(".npy")
        np.save(depth, np.load(depth)[:, LEFT:])
    return folder


def run_of(cropped: Path, images: Path, out: Path, *, lenses: bool = True) -> Run:
    config = ReconstructionConfig(
        cameras=CameraOptions(mode="single", lenses=lenses), mapping=MappingOptions(threads=1)
    )
    pairs = list(itertools.combinations(find_images(images), 2))
    return reconstruct(images, out, pairs, TruthMatcher(cropped), config)


def test_the_principal_point_of_cropped_photos_is_found(
    cropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = run_of(cropped, cropped / "images", out, lenses=False)
    (camera,) = pycolmap.Reconstruction(out / "model").cameras.values()
    assert camera.model_name == "SIMPLE_RADIAL"
    assert (run.results["tracks"]["lenses"], camera.principal_point_x) == ((), 140)
    centred = compare(out / "model", cropped / "truth")

    run = run_of(cropped, cropped / "images", out)  # the settings tell that the model is another
    (lens,) = run.results["tracks"]["lenses"]
    assert lens["photos"] == 7
    assert lens["changed"] == pytest.approx(20, abs=4)
    (camera,) = pycolmap.Reconstruction(out / "model").cameras.values()
    assert camera.model_name == "RADIAL"
    assert camera.principal_point_x == pytest.approx(120, abs=3)
    assert camera.principal_point_y == pytest.approx(120, abs=3)
    found = compare(out / "model", cropped / "truth")
    assert 2 * found.rotation_median < centred.rotation_median
    assert 2 * found.position_median < centred.position_median
    print_reconstruction(run, 1.0)
    assert "Lens        of 7 photos, calibrated by them" in capsys.readouterr().out
    report = make_report(out).read_text("utf-8")
    assert "The lens of 7 photos was calibrated by them" in report


@pytest.mark.slow
def test_photos_that_are_added_share_the_lens(cropped: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(cropped / "images", images)
    late = images / find_images(images)[-1]
    late.unlink()
    run_of(cropped, images, out)
    (camera,) = pycolmap.Reconstruction(out / "model").cameras.values()
    assert camera.model_name == "RADIAL"
    shutil.copyfile(cropped / "images" / late.name, late)
    run = run_of(cropped, images, out)
    assert run.results["extended"]["added"] == 1
    (after,) = pycolmap.Reconstruction(out / "model").cameras.values()
    assert after.model_name == "RADIAL"
    assert after.principal_point_x == pytest.approx(120, abs=3)
    assert compare(out / "model", cropped / "truth").registered == 7
    assert not list((out / "model").glob("*.db"))


def with_a_lens(database: Path, images: Path, out: Path) -> pycolmap.Reconstruction:
    """The model of a database, with cameras of RADIAL, which those of the database are not."""
    map_database(database, images, out, THREADS)
    model = pycolmap.Reconstruction(out)
    for camera in model.cameras.values():
        params = [*camera.params, 0.0]
        camera.model, camera.params = pycolmap.CameraModelId.RADIAL, params
    return model


def test_a_photo_that_was_left_out_comes_into_a_model_with_a_lens(tmp_path: Path) -> None:
    """Its database has the simpler camera models."""
    scene = make_scene(tmp_path, NAMES)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    model = with_a_lens(tmp_path / "d.db", scene.images, tmp_path / "model")
    model.deregister_frame(posed_images(model)[NAMES[0]].frame_id)
    (tmp_path / "fewer").mkdir()
    model.write_binary(tmp_path / "fewer")
    model = pycolmap.Reconstruction(tmp_path / "fewer")
    left_out = LeftOut(tmp_path / "d.db", frozenset({NAMES[0]}))
    colmap = refining_options(THREADS, focal=True, distortion=True)
    assert register_left_out(model, left_out, colmap) == [NAMES[0]]
    assert model.cameras[posed_images(model)[NAMES[0]].camera_id].model_name == "RADIAL"


def test_known_intrinsics_of_a_photo_count_before_an_earlier_lens(tmp_path: Path) -> None:
    """The photo is in the earlier model, but was not known then: its pose does not hold."""
    scene = make_scene(tmp_path, NAMES)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    model = with_a_lens(tmp_path / "d.db", scene.images, tmp_path / "earlier")
    known = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[550.0, 550, 320, 240])
    build(scene, tmp_path / "k.db", CameraOptions(mode="single", known={NAMES[0]: known}))
    earlier = EarlierModel(model, NAMES[1:])
    out = tmp_path / "out"
    assert extend_model(tmp_path / "k.db", scene.images, out, earlier, THREADS, {NAMES[0]})
    posed = posed_images(pycolmap.Reconstruction(out))
    assert posed[NAMES[0]].camera.model_name == "PINHOLE"
    assert posed[NAMES[0]].camera.params.tolist() == known.params.tolist()
    assert {posed[name].camera.model_name for name in NAMES[1:]} == {"RADIAL"}


@pytest.mark.slow
def test_another_camera_model_for_more_photos_is_a_model_of_its_own(
    cropped: Path, tmp_path: Path
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(cropped / "images", images)
    late = images / find_images(images)[-1]
    late.unlink()
    run_of(cropped, images, out)
    shutil.copyfile(cropped / "images" / late.name, late)
    run = run_of(cropped, images, out, lenses=False)
    assert "extended" not in run.results
    (camera,) = pycolmap.Reconstruction(out / "model").cameras.values()
    assert camera.model_name == "SIMPLE_RADIAL"


@pytest.mark.parametrize(
    ("calibrated", "flat", "undistorted"),
    [((), ("a", "b", "c"), True), (("a",), ("b", "c"), True), (("a", "b"), ("c",), False)],
)
def test_photos_with_a_lens_are_not_called_undistorted(
    tmp_path: Path, calibrated: tuple[str, ...], flat: tuple[str, ...], undistorted: bool
) -> None:
    """The largest model has a, b and d; another one c, which stays as it is."""
    for folder, names in ((tmp_path / "m", "abd"), (parts_folder(tmp_path / "m") / "2", "c")):
        model = pycolmap.Reconstruction()
        for i, name in enumerate(names, 1):
            lens = 0.1 if name in (*calibrated, "d") else 0.0
            params = [500.0, 320.0, 240.0, lens, 0.0]
            camera = pycolmap.Camera(
                camera_id=i, model="RADIAL", width=640, height=480, params=params
            )
            model.add_camera_with_trivial_rig(camera)
            image = pycolmap.Image(name=name, image_id=i, camera_id=i)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
        folder.mkdir(parents=True)
        model.write(folder)
    statistics = ModelStatistics.of(read_model(tmp_path / "m"))
    mapped = MappingSummary(
        statistics, 4, (), (3, 1), 1.0, undistorted=True, undistorted_photos=("a", "b", "c")
    )
    found = without_calibrated(mapped, tmp_path / "m")
    assert (found.undistorted_photos, found.undistorted) == (flat, undistorted)

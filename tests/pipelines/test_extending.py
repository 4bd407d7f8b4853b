"""Photos that are added to or taken from a folder whose model is there."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images
from edm_hloc.cli.summaries import print_reconstruction
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.mapping.frames import frame_change
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary
from edm_hloc.mapping.parts import share_cameras
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.selection import PairSelection, select_pairs
from edm_hloc.pipelines import extending
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from edm_hloc.pipelines.run import Run
from tests.scenes import TruthMatcher

CONFIG = ReconstructionConfig(
    cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), refine_tracks=False
)
NEW = ("view_01.jpg", "view_06.jpg")


def run_all_pairs(
    images: Path, out: Path, scene: Path, config: ReconstructionConfig = CONFIG
) -> Run:
    pairs = list(itertools.combinations(find_images(images), 2))
    return reconstruct(images, out, pairs, TruthMatcher(scene), config)


def poses_of(model: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    posed = posed_images(pycolmap.Reconstruction(model))
    return {
        name: (image.cam_from_world().rotation.matrix(), image.projection_center())
        for name, image in posed.items()
    }


def largest_change(before: Path, after: Path) -> tuple[float, float]:
    """Of the cameras in both models: by how much of the extent and by how many degrees at most."""
    old, new = poses_of(before), poses_of(after)
    extent = np.ptp([centre for _, centre in old.values()], axis=0).max()
    common = old.keys() & new.keys()
    moved = max(np.linalg.norm(old[name][1] - new[name][1]) for name in common) / extent
    traces = [np.trace(old[name][0] @ new[name][0].T) for name in common]
    return moved, max(np.degrees(np.arccos(np.clip((t - 1) / 2, -1, 1))) for t in traces)


def test_photos_are_added_and_taken_out(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out, kept = tmp_path / "images", tmp_path / "out", tmp_path / "kept"
    shutil.copytree(scene / "images", images)
    for name in NEW:
        (images / name).unlink()
    first = run_all_pairs(images, out, scene)
    assert first.results["mapped"]["statistics"]["registered"] == 5
    assert "extended" not in first.results
    shutil.copytree(out / "model", kept)

    for name in NEW:
        shutil.copy2(scene / "images" / name, images)
    run = run_all_pairs(images, out, scene)
    assert run.results["matching"]["matched"] == 21 - 10  # the pairs of the new photos
    extended = run.results["extended"]
    counts = {key: extended[key] for key in ("before", "kept", "removed", "added")}
    assert counts == {"before": 5, "kept": 5, "removed": 0, "added": 2}
    moved, rotated = largest_change(kept, out / "model")
    assert (extended["moved"], extended["rotated"]) == pytest.approx((moved, rotated), abs=1e-3)
    assert 0 < moved < 0.01
    assert 0 < rotated < 0.3
    comparison = compare(out / "model", scene / "truth")
    assert comparison.registered == 7
    assert comparison.rotation_median < 0.25
    assert comparison.position_median < 0.5
    # the new ones are where they are in truth, in the frame of the model that was there
    frame = frame_change(
        pycolmap.Reconstruction(scene / "truth"), pycolmap.Reconstruction(kept), poses_of(kept)
    )
    truth, poses = pycolmap.Reconstruction(scene / "truth"), poses_of(out / "model")
    extent = np.ptp([centre for _, centre in poses.values()], axis=0).max()
    for name, image in posed_images(truth).items():
        if name in NEW:
            away = np.linalg.norm(frame * image.projection_center() - poses[name][1])
            assert away < 0.02 * extent
    print_reconstruction(run, 1.0)
    assert "Extended    an earlier model of 5 photos: 2 added; its" in capsys.readouterr().out
    assert not (out / "model_earlier").exists()

    again = run_all_pairs(images, out, scene)
    assert again.results["extended"] == extended
    assert again.seconds["model"] == run.seconds["model"]

    shutil.rmtree(kept)
    shutil.copytree(out / "model", kept)
    (images / "view_03.jpg").unlink()
    fewer = run_all_pairs(images, out, scene)
    assert fewer.results["matching"]["matched"] == 0
    assert fewer.results["extended"]["removed"] == 1
    assert set(poses_of(out / "model")) == set(poses_of(kept)) - {"view_03.jpg"}
    assert max(largest_change(kept, out / "model")) < 0.3
    print_reconstruction(fewer, 1.0)
    assert "0 added, 1 taken out; its" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("refine_tracks", [True, False])
def test_a_changed_photo_is_no_camera_that_moved(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refine_tracks: bool
) -> None:
    images, out, kept = tmp_path / "images", tmp_path / "out", tmp_path / "kept"
    shutil.copytree(scene / "images", images)
    (images / NEW[1]).rename(tmp_path / "other.jpg")
    config = replace(CONFIG, refine_tracks=refine_tracks)
    run_all_pairs(images, out, scene, config)
    shutil.copytree(out / "model", kept)
    shutil.copy2(tmp_path / "other.jpg", images / NEW[0])
    run = run_all_pairs(images, out, scene, config)
    extended = run.results["extended"]
    counts = {key: extended[key] for key in ("before", "kept", "removed", "added", "changed")}
    assert counts == {"before": 6, "kept": 5, "removed": 0, "added": 0, "changed": 1}
    assert largest_change(kept, out / "model")[0] > 0.1  # under the same name
    assert extended["moved"] < 0.01
    assert extended["rotated"] < 0.3
    print_reconstruction(run, 1.0)
    assert "0 added, 1 changed since; its other cameras moved" in capsys.readouterr().out


@pytest.mark.slow
def test_other_settings_or_pairs_map_all_photos_anew(scene: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    names = find_images(images)
    pairs = list(itertools.combinations(names, 2))
    reconstruct(images, out, pairs[:-1], TruthMatcher(scene), CONFIG)
    run = reconstruct(images, out, pairs, TruthMatcher(scene), CONFIG)
    assert "extended" not in run.results
    (images / names[0]).unlink()
    other = replace(CONFIG, cameras=CameraOptions(mode="single", model="SIMPLE_RADIAL"))
    fewer = [pair for pair in pairs if names[0] not in pair]
    run = reconstruct(images, out, fewer, TruthMatcher(scene), other)
    assert "extended" not in run.results
    assert run.results["mapped"]["statistics"]["registered"] == 6


@pytest.mark.parametrize("look_alike", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_the_earlier_model_needed_is_not_forgotten(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_alike: bool
) -> None:
    """One camera for photos that have their own in the database; no pairs that had folded it."""
    names = find_images(scene / "images")
    pairs = list(itertools.combinations(names, 2))

    def on_one_camera(database: Path, images: Path, out: Path, *others: Any) -> MappingSummary:
        assert share_cameras(database, tmp_path / "one.db")
        summary = map_database(tmp_path / "one.db", images, out, *others)
        alike = ((names[0], names[1]),) if look_alike else ()
        shared = tuple(posed_images(pycolmap.Reconstruction(out)))
        return replace(summary, one_camera_photos=shared, look_alikes=alike)

    monkeypatch.setattr(extending, "map_database", on_one_camera)
    config = ReconstructionConfig(mapping=MappingOptions(threads=1), refine_tracks=False)
    fewer = [pair for pair in pairs if names[-1] not in pair]
    for some in (fewer, pairs):
        run = reconstruct(scene / "images", tmp_path / "out", some, TruthMatcher(scene), config)
    assert ("extended" in run.results) == (not look_alike)
    assert run.results["mapped"]["one_camera_photos"] == tuple(names)
    model = pycolmap.Reconstruction(tmp_path / "out" / "model")
    assert len({image.camera_id for image in posed_images(model).values()}) == 1
    comparison = compare(tmp_path / "out" / "model", scene / "truth")
    assert comparison.registered == 7
    assert comparison.position_max < 1.0


def test_chosen_pairs_of_old_photos_stay(scene: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(scene / "images", images)
    (images / NEW[1]).unlink()
    choice = PairSelection(retrieval="sift", partners=2)
    photos = select_pairs(images, find_images(images), choice)
    reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)
    before = set(read_pairs(out / "pairs.txt"))
    shutil.copy2(scene / "images" / NEW[1], images)
    photos = select_pairs(images, find_images(images), choice)
    run = reconstruct(images, out, photos, TruthMatcher(scene), CONFIG)
    after = set(read_pairs(out / "pairs.txt"))
    assert before < after
    assert all(NEW[1] in pair for pair in after - before)
    assert run.results["matching"]["matched"] == len(after - before)
    assert run.results["extended"]["added"] == 1


@pytest.mark.parametrize("in_a_row", [False, True])
def test_the_frame_is_found_from_centres_and_rotations(in_a_row: bool) -> None:
    rng = np.random.default_rng(0)

    def a_rotation() -> pycolmap.Rotation3d:
        quaternion = rng.normal(size=4)
        return pycolmap.Rotation3d(quaternion / np.linalg.norm(quaternion))

    true = pycolmap.Sim3d(2.5, a_rotation(), rng.normal(size=3))
    models = [pycolmap.Reconstruction() for _ in range(2)]
    camera = pycolmap.Camera(model="PINHOLE", width=9, height=9, params=[9, 9, 4, 4], camera_id=1)
    for model in models:
        model.add_camera_with_trivial_rig(camera)
    for number in range(1, 9):
        centre = np.array([number, 0, 0]) if in_a_row else rng.normal(size=3)
        pose = pycolmap.Rigid3d(a_rotation(), np.zeros(3))
        pose = pycolmap.Rigid3d(pose.rotation, -pose.rotation.matrix() @ centre)
        moved = true.transform_camera_world(pose)
        if number == 4:  # one that was wrong before
            moved = pycolmap.Rigid3d(a_rotation(), rng.normal(size=3) + 50)
        for model, cam_from_world in zip(models, (pose, moved), strict=True):
            image = pycolmap.Image(name=f"{number}", image_id=number, camera_id=1)
            model.add_image_with_trivial_frame(image, cam_from_world)
    found = frame_change(*models, [f"{number}" for number in range(1, 20)])
    assert found.scale == pytest.approx(2.5)
    np.testing.assert_allclose(found.rotation.matrix(), true.rotation.matrix(), atol=1e-9)
    np.testing.assert_allclose(found.translation, true.translation, atol=1e-8)

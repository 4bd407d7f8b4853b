"""A photo whose matches say two places at once is left out; matches that fit no model are told."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.mapping import chosen_tracks
from edm_hloc.mapping.contradictions import MIN_FITTING, find_contradictions, misplaced_photos
from edm_hloc.mapping.database import MatchedImages, build_database
from edm_hloc.mapping.mappers import map_database
from tests.mapping.scenes import CAMERA, SIZE, THREADS, look_at, make_scene

NAMES = [f"{i}.jpg" for i in range(8)]
STRAY = "stray.jpg"
PLACES = (np.array([-3.0, 1.5, -5.0]), np.array([3.0, -1.5, -5.0]))  # of its camera


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of a scene, and one that half of them see at one place, half at another.

    Each of its pairs is as good as any: as of a photo of something else that looks alike.
    """
    folder = tmp_path_factory.mktemp("stray")
    scene = make_scene(folder, NAMES, outliers=0.0)
    rng = np.random.default_rng(3)
    pixels: list[np.ndarray] = []
    matches: dict[str, np.ndarray] = {}
    for i, name in enumerate(NAMES):
        pose = look_at(PLACES[i // 4], np.zeros(3))
        shown = rng.permutation(np.flatnonzero(scene.ids[name] >= 0))[:150]
        there = scene.points[scene.ids[name][shown]] @ pose.rotation.matrix().T + pose.translation
        at = np.asarray(CAMERA.img_from_cam(there)) + rng.normal(0, 0.3, (len(shown), 2)) - 0.5
        inside = ((at > 0) & (at < np.subtract(SIZE, 1))).all(axis=1)
        of_photo = np.full(len(scene.ids[name]), -1)
        of_photo[shown[inside]] = sum(map(len, pixels)) + np.arange(inside.sum())
        matches[name] = of_photo
        pixels.append(at[inside])
    with FeatureWriter(folder / "stray.h5", {}) as features:
        features.add(STRAY, np.concatenate(pixels), np.ones(sum(map(len, pixels))))
    with MatchWriter(folder / "its-matches.h5", {}) as writer:
        for name in NAMES:
            writer.add(name, STRAY, matches[name], (matches[name] >= 0).astype(np.float32))
    with h5py.File(folder / "stray.h5") as its, h5py.File(scene.features, "a") as every:
        its.copy(STRAY, every)
    with h5py.File(folder / "its-matches.h5") as its, h5py.File(scene.matches, "a") as every:
        for name in NAMES:
            its.copy(f"{name}/{STRAY}", every.require_group(name))
    Image.new("RGB", SIZE).save(scene.images / STRAY)
    pairs = [*scene.pairs, *((name, STRAY) for name in NAMES)]
    matched = MatchedImages(scene.images, scene.features, scene.matches, pairs)
    build_database(folder / "d.db", matched, CameraOptions(mode="single"), THREADS)
    return folder / "d.db"


def test_a_photo_that_its_matches_have_at_two_places_is_left_out(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, truth = database.parent / "images", database.parent / "truth"
    summary = map_database(database, images, tmp_path / "m", THREADS)
    assert summary.unregistered == summary.left_out == (STRAY,)
    assert {name for pair in summary.look_alikes for name in pair} == {*NAMES, STRAY}
    assert len(summary.look_alikes) == 8
    assert compare(tmp_path / "m", truth).rotation_max < 0.5
    assert misplaced_photos([read_model(tmp_path / "m")], database, 30) == ()

    monkeypatch.setattr(chosen_tracks, "_FEW", 0)
    summary = map_database(database, images, tmp_path / "all", THREADS)
    assert summary.unregistered == ()
    assert misplaced_photos([read_model(tmp_path / "all")], database, 30) == (STRAY,)


def test_matches_of_left_out_pairs_do_not_speak_against_a_model(database: Path) -> None:
    model = read_model(database.parent / "truth")
    alone = find_contradictions([model], database, 30)
    assert (alone.misplaced, round(alone.fitting, 2)) == ((), 1.0)
    pose = look_at(PLACES[0], np.zeros(3))
    model.add_image_with_trivial_frame(
        pycolmap.Image(name=STRAY, camera_id=1, image_id=len(NAMES) + 1), pose
    )
    found = find_contradictions([model], database, 30)
    assert found.misplaced == (STRAY,)
    assert 0.8 < found.fitting < 0.98  # half of the stray's matches do not
    apart = [(name, STRAY) for name in NAMES[4:]]
    left = find_contradictions([model], database, 30, apart)
    assert left.misplaced == (STRAY,)
    assert left.fitting > 0.99


def test_most_matches_speak_against_a_model_of_random_poses(database: Path) -> None:
    model = read_model(database.parent / "truth")
    for k, image in enumerate(posed_images(model).values()):
        frame = model.frames[image.frame_id]
        turn = pycolmap.Rotation3d(np.array([0.0, 0.2 * k, 0.0]))
        frame.rig_from_world = pycolmap.Rigid3d(
            turn * frame.rig_from_world.rotation, frame.rig_from_world.translation
        )
    assert find_contradictions([model], database, 30).fitting < MIN_FITTING / 2
    assert find_contradictions([], database, 30).fitting == 1.0

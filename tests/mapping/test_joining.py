"""Models that share photos become one, where the photos have the same poses in both."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import (
    open_database,
    posed_images,
    quiet_colmap,
    read_model,
    verified_pairs,
)
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.incremental import incremental_options
from edm_hloc.mapping.joining import join_models
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.parts import copy_images
from tests.mapping.scenes import THREADS, Scene, assert_near_truth, build, make_scene

NAMES = [f"{i}.jpg" for i in range(12)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    folder = tmp_path_factory.mktemp("joining")
    scene = make_scene(folder, NAMES)
    build(scene, folder / "d.db", CameraOptions(mode="single"))
    map_database(folder / "d.db", scene.images, folder / "m", THREADS)
    return scene, folder


def part(whole: pycolmap.Reconstruction, names: Collection[str]) -> pycolmap.Reconstruction:
    """Some images of a model, with the points that two of them observe."""
    model = pycolmap.Reconstruction(whole)
    for name, image in posed_images(whole).items():
        if name not in names:
            model.deregister_frame(image.frame_id)
    return model


def elsewhere(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The same in another frame."""
    turn = pycolmap.Rotation3d(np.array([0.1, -0.4, 0.3, 0.86]))
    model.transform(pycolmap.Sim3d(3.7, turn, np.array([5.0, -2.0, 1.0])))
    return model


@pytest.mark.parametrize("shared", [3, 4, 6])
def test_models_that_share_four_photos_become_one(
    scene: tuple[Scene, Path], tmp_path: Path, shared: int
) -> None:
    truth, folder = scene
    whole = read_model(folder / "m")
    first, second = part(whole, NAMES[:8]), elsewhere(part(whole, NAMES[8 - shared :]))
    before = [m.num_reg_images() for m in (first, second)]
    with quiet_colmap():
        joined = join_models([first, second], folder / "d.db", incremental_options(THREADS))
    assert [m.num_reg_images() for m in (first, second)] == before
    if shared == 3:
        assert joined == [first, second]
        return
    (model,) = joined
    assert set(posed_images(model)) == set(NAMES)
    assert model.compute_mean_reprojection_error() < 1.2 * whole.compute_mean_reprojection_error()
    (tmp_path / "j").mkdir()
    model.write(tmp_path / "j")
    assert_near_truth(truth, tmp_path / "j", rotation=0.3, position=0.5)


@pytest.mark.parametrize("connected", [True, False])
def test_arcs_of_a_ring_that_share_the_photos_at_their_ends_become_one(
    scene: tuple[Scene, Path], tmp_path: Path, connected: bool
) -> None:
    """Neighbours could be wrong together: no verified pair may connect the two."""
    truth, folder = scene
    whole = read_model(folder / "m")
    first, second = part(whole, NAMES[:7]), elsewhere(part(whole, [*NAMES[6:], NAMES[0]]))
    with open_database(folder / "d.db") as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        ends = tuple(sorted((ids[NAMES[0]], ids[NAMES[6]])))
        pairs = sorted(verified_pairs(db))
        assert ends in pairs
        if not connected:
            pairs.remove(ends)
        copy_images(db, tmp_path / "d.db", set(ids.values()), pairs)
    with quiet_colmap():
        joined = join_models([first, second], tmp_path / "d.db", incremental_options(THREADS))
    if connected:
        assert joined == [first, second]
        return
    (model,) = joined
    assert set(posed_images(model)) == set(NAMES)
    (tmp_path / "j").mkdir()
    model.write(tmp_path / "j")
    assert_near_truth(truth, tmp_path / "j", rotation=0.3, position=0.5)


def test_models_in_which_shared_photos_lie_differently_stay_apart(
    scene: tuple[Scene, Path],
) -> None:
    """As where places that look alike were taken for one another."""
    _, folder = scene
    whole = read_model(folder / "m")
    first, second = part(whole, NAMES[:8]), elsewhere(part(whole, NAMES[4:]))
    rng = np.random.default_rng(0)
    for name in NAMES[4:6]:  # half of those that are shared
        image = posed_images(second)[name]
        moved = pycolmap.Rigid3d(pycolmap.Rotation3d(), rng.normal(0, 20.0, 3))
        second.frames[image.frame_id].rig_from_world = moved * image.cam_from_world()
    with quiet_colmap():
        joined = join_models([first, second], folder / "d.db", incremental_options(THREADS))
    assert joined == [first, second]

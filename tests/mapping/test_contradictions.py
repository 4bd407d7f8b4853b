"""Photos whose own matches contradict where a model has them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.base.colmap import open_database, posed_images, read_model, verified_pairs
from edm_hloc.mapping.contradictions import (
    _contested,
    _taken,
    doubtful_shares,
    fitting_matches,
    fitting_shares,
    misplaced_photos,
    strongest_pairs,
)
from edm_hloc.mapping.parts import copy_images
from tests.mapping.scenes import Scene, build, make_scene

NAMES = [f"{i:02}.jpg" for i in range(12)]
AROUND = pycolmap.Rotation3d(np.array([0.0, np.radians(150), 0.0]))  # about the vertical axis


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    made = make_scene(folder, NAMES)
    build(made, folder / "d.db")
    return made


def model_with(scene: Scene, turned: list[str]) -> pycolmap.Reconstruction:
    """The true cameras, some of them turned to look away."""
    model = read_model(scene.truth)
    for name, image in posed_images(model).items():
        if name in turned:
            frame = model.frames[image.frame_id]
            pose = frame.rig_from_world
            frame.rig_from_world = pycolmap.Rigid3d(
                AROUND * pose.rotation, AROUND.matrix() @ pose.translation
            )
    return model


def test_matches_fit_true_poses_and_not_those_of_a_turned_photo(scene: Scene) -> None:
    path = scene.truth.parent / "d.db"
    with open_database(path) as db:
        counts = verified_pairs(db, 30)
        shares = fitting_shares(db, model_with(scene, []), counts)
        turned = fitting_shares(db, model_with(scene, [NAMES[3]]), counts)
        wrong = next(i.image_id for i in db.read_all_images() if i.name == NAMES[3])
    assert len(counts) == 66
    assert min(shares.values()) > 0.97
    for pair, share in turned.items():
        assert (share < 0.1) == (wrong in pair)


@pytest.mark.parametrize(
    ("turned", "named"),
    [
        ([], ()),
        (NAMES[:1], tuple(NAMES[:1])),
        ([NAMES[1], NAMES[5], NAMES[9]], (NAMES[1], NAMES[5], NAMES[9])),
    ],
)
def test_photos_that_are_turned_away_from_what_they_match_are_named(
    scene: Scene, turned: list[str], named: tuple[str, ...]
) -> None:
    model = model_with(scene, turned)
    assert misplaced_photos([model], scene.truth.parent / "d.db", 30) == named


def test_photos_that_wrong_pairs_have_moved_together_are_named(scene: Scene) -> None:
    """Their poses fit two thirds of what matches them, and few of the weaker right pairs."""
    with open_database(scene.truth.parent / "d.db") as db:
        numbers = sorted(i.image_id for i in db.read_all_images())
    moved = set(numbers[:3])
    counts, fits = {}, {}
    for a, b in itertools.combinations(numbers, 2):
        together = len(moved & {a, b})
        counts[a, b] = 100 if together == 1 else 400
        fits[a, b] = (0.97, 0.4, 0.65)[together]
    doubts, fitting = doubtful_shares(counts, fits), fitting_matches(counts, fits)
    assert max(doubts.values()) == 0  # no pair contradicts the poses outright
    assert max(fitting[i] for i in moved) < 0.65
    assert min(fitting[i] for i in set(numbers) - moved) > 0.95
    assert _taken(counts, fits) == moved
    # Where the matches of most photos fit no better, as of far points, none stands out.
    assert _taken(counts, {pair: 0.8 * share for pair, share in fits.items()}) == set()


def test_a_part_that_one_photo_connects_is_named_with_it(tmp_path: Path, scene: Scene) -> None:
    """As of a ring that has folded: only the photos at the fold have matches that contradict it."""
    path = tmp_path / "chain.db"
    with open_database(scene.truth.parent / "d.db") as db:
        images = {image.image_id: image.name for image in db.read_all_images()}
        near = [(a, b) for a, b in verified_pairs(db, 30) if b == a + 1]
        copy_images(db, path, images, near)
    model = read_model(scene.truth)
    assert misplaced_photos([model], path, 30) == ()
    for name in NAMES[8:]:  # the same places, in a world that is turned
        frame = model.frames[posed_images(model)[name].frame_id]
        pose = frame.rig_from_world
        frame.rig_from_world = pycolmap.Rigid3d(pose.rotation * AROUND, pose.translation)
    named = misplaced_photos([model], path, 30)
    assert set(NAMES[8:]) <= set(named) <= set(NAMES[7:])


def test_many_weak_pairs_of_other_places_do_not_make_a_photo_doubtful(
    tmp_path: Path, scene: Scene
) -> None:
    """A photo of ten weak wrong pairs, with more matches together than its right ones."""
    path = tmp_path / "weak.db"
    with open_database(scene.truth.parent / "d.db") as db:
        images = db.read_all_images()
        with pycolmap.Database.open(path) as copy:
            for camera in db.read_all_cameras():
                copy.write_camera(camera, use_camera_id=True)
            for image in images:
                bare = pycolmap.Image(
                    name=image.name, image_id=image.image_id, camera_id=image.camera_id
                )
                copy.write_image(bare, use_image_id=True)
                copy.write_keypoints(image.image_id, db.read_keypoints(image.image_id))
            for (a, b), _ in verified_pairs(db, 30).items():
                matches = db.read_two_view_geometry(a, b).inlier_matches
                geometry = pycolmap.TwoViewGeometry()
                near = abs(a - b) <= 1
                some = matches if near else matches[:60]
                shift = 0 if near else 7  # to a point elsewhere
                geometry.inlier_matches = np.column_stack(
                    [some[:, 0], np.roll(some[:, 1], shift)]
                ).astype(np.uint32)
                copy.write_two_view_geometry(a, b, geometry)
    model = read_model(scene.truth)
    assert misplaced_photos([model], path, 30) == ()
    with open_database(path) as db:
        counts = verified_pairs(db, 30)
        wrong = [p for p, share in fitting_shares(db, model, counts).items() if share < 0.3]
    assert len(wrong) == 55
    assert sum(counts[p] for p in wrong) > 0.3 * sum(counts.values())
    assert strongest_pairs(counts, 0.3) == counts.keys() - set(wrong)


PAIRS = st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] < p[1])


@given(st.dictionaries(PAIRS, st.integers(1, 1000), min_size=1), st.floats(0.01, 1))
def test_the_best_pair_of_each_photo_is_among_the_strongest(
    counts: dict[tuple[int, int], int], share: float
) -> None:
    strong = strongest_pairs(counts, share)
    assert strong <= counts.keys()
    for image_id in {i for pair in counts for i in pair}:
        best = max((p for p in counts if image_id in p), key=lambda p: counts[p])
        assert best in strong
    assert strongest_pairs(counts, 0) == counts.keys()


def test_the_worst_part_whose_connection_is_outvoted_is_contested() -> None:
    """Two groups of three: 100 matches connect them, and others contradict that."""
    inside = {(1, 2): 900, (2, 3): 800, (4, 5): 900, (5, 6): 800, (1, 3): 700}
    counts = {**inside, (3, 4): 100, (1, 6): 150, (2, 5): 160, (2, 7): 50}
    fits = dict.fromkeys(counts, 1.0) | {(1, 6): 0.1, (2, 5): 0.0}
    assert _contested(counts, fits | {(2, 7): 0.4}) in ({1, 2, 3}, {4, 5, 6})  # 310 of 100
    assert _contested(counts | {(1, 6): 130}, fits) == set()  # 290
    assert _contested(counts, fits | {(1, 6): 0.4}) == set()  # neither fits nor contradicts
    assert _contested(counts | {(2, 7): 600}, fits | {(2, 7): 0.1}) != {7}  # nothing connects it
    assert _contested({}, {}) == set()
    lone = {**counts, (6, 8): 40, (1, 8): 500}
    assert _contested(lone, fits | {(6, 8): 0.9, (1, 8): 0.0}) == {8}  # 500 of 40

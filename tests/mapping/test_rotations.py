"""Pairs whose rotation contradicts that of stronger pairs, in closed form and in a courtyard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import open_database, posed_images, read_model, verified_pairs
from edm_hloc.evaluation.models import compare
from edm_hloc.mapping.chosen_tracks import ChosenTracks
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.rotations import StrongestPairs, rotation_by_poses, rotations_by_matches
from tests.mapping.scenes import THREADS
from tests.mapping.test_unfolding import PHOTOS, between, courtyard

RING = 24


def about_the_vertical(degrees: float) -> pycolmap.Rotation3d:
    return pycolmap.Rotation3d(np.array([0.0, np.radians(degrees), 0.0]))


def ring(
    alike: dict[tuple[int, int], int], drift: float = 0.0
) -> tuple[dict[tuple[int, int], pycolmap.Rotation3d], dict[tuple[int, int], int]]:
    """Rotations and matches of neighbours on a ring, and of pairs that look as if not turned.

    Args:
        alike: number of matches of the latter.
        drift: degrees by which each pair of neighbours is wrong.
    """
    step = 360 / RING + drift
    rotations, counts = {}, {}
    for ahead, matches in ((1, 1000), (2, 700)):
        for a in range(RING):
            b = (a + ahead) % RING
            turn = ahead * step if a < b else -ahead * step
            rotations[min(a, b), max(a, b)] = about_the_vertical(turn)
            counts[min(a, b), max(a, b)] = matches - a  # no two alike
    for pair, matches in alike.items():
        rotations[pair], counts[pair] = about_the_vertical(0), matches
    return rotations, counts


def test_weaker_pairs_of_sides_that_look_alike_contradict_the_strongest() -> None:
    alike = {(a, a + 6): 600 for a in range(18)} | {(a, a + 12): 400 for a in range(12)}
    assert StrongestPairs(*ring(alike)).contradicting() == set(alike)


def test_errors_that_add_up_along_a_ring_do_not_open_it() -> None:
    """The last pair of a ring is off by the errors of all others, 23 times one degree."""
    alike = {(a, a + 6): 600 for a in range(18)}
    assert StrongestPairs(*ring(alike, drift=1.0)).contradicting() == set(alike)


def test_a_model_is_bent_where_the_strongest_pairs_are_turned_otherwise() -> None:
    rotations, counts = ring({})
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 500, 640, 480)
    model.add_camera_with_trivial_rig(camera)
    for i in range(RING):
        turn = about_the_vertical(i * 360 / RING + (7 if i >= 12 else 0))
        pose = pycolmap.Rigid3d(turn, np.zeros(3))
        model.add_image_with_trivial_frame(
            pycolmap.Image(name=f"{i:02}.jpg", camera_id=1, image_id=i), pose
        )
    strongest = StrongestPairs(rotations, counts)
    assert (
        strongest.bent(model) == 1
    )  # between 11 and 12; the strongest pairs do not close the ring
    tilted = StrongestPairs({pair: rotation_by_poses(model, pair) for pair in rotations}, counts)
    assert tilted.bent(model) == 0


def test_matches_alone_give_the_rotations_of_a_courtyard_and_unfold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other means do not: equal walls are matched at four tenths of their points."""
    walls = courtyard(tmp_path, alike_share=0.4)
    for other in ("_unfolded", "_by_trusted_pairs", "_of_places"):
        monkeypatch.setattr(ChosenTracks, other, lambda *_: None)
    before = {path.name for path in tmp_path.iterdir()}
    summary = map_database(walls, tmp_path / "images", tmp_path / "m", THREADS)
    assert {path.name for path in tmp_path.iterdir()} == before | {"m"}
    assert {path.suffix for path in (tmp_path / "m").iterdir()} == {".bin"}
    assert summary.components == (16,)
    assert compare(tmp_path / "m", tmp_path / "truth").rotation_max < 1.0
    left_out = [(PHOTOS.index(a), PHOTOS.index(b)) for a, b in summary.look_alikes]
    assert len(left_out) > 60
    assert min(map(between, left_out)) >= 3

    truth = read_model(tmp_path / "truth")
    with open_database(walls) as db:
        counts = verified_pairs(db, THREADS.min_inliers)
        by_matches = rotations_by_matches(db, truth, counts)
        found = StrongestPairs.of(db, truth, counts)
    name = {image.image_id: image.name for image in posed_images(truth).values()}
    near = [pair for pair in by_matches if between(tuple(PHOTOS.index(name[i]) for i in pair)) <= 2]
    off = [np.degrees(by_matches[p].angle_to(rotation_by_poses(truth, p))) for p in near]
    assert len(near) == 32
    assert max(off) < 4.0
    assert found.contradicting() == counts.keys() - set(near)
    assert found.bent(truth) == 0

    monkeypatch.setattr(ChosenTracks, "_by_strongest_pairs", lambda *_: None)
    map_database(walls, tmp_path / "images", tmp_path / "folded", THREADS)
    assert compare(tmp_path / "folded", tmp_path / "truth").rotation_max > 80

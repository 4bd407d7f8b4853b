"""Photos of places that look alike: a courtyard of equal walls comes out as it is, not folded."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import open_database, read_model
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.mapping import chosen_tracks
from edm_hloc.mapping.chosen_tracks import ChosenTracks
from edm_hloc.mapping.contradictions import misplaced_photos
from edm_hloc.mapping.database import MatchedImages, build_database
from edm_hloc.mapping.look_alikes import find_conflicts
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.output import MappingSummary
from edm_hloc.mapping.unfolding import pairs_of_places, shown_by_both, trusted_pairs, unfold
from tests.mapping.scenes import CAMERA, SIZE, THREADS, look_at

PHOTOS = [f"{i:02}.jpg" for i in range(16)]
HALF = 6.0  # m, half the width of the courtyard


def quarter_turns(points: np.ndarray, number: int) -> np.ndarray:
    """Points (N, 3) turned about the vertical axis, y."""
    for _ in range(number):
        points = points[:, [2, 1, 0]] * [1.0, 1.0, -1.0]
    return points


def walls_between(a: int, b: int) -> int:
    """How many walls further photo b seems to be, of equal walls: the fewest photos from a to b."""
    ahead = (b - a + 8) % len(PHOTOS) - 8
    return int(np.sign(ahead)) * ((abs(ahead) + 1) // 4)


def courtyard(folder: Path, alike_share: float = 1.0, apart: int = 0, points: int = 300) -> Path:
    """Keypoints and matches of photos that look at four equal walls from the middle.

    Each wall has what all have, and three pictures of its own that hide some of it. Photos are
    matched as if they showed the same wall, if they look alike so.

    Args:
        folder: for all files.
        alike_share: share of what is equal that is matched between photos of different walls.
        apart: so many of the last photos have such matches alone with the others.
        points: of what all walls have; the pictures of each have four tenths as many more.
    """
    rng = np.random.default_rng(0)
    wall = np.column_stack(
        [
            rng.uniform(-HALF, HALF, points),
            rng.uniform(-2.5, 2.5, points),
            HALF - rng.uniform(0, 0.8, points),
        ]
    )
    hidden = (np.abs((wall[:, 0] + 6) % 4 - 2) < 0.9) & (wall[:, 1] > -0.1)
    wall = wall[~hidden]
    number = 3 * (points * 2 // 15)  # of the points of three pictures
    walls: list[np.ndarray] = []
    for k in range(4):
        x = np.repeat([-4.0, 0.0, 4.0], number // 3) + rng.uniform(-0.8, 0.8, number)
        height, depth = rng.uniform(0, 2.4, number), rng.uniform(0.2, 1, number)
        own = np.column_stack([x, height, HALF - depth])
        walls.append(quarter_turns(np.concatenate([wall, own]), k))
    xyz, on_wall = np.concatenate(walls), len(walls[0])
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    shown: list[np.ndarray] = []
    with FeatureWriter(folder / "features.h5", {}) as features:
        for i, name in enumerate(PHOTOS):
            angle = 2 * np.pi * i / len(PHOTOS)
            ahead = np.array([np.sin(angle), 0.0, np.cos(angle)])
            pose = look_at(rng.uniform(-0.5, 0.5, 3) - 2.0 * ahead, 5 * ahead)
            (folder / "images").mkdir(exist_ok=True)
            Image.new("RGB", SIZE).save(folder / "images" / name)
            model.add_image_with_trivial_frame(
                pycolmap.Image(name=name, camera_id=1, image_id=i + 1), pose
            )
            there = xyz @ pose.rotation.matrix().T + pose.translation
            pixels = CAMERA.img_from_cam(there) + rng.normal(0, 0.4, (len(there), 2))
            seen = (there[:, 2] > 1) & ((pixels > 0) & (pixels < SIZE)).all(axis=1)
            shown.append(np.flatnonzero(seen & (rng.random(len(seen)) < 0.95)))
            features.add(name, pixels[shown[-1]] - 0.5, np.ones(len(shown[-1])))
    (folder / "truth").mkdir()
    model.write_text(folder / "truth")
    numbers = list(itertools.combinations(range(len(PHOTOS)), 2))
    with MatchWriter(folder / "matches.h5", {}) as writer:
        for a, b in numbers:
            further = walls_between(a, b)
            place = {point: number for number, point in enumerate(shown[b].tolist())}
            alike = (shown[a] + further * on_wall) % len(xyz)
            alike[(further != 0) & (shown[a] % on_wall >= len(wall))] = -1
            matches = np.array([place.get(point, -1) for point in alike.tolist()])
            if further == 0 and (a < len(PHOTOS) - apart) != (b < len(PHOTOS) - apart):
                matches[:] = -1
            if alike_share < 1:
                matches[(further != 0) & (rng.random(len(matches)) > alike_share)] = -1
            writer.add(PHOTOS[a], PHOTOS[b], matches, (matches >= 0).astype(np.float32))
    pairs = [(PHOTOS[a], PHOTOS[b]) for a, b in numbers]
    matched = MatchedImages(folder / "images", folder / "features.h5", folder / "matches.h5", pairs)
    build_database(folder / "d.db", matched, CameraOptions(mode="single"), THREADS)
    return folder / "d.db"


@pytest.fixture(scope="session")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return courtyard(tmp_path_factory.mktemp("courtyard"))


@pytest.fixture(scope="session")
def unfolded(walls: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[MappingSummary, Path]:
    """The model of the courtyard."""
    beside = {path.name for path in walls.parent.iterdir()}
    out = tmp_path_factory.mktemp("unfolded") / "m"
    summary = map_database(walls, walls.parent / "images", out, THREADS)
    assert {path.name for path in walls.parent.iterdir()} == beside
    return summary, out


def between(pair: Sequence[int]) -> int:
    """Photos from one of a pair to the other, around the courtyard."""
    steps = abs(pair[0] - pair[1])
    return min(steps, len(PHOTOS) - steps)


def test_what_both_photos_should_show_tells_neighbours_from_photos_of_equal_walls(
    walls: Path,
) -> None:
    with open_database(walls) as db:
        shares = shown_by_both(db, 30)
    near = [share for pair, share in shares.items() if between(pair) <= 2]
    far = [share for pair, share in shares.items() if between(pair) > 2]
    assert (len(near), len(far)) == (32, 88)
    assert min(near) > max(far) + 0.05
    kept = trusted_pairs(shares, range(1, 17))
    assert max(map(between, kept)) <= 2
    assert len({photo for pair in kept for photo in pair}) >= 15


@pytest.mark.slow
def test_a_courtyard_of_equal_walls_does_not_fold(
    walls: Path, unfolded: tuple[MappingSummary, Path]
) -> None:
    summary, model = unfolded
    assert summary.components == (16,)
    comparison = compare(model, walls.parent / "truth")
    assert comparison.rotation_max < 1.0
    assert comparison.position_max < 2.0
    left_out = [(PHOTOS.index(a), PHOTOS.index(b)) for a, b in summary.look_alikes]
    assert len(left_out) > 60
    assert min(map(between, left_out)) >= 3
    assert not find_conflicts(read_model(model), walls).pairs


@pytest.mark.slow
def test_without_the_unfolding_the_courtyard_folds(
    walls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChosenTracks, "_unfolded", lambda *_: None)
    monkeypatch.setattr(ChosenTracks, "_of_places", lambda *_: None)
    map_database(walls, walls.parent / "images", tmp_path / "folded", THREADS)
    assert compare(tmp_path / "folded", walls.parent / "truth").rotation_max > 80
    assert len(find_conflicts(read_model(tmp_path / "folded"), walls).pairs) > 10


@pytest.mark.slow
def test_weaker_pairs_of_equal_walls_are_left_out_where_the_matches_contradict_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walls = courtyard(tmp_path, alike_share=0.25, points=600)
    monkeypatch.setattr(ChosenTracks, "_unfolded", lambda *_: None)
    monkeypatch.setattr(ChosenTracks, "_of_places", lambda *_: None)
    summary = map_database(walls, tmp_path / "images", tmp_path / "m", THREADS)
    assert compare(tmp_path / "m", tmp_path / "truth").rotation_max < 1.0
    assert summary.components == (16,)
    left_out = [(PHOTOS.index(a), PHOTOS.index(b)) for a, b in summary.look_alikes]
    assert len(left_out) > 60
    assert min(map(between, left_out)) >= 3
    assert misplaced_photos([read_model(tmp_path / "m")], walls, THREADS.min_inliers) == ()

    monkeypatch.setattr(ChosenTracks, "_by_strongest_pairs", lambda *_: None)
    monkeypatch.setattr(ChosenTracks, "_by_trusted_pairs", lambda *_: None)
    map_database(walls, tmp_path / "images", tmp_path / "folded", THREADS)
    assert compare(tmp_path / "folded", tmp_path / "truth").rotation_max > 80
    assert len(misplaced_photos([read_model(tmp_path / "folded")], walls, THREADS.min_inliers)) > 3


@pytest.mark.slow
def test_right_parts_are_taken_in_place_of_a_wrong_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but pairs of equal walls connects six of the photos with the others."""
    walls = courtyard(tmp_path, alike_share=0.25, apart=6, points=600)
    monkeypatch.setattr(ChosenTracks, "_unfolded", lambda *_: None)
    monkeypatch.setattr(ChosenTracks, "_of_places", lambda *_: None)
    summary = map_database(walls, tmp_path / "images", tmp_path / "m", THREADS)
    assert summary.components == (10, 6)
    assert compare(tmp_path / "m", tmp_path / "truth").rotation_max < 1.0
    assert compare(tmp_path / "m_parts" / "2", tmp_path / "truth").rotation_max < 1.0
    assert summary.misplaced == ()
    assert summary.look_alikes
    assert summary.left_out == ()  # the six are in a model of their own
    monkeypatch.setattr(chosen_tracks, "_DOUBTED", 0)
    monkeypatch.setattr(chosen_tracks, "_FEW", 0)
    whole = map_database(walls, tmp_path / "images", tmp_path / "whole", THREADS)
    assert whole.components == (16,)
    assert compare(tmp_path / "whole", tmp_path / "truth").rotation_max > 20


def test_pairs_of_places_show_clearly_more_than_those_that_disagree() -> None:
    """A photo of which nothing tells this keeps the pair with most matches."""
    shares = {(1, 2): 0.9, (3, 4): 0.8, (2, 3): 0.4, (1, 4): 0.3, (4, 5): 0.0, (1, 5): 0.0}
    counts = dict.fromkeys(shares, 100) | {(4, 5): 900}
    places = {(1, 2), (3, 4), (4, 5)}
    assert pairs_of_places(shares, counts, [(4, 1)]) == places
    assert pairs_of_places(shares, counts, [(1, 4), (2, 3), (3, 4)]) == places
    assert pairs_of_places(shares, counts, [(1, 2)]) is None  # nothing is above
    even = shares | {(1, 3): 0.5, (2, 4): 0.6, (2, 5): 0.7}
    assert pairs_of_places(even, counts | dict.fromkeys(even, 1), [(4, 1)]) is None


@pytest.mark.slow
def test_places_that_only_look_alikes_connect_become_models_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six of the photos match the others as if each showed the same wall, and at all its points."""
    walls = courtyard(tmp_path, apart=6, points=600)
    monkeypatch.setattr(ChosenTracks, "_by_strongest_pairs", lambda *_: None)
    monkeypatch.setattr(ChosenTracks, "_by_trusted_pairs", lambda *_: None)
    summary = map_database(walls, tmp_path / "images", tmp_path / "m", THREADS)
    assert summary.components == (10, 6)
    assert compare(tmp_path / "m", tmp_path / "truth").rotation_max < 1.0
    assert compare(tmp_path / "m_parts" / "2", tmp_path / "truth").rotation_max < 1.0
    left_out = [(PHOTOS.index(a), PHOTOS.index(b)) for a, b in summary.look_alikes]
    assert all(between(pair) > 2 or (pair[0] < 10) != (pair[1] < 10) for pair in left_out)
    assert sum((a < 10) != (b < 10) for a, b in left_out) > 20
    monkeypatch.setattr(ChosenTracks, "_of_places", lambda *_: None)
    whole = map_database(walls, tmp_path / "images", tmp_path / "whole", THREADS)
    assert whole.components[0] > 10
    assert compare(tmp_path / "whole", tmp_path / "truth").rotation_max > 20


@pytest.mark.slow
def test_where_the_photos_that_disagree_stay_together_the_model_stays(
    walls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an object that was turned before a wall: leaving pairs out changes nothing."""
    monkeypatch.setattr("edm_hloc.mapping.unfolding.stay_together", lambda _, pairs: len(pairs))
    completed = []
    complete = chosen_tracks.complete_model
    monkeypatch.setattr(
        chosen_tracks, "complete_model", lambda *a: completed.append(1) or complete(*a)
    )
    summary = map_database(walls, walls.parent / "images", tmp_path / "m", THREADS)
    assert summary.look_alikes == ()
    model = read_model(tmp_path / "m")
    assert find_conflicts(model, walls).pairs
    assert len(completed) <= 1  # nothing is completed that is not kept
    assert model.num_reg_images() == 16


def test_a_model_that_the_kept_pairs_fit_is_not_mapped_once_more(
    walls: Path, unfolded: tuple[MappingSummary, Path], tmp_path: Path
) -> None:
    """As with an object that was turned before a wall: its pairs that are kept all agree."""
    database = tmp_path / "database.db"
    shutil.copyfile(walls, database)
    disagreeing = [(1, 5), (2, 6), (3, 7)]

    def never(_: Path) -> pycolmap.Reconstruction | None:
        raise AssertionError("mapped once more")

    right = read_model(unfolded[1])
    assert unfold(database, tmp_path, right, disagreeing, never, 30) is None

    turned = [image for image in right.images.values() if image.image_id > 8]
    assert len(turned) == 8
    flip = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0.0, 0.0, 1.0, 0.0])), np.zeros(3))
    for image in turned:
        image.frame.rig_from_world = flip * image.cam_from_world()
    with pytest.raises(AssertionError, match="once more"):
        unfold(database, tmp_path, right, disagreeing, never, 30)

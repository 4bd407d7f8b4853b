"""Folded models: photos of equal walls are told from photos of one wall by what is not repeated."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import open_database
from edm_hloc.mapping.look_alikes import (
    ConflictSummary,
    ViewAgreement,
    find_conflicts,
    view_agreements,
)

SIZE = (640, 480)
CAMERA = pycolmap.Camera(
    model="PINHOLE", width=SIZE[0], height=SIZE[1], params=[500, 500, 320, 240], camera_id=1
)


def wall(rng: np.random.Generator, count: int, depth: float = 5.0) -> np.ndarray:
    """Points on a wall of 6 m × 4 m before the cameras."""
    return np.column_stack([*rng.uniform((-3, -2), (3, 2), (count, 2)).T, np.full(count, depth)])


def model_of(
    centres: Sequence[Sequence[float]],
    seen_by: Mapping[tuple[int, ...], np.ndarray],
    turns: Sequence[float] = (),
) -> pycolmap.Reconstruction:
    """Cameras that look along z, turned about y; points with the numbers of their viewers."""
    poses = []
    for centre, turn in zip(centres, turns or [0.0] * len(centres), strict=True):
        rotation = pycolmap.Rotation3d(np.array([0.0, turn, 0.0]))
        poses.append(pycolmap.Rigid3d(rotation, -(rotation.matrix() @ np.array(centre))))
    observed: list[list[np.ndarray]] = [[] for _ in poses]
    tracks = []
    for viewers, points in seen_by.items():
        for point in points:
            track = []
            for viewer in viewers:
                pixel = CAMERA.img_from_cam((poses[viewer] * point)[None])[0]
                if (pixel > 0).all() and (pixel < SIZE).all():
                    track.append((viewer, len(observed[viewer])))
                    observed[viewer].append(pixel)
            if len(track) >= 2:
                tracks.append((point, track))
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    for number, pose in enumerate(poses):
        points2d = pycolmap.Point2DList([pycolmap.Point2D(pixel) for pixel in observed[number]])
        image = pycolmap.Image(
            name=f"{number}.jpg", image_id=number + 1, camera_id=1, points2D=points2d
        )
        model.add_image_with_trivial_frame(image, pose)
    for point, viewers_and_numbers in tracks:
        elements = [pycolmap.TrackElement(v + 1, n) for v, n in viewers_and_numbers]
        model.add_point3D(point, pycolmap.Track(elements), np.zeros(3, np.uint8))
    return model


def agreements_of(
    model: pycolmap.Reconstruction,
    folder: Path,
    unmatched: Collection[tuple[int, int]] = (),
    further: Mapping[tuple[int, int], Sequence[tuple[int, int]]] | None = None,
) -> list[ViewAgreement]:
    """The agreements with a database whose matches are the observations of a point by both photos.

    Args:
        model: see `model_of`.
        folder: of the database.
        unmatched: ids of the images of pairs without matches.
        further: verified matches that became no points, by the ids of the images.
    """
    path = folder / "database.db"
    path.unlink(missing_ok=True)
    pycolmap.Database.open(path).close()
    seen = {
        image_id: {p.point3D_id: k for k, p in enumerate(image.points2D) if p.has_point3D()}
        for image_id, image in model.images.items()
    }
    with open_database(path) as db:
        for camera in model.cameras.values():
            db.write_camera(camera, use_camera_id=True)
        for image_id, image in sorted(model.images.items()):
            bare = pycolmap.Image(name=image.name, image_id=image_id, camera_id=image.camera_id)
            db.write_image(bare, use_image_id=True)
            points = np.array([p.xy for p in image.points2D], np.float32).reshape(-1, 2)
            db.write_keypoints(image_id, points)
        for a, b in itertools.combinations(sorted(seen), 2):
            common = [(seen[a][k], seen[b][k]) for k in seen[a].keys() & seen[b].keys()]
            common += (further or {}).get((a, b), [])
            if common and (a, b) not in unmatched:
                geometry = pycolmap.TwoViewGeometry()
                geometry.inlier_matches = np.array(common, np.uint32)
                db.write_two_view_geometry(a, b, geometry)
    return view_agreements(model, path)


def conflicts_of(model: pycolmap.Reconstruction, folder: Path) -> ConflictSummary:
    agreements_of(model, folder)  # makes the database
    return find_conflicts(model, folder / "database.db")


FOUR = [[-0.3, 0.0, 0.0], [-0.1, 0.1, 0.0], [0.1, 0.0, 0.1], [0.3, 0.1, 0.0]]
EIGHT = [*FOUR, *(np.array(FOUR) + 0.05).tolist()]


def folded(door: float) -> pycolmap.Reconstruction:
    """Photos 0 to 3 of one wall and 4 to 7 of another lie on each other.

    Args:
        door: width in metres of what each wall has of its own, before a part of the wall.
    """
    rng = np.random.default_rng(0)
    every = wall(rng, 2500)
    hidden = np.abs(every[:, 0]) < door / 2
    doors = [wall(rng, 700) * [door / 6, 1, 1] for _ in range(2)]
    return model_of(
        EIGHT,
        {tuple(range(8)): every[~hidden], (0, 1, 2, 3): doors[0], (4, 5, 6, 7): doors[1]},
    )


def test_photos_of_two_equal_walls_conflict_and_those_of_one_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = folded(door=2.8)
    agreements = agreements_of(model, tmp_path)
    shares = {agreement.images: agreement.share for agreement in agreements}
    assert len(shares) == 8 * 7 / 2
    across = {(a, b) for a, b in shares if (a <= 4) != (b <= 4)}
    assert min(shares[pair] for pair in shares.keys() - across) > 0.97
    # Of the width 2.8 of 6, which counts four times as it is in 4 photos and not in 8.
    expected = 3.2 / (3.2 + 4 * 2.8)
    assert max(shares[pair] for pair in across) == pytest.approx(expected, abs=0.08)
    conflicts = find_conflicts(model, tmp_path / "database.db")
    names = {(f"{a - 1}.jpg", f"{b - 1}.jpg") for a, b in across}
    assert set(conflicts.pairs) == names
    assert f"{len(names)} of {len(shares)} pairs of photos" in caplog.text
    assert "show different things" in caplog.text
    assert conflicts.compared == len(shares)
    assert not conflicts_of(folded(door=0.2), tmp_path).pairs  # too little to tell


def test_photos_that_share_nothing_that_counts_agree_by_0(tmp_path: Path) -> None:
    """What photos 0 and 1 have in common no third photo sees, and of what 2 to 5 confirm, below it,
    nothing is in both."""
    rng = np.random.default_rng(4)
    left, right, above = (wall(rng, 900) for _ in range(3))
    left, right, above = left[left[:, 1] > 0], right[right[:, 1] > 0], above[above[:, 1] < -0.5]
    seen = {(0, 1): above, (0, 2, 3): left, (1, 4, 5): right}
    found = agreements_of(model_of(EIGHT[:6], seen), tmp_path)
    shares = {a.images: a.share for a in found}
    assert shares[1, 2] == 0


def test_a_model_without_equal_places_has_no_conflicts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    model = model_of(
        EIGHT,
        {
            tuple(range(8)): wall(rng, 500),
            (0, 1, 2): wall(rng, 60),  # matched in some of the photos only, as happens everywhere
            (1, 3, 5): wall(rng, 60),
            (2, 4, 6): wall(rng, 60),
            (0, 6, 7): wall(rng, 60),
        },
    )
    assert not conflicts_of(model, tmp_path).pairs


@pytest.mark.parametrize(("depth", "hidden"), [(2.0, True), (5.0, False)])
def test_what_is_hidden_need_not_be_seen(depth: float, hidden: bool, tmp_path: Path) -> None:
    """What four photos see, and four others do not: a pillar is before it there, or a board on it.

    Tracks of both are as long, so that none counts more.
    """
    rng = np.random.default_rng(2)
    behind = wall(rng, 900) * [0.35, 1, 1]
    pillar = wall(rng, 900) * [0.35, 1, 1] * (depth / 5)
    sides = wall(rng, 1500)
    sides = sides[np.abs(sides[:, 0]) > 1.1]
    seen = {tuple(range(8)): sides, (0, 1, 2, 3): behind, (4, 5, 6, 7): pillar}
    model = model_of(EIGHT, seen)
    agreement = next(a for a in agreements_of(model, tmp_path) if a.images == (1, 5))
    assert (agreement.shares[0] > 0.95) == hidden  # of what photo 1 sees, in photo 5
    assert agreement.share == min(agreement.shares)


@pytest.mark.parametrize(
    ("angle", "few", "many"), [(6, 0.4, 0.4), (15, 0.2, None), (25, None, None)]
)
def test_only_photos_from_the_same_side_are_compared(
    angle: float, few: float | None, many: float | None, tmp_path: Path
) -> None:
    """Those up to 20° apart where few others are compared, with a lower limit."""
    rng = np.random.default_rng(3)
    points = wall(rng, 1800) * [0.25, 1, 1]
    for others, limit in ((1, few), (5, many)):
        turned = np.radians([0.0, *(angle + 0.6 * np.arange(others))])
        centres = [[5 * np.sin(t), 0.0, 5 - 5 * np.cos(t)] for t in turned]
        if others == 1:
            turned, centres = np.append(turned, turned[0]), [*centres, [0.05, 0.0, 0.0]]
        seen = {tuple(range(len(centres))): points}
        found = agreements_of(model_of(centres, seen, turned.tolist()), tmp_path)
        limits = {agreement.images: agreement.limit for agreement in found}
        assert limits.get((1, 2)) == limit, others


def test_models_without_points_or_photos(tmp_path: Path) -> None:
    assert agreements_of(pycolmap.Reconstruction(), tmp_path) == []
    assert not conflicts_of(model_of(FOUR, {}), tmp_path).pairs


def test_pairs_that_were_not_matched_say_nothing(tmp_path: Path) -> None:
    model = folded(door=2.8)
    across = {(a, b) for a in range(1, 5) for b in range(5, 9)}
    pairs = {agreement.images for agreement in agreements_of(model, tmp_path, across)}
    assert len(pairs) == 2 * 4 * 3 / 2
    assert not pairs & across


def test_where_tracks_break_matches_show_that_photos_show_the_same(tmp_path: Path) -> None:
    """Points of the right half became two each, of photos 0 to 3 and of 4 to 7."""
    rng = np.random.default_rng(5)
    left, right = wall(rng, 1500), wall(rng, 1500)
    left, right = left[left[:, 0] < 0], right[right[:, 0] > 0]
    model = model_of(
        EIGHT, {tuple(range(8)): left, (0, 1, 2, 3): right, (4, 5, 6, 7): right + 1e-3}
    )
    broken = agreements_of(model, tmp_path)
    share = {agreement.images: agreement.share for agreement in broken}
    assert share[1, 5] < 0.3
    assert find_conflicts(model, tmp_path / "database.db").pairs
    xyz = {
        i: np.array([model.points3D[p.point3D_id].xyz for p in image.points2D])
        for i, image in model.images.items()
    }
    further = {}
    for a, b in itertools.product(range(1, 5), range(5, 9)):
        apart = np.linalg.norm(xyz[a][:, None] - xyz[b][None], axis=2)
        further[a, b] = np.argwhere((apart > 0) & (apart < 2e-3)).tolist()
    whole = agreements_of(model, tmp_path, further=further)
    assert min(agreement.share for agreement in whole) > 0.9
    assert not find_conflicts(model, tmp_path / "database.db").pairs

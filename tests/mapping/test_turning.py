"""A camera that only turned gives no model; one that moved along a plane gives its model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.colmap import open_database
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping import mappers
from edm_hloc.mapping.database import build_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import parts_folder
from edm_hloc.mapping.turning import only_turned
from tests.mapping.walk import Walk

THREADS = MappingOptions(threads=1)
GLOBAL = MappingOptions(threads=1, mapper="global")
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]


def around(rng: np.random.Generator, thickness: float) -> np.ndarray:
    return rng.uniform(-1, 1, (5000, 3)) * [12, 9, thickness] + [0, 0, 10]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("known", "distortion", "options"),
    [(False, 0.0, THREADS), (True, -0.08, THREADS), (False, -0.08, THREADS), (True, 0.0, GLOBAL)],
)
def test_a_camera_that_only_turned_gives_no_model(
    tmp_path: Path, seed: int, known: bool, distortion: float, options: MappingOptions
) -> None:
    rng = np.random.default_rng(seed)
    turns = rng.normal(0, 1.5, (5, 3)) + np.outer(np.arange(-2, 3), [5.0, 0, 0])
    walk = Walk(tmp_path / "w", around(rng, 6.0), turns, np.zeros((5, 3)), distortion=distortion)
    with pytest.raises(EdmHlocError, match=r"turned without moving.* 10 verified.*no model"):
        walk.map(options, known=known)
    assert not (tmp_path / "w" / "model").exists()


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("focal", [3.5, pytest.param(5.0, marks=pytest.mark.slow), 6.5])
def test_a_panorama_through_a_tele_lens_gives_no_model(
    tmp_path: Path, seed: int, focal: float
) -> None:
    """Focal lengths in widths of a photo, and unknown: neighbouring photos are nearly shifted."""
    rng = np.random.default_rng(seed)
    half = np.degrees(np.arctan(0.5 / focal))  # of the field of view; the panorama has 2.8 widths
    turns = rng.normal(0, 0.1 * half, (5, 3)) + np.outer(np.arange(-2, 3), [0.9 * half, 0, 0])
    depth = rng.uniform(5, 15, (6000, 1))
    rays = rng.uniform(-1, 1, (6000, 2)) * [np.tan(np.radians(3 * half)), 0.6 / focal]
    points = np.hstack([rays, np.ones((6000, 1))]) * depth
    walk = Walk(tmp_path / "w", points, turns, np.zeros((5, 3)), focal=640 * focal)
    with pytest.raises(EdmHlocError, match=r"turned without moving.* no model"):
        walk.map(THREADS)


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_a_camera_on_a_rail_along_a_flat_wall_did_not_turn(tmp_path: Path, jitter: float) -> None:
    """Its photos are shifted too, and its focal length is unknown too."""
    rng = np.random.default_rng(1)
    centres = np.outer(np.arange(-2, 3), [2.0, 0, 0]) + rng.normal(0, 0.4 * jitter, (5, 3))
    walk = Walk(tmp_path / "w", around(rng, 0.0), rng.normal(0, jitter, (5, 3)), centres)
    build_database(tmp_path / "d.db", walk.matched, CameraOptions(mode="single"), THREADS)
    with open_database(tmp_path / "d.db") as db:
        assert not only_turned(db)


@pytest.mark.slow
@pytest.mark.parametrize("known", [False, True])
def test_one_part_only_turned_and_one_moved(tmp_path: Path, known: bool) -> None:
    """The part that moved is the model; the photos of the other are named."""
    rng = np.random.default_rng(4)
    steps = np.arange(-2, 3)
    here, behind = around(rng, 6.0), around(rng, 6.0) - [0, 0, 20]
    turns = rng.normal(0, 1.5, (10, 3))
    turns[:5] += np.outer(steps, [5.0, 0, 0])
    turns[5:] += np.array([180.0, 0, 0]) + np.outer(steps, [5.0, 0, 0])
    centres = np.concatenate([np.zeros((5, 3)), np.outer(steps, [1.0, 0.2, 0.0])])
    walk = Walk(tmp_path / "w", np.concatenate([here, behind]), turns, centres)
    _, out = walk.map(THREADS, known=known)
    assert walk.mapped.turned == tuple(walk.names[:5])
    assert walk.mapped.components == (5,)
    assert not parts_folder(out).exists()
    found = compare(out, tmp_path / "w" / "truth")
    assert found.registered == 5
    assert found.rotation_max < 0.5
    assert set(walk.mapped.unregistered) == set(walk.names[:5])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("thickness", [0.0, 3.0])
def test_a_camera_that_moved_along_a_wall_gives_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, thickness: float
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(mappers, "only_turned", lambda *a: asked.append(a) or only_turned(*a))
    rng = np.random.default_rng(seed)
    steps = np.arange(-2, 3)
    centres = rng.normal(0, 0.3, (5, 3)) + np.outer(steps, [1.0, 0.0, 0.0])
    turns = rng.normal(0, 2.0, (5, 3)) - np.outer(steps, [5.0, 0, 0])
    walk = Walk(tmp_path / "w", around(rng, thickness), turns, centres)
    imported, out = walk.map(THREADS, known=True)
    assert imported.still == ()
    assert len(asked) == 1  # not again of a model of all photos
    found = compare(out, tmp_path / "w" / "truth")
    assert found.registered == 5
    assert found.rotation_max < 0.5
    assert found.position_max < 5.0

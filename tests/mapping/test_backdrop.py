"""The background before which an object turns is left out; scenes that stand still are not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from edm_hloc.evaluation.models import compare
from edm_hloc.mapping.backdrop import Backdrop, find_backdrops
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pairs.rules import Pair
from tests.mapping.test_still import AHEAD, SIZE, Points, matched_in, photos
from tests.mapping.walk import Walk


def backdrops_in(found: Points) -> dict[str, Backdrop]:
    return found_in(found)[0]


def found_in(found: Points) -> tuple[dict[str, Backdrop], list[Pair]]:
    names = [str(i) for i in range(len(found))]
    pairs = list(itertools.combinations(names, 2))
    return find_backdrops(pairs, matched_in(found), dict.fromkeys(names, SIZE))


@pytest.mark.parametrize("seed", range(3))
def test_the_background_of_a_turntable_is_found(seed: int) -> None:
    found = photos("turntable", np.random.default_rng(seed))
    backdrops = backdrops_in(found)
    assert sorted(backdrops) == list("012345")
    still = np.linalg.norm(found[1] - found[0], axis=1) < 1.5
    moving = np.linalg.norm(found[1] - found[0], axis=1) > 10
    in_first = backdrops["0"].contains(np.nan_to_num(found[0]))
    assert in_first[still & (np.abs(found[0][:, 0] - 320) > 220)].mean() > 0.95
    assert in_first[moving].mean() < 0.2  # the background is seen through the object


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aimed", [0.3, 1.0])
def test_the_camera_may_be_aimed_anew(aimed: float, seed: int) -> None:
    found = photos("opaque turntable", np.random.default_rng(seed), aimed)
    backdrops = backdrops_in(found)
    assert sorted(backdrops) == list("012345")
    for pixels, backdrop in zip(found, backdrops.values(), strict=True):
        aside = np.abs(pixels[:, 0] - 320)
        assert backdrop.contains(pixels[aside > 250]).mean() > 0.9
        assert backdrop.contains(pixels[aside < 100]).mean() < 0.2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aimed", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "kind", ["tripod", "duplicates", "straight on", "along a plain", "orbit", "people"]
)
def test_a_scene_has_no_background_to_leave_out(kind: str, aimed: float, seed: int) -> None:
    assert backdrops_in(photos(kind, np.random.default_rng(seed), aimed)) == {}


def test_what_photos_from_elsewhere_show_is_the_scene() -> None:
    """Something turns before a camera on a tripod, and others walk round in the same room."""
    rng = np.random.default_rng(0)
    found = photos("turntable", rng)
    assert backdrops_in(found)
    assert found_in(found)[1] == []
    points = np.random.default_rng(0).uniform(-1, 1, (4000, 3)) * [8, 6, 3]
    for i in range(1, 4):
        there = Rotation.from_euler("y", 9 * i, degrees=True).apply(points) + AHEAD
        there[np.hypot(points[:, 0], points[:, 2]) < 2.5, 2] = 0  # has turned on since
        pixels = 640 * there[:, :2] / np.maximum(there[:, 2:], 1e-6) + [320, 240]
        pixels[(there[:, 2] < 1) | np.any((pixels < 0) | (pixels > [639, 479]), axis=1)] = np.nan
        found.append(pixels)
    backdrops, kept = found_in(found)
    assert backdrops == {}
    assert set(kept) <= set(itertools.combinations("012345", 2))
    assert len(kept) >= 5


def test_one_photo_from_elsewhere_does_not_make_a_background_the_scene() -> None:
    """Where most matches move, what turns is the scene, whoever else saw the background."""
    found = photos("turntable", np.random.default_rng(0))
    still = np.linalg.norm(found[1] - found[0], axis=1) < 1.5
    background = np.flatnonzero(still)[::8]
    few = [np.full_like(pixels, np.nan) for pixels in found]
    for pixels, of_all in zip(few, found, strict=True):
        pixels[~still], pixels[background] = of_all[~still], of_all[background]
    elsewhere = np.full_like(found[0], np.nan)
    elsewhere[background] = 0.9 * found[0][background] + [20.0, 30.0]
    assert sorted(backdrops_in([*few, elsewhere])) == list("012345")
    nearer = np.random.default_rng(1).uniform(0.7, 1.0, (len(still), 1))  # each by another amount
    assert backdrops_in([*found, np.where(still[:, None], nearer * found[0] + 20, np.nan)]) == {}


def test_a_turned_object_is_reconstructed_before_a_background_that_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    angles = 12.0 * np.arange(8)
    points = rng.normal(0, 1, (1500, 3))
    points *= 0.8 / np.linalg.norm(points, axis=1, keepdims=True)
    turns = np.stack([angles, np.zeros(8), np.zeros(8)], axis=1)
    R = Rotation.from_euler("yxz", turns, degrees=True)
    walk = Walk(tmp_path / "w", points, turns, R.inv().apply([0.0, 0.0, -5.0]), backdrop=1500)
    imported, out = walk.map(MappingOptions(threads=1))
    assert imported.backdrop is not None
    assert imported.backdrop.photos == tuple(walk.names)
    assert imported.backdrop.matches >= 0.95 * 28 * 1500
    assert imported.still == ()
    found = compare(out, tmp_path / "w" / "truth")
    assert found.registered == 8
    assert found.rotation_max < 0.5
    assert found.position_max < 1.0

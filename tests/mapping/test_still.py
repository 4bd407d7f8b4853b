"""What stays at the same pixels is left out; scenes that stand still are not."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from edm_hloc.cli.summaries import print_reconstruction
from edm_hloc.evaluation.models import compare
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.still import Matched, StillPlaces, find_still_places
from edm_hloc.pipelines.run import Run
from tests.mapping.walk import Walk

SIZE = (640, 480)
AHEAD = np.array([0.0, 0.0, 10.0])
Points = list[np.ndarray]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overlay", [60, 400])
def test_a_strip_in_every_photo_is_left_out(tmp_path: Path, seed: int, overlay: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(-2, 3)
    centres = rng.normal(0, 0.3, (5, 3)) + np.outer(steps, [1.0, 0.0, 0.0])
    turns = rng.normal(0, 2.0, (5, 3)) - np.outer(steps, [5.0, 0, 0])
    points = rng.uniform(-1, 1, (5000, 3)) * [12, 9, 3] + [0, 0, 10]
    walk = Walk(tmp_path / "w", points, turns, centres, overlay=overlay)
    imported, out = walk.map(MappingOptions(threads=1))
    (still,) = imported.still
    assert still.certain
    assert still.pairs >= 9
    left, top, right, bottom = still.box
    assert (left <= 20, 380 <= top <= 420, right >= 620, bottom >= 460) == (True,) * 4
    assert 0.97 * 10 * overlay <= imported.left_out <= 10 * overlay + 5
    found = compare(out, tmp_path / "w" / "truth")
    assert found.registered == 5
    assert found.rotation_max < 0.5
    assert found.position_max < 5.0


def photos(kind: str, rng: np.random.Generator, aimed: float = 0.0) -> Points:
    """(P, 2) pixels of the same points in each of 6 photos, NaN where they are not seen.

    Args:
        kind: what moves how.
        rng: for the points, the noise and the camera's turns.
        aimed: standard deviation of these turns in degrees.
    """
    points = rng.uniform(-1, 1, (4000, 3)) * [8, 6, 3]
    if kind == "straight on":
        points = rng.uniform([-8, -6, 0], [8, 2, 200], (8000, 3))
        points[::2, 0] = np.sign(points[::2, 0]) * 8
    if kind == "along a plain":  # whose far end stays where it is
        far = np.exp(rng.uniform(np.log(6), np.log(6000), 6000))
        points = np.stack([rng.uniform(-0.6, 0.6, 6000) * far, np.full(6000, 2.0), far], axis=1)
    people = np.repeat(rng.normal(0, 0.7, (10, 3)) * [1, 0, 1], 100, axis=0)
    found = []
    for i in range(6):
        there = points + AHEAD
        if kind == "people":
            there[:1000] += i * people
        elif kind.endswith("turntable"):  # whose background is seen through it, unless opaque
            inner = np.hypot(points[:, 0], points[:, 2]) < 2.5
            turn = Rotation.from_euler("y", 20 * i, degrees=True)
            there[inner] = turn.apply(points[inner]) + AHEAD
            if kind == "opaque turntable":
                there[~inner & (np.abs(there[:, 0]) < 0.26 * there[:, 2]), 2] = 0  # not seen
        elif kind == "straight on":
            there = points - [0.0, 0.0, 6.0 * i]
        elif kind == "along a plain":
            there = points - [1.0 * i, 0.0, 0.0]
        elif kind == "orbit":  # always towards the same point
            there = Rotation.from_euler("y", 9 * i, degrees=True).apply(points) + AHEAD
        there = Rotation.from_euler("xyz", rng.normal(0, aimed, 3), degrees=True).apply(there)
        pixels = 640 * there[:, :2] / np.maximum(there[:, 2:], 1e-6) + [320, 240]
        pixels += rng.normal(0, 0.0 if kind == "duplicates" else 0.3, pixels.shape)
        pixels[(there[:, 2] < 1) | np.any((pixels < 0) | (pixels > [639, 479]), axis=1)] = np.nan
        found.append(pixels)
    return found


def still_in(found: Points) -> list[StillPlaces]:
    names = [str(i) for i in range(len(found))]
    pairs = list(itertools.combinations(names, 2))
    return find_still_places(pairs, matched_in(found), dict.fromkeys(names, SIZE))


def matched_in(found: Points) -> Matched:
    """Gives the matches of photos that are called 0, 1, …"""

    def matched(pair: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
        both = [found[int(name)] for name in pair]
        seen = ~np.isnan(np.concatenate(both, axis=1)).any(axis=1)
        return both[0][seen][:1500], both[1][seen][:1500]

    return matched


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["tripod", "duplicates", "straight on", "along a plain", "orbit"])
def test_a_scene_that_stands_still_is_kept(kind: str, seed: int) -> None:
    assert still_in(photos(kind, np.random.default_rng(seed))) == []


@pytest.mark.parametrize("kind", ["people", "turntable"])
def test_where_most_of_a_photo_stays_it_is_said_but_kept(kind: str) -> None:
    (places,) = still_in(photos(kind, np.random.default_rng(0)))
    summary = places.summary()
    assert not summary.certain
    assert 0.5 < summary.share < 0.8
    assert places.area > 0.5


def test_the_summary_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = {"box": [0, 400, 640, 480], "share": 0.31, "certain": True}
    counts = dict.fromkeys(("verified_pairs", "pairs", "inliers", "matches"), 9)
    statistics = dict.fromkeys(
        ("registered", "points", "mean_track_length", "mean_reprojection_error"), 3
    )
    matching = {"matched": 9, "resumed": 0, "seconds": 1, "encoded": 3, "skipped_pairs": 0}
    results = {
        "matching": {**matching, "skipped": {}, "rotated": []},
        "keypoints": {"keypoints": 9, "images": 3, "matches": 9},
        "imported": {"still": [still], "left_out": 4615},
        "verified": counts,
        "mapped": {
            "statistics": statistics,
            "images": 5,
            "unregistered": ["d", "e"],
            "components": [3],
            "turned": ["d", "e"],
        },
    }
    print_reconstruction(Run(tmp_path, {}, results=results), 1.0)
    printed = capsys.readouterr().out
    assert "31% of the matches stay at the same pixels (x 0 to 640, y 400 to 480)" in printed
    assert "4,615 of the matches of all pairs were left out" in printed
    assert "2 photos were taken from one place" in printed
    still["certain"] = False
    results["imported"]["backdrop"] = {"photos": ["a", "b"], "matches": 1234}
    print_reconstruction(Run(tmp_path, {}, results=results), 1.0)
    printed = capsys.readouterr().out
    assert "kept, as they may be the scene: mask (--masks)" in printed
    assert "Background  of 2 photos stays as it is" in printed
    assert "1,234 matches there were left out" in printed

"""Keypoints that agree with the matches of all their pairs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edm_hloc.base.journal import Journal
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints import adjustment, aggregation
from edm_hloc.keypoints.adjustment import (
    CONSTRAINT,
    PairConstraints,
    adjust_keypoints,
    pair_constraints,
)
from edm_hloc.keypoints.aggregation import (
    KeypointWriters,
    ReferenceKeypoints,
    aggregate_into,
)
from edm_hloc.keypoints.quantization import QuantizationConfig
from tests.keypoints.test_aggregation import RawInMemory, ReferenceInMemory, Sink, assert_same

NAMES = ("a", "b", "c", "d")
CONFIG = QuantizationConfig(2, 2, 8192, "adjusted")
# b is turned by a quarter, c twice as large, d upside down and squeezed
VIEWS = {
    "a": np.eye(2),
    "b": np.array([[0.0, -1.0], [1.0, 0.0]]),
    "c": np.diag([2.0, 2.0]),
    "d": np.diag([-1.0, -0.7]),
}


def view(name: str, points: np.ndarray) -> np.ndarray:
    return points @ VIEWS[name].T + 1000


def corners_of_a_plane(seed: int = 0, wrong: float = 0.0) -> tuple[RawInMemory, np.ndarray]:
    """Matches of a plane's corners (N, 2), that each image finds half a pixel beside the truth.

    Like refined matches, each pair has the corners of either image, exactly where they are in the
    other.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(15)), axis=2).reshape(-1, 2) * 11.0
    points = grid + rng.uniform(-2, 2, grid.shape)
    found = {name: view(name, points) + rng.normal(0, 0.4, points.shape) for name in NAMES}
    raw = RawInMemory()
    for a, b in itertools.combinations(NAMES, 2):
        onto = VIEWS[b] @ np.linalg.inv(VIEWS[a])
        into = np.linalg.inv(onto)
        in_a = np.concatenate([found[a], (found[b] - 1000) @ into.T + 1000])
        in_b = np.concatenate([(found[a] - 1000) @ onto.T + 1000, found[b]])
        swapped = rng.random(len(in_b)) < wrong
        in_b[swapped] = in_b[swapped] + rng.normal(0, 30, (swapped.sum(), 2))
        scores = rng.uniform(0.5, 1, len(in_a))
        raw[a, b] = Matches(*(x.astype(np.float32) for x in (in_a, in_b, scores)))
    return raw, points


def quantized(
    raw: RawInMemory, config: QuantizationConfig, reference: ReferenceInMemory | None = None
) -> tuple[Sink, Sink]:
    features, matches = Sink(), Sink()
    references = ReferenceKeypoints([] if reference is None else [reference])
    aggregate_into(raw, list(raw), KeypointWriters(features, matches), config, references)
    return features, matches


def disagreement(features: Sink, matches: Sink) -> np.ndarray:
    """How far matched keypoints are from showing the same point of the plane, pixels of a."""
    away = []
    for (a, b), (matches0, _) in matches.items():
        ids = np.flatnonzero(matches0 >= 0)
        plane = [
            (keypoints - 1000) @ np.linalg.inv(VIEWS[name]).T
            for name, keypoints in ((a, features[a][0][ids]), (b, features[b][0][matches0[ids]]))
        ]
        away.append(np.linalg.norm(plane[0] - plane[1], axis=1))
    return np.concatenate(away)


@pytest.mark.parametrize("wrong", [0.0, 0.1])
def test_matched_keypoints_come_to_show_the_same_point(wrong: float) -> None:
    raw, _ = corners_of_a_plane(wrong=wrong)
    means, matches = quantized(raw, replace(CONFIG, position="mean"))
    adjusted, same_matches = quantized(raw, CONFIG)
    assert_same(matches, same_matches)
    assert adjusted.keys() == means.keys()
    for name, (keypoints, scores) in adjusted.items():
        assert keypoints.dtype == np.float32
        np.testing.assert_array_equal(scores, means[name][1])
        moved = np.abs(keypoints - means[name][0])
        assert 0.01 < np.median(moved) < 0.5
        assert moved.max() <= CONFIG.max_error + 1e-3
    before, after = disagreement(means, matches), disagreement(adjusted, matches)
    assert np.median(before) > 0.15
    assert np.median(after) < np.median(before) / 3


def test_where_matches_agree_nothing_moves() -> None:
    rng = np.random.default_rng(3)
    points = np.stack(np.meshgrid(np.arange(20), np.arange(15)), axis=2).reshape(-1, 2) * 11.0
    raw = RawInMemory()
    for a, b in itertools.combinations(NAMES, 2):
        arrays = view(a, points), view(b, points), rng.uniform(0.5, 1, len(points))
        raw[a, b] = Matches(*(x.astype(np.float32) for x in arrays))
    means, _ = quantized(raw, replace(CONFIG, position="mean"))
    adjusted, _ = quantized(raw, CONFIG)
    for name, (keypoints, _) in adjusted.items():
        np.testing.assert_allclose(keypoints, means[name][0], atol=2e-3)


def test_fixed_keypoints_stay_and_draw_the_others() -> None:
    raw, points = corners_of_a_plane()
    truth = view("a", points).astype(np.float32)
    reference = ReferenceInMemory({"a": (truth, None)})
    features, matches = quantized(raw, CONFIG, reference)
    assert set(features) == {"b", "c", "d"}
    before, _ = quantized(raw, replace(CONFIG, position="mean"), reference)

    def error(sink: Sink, name: str) -> float:
        seen = matches["a", name][0]
        ids = np.flatnonzero(seen >= 0)
        return float(np.median(np.abs(sink[name][0][seen[ids]] - view(name, points[ids]))))

    for name in "bcd":
        assert error(features, name) < 0.6 * error(before, name)


@pytest.mark.parametrize("query", ["a", "z"])  # before and after the fixed ones by name
def test_a_query_moves_as_far_as_the_keypoints_it_is_matched_to(query: str) -> None:
    """Keypoints of the database lie 0.7 px to the right of the points that matches have there."""
    points = np.stack(np.meshgrid(np.arange(20), np.arange(15)), axis=2).reshape(-1, 2) * 11.0
    at_query = view("a", points).astype(np.float32)
    raw, database = RawInMemory(), {}
    for name in "bcd":
        there = view(name, points).astype(np.float32)
        raw[query, name] = Matches(at_query, there, np.ones(len(points), np.float32))
        database[name] = there + np.float32([0.7, 0.0]), None
    config = replace(CONFIG, max_kps=None)
    features, matches = quantized(raw, config, ReferenceInMemory(database))
    assert set(features) == {query}
    assert all(len(pair_matches[0]) == len(points) for pair_matches in matches.values())
    # In the query 0.7 px to the right in b, c and d are 0.7 up, 0.35 to the right, 0.7 to the left.
    moves = np.array([np.linalg.inv(VIEWS[name]) @ (0.7, 0.0) for name in "bcd"])
    moved = (features[query][0] - at_query).reshape(15, 20, 2)[1:-1, 1:-1]  # the outermost stay
    assert np.ptp(moved, axis=(0, 1)).max() < 2e-3
    # What minimises the robust sum of the three and of the first place: a fixed point of means.
    expected = np.zeros(2)
    for _ in range(200):
        away = [VIEWS[name] @ (expected - move) for name, move in zip("bcd", moves, strict=True)]
        weight = 1 / (1 + np.sum(np.square(away), axis=1))
        expected = weight @ moves / (weight.sum() + 0.05)
    np.testing.assert_allclose(np.median(moved, axis=(0, 1)), expected, atol=0.02)


def test_two_keypoints_meet_by_closed_form() -> None:
    # One link of weight 1 and two priors: each gives way by a third of what the weights leave.
    first = {
        "a": np.array([[5.0, 5.0], [0, 0], [9, 9]]),
        "b": np.array([[5.4, 5.0], [0, 0], [9, 9]]),
    }
    matches = np.array([(0, 0, (0.0, 0.0), 1e-3)], CONSTRAINT)
    constraints = [PairConstraints("a", "b", np.eye(2), matches)]
    found = adjust_keypoints(first, lambda: constraints, 2.0)
    # minimise w (b - a)² + 0.05 ((a - 5)² + (b - 5.4)²), the tolerance being far: w = 1e-3 · 1/1.16
    w = 1e-3 / (1 + 0.4**2)
    give = 0.4 * w / (0.05 + 2 * w)
    np.testing.assert_allclose(found["a"][0], [5 + give, 5], atol=2e-4)
    np.testing.assert_allclose(found["b"][0], [5.4 - give, 5], atol=2e-4)
    np.testing.assert_array_equal(found["a"][1:], first["a"][1:])


def test_keypoints_stay_among_those_of_their_image() -> None:
    first = {"a": np.array([[0.0, 0.0], [10, 10]]), "b": np.array([[0.0, 0.0], [10, 10]])}
    # the match has the corner of b one pixel further out
    matches = np.array([(0, 0, (-1.0, -1.0), 1.0), (1, 1, (1.0, 1.0), 1.0)], CONSTRAINT)
    found = adjust_keypoints(first, lambda: [PairConstraints("a", "b", np.eye(2), matches)], 2.0)
    for name in "ab":
        assert found[name].min() >= 0
        assert found[name].max() <= 10
    assert 0.3 < found["a"][0, 0] < 1.01


def test_links_of_a_pair_that_tells_no_map() -> None:
    rng = np.random.default_rng(0)
    few = Matches(*(rng.random((3, 2), np.float32) for _ in range(2)), np.ones(3, np.float32))
    kept = np.array([0, 2])
    constraints = pair_constraints(("a", "b"), few, np.array([4, 5, 6]), np.array([7, 8, 9]), kept)
    np.testing.assert_array_equal(constraints.affine, np.eye(2))
    assert constraints.matches["id0"].tolist() == [4, 6]
    assert constraints.matches["id1"].tolist() == [7, 9]
    shift = (few.keypoints1 - few.keypoints0)[kept]
    np.testing.assert_allclose(constraints.matches["shift"], shift)


def test_no_matches_at_all() -> None:
    empty = Matches(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), np.zeros(0, "f4"))
    features, matches = quantized(RawInMemory({("a", "b"): empty}), CONFIG)
    assert [len(keypoints) for keypoints, _ in features.values()] == [0, 0]
    assert len(matches["a", "b"][0]) == 0


def test_the_adjustment_goes_on_from_the_last_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjustment, "_KEEP_EVERY", -1.0)
    raw, _ = corners_of_a_plane()
    config = QuantizationConfig(2, 2, 8192, position="adjusted")
    whole, _ = quantized(raw, config)
    kept, iterations = adjustment.adjust_keypoints, []

    def stopping(first: dict, constraints: Callable, *rest: Any, **named: Any) -> dict:
        def counted() -> Iterable[PairConstraints]:
            iterations.append(len(iterations))
            if iterations == list(range(9)):
                raise InterruptedError
            return constraints()

        return kept(first, counted, *rest, **named)

    monkeypatch.setattr(aggregation, "adjust_keypoints", stopping)
    features = Sink()
    for failed in (True, False):
        features.clear()
        with Journal(tmp_path / "journal", "inputs") as journal:
            writers = KeypointWriters(features, Sink(), journal)
            with pytest.raises(InterruptedError) if failed else contextlib.nullcontext():
                aggregate_into(raw, list(raw), writers, config)
    assert len(iterations) == 15 + 1  # the ninth was begun twice
    assert_same(features, whole)

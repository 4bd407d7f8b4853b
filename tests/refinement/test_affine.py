"""Local affine maps of photos that are rotated, scaled, or move in parts: as exact as of upright
ones, by the compiled loop and by the batched form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from edm_hloc.refinement import affine, batched_affine

NEIGHBOURS = 20

Form = Callable[[np.ndarray, np.ndarray], np.ndarray]


def one_pair(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    return affine.local_affine_maps(points0, points1, NEIGHBOURS)


def of_a_batch(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """With padding between the matches, and a pair of other ones beside."""
    rng = np.random.default_rng(9)
    places = np.sort(rng.permutation(2 * len(points0))[: len(points0)])
    sets = rng.uniform(0, 500, (2, 2, 2 * len(points0), 2)).astype(np.float32)
    sets[0, 1, places], sets[1, 1, places] = points0, points1
    valid = np.ones(sets.shape[1:3], bool)
    valid[1] = np.isin(np.arange(2 * len(points0)), places)
    tensors = torch.from_numpy(sets), torch.from_numpy(valid)
    maps = batched_affine.local_affine_maps(*tensors[0], tensors[1], NEIGHBOURS)
    return maps[1, places].numpy()


@pytest.fixture(params=[one_pair, of_a_batch])
def local_maps(request: pytest.FixtureRequest) -> Form:
    form: Form = request.param
    return form


def grid() -> np.ndarray:
    """(M, 2) points of a photo of 320 × 240 px, in no order."""
    points = 8 * np.stack(np.mgrid[:40, :30], axis=-1).reshape(-1, 2)
    return np.random.default_rng(0).permutation(points).astype(np.float32)


def similarity(degrees: float, scale: float = 1.0) -> np.ndarray:
    cos, sin = scale * np.cos(np.radians(degrees)), scale * np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def moved(points: np.ndarray, A: np.ndarray) -> np.ndarray:
    return (points @ A.T + 300).astype(np.float32)


WARPS = [(30.0, 1.0), (90.0, 1.0), (180.0, 1.0), (0.0, 0.5), (0.0, 1.9), (-100.0, 0.7)]


@pytest.mark.parametrize(("degrees", "scale"), WARPS)
def test_maps_of_rotated_and_scaled_photos_are_exact(
    degrees: float, scale: float, local_maps: Form
) -> None:
    A = similarity(degrees, scale)
    maps = local_maps(grid(), moved(grid(), A))
    np.testing.assert_allclose(maps, np.broadcast_to(A, maps.shape), atol=2e-3)
    back = local_maps(moved(grid(), A), grid())
    np.testing.assert_allclose(back @ A, np.broadcast_to(np.eye(2), maps.shape), atol=2e-3)


@pytest.mark.parametrize(("degrees", "scale"), WARPS)
def test_wrong_matches_hardly_change_the_maps_of_right_ones(
    degrees: float, scale: float, local_maps: Form
) -> None:
    A = similarity(degrees, scale)
    rng = np.random.default_rng(1)
    target = moved(grid(), A)
    wrong = rng.random(len(target)) < 0.5
    target[wrong] = rng.uniform(0, 600, (wrong.sum(), 2))
    errors = np.abs(local_maps(grid(), target)[~wrong] - A).max(axis=(1, 2))
    assert np.median(errors) < 0.01


def test_what_moves_otherwise_than_most_has_maps_of_its_own(local_maps: Form) -> None:
    points = grid()
    right = points[:, 0] > 230
    most, rest = similarity(90), similarity(0, 0.8)
    target = np.where(right[:, None], moved(points, rest), moved(points, most))
    maps = local_maps(points, target)
    for A, part in ((most, points[:, 0] < 190), (rest, points[:, 0] > 270)):
        errors = np.abs(maps[part] - A).max(axis=(1, 2))
        assert np.median(errors) < (0.002 if A is most else 0.1)


def test_where_neighbours_tell_nothing_a_map_rotates_as_the_pair(local_maps: Form) -> None:
    points, A = grid(), similarity(120, 0.8)
    line = np.zeros((60, 2), np.float32)
    line[:, 0] = 600 + 5 * np.arange(60)  # a cable far away
    mirrored = points[points[:, 0] < 100] - [800, 0]
    source = np.concatenate([points, line, mirrored]).astype(np.float32)
    target = np.concatenate([moved(points, A), moved(line, A), moved(mirrored * [1, -1], A)])
    maps = local_maps(source, target)
    np.testing.assert_allclose(maps, np.broadcast_to(A, maps.shape), atol=3e-3)


def test_pairs_that_contradict_themselves_keep_the_identity(local_maps: Form) -> None:
    points = np.random.default_rng(3).uniform(0, 400, (900, 2)).astype(np.float32)
    maps = local_maps(points, moved(points * [1, -1], similarity(70)))
    assert (maps == np.eye(2)).all(axis=(1, 2)).mean() > 0.95


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("degrees", [90.0, 180.0])
def test_a_small_object_has_support_however_it_is_rotated(degrees: float, aligned: bool) -> None:
    points = np.array([[0, 0], [4, 0], [0, 4], [4, 4], [2, 2]], np.float32)
    target = moved(points, similarity(degrees))
    share = affine.neighbour_support(points, target, NEIGHBOURS, aligned)
    np.testing.assert_array_equal(share, np.ones(5))
    tensors = torch.from_numpy(points)[None], torch.from_numpy(target)[None]
    valid = torch.ones(1, 5, dtype=torch.bool)
    shares = batched_affine.neighbour_support(*tensors, valid, NEIGHBOURS, aligned)
    np.testing.assert_array_equal(shares.numpy(), np.ones((1, 5)))

"""Points between rays, and their means in voxels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.surface.samples import Samples, merged, midpoints


def test_rays_through_a_point_meet_there() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal((0, 0, 8), 1, (50, 3))
    centres = np.array([[-1.0, 0.2, 0], [1.5, -0.3, 0.4]])
    offsets = points - centres[:, None]
    depths = np.linalg.norm(offsets, axis=2)
    rays = offsets / depths[:, :, None]
    found, along, gaps = midpoints(centres[0], rays[0], centres[1], rays[1])
    assert found == pytest.approx(points, abs=1e-9)
    assert np.array(along) == pytest.approx(depths, abs=1e-9)
    assert gaps == pytest.approx(np.zeros(50), abs=1e-9)


def test_skew_rays_give_the_middle_of_the_shortest_segment() -> None:
    # along x through the origin, and along y at the height 2
    rays0, rays1 = np.array([[1.0, 0, 0]]), np.array([[0, 1.0, 0]])
    found, depths, half = midpoints(np.array([-3.0, 0, 0]), rays0, np.array([5.0, -4, 2]), rays1)
    assert found[0] == pytest.approx([5, 0, 1])
    assert (depths[0][0], depths[1][0], half[0]) == pytest.approx((8, 4, 1))


def test_parallel_rays_meet_nowhere() -> None:
    ray = np.array([[0, 0, 1.0]])
    assert not np.isfinite(midpoints(np.zeros(3), ray, np.ones(3), ray)[0]).any()


def _samples(seed: int, number: int) -> Samples:
    rng = np.random.default_rng(seed)
    towards = rng.normal(0, 1, (number, 3))
    return Samples(
        points=rng.uniform(-3, 3, (number, 3)),
        towards=towards / np.linalg.norm(towards, axis=1, keepdims=True),
        voxels=2.0 ** rng.integers(-2, 2, number),
        weights=rng.uniform(1, 9, number),
        matches=rng.integers(1, 5, number).astype(float),
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(0, 60))
def test_means_do_not_depend_on_the_parts(seed: int, first: int, second: int) -> None:
    samples = _samples(seed, first + second)
    cut = np.arange(len(samples)) < first
    at_once = merged(samples)
    in_parts = merged(Samples.joined([merged(samples[cut]), samples[~cut]]))
    order = [np.lexsort(np.c_[s.points.round(6), s.voxels].T) for s in (at_once, in_parts)]
    for field in ("points", "voxels", "weights", "matches"):
        a, b = (getattr(s, field)[o] for s, o in zip((at_once, in_parts), order, strict=True))
        assert a == pytest.approx(b)
    assert at_once.matches.sum() == samples.matches.sum()


def test_a_voxel_has_one_sample_the_weighted_mean() -> None:
    samples = Samples(
        points=np.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [1.5, 0, 0], [0.1, 0.1, 0.1]]),
        towards=np.array([[0, 0, 1.0]] * 4),
        voxels=np.array([1.0, 1, 1, 0.25]),
        weights=np.array([1.0, 3, 1, 1]),
        matches=np.array([1.0, 2, 1, 1]),
    )
    found = merged(samples)
    order = np.argsort(found.matches * 10 + found.points[:, 0])
    assert len(found) == 3
    shared = found[order[-1:]]
    assert shared.points[0] == pytest.approx([0.4, 0.5, 0.6])
    assert (shared.weights[0], shared.matches[0]) == (4, 3)


def test_what_is_too_far_for_a_number_is_left_out() -> None:
    samples = _samples(0, 4)
    samples.points[2] = [1e9, 0, 0]
    assert merged(samples).matches.sum() == samples.matches.sum() - samples.matches[2]

"""Points between rays, and their means in voxels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.surface.samples import PhotoColours, Samples, merged, midpoints


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
        colours=rng.uniform(0, 255, (number, 3)),
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
    for field in ("points", "colours", "voxels", "weights", "matches"):
        a, b = (getattr(s, field)[o] for s, o in zip((at_once, in_parts), order, strict=True))
        assert a == pytest.approx(b)
    assert at_once.matches.sum() == samples.matches.sum()


def test_a_voxel_has_one_sample_the_weighted_mean() -> None:
    samples = Samples(
        points=np.array([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [1.5, 0, 0], [0.1, 0.1, 0.1]]),
        towards=np.array([[0, 0, 1.0]] * 4),
        colours=np.array([[0, 0, 0], [100, 100, 100], [9, 9, 9], [50, 50, 50.0]]),
        voxels=np.array([1.0, 1, 1, 0.25]),
        weights=np.array([1.0, 3, 1, 1]),
        matches=np.array([1.0, 2, 1, 1]),
    )
    found = merged(samples)
    order = np.argsort(found.matches * 10 + found.points[:, 0])
    assert len(found) == 3
    shared = found[order[-1:]]
    assert shared.points[0] == pytest.approx([0.4, 0.5, 0.6])
    assert shared.colours[0] == pytest.approx([75] * 3)
    assert (shared.weights[0], shared.matches[0]) == (4, 3)


def test_what_is_too_far_for_a_number_is_left_out() -> None:
    samples = _samples(0, 4)
    samples.points[2] = [1e9, 0, 0]
    assert merged(samples).matches.sum() == samples.matches.sum() - samples.matches[2]


def test_a_photo_that_cannot_be_read_is_grey(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    colours = PhotoColours.read(tmp_path / "a.jpg", 1024)
    assert (colours.at(np.array([[0, 0], [700.0, 30]])) == 128).all()
    assert "grey" in caplog.text


def test_colours_are_means_of_half_a_voxel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
    pixels[:, 800:] = [10, 200, 30]
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    colours = PhotoColours.read(tmp_path / "a.png", 400)  # voxels of 16 px, so blocks of 8
    assert colours.pixels.shape == (150, 200, 3)
    assert colours.at(np.array([[1203.5, 899.5]]))[0] == pytest.approx([30, 200, 10])
    block = pixels[400:408, 80:88, ::-1].mean(axis=(0, 1))
    assert colours.at(np.array([[83.5, 403.5]]))[0] == pytest.approx(block, abs=1)

"""Clouds and meshes of surfaces in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from edm_hloc.surface.cloud import Cloud, oriented_cloud, supported
from edm_hloc.surface.poisson import near_points, octree_depth, poisson_mesh
from edm_hloc.surface.samples import Samples

RADIUS = 2.0


def _sphere(number: int, noise: float = 0.0, seed: int = 0) -> Samples:
    """Samples of a sphere that is seen from outside."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(0, 1, (number, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    deviation = max(noise, 0.01)
    return Samples(
        points=normals * (RADIUS + rng.normal(0, noise, (number, 1))),
        towards=normals,
        voxels=np.full(number, 0.0625),
        weights=np.full(number, deviation**-2),
        matches=np.full(number, 3.0),
    )


def test_normals_are_those_of_the_sphere() -> None:
    cloud = oriented_cloud(_sphere(20_000))
    truth = cloud.points / np.linalg.norm(cloud.points, axis=1, keepdims=True)
    assert len(cloud) > 19_000
    assert np.degrees(np.arccos(np.sum(cloud.normals * truth, axis=1).clip(-1, 1))).max() < 5


def test_noise_is_smoothed_and_outliers_go() -> None:
    samples = _sphere(20_000, noise=0.05)
    samples.points[:40] *= 1.5  # by 1 off the surface
    before = np.abs(np.linalg.norm(samples.points, axis=1) - RADIUS)
    cloud = oriented_cloud(samples)
    after = np.abs(np.linalg.norm(cloud.points, axis=1) - RADIUS)
    assert after.max() < 0.2
    assert np.median(after) < 0.4 * np.median(before)


def test_a_lonely_sample_has_no_support() -> None:
    samples = _sphere(5_000)
    samples.points[7] = [0, 0, 0]
    kept = supported(samples)
    assert not kept[7]
    assert kept.mean() > 0.99


@pytest.mark.parametrize("number", [0, 1, 15])
def test_few_samples_give_no_surface(number: int) -> None:
    cloud = oriented_cloud(_sphere(20_000)[np.arange(number)])
    assert len(cloud) == 0
    assert len(poisson_mesh(cloud).triangles) == 0


def test_the_mesh_is_the_sphere() -> None:
    # far from the origin, where single precision would have steps of 0.06
    offset = np.array([1e6, -2e6, 5e5])
    cloud = oriented_cloud(_sphere(20_000))
    mesh = poisson_mesh(Cloud(cloud.points + offset, cloud.normals, cloud.spacings))
    vertices = mesh.vertices - offset
    assert np.abs(np.linalg.norm(vertices, axis=1) - RADIUS).max() < 0.02
    a, b, c = (vertices[mesh.triangles[:, k]] for k in range(3))
    crossed = np.cross(b - a, c - a)
    areas = np.linalg.norm(crossed, axis=1) / 2
    assert areas.sum() == pytest.approx(4 * np.pi * RADIUS**2, rel=0.01)
    # counter-clockwise seen from outside
    assert np.average(np.sum(crossed * (a + b + c), axis=1) > 0, weights=areas) > 0.999
    corners = mesh.vertex_cloud()
    assert np.sum(corners.normals * vertices, axis=1).min() > 0.97 * RADIUS
    assert np.median(corners.spacings) == pytest.approx(0.06, abs=0.03)


def test_only_what_has_points_is_kept() -> None:
    samples = _sphere(20_000)
    upper = oriented_cloud(samples[samples.points[:, 2] > 0])
    mesh = poisson_mesh(upper)
    assert mesh.vertices[:, 2].min() > -5 * 0.0625
    far = Cloud(upper.points + 9, upper.normals, upper.spacings)
    assert len(near_points(mesh, far).triangles) == 0


@pytest.mark.slow
def test_small_pieces_go() -> None:
    samples = _sphere(20_000)
    dot = _sphere(150, seed=1)
    dot.points[:] = dot.points / 40 + [6, 0, 0]
    mesh = poisson_mesh(oriented_cloud(Samples.joined([samples, dot])))
    assert mesh.vertices[:, 0].max() < 3


@pytest.mark.slow
def test_pieces_of_few_matches_go_however_large_they_are() -> None:
    object_, background = _sphere(5_000), _sphere(5_000, seed=1)
    background.points[:] += [6, 0, 0]
    object_.matches[:], background.matches[:] = 200, 1
    mesh = poisson_mesh(oriented_cloud(Samples.joined([object_, background])))
    assert mesh.vertices[:, 0].max() < 3
    background.matches[:] = 20
    mesh = poisson_mesh(oriented_cloud(Samples.joined([object_, background])))
    assert mesh.vertices[:, 0].max() > 3


def test_the_octree_is_as_fine_as_the_spacing() -> None:
    cloud = oriented_cloud(_sphere(20_000))
    size = 1.1 * np.ptp(cloud.points, axis=0).max()
    assert size / 2 ** octree_depth(cloud) <= 0.0625 < 2 * size / 2 ** octree_depth(cloud)

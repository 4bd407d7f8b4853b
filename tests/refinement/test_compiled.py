"""Compiled loops: they give what NumPy and PyTorch give, and are kept on disk where that can be."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.refinement.affine import local_affine_maps, neighbour_support
from edm_hloc.refinement.alignment import align
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corner_matches import AlignedMatches
from edm_hloc.refinement.corners import strongest_corners
from edm_hloc.refinement.neighbour_kernels import nearest_point
from tests.oracles import refinement as oracle

CONFIG = RefinementConfig()


def texture(height: int, width: int, seed: int) -> torch.Tensor:
    """(1, H, W) smooth noise in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 1, height // 5, width // 5, generator=generator)
    return F.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)


def matches(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a photo of 471 × 313 px, where they are in one of 500 × 300 px, and local maps.

    Some lie outside of it, and some are wrong.
    """
    rng = np.random.default_rng(seed)
    points0 = rng.uniform([0, 0], [470, 312], (count, 2)).astype(np.float32)
    A = np.array([[1.05, 0.1], [-0.08, 0.95]])
    points1 = points0 @ A.T + [3, 20] + rng.normal(0, 1, (count, 2))
    points1[::7] = rng.uniform(-30, 500, (len(points1[::7]), 2))
    maps = A + rng.normal(0, 0.05, (count, 2, 2))
    return points0, points1.astype(np.float32), maps.astype(np.float32)


@pytest.fixture(scope="module")
def photos() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 471 × 313 px and of 500 × 300 px, the second showing the first warped."""
    image = texture(313, 471, 1)
    y, x = np.mgrid[:300, :500]
    source = (np.stack([x, y], axis=-1) - [3, 20]) @ np.linalg.inv([[1.05, 0.1], [-0.08, 0.95]]).T
    grid = torch.from_numpy((2 * source + 1) / [471, 313] - 1).float()[None]
    other = F.grid_sample(image[None], grid, mode="bicubic", align_corners=False)[0]
    return image, (0.2 + 0.6 * other).clamp(0, 1) ** 1.2


@pytest.mark.parametrize("seed", range(3))
def test_alignment_is_that_of_the_reference(
    photos: tuple[torch.Tensor, torch.Tensor], seed: int
) -> None:
    points0, points1, maps = matches(seed)
    found = align(photos, points0, points1, maps, CONFIG)
    points, correlation = oracle.align(photos, points0, points1, maps, CONFIG)
    away = np.abs(found.points - points).max(axis=1)
    assert np.median(away) < 2e-4
    assert (away < 0.02).mean() >= 0.99
    np.testing.assert_allclose(found.correlation, correlation, atol=2e-3)
    assert 0.5 < (correlation > CONFIG.min_correlation).mean() < 0.95


def test_threads_give_the_same_bits(photos: tuple[torch.Tensor, torch.Tensor]) -> None:
    def refine(seed: int) -> list[bytes]:
        points0, points1, maps = matches(seed % 3)
        aligned = align(photos, points0, points1, maps, CONFIG)
        support = neighbour_support(points0, aligned.points, 20)
        return [part.tobytes() for part in (*aligned, support)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(refine, range(24)))
    for seed, parts in enumerate(found):
        assert parts == refine(seed % 3)


def test_points_that_are_not_finite_do_no_harm(photos: tuple[torch.Tensor, torch.Tensor]) -> None:
    points0, points1, maps = matches(0, 40)
    expected = align(photos, points0, points1, maps, CONFIG)
    points1[3], points1[4], points0[5], maps[6] = np.nan, np.inf, -1e30, np.nan
    found = align(photos, points0, points1, maps, CONFIG)
    others = np.setdiff1d(np.arange(40), [3, 4, 5, 6])
    np.testing.assert_array_equal(found.points[others], expected.points[others])
    assert len(local_affine_maps(points0, points1, 20)) == 40
    assert len(neighbour_support(points1, points0, 20)) == 40


def scattered(count: int, seed: int, shape: str) -> np.ndarray:
    """(M, 2) points, no two pairs of them at the same distance."""
    rng = np.random.default_rng(seed)
    points = rng.normal(100, 60, (count, 2))
    if shape == "line":
        points[:, 1] = 0.5 * points[:, 0]
    elif shape == "two clusters":
        points[: count // 2] = 3000 + rng.normal(0, 0.1, (count // 2, 2))
    elif shape == "column":
        points[:, 0] = 7
    return points.astype(np.float32)


SHAPES = ("cloud", "line", "two clusters", "column")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(0, 1000), st.sampled_from(SHAPES), st.integers(1, 24))
def test_fits_to_neighbours_are_those_of_the_reference(
    count: int, seed: int, shape: str, neighbours: int
) -> None:
    points0 = scattered(count, seed, shape)
    rng = np.random.default_rng(seed)
    points1 = points0 @ np.array([[1.1, 0.2], [-0.1, 0.9]]).T + rng.normal(0, 1.5, points0.shape)
    points1 = points1.astype(np.float32)
    maps = local_affine_maps(points0, points1, neighbours)
    np.testing.assert_allclose(
        maps, oracle.local_affine_maps(points0, points1, neighbours), atol=5e-4
    )
    some = rng.integers(0, count, 5)
    np.testing.assert_array_equal(local_affine_maps(points0, points1, neighbours, some), maps[some])
    for aligned in (False, True):
        found = neighbour_support(points0, points1, neighbours, aligned)
        expected = oracle.neighbour_support(points0, points1, neighbours, aligned)
        # a residual may be as large as the tolerance
        assert (np.abs(found - expected) > 1e-6).mean() <= 0.02 + 1 / count


def test_of_neighbours_at_the_same_distance_the_first_ones_count() -> None:
    y, x = np.mgrid[:9, :9]
    points = 8 * np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
    queries = points[:-10] + np.float32(4)  # four points each at the same distance
    squared = ((queries[:, None] - points) ** 2).sum(axis=2)
    np.testing.assert_array_equal(nearest_point(queries, points), squared.argmin(axis=1))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 1000), st.sampled_from(SHAPES))
def test_the_nearest_point_is_found(count: int, asked: int, seed: int, shape: str) -> None:
    points = scattered(count, seed, shape)
    queries = np.random.default_rng(seed).uniform(-400, 600, (asked, 2)).astype(np.float32)
    squared = ((queries[:, None] - points) ** 2).sum(axis=2)
    found = squared[np.arange(asked), nearest_point(queries, points)]
    np.testing.assert_allclose(found, squared.min(axis=1), rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 150), st.integers(0, 1000), st.sampled_from(SHAPES))
def test_repeated_matches_are_those_of_the_reference(count: int, seed: int, shape: str) -> None:
    rng = np.random.default_rng(seed)
    points0 = scattered(count, seed, shape)
    points0 = points0[rng.integers(0, max(1, count), count)]
    points0 += rng.choice([0, 0.2, 0.6], points0.shape).astype(np.float32)
    points1 = points0 + rng.choice([0, 0.1], points0.shape).astype(np.float32)
    found = AlignedMatches(points0, points1, np.ones(count), np.arange(count)).distinct()
    np.testing.assert_array_equal(found.match, oracle.distinct(points0, points1, 0.5))


@pytest.mark.parametrize(("height", "width"), [(313, 471), (64, 72), (8, 8), (15, 30)])
def test_corners_are_those_of_the_reference(height: int, width: int) -> None:
    image = texture(max(height, 20), max(width, 20), 3)[:, :height, :width].contiguous()
    image[:, : height // 2, : width // 2] = 0.5  # no texture
    found, expected = strongest_corners(image), oracle.strongest_corners(image)
    np.testing.assert_allclose(found.points, expected.points, atol=1e-3)
    np.testing.assert_array_equal(found.textured, expected.textured)
    assert found.points.shape == (height // 8, width // 8, 2)


LOOP = """
from edm_hloc.base.compiled import compiled
@compiled
def double(x):
    return 2 * x
print(double(21.0))
"""


def run_loop(folder: Path) -> subprocess.CompletedProcess[str]:
    """Calls a compiled loop of a file in the folder, whose user has the cache folder `cache`."""
    (folder / "loop.py").write_text(LOOP)
    home = {name: str(folder / "cache") for name in ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA")}
    hidden = {"NUMBA_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | home
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", "import loop"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    "case",
    [
        "beside the file",
        pytest.param("in the user's cache", marks=pytest.mark.slow),
        pytest.param("nowhere", marks=pytest.mark.slow),
    ],
)
def test_compiled_code_is_kept_where_that_can_be(case: str, tmp_path: Path) -> None:
    # A file in place of a folder cannot be written into, not even by root.
    if case != "beside the file":
        (tmp_path / "__pycache__").write_text("")
    if case == "nowhere":
        (tmp_path / "cache").write_text("")
    first, second = run_loop(tmp_path), run_loop(tmp_path)
    assert first.stdout == second.stdout == "42.0\n"
    assert first.stderr.count("Compiling") == 1
    assert "Traceback" not in first.stderr
    kept = [path.parent.name for path in tmp_path.rglob("*.nbi")]
    assert len(kept) == (case != "nowhere")
    assert ("__pycache__" in kept) == (case == "beside the file")
    assert second.stderr.count("Compiling") == (case == "nowhere")


def test_a_damaged_cache_is_said_to_be_so(tmp_path: Path) -> None:
    run_loop(tmp_path)
    for path in tmp_path.rglob("*.nbi"):
        path.write_bytes(b"")
    run = run_loop(tmp_path)
    assert run.stdout == "42.0\n"
    assert "is not kept" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_the_process_that_compiles_rounds_as_all_later_ones(tmp_path: Path) -> None:
    code = """
        import numpy as np
        from edm_hloc.refinement.alignment_kernel import align_patches
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:120, :160].astype(np.float32)
        image = sum(np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-0.5, 0.5, (30, 3)))
        image = (0.5 + image / 60).astype(np.float32)
        points = rng.uniform(20, 100, (300, 2)).astype(np.float32)
        others = (points + rng.uniform(-1, 1, points.shape)).astype(np.float32)
        affine = np.tile(np.eye(2, dtype=np.float32), (300, 1, 1))
        found = align_patches(
            (image, image), points, others, affine, (7, 3, 0.0056, 0.02, 4.0)
        )
        print(align_patches._compiled.stats.cache_hits.total(), *(a.tobytes().hex() for a in found))
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = []
    for _ in range(2):
        run = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
        said.append(done.stdout.split())
    assert [hits for hits, *_ in said] == ["0", "1"]
    assert said[0][1:] == said[1][1:]

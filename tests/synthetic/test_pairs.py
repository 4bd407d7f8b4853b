"""Random pairs: warps, overlap, reproducibility."""

from __future__ import annotations

import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.appearance import Appearance, random_materials
from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.covisibility import covisible, pair_overlap, warp
from edm_hloc.synthetic.layouts import LAYOUTS
from edm_hloc.synthetic.pairs import PairOptions, PairSampler
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.random_views import candidate_cameras
from edm_hloc.synthetic.renderer.render import render, render_depth
from edm_hloc.synthetic.shapes import Shapes
from edm_hloc.synthetic.textures import TextureBank
from tests.synthetic.simple_scenes import (
    HEIGHT,
    WIDTH,
    bilinear,
    daylight,
    later_pairs,
    smooth_bank,
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_warped_pairs_look_alike(name: str) -> None:
    """Depth and pose map one image onto the other, to a fraction of a pixel."""
    options = PairOptions((name,), photometric_effects=False)
    sampler = PairSampler(smooth_bank(), 0.5, seed=3, options=options)
    batch, height, width = 4, 96, 128
    scenes = sampler.draw_scenes(batch, height, width)
    shapes, cameras = scenes.shapes, scenes.cameras
    # Magnified eight times, the textures vary slowly: grey values tell positions exactly.
    materials = random_materials(shapes, 8 * scenes.span, 40, sampler.textures, sampler.random, 0.0)
    appearance = Appearance(materials, daylight(batch, 2), sampler.textures)
    out = render(shapes, appearance, cameras, height, width)
    views = [
        (out.image[:, k], out.depth[:, k], cameras.K[:, k], cameras.cam_from_world[:, k])
        for k in range(2)
    ]
    for (image0, depth0, K0, T0), (image1, depth1, K1, T1) in (views, views[::-1]):
        xy, z = warp(depth0, K0, T0, K1, T1)
        seen = covisible(depth0, xy, z, depth1, 0.02)
        assert seen.float().mean() > 0.1
        there = bilinear(image1, xy)
        error = (there - image0).abs()[seen]
        assert error.median() < 0.004
        pair = torch.stack([there[seen], image0[seen]])
        assert torch.corrcoef(pair)[0, 1] > 0.96
        # With a shift of one pixel the agreement must be clearly worse.
        shifted = (bilinear(image1, xy + 1) - image0).abs()[seen]
        assert shifted.mean() > 2 * error.mean()
        assert shifted.median() > 8 * error.median()
        # The inverse depth of the other view, linear on planes, agrees with the warped one.
        inverse = torch.where(depth1 > 0, 1 / depth1.clamp(min=1e-6), 0.0)
        ratio = (bilinear(inverse, xy) * z)[seen]
        assert (ratio - 1).abs().median() < 1e-4


def test_pairs_have_their_shapes_and_ranges() -> None:
    sampler = PairSampler(TextureBank.procedural(4, 64), 0.8, seed=1)
    pairs = sampler.sample(5, HEIGHT, WIDTH)
    for image, depth in ((pairs.image0, pairs.depth0), (pairs.image1, pairs.depth1)):
        assert image.shape == (5, 1, HEIGHT, WIDTH)
        assert image.dtype == depth.dtype == torch.float32
        assert image.isfinite().all()
        assert image.min() >= 0
        assert image.max() <= 1
        assert depth.shape == (5, HEIGHT, WIDTH)
        assert depth.isfinite().all()
        assert (depth >= 0).all()
        assert ((depth > 0).float().mean((1, 2)) > 0.5).all()
    R = pairs.T_0to1[:, :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3).expand(5, 3, 3), atol=1e-4)
    assert pairs.K0.shape == pairs.K1.shape == (5, 3, 3)
    assert image.std((1, 2, 3)).median() > 0.03


def test_same_seed_same_pairs() -> None:
    bank = smooth_bank()
    first, again, other = (later_pairs(PairSampler(bank, 0.5, seed=s)) for s in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("least", "most"), [(0.6, 0.8), (0.1, 0.3)])
def test_overlap_is_as_asked(least: float, most: float) -> None:
    options = PairOptions(overlap=(least, most), photometric_effects=False)
    sampler = PairSampler(smooth_bank(2), 0.6, seed=4, options=options)
    pairs = sampler.sample(16, 96, 96)
    assert ((pairs.overlap >= least) & (pairs.overlap <= most)).all()
    # The overlap at full resolution is nearly the same.
    depth = torch.stack([pairs.depth0, pairs.depth1], 1)
    eye = torch.eye(4).expand(16, 4, 4)
    cameras = Cameras(torch.stack([pairs.K0, pairs.K1], 1), torch.stack([eye, pairs.T_0to1], 1))
    full = pair_overlap(depth, cameras)[:, 0]
    assert (full - pairs.overlap).abs().mean() < 0.05


def test_impossible_overlap_is_an_error() -> None:
    sampler = PairSampler(smooth_bank(1), 0.5, options=PairOptions(overlap=(1.5, 2.0)))
    sampler.ROUNDS = 2  # type: ignore[misc]
    with pytest.raises(EdmHlocError, match="wider range"):
        sampler.sample(1, 32, 32)


def test_difficulty_moves_the_cameras_apart() -> None:
    def spread(difficulty: float) -> tuple[float, float]:
        options = PairOptions(photometric_effects=False)
        sampler = PairSampler(smooth_bank(2), difficulty, seed=0, options=options)
        pairs = sampler.sample(32, 48, 48)
        R = pairs.T_0to1[:, :3, :3]
        cosine = (R.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
        return float(cosine.clamp(-1, 1).acos().mean()), float(pairs.overlap.mean())

    easy, hard = spread(0.0), spread(1.0)
    assert hard[0] > 1.5 * easy[0]
    assert hard[1] < easy[1] - 0.1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    rng = Random(1)
    layout = LAYOUTS["facade"](rng, 2)
    cameras = candidate_cameras(layout, rng, 1, 0.5, HEIGHT, WIDTH)
    expected = render_depth(layout.shapes, cameras, HEIGHT, WIDTH)
    shapes = Shapes(**{k: v.cuda() for k, v in vars(layout.shapes).items()})
    on_gpu = Cameras(cameras.K.cuda(), cameras.cam_from_world.cuda())
    found = render_depth(shapes, on_gpu, HEIGHT, WIDTH).cpu()
    assert torch.isclose(found, expected, rtol=1e-3).float().mean() > 0.998
    pairs = PairSampler(smooth_bank(), 0.5, device="cuda").sample(4, HEIGHT, WIDTH)
    assert pairs.image0.is_cuda

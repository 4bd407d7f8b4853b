"""Rendered scenes agree with closed forms; pairs, photometry, textures, collections."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic import photometric
from edm_hloc.synthetic.dataset import make_photo_collection
from edm_hloc.synthetic.dressing import random_materials
from edm_hloc.synthetic.layouts import LAYOUTS
from edm_hloc.synthetic.pairs import PairSampler, candidate_cameras, covisible, pair_overlap, warp
from edm_hloc.synthetic.render import Lights, render, render_depth
from edm_hloc.synthetic.scene import (
    Cameras,
    Materials,
    Random,
    Shapes,
    ShapesBuilder,
    concatenate,
    intrinsics,
    look_at,
    rotation,
)
from edm_hloc.synthetic.textures import TextureBank, dead_leaves, facade, repeated

HEIGHT, WIDTH = 79, 117
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def smooth_bank(count: int = 6, size: int = 128) -> TextureBank:
    """Textures without detail finer than 8 texels."""
    noise = torch.randn(count, 1, size // 16, size // 16, generator=torch.manual_seed(0))
    smooth = F.interpolate(noise, size=(size, size), mode="bicubic")[:, 0]
    return TextureBank((smooth * 45 + 128).clamp(0, 255).to(torch.uint8))


def camera(focal: float = 90.0, roll: float = 0.3) -> Cameras:
    T = look_at(torch.tensor([0.3, -6.0, 1.2]), torch.tensor([0.1, 0.0, 0.4]), torch.tensor(roll))
    return Cameras(intrinsics(torch.tensor([[focal]]), HEIGHT, WIDTH), T[None, None])


def rays(cameras: Cameras, height: int = HEIGHT, width: int = WIDTH) -> tuple[np.ndarray, ...]:
    """The camera's centre (3,) and the world directions (H, W, 3) of unit depth, in float64."""
    K, T = cameras.K[0, 0].double().numpy(), cameras.cam_from_world[0, 0].double().numpy()
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.ones_like(x)], -1).astype(np.float64)
    directions = pixels @ np.linalg.inv(K).T @ T[:3, :3]
    return -T[:3, :3].T @ T[:3, 3], directions


def plain(shapes: Shapes, **changes: float) -> Materials:
    """All primitives with texture 0, 64 texels along each edge, as it is."""
    shape = (len(shapes.quads), shapes.quads.shape[1] + shapes.round_centre.shape[1] + 1)
    values = {
        "texture": 0,
        "x": 0.0,
        "y": 0.0,
        "width": 64.0,
        "height": 64.0,
        "gain": 1.0,
        "offset": 0.5,
        "blur": 0.0,
    }
    return Materials(**{k: torch.full(shape, v) for k, v in (values | changes).items()})


def daylight(batch: int = 1, views: int = 1) -> Lights:
    up = torch.tensor([0.0, 0.0, 1.0]).expand(batch, views, 3)
    return Lights(up, torch.ones(batch, views), torch.zeros(batch, views))


def bilinear(values: Tensor, xy: Tensor) -> Tensor:
    """Sample (B, H, W) at pixel positions (B, H, W, 2)."""
    size = torch.tensor([values.shape[2], values.shape[1]])
    grid = (xy.nan_to_num(-9.0) + 0.5) / size * 2 - 1
    return F.grid_sample(values[:, None], grid, align_corners=False)[:, 0]


# --- geometry -------------------------------------------------------------------------------------


def test_depth_and_image_of_a_plane() -> None:
    build = ShapesBuilder(1, CPU)
    quad = torch.tensor([[-2.0, 0.5, 2.0], [4.5, -1.0, 0.3], [0.4, 0.7, -3.5]])
    build.add_quads(quad[None, None])
    shapes, cameras, bank = build.build(), camera(), smooth_bank()
    out = render(shapes, plain(shapes), cameras, daylight(), bank, HEIGHT, WIDTH)
    origin, e, f = quad.double().numpy()
    centre, directions = rays(cameras)
    normal = np.cross(e, f)
    depth = ((origin - centre) @ normal) / (directions @ normal)
    points = centre + depth[..., None] * directions - origin
    uv = np.linalg.lstsq(np.stack([e, f], 1), points.reshape(-1, 3).T, rcond=None)[0].T
    u, v = uv.reshape(HEIGHT, WIDTH, 2).transpose(2, 0, 1)
    inside = (np.minimum(u, v) > 0) & (np.maximum(u, v) < 1)
    assert 0.2 < inside.mean() < 0.9
    found = out.depth[0, 0].numpy()
    assert np.array_equal(found > 0, inside)
    np.testing.assert_allclose(found[inside], depth[inside], rtol=2e-6)
    # The image: the texture at the texel of each pixel's centre, away from edges.
    texture = bank.textures[0].float().numpy() / 255
    expected = cv2.remap(
        texture, np.float32(64 * u - 0.5), np.float32(64 * v - 0.5), cv2.INTER_LINEAR
    )
    core = (np.minimum(u, v) > 0.05) & (np.maximum(u, v) < 0.95)
    assert np.abs(out.image[0, 0].numpy() - expected)[core].max() < 0.012


def test_depth_of_a_sphere_an_ellipsoid_and_a_cylinder() -> None:
    turn = rotation(torch.tensor([0.4, -0.7, 0.9]))
    solids = [
        (torch.tensor([0.2, 0.3, 0.6]), torch.eye(3) * 1.1, False),
        (torch.tensor([-0.4, 0.0, 0.2]), turn * torch.tensor([1.5, 0.4, 0.8]), False),
        (torch.tensor([0.1, -0.5, 0.5]), turn * torch.tensor([0.5, 1.4, 0.5]), True),
    ]
    cameras = camera()
    centre, directions = rays(cameras)
    for place, axes, cylinder in solids:
        build = ShapesBuilder(1, CPU)
        build.add_quads(torch.zeros(1, 1, 3, 3))
        build.add_round(place[None, None], axes[None, None], cylinder=cylinder)
        found = render_depth(build.build(), cameras, HEIGHT, WIDTH)[0, 0].numpy()
        inverse = np.linalg.inv(axes.double().numpy())
        s0, s1 = inverse @ (centre - place.double().numpy()), directions @ inverse.T
        keep = np.array([1.0, 0.0, 1.0]) if cylinder else np.ones(3)
        a = (s1 * s1 * keep).sum(-1)
        b = (s1 * s0 * keep).sum(-1)
        disc = b * b - a * ((s0 * s0 * keep).sum() - 1)
        depth = (-b - np.sqrt(np.maximum(disc, 0))) / a
        hit = (disc > 0) & (depth > 0)
        if cylinder:
            hit &= np.abs(s0[1] + depth * s1[..., 1]) <= 1
        assert hit.mean() > 0.03
        assert ((found > 0) != hit).mean() < 0.001  # at the very rim
        both = (found > 0) & hit
        np.testing.assert_allclose(found[both], depth[both], rtol=2e-4)
        assert np.median(np.abs(found[both] / depth[both] - 1)) < 1e-6


def test_solid_box_is_seen_from_all_sides() -> None:
    build = ShapesBuilder(1, CPU)
    turn = rotation(torch.tensor([0.3, 0.5, -0.8]))
    size = torch.tensor([1.0, 1.6, 0.7])
    build.add_boxes(torch.zeros(1, 1, 3), size[None, None], turn[None, None], faces=range(6))
    shapes = build.build()
    generator = np.random.default_rng(1)
    for direction in generator.normal(size=(8, 3)):
        eye = torch.tensor(4 * direction / np.linalg.norm(direction)).float()
        T = look_at(eye, torch.zeros(3), torch.tensor(0.2))
        cameras = Cameras(intrinsics(torch.tensor([[90.0]]), HEIGHT, WIDTH), T[None, None])
        found = render_depth(shapes, cameras, HEIGHT, WIDTH)[0, 0].numpy()
        centre, directions = rays(cameras)
        o, d = turn.T.double().numpy() @ centre, directions @ turn.double().numpy()
        half = size.double().numpy() / 2
        t0, t1 = (-half - o) / d, (half - o) / d
        near, far = np.minimum(t0, t1).max(-1), np.maximum(t0, t1).min(-1)
        hit = near < far
        assert ((found > 0) != hit).sum() <= 2
        both = (found > 0) & hit
        assert both.sum() > 300
        np.testing.assert_allclose(found[both], near[both], rtol=1e-4)


def brute_force_depth(shapes: Shapes, cameras: Cameras, height: int, width: int) -> np.ndarray:
    """The nearest hit of all primitives without any tiles, in float64."""
    centre, directions = rays(cameras, height, width)
    nearest = np.full((height, width), np.inf)
    for quad, solid, present in zip(
        shapes.quads[0], shapes.quad_solid[0], shapes.quad_present[0], strict=True
    ):
        origin, e, f = quad.double().numpy()
        normal = np.cross(e, f)
        toward = directions @ normal
        if not present or (solid and (origin - centre) @ normal <= 0):
            continue
        with np.errstate(all="ignore"):
            depth = ((origin - centre) @ normal) / toward
            point = centre + depth[..., None] * directions - origin
            u = np.cross(point, f) @ normal / (normal @ normal)
            v = np.cross(e, point) @ normal / (normal @ normal)
            hit = (depth > 0) & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
        nearest = np.where(hit & (depth < nearest), depth, nearest)
    for place, axes, cylinder, present in zip(
        shapes.round_centre[0],
        shapes.round_axes[0],
        shapes.round_cylinder[0],
        shapes.round_present[0],
        strict=True,
    ):
        if not present:
            continue
        inverse = np.linalg.inv(axes.double().numpy())
        s0, s1 = inverse @ (centre - place.double().numpy()), directions @ inverse.T
        keep = np.array([1.0, 0.0, 1.0]) if cylinder else np.ones(3)
        a, b = (s1 * s1 * keep).sum(-1), (s1 * s0 * keep).sum(-1)
        c = (s0 * s0 * keep).sum() - 1
        disc = b * b - a * c
        depth = (-b - np.sqrt(np.maximum(disc, 0))) / a
        hit = (disc > 0) & (depth > 0) & (c > 1e-3)
        if cylinder:
            hit &= np.abs(s0[1] + depth * s1[..., 1]) <= 1
        nearest = np.where(hit & (depth < nearest), depth, nearest)
    return np.where(np.isfinite(nearest), nearest, 0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_random_scenes_equal_brute_force(name: str) -> None:
    rng = Random(5)
    layout = LAYOUTS[name](rng, 2)
    height, width = 45, 61
    cameras = candidate_cameras(layout, rng, 1, 0.7, height, width)
    found = render_depth(layout.shapes, cameras, height, width).numpy()
    for scene in range(2):
        for view in range(2):
            one = Cameras(
                cameras.K[scene, view][None, None], cameras.cam_from_world[scene, view][None, None]
            )
            shapes = layout.shapes.select(torch.tensor([scene]))
            expected = brute_force_depth(shapes, one, height, width)
            close = np.isclose(found[scene, view], expected, rtol=3e-4)
            assert close.mean() > 0.998  # rays along edges may fall to either side


def test_image_and_depth_passes_agree() -> None:
    rng = Random(2)
    layout = LAYOUTS["objects"](rng, 2)
    cameras = candidate_cameras(layout, rng, 2, 0.5, HEIGHT, WIDTH)
    out = render(
        layout.shapes, plain(layout.shapes), cameras, daylight(2, 3), smooth_bank(), HEIGHT, WIDTH
    )
    depth = render_depth(layout.shapes, cameras, HEIGHT, WIDTH)
    assert torch.isclose(out.depth, depth, rtol=1e-4).float().mean() > 0.999
    assert out.image.shape == depth.shape == (2, 3, HEIGHT, WIDTH)


def test_edges_are_antialiased() -> None:
    """A white strip before a black wall: each row's sum tells the strip's exact width."""
    build = ShapesBuilder(1, CPU)
    wall = torch.tensor([[-9.0, 0.1, 9.0], [18.0, 0.0, 0.0], [0.0, 0.0, -18.0]])
    strip = torch.tensor([[-0.31, 0.0, 9.0], [1.23, 0.0, 0.0], [0.6, 0.0, -18.0]])
    build.add_quads(torch.stack([wall, strip])[None])
    shapes = build.build()
    materials = plain(shapes, gain=0.0)
    materials.offset[:] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    T = look_at(torch.tensor([0.0, -5.0, 0.0]), torch.zeros(3), torch.tensor(0.0))
    cameras = Cameras(intrinsics(torch.tensor([[71.0]]), HEIGHT, WIDTH), T[None, None])
    out = render(shapes, materials, cameras, daylight(), smooth_bank(), HEIGHT, WIDTH)
    image = out.image[0, 0]
    width = 1.23 * 71 / 5
    assert abs(float(image.sum(1).mean()) - width) < 0.02
    assert float((image.sum(1) - width).abs().max()) < 0.5
    edge = (image > 0.05) & (image < 0.95)
    assert edge.any(1).float().mean() > 0.8
    assert edge.sum(1).max() <= 4


def test_far_textures_are_filtered() -> None:
    """A chequerboard far finer than the pixels becomes its mean."""
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2 * 255).to(torch.uint8)
    bank = TextureBank(board[None])
    build = ShapesBuilder(1, CPU)
    build.add_quads(
        torch.tensor([[-9.0, 0.0, 9.0], [18.0, 0.0, 0.0], [0.0, 0.0, -18.0]])[None, None]
    )
    shapes = build.build()
    materials = plain(shapes, width=4000.0, height=4000.0)
    image = render(shapes, materials, camera(), daylight(), bank, HEIGHT, WIDTH).image
    assert float((image - 0.5).abs().max()) < 0.01


def test_light_follows_the_normal() -> None:
    build = ShapesBuilder(1, CPU)
    build.add_quads(
        torch.tensor([[-9.0, 0.0, 9.0], [18.0, 0.0, 0.0], [0.0, 0.0, -18.0]])[None, None]
    )
    shapes = build.build()
    materials = plain(shapes, gain=0.0, offset=0.5)
    angle = 0.7
    sun = torch.tensor([math.sin(angle), -math.cos(angle), 0.0]).view(1, 1, 3)
    lights = Lights(sun, torch.full((1, 1), 0.3), torch.full((1, 1), 0.8))
    image = render(shapes, materials, camera(), lights, smooth_bank(), HEIGHT, WIDTH).image
    expected = 0.5 * (0.3 + 0.8 * math.cos(angle))
    assert float((image - expected).abs().max()) < 1e-5


def test_sphere_is_shaded_by_its_normal() -> None:
    build = ShapesBuilder(1, CPU)
    build.add_quads(torch.zeros(1, 1, 3, 3))
    build.add_round(torch.zeros(1, 1, 3), torch.eye(3).view(1, 1, 3, 3) * 1.5)
    shapes = build.build()
    sun = F.normalize(torch.tensor([0.6, -0.8, 0.5]), dim=0)
    lights = Lights(sun.view(1, 1, 3), torch.full((1, 1), 0.2), torch.full((1, 1), 0.7))
    materials = plain(shapes, gain=0.0, offset=1.0)
    cameras = camera()
    out = render(shapes, materials, cameras, lights, smooth_bank(), HEIGHT, WIDTH)
    centre, directions = rays(cameras)
    depth = out.depth[0, 0].double().numpy()
    normal = (centre + depth[..., None] * directions) / 1.5
    expected = 0.2 + 0.7 * np.maximum(normal @ sun.double().numpy(), 0)
    core = cv2.erode((depth > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert core.sum() > 500
    assert np.abs(out.image[0, 0].numpy() - expected)[core].max() < 0.02


@given(st.floats(-3, 3), st.floats(-1.2, 1.2), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_look_at(azimuth: float, elevation: float, roll: float) -> None:
    eye = 4 * torch.tensor(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    target = torch.tensor([0.1, -0.2, 0.05])
    T = look_at(eye, target, torch.tensor(roll))
    R, t = T[:3, :3], T[:3, 3]
    assert torch.allclose(R @ R.T, torch.eye(3), atol=1e-5)
    assert torch.linalg.det(R) > 0
    assert torch.allclose(R @ eye + t, torch.zeros(3), atol=1e-5)
    seen = R @ target + t
    assert torch.allclose(seen, torch.tensor([0, 0, float(seen.norm())]), atol=1e-5)
    up = R @ torch.tensor([0.0, 0.0, 1.0])  # turned the other way in the image
    angle = math.atan2(float(up[0]), -float(up[1]))
    assert abs(math.remainder(angle + roll, 2 * math.pi)) < 1e-4


def test_cameras_at_another_size_keep_the_contract_of_resizing() -> None:
    cameras = camera()
    other = cameras.at_size((HEIGHT, WIDTH), (31, 200))
    point = torch.tensor([0.3, -0.2, 2.0])
    x, y = ((cameras.K[0, 0] @ point) / point[2])[:2].tolist()
    x1, y1 = ((other.K[0, 0] @ point) / point[2])[:2].tolist()
    assert x1 == pytest.approx((x + 0.5) * 200 / WIDTH - 0.5, abs=1e-4)
    assert y1 == pytest.approx((y + 0.5) * 31 / HEIGHT - 0.5, abs=1e-4)


def test_padding_with_absent_primitives_changes_nothing() -> None:
    rng = Random(0)
    small, large = LAYOUTS["posters"](rng, 1), LAYOUTS["facade"](rng, 1)
    cameras = candidate_cameras(small, rng, 1, 0.5, 40, 40)
    alone = render_depth(small.shapes, cameras, 40, 40)
    both = concatenate([small.shapes, large.shapes]).select(torch.tensor([0]))
    assert both.quads.shape[1] > small.shapes.quads.shape[1]
    assert torch.equal(render_depth(both, cameras, 40, 40), alone)


# --- pairs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_warped_pairs_look_alike(name: str) -> None:
    """Depth and pose carry one image onto the other, to a fraction of a pixel."""
    sampler = PairSampler(smooth_bank(), 0.5, seed=3, layouts=[name], photometric=False)
    batch, height, width = 4, 96, 128
    shapes, cameras, _, span = sampler._scenes(batch, height, width)
    # Eight times magnified, the textures vary slowly, and agreement tells positions exactly.
    materials = random_materials(shapes, 8 * span, 40, sampler.textures, sampler.random, 0.0)
    out = render(shapes, materials, cameras, daylight(batch, 2), sampler.textures, height, width)
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
        # A shift by one pixel must be worse: the agreement is finer than that.
        shifted = (bilinear(image1, xy + 1) - image0).abs()[seen]
        assert shifted.mean() > 2 * error.mean()
        assert shifted.median() > 8 * error.median()
        # The other view's depth, interpolated where it is linear (1/z), is the warped one.
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

    def draw(seed: int) -> list[Tensor]:
        sampler = PairSampler(bank, 0.5, seed=seed)
        sampler.sample(2, 40, 56)
        pairs = sampler.sample(3, 40, 56)
        return [getattr(pairs, field.name) for field in dataclasses.fields(pairs)]

    first, again, other = draw(7), draw(7), draw(8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("least", "most"), [(0.6, 0.8), (0.1, 0.3)])
def test_overlap_is_as_asked(least: float, most: float) -> None:
    sampler = PairSampler(smooth_bank(2), 0.6, seed=4, overlap=(least, most), photometric=False)
    pairs = sampler.sample(16, 96, 96)
    assert ((pairs.overlap >= least) & (pairs.overlap <= most)).all()
    # The same measured at full resolution.
    depth = torch.stack([pairs.depth0, pairs.depth1], 1)
    eye = torch.eye(4).expand(16, 4, 4)
    cameras = Cameras(torch.stack([pairs.K0, pairs.K1], 1), torch.stack([eye, pairs.T_0to1], 1))
    full = pair_overlap(depth, cameras)[:, 0]
    assert (full - pairs.overlap).abs().mean() < 0.05


def test_impossible_overlap_is_an_error() -> None:
    sampler = PairSampler(smooth_bank(1), 0.5, overlap=(1.5, 2.0))
    sampler.ROUNDS = 2  # type: ignore[misc]
    with pytest.raises(EdmHlocError, match="wider range"):
        sampler.sample(1, 32, 32)


def test_difficulty_moves_the_cameras_apart() -> None:
    def spread(difficulty: float) -> tuple[float, float]:
        sampler = PairSampler(smooth_bank(2), difficulty, seed=0, photometric=False)
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


# --- photometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_photographs_are_images(difficulty: float) -> None:
    images = torch.rand(24, 41, 59, generator=torch.manual_seed(0))
    images[0], images[1] = 0, 1  # all black, all white
    depth = torch.rand(24, 41, 59, generator=torch.manual_seed(1)) * 9
    depth[2] = 0  # nothing but sky
    before = images.clone()
    out = photometric.photograph(images, depth, Random(0), difficulty)
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(images, before)
    assert not torch.equal(out, images)


def test_haze() -> None:
    images = torch.full((2, 8, 8), 0.2)
    depth = torch.full((2, 8, 8), 5.0)
    out = photometric.haze(images, depth, torch.tensor([0.0, 0.7]))
    assert torch.allclose(out[0], images[0])
    clear = math.exp(-0.7)
    assert torch.allclose(out[1], torch.tensor(0.2 * clear + 0.8 * (1 - clear)), atol=1e-6)


def test_noise_has_the_deviation_asked_for() -> None:
    images = torch.full((2, 200, 200), 0.5)
    noisy = photometric.noise(
        images, Random(0), torch.tensor([1000.0, 1e9]), torch.tensor([0.0, 0.02])
    )
    expected = [math.sqrt(0.5 / 1000), 0.02]
    assert noisy.std((1, 2)).tolist() == pytest.approx(expected, rel=0.02)
    assert (noisy - images).mean().abs() < 5e-4


def test_blur_keeps_the_mean_and_smooths() -> None:
    images = torch.rand(6, 64, 64, generator=torch.manual_seed(0))
    blurred = photometric.blur(images, Random(0), 1.5)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert (blurred[inner].mean((1, 2)) - images[inner].mean((1, 2))).abs().max() < 0.02
    assert (blurred.std((1, 2)) < 0.97 * images.std((1, 2))).all()
    flat = torch.full((2, 30, 40), 0.3)
    assert torch.allclose(photometric.blur(flat, Random(1), 1.5), flat, atol=1e-5)


def test_jpeg_is_like_the_library() -> None:
    """Quality for quality, the error is that of OpenCV's encoder."""
    image = torch.from_numpy(dead_leaves(128, np.random.default_rng(0))).float() / 255
    image = F.avg_pool2d(image[None, None], 2)[0]
    errors = []
    for quality in (20, 50, 90):
        mine = photometric.jpeg(image, Random(0), torch.tensor([float(quality)]))
        grey = (image[0] * 255).round().to(torch.uint8).numpy()
        _, blob = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
        theirs = torch.from_numpy(cv2.imdecode(blob, cv2.IMREAD_GRAYSCALE)).float() / 255
        ours, other = (float((v - image[0]).square().mean().sqrt()) for v in (mine[0], theirs))
        assert ours == pytest.approx(other, rel=0.15)
        errors.append(ours)
    assert errors[0] > errors[1] > errors[2]


# --- textures -------------------------------------------------------------------------------------


def test_dead_leaves_have_the_spectrum_of_nature() -> None:
    slopes = []
    for seed in range(3):
        texture = dead_leaves(256, np.random.default_rng(seed)).astype(float)
        window = np.outer(np.hanning(256), np.hanning(256))
        spectrum = np.abs(np.fft.fft2((texture - texture.mean()) * window)) ** 2
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)) * 256
        bounds = np.geomspace(6, 90, 10)
        power = [
            spectrum[(frequency >= low) & (frequency < high)].mean()
            for low, high in itertools.pairwise(bounds)
        ]
        slopes.append(np.polyfit(np.log(bounds[:-1]), np.log(power), 1)[0])
    assert np.mean(slopes) == pytest.approx(-2, abs=0.4)


def test_painted_textures_fill_their_range() -> None:
    rng = np.random.default_rng(0)
    leaves = dead_leaves(64, rng)
    for texture in (leaves, facade(64, rng), repeated(leaves, rng)):
        assert texture.shape == (64, 64)
        assert texture.dtype == np.uint8
        assert texture.std() > 10


def test_texels_are_found_where_they_are() -> None:
    textures = torch.randint(0, 256, (3, 16, 16), generator=torch.manual_seed(0)).to(torch.uint8)
    bank = TextureBank(textures)
    number = torch.arange(3, dtype=torch.int32).repeat_interleave(256)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    x, y = (v.flatten().repeat(3) + 0.5 for v in (x, y))
    one = torch.ones_like(x)
    expected = textures.flatten().float() / 255
    assert torch.allclose(bank.sample(number, x, y, one), expected, atol=1e-6)
    # Outside, the mirror image.
    assert torch.allclose(bank.sample(number, -x, y, one), expected, atol=1e-3)
    assert torch.allclose(bank.sample(number, 32 - x, y + 64, one), expected, atol=1e-3)
    # Between two texels, their mean; over all of them, the mean of all.
    left = bank.sample(number, x, y, one).view(3, 16, 16)
    between = bank.sample(number, x + 0.5, y, one).view(3, 16, 16)
    assert torch.allclose(between[:, :, :-1], (left[:, :, :-1] + left[:, :, 1:]) / 2, atol=1e-6)
    whole = bank.sample(number, x, y, one * 256)
    assert torch.allclose(whole, expected.view(3, -1).mean(1).repeat_interleave(256), atol=0.02)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    assert bank.sample(number[:4], wild, wild, wild).isfinite().all()


def test_pack_is_read_back(tmp_path: Path) -> None:
    bank = TextureBank.procedural(4, 64, seed=3)
    path = tmp_path / "pack of textures"
    bank.save(path, quality=95)
    again = TextureBank.load(path)
    assert len(again) == 4
    assert again.size == 64
    assert (again.textures.float() - bank.textures.float()).abs().mean() < 4
    assert len(TextureBank.load(path, limit=2)) == 2
    (tmp_path / "no.npz").write_bytes(b"nothing")
    with pytest.raises(EdmHlocError, match=r"no\.npz"):
        TextureBank.load(tmp_path / "no.npz")


def test_folder_of_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EdmHlocError, match="procedural"):
        TextureBank.from_folder(tmp_path, size=64)
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (100, 150, 3), np.uint8)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "wide.png"), wide)
    cv2.imwrite(str(tmp_path / "small.png"), wide[:20, :20])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "empty.jpg").touch()
    with caplog.at_level(logging.WARNING):
        bank = TextureBank.from_folder(tmp_path, size=64)
    assert "broken.jpg" in caplog.text
    assert "empty.jpg" in caplog.text
    assert bank.textures.shape == (3, 64, 64)  # two squares and one of repeated pieces
    grey = cv2.cvtColor(wide, cv2.COLOR_BGR2GRAY)
    expected = cv2.resize(grey[:, :100], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(bank.textures[0].numpy().astype(int) - expected).max() <= 2


def test_bad_textures_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        TextureBank(torch.zeros(1, 48, 48, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(N, S, S\)"):
        TextureBank(torch.zeros(1, 64, 32, dtype=torch.uint8))


# --- collections ----------------------------------------------------------------------------------


def test_photo_collection(tmp_path: Path) -> None:
    bank = TextureBank.procedural(8, 64)
    images = make_photo_collection(
        tmp_path, views=5, size=(161, 121), textures=bank, depth_maps=True
    )
    truth = pycolmap.Reconstruction(tmp_path / "truth")
    assert truth.num_reg_images() == 5
    assert sorted(i.name for i in truth.images.values()) == sorted(p.name for p in images.iterdir())
    photos, depths, posed = [], [], []
    for image in sorted(truth.images.values(), key=lambda i: i.name):
        photos.append(cv2.imread(str(images / image.name)))
        depths.append(np.load(tmp_path / "depth" / image.name.replace(".jpg", ".npy")))
        posed.append(image)
        assert photos[-1].shape == (121, 161, 3)
        assert photos[-1].std() > 15
        assert (depths[-1] > 0).mean() > 0.5
    # Pixels go through COLMAP's own cameras from one view to the next, and arrive at its depth.
    camera = truth.camera(1)
    y, x = np.mgrid[5:116:4, 5:156:4]
    z = depths[1][y, x]
    keep = z > 0
    pixels = np.stack([x[keep], y[keep]], 1) + 0.5
    rays_ = np.concatenate([camera.cam_from_img(pixels), np.ones((len(pixels), 1))], 1)
    world = (posed[1].cam_from_world().inverse().matrix() @ _homogeneous(rays_ * z[keep, None])).T
    local = (posed[2].cam_from_world().matrix() @ _homogeneous(world)).T
    there = camera.img_from_cam(local) - 0.5
    inside = (there > 2).all(1) & (there < np.array([158, 118])).all(1)
    found = cv2.remap(
        1 / np.maximum(depths[2], 1e-3), np.float32(there[inside]), None, cv2.INTER_LINEAR
    )[:, 0]
    ratio = found * local[inside, 2]
    assert inside.mean() > 0.6
    assert np.mean(np.abs(ratio - 1) < 1e-3) > 0.6
    grey = [cv2.cvtColor(p, cv2.COLOR_BGR2GRAY).astype(np.float32) for p in photos]
    same = np.abs(ratio - 1) < 1e-3
    values = cv2.remap(grey[2], np.float32(there[inside][same]), None, cv2.INTER_LINEAR)[:, 0]
    before = grey[1][y, x][keep][inside][same]
    assert np.corrcoef(values, before)[0, 1] > 0.8


def test_collections_are_reproducible(tmp_path: Path) -> None:
    bank = smooth_bank(8)
    folders = [
        make_photo_collection(tmp_path / name, views=2, size=(64, 48), seed=seed, textures=bank)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = ((f / "view_00.jpg").read_bytes() for f in folders)
    assert first == again
    assert first != other


def _homogeneous(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], 1).T

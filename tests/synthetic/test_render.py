"""The renderer agrees with closed forms: depth, edges, texture filtering and light."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edm_hloc.synthetic.appearance import Lights
from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
from edm_hloc.synthetic.layouts import LAYOUTS
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.random_views import candidate_cameras
from edm_hloc.synthetic.renderer.render import render_depth
from edm_hloc.synthetic.shapes import Shapes, ShapesBuilder, concatenate, rotation
from edm_hloc.synthetic.textures import TextureBank
from tests.synthetic.simple_scenes import (
    CPU,
    HEIGHT,
    WIDTH,
    camera,
    daylight,
    plain,
    rays,
    rendered,
    smooth_bank,
)


def test_depth_and_image_of_a_plane() -> None:
    build = ShapesBuilder(1, CPU)
    quad = torch.tensor([[-2.0, 0.5, 2.0], [4.5, -1.0, 0.3], [0.4, 0.7, -3.5]])
    build.add_quads(quad[None, None])
    shapes, cameras, bank = build.build(), camera(), smooth_bank()
    out = rendered(shapes, plain(shapes), cameras, bank, daylight())
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
    # Away from the edges the image is the texture, sampled at each pixel's centre.
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
    """Depth of the nearest hit of all primitives, (H, W) float64, without tiles."""
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
    out = rendered(layout.shapes, plain(layout.shapes), cameras, smooth_bank(), daylight(2, 3))
    depth = render_depth(layout.shapes, cameras, HEIGHT, WIDTH)
    assert torch.isclose(out.depth, depth, rtol=1e-4).float().mean() > 0.999
    assert out.image.shape == depth.shape == (2, 3, HEIGHT, WIDTH)


def test_edges_are_antialiased() -> None:
    """A white strip in front of a black wall: the sum of a row is the width of the strip."""
    build = ShapesBuilder(1, CPU)
    wall = torch.tensor([[-9.0, 0.1, 9.0], [18.0, 0.0, 0.0], [0.0, 0.0, -18.0]])
    strip = torch.tensor([[-0.31, 0.0, 9.0], [1.23, 0.0, 0.0], [0.6, 0.0, -18.0]])
    build.add_quads(torch.stack([wall, strip])[None])
    shapes = build.build()
    materials = plain(shapes, gain=0.0)
    materials.offset[:] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    T = look_at(torch.tensor([0.0, -5.0, 0.0]), torch.zeros(3), torch.tensor(0.0))
    cameras = Cameras(intrinsics(torch.tensor([[71.0]]), HEIGHT, WIDTH), T[None, None])
    out = rendered(shapes, materials, cameras, smooth_bank(), daylight())
    image = out.image[0, 0]
    width = 1.23 * 71 / 5
    assert abs(float(image.sum(1).mean()) - width) < 0.02
    assert float((image.sum(1) - width).abs().max()) < 0.5
    edge = (image > 0.05) & (image < 0.95)
    assert edge.any(1).float().mean() > 0.8
    assert edge.sum(1).max() <= 4


def test_far_textures_are_filtered() -> None:
    """A chequerboard much finer than the pixels is rendered as its mean."""
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2 * 255).to(torch.uint8)
    bank = TextureBank(board[None])
    build = ShapesBuilder(1, CPU)
    build.add_quads(
        torch.tensor([[-9.0, 0.0, 9.0], [18.0, 0.0, 0.0], [0.0, 0.0, -18.0]])[None, None]
    )
    shapes = build.build()
    materials = plain(shapes, width=4000.0, height=4000.0)
    image = rendered(shapes, materials, camera(), bank, daylight()).image
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
    image = rendered(shapes, materials, camera(), smooth_bank(), lights).image
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
    out = rendered(shapes, materials, cameras, smooth_bank(), lights)
    centre, directions = rays(cameras)
    depth = out.depth[0, 0].double().numpy()
    normal = (centre + depth[..., None] * directions) / 1.5
    expected = 0.2 + 0.7 * np.maximum(normal @ sun.double().numpy(), 0)
    core = cv2.erode((depth > 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert core.sum() > 500
    assert np.abs(out.image[0, 0].numpy() - expected)[core].max() < 0.02


def test_padding_with_absent_primitives_changes_nothing() -> None:
    rng = Random(0)
    small, large = LAYOUTS["posters"](rng, 1), LAYOUTS["facade"](rng, 1)
    cameras = candidate_cameras(small, rng, 1, 0.5, 40, 40)
    alone = render_depth(small.shapes, cameras, 40, 40)
    both = concatenate([small.shapes, large.shapes]).select(torch.tensor([0]))
    assert both.quads.shape[1] > small.shapes.quads.shape[1]
    assert torch.equal(render_depth(both, cameras, 40, 40), alone)

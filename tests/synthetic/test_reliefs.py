"""Reliefs of photos: rays against closed forms, images against each other, pairs for training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.cameras import Cameras, intrinsics, look_at
from edm_hloc.synthetic.covisibility import covisible, warp
from edm_hloc.synthetic.painted_textures import dead_leaves
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.relief_pairs import RELIEF_TOLERANCE, ReliefSampler
from edm_hloc.synthetic.reliefs import CELLS, Relief, cast, grey_values, lift
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.supervision import DepthMap, supervise
from tests.synthetic.simple_scenes import later_pairs

FRAME = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, -1, 0]])  # a wall: v down, h towards -y
HEIGHT, WIDTH = 313, 471


@pytest.fixture(scope="module")
def bank() -> TextureBank:
    painted = [dead_leaves(256, np.random.default_rng(i)) for i in range(4)]
    return TextureBank(torch.from_numpy(np.stack(painted)))


def camera(
    *centre: float, focal: float = 400.0, height: int = HEIGHT, width: int = WIDTH
) -> Cameras:
    """A camera at a point that looks at the middle of the relief."""
    pose = look_at(torch.tensor([centre]), torch.zeros(1, 3), torch.zeros(1))
    return Cameras(intrinsics(torch.full((1, 1), focal), height, width), pose[:, None])


def flat(photos: int = 1, level: float = 0.0) -> Relief:
    heights = torch.full((CELLS, CELLS), level)
    return Relief(torch.arange(photos * photos).view(photos, photos), heights, FRAME)


def test_a_flat_relief_is_seen_by_its_homography(bank: TextureBank) -> None:
    relief, view = flat(level=0.05), camera(0.3, -1.0, 0.2)
    depth, uv = cast(relief, view, HEIGHT, WIDTH)
    # The plane h = 0.05 in the camera: H maps (u, v, 1) to pixels.
    T = view.cam_from_world[0, 0]
    columns = torch.cat([FRAME[:, :2], 0.05 * FRAME[:, 2:]], 1)
    H = view.K[0, 0] @ (
        T[:3, :3] @ columns + torch.stack([0 * T[:3, 3], 0 * T[:3, 3], T[:3, 3]], 1)
    )
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    where = torch.stack([x, y, torch.ones_like(x)], -1).float() @ torch.linalg.inv(H).T
    expected = where[..., :2] / where[..., 2:]
    inside = (expected.abs() < 0.499).all(-1)
    outside = (expected.abs() > 0.501).any(-1)
    assert 0.5 < inside.float().mean() < 0.95
    assert (depth[0][inside] > 0).all()
    assert (depth[0][outside] == 0).all()
    assert (uv[0] - expected)[inside].abs().max() < 1e-4
    assert (depth[0] * where[..., 2] - 1)[inside].abs().max() < 1e-4
    grey = grey_values(relief, bank, uv, depth)[0]
    texture = bank.textures[0].float()[None, None] / 255
    grid = expected[None] * 2
    shown = F.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)[0, 0]
    assert (grey - shown)[inside].abs().mean() < 0.01


def test_the_nearer_of_two_surfaces_hides_the_other() -> None:
    heights = torch.zeros(CELLS, CELLS)
    heights[:, CELLS // 2 :] = 0.2  # a step at u = 0
    relief = Relief(torch.zeros(1, 1, dtype=torch.int64), heights, FRAME)
    view = camera(0.8, -0.8, 0.0, focal=70.0, height=64, width=96)
    depth, uv = cast(relief, view, 64, 96)
    seen = uv[0][depth[0] > 0][:, 0]
    # The eye is at u = 0.8, h = 0.8: the edge at (0, 0.2) hides what is left of it to u = -0.267.
    # Rays that meet less of the step than a sixteenth of its height may miss it.
    assert ((seen > -0.24) & (seen < -0.01)).sum() == 0
    assert (seen < -0.3).sum() > 100
    assert (seen > 0.01).sum() > 1000


def test_minified_photos_are_filtered(bank: TextureBank) -> None:
    stripes = torch.arange(256)[None, :].remainder(2).mul(255).expand(256, 256)
    striped = TextureBank(stripes.to(torch.uint8)[None].contiguous())
    relief = flat()
    for place in ((0.0, -2.6, 0.0), (-1.9, -0.7, 0.0)):  # far away, and obliquely
        view = camera(*place, focal=150.0, height=96, width=128)
        depth, uv = cast(relief, view, 96, 128)
        grey = grey_values(relief, striped, uv, depth)[depth > 0]
        assert len(grey) > 500
        assert (grey - 0.5).abs().quantile(0.9) < 0.13


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (96, 128)])
def test_one_image_is_the_other_one_warped(bank: TextureBank, shape: tuple[int, int]) -> None:
    sampler = ReliefSampler(bank, 0.3, seed=2, photometric_effects=False)
    pairs = sampler.sample(3, *shape)
    assert pairs.image0.shape == pairs.image1.shape == (3, 1, *shape)
    assert pairs.depth0.shape == pairs.depth1.shape == (3, *shape)
    eye = torch.eye(4).expand(3, 4, 4)
    xy, z = warp(pairs.depth0, pairs.K0, eye, pairs.K1, pairs.T_0to1)
    both = covisible(pairs.depth0, xy, z, pairs.depth1, 0.003)
    size = torch.tensor([shape[1], shape[0]])
    grid = (xy.nan_to_num(0) + 0.5) / size * 2 - 1
    shown = F.grid_sample(pairs.image1, grid, padding_mode="border", align_corners=False)[:, 0]
    error = (shown - pairs.image0[:, 0]).abs()
    moved = (shown.roll(2, 2) - pairs.image0[:, 0]).abs()
    for i in range(3):
        assert both[i].float().mean() > 0.1
        assert error[i][both[i]].mean() < 0.03
        assert error[i][both[i]].mean() < 0.3 * moved[i][both[i]].mean()


def test_heights_are_a_relief_without_tears(bank: TextureBank) -> None:
    rng = Random(3)
    number = torch.zeros(1, 1, dtype=torch.int64)
    extents = []
    for _ in range(8):
        heights = lift(bank, number, FRAME, rng).heights
        extents.append(float(heights.max() - heights.min()))
        steep = torch.cat([heights.diff(dim=0).flatten(), heights.diff(dim=1).flatten()]).abs()
        assert steep.quantile(0.99) * CELLS < 1.8 + 1e-3
        assert abs(float(heights.mean())) < 1e-4
    assert 0.01 < min(extents) < max(extents) < 0.26


def test_same_seed_same_pairs(bank: TextureBank) -> None:
    first, again, other = (later_pairs(ReliefSampler(bank, 0.5, seed=s)) for s in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_pairs_teach_and_borders_do_not(bank: TextureBank) -> None:
    pairs = ReliefSampler(bank, 0.5, seed=1).sample(6, 160, 224)
    truth = supervise(
        DepthMap(pairs.depth0, pairs.K0),
        DepthMap(pairs.depth1, pairs.K1),
        pairs.T_0to1,
        RELIEF_TOLERANCE,
    )
    assert (truth.partner >= 0).float().mean() > 0.2
    assert ((pairs.overlap >= 0.265) & (pairs.overlap <= 0.95)).all()
    for image, depth in ((pairs.image0, pairs.depth0), (pairs.image1, pairs.depth1)):
        assert image.min() >= 0
        assert image.max() <= 1
        bare = depth <= 0
        assert bare.float().mean((1, 2)).max() < 0.35
        assert image[:, 0][bare].std() > 0.05  # another photo, not a constant


def test_no_overlap_is_an_error(bank: TextureBank) -> None:
    sampler = ReliefSampler(bank, 0.5)
    sampler.ROUNDS, sampler.SEEN = 2, 1.5
    with pytest.raises(EdmHlocError, match="overlap"):
        sampler.sample(1, 48, 64)

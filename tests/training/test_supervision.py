"""Ground truth of the coarse and the fine stage against closed forms."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from edm_hloc.synthetic.pairs import PairOptions, PairSampler
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.sparse_supervision import sparse_supervision
from edm_hloc.training.supervision import (
    DepthMap,
    Supervision,
    depth_at,
    fine_targets,
    grid_points,
    pad_with_truth,
    supervise,
    surely_wrong,
    warp_points,
)
from tests.training.tools import (
    pinhole,
    plane_depth,
    rotation,
    shifted,
)


def test_warp_of_a_plane_is_its_homography() -> None:
    height, width = 313, 471
    K0, K1 = pinhole(400.0, height, width), pinhole(520.0, height, width)
    normal, offset = torch.tensor([0.2, -0.3, 0.9]), 4.0
    T = torch.eye(4)
    T[:3, :3] = rotation(1, 12.0) @ rotation(2, 25.0)
    T[:3, 3] = torch.tensor([0.4, -0.1, 0.3])
    normal1 = T[:3, :3] @ normal
    offset1 = offset + float(normal1 @ T[:3, 3])
    truth = supervise(
        DepthMap(plane_depth(normal, offset, K0, height, width)[None], K0[None]),
        DepthMap(plane_depth(normal1, offset1, K1, height, width)[None], K1[None]),
        T[None],
    )
    H = K1 @ (T[:3, :3] + torch.outer(T[:3, 3], normal) / offset) @ torch.linalg.inv(K0)
    points = grid_points((height // 8, width // 8))
    expected = torch.cat([points, torch.ones(len(points), 1)], 1) @ H.T
    expected = expected[:, :2] / expected[:, 2:]
    inside = ((expected > -0.5) & (expected < torch.tensor([width, height]) - 0.5)).all(1)
    assert 0.3 < inside.float().mean() < 0.95  # the case tests both
    assert torch.equal(truth.visible0[0], inside)
    torch.testing.assert_close(truth.warped0[0][inside], expected[inside], atol=2e-3, rtol=0)


def test_corner_frame_is_the_centre_frame_moved_by_half_a_pixel() -> None:
    """Targets of a plane: the homography of hloc's frame, conjugated by that translation."""
    height, width = 313, 471
    K0, K1 = pinhole(400.0, height, width), pinhole(620.0, height, width)
    normal, offset = torch.tensor([0.2, -0.3, 0.9]), 4.0
    T = torch.eye(4)
    T[:3, :3] = rotation(1, 12.0) @ rotation(2, 25.0)
    T[:3, 3] = torch.tensor([0.4, -0.1, 0.3])
    normal1 = T[:3, :3] @ normal
    offset1 = offset + float(normal1 @ T[:3, 3])
    maps = (
        DepthMap(plane_depth(normal, offset, K0, height, width)[None], K0[None]),
        DepthMap(plane_depth(normal1, offset1, K1, height, width)[None], K1[None]),
    )
    centre, corner = (supervise(*maps, T[None], origin=origin) for origin in ("centre", "corner"))
    H = K1 @ (T[:3, :3] + torch.outer(T[:3, 3], normal) / offset) @ torch.linalg.inv(K0)
    to_corner = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    points = torch.cat([grid_points(centre.grid0), torch.ones(centre.warped0.shape[1], 1)], dim=1)
    for truth, frame in ((centre, torch.eye(3)), (corner, to_corner)):
        expected = points @ (frame @ H @ torch.linalg.inv(frame)).T
        expected = expected[:, :2] / expected[:, 2:]
        visible = truth.visible0[0]
        assert visible.float().mean() > 0.3
        torch.testing.assert_close(truth.warped0[0][visible], expected[visible], atol=5e-3, rtol=0)
        cells = (truth.partner[0] >= 0).nonzero()[:, 0]
        target, valid = fine_targets(truth, cells[None], truth.partner[:, cells])
        offsets = (expected[cells] - grid_points(truth.grid1)[truth.partner[0, cells]]) / 8
        known = valid[0, : len(cells)]
        torch.testing.assert_close(
            target[0, : len(cells)][known], offsets[known], atol=1e-3, rtol=0
        )
    # The two differ by up to half a pixel times the change of scale, so they are not the same.
    both = centre.visible0 & corner.visible0
    assert 0.2 < float((centre.warped0 - corner.warped0)[both].norm(dim=1).median()) < 0.7


def test_sparse_corner_frame_is_the_centre_frame_moved_by_half_a_pixel() -> None:
    A = torch.tensor([[1.5, -0.4], [0.4, 1.5]])
    generator = torch.Generator().manual_seed(0)
    points0 = torch.rand(2000, 2, generator=generator) * torch.tensor([160.0, 120.0])
    points1 = points0 @ A.T
    for origin, shift in (("centre", 0.0), ("corner", 0.5)):
        truth = sparse_supervision(points0, points1, (120, 160), (240, 320), origin)
        visible = truth.visible0[0]
        expected = (grid_points(truth.grid0) - shift) @ A.T + shift
        assert visible.float().mean() > 0.5
        error = (truth.warped0[0][visible] - expected[visible]).norm(dim=1)
        assert error.max() < 0.01  # half a pixel would be 0.45 px here


def test_depth_between_pixels() -> None:
    """It is exact on planes, also beyond the outermost pixels' centres, and unknown at edges."""
    K = pinhole(50.0, 24, 32)
    normal = torch.tensor([0.3, -0.2, 0.9])
    depth = plane_depth(normal, 4.0, K, 24, 32)[None]
    points = grid_points((3, 4))[None] - 0.5
    rays = torch.cat([points, torch.ones(1, 12, 1)], dim=-1) @ torch.linalg.inv(K).T
    torch.testing.assert_close(depth_at(depth, points, 0.2), 4.0 / (rays @ normal))
    integers = grid_points((3, 4))[None]
    assert torch.equal(depth_at(depth, integers, 0.2)[0], depth[0, ::8, ::8].flatten())
    depth[0, :, 16:] += 3.0  # an edge between the pixels 15 and 16
    depth[0, :8] = 0.0  # unknown
    known = depth_at(depth, points, 0.2)[0].view(3, 4) > 0
    assert known.tolist() == [[False] * 4, [False] * 4, [True, True, False, True]]


def test_shift_by_less_than_half_a_cell_keeps_cells_and_gives_the_offset() -> None:
    truth = shifted(3.0, -2.0)
    rows, columns = truth.grid0
    own = torch.arange(rows * columns).view(rows, columns)
    inner = own[1:, 1:].flatten()  # the others leave the image, on the way there or back
    assert torch.equal(truth.partner[0, inner], inner)
    target, valid = fine_targets(truth, inner[None], inner[None])
    k = len(inner)
    assert valid[0, :k].all()
    torch.testing.assert_close(target[0, :k], torch.tensor([3 / 8, -2 / 8]).expand(k, 2))
    back = valid[0, k:]
    expected = torch.tensor([-3 / 8, 2 / 8]).expand(int(back.sum()), 2)
    torch.testing.assert_close(target[0, k:][back], expected)


def test_shift_beyond_half_a_cell_moves_to_the_next() -> None:
    truth = shifted(10.0)
    rows, columns = truth.grid0
    partner = truth.partner.view(rows, columns)
    own = torch.arange(rows * columns).view(rows, columns)
    assert torch.equal(partner[:, 1:-1], own[:, 2:])
    # The first column has no partner: on the way back it is warped 2 px out of the image.
    assert (partner[:, [0, -1]] == -1).all()
    target, valid = fine_targets(truth, own[:, 1:-1].reshape(1, -1), own[:, 2:].reshape(1, -1))
    assert valid.all()
    torch.testing.assert_close(target[0, 0], torch.tensor([2 / 8, 0.0]))
    # The offset from another cell is too large.
    assert not fine_targets(truth, own[:, :-1].reshape(1, -1), own[:, :-1].reshape(1, -1))[1].any()


def test_offset_of_exactly_half_a_cell_is_not_valid() -> None:
    truth = shifted(4.0)
    own = torch.arange(truth.grid0[1])[None]
    assert not fine_targets(truth, own, own, bidirectional=False)[1].any()


def test_occluded_and_unknown_points_have_no_truth() -> None:
    K = pinhole(100.0, 64, 96)[None]
    depth0 = torch.full((1, 64, 96), 5.0)
    depth0[0, :16] = 0.0  # no depth in the first two rows of cells
    depth1 = torch.full((1, 64, 96), 5.0)
    depth1[0, :, 40:] = 2.0  # something in front of the right half of image 1
    truth = supervise(DepthMap(depth0, K), DepthMap(depth1, K), torch.eye(4)[None])
    seen = truth.visible0.view(8, 12)
    assert not seen[:2].any()
    assert seen[2:, :5].all()
    assert not seen[2:, 6:].any()
    assert not (truth.partner.view(8, 12)[:, 6:] >= 0).any()
    _, valid = fine_targets(truth, torch.tensor([[2 * 12 + 8]]), torch.tensor([[2 * 12 + 8]]))
    assert not valid.any()


def test_matches_far_from_the_true_position_are_surely_wrong_where_that_is_known() -> None:
    K = pinhole(100.0, 64, 96)[None]
    depth0 = torch.full((1, 64, 96), 5.0)
    depth0[0, :16] = 0.0  # no depth in the first two rows of cells
    depth1 = torch.full((1, 64, 96), 5.0)
    depth1[0, :, 40:] = 2.0  # something in front of the right half of image 1
    T = torch.eye(4)[None].clone()
    T[0, 0, 3] = -1.6  # 32 px, four cells to the left
    truth = supervise(DepthMap(depth0, K), DepthMap(depth1, K), T)
    own = torch.arange(8 * 12)[None]
    true = (own - 4).clamp(min=0)
    wrong = surely_wrong(truth, own, true).view(8, 12)
    assert not wrong[:, 4:].any()  # visible, occluded or unknown, and where it should be
    assert not wrong[:2].any()  # nothing is known there
    assert wrong[2:, :2].all()  # left of image 1 by more than two cells: no match is right
    for cells, expected in ((2, False), (3, True)):
        for step in (cells, 12 * cells):
            found = surely_wrong(truth, own, (true - step).clamp(min=0)).view(8, 12)
            assert bool(found[6:, 8:].all()) == bool(found[6:, 8:].any()) == expected


def test_points_behind_the_other_camera_are_not_visible() -> None:
    K = pinhole(100.0, 64, 64)[None]
    T = torch.eye(4)[None].clone()
    T[0, 2, 3] = -9.0
    depth = torch.full((1, 64, 64), 5.0)
    truth = supervise(DepthMap(depth, K), DepthMap(depth, K), T)
    assert not truth.visible0.any()
    assert (truth.partner == -1).all()
    assert torch.isfinite(truth.warped0).all()


@settings(max_examples=25, deadline=None)
@given(
    zoom=st.floats(0.4, 2.5),
    roll=st.floats(-90, 90),
    shift=st.tuples(st.floats(-40, 40), st.floats(-40, 40)),
)
def test_true_matches_are_one_to_one_and_close(
    zoom: float, roll: float, shift: tuple[float, float]
) -> None:
    K0, K1 = pinhole(100.0, 96, 128)[None], pinhole(100.0 * zoom, 96, 128)[None]
    T = torch.eye(4)[None].clone()
    T[0, :3, :3] = rotation(2, roll)
    T[0, :2, 3] = torch.tensor(shift) / 20
    depth = torch.full((1, 96, 128), 5.0)
    truth = supervise(DepthMap(depth, K0), DepthMap(depth, K1), T)
    row = (truth.partner[0] >= 0).nonzero()[:, 0]
    column = truth.partner[0, row]
    assert len(column.unique()) == len(column)
    pixel = grid_points(truth.grid1)[column]
    assert ((truth.warped0[0, row] - pixel).abs() <= 4 + 1e-3).all()
    back = grid_points(truth.grid0)[row]
    assert ((truth.warped1[0, column] - back).abs() <= 4 + 1e-3).all()


def test_padding_fills_up_to_the_minimum_and_keeps_what_is_right() -> None:
    truth = Supervision(*(torch.cat([t, t]) for t in shifted(3.0)[:6]), (12, 16), (12, 16))
    cell0 = torch.arange(40).repeat(2, 1)
    cell1 = cell0.clone()
    cell1[0, 10:] += 5  # pair 0: 10 right, 30 wrong; pair 1: all right
    padded0, padded1 = pad_with_truth(truth, cell0, cell1, 32, torch.Generator().manual_seed(0))
    _, valid = fine_targets(truth, padded0, padded1, bidirectional=False)
    assert valid.sum(1).tolist() == [32, 40]
    assert torch.equal(padded0[0, :10], cell0[0, :10])
    assert torch.equal(padded0[1], cell0[1])
    assert torch.equal(padded1[1], cell1[1])
    drawn = padded0[0, 10:32]
    assert torch.equal(truth.partner[0, drawn], padded1[0, 10:32])
    assert len(drawn.unique()) == len(drawn)


def test_padding_takes_what_there_is() -> None:
    truth = shifted(3.0)
    partner = torch.full_like(truth.partner, -1)
    partner[0, [20, 30, 40]] = torch.tensor([20, 30, 40])
    truth = truth._replace(partner=partner)
    cell0 = torch.arange(50)[None]
    padded0, _ = pad_with_truth(truth, cell0, cell0 + 7, 32)
    assert sorted(padded0[0, :3].tolist()) == [20, 30, 40]
    assert torch.equal(padded0[0, 3:], cell0[0, 3:])
    nothing = truth._replace(partner=torch.full_like(partner, -1))
    assert torch.equal(pad_with_truth(nothing, cell0, cell0 + 7, 32)[0], cell0)


def test_rendered_images_agree_with_their_truth() -> None:
    """High-pass filtered images correlate best at the true warp, and less one pixel beside it."""
    options = PairOptions(photometric_effects=False)
    sampler = PairSampler(TextureBank.dead_leaves(4, 512), 0.1, seed=1, options=options)
    pairs = sampler.sample(6, 96, 128)
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, -1, 2).float().expand(6, -1, -1)
    depth0, depth1 = DepthMap(pairs.depth0, pairs.K0), DepthMap(pairs.depth1, pairs.K1)
    warped, visible = warp_points(points, depth0, depth1, pairs.T_0to1, 0.02)
    detail0, detail1 = (i - F.avg_pool2d(i, 9, 1, 4) for i in (pairs.image0, pairs.image1))
    detail0 = detail0.flatten()[visible.flatten()]
    correlations = {}
    for shift in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
        grid = (warped + torch.tensor(shift) + 0.5) / torch.tensor([128.0, 96.0]) * 2 - 1
        seen = F.grid_sample(detail1, grid[:, None], align_corners=False).flatten()
        seen = seen[visible.flatten()]
        correlations[shift] = float(F.cosine_similarity(detail0, seen, dim=0))
    best = correlations.pop((0, 0))
    assert best > 0.5
    assert best > 1.15 * max(correlations.values())


def test_sparse_truth_agrees_with_the_dense_one() -> None:
    height, width = 240, 320
    K = pinhole(300.0, height, width)
    normal, offset = torch.tensor([0.3, -0.2, 0.9]), 4.0
    T = torch.eye(4)
    T[:3, :3] = rotation(1, 10.0) @ rotation(2, 15.0)
    T[:3, 3] = torch.tensor([0.5, 0.1, 0.2])
    normal1 = T[:3, :3] @ normal
    depth0 = plane_depth(normal, offset, K, height, width)
    depth1 = plane_depth(normal1, offset + float(normal1 @ T[:3, 3]), K, height, width)
    dense = supervise(DepthMap(depth0[None], K[None]), DepthMap(depth1[None], K[None]), T[None])
    H = K @ (T[:3, :3] + torch.outer(T[:3, 3], normal) / offset) @ torch.linalg.inv(K)
    generator = torch.Generator().manual_seed(0)
    points0 = torch.rand(700, 2, generator=generator) * torch.tensor([width / 2.0, height])
    points1 = torch.cat([points0, torch.ones(700, 1)], 1) @ H.T
    points1 = points1[:, :2] / points1[:, 2:]
    sparse = sparse_supervision(points0, points1, (height, width), (height, width))
    both = sparse.visible0 & dense.visible0
    assert both.sum() > 250
    error = (sparse.warped0 - dense.warped0)[both].norm(dim=1)
    assert float(error.median()) < 0.1
    assert float(error.max()) < 1.0
    right_half = grid_points(sparse.grid0)[:, 0] > width / 2 + 20
    assert not sparse.visible0[0, right_half].any()  # no points there
    # Points without a common affine map give no ground truth.
    shuffled = points1[torch.randperm(700, generator=generator)]
    contradictory = sparse_supervision(points0, shuffled, (height, width), (height, width))
    own = torch.arange(contradictory.partner.shape[1])[None]
    assert not surely_wrong(contradictory, own, torch.zeros_like(own)).any()
    assert not contradictory.visible0.any()


def test_points_on_a_line_say_nothing_of_what_is_beside_it() -> None:
    along = torch.linspace(20, 300, 100)
    line = torch.stack([along, torch.full_like(along, 100.0)], dim=1)
    c, s = math.cos(0.3), math.sin(0.3)
    moved = torch.stack([c * line[:, 0] - s * line[:, 1] + 40, s * line[:, 0] + c * line[:, 1]], 1)
    truth = sparse_supervision(line, moved, (256, 320), (320, 320))
    seen = grid_points(truth.grid0)[truth.visible0[0]]
    assert not ((seen[:, 1] - 100).abs() > 2).any()

"""Training: supervision and losses against closed forms, and a loop that overfits and resumes."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.models.coarse import similarity
from edm_hloc.models.edm import EDM
from edm_hloc.models.flow import RealNVP
from edm_hloc.models.types import CONFIGS, EDMConfig, EDMMatches, MatchOptions
from edm_hloc.models.weights import load
from edm_hloc.synthetic.pairs import PairOptions, PairSampler, RenderedPairs
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.config import PRESETS, RealData, Stage, TrainConfig, load_config
from edm_hloc.training.curves import CurveFile, draw_curves, read_curve
from edm_hloc.training.datasets import RealSource, View, colmap_scenes, fit, sparse_truth
from edm_hloc.training.ema import averaged_copy, update_average
from edm_hloc.training.export import export_weights
from edm_hloc.training.losses import (
    dual_softmax_entries,
    focal_loss,
    residual_log_likelihood,
    total_loss,
)
from edm_hloc.training.sources import MixedSource, Prefetcher, SyntheticSource, mix_seeds
from edm_hloc.training.step import PairBatch, TrainingStep, initialise
from edm_hloc.training.supervision import (
    Supervision,
    fine_targets,
    grid_points,
    pad_with_truth,
    supervise,
    warp_points,
)
from edm_hloc.training.trainer import run_training
from edm_hloc.training.validation import load_real_pairs, validate, validate_real

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = EDMConfig(widths=(8, 8, 16, 16, 16), heads=2, train_size=None)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pinhole(focal: float, height: int, width: int) -> Tensor:
    return torch.tensor(
        [[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]]
    )


def rotation(axis: int, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = [i for i in range(3) if i != axis]
    R = torch.eye(3)
    R[a, a], R[a, b], R[b, a], R[b, b] = c, -s, s, c
    return R


def plane_depth(normal: Tensor, offset: float, K: Tensor, height: int, width: int) -> Tensor:
    """Depth of the plane normal·X = offset in a camera's own frame."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).float() @ torch.linalg.inv(K).T
    return offset / (rays @ normal)


def shifted(dx: float, dy: float = 0.0, size: tuple[int, int] = (96, 128)) -> Supervision:
    """Truth of a fronto-parallel plane seen by two cameras side by side: a shift by (dx, dy) px."""
    height, width = size
    K = pinhole(100.0, height, width)[None]
    T = torch.eye(4)[None].clone()
    T[0, :2, 3] = torch.tensor([dx, dy]) / 100.0 * 5.0
    depth = torch.full((1, height, width), 5.0)
    return supervise(depth, depth, K, K, T)


# --- Supervision -------------------------------------------------------------------------------


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
        plane_depth(normal, offset, K0, height, width)[None],
        plane_depth(normal1, offset1, K1, height, width)[None],
        K0[None],
        K1[None],
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
    # The first column's partners do not see it: they lie 2 px outside on the way back.
    assert (partner[:, [0, -1]] == -1).all()
    target, valid = fine_targets(truth, own[:, 1:-1].reshape(1, -1), own[:, 2:].reshape(1, -1))
    assert valid.all()
    torch.testing.assert_close(target[0, 0], torch.tensor([2 / 8, 0.0]))
    # Against another cell the offset is not within reach.
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
    truth = supervise(depth0, depth1, K, K, torch.eye(4)[None])
    seen = truth.visible0.view(8, 12)
    assert not seen[:2].any()
    assert seen[2:, :5].all()
    assert not seen[2:, 6:].any()
    assert not (truth.partner.view(8, 12)[:, 6:] >= 0).any()
    _, valid = fine_targets(truth, torch.tensor([[2 * 12 + 8]]), torch.tensor([[2 * 12 + 8]]))
    assert not valid.any()


def test_points_behind_the_other_camera_are_not_visible() -> None:
    K = pinhole(100.0, 64, 64)[None]
    T = torch.eye(4)[None].clone()
    T[0, 2, 3] = -9.0
    depth = torch.full((1, 64, 64), 5.0)
    truth = supervise(depth, depth, K, K, T)
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
    truth = supervise(depth, depth, K0, K1, T)
    row = (truth.partner[0] >= 0).nonzero()[:, 0]
    column = truth.partner[0, row]
    assert len(column.unique()) == len(column)
    pixel = grid_points(truth.grid1)[column]
    assert ((truth.warped0[0, row] - pixel).abs() <= 4 + 1e-3).all()
    back = grid_points(truth.grid0)[row]
    assert ((truth.warped1[0, column] - back).abs() <= 4 + 1e-3).all()


def test_padding_fills_up_to_the_minimum_and_keeps_what_is_right() -> None:
    truth = Supervision(*(torch.cat([t, t]) for t in shifted(3.0)[:5]), (12, 16), (12, 16))
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


# --- Losses --------------------------------------------------------------------------------------


def _entries() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    torch.manual_seed(0)
    f0, f1 = torch.randn(2, 7, 4) * 3, torch.randn(2, 5, 4) * 3
    index = (
        torch.tensor([0, 0, 1, 1, 1]),
        torch.tensor([0, 6, 2, 3, 6]),
        torch.tensor([1, 4, 0, 0, 3]),
    )
    return f0.requires_grad_(), f1.requires_grad_(), index


@pytest.mark.parametrize("block_bytes", [1, 3 * 4 * 2 * 5, 1 << 20])
def test_dual_softmax_entries_and_their_gradient_equal_the_full_matrix(block_bytes: int) -> None:
    f0, f1, index = _entries()
    s = similarity(f0, f1, 0.1)
    expected = (s.log_softmax(1) + s.log_softmax(2))[index]
    weight = torch.linspace(-1, 2, 5)
    grads = torch.autograd.grad((expected * weight).sum(), (f0, f1))
    result = dual_softmax_entries(f0, f1, 0.1, index, block_bytes)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(torch.autograd.grad((result * weight).sum(), (f0, f1)), grads)


def test_dual_softmax_entries_gradient_by_finite_differences() -> None:
    f0, f1, index = _entries()
    dual_softmax_entries(f0, f1, 0.5, index).sum().backward()
    with torch.no_grad():
        for place in [(0, 0, 0), (0, 4, 2), (1, 6, 3)]:
            step = torch.zeros_like(f0)
            step[place] = 1e-2
            up, down = (dual_softmax_entries(f0 + d, f1, 0.5, index).sum() for d in (step, -step))
            assert f0.grad is not None
            assert float((up - down) / 2e-2) == pytest.approx(float(f0.grad[place]), abs=2e-3)


def test_dual_softmax_entries_of_enormous_similarities_are_finite() -> None:
    f0, f1, index = _entries()
    result = dual_softmax_entries(f0 * 1e3, f1 * 1e3, 0.1, index)
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert f0.grad is not None
    assert torch.isfinite(f0.grad).all()


def test_focal_loss_closed_form() -> None:
    log_p = torch.tensor([0.5, 0.9, 1.0, 1e-30]).log()
    expected = 0.25 * (0.25 * math.log(2) + 0.01 * -math.log(0.9) + 30 * math.log(10)) / 4
    assert float(focal_loss(log_p)) == pytest.approx(expected, rel=1e-5)
    assert float(focal_loss(log_p[:1], alpha=1.0, gamma=0.0)) == pytest.approx(math.log(2))


def test_hopeless_matches_still_have_a_gradient() -> None:
    log_p = torch.tensor([-60.0], requires_grad=True)
    focal_loss(log_p).backward()
    assert float(log_p.grad) == pytest.approx(-0.25)  # type: ignore[arg-type]


def _identity_flow() -> RealNVP:
    flow = RealNVP()
    for p in flow.parameters():
        torch.nn.init.zeros_(p)
    return flow


@pytest.mark.parametrize("distribution", ["laplace", "gaussian"])
def test_residual_log_likelihood_closed_form(distribution: str) -> None:
    offset = torch.tensor([[0.1, -0.2], [0.3, 0.0]])
    target = torch.tensor([[0.0, -0.1], [0.3, 0.2]])
    sigma = torch.tensor([[0.2, 0.5], [0.1, 0.4]])
    expected = 0.0
    for m in range(2):
        r = [float((offset - target)[m, a] / sigma[m, a]) for a in range(2)]
        flow = 0.5 * (r[0] ** 2 + r[1] ** 2) + math.log(2 * math.pi)
        for a in range(2):
            s = float(sigma[m, a])
            if distribution == "laplace":
                base = math.log(2 * s) + abs(r[a])
            else:
                base = math.log(s * math.sqrt(2 * math.pi)) + r[a] ** 2 / 2
            expected += (base + math.log(s) + flow) / 4
    result = residual_log_likelihood(offset, sigma, target, _identity_flow(), distribution)  # type: ignore[arg-type]
    assert result.item() == pytest.approx(expected, rel=1e-5)


def test_residual_log_likelihood_gradient_by_finite_differences() -> None:
    torch.manual_seed(1)
    flow = RealNVP().double()
    offset = (torch.rand(6, 2) - 0.5).requires_grad_()
    sigma = (torch.rand(6, 2) * 0.5 + 0.2).requires_grad_()
    target = torch.rand(6, 2) - 0.5
    flow = flow.float()
    residual_log_likelihood(offset, sigma, target, flow).backward()
    step = torch.zeros(6, 2)
    step[2, 1] = 1e-2
    with torch.no_grad():
        for variable, arguments in (
            (offset, lambda d: (offset + d, sigma)),
            (sigma, lambda d: (offset, sigma + d)),
        ):
            up, down = (residual_log_likelihood(*arguments(d), target, flow) for d in (step, -step))
            assert variable.grad is not None
            assert float((up - down) / 2e-2) == pytest.approx(float(variable.grad[2, 1]), abs=3e-3)


def test_losses_without_matches_are_zero_and_differentiable() -> None:
    empty = torch.zeros(0, 2, requires_grad=True)
    flow = RealNVP()
    loss = total_loss(focal_loss(empty[:, 0]), residual_log_likelihood(empty, empty, empty, flow))
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters() if p.grad is not None)


def test_total_loss_weighs_the_fine_stage() -> None:
    assert float(total_loss(torch.tensor(2.0), torch.tensor(3.0))) == pytest.approx(2.6)


# --- Configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(PRESETS[name].to_json())
    assert load_config(str(path)) == PRESETS[name]


def test_config_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="neither a file nor a preset"):
        load_config(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(EdmHlocError, match="not JSON"):
        load_config(str(tmp_path / "bad.json"))
    with pytest.raises(EdmHlocError, match="learningrate"):
        load_config("edm_s", {"learningrate": 1})
    with pytest.raises(EdmHlocError, match="either minutes or steps"):
        run_training(TrainConfig(model=TINY), tmp_path / "run")
    for length in ({"steps": 0}, {"minutes": -1.0}):
        with pytest.raises(EdmHlocError, match="longer than 0"):
            load_config("edm_s", length)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("learning_rate", "abc", "float"),
        ("learning_rate", True, "float"),
        ("seed", 0.5, "int"),
        ("minutes", "long", "float | None"),
        ("textures", 3, "str | None"),
        ("difficulty", [0.1], "tuple[float, float]"),
        ("difficulty", ["a", "b"], "tuple[float, float]"),
        ("schedule", "linear", "Literal['cosine', 'paper']"),
    ],
)
def test_settings_of_another_type_are_named(name: str, value: object, kind: str) -> None:
    with pytest.raises(EdmHlocError, match=rf"{name} is .*, not {re.escape(kind)}$"):
        load_config("edm_s", {name: value})


def test_what_lightning_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="cannot train with accelerator 'foo'"):
        run_training(TrainConfig(model=TINY, steps=1), tmp_path / "run", accelerator="foo")
    assert not (tmp_path / "run").exists()


def test_a_start_from_another_file_is_named(tmp_path: Path) -> None:
    torch.save({"other": 1}, tmp_path / "other.pt")
    (tmp_path / "text").write_text("root:x:0:0:root:/root:/bin/bash\n" * 20)
    for name in ("other.pt", "text"):
        initial = str(tmp_path / name)
        config = TrainConfig(model=TINY, steps=1, initial=initial)
        with pytest.raises(EdmHlocError, match=f"from {initial}: it is damaged, or no checkpoint"):
            run_training(config, tmp_path / "run", accelerator="cpu")


@pytest.mark.parametrize("name", PRESETS)
def test_batch_shapes_follow_the_stages(name: str) -> None:
    config = PRESETS[name]
    rng = np.random.default_rng(0)
    for progress in np.linspace(0, 1, 30):
        pairs, height, width = config.batch_shape(float(progress), rng)
        assert height % 32 == 0
        assert width % 32 == 0
        stage = next((s for s in config.stages if progress < s.until), config.stages[-1])
        assert stage.sides[0] - 32 <= math.sqrt(height * width) <= stage.sides[1] + 32
        assert pairs >= 2
        assert pairs * height * width <= max(1.2 * stage.pixels, 2 * height * width)


def test_position_scales_reach_the_largest_images() -> None:
    rng = np.random.default_rng(0)
    scales = [TrainConfig().draw_position_scale(256, rng) for _ in range(400)]
    assert 0.4 < np.mean([s == 1.0 for s in scales]) < 0.6
    assert min(scales) >= 1.0
    assert 3.5 < max(scales) <= 4.0


def test_schedules() -> None:
    cosine = TrainConfig(learning_rate=1.0, warmup=0.1)
    assert [cosine.learning_rate_at(p) for p in (0.0, 0.05, 0.1)] == pytest.approx([0, 0.5, 1.0])
    assert cosine.learning_rate_at(0.55) == pytest.approx(0.5)
    assert cosine.learning_rate_at(1.0) == pytest.approx(0.0)
    assert cosine.learning_rate_at(1.01) == pytest.approx(0.0)
    paper = dataclasses.replace(PRESETS["edm_paper"], learning_rate=2e-3)
    epochs = (1.5, 3, 7.9, 8.1, 12.1, 16.1, 20.1, 24.1, 29.9)
    expected = [1e-3, 2e-3, 2e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 6.25e-5]
    assert [paper.learning_rate_at(e / 30) for e in epochs] == pytest.approx(expected)


# --- Sources -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes() -> SyntheticSource:
    bank = TextureBank.dead_leaves(4, 128)
    return SyntheticSource(
        PairSampler(bank, options=PairOptions(photometric_effects=False)), (0.0, 0.3), 0.05
    )


def test_synthetic_batches_depend_on_the_seed_alone(scenes: SyntheticSource) -> None:
    a, b, c = (scenes.batch(2, 96, 128, seed) for seed in (1, 2, 1))
    assert torch.equal(a.image1, c.image1)
    assert torch.equal(a.truth.partner, c.truth.partner)
    assert not torch.equal(a.image1, b.image1)
    assert a.image0.shape == (2, 1, 96, 128)
    assert (a.truth.partner >= 0).float().mean() > 0.15


def test_rendered_images_agree_with_their_truth() -> None:
    """Fine detail correlates best where the truth says, and less a pixel away on any side."""
    options = PairOptions(photometric_effects=False)
    sampler = PairSampler(TextureBank.dead_leaves(4, 512), 0.1, seed=1, options=options)
    pairs = sampler.sample(6, 96, 128)
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    points = torch.stack([x, y], -1).reshape(1, -1, 2).float().expand(6, -1, -1)
    warped, visible = warp_points(
        points, pairs.depth0, pairs.depth1, pairs.K0, pairs.K1, pairs.T_0to1, 0.02
    )
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


def rendered_pair(height: int = 96, width: int = 128) -> RenderedPairs:
    bank = TextureBank.dead_leaves(4, 128)
    options = PairOptions(photometric_effects=False)
    return PairSampler(bank, 0.2, seed=3, options=options).sample(1, height, width)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


def make_megadepth(root: Path, pair: RenderedPairs) -> RealData:
    images, depths = (pair.image0, pair.image1), (pair.depth0, pair.depth1)
    for i in range(2):
        write_jpeg(root / f"imgs/{i}.jpg", (images[i][0, 0].numpy() * 255).round().astype(np.uint8))
        (root / "depths").mkdir(exist_ok=True)
        with h5py.File(root / f"depths/{i}.h5", "w") as file:
            file["depth"] = depths[i][0].numpy()
    rng = np.random.default_rng(0)
    pose0 = np.eye(4)
    pose0[:3, :3] = rotation(0, 20.0).numpy()
    pose0[:3, 3] = rng.normal(size=3)
    content = {
        "image_paths": np.array(["imgs/0.jpg", "imgs/1.jpg", "imgs/missing.jpg"], dtype=object),
        "depth_paths": np.array(["depths/0.h5", "depths/1.h5", "x.h5"], dtype=object),
        "intrinsics": np.array([pair.K0[0].numpy(), pair.K1[0].numpy(), np.eye(3)]),
        "poses": np.array([pose0, pair.T_0to1[0].numpy() @ pose0, np.eye(4)]),
    }
    infos = np.empty(3, dtype=object)
    infos[0] = ((0, 1), 0.6, np.zeros((1, 4)))
    infos[1] = ((1, 2), 0.5, np.zeros((1, 4)))  # unreadable
    infos[2] = ((0, 0), 0.1, np.zeros((1, 4)))  # hardly overlaps
    (root / "index").mkdir()
    np.savez(root / "index" / "0001.npz", **content, pair_infos=infos)
    return RealData("megadepth", str(root), str(root / "index"))


def truth_in_either_order(pair: RenderedPairs) -> list[Tensor]:
    direct = supervise(pair.depth0, pair.depth1, pair.K0, pair.K1, pair.T_0to1)
    T = torch.linalg.inv(pair.T_0to1)
    swapped = supervise(pair.depth1, pair.depth0, pair.K1, pair.K0, T)
    return [direct.partner[0], swapped.partner[0]]


def agreement(found: Tensor, expected: list[Tensor]) -> float:
    """Share of equal partners (rounding differs between the ways of writing a pose)."""
    return max(float((found == e).float().mean()) for e in expected)


def test_megadepth_pairs_have_the_truth_of_their_scene(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = rendered_pair()
    source = RealSource(make_megadepth(tmp_path, pair), 0.05)
    expected = truth_in_either_order(pair)
    batch = source.batch(6, 96, 128, 0)
    assert batch.image0.shape == (6, 1, 96, 128)
    assert float((expected[0] >= 0).float().mean()) > 0.2
    assert all(agreement(p, expected) > 0.97 for p in batch.truth.partner)
    assert "missing.jpg" in caplog.text
    assert torch.equal(source.batch(6, 96, 128, 0).truth.partner, batch.truth.partner)
    # At another size and aspect there is still truth, and it agrees with the images.
    other = source.batch(2, 64, 64, 1)
    assert other.image1.shape == (2, 1, 64, 64)
    assert float((other.truth.partner >= 0).float().mean()) > 0.2


def test_scannet_pairs_have_the_truth_of_their_scene(tmp_path: Path) -> None:
    pair = rendered_pair()
    folder = tmp_path / "scene0007_01"
    images, depths = (pair.image0, pair.image1), (pair.depth0, pair.depth1)
    poses = (np.eye(4), np.linalg.inv(pair.T_0to1[0].numpy()))  # world_from_cam
    for i, frame in enumerate((40, 85)):
        large = cv2.resize(images[i][0, 0].numpy(), (256, 192))
        write_jpeg(folder / f"color/{frame}.jpg", (large * 255).astype(np.uint8))
        for name in ("depth", "pose"):
            (folder / name).mkdir(exist_ok=True)
        millimetres = (depths[i][0].numpy() * 1000).round().astype(np.uint16)
        assert cv2.imwrite(str(folder / f"depth/{frame}.png"), millimetres)
        np.savetxt(folder / f"pose/{frame}.txt", poses[i])
    index = tmp_path / "index"
    index.mkdir()
    names = np.array([[7, 1, 40, 85], [7, 1, 40, 999]])
    np.savez(index / "scene0007_01.npz", name=names, score=np.array([0.7, 0.1]))
    np.savez(index / "intrinsics.npz", scene0007_01=pair.K0[0].numpy())
    source = RealSource(RealData("scannet", str(tmp_path), str(index)), 0.05)
    assert source.scenes[0].length == 1  # the other one hardly overlaps
    view0, view1, T = source.scenes[0].read(0)
    np.testing.assert_allclose(T, pair.T_0to1[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(view0.depth, depths[0][0].numpy(), atol=6e-4)
    assert view1.image.shape == (96, 128)
    np.testing.assert_allclose(view0.K, pair.K0[0].numpy(), atol=1e-5)
    assert source.batch(2, 96, 128, 0).image0.shape == (2, 1, 96, 128)


def test_fit_keeps_the_projection() -> None:
    """A point seen in a view is found at the mapped place after scaling and cutting."""
    height, width = 313, 471
    y, x = np.mgrid[:height, :width]
    image = (255 * np.exp(-((x - 300.0) ** 2 + (y - 200.0) ** 2) / 600)).astype(np.uint8)
    K = np.array([[400.0, 0, 235], [0, 400, 156], [0, 0, 1]])
    ray = np.linalg.inv(K) @ [300, 200, 1]
    view = View(image, None, K, np.array([[300.0, 200.0]]))
    out = fit(view, 96, 64, np.array([290.0, 190.0]))
    assert out.image.shape == (96, 64)
    expected = out.K @ ray
    assert out.points is not None
    np.testing.assert_allclose(out.points[0], expected[:2], atol=1e-9)
    weights = out.image.astype(float)
    centre = (weights * np.mgrid[:96, :64][::-1]).sum((1, 2)) / weights.sum()
    np.testing.assert_allclose(centre, out.points[0], atol=0.3)


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
    dense = supervise(depth0[None], depth1[None], K[None], K[None], T[None])
    H = K @ (T[:3, :3] + torch.outer(T[:3, 3], normal) / offset) @ torch.linalg.inv(K)
    generator = torch.Generator().manual_seed(0)
    points0 = torch.rand(700, 2, generator=generator) * torch.tensor([width / 2.0, height])
    points1 = torch.cat([points0, torch.ones(700, 1)], 1) @ H.T
    points1 = points1[:, :2] / points1[:, 2:]
    sparse = sparse_truth(points0, points1, (height, width), (height, width))
    both = sparse.visible0 & dense.visible0
    assert both.sum() > 250
    error = (sparse.warped0 - dense.warped0)[both].norm(dim=1)
    assert float(error.median()) < 0.1
    assert float(error.max()) < 1.0
    right_half = grid_points(sparse.grid0)[:, 0] > width / 2 + 20
    assert not sparse.visible0[0, right_half].any()  # no points there
    # Points that contradict each other give no truth.
    shuffled = points1[torch.randperm(700, generator=generator)]
    assert not sparse_truth(points0, shuffled, (height, width), (height, width)).visible0.any()


def test_colmap_model_gives_pairs(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 4
    options.num_points3D = 300
    options.camera_width, options.camera_height = 400, 300
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_PINHOLE
    options.camera_params = [360.0, 200.0, 150.0]
    model = pycolmap.synthesize_dataset(options)
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    rng = np.random.default_rng(0)
    for image in model.images.values():
        write_jpeg(tmp_path / "images" / image.name, rng.integers(0, 255, (300, 400), np.uint8))
    data = RealData("colmap", str(tmp_path / "images"), str(tmp_path / "model"))
    source = RealSource(data, 0.05)
    assert source.scenes[0].length == 6
    view0, view1, T = source.scenes[0].read(0)
    assert view0.points is not None
    assert view1.points is not None
    assert len(view0.points) == len(view1.points) >= 40
    E = np.cross(T[:3, 3], T[:3, :3], axisb=0, axisc=0)
    rays = [
        np.column_stack([v.points, np.ones(len(v.points))]) @ np.linalg.inv(v.K).T
        for v in (view0, view1)
    ]
    residual = np.einsum("ni,ij,nj->n", rays[1], E, rays[0])
    assert np.abs(residual).max() < 1e-6 * np.abs(T[:3, 3]).max()
    batch = source.batch(2, 128, 160, 0)
    assert batch.image0.shape == (2, 1, 128, 160)
    with pytest.raises(EdmHlocError, match="no folder"):
        RealSource(RealData("colmap", str(tmp_path / "none"), str(tmp_path / "model")), 0.05)


def test_colmap_pairs_equal_plain_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 9
    options.num_points3D, options.track_length = 400, 3
    model = pycolmap.synthesize_dataset(options)
    names = sorted(image.name for image in model.images.values())
    sees: dict[str, set[int]] = {name: set() for name in names}
    for number, point in model.points3D.items():
        for element in point.track.elements:
            sees[model.images[element.image_id].name].add(number)
    # Behind some that saw it, which so have no pixel for it.
    moved = min(sees[names[0]])
    model.points3D[moved].xyz = 3 * model.find_image_with_name(names[0]).projection_center()
    for image in model.images.values():
        if (image.cam_from_world() * model.points3D[moved].xyz)[2] <= 0:
            sees[image.name].discard(moved)
    model.write(tmp_path)
    counts = [(a, b, len(sees[a] & sees[b])) for i, a in enumerate(names) for b in names[i + 1 :]]
    least = int(np.median([count for _, _, count in counts]))
    monkeypatch.setattr("edm_hloc.training.datasets.MIN_SHARED_POINTS", least)
    read: list[str] = []
    monkeypatch.setattr(
        "edm_hloc.training.datasets.read_grey",
        lambda path: read.append(path.name) or np.zeros((768, 1024), np.uint8),
    )
    with monkeypatch.context() as patch:
        patch.delattr(np, "intersect1d")  # not for each image with each
        (scene,) = colmap_scenes(tmp_path, tmp_path)
    found = []
    for number in range(scene.length):
        view0, _, _ = scene.read(number)
        found.append((read[-2], read[-1], len(view0.points)))
    assert found == [c for c in counts if c[2] >= least]
    assert 0 < scene.length < len(counts)


@pytest.mark.parametrize("orientation", [3, 6])
def test_photos_are_read_as_they_are_stored(tmp_path: Path, orientation: int) -> None:
    """As COLMAP reads them: its models, and depth maps, are in the pixels of the file."""
    data = make_megadepth(tmp_path, rendered_pair())
    (scene,) = RealSource(data, 0.05).scenes
    expected = scene.read(0)[0].image
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(expected).save(tmp_path / "imgs/0.jpg", quality=100, exif=exif)
    found = scene.read(0)[0].image
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() < 8


def test_index_errors_name_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "scene.npz", image_paths=np.zeros(1))
    with pytest.raises(EdmHlocError, match=r"scene\.npz lacks depth_paths"):
        RealSource(RealData("megadepth", str(tmp_path), str(tmp_path)), 0.05)
    (tmp_path / "scene.npz").write_bytes(b"no")
    with pytest.raises(EdmHlocError, match=r"scene\.npz is not an index"):
        RealSource(RealData("megadepth", str(tmp_path), str(tmp_path)), 0.05)
    (tmp_path / "scene.npz").unlink()
    with pytest.raises(EdmHlocError, match="no training pairs"):
        RealSource(RealData("megadepth", str(tmp_path), str(tmp_path)), 0.05)


def test_mixture_of_sources() -> None:
    def batch(value: float) -> PairBatch:
        image = torch.full((1, 1, 32, 32), value)
        return PairBatch(image, image, shifted(0.0, size=(32, 32)))

    mixture = MixedSource([OneBatch(batch(0.0)), OneBatch(batch(1.0))], [0.25, 0.75])
    drawn = [float(mixture.batch(1, 32, 32, s).image0[0, 0, 0, 0]) for s in range(300)]
    assert 0.68 < np.mean(drawn) < 0.82


def test_validation_on_real_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is replaced by the truth: its matches lie on each other's epipolar lines."""
    pair = rendered_pair(192, 256)
    for i, image in enumerate((pair.image0, pair.image1)):
        write_jpeg(tmp_path / f"{i}.jpg", (image[0, 0].numpy() * 255).astype(np.uint8))
    values = [*pair.K0.flatten().tolist(), *pair.K1.flatten().tolist()]
    values += pair.T_0to1.flatten().tolist()
    line = "0.jpg 1.jpg 0 0 " + " ".join(f"{v:.9g}" for v in values)
    (tmp_path / "pairs.txt").write_text(line + "\n\n")
    pairs = load_real_pairs(tmp_path / "pairs.txt", tmp_path, longest=128)
    assert pairs[0].image0.shape == (1, 1, 96, 128)
    truth = supervise(pair.depth0, pair.depth1, pair.K0, pair.K1, pair.T_0to1)
    x0 = grid_points(truth.grid0)[truth.visible0[0]][None]
    x1 = truth.warped0[truth.visible0][None]
    half = [(x + 0.5) / 2 - 0.5 for x in (x0, x1)]  # at 128 px
    moved = half[1] + torch.tensor([0.0, 30.0])
    model = EDM(TINY)
    for x, right in ((half[1], True), (moved, False)):
        valid = torch.ones(x.shape[:2], dtype=torch.bool)
        matches = EDMMatches(half[0], x, valid.float(), valid.float(), valid)
        monkeypatch.setattr(model, "match", lambda *a, m=matches, **k: m)
        result = validate_real(model, pairs, 0.2)
        assert result["matches"] == len(x0[0]) > 50
        assert result["precision"] > 0.99 if right else result["precision"] < 0.3
    (tmp_path / "pairs.txt").write_text("a b 0 0 1 2\n")
    with pytest.raises(EdmHlocError, match="line 1"):
        load_real_pairs(tmp_path / "pairs.txt", tmp_path)


def test_prefetcher_keeps_order_and_passes_errors_on() -> None:
    def make(i: int) -> int:
        if i == 7:
            raise EdmHlocError("no more")
        return i * i

    threads = torch.get_num_threads()
    with Prefetcher(make, 4) as items:
        assert [next(items) for _ in range(3)] == [16, 25, 36]
        with pytest.raises(EdmHlocError, match="no more"):
            next(items)
    assert torch.get_num_threads() == threads
    with Prefetcher(lambda i: i, 0) as items:  # leaving early does not hang
        assert next(items) == 0


def test_the_prefetcher_alone_works_on_one_core() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Prefetcher(lambda _: torch.get_num_threads(), 0) as items:
            assert next(items) == 1
        with ThreadPoolExecutor(1) as new_thread:
            assert new_thread.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_mixed_seeds_differ() -> None:
    seeds = {mix_seeds(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert all(0 <= s < 2**63 for s in seeds)


# --- Averages, export, curves ---------------------------------------------------------------


def test_average_includes_statistics_and_counts() -> None:
    model = EDM(TINY)
    average = averaged_copy(model)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    before = {k: v.clone() for k, v in average.state_dict().items()}
    update_average(average, model, decay=0.9, step=10**6)
    for name, value in average.state_dict().items():
        step = 0.1 if value.is_floating_point() else 1
        torch.testing.assert_close(value, before[name] + step)
    assert not average.training
    update_average(average, model, decay=0.9, step=0)  # early: nearly a copy
    torch.testing.assert_close(
        average.state_dict()["backbone.bn1.running_mean"],
        before["backbone.bn1.running_mean"] + 0.1 + 0.9 * 0.9,
    )


def test_export_has_the_names_of_the_format(tmp_path: Path) -> None:
    model = EDM(CONFIGS["edm_s"])
    path = tmp_path / "w" / "edm_s.safetensors"
    export_weights(model, path, {"pairs": 12, "seed": 0})
    expected = json.loads((GOLDEN / "edm_s_state.json").read_text())
    with safe_open(path, "pt") as file:
        assert file.metadata()["pairs"] == "12"
        shapes = {k: list(file.get_tensor(k).shape) for k in file.keys()}  # noqa: SIM118
        dtypes = {file.get_tensor(k).dtype for k in file.keys()}  # noqa: SIM118
    assert shapes == expected
    assert dtypes == {torch.float16, torch.int64}
    assert path.stat().st_size < 6e6
    with torch.no_grad():
        model.backbone.conv1.weight[0] = 1e6
    with pytest.raises(EdmHlocError, match=r"backbone\.conv1\.weight"):
        export_weights(model, path, {})
    assert list(path.parent.iterdir()) == [path]


def test_curves_drop_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "c.csv", 0)
    for step in range(1, 6):
        curve.add({"step": step, "loss": step / 3})
    CurveFile(tmp_path / "c.csv", 3).add({"step": 4, "loss": 9.0})
    rows = read_curve(tmp_path / "c.csv")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] == 9.0


def test_picture_of_the_curves(tmp_path: Path) -> None:
    columns = ("loss", "coarse_precision", "coarse_recall", "fine_error")
    other = ("learning_rate", "pairs_per_s")
    training, validation = (CurveFile(tmp_path / f"{n}.csv", 0) for n in ("training", "validation"))
    draw_curves(tmp_path)  # nothing to show yet
    for step in range(3):
        counts = {"step": step, "pairs": 8 * step}
        training.add({**counts, **dict.fromkeys(columns + other, 1.0 / (step + 1))})
        validation.add({**counts, "fine_error_64x64": float("nan"), "matches_64x64": 3.0})
    draw_curves(tmp_path)
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 5


# --- The loop -------------------------------------------------------------------------------


class OneBatch:
    """The same batch for ever."""

    def __init__(self, batch: PairBatch) -> None:
        self._batch = batch

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        return self._batch


class FewBatches:
    """One of three batches, by the seed; cheaper than rendering anew."""

    def __init__(self, batches: list[PairBatch]) -> None:
        self._batches = batches

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        return self._batches[seed % len(self._batches)]


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edm_hloc.training.trainer.draw_curves", lambda directory: None)


@pytest.fixture(scope="module")
def few(scenes: SyntheticSource) -> FewBatches:
    return FewBatches([scenes.batch(2, 64, 64, seed) for seed in range(3)])


def tiny_config(**changes: object) -> TrainConfig:
    base = TrainConfig(
        model=TINY,
        steps=6,
        stages=(Stage(1.0, (64, 64), 2 * 64 * 64),),
        fine_matches=24,
        validation_sets=((2, 64, 96),),
        validations=1,
        checkpoints=1,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_overfits_one_batch(scenes: SyntheticSource) -> None:
    batch = scenes.batch(2, 64, 64, 5)
    config = tiny_config(fine_matches=48, true_matches=48, position_scaling=0.0)
    torch.manual_seed(0)
    model = EDM(dataclasses.replace(TINY, widths=(8, 16, 32, 32, 32)))
    initialise(model)
    step = TrainingStep(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    first, last = None, {}
    for i in range(50):
        loss, last = step(batch, 1.0, i)
        first = last if first is None else first
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert first is not None
    assert float(last["coarse_recall"]) > 0.95
    assert float(last["loss_coarse"]) < 0.05 * float(first["loss_coarse"])
    assert float(last["fine_error"]) < 0.3 * float(first["fine_error"])


def states_equal(a: EDM, b: EDM) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


@pytest.mark.usefixtures("_no_pictures")
def test_resuming_equals_running_through(few: FewBatches, tmp_path: Path) -> None:
    config = tiny_config()
    through = run_training(config, tmp_path / "a", source=few, accelerator="cpu", devices=1)
    run_training(
        config, tmp_path / "b", source=few, accelerator="cpu", devices=1, stop_after_steps=4
    )
    (tmp_path / "b" / "checkpoint.tmp").write_bytes(b"killed while writing")
    resumed = run_training(config, tmp_path / "b", source=few, accelerator="cpu", devices=1)
    assert resumed.steps == through.steps == 6
    assert resumed.pairs == through.pairs
    assert states_equal(through.model, resumed.model)
    curves = [read_curve(tmp_path / d / "training.csv") for d in "ab"]
    assert [r["step"] for r in curves[0]] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in curves[0]] == [r["loss"] for r in curves[1]]
    assert str(through.validation) == str(resumed.validation)  # there may be NaN
    assert set(through.validation) >= {"coarse_precision_96x64", "fine_error_96x64"}
    # Another configuration is refused, a longer run continues.
    with pytest.raises(EdmHlocError, match="seed"):
        run_training(dataclasses.replace(config, seed=3), tmp_path / "b", source=few)
    longer = dataclasses.replace(config, steps=7)
    assert run_training(longer, tmp_path / "b", source=few, accelerator="cpu").steps == 7
    # From its weights another run may start.
    other = dataclasses.replace(config, seed=3, steps=1, learning_rate=0.0, ema=0.0)
    other = dataclasses.replace(other, initial=str(tmp_path / "a" / "checkpoint.pt"))
    started = run_training(other, tmp_path / "c", source=few, accelerator="cpu")
    with safe_open(tmp_path / "c" / "weights.safetensors", "pt") as file:
        assert file.metadata()["pairs"] == str(through.pairs + started.pairs)
    kept = dict(through.model.named_parameters())
    assert all(torch.allclose(v, kept[k], atol=0.1) for k, v in started.model.named_parameters())


@pytest.mark.usefixtures("_no_pictures")
def test_what_is_loaded_is_the_network_that_was_trained(few: FewBatches, tmp_path: Path) -> None:
    changes = {"attention_scale": 10.0, "temperature": 0.2, "bins": 8, "bidirectional": False}
    network = dataclasses.replace(TINY, layers=("self", "cross"), train_size=832, **changes)
    config = tiny_config(model=network, steps=1, threshold=0.3, validations=0)
    trained = run_training(config, tmp_path, source=few, accelerator="cpu").model
    loaded, info = load(tmp_path / "weights.safetensors")
    assert loaded.config == network
    assert info.threshold == 0.3
    batch = few.batch(2, 64, 64, 0)
    with torch.no_grad():
        matches = [
            m.match(m.encode(batch.image0), m.encode(batch.image1), MatchOptions(20, 0.0))
            for m in (trained.half().float(), loaded)  # they are stored in half precision
        ]
    for expected, found in zip(*matches, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("_no_pictures")
def test_weights_of_another_network_are_no_start(few: FewBatches, tmp_path: Path) -> None:
    network = dataclasses.replace(TINY, attention_scale=10.0)
    first = tiny_config(model=network, steps=1, validations=0)
    run_training(first, tmp_path / "a", source=few, accelerator="cpu")
    other = dataclasses.replace(network, train_size=832)  # a run at another size may go on
    for name in ("checkpoint.pt", "weights.safetensors"):
        initial = str(tmp_path / "a" / name)
        with pytest.raises(EdmHlocError, match=r"--set 'model=\{\"attention_scale\": 10\.0\}'"):
            run_training(tiny_config(initial=initial), tmp_path / "b", source=few)
        config = dataclasses.replace(first, model=other, initial=initial)
        run_training(config, tmp_path / name, source=few, accelerator="cpu")


@pytest.mark.usefixtures("_no_pictures")
def test_clock_budget_ends_the_run_and_anneals(few: FewBatches, tmp_path: Path) -> None:
    config = tiny_config(steps=None, minutes=0.03, validations=0)
    start = time.monotonic()
    run_training(config, tmp_path, source=few, accelerator="cpu", devices=1)
    assert time.monotonic() - start < 30
    rates = [r["learning_rate"] for r in read_curve(tmp_path / "training.csv")]
    assert rates[-1] < 0.5 * max(rates)


class Broken(OneBatch):
    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        return self._batch._replace(image0=self._batch.image0 * float("nan"))


@pytest.mark.usefixtures("_no_pictures")
def test_divergence_is_an_error_and_does_not_spoil_the_weights(
    few: FewBatches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edm_hloc.training.trainer.MAX_SKIPPED", 3)
    source = Broken(few.batch(2, 64, 64, 0))
    with pytest.raises(EdmHlocError, match="diverged"):
        run_training(
            tiny_config(checkpoints=6), tmp_path, source=source, accelerator="cpu", devices=1
        )
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    parameters = dict(EDM(TINY).named_parameters())
    assert all(torch.isfinite(state["model"][name]).all() for name in parameters)


def test_validation_of_a_perfect_and_a_blind_matcher(scenes: SyntheticSource) -> None:
    batch = scenes.batch(2, 96, 96, 5)
    same = scenes.batch(2, 96, 96, 5)
    truth = supervise(
        torch.ones(2, 96, 96),
        torch.ones(2, 96, 96),
        torch.eye(3).expand(2, 3, 3),
        torch.eye(3).expand(2, 3, 3),
        torch.eye(4).expand(2, 4, 4),
    )
    torch.manual_seed(0)
    model = EDM(TINY).eval()
    # An image against itself: the untrained network finds nothing at a high threshold.
    result = validate(model, [PairBatch(same.image0, same.image0, truth)], threshold=0.999)
    assert result["matches"] == 0
    assert math.isnan(result["fine_error"])
    everything = validate(model, [batch], threshold=-1.0)
    assert 0 < everything["matches"] <= 144
    assert 0 <= everything["coarse_precision"] < 0.3


@pytest.mark.slow
def test_a_killed_run_continues(tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same command again; and nothing heavy is imported."""
    program = (
        "import sys\n"
        "sys.modules['pycolmap'] = sys.modules['kornia'] = None\n"
        "from edm_hloc.training.trainer import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, "edm_s", "--out", str(tmp_path), "--steps", "40"]
    command += ["--accelerator", "cpu", "--devices", "1", "--threads", "1"]
    command += ["--set", "validations=0", "--set", "checkpoints=20"]
    command += ["--set", 'stages=[{"until": 1.0, "sides": [64, 64], "pixels": 8192}]']
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"]
    assert 0 < step < 40
    subprocess.run(command, check=True, timeout=300)
    steps = [r["step"] for r in read_curve(tmp_path / "training.csv")]
    assert steps == list(range(1, 41))

"""Properties of the network that hold for any weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edm_hloc.models.edm import (
    CONFIGS,
    EDM,
    EDMConfig,
    EDMFeatures,
    RealNVP,
    best_columns,
    rotary_table,
    similarity,
)
from tests.test_edm_golden import reference_state

TINY = EDMConfig(widths=(4, 8, 8, 16, 16), heads=2, train_size=None)


@pytest.fixture(scope="module")
def model() -> EDM:
    model = EDM(CONFIGS["edm_s"])
    model.load_state_dict(reference_state("edm_s"))
    return model.eval()


@pytest.fixture(scope="module")
def tiny() -> EDM:
    torch.manual_seed(0)
    return EDM(TINY).eval()


@pytest.mark.parametrize(("variant", "millions"), [("edm", 10.3), ("edm_s", 2.6)])
def test_parameter_count(variant: str, millions: float) -> None:
    count = sum(p.numel() for p in EDM(CONFIGS[variant]).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@torch.inference_mode()
def test_batch_equals_one_at_a_time(model: EDM) -> None:
    torch.manual_seed(1)
    images0, images1 = torch.rand(3, 1, 96, 64), torch.rand(3, 1, 64, 160)
    batch = model.match(model.encode(images0), model.encode(images1), topk=20, threshold=0.0)
    for i in range(3):
        one = model.match(
            model.encode(images0[i : i + 1]),
            model.encode(images1[i : i + 1]),
            topk=20,
            threshold=0.0,
        )
        for name, a, b in zip(batch._fields, batch, one, strict=True):
            torch.testing.assert_close(
                a[i].float(), b[0].float(), atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@torch.inference_mode()
def test_arguments_of_the_call(model: EDM) -> None:
    torch.manual_seed(2)
    features = [model.encode(torch.rand(1, 1, 128, 160)) for _ in range(2)]
    everything = model.match(*features, topk=10**9, threshold=-1.0)
    assert everything.confidence.shape == (1, 16 * 20)
    few = model.match(*features, topk=7, threshold=-1.0)
    assert few.confidence.shape == (1, 7)
    torch.testing.assert_close(few.confidence[0], everything.confidence[0, :7])
    middle = everything.confidence[0, 160].item()
    strict = model.match(*features, topk=10**9, threshold=middle)
    assert torch.equal(strict.valid, everything.valid & (everything.confidence > middle))
    bordered = model.match(*features, topk=10**9, threshold=-1.0, border_cells=3)
    kept = bordered.keypoints0[bordered.valid], bordered.keypoints1[bordered.valid]
    for points in kept:
        assert points.min() >= 24
        assert points[:, 0].max() <= 160 - 24
        assert points[:, 1].max() <= 128 - 24
    assert 0 < bordered.valid.sum() < everything.valid.sum()


@torch.inference_mode()
def test_refined_side(model: EDM) -> None:
    torch.manual_seed(3)
    features = [model.encode(torch.rand(1, 1, 96, 96)) for _ in range(2)]
    in_1 = model.match(*features, threshold=-1.0, refined="image1")
    in_0 = model.match(*features, threshold=-1.0, refined="image0")
    best = model.match(*features, threshold=-1.0)
    assert torch.all(in_1.keypoints0 % 8 == 0)
    assert torch.all(in_0.keypoints1 % 8 == 0)
    assert torch.any(in_1.keypoints1 % 8 != 0)
    assert (in_1.keypoints1 - in_0.keypoints1).abs().max() <= 4
    torch.testing.assert_close(best.certainty, torch.maximum(in_0.certainty, in_1.certainty))


def test_one_direction_only() -> None:
    model = EDM(dataclasses.replace(TINY, bidirectional=False)).eval()
    features = [model.encode(torch.rand(1, 1, 64, 64)) for _ in range(2)]
    assert torch.all(model.match(*features, threshold=-1.0).keypoints0 % 8 == 0)
    with pytest.raises(ValueError, match="image 1 only"):
        model.match(*features, refined="image0")


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 1, 60, 64), (1, 64, 64), (1, 1, 0, 32)])
def test_wrong_shape_is_refused(tiny: EDM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        tiny.encode(torch.zeros(shape))


@torch.inference_mode()
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("gain", [0.0, 1e-6, 30.0, 1e6, 1e20])
def test_finite_for_any_weights(gain: float, autocast: bool) -> None:
    torch.manual_seed(4)
    model = EDM(TINY).eval()
    for parameter in model.parameters():
        parameter.mul_(gain)
    images = torch.cat([torch.zeros(1, 1, 64, 96), torch.ones(1, 1, 64, 96)])
    with torch.autocast("cpu", dtype=torch.float16, enabled=autocast):
        features = model.encode(images)
        found = model.match(features, features, threshold=-1.0)
    for tensor in found[:4]:
        assert torch.isfinite(tensor).all()
    assert found.confidence.min() >= 0
    assert found.confidence.max() <= 1


@torch.inference_mode()
def test_autocast_agrees_with_fp32(model: EDM) -> None:
    from tests.golden.reference_weights import image

    pixels = torch.from_numpy(image(5, 96, 128))[None, None].float() / 255
    plain = model.match(model.encode(pixels), model.encode(pixels.flip(-1)), topk=20, threshold=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.match(
            model.encode(pixels), model.encode(pixels.flip(-1)), topk=20, threshold=-1
        )
    assert mixed.confidence.dtype == torch.float32
    torch.testing.assert_close(mixed.confidence[0, 0], plain.confidence[0, 0], atol=0.15, rtol=0.3)


@pytest.mark.parametrize("block_bytes", [1, 4 * 37 * 5, 1 << 30])
@pytest.mark.parametrize("magnitude", [0.1, 3.0, 300.0])
def test_best_columns_equals_the_dual_softmax(block_bytes: int, magnitude: float) -> None:
    """Against Eq. 2 written out in double precision; 300 would overflow an unshifted exp."""
    torch.manual_seed(6)
    a, b = torch.randn(2, 53, 16) * magnitude, torch.randn(2, 37, 16) * magnitude
    s = a.double() @ b.double().transpose(1, 2) / (16 * 0.1)
    expected = (s.log_softmax(dim=1) + s.log_softmax(dim=2)).max(dim=2)
    value, column = best_columns(a, b, 0.1, block_bytes)
    assert torch.isfinite(value).all()
    rounding = 1e-6 * s.abs().max().item()  # of fp32 similarities of this size
    visible = expected.values > -80
    torch.testing.assert_close(
        value.double().log()[visible], expected.values[visible], atol=1e-4 + 4 * rounding, rtol=0
    )
    chosen = (s.log_softmax(dim=1) + s.log_softmax(dim=2)).gather(2, column[..., None])[..., 0]
    torch.testing.assert_close(chosen, expected.values, atol=1e-4 + 4 * rounding, rtol=0)
    torch.testing.assert_close(similarity(a, b, 0.1).double(), s, atol=1e-5 + rounding, rtol=0)


def test_position_scale_follows_the_input() -> None:
    model = EDM(dataclasses.replace(TINY, train_size=832)).eval()
    assert model.encode(torch.zeros(1, 1, 416, 1664)).position_scale == (2.0, 0.5)
    assert EDM(TINY).encode(torch.zeros(1, 1, 64, 96)).position_scale == (1.0, 1.0)


def test_rotary_table_closed_form() -> None:
    """Position (row 3, column 5) counted from 1, frequency 10000^(−k / (d/4)); no size limit."""
    cos, sin = rotary_table(4, 200, 16, (1.5, 0.25), torch.device("cpu"))
    row, column = 3 * 1.5, 5 * 0.25
    for k in range(4):
        frequency = 10000.0 ** (-k / 4)
        for channel, angle in ((4 * k, row), (4 * k + 1, row), (4 * k + 2, column)):
            angle = torch.tensor(angle * frequency)
            assert cos[2 * 200 + 4, channel].item() == pytest.approx(angle.cos().item(), abs=1e-3)
            assert sin[2 * 200 + 4, channel].item() == pytest.approx(angle.sin().item(), abs=1e-3)


def test_flow_is_a_density() -> None:
    """The flow's density integrates to one, whatever its weights."""
    torch.manual_seed(7)
    flow = RealNVP()
    axis = torch.linspace(-8, 8, 401)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-2)


def test_features_move_and_know_their_size(tiny: EDM) -> None:
    features = tiny.encode(torch.zeros(1, 1, 64, 96))
    assert features.nbytes == 4 * 16 * (2 * 3 + 4 * 6 + 2 * 8 * 12)
    half = features.to(torch.float16)
    assert isinstance(half, EDMFeatures)
    assert half.nbytes * 2 == features.nbytes
    assert half.position_scale == features.position_scale


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(8)
    model = EDM(TINY)
    f0, f1 = model.encode(torch.rand(2, 1, 64, 64)), model.encode(torch.rand(2, 1, 64, 64))
    coarse = model.interact(f0, f1)
    cells = model.coarse_match(*coarse, topk=8)
    offset, sigma = model.refine(f0, f1, *coarse, cells)
    similarities = similarity(*(c.flatten(2).mT for c in coarse), temperature=0.1)
    loss = offset.square().sum() + sigma.sum() + similarities.logsumexp(dim=1).sum()
    loss = loss + model.fine_matching.flow.log_prob(offset.flatten(0, 1)).sum()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without

"""Properties of the network that hold for any weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from edm_hloc.models.attention import rotary_table
from edm_hloc.models.coarse import similarity
from edm_hloc.models.edm import EDM
from edm_hloc.models.flow import RealNVP
from edm_hloc.models.folding import fold_batch_norms
from edm_hloc.models.types import CONFIGS, EDMConfig, EDMFeatures, MatchOptions, default_topk
from tests.models.test_edm_golden import reference_state

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
    options = MatchOptions(topk=20, threshold=0.0)
    batch = model.match(model.encode(images0), model.encode(images1), options)
    for i in range(3):
        one = model.match(
            model.encode(images0[i : i + 1]),
            model.encode(images1[i : i + 1]),
            options,
        )
        for name, a, b in zip(batch._fields, batch, one, strict=True):
            torch.testing.assert_close(
                a[i].float(), b[0].float(), atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@torch.inference_mode()
def test_arguments_of_the_call(model: EDM) -> None:
    torch.manual_seed(2)
    features = [model.encode(torch.rand(1, 1, 128, 160)) for _ in range(2)]
    everything = model.match(*features, MatchOptions(topk=10**9, threshold=-1.0))
    assert everything.confidence.shape == (1, 16 * 20)
    few = model.match(*features, MatchOptions(topk=7, threshold=-1.0))
    assert few.confidence.shape == (1, 7)
    torch.testing.assert_close(few.confidence[0], everything.confidence[0, :7])
    middle = everything.confidence[0, 160].item()
    strict = model.match(*features, MatchOptions(topk=10**9, threshold=middle))
    kept = everything.valid & (everything.confidence > middle)
    assert 0 < kept.sum() < everything.valid.sum()
    for name, a, b in zip(strict._fields, strict, everything, strict=True):
        torch.testing.assert_close(a[strict.valid], b[kept], msg=lambda m, n=name: f"{n}: {m}")
    confident = model.match(*features, MatchOptions(topk=10**9, threshold=0.02))
    expected = everything.valid & (everything.confidence > 0.02)
    assert 0 < expected.sum() == confident.valid.sum()
    for name, a, b in zip(confident._fields, confident, everything, strict=True):
        torch.testing.assert_close(
            a[confident.valid], b[expected], msg=lambda m, n=name: f"{n}: {m}"
        )
    assert confident.valid.shape[1] < 320  # the rest is not refined
    assert not model.match(*features, MatchOptions(threshold=0.999)).valid.any()
    bordered = model.match(*features, MatchOptions(topk=10**9, threshold=-1.0, border_cells=3))
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
    in_1 = model.match(*features, MatchOptions(threshold=-1.0, refined="image1"))
    in_0 = model.match(*features, MatchOptions(threshold=-1.0, refined="image0"))
    best = model.match(*features, MatchOptions(threshold=-1.0))
    assert torch.all(in_1.keypoints0 % 8 == 0)
    assert torch.all(in_0.keypoints1 % 8 == 0)
    assert torch.any(in_1.keypoints1 % 8 != 0)
    assert (in_1.keypoints1 - in_0.keypoints1).abs().max() <= 4
    torch.testing.assert_close(best.certainty, torch.maximum(in_0.certainty, in_1.certainty))
    cells = model.match(*features, MatchOptions(threshold=-1.0, refined="neither"))
    assert torch.equal(cells.keypoints0, in_1.keypoints0)
    assert torch.equal(cells.keypoints1, in_0.keypoints1)
    assert torch.equal(cells.confidence, best.confidence)


@torch.inference_mode()
def test_pairs_with_plenty_of_matches_are_refined_in_one_image(model: EDM) -> None:
    torch.manual_seed(3)
    features = [model.encode(torch.rand(2, 1, 96, 96)) for _ in range(2)]
    coarse = model.coarse_match(*model.interact(*features), topk=50)
    # a threshold that leaves the pairs different numbers of matches, and a number between them
    threshold = float(coarse.confidence[0, 20])
    first, second = (coarse.confidence > threshold).sum(dim=1).tolist()
    assert first != second
    most = 0 if first > second else 1  # the pair with more matches
    options = MatchOptions(topk=50, threshold=threshold)
    best = model.match(*features, options)
    in_1 = model.match(*features, dataclasses.replace(options, refined="image1"))
    assert not torch.equal(best.keypoints0, in_1.keypoints0)
    for plenty, of_one in ((max(first, second), [most]), (0, [0, 1]), (51, []), (None, [])):
        found = model.match(*features, dataclasses.replace(options, plenty=plenty))
        for i in range(2):
            expected = in_1 if i in of_one else best
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours[i], theirs[i])
    asked = dataclasses.replace(options, refined="image0", plenty=0)
    assert torch.all(model.match(*features, asked).keypoints1 % 8 == 0)


def test_one_direction_only() -> None:
    model = EDM(dataclasses.replace(TINY, bidirectional=False)).eval()
    features = [model.encode(torch.rand(1, 1, 64, 64)) for _ in range(2)]
    assert torch.all(model.match(*features, MatchOptions(threshold=-1.0)).keypoints0 % 8 == 0)
    with pytest.raises(ValueError, match="image 1 only"):
        model.match(*features, MatchOptions(refined="image0"))


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
        found = model.match(features, features, MatchOptions(threshold=-1.0))
    for tensor in found[:4]:
        assert torch.isfinite(tensor).all()
    assert found.confidence.min() >= 0
    assert found.confidence.max() <= 1


@torch.inference_mode()
def test_autocast_agrees_with_fp32(model: EDM) -> None:
    from tests.golden.reference_weights import image

    pixels = torch.from_numpy(image(5, 96, 128))[None, None].float() / 255
    options = MatchOptions(topk=20, threshold=-1)
    plain = model(pixels, pixels.flip(-1), options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(pixels, pixels.flip(-1), options)
    assert mixed.confidence.dtype == torch.float32
    torch.testing.assert_close(mixed.confidence[0, 0], plain.confidence[0, 0], atol=0.15, rtol=0.3)


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


@torch.inference_mode()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folded_batch_norms(model: EDM, layout: torch.memory_format) -> None:
    from tests.golden.reference_weights import image

    folded = fold_batch_norms(model).to(memory_format=layout)
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    assert any(isinstance(m, norms) for m in model.modules())
    assert not any(isinstance(m, norms) for m in folded.modules())
    pixels = [torch.from_numpy(image(s, 96, 128))[None, None].float() / 255 for s in (5, 6)]
    plain, fast = ([m.encode(x) for x in pixels] for m in (model, folded))
    for a, b in zip(plain, fast, strict=True):
        for x, y in zip(a[:4], b[:4], strict=True):
            torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-4)
    coarse, fast_coarse = model.interact(*plain), folded.interact(*fast)
    torch.testing.assert_close(fast_coarse, coarse, atol=1e-4, rtol=1e-4)
    cells = model.coarse_match(*coarse, topk=50)
    torch.testing.assert_close(
        folded.refine(*fast, *fast_coarse, cells),
        model.refine(*plain, *coarse, cells),
        atol=1e-4,
        rtol=1e-4,
    )


@torch.inference_mode()
def test_padding_has_no_part_in_attention(model: EDM) -> None:
    """Cells that show the photos become what they become without padding, which is cropped here."""
    transformer, dim = model.neck.loftr_32, model.config.dim
    torch.manual_seed(0)
    x0, x1 = torch.randn(2, dim, 6, 8), torch.randn(2, dim, 7, 5)
    scales = ((1.0, 1.0), (1.25, 0.75))
    shown = ((18, 27), (28, 13))  # at 1/8; 5 × 7 and 7 × 4 cells at 1/32 have some of the photos
    padded = [
        transformer.encode(x, scale, cells)
        for x, scale, cells in zip((x0, x1), scales, shown, strict=True)
    ]
    alone = [
        transformer.encode(x0[..., :5, :7], scales[0]),
        transformer.encode(x1[..., :7, :4], scales[1]),
    ]
    torch.testing.assert_close(padded[0][..., :5, :7], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(padded[1][..., :7, :4], alone[1], rtol=1e-4, atol=1e-4)
    assert (transformer.encode(x0, scales[0]) - padded[0])[..., :5, :7].abs().max() > 0.01
    y0, y1 = transformer.interact(padded[0], padded[1], scales, shown)
    z0, z1 = transformer.interact(alone[0], alone[1], scales)
    torch.testing.assert_close(y0[..., :5, :7], z0, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y1[..., :7, :4], z1, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_padding_has_no_part_in_the_dual_softmax(model: EDM) -> None:
    """As with similarities of −∞ wherever one of the cells is padding."""
    torch.manual_seed(0)
    images = torch.rand(2, 1, 96, 128)
    images[0, :, 80:] = 0
    images[1, :, :, 72:] = 0
    shown = ((10, 16), (12, 9))
    features = [model.encode(images[i : i + 1], shown=shown[i]) for i in (0, 1)]
    coarse = model.interact(features[0], features[1])
    flat = [c.flatten(2).transpose(1, 2) for c in coarse]
    there = [torch.zeros(12, 16, dtype=torch.bool) for _ in shown]
    for mask, (rows, columns) in zip(there, shown, strict=True):
        mask[:rows, :columns] = True
    masked = similarity(flat[0], flat[1], model.config.temperature).masked_fill(
        ~(there[0].flatten()[:, None] & there[1].flatten()), -1e9
    )
    expected = (masked.softmax(1) * masked.softmax(2))[0]
    expected[~there[0].flatten()] = 0
    probability, column = expected.max(dim=1)
    best = probability.topk(30)
    options = MatchOptions(topk=30, threshold=0.0, sigma_threshold=-1.0, refined="image1")
    found = model.match(features[0], features[1], options)
    torch.testing.assert_close(found.confidence[0], best.values, rtol=1e-3, atol=1e-6)
    cell0 = (found.keypoints0[0] / 8).long()
    cell1 = (found.keypoints1[0] / 8).round().long()  # within half a cell of the grid
    for (x, y), (u, v), confidence in zip(cell0, cell1, found.confidence[0], strict=True):
        row = y * 16 + x
        assert float(probability[row]) == pytest.approx(float(confidence), rel=1e-3)
        assert abs(int(column[row]) % 16 - int(u)) <= 1
        assert abs(int(column[row]) // 16 - int(v)) <= 1
        assert (y < 10, x < 16) == (True, True)


def test_padding_brings_no_more_matches_than_the_photo(tiny: EDM) -> None:
    padded = tiny.encode(torch.rand(1, 1, 128, 128), shown=(8, 8))
    matches = tiny.match(padded, padded, MatchOptions(threshold=0.0))
    assert matches.confidence.shape[1] == default_topk(8 * 8)

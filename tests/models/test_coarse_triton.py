"""The Triton kernels against Eq. 2 in double precision: on a GPU, or interpreted on the CPU."""

from __future__ import annotations

import os

import pytest
import torch

# Before Triton is imported: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from edm_hloc.models import weights
from edm_hloc.models.coarse_triton import fused_columns, works_on

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("magnitude", [0.1, 1.5, 300.0])
@pytest.mark.parametrize(("rows", "columns", "channels"), [(130, 257, 40), (64, 128, 32)])
def test_equals_the_dual_softmax(rows: int, columns: int, channels: int, magnitude: float) -> None:
    torch.manual_seed(0)
    a = torch.randn(2, rows, channels, device=DEVICE) * magnitude
    b = torch.randn(2, columns, channels, device=DEVICE) * magnitude
    b[:, :50] = a[:, 10:60] + 0.1 * magnitude * torch.randn(2, 50, channels, device=DEVICE)
    s = a.double() @ b.double().mT / (channels * 0.1)
    logarithm = s.log_softmax(dim=1) + s.log_softmax(dim=2)
    expected = logarithm.max(dim=2).values
    probability, column = fused_columns(a, b, 0.1)
    rounding = 1e-5 + 1e-5 * s.abs().max().item()
    chosen = logarithm.gather(2, column[..., None])[..., 0]
    torch.testing.assert_close(chosen, expected, atol=rounding, rtol=0)
    torch.testing.assert_close(probability.double(), expected.exp(), atol=rounding, rtol=rounding)
    assert (expected.exp() > 0.2).any() or magnitude < 1


@torch.inference_mode()
def test_network_gives_the_same_matches() -> None:
    model, _ = weights.load("edm_s", DEVICE)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 1, 24, 32, generator=torch.Generator().manual_seed(0)), (96, 128)
    ).to(DEVICE)
    features = [model.encode(x) for x in (image, image.roll(16, dims=-1))]
    plain = model.match(*features)
    model.coarse_search = fused_columns
    fused = model.match(*features)
    assert plain.valid.sum() > 20
    rows = []
    for matches in (fused, plain):
        columns = matches.keypoints0, matches.keypoints1, matches.confidence[..., None]
        found = torch.cat(columns, dim=-1)[matches.valid]
        rows.append(found)
    distance = (rows[0][:, None] - rows[1]).abs().amax(dim=2).amin(dim=1)
    assert len(rows[0]) == len(rows[1])
    assert distance.max() < 1e-2


def test_the_check_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that run and agree are used; those that fail or disagree are not."""
    from edm_hloc.models import coarse_triton as fused

    assert works_on(DEVICE)
    plain = fused.fused_columns
    monkeypatch.setattr(fused, "fused_columns", lambda *a: (plain(*a)[0] + 0.1, plain(*a)[1]))
    assert not works_on(DEVICE)

    def broken(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fused, "fused_columns", broken)
    assert not works_on(DEVICE)

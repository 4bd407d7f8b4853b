"""Best columns and entries of the dual softmax, and their gradients, against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edm_hloc.models.coarse import best_columns, similarity
from edm_hloc.training.dual_softmax import DualSoftmax, Entries
from edm_hloc.training.losses import wrong_match_loss

# Kept, and computed again in blocks of different sizes.
WAYS = [(1 << 20, None), (1, None), (3 * 4 * 5, None), (1, 0), (3 * 4 * 5, 0), (1 << 20, 0)]


def _features() -> tuple[Tensor, Tensor, Entries]:
    torch.manual_seed(0)
    f0, f1 = torch.randn(2, 7, 4) * 3, torch.randn(2, 5, 4) * 3
    index = (
        torch.tensor([0, 0, 1, 1, 1]),
        torch.tensor([0, 6, 2, 3, 6]),
        torch.tensor([1, 4, 0, 0, 3]),
    )
    return f0.requires_grad_(), f1.requires_grad_(), index


@pytest.mark.parametrize(("block_bytes", "kept_bytes"), WAYS)
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_entries_and_their_gradient_equal_the_full_matrix(
    block_bytes: int, kept_bytes: int | None, temperature: float
) -> None:
    f0, f1, index = _features()
    s = similarity(f0, f1, temperature)
    expected = (s.log_softmax(1) + s.log_softmax(2))[index]
    weight = torch.linspace(-1, 2, 5)
    grads = torch.autograd.grad((expected * weight).sum(), (f0, f1))
    softmax = DualSoftmax(f0, f1, temperature, block_bytes=block_bytes, kept_bytes=kept_bytes)
    result = softmax.log_entries(index)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(torch.autograd.grad((result * weight).sum(), (f0, f1)), grads)
    probability, column = best_columns(f0, f1, temperature)
    torch.testing.assert_close(softmax.probability, probability)
    torch.testing.assert_close(softmax.column, column)


def test_matrix_is_kept_only_where_it_is_small_and_does_not_overflow() -> None:
    f0, f1, _ = _features()
    assert DualSoftmax(f0, f1, 2.0)._exponentials is not None
    assert DualSoftmax(f0, f1, 2.0, kept_bytes=4 * 2 * 7 * 5 - 1)._exponentials is None
    assert DualSoftmax(f0 * 1e3, f1, 2.0)._exponentials is None
    assert DualSoftmax(f0 * torch.nan, f1, 2.0)._exponentials is None


def test_matrix_is_computed_once_in_bfloat16_as_in_fp32() -> None:
    """Autocast changes the type of the features and nothing else."""
    f0, f1, index = _features()
    f0, f1 = (f.detach().bfloat16() for f in (f0, f1))
    expected = DualSoftmax(f0.float(), f1.float(), 2.0).log_entries(index)
    with torch.autocast("cpu", torch.bfloat16):
        softmax = DualSoftmax(f0.requires_grad_(), f1, 2.0)
        result = softmax.log_entries(index)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    assert f0.grad is not None
    assert f0.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_gradient_by_finite_differences(kept_bytes: int | None) -> None:
    f0, f1, index = _features()
    DualSoftmax(f0, f1, 0.5, kept_bytes=kept_bytes).log_entries(index).sum().backward()
    with torch.no_grad():
        for place in [(0, 0, 0), (0, 4, 2), (1, 6, 3)]:
            step = torch.zeros_like(f0)
            step[place] = 1e-2
            up, down = (
                DualSoftmax(f0 + d, f1, 0.5, kept_bytes=kept_bytes).log_entries(index).sum()
                for d in (step, -step)
            )
            assert f0.grad is not None
            assert float((up - down) / 2e-2) == pytest.approx(float(f0.grad[place]), abs=2e-3)


def test_entries_of_enormous_similarities_are_finite() -> None:
    f0, f1, index = _features()
    result = DualSoftmax(f0 * 1e3, f1 * 1e3, 0.1).log_entries(index)
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert f0.grad is not None
    assert torch.isfinite(f0.grad).all()


@pytest.mark.parametrize("kept_bytes", [None, 0])
def test_loss_of_the_best_match_of_a_row_equals_the_full_matrix(kept_bytes: int | None) -> None:
    """Value and gradient of the loss of row maxima, from blocks and from the whole matrix."""
    f0, f1, _ = _features()
    wrong = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 1, 1, 0, 0, 0, 1]]).bool()
    s = similarity(f0, f1, 2.0)
    p = (s.softmax(1) * s.softmax(2)).amax(2)[wrong]
    expected = -(p.square() * (1 - (1 - 1e-4) * p).log()).sum() / 14
    grads = torch.autograd.grad(expected, (f0, f1))
    softmax = DualSoftmax(f0, f1, 2.0, block_bytes=80, kept_bytes=kept_bytes)
    pair, row = wrong.nonzero(as_tuple=True)
    log_p = softmax.log_entries((pair, row, softmax.column[pair, row]))
    loss = wrong_match_loss(log_p, 14)
    torch.testing.assert_close(loss, expected)
    assert expected > 1e-3
    torch.testing.assert_close(torch.autograd.grad(loss, (f0, f1)), grads)

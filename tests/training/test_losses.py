"""Losses against closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from edm_hloc.models.flow import RealNVP
from edm_hloc.training.losses import (
    focal_loss,
    residual_log_likelihood,
    total_loss,
    wrong_match_loss,
)


def test_focal_loss_closed_form() -> None:
    log_p = torch.tensor([0.5, 0.9, 1.0, 1e-30]).log()
    expected = 0.25 * (0.25 * math.log(2) + 0.01 * -math.log(0.9) + 30 * math.log(10)) / 4
    assert float(focal_loss(log_p)) == pytest.approx(expected, rel=1e-5)
    assert float(focal_loss(log_p[:1], alpha=1.0, gamma=0.0)) == pytest.approx(math.log(2))


def test_loss_of_wrong_matches_closed_form() -> None:
    log_p = torch.tensor([0.5, 0.9, 1e-30]).log()
    expected = (0.25 * math.log(2) + 0.81 * math.log(10)) / 8
    assert float(wrong_match_loss(log_p, 8)) == pytest.approx(expected, rel=1e-3)
    assert float(wrong_match_loss(log_p[:1], 1, gamma=0.0)) == pytest.approx(math.log(2), rel=1e-3)
    certain = torch.tensor([0.0, 1e-6], requires_grad=True)  # as rounding can give
    wrong_match_loss(certain, 2).backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()
    assert certain.grad[0] > 1
    assert wrong_match_loss(torch.zeros(0), 0) == 0


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

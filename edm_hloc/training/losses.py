"""Losses of EDM: focal loss (Eq. 6), residual log-likelihood (Eqs. 7–8) and their sum (Eq. 9)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edm_hloc.models.flow import RealNVP
from edm_hloc.training.config import Residual

SMALLEST_SIGMA = 1e-6
LARGEST_WRONG = 1 - 1e-4  # factor on the probability of wrong matches, so that log(1 − p) is finite


def focal_loss(log_probability: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Eq. 6): mean of −α·(1 − p)^γ·log p over the true matches; 0 if there are none.

    Args:
        log_probability: (P,) log p of the true matches. It is not clamped, so that matches of
            very low probability have a gradient as well.
        alpha, gamma: weight and exponent.
    """
    probability = log_probability.exp()
    loss = -alpha * (1.0 - probability).pow(gamma) * log_probability
    return loss.sum() / max(loss.numel(), 1)


def wrong_match_loss(log_probability: Tensor, cells: int, gamma: float = 2.0) -> Tensor:
    """The focal loss' counterpart for wrong matches: Σ −p^γ·log(1 − p) / cells.

    The focal loss sees a wrong match only in the row or the column of a true one. A cell without a
    true match, such as one whose point lies outside the other image, could have any twin there.

    Args:
        log_probability: (P,) log p of the wrong matches.
        cells: number of true matches and of best matches that are surely wrong.
        gamma: exponent; wrong matches of low probability count little.
    """
    log_probability = log_probability.clamp(max=0.0)  # rounding can exceed it
    loss = -(gamma * log_probability).exp() * (-LARGEST_WRONG * log_probability.exp()).log1p()
    return loss.sum() / max(cells, 1)


def residual_log_likelihood(
    offset: Tensor,
    sigma: Tensor,
    target: Tensor,
    flow: RealNVP,
    distribution: Residual = "laplace",
) -> Tensor:
    """Mean negative log-likelihood of the true offsets (Eqs. 7–8); 0 if there are none.

    With the residual r = (offset − target) / σ, the loss of each match and axis is
    −log Q(target | offset, σ) − log G(r) + log σ. Q is a Laplace or Gaussian density with mean
    `offset` and scale σ, and G the flow's density of the residuals along both axes. "l1" and "l2"
    are the mean absolute and squared error instead, from which σ and the flow learn nothing.

    Args:
        offset, target: (M, 2) predicted and true offsets in cells.
        sigma: (M, 2) predicted σ in (0, 1).
        flow: density G of the residuals.
        distribution: family of Q; or the error that takes its place.

    Raises:
        ValueError: the distribution is unknown.
    """
    device = offset.device.type
    with torch.autocast(device, enabled=False):
        offset, target = offset.float(), target.float()
        if distribution in ("l1", "l2"):
            error = (offset - target).abs()
            loss = error if distribution == "l1" else error.square()
            return loss.sum() / max(loss.numel(), 1)
        sigma = sigma.float().clamp(SMALLEST_SIGMA, 1.0 - SMALLEST_SIGMA)
        residual = (offset - target) / sigma
        if distribution == "laplace":
            base = (2.0 * sigma).log() + residual.abs()
        elif distribution == "gaussian":
            base = (math.sqrt(2.0 * math.pi) * sigma).log() + 0.5 * residual.square()
        else:
            raise ValueError(f"unknown residual distribution {distribution!r}")
        correction = sigma.log() - flow.log_prob(residual)[:, None]
        loss = base + correction
        return loss.sum() / max(loss.numel(), 1)


def total_loss(coarse: Tensor, fine: Tensor, fine_weight: float = 0.2) -> Tensor:
    """Weighted sum of the losses of the coarse and the fine stage (Eq. 9)."""
    return coarse + fine_weight * fine

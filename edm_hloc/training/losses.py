"""Losses of EDM: focal loss (Eq. 6), residual log-likelihood (Eqs. 7–8) and their sum (Eq. 9)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edm_hloc.models.coarse import similarity
from edm_hloc.models.flow import RealNVP

Residual = Literal["laplace", "gaussian", "l1", "l2"]
SMALLEST_SIGMA = 1e-6
LARGEST_WRONG = 1 - 1e-4  # factor on the probability of wrong matches, so that log(1 − p) is finite

Entries = tuple[Tensor, Tensor, Tensor]
"""Pair, row and column of P entries of a batch of matrices, (P,) long each."""


class _DualSoftmaxEntries(torch.autograd.Function):
    """See `dual_softmax_entries`. The gradient with respect to the similarity s is

        dL/ds_ij = 2·g_ij − (Σ_j g_ij)·softmax_row(s)_ij − (Σ_i g_ij)·softmax_column(s)_ij

    where the incoming gradient g is zero except at the entries. The blocks of s are recomputed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features0: Tensor,
        features1: Tensor,
        temperature: float,
        places: tuple[Entries, tuple[Tensor, Tensor]],
        block_rows: int,
    ) -> Tensor:
        (batch, row, column), (row_lse, column_lse) = places
        ctx.save_for_backward(features0, features1, row_lse, column_lse, batch, row, column)
        ctx.temperature, ctx.block_rows = temperature, block_rows
        scale = 1.0 / (features0.shape[-1] * temperature)
        entries = (features0[batch, row].float() * features1[batch, column].float()).sum(dim=-1)
        return 2.0 * scale * entries - row_lse[batch, row] - column_lse[batch, column]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features0, features1, row_lse, column_lse, batch, row, column = ctx.saved_tensors
        grad = grad.float()
        row_weight = torch.zeros_like(row_lse).index_put_((batch, row), grad, accumulate=True)
        column_weight = torch.zeros_like(column_lse)
        column_weight.index_put_((batch, column), grad, accumulate=True)
        scale = 1.0 / (features0.shape[-1] * ctx.temperature)
        f1 = features1.float()
        grad0, grad1 = [], torch.zeros_like(f1)
        with torch.autocast(features0.device.type, enabled=False):
            for start in range(0, features0.shape[1], ctx.block_rows):
                rows = slice(start, start + ctx.block_rows)
                f0 = features0[:, rows].float()
                s = similarity(f0, f1, ctx.temperature)
                ds = (s - row_lse[:, rows, None]).exp_().mul_(row_weight[:, rows, None])
                s.sub_(column_lse[:, None]).exp_().mul_(column_weight[:, None])
                ds.add_(s).neg_()
                here = ((row >= start) & (row < start + ctx.block_rows)).nonzero()[:, 0]
                index = (batch[here], row[here] - start, column[here])
                ds.index_put_(index, 2.0 * grad[here], accumulate=True)
                ds.mul_(scale)
                grad0.append(torch.matmul(ds, f1))
                grad1.add_(torch.matmul(ds.mT, f0))
        grad_features0 = torch.cat(grad0, dim=1).to(features0.dtype)
        return grad_features0, grad1.to(features1.dtype), None, None, None


def dual_softmax_entries(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    entries: Entries,
    log_sums: tuple[Tensor, Tensor],
    block_bytes: int | None = None,
) -> Tensor:
    """Logarithms of some entries of the dual softmax (Eq. 2), in fp32.

    log p_ij = 2·s_ij − row_lse_i − column_lse_j, so that only the log-sum-exp of the rows and
    columns of the similarity matrix s is needed. For the gradient, which includes that of the
    log-sum-exps, it is computed in blocks of rows, so that memory stays at a few times
    `block_bytes` for any image size. Nothing overflows or underflows.

    Args:
        features0: (B, N, C) of the cells of image 0.
        features1: (B, M, C) of the cells of image 1.
        temperature: τ of Eq. 1.
        entries: the P entries that are evaluated.
        log_sums: the log-sum-exps (B, N) of the rows and (B, M) of the columns, as
            `models.coarse.log_sum_exps` computes them, without gradients.
        block_bytes: size of a block of the similarity matrix; None: 4 MiB on the CPU, about the
            cache of a core, and 256 MiB on a GPU.

    Returns:
        (P,) log probabilities.
    """
    if block_bytes is None:
        block_bytes = 4 << 20 if features0.device.type == "cpu" else 256 << 20
    per_row = 4 * features0.shape[0] * features1.shape[1]
    block_rows = max(1, min(features0.shape[1], block_bytes // per_row))
    log_probability: Tensor = _DualSoftmaxEntries.apply(
        features0, features1, temperature, (entries, log_sums), block_rows
    )
    return log_probability


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
        cells: number of cells whose true position is known, with and without a true match.
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

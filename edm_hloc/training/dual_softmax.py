"""The dual softmax (Eq. 2) of a batch for the losses: best columns, and entries with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from edm_hloc.models.coarse import (
    UNSHIFTED,
    best_columns,
    largest_similarity,
    log_sum_exps,
    similarity,
)

Entries = tuple[Tensor, Tensor, Tensor]
"""Pair, row and column of P entries of a batch of matrices, (P,) long each."""

KEPT_BYTES = 1 << 30  # largest matrix of a batch that is kept, on the CPU


class DualSoftmax:
    """The dual softmax of B pairs of maps of features.

    log p_ij = 2·s_ij − row_lse_i − column_lse_j, so of the matrix of similarities s only the
    log-sum-exps of its rows and columns are needed. On the CPU, where the products are what takes
    the time, the exponentials of the similarities are computed once and kept for the gradient,
    unless they are too large for that. Else the matrix is computed in blocks of rows each time, so
    that memory stays at a few times `block_bytes` for any image size. Nothing overflows or
    underflows.

    Args:
        features0: (B, N, C) of the cells of image 0.
        features1: (B, M, C) of the cells of image 1.
        temperature: τ of Eq. 1.
        block_bytes: size of a block of the matrix; None: 4 MiB on the CPU, about the cache of a
            core, and 256 MiB on a GPU.
        kept_bytes: largest matrix that is kept; None: 1 GiB on the CPU, none on a GPU.

    Attributes:
        probability: (B, N) largest entry of each row, in fp32.
        column: (B, N) long, its column.
    """

    def __init__(
        self,
        features0: Tensor,
        features1: Tensor,
        temperature: float,
        *,
        block_bytes: int | None = None,
        kept_bytes: int | None = None,
    ) -> None:
        on_cpu = features0.device.type == "cpu"
        if block_bytes is None:
            block_bytes = 4 << 20 if on_cpu else 256 << 20
        if kept_bytes is None:
            kept_bytes = KEPT_BYTES if on_cpu else 0
        self.features = features0, features1
        self.temperature = temperature
        self.block_bytes = block_bytes
        self._exponentials: Tensor | None = None
        batch, rows = features0.shape[:2]
        fits = 4 * batch * rows * features1.shape[1] <= kept_bytes
        with torch.no_grad():
            # False also for features that are not numbers.
            if fits and largest_similarity(features0, features1, temperature) <= UNSHIFTED:
                self._exponentiate()
            else:
                self._log_sums = log_sum_exps(features0, features1, temperature)
                self.probability, self.column = best_columns(
                    features0, features1, temperature, log_sums=self._log_sums
                )

    def _blocks(self) -> list[tuple[int, slice]]:
        """The pair and the rows of each block."""
        (batch, rows), columns = self.features[0].shape[:2], self.features[1].shape[1]
        step = max(1, self.block_bytes // (4 * columns))
        return [(k, slice(i, i + step)) for k in range(batch) for i in range(0, rows, step)]

    def _exponentiate(self) -> None:
        """Computes the exponentials of the similarities, their sums and the best columns."""
        features0, features1 = (f.float() for f in self.features)
        (batch, rows, channels), columns = features0.shape, features1.shape[1]
        scaled = features0 / (channels * self.temperature)
        kept = scaled.new_empty(batch, rows, columns)
        row_sum, column_sum = scaled.new_empty(batch, rows), scaled.new_zeros(batch, columns)
        with torch.autocast(scaled.device.type, enabled=False):
            for pair, some in self._blocks():
                block = torch.mm(scaled[pair, some], features1[pair].T, out=kept[pair, some]).exp_()
                row_sum[pair, some] = block.sum(dim=1)
                column_sum[pair] += block.sum(dim=0)
        self.probability, self.column = (
            torch.empty_like(row_sum),
            row_sum.new_empty(row_sum.shape, dtype=torch.long),
        )
        # p_ij = e_ij² / (row sum · column sum), in an order in which nothing overflows.
        row_root, column_root = row_sum.sqrt(), column_sum.sqrt()
        for pair, some in self._blocks():
            best, self.column[pair, some] = (kept[pair, some] / column_root[pair]).max(dim=1)
            self.probability[pair, some] = (best / row_root[pair, some]).square()
        self._exponentials = kept
        self._log_sums = row_sum.log(), column_sum.log()

    def log_entries(self, entries: Entries) -> Tensor:
        """(P,) logarithms of P entries, in fp32, with gradients for the features."""
        log_probability: Tensor = _LogEntries.apply(*self.features, self, entries)
        return log_probability

    def weighted(self, pair: int, some: slice, weights: tuple[Tensor, Tensor]) -> Tensor:
        """Some rows of softmax_row(s)_ij·w_i + softmax_column(s)_ij·v_j; w (B, N), v (B, M)."""
        (row_weight, column_weight), (row_lse, column_lse) = weights, self._log_sums
        if self._exponentials is not None:
            factor = torch.add(
                (row_weight[pair, some] * (-row_lse[pair, some]).exp())[:, None],
                column_weight[pair] * (-column_lse[pair]).exp(),
            )
            return factor.mul_(self._exponentials[pair, some])
        features0, features1 = self.features
        s = similarity(
            features0[pair : pair + 1, some], features1[pair : pair + 1], self.temperature
        )[0]
        of_rows = (s - row_lse[pair, some, None]).exp_().mul_(row_weight[pair, some, None])
        return of_rows.add_(s.sub_(column_lse[pair]).exp_().mul_(column_weight[pair]))


class _LogEntries(torch.autograd.Function):
    """See `DualSoftmax.log_entries`. The gradient with respect to the similarity s is

        dL/ds_ij = 2·g_ij − (Σ_j g_ij)·softmax_row(s)_ij − (Σ_i g_ij)·softmax_column(s)_ij

    where the incoming gradient g is zero except at the entries.
    """

    @staticmethod
    def forward(
        ctx: Any, features0: Tensor, features1: Tensor, softmax: DualSoftmax, entries: Entries
    ) -> Tensor:
        pair, row, column = entries
        ctx.save_for_backward(features0, features1, *entries)
        ctx.softmax = softmax
        scale = 1.0 / (features0.shape[-1] * softmax.temperature)
        row_lse, column_lse = softmax._log_sums
        s = scale * (features0[pair, row].float() * features1[pair, column].float()).sum(dim=-1)
        return 2.0 * s - row_lse[pair, row] - column_lse[pair, column]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features0, features1, pair, row, column = ctx.saved_tensors
        softmax: DualSoftmax = ctx.softmax
        f0, f1, grad = features0.float(), features1.float(), grad.float()
        weights = f0.new_zeros(f0.shape[:2]), f1.new_zeros(f1.shape[:2])
        weights[0].index_put_((pair, row), grad, accumulate=True)
        weights[1].index_put_((pair, column), grad, accumulate=True)
        grad0, grad1 = torch.empty_like(f0), torch.zeros_like(f1)
        with torch.autocast(f0.device.type, enabled=False):
            for of_block, some in softmax._blocks():
                ds = softmax.weighted(of_block, some, weights)
                grad0[of_block, some] = ds @ f1[of_block]
                grad1[of_block].addmm_(ds.mT, f0[of_block, some])
        scale = 1.0 / (f0.shape[-1] * softmax.temperature)
        at_entries = 2.0 * grad[:, None]
        grad0.neg_().index_put_((pair, row), at_entries * f1[pair, column], accumulate=True)
        grad1.neg_().index_put_((pair, column), at_entries * f0[pair, row], accumulate=True)
        return (
            grad0.mul_(scale).to(features0.dtype),
            grad1.mul_(scale).to(features1.dtype),
            None,
            None,
        )

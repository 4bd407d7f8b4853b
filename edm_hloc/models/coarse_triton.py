"""The dual softmax's best columns on a GPU, in Triton: similarities never leave the chip.

Each program makes one tile of similarities. A first pass leaves the log-sum-exps of its rows and
columns, a second one the largest entry of the dual softmax in each of its rows and where it is;
what the tiles left is joined by PyTorch. Memory is 2/TILE of one similarity matrix.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from edm_hloc.models.coarse import best_columns

logger = logging.getLogger(__name__)

_TILE = 128
_DEPTH = 32  # channels at a time


@triton.jit
def _tile(a, b, rows, columns, channels, row, column, TILE: tl.constexpr, DEPTH: tl.constexpr):
    """Similarities (TILE, TILE) of a (rows, channels) and b (columns, channels)."""
    s = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, channels, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        inside = depth < channels
        x = tl.load(
            a + row[:, None] * channels + depth[None, :],
            mask=(row < rows)[:, None] & inside[None, :],
            other=0.0,
        )
        y = tl.load(
            b + column[:, None] * channels + depth[None, :],
            mask=(column < columns)[:, None] & inside[None, :],
            other=0.0,
        )
        # Three products of the tensor cores are as exact as one in fp32.
        s = tl.dot(x, tl.trans(y), s, input_precision="tf32x3")
    return s


@triton.jit
def _sums(
    a, b, row_lse, column_lse, rows, columns, channels, TILE: tl.constexpr, DEPTH: tl.constexpr
):
    i, j, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, column = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
    a += pair * rows * channels
    b += pair * columns * channels
    s = _tile(a, b, rows, columns, channels, row, column, TILE, DEPTH)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    s = tl.where(inside, s, -1e30)
    top = tl.max(s, 1)
    lse = top + tl.log(tl.sum(tl.exp(s - top[:, None]), 1))
    tl.store(row_lse + (pair * tl.num_programs(1) + j) * rows + row, lse, mask=row < rows)
    top = tl.max(s, 0)
    lse = top + tl.log(tl.sum(tl.exp(s - top[None, :]), 0))
    tl.store(
        column_lse + (pair * tl.num_programs(0) + i) * columns + column, lse, mask=column < columns
    )


@triton.jit
def _best(
    a, b, column_lse, value, index, rows, columns, channels, TILE: tl.constexpr, DEPTH: tl.constexpr
):
    i, j, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, column = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
    a += pair * rows * channels
    b += pair * columns * channels
    s = _tile(a, b, rows, columns, channels, row, column, TILE, DEPTH)
    lse = tl.load(column_lse + pair * columns + column, mask=column < columns, other=0.0)
    s = tl.where((column < columns)[None, :], 2.0 * s - lse[None, :], -1e30)
    at = (pair * tl.num_programs(1) + j) * rows + row
    tl.store(value + at, tl.max(s, 1), mask=row < rows)
    tl.store(index + at, j * TILE + tl.argmax(s, 1), mask=row < rows)


def fused_columns(
    features0: Tensor, features1: Tensor, temperature: float, threshold: float = 0.0
) -> tuple[Tensor, Tensor]:
    """`edm.best_columns` of (B, N, C) and (B, M, C), to rounding; no threshold makes it faster."""
    batch, rows, channels = features0.shape
    columns = features1.shape[1]
    a = (features0.float() / (channels * temperature)).contiguous()
    b = features1.float().contiguous()
    grid = (triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE), batch)
    row_lse = a.new_empty(batch, grid[1], rows)
    column_lse = a.new_empty(batch, grid[0], columns)
    sizes = (rows, columns, channels, _TILE, _DEPTH)
    _sums[grid](a, b, row_lse, column_lse, *sizes)
    total = column_lse.logsumexp(dim=1).contiguous()
    value = torch.empty_like(row_lse)
    index = torch.empty_like(row_lse, dtype=torch.int32)
    _best[grid](a, b, total, value, index, *sizes)
    best, tile = value.max(dim=1)
    column = index.gather(1, tile[:, None])[:, 0].long()
    return (best - row_lse.logsumexp(dim=1)).exp(), column


def works_on(device: torch.device) -> bool:
    """Whether the kernels run there and agree with plain PyTorch; tried on a small example."""
    generator = torch.Generator().manual_seed(0)
    a, b = (2 * torch.randn(2, n, 96, generator=generator).to(device) for n in (150, 200))
    b[:, :150] += 4 * a
    try:
        found, wanted = fused_columns(a, b, 0.1), best_columns(a, b, 0.1)
        agree = torch.allclose(found[0], wanted[0], atol=1e-3, rtol=1e-3)
    except Exception as error:  # of a compiler and a driver: any
        logger.info("No fused coarse matching on %s: %s", device, error)
        return False
    return agree

"""Coarse matching on a GPU in Triton: similarities are never written to the GPU's memory.

Each program computes one tile of the similarities. A first kernel stores the log-sum-exps of the
tile's rows and columns, a second one the largest entry of the dual softmax in each of its rows and
that entry's column; PyTorch combines the results of the tiles. The memory needed is 2/TILE of that
of one matrix of similarities.
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

_TILE = 128  # rows and columns of a tile
_DEPTH = 32  # channels of a step of the matrix product


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
        # Three TF32 products on the tensor cores are as accurate as one in fp32.
        s = tl.dot(x, tl.trans(y), s, input_precision="tf32x3")
    return s


@triton.jit
def _sums(
    a, b, row_lse, column_lse, rows, columns, channels, TILE: tl.constexpr, DEPTH: tl.constexpr
):
    """Stores the log-sum-exps of the tile's rows and columns."""
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
    """Stores the largest 2 s - column_lse of each of the tile's rows, and its column."""
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
    """`coarse.best_columns` on a GPU, up to rounding.

    Args:
        features0: (B, N, C), the coarse map of image 0, flattened.
        features1: (B, M, C), that of image 1.
        temperature: τ of Eq. 1.
        threshold: not used, as no threshold makes it faster; it makes the function
            interchangeable with `coarse.confident_columns`.

    Returns:
        probability (B, N) and column (B, N) long.
    """
    batch, rows, channels = features0.shape
    columns = features1.shape[1]
    a = (features0.float() / (channels * temperature)).contiguous()
    b = features1.float().contiguous()
    grid = (triton.cdiv(rows, _TILE), triton.cdiv(columns, _TILE), batch)
    row_lse = a.new_empty(batch, grid[1], rows)
    column_lse = a.new_empty(batch, grid[0], columns)
    sizes = (rows, columns, channels, _TILE, _DEPTH)
    with torch.cuda.device_of(a):  # Triton launches kernels on the current device
        _sums[grid](a, b, row_lse, column_lse, *sizes)
        total = column_lse.logsumexp(dim=1).contiguous()
        value = torch.empty_like(row_lse)
        index = torch.empty_like(row_lse, dtype=torch.int32)
        _best[grid](a, b, total, value, index, *sizes)
    best, tile = value.max(dim=1)
    column = index.gather(1, tile[:, None])[:, 0].long()
    return (best - row_lse.logsumexp(dim=1)).exp(), column


def works_on(device: torch.device) -> bool:
    """Whether the kernels run on a device and agree with PyTorch on a small example."""
    generator = torch.Generator().manual_seed(0)
    a, b = (2 * torch.randn(2, n, 96, generator=generator).to(device) for n in (150, 200))
    b[:, :150] += 4 * a
    try:
        found, expected = fused_columns(a, b, 0.1), best_columns(a, b, 0.1)
        agree = torch.allclose(found[0], expected[0], atol=1e-3, rtol=1e-3)
    except Exception as error:  # compiler and driver can raise anything
        logger.info("No fused coarse matching on %s: %s", device, error)
        return False
    return agree

"""Coarse matching (Sec. 3.3): the largest entry in each row of the dual softmax, block by block.

The matrix of similarities of two images of 1,152² pixels takes 1.6 GiB. Its dual softmax needs only
the sums of its rows and columns, so it is computed in blocks of rows that are not kept.
`best_columns` is the plain form, `confident_columns` the faster one for a threshold,
`coarse_compiled.compiled_columns` that for a CPU and `coarse_triton.fused_columns` that for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edm_hloc.base.threads import on_cores

# Below this threshold a row can have so many candidates that all columns are searched instead.
MIN_THRESHOLD = 0.01
# Sums of exponentials in fp32 above exp(−60) of the scale they are computed at are exact to
# rounding: the terms that underflow, below exp(−87), do not matter for them.
_LOG_RANGE = 60.0
UNSHIFTED = 60.0
"""Similarities up to this need no shift before they are exponentiated: sums of 2^18 exponentials
fit in fp32, and so do their inverses."""
_SAME_PLACE = 3  # cells; the fields of view of nearer ones overlap too much to tell them apart
_GROUP = 16  # largest number of columns in a group of `_Block.group_max`


def similarity(features0: Tensor, features1: Tensor, temperature: float) -> Tensor:
    """⟨a, b⟩ / (C·τ) for (B, N, C) and (B, M, C) → (B, N, M), always in fp32 (Eq. 1)."""
    scale = 1.0 / (features0.shape[-1] * temperature)
    with torch.autocast(features0.device.type, enabled=False):
        return torch.matmul(features0.float() * scale, features1.float().transpose(1, 2))


def largest_similarity(features0: Tensor, features1: Tensor, temperature: float) -> float:
    """A bound of the similarities of (…, N, C) and (…, M, C): |⟨a, b⟩| ≤ |a|·|b|.

    NaN for features that are not numbers.
    """
    return longest(features0) * longest(features1) / (features0.shape[-1] * temperature)


def longest(features: Tensor) -> float:
    """The largest norm of features (…, N, C)."""
    return float(torch.linalg.vector_norm(features.float(), dim=-1).max())


def best_columns(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    block_bytes: int | None = None,
    log_sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Finds the largest entry in each row of the dual softmax (Eq. 2), and its column.

    The logarithm of the dual softmax at (i, j) is 2·s_ij − row_lse_i − column_lse_j, so of the
    whole matrix only the log-sum-exps are needed. It is computed in blocks of rows; twice, unless
    a single block holds it. Memory stays at a few times `block_bytes`, and the log-sum-exps
    cannot overflow.

    Args:
        features0: (B, N, C), the coarse map of image 0, flattened.
        features1: (B, M, C), that of image 1.
        temperature: τ of Eq. 1.
        block_bytes: memory in bytes for the similarities of a block; None: 4 MiB on the CPU, 64
            MiB on a GPU.
        log_sums: the log-sum-exps (B, N) of the rows and (B, M) of the columns, where they are
            known; the matrix is then computed once.

    Returns:
        probability (B, N) and column (B, N) long.
    """
    step = _rows_per_block(features0, features1, block_bytes)
    blocks = features0.split(step, dim=1)
    kept: Tensor | None = None
    if log_sums is None:
        log_sums, kept = _log_sums(blocks, features1, temperature)
    row_lse, column_lse = log_sums
    best, columns = [], []
    for block in blocks:
        s = similarity(block, features1, temperature) if kept is None else kept
        value, column = s.mul_(2.0).sub_(column_lse[:, None]).max(dim=2)
        best.append(value)
        columns.append(column)
    log_probability = torch.cat(best, dim=1) - row_lse
    return log_probability.exp(), torch.cat(columns, dim=1)


def log_sum_exps(features0: Tensor, features1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exps (B, N) of the rows and (B, M) of the columns of the matrix of similarities.

    For the arguments see `best_columns`.
    """
    step = _rows_per_block(features0, features1, None)
    return _log_sums(features0.split(step, dim=1), features1, temperature)[0]


def _log_sums(
    blocks: Sequence[Tensor], features1: Tensor, temperature: float
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Log-sum-exps (B, N) of the rows and (B, M) of the columns; the matrix if it is one block."""
    rows, columns = [], None
    for block in blocks:
        s = similarity(block, features1, temperature)
        rows.append(s.logsumexp(dim=2))
        of_block = s.logsumexp(dim=1)
        columns = of_block if columns is None else torch.logaddexp(columns, of_block)
    assert columns is not None
    return (torch.cat(rows, dim=1), columns), s if len(blocks) == 1 else None


@torch.no_grad()
def distinctness(
    features0: Tensor, features1: Tensor, temperature: float, grid: tuple[int, int], step: int = 1
) -> Tensor:
    """How much more similar a cell of an image is to itself than to any cell elsewhere in it.

    Where it is near zero the image shows the same again elsewhere, and a match of the cell may as
    well be one of that other place.

    Args:
        features0, features1: (N, C), the coarse maps of an image conditioned on itself, flattened.
        temperature: τ of Eq. 1.
        grid: (rows, columns) of the cells, whose product is N.
        step: every how many cells along each axis are asked; they are compared with all.

    Returns:
        (⌈rows / step⌉, ⌈columns / step⌉): the similarity (Eq. 1) to the most similar cell at most
        `_SAME_PLACE` cells away along each axis, less that to the most similar one beyond.
    """
    rows, columns = grid
    column = torch.arange(columns, device=features0.device)
    beside = (column[::step, None] - column).abs() <= _SAME_PLACE
    asked = features0.view(rows, columns, -1)[::step, ::step]
    differences = []
    for row, cells in zip(range(0, rows, step), asked, strict=True):
        s = similarity(cells[None], features1[None], temperature).view(-1, rows, columns)
        band = slice(max(0, row - _SAME_PLACE), row + _SAME_PLACE + 1)
        near = s[:, band].amax(dim=1).masked_fill(~beside, -torch.inf).amax(dim=1)
        s[:, band].masked_fill_(beside[:, None], -torch.inf)
        differences.append(near - s.amax(dim=(1, 2)))
    return torch.stack(differences)


@torch.no_grad()
def confident_columns(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    threshold: float,
    block_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`best_columns` for the rows whose probability exceeds a threshold, several times faster.

    The dual softmax is at most the row softmax at the same entry, so only entries whose row
    softmax exceeds `threshold` are candidates: fewer than 1/threshold in a row. They are selected
    from each block of rows as soon as it is computed, and their dual softmax is evaluated when the
    sums of the columns are complete. Each similarity is computed once and exponentiated once,
    relative to the maximum of its row.

    Args:
        features0: (B, N, C), the coarse map of image 0, flattened.
        features1: (B, M, C), that of image 1.
        temperature: τ of Eq. 1.
        threshold: of the dual softmax; below 0.01 all rows are searched with `best_columns`.
        block_bytes: memory in bytes for the similarities of a block; None: 4 MiB on the CPU, 64
            MiB on a GPU.

    Returns:
        probability (B, N) and column (B, N) long, both 0 in the rows that do not exceed it.
    """
    if threshold < MIN_THRESHOLD:
        return best_columns(features0, features1, temperature, block_bytes)
    batch, rows, channels = features0.shape
    columns = features1.shape[1]
    step = _rows_per_block(features0, features1, block_bytes)
    scaled = (features0.float() / (channels * temperature)).contiguous()
    transposed = features1.float().transpose(1, 2).contiguous()
    members = math.gcd(columns, _GROUP)

    def search(starts: range) -> tuple[Tensor, list[_Candidates]]:
        """Log-sum-exps (B, M) of the columns over some blocks, and the blocks' candidates."""
        # One buffer for all blocks: allocating a block costs as much as its exponentials.
        buffer = scaled.new_empty(batch * step * columns)
        column_lse = scaled.new_full((batch, columns), -math.inf)
        found = []
        for start in starts:
            some = scaled[:, start : start + step]
            e = buffer[: batch * some.shape[1] * columns].view(batch, -1, columns)
            with torch.autocast(scaled.device.type, enabled=False):
                torch.matmul(some, transposed, out=e)
                group_max = e.unflatten(2, (members, -1)).amax(dim=2)
                row_max = group_max.amax(dim=2, keepdim=True)
                block = _Block(start, e.sub_(row_max).exp_(), row_max, group_max)
                column_lse = torch.logaddexp(column_lse, _column_lse(block))
            found.append(_candidates(block, rows, threshold))
        return column_lse, found

    # A block fits the cache of one core and is too small to be shared: each core has its own.
    cores = torch.get_num_threads() if features0.device.type == "cpu" else 1
    parts = on_cores(search, [range(k * step, rows, cores * step) for k in range(cores)])
    column_lse = torch.stack([sums for sums, _ in parts]).logsumexp(dim=0)
    found = [candidates for _, some in parts for candidates in some]
    row, column, row_softmax, s = (torch.cat(values) for values in zip(*found, strict=True))

    pair = row // rows
    lse = column_lse.flatten()[pair * columns + column]
    # In columns far below the largest log-sum-exp, the sums may have underflowed.
    low = (s < column_lse.max() - _LOG_RANGE).nonzero()[:, 0]
    lse[low] = _exact_column_lse(scaled, transposed, pair[low], column[low], step)
    candidate = row_softmax * (s - lse).exp()
    probability = candidate.new_zeros(batch * rows).scatter_reduce_(0, row, candidate, "amax")
    best = candidate == probability[row]
    best_column = column.new_zeros(batch * rows)
    best_column[row[best]] = column[best]
    exceeding = probability > threshold
    probability, best_column = probability.where(exceeding, 0.0), best_column.where(exceeding, 0)
    return probability.view(batch, rows), best_column.view(batch, rows)


class _Block(NamedTuple):
    """The similarities of R rows of each pair, while they are searched.

    Attributes:
        start: index of the first of these rows.
        e: (B, R, M) exponentials of the similarities, relative to the rows' maxima.
        row_max: (B, R, 1) maxima of the rows.
        group_max: (B, R, G) maxima of groups of similarities; group g consists of the columns
            g, g + G, … The groups are searched first, since maxima are vectorised and
            `nonzero` is not.
    """

    start: int
    e: Tensor
    row_max: Tensor
    group_max: Tensor


class _Candidates(NamedTuple):
    """Entries of the matrix of similarities that may be the largest of their rows.

    Attributes:
        row: (E,) index among the rows of all pairs: pair · N + row of the pair.
        column: (E,) index among the columns of the pair.
        row_softmax: (E,) softmax along the row.
        s: (E,) similarity.
    """

    row: Tensor
    column: Tensor
    row_softmax: Tensor
    s: Tensor


def _candidates(block: _Block, rows: int, threshold: float) -> _Candidates:
    """Entries of a block whose row softmax exceeds `threshold`; `rows` is N."""
    start, e, row_max, group_max = block
    size, groups = group_max.shape[1:]
    total = e.sum(dim=2, keepdim=True)
    minimum = total * threshold
    exceeding = (group_max > row_max + minimum.log()).flatten().nonzero()[:, 0]
    line, group = exceeding // groups, exceeding % groups  # line: pair · R + row of the block
    few = e.view(-1, e.shape[2] // groups, groups)[line, :, group]
    index, member = (few > minimum.flatten()[line, None]).nonzero(as_tuple=True)
    line, column = line[index], member * groups + group[index]
    row = line + line // size * (rows - size) + start
    value = few[index, member]
    return _Candidates(
        row, column, value / total.flatten()[line], row_max.flatten()[line] + value.log()
    )


def _column_lse(block: _Block) -> Tensor:
    """Log-sum-exps (B, M) of the columns of a block."""
    level = block.row_max.amax(dim=1, keepdim=True)
    sums = torch.matmul((block.row_max - level).exp().transpose(1, 2), block.e)
    return (sums.log() + level)[:, 0]


def _exact_column_lse(
    scaled: Tensor, transposed: Tensor, pair: Tensor, column: Tensor, step: int
) -> Tensor:
    """Log-sum-exps (E,) of single columns of the pairs' matrices, `step` columns at a time."""
    lse = scaled.new_empty(len(column))
    for part in torch.arange(len(column), device=column.device).split(step):
        for i in pair[part].unique():
            here = part[pair[part] == i]
            with torch.autocast(scaled.device.type, enabled=False):
                s = torch.matmul(scaled[i], transposed[i][:, column[here]])
            lse[here] = s.logsumexp(dim=0)
    return lse


def _rows_per_block(features0: Tensor, features1: Tensor, block_bytes: int | None) -> int:
    """How many rows of every pair's similarities fit in `block_bytes`; at least one.

    The default is about the cache of a core, or enough to occupy a GPU.
    """
    if block_bytes is None:
        block_bytes = 64 << 20 if features0.device.type == "cuda" else 4 << 20
    batch, rows = features0.shape[:2]
    return max(1, min(rows, block_bytes // (4 * batch * features1.shape[1])))

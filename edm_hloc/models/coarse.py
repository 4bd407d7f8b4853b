"""Coarse matching (Sec. 3.3): the dual softmax's best columns, found without keeping its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from edm_hloc.base.threads import single_core_pool

# Below this threshold a row can have so many candidates that all columns are searched instead.
_LEAST_THRESHOLD = 0.01
# A sum of exponentials in fp32 is exact to rounding for terms down to exp(−60) of the scale it
# is kept at: those that underflow, below exp(−87), are too few to matter.
_COMMON_SCALE = 60.0


def _block_rows(rows: int, batch: int, columns: int, block_bytes: int) -> int:
    return max(1, min(rows, block_bytes // (4 * batch * columns)))


def _default_block(device: torch.device) -> int:
    """Bytes of similarities held at a time: about a core's cache, or enough to fill a GPU."""
    return 64 << 20 if device.type == "cuda" else 4 << 20


def similarity(features0: Tensor, features1: Tensor, temperature: float) -> Tensor:
    """⟨a, b⟩ / (C·τ) for (B, N, C) and (B, M, C) → (B, N, M), always in fp32 (Eq. 1)."""
    scale = 1.0 / (features0.shape[-1] * temperature)
    with torch.autocast(features0.device.type, enabled=False):
        return torch.matmul(features0.float() * scale, features1.float().transpose(1, 2))


def best_columns(
    features0: Tensor, features1: Tensor, temperature: float, block_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """For every row of the dual softmax (Eq. 2) its largest entry and that entry's column.

    The logarithm of the dual softmax at (i, j) is 2·s_ij − row_lse_i − column_lse_j, so the
    sums of the exponentials are all that is needed of the whole matrix. It is made in blocks
    of rows, twice when one block does not hold it: memory stays at a few times `block_bytes`,
    and the shifted exponentials cannot overflow.

    Args:
        features0: (B, N, C).
        features1: (B, M, C).
        temperature: τ of Eq. 1.
        block_bytes: memory for similarities held at a time; None for what suits the device.

    Returns:
        probability (B, N) and column (B, N) long.
    """
    batch, rows = features0.shape[:2]
    block_bytes = block_bytes or _default_block(features0.device)
    step = _block_rows(rows, batch, features1.shape[1], block_bytes)
    blocks = features0.split(step, dim=1)
    kept: Tensor | None = None
    row_lse, column_lse = [], None
    for block in blocks:
        s = similarity(block, features1, temperature)
        row_lse.append(s.logsumexp(dim=2))
        block_lse = s.logsumexp(dim=1)
        column_lse = block_lse if column_lse is None else torch.logaddexp(column_lse, block_lse)
        kept = s if len(blocks) == 1 else None
    assert column_lse is not None
    best, columns = [], []
    for block in blocks:
        s = similarity(block, features1, temperature) if kept is None else kept
        value, column = s.mul_(2.0).sub_(column_lse[:, None]).max(dim=2)
        best.append(value)
        columns.append(column)
    log_probability = torch.cat(best, dim=1) - torch.cat(row_lse, dim=1)
    return log_probability.exp(), torch.cat(columns, dim=1)


T = TypeVar("T")


def _on_cores(work: Callable[[range], T], shares: Sequence[range]) -> list[T]:
    """`work` of each share that is not empty, side by side with one thread of torch's each."""
    shares = [share for share in shares if share]
    if len(shares) == 1:
        return [work(shares[0])]
    with single_core_pool(len(shares), "coarse") as pool:
        return list(pool.map(torch.no_grad()(work), shares))


class _Block(NamedTuple):
    """The similarities of R rows of each pair, as they are searched.

    Attributes:
        start: the first of these rows.
        e: (B, R, M) exponentials, relative to the rows' maxima.
        top: (B, R, 1) those maxima.
        peaks: (B, R, G) maxima of groups of similarities; group g is of columns g, g + G, …
    """

    start: int
    e: Tensor
    top: Tensor
    peaks: Tensor


class _Entries(NamedTuple):
    """Entries of the similarities that may be the largest of their rows.

    Attributes:
        row: (E,) of all pairs' rows, one pair after the other: pair · N + row of the pair.
        column: (E,) of the pair's columns.
        share: (E,) row softmax.
        s: (E,) similarity.
    """

    row: Tensor
    column: Tensor
    share: Tensor
    s: Tensor


def _column_sums(block: _Block) -> Tensor:
    """(B, M) log-sum-exps of the columns."""
    level = block.top.amax(dim=1, keepdim=True)
    sums = torch.matmul((block.top - level).exp().transpose(1, 2), block.e)
    return (sums.log() + level)[:, 0]


def _promising(block: _Block, rows: int, threshold: float) -> _Entries:
    """Entries whose row softmax exceeds `threshold`; `rows` is N."""
    start, e, top, peaks = block
    size, groups = peaks.shape[1:]
    total = e.sum(dim=2, keepdim=True)
    least = total * threshold
    promising = (peaks > top + least.log()).flatten().nonzero()[:, 0]
    line, group = promising // groups, promising % groups  # line: pair · R + row of the block
    few = e.view(-1, e.shape[2] // groups, groups)[line, :, group]
    index, member = (few > least.flatten()[line, None]).nonzero(as_tuple=True)
    line, column = line[index], member * groups + group[index]
    row = line + line // size * (rows - size) + start
    value = few[index, member]
    return _Entries(row, column, value / total.flatten()[line], top.flatten()[line] + value.log())


def _sums_again(
    scaled: Tensor, transposed: Tensor, pair: Tensor, column: Tensor, step: int
) -> Tensor:
    """(E,) log-sum-exps of single columns of the pairs' matrices, `step` columns at a time."""
    sums = scaled.new_empty(len(column))
    for part in torch.arange(len(column), device=column.device).split(step):
        for i in pair[part].unique():
            here = part[pair[part] == i]
            with torch.autocast(scaled.device.type, enabled=False):
                alone = torch.matmul(scaled[i], transposed[i][:, column[here]])
            sums[here] = alone.logsumexp(dim=0)
    return sums


@torch.no_grad()
def confident_columns(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    threshold: float,
    block_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`best_columns` of the rows whose probability exceeds `threshold`, several times faster.

    An entry of the dual softmax is at most the row softmax at the same place, so only entries
    whose row softmax exceeds `threshold` count, fewer than 1/threshold a row. They are picked
    out of each block of rows when it is made, and wait for the sums of the columns: every
    similarity is computed once, and goes through one exponential, relative to its row's maximum.

    Args:
        features0: (B, N, C).
        features1: (B, M, C).
        temperature: τ of Eq. 1.
        threshold: the least probability of interest.
        block_bytes: memory for similarities held at a time; None for what suits the device.

    Returns:
        probability (B, N) and column (B, N) long, both 0 in the other rows.
    """
    if threshold < _LEAST_THRESHOLD:
        return best_columns(features0, features1, temperature, block_bytes)
    batch, rows, channels = features0.shape
    others = features1.shape[1]
    block_bytes = block_bytes or _default_block(features0.device)
    step = _block_rows(rows, batch, others, block_bytes)
    scaled = (features0.float() / (channels * temperature)).contiguous()
    transposed = features1.float().transpose(1, 2).contiguous()
    members = math.gcd(others, 16)  # of a group: maxima are vectorised, `nonzero` is not

    def search(starts: range) -> tuple[Tensor, list[_Entries]]:
        """Sums of the columns over some blocks, and their promising entries."""
        # Memory that is used again: fresh pages for a block cost as much as its exponentials.
        buffer = scaled.new_empty(batch * step * others)
        column_lse = scaled.new_full((batch, others), -math.inf)
        found = []
        for start in starts:
            some = scaled[:, start : start + step]
            e = buffer[: batch * some.shape[1] * others].view(batch, -1, others)
            with torch.autocast(scaled.device.type, enabled=False):
                torch.matmul(some, transposed, out=e)
                peaks = e.unflatten(2, (members, -1)).amax(dim=2)
                top = peaks.amax(dim=2, keepdim=True)
                block = _Block(start, e.sub_(top).exp_(), top, peaks)
                column_lse = torch.logaddexp(column_lse, _column_sums(block))
            found.append(_promising(block, rows, threshold))
        return column_lse, found

    # Blocks fit a core's cache, which is too little to share: each core has its own.
    cores = torch.get_num_threads() if features0.device.type == "cpu" else 1
    parts = _on_cores(search, [range(k * step, rows, cores * step) for k in range(cores)])
    column_lse = torch.stack([sums for sums, _ in parts]).logsumexp(dim=0)
    found = [entries for _, some in parts for entries in some]
    row, column, share, s = (torch.cat(values) for values in zip(*found, strict=True))

    pair = row // rows
    lse = column_lse.flatten()[pair * others + column]
    # Of columns far below the largest similarity the sum may have underflowed.
    low = (s < column_lse.max() - _COMMON_SCALE).nonzero()[:, 0]
    lse[low] = _sums_again(scaled, transposed, pair[low], column[low], step)
    candidate = share * (s - lse).exp()
    probability = candidate.new_zeros(batch * rows).scatter_reduce_(0, row, candidate, "amax")
    best = candidate == probability[row]
    columns = column.new_zeros(batch * rows)
    columns[row[best]] = column[best]
    probability = probability.where(probability > threshold, 0.0)
    return probability.view(batch, rows), columns.view(batch, rows)

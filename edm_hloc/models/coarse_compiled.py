"""Coarse matching on a CPU (Sec. 3.3): the matrix product, and one compiled pass over its result.

A block of rows of the similarities is computed by PyTorch into memory that fits the cache of a
core. While it is there, a loop compiled by Numba exponentiates it, adds to the sums of its rows and
columns, and lists the entries that can exceed the threshold. Nothing else of the matrix is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.compiled import compiled, inlined
from edm_hloc.base.threads import on_cores
from edm_hloc.models.coarse import MIN_THRESHOLD, confident_columns

# Similarities up to this need no shift before they are exponentiated: sums of 2^18 exponentials fit
# in fp32, and so do their inverses.
_LARGEST_SIMILARITY = 60.0
_SHARES = 8  # of the rows, each with sums of columns of its own, however many cores there are
_BLOCK_BYTES = 2 << 20  # about the cache of a core
_FEWEST_ROWS = 64  # of a block; fewer make the matrix product slower
_CHUNK = 256  # columns that are searched by the number of their candidates first
_EXP2 = tuple(  # 2^x = Σ c_k·x^k for |x| ≤ 1/2, to a relative error of 1e-7
    np.float32(c) for c in (1.0, 0.69314694, 0.2402212, 0.055507131, 0.0096755419, 0.0013276472)
)
_C0, _C1, _C2, _C3, _C4, _C5 = _EXP2


@torch.no_grad()
def compiled_columns(
    features0: Tensor, features1: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """`coarse.confident_columns` for the CPU, faster, and the same on any number of cores.

    Thresholds below 0.01 and similarities that may lie beyond ±60 (no network's have been seen) are
    left to `coarse.confident_columns`.

    Args:
        features0: (B, N, C), the coarse map of image 0, flattened.
        features1: (B, M, C), that of image 1.
        temperature: τ of Eq. 1.
        threshold: of the dual softmax.

    Returns:
        probability (B, N) and column (B, N) long, both 0 in the rows that do not exceed it. Of
        equal entries the first one is chosen.
    """
    found = []
    for one, other in zip(features0.float(), features1.float(), strict=True):
        # |⟨a, b⟩| ≤ |a|·|b|. False also for features that are not numbers.
        largest = _longest(one) * _longest(other) / (one.shape[1] * temperature)
        if threshold >= MIN_THRESHOLD and largest <= _LARGEST_SIMILARITY:
            found.append(_search(one, other, temperature, threshold))
        else:
            some = confident_columns(one[None], other[None], temperature, threshold)
            found.append((some[0][0], some[1][0]))
    probability, column = zip(*found, strict=True)
    return torch.stack(probability), torch.stack(column)


def _longest(features: Tensor) -> float:
    return float(features.square().sum(dim=1).max().sqrt())


class _Share(NamedTuple):
    """What is found in consecutive rows of the matrix.

    Attributes:
        total: (R,) sums of the rows' exponentials.
        column_total: (M,) the same of the columns.
        place: (E, 2) int32 row, from that of the matrix, and column of the candidates.
        value: (E,) logarithms of their exponentials, base 2.
    """

    total: np.ndarray
    column_total: np.ndarray
    place: np.ndarray
    value: np.ndarray


def _search(
    one: Tensor, other: Tensor, temperature: float, threshold: float
) -> tuple[Tensor, Tensor]:
    """Probability (N,) and column (N,) of the best entry of each row of one pair."""
    rows, channels = one.shape
    # Similarities in base 2: e^s = 2^(s / ln 2).
    scaled = (one * (1.0 / (channels * temperature * math.log(2.0)))).contiguous()
    transposed = other.T.contiguous()
    limit = np.float32(threshold)
    bounds = [rows * k // _SHARES for k in range(_SHARES + 1)]

    def search(numbers: range) -> list[_Share]:
        block = max(_FEWEST_ROWS, _BLOCK_BYTES // (4 * transposed.shape[1]) // 4 * 4)
        # One buffer for all blocks: allocating a block costs as much as its exponentials.
        buffer = torch.empty(min(block, -(-rows // _SHARES)) * transposed.shape[1])
        return [
            _share(scaled, transposed, range(bounds[k], bounds[k + 1], block), limit, buffer)
            for k in numbers
        ]

    cores = min(torch.get_num_threads(), _SHARES)
    parts = on_cores(search, [range(k, _SHARES, cores) for k in range(cores)])
    shares = [parts[k % cores][k // cores] for k in range(_SHARES)]
    total, place, value = (np.concatenate([share[k] for share in shares]) for k in (0, 2, 3))
    column_total = np.sum([share.column_total for share in shares], axis=0)
    probability, column = _best_of_rows(place, value, total, column_total, limit)
    return torch.from_numpy(probability), torch.from_numpy(column)


def _share(
    scaled: Tensor, transposed: Tensor, rows: range, threshold: np.float32, buffer: Tensor
) -> _Share:
    """Searches rows of the matrix; the step of the range is the number of a block's rows."""
    columns = transposed.shape[1]
    total = np.empty(rows.stop - rows.start, np.float32)
    column_total = np.zeros(columns, np.float32)
    # Fewer than 1 / threshold entries of a row exceed that share of its sum; one for rounding.
    most = min(rows.step, len(total)) * (int(1.0 / threshold) + 2)
    place, value = np.empty((most, 2), np.int32), np.empty(most, np.float32)
    places, values = [], []
    for start in rows:
        some = scaled[start : min(start + rows.step, rows.stop)]
        block = buffer[: len(some) * columns].view(-1, columns)
        with torch.autocast("cpu", enabled=False):
            torch.mm(some, transposed, out=block)
        of_block = total[start - rows.start :][: len(some)]
        count = scan(block.numpy(), threshold, of_block, column_total, place, value)
        places.append(place[:count] + np.array([start, 0], np.int32))
        values.append(value[:count].copy())
    if not places:
        return _Share(total, column_total, place[:0], value[:0])
    return _Share(total, column_total, np.concatenate(places), np.concatenate(values))


@inlined
def _exp2(x: np.float32) -> np.float32:
    """2^x for |x| < 126."""
    whole = np.rint(x)
    f = x - whole
    power = ((((_C5 * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
    # Adding to the exponent of a floating-point number multiplies it by a power of two.
    shifted = (np.int32(whole) << np.int32(23)) + np.float32(power).view(np.int32)
    return np.int32(shifted).view(np.float32)


@compiled
def scan(
    s: np.ndarray,
    threshold: np.float32,
    total: np.ndarray,
    column_total: np.ndarray,
    place: np.ndarray,
    value: np.ndarray,
) -> int:
    """Sums of the rows and columns of a block, and the entries that exceed a share of a row's sum.

    Args:
        s: (R, M) logarithms, base 2, of the entries that are summed.
        threshold: the share.
        total: (R,) that the sums of the rows are written to.
        column_total: (M,) that the sums of the columns are added to.
        place, value: (K, 2) and (K,) that rows and columns, and `s` there, are written to.

    Returns:
        The number of these entries.
    """
    rows, columns = s.shape
    sums = np.zeros(columns, np.float32)
    for i in range(0, rows - 3, 4):  # four rows read and write the sums of the columns once
        s0, s1, s2, s3 = s[i], s[i + 1], s[i + 2], s[i + 3]
        t0 = t1 = t2 = t3 = np.float32(0)
        for j in range(columns):
            e0, e1, e2, e3 = _exp2(s0[j]), _exp2(s1[j]), _exp2(s2[j]), _exp2(s3[j])
            t0 += e0
            t1 += e1
            t2 += e2
            t3 += e3
            sums[j] += (e0 + e1) + (e2 + e3)
        total[i], total[i + 1], total[i + 2], total[i + 3] = t0, t1, t2, t3
    for i in range(rows - rows % 4, rows):
        line = s[i]
        t0 = np.float32(0)
        for j in range(columns):
            e0 = _exp2(line[j])
            t0 += e0
            sums[j] += e0
        total[i] = t0
    for j in range(columns):
        column_total[j] += sums[j]
    count = 0
    for i in range(rows):
        limit = np.float32(math.log2(total[i] * threshold))
        for begin in range(0, columns, _CHUNK):
            part = s[i, begin : begin + _CHUNK]
            hits = np.int32(0)
            for j in range(len(part)):
                hits += np.int32(part[j] > limit)
            if hits > 0:
                for j in range(len(part)):
                    if part[j] > limit and count < len(value):
                        place[count, 0], place[count, 1] = i, begin + j
                        value[count] = part[j]
                        count += 1
    return count


@compiled
def _best_of_rows(
    place: np.ndarray,
    value: np.ndarray,
    total: np.ndarray,
    column_total: np.ndarray,
    threshold: np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability (N,) and column (N,) of the largest candidate of each row above the threshold."""
    probability = np.zeros(len(total), np.float32)
    column = np.zeros(len(total), np.int64)
    for k in range(len(value)):
        i, j = place[k, 0], place[k, 1]
        e = np.float64(_exp2(value[k]))  # whose square overflows fp32
        p = np.float32((e / total[i]) * (e / column_total[j]))
        if p > threshold and p > probability[i]:
            probability[i], column[i] = p, j
    return probability, column

"""Coarse matching on a CPU (Sec. 3.3): the matrix product, and one compiled pass over its result.

A block of rows of the similarities is computed into memory that fits the cache of a core. While it
is there, a loop compiled by Numba exponentiates it, adds to the sums of its rows and columns, and
lists the entries that can exceed the threshold. Nothing else of the matrix is kept.

The similarities are those of features rounded to whole numbers of 12 bits. What can exceed the
threshold is evaluated again, in fp32 and with the features as they are, also in the sums. The
products of the whole numbers are exact in fp32: no partial sum has more than 24 bits. Hence it does
not matter what computes them, or in which order: tile registers for bfloat16 numbers (AMX), with
each number split into two, vector registers for integers of 16 bits (AVX2), or PyTorch in fp32,
which takes several times as long. The result is the same to the bit.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.base.compiled import compiled, cpu_features, inlined
from edm_hloc.base.threads import on_cores
from edm_hloc.models import coarse_amx, coarse_avx2
from edm_hloc.models.coarse import (
    MIN_THRESHOLD,
    UNSHIFTED,
    confident_columns,
    largest_similarity,
    longest,
)

logger = logging.getLogger(__name__)

_EXACT = 2.0**12  # norms of the rounded features; fp32 holds all whole numbers up to its square
_SPLIT = 32.0  # a multiple of this and what is left of a rounded feature have at most 8 bits each
_SHARES = 8  # of the rows, each with sums of columns of its own, however many cores there are
_BLOCK_BYTES = 2 << 20  # about the cache of a core
_FEWEST_ROWS = 64  # of a block; fewer make the matrix product slower
_CHUNK = 256  # columns that are searched by the number of their candidates first
_BELOW = 0.25  # of the threshold: entries down to this are evaluated again for the sums
_EXP2 = tuple(  # 2^x = Σ c_k·x^k for |x| ≤ 1/2, to a relative error of 1e-7
    np.float32(c) for c in (1.0, 0.69314694, 0.2402212, 0.055507131, 0.0096755419, 0.0013276472)
)
_C0, _C1, _C2, _C3, _C4, _C5 = _EXP2

Products = Literal["amx", "avx2", "torch"]
"""What multiplies the rounded features."""

# Writes the products of some rows of one image's rounded features with all of the other's.
_Multiply = Callable[[slice, Tensor], None]


@torch.no_grad()
def compiled_columns(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    threshold: float,
    *,
    products: Products | None = None,
) -> tuple[Tensor, Tensor]:
    """`coarse.confident_columns` for the CPU, faster, and the same on any number of cores.

    Thresholds below 0.01 and similarities that may lie beyond ±60 (no network's have been seen) are
    left to `coarse.confident_columns`.

    Args:
        features0: (B, N, C), the coarse map of image 0, flattened.
        features1: (B, M, C), that of image 1.
        temperature: τ of Eq. 1.
        threshold: of the dual softmax.
        products: what multiplies; None for the fastest that this CPU has. The result is the same
            to the bit.

    Returns:
        probability (B, N) and column (B, N) long, both 0 in the rows that do not exceed it. Of
        equal entries the first one is chosen.
    """
    products = products or available_products()[0]
    found = []
    for one, other in zip(features0.float(), features1.float(), strict=True):
        # False also for features that are not numbers.
        unshifted = largest_similarity(one, other, temperature) <= UNSHIFTED
        if threshold >= MIN_THRESHOLD and unshifted:
            scaled = one * (1.0 / (one.shape[1] * temperature * math.log(2.0)))
            found.append(_search(scaled.contiguous(), other.contiguous(), threshold, products))
        else:
            some = confident_columns(one[None], other[None], temperature, threshold)
            found.append((some[0][0], some[1][0]))
    probability, column = zip(*found, strict=True)
    return torch.stack(probability), torch.stack(column)


def _rounded(features: Tensor) -> tuple[Tensor, float]:
    """Whole numbers, rows of zeros added up to a multiple of `coarse_amx.SIDE`, and their step."""
    rows, channels = features.shape
    # Rounding changes the norm by √C / 2 at most.
    step = max(longest(features), 1e-30) / (_EXACT - 0.5 * math.sqrt(channels) - 0.1)
    whole = (features * (1.0 / step)).round_()
    return F.pad(whole, (0, 0, 0, -rows % coarse_amx.SIDE)), step


@functools.cache
def available_products() -> tuple[Products, ...]:
    """What can multiply on this CPU, the fastest first; each multiplies whole numbers exactly."""
    found: list[Products] = []
    if coarse_amx.permitted() and _is_exact("amx"):
        found.append("amx")
    if cpu_features().get("avx2") and _is_exact("avx2"):
        found.append("avx2")
    return (*found, "torch")


def _is_exact(products: Products) -> bool:
    side = coarse_amx.SIDE
    whole = (torch.arange(side * side) % 257 - 128.0).reshape(side, side)
    out = torch.empty(side, side)
    try:
        multiplier(whole, whole, products)(slice(None), out)
    except Exception as error:  # the compiler can raise anything
        logger.info("No products by %s: %s", products, error)
        return False
    return torch.equal(out, whole @ whole.T)


def multiplier(one: Tensor, other: Tensor, products: Products) -> _Multiply:
    """A function that writes products of rows of `one` (R, C) with all of `other` (M, C).

    R and M are multiples of `coarse_amx.SIDE`. If C is none, PyTorch multiplies.
    """
    if products == "torch" or one.shape[1] % coarse_amx.SIDE:
        transposed = other.T.contiguous()

        def multiply(rows: slice, out: Tensor) -> None:
            with torch.autocast("cpu", enabled=False):
                torch.mm(one[rows], transposed, out=out)

        return multiply

    if products == "amx":
        first, second = coarse_amx.factors(one.numpy(), other.numpy(), _SPLIT)
        compiled_multiply = coarse_amx.multiply
    else:
        first, second = coarse_avx2.factors(one.numpy(), other.numpy())
        compiled_multiply = coarse_avx2.products
    return lambda rows, out: compiled_multiply(first[rows], second, out.numpy())


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
    one: Tensor, other: Tensor, threshold: float, products: Products
) -> tuple[Tensor, Tensor]:
    """The best entry of each row of one pair.

    Args:
        one, other: (N, C), (M, C) whose products are the similarities in base 2, s / ln 2.

    Returns:
        probability (N,) and column (N,); 0 where there is none.
    """
    rows, channels = one.shape
    (whole0, step0), (whole1, step1) = _rounded(one), _rounded(other)
    unit = step0 * step1
    multiply = multiplier(whole0, whole1, products)
    # Rounding changes a product by √C / 2 · |b| + |a| · √C / 2 at most, and its exponential, and
    # the sum of a row's exponentials, by the power of two of that.
    error = math.sqrt(channels) * _EXACT * unit
    level = _BELOW * threshold * 2.0 ** (-2.0 * error)
    width = len(whole1)
    block = max(_FEWEST_ROWS, _BLOCK_BYTES // (4 * width) // coarse_amx.SIDE * coarse_amx.SIDE)
    starts = range(0, rows, block)
    bounds = [len(starts) * k // _SHARES for k in range(_SHARES + 1)]

    def search(numbers: range) -> list[_Share]:
        # One buffer for all blocks: allocating a block costs as much as its exponentials.
        buffer = torch.empty(min(block, len(whole0)), width)
        # Fewer than 1 / level entries of a row exceed that share of its sum; one for rounding.
        most = len(buffer) * (int(1.0 / level) + 2)
        found = np.empty((most, 2), np.int32), np.empty(most, np.float32)
        shares = []
        for k in numbers:
            column_total = np.zeros(len(other), np.float32)
            totals, places, values = [], [found[0][:0]], [found[1][:0]]
            for start in starts[bounds[k] : bounds[k + 1]]:
                some = slice(start, start + block)
                s = buffer[: len(whole0[some])]
                multiply(some, s)
                total = np.empty(min(block, rows - start), np.float32)
                scale = np.float32(unit), np.float32(level)
                count = scan(s.numpy(), scale, total, column_total, *found)
                totals.append(total)
                places.append(found[0][:count] + np.array([start, 0], np.int32))
                values.append(found[1][:count].copy())
            total = np.concatenate([np.empty(0, np.float32), *totals])
            place, value = np.concatenate(places), np.concatenate(values)
            shares.append(_Share(total, column_total, place, value))
        return shares

    cores = min(torch.get_num_threads(), _SHARES)
    parts = on_cores(search, [range(k, _SHARES, cores) for k in range(cores)])
    shares = [parts[k % cores][k // cores] for k in range(_SHARES)]
    total, place, value = (np.concatenate([share[k] for share in shares]) for k in (0, 2, 3))
    column_total = np.sum([share.column_total for share in shares], axis=0)
    evaluate_again(place, value, one.numpy(), other.numpy(), total, column_total)
    limit = np.float32(threshold)
    probability, column = best_of_rows(place, value, total, column_total, limit)
    return torch.from_numpy(probability), torch.from_numpy(column)


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
    scale: tuple[np.float32, np.float32],
    total: np.ndarray,
    column_total: np.ndarray,
    place: np.ndarray,
    value: np.ndarray,
) -> int:
    """Sums of the rows and columns of a block, and the entries that exceed a share of a row's sum.

    Args:
        s: (≥ R, ≥ M) products, of which the first R rows and M columns count.
        scale: factor to logarithms, base 2, of the entries that are summed; and the share.
        total: (R,) that the sums of the rows are written to.
        column_total: (M,) that the sums of the columns are added to.
        place, value: (K, 2) and (K,) that rows, columns and logarithms are written to.

    Returns:
        The number of these entries.
    """
    rows, columns = len(total), len(column_total)
    unit, level = scale
    sums = np.zeros(columns, np.float32)
    for i in range(0, rows - 3, 4):  # four rows read and write the sums of the columns once
        s0, s1, s2, s3 = s[i], s[i + 1], s[i + 2], s[i + 3]
        t0 = t1 = t2 = t3 = np.float32(0)
        for j in range(columns):
            e0, e1 = _exp2(s0[j] * unit), _exp2(s1[j] * unit)
            e2, e3 = _exp2(s2[j] * unit), _exp2(s3[j] * unit)
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
            e0 = _exp2(line[j] * unit)
            t0 += e0
            sums[j] += e0
        total[i] = t0
    for j in range(columns):
        column_total[j] += sums[j]
    count = 0
    for i in range(rows):
        limit = np.float32(math.log2(total[i] * level) / unit)
        for begin in range(0, columns, _CHUNK):
            part = s[i, begin : min(begin + _CHUNK, columns)]
            hits = np.int32(0)
            for j in range(len(part)):
                hits += np.int32(part[j] > limit)
            if hits > 0:
                for j in range(len(part)):
                    if part[j] > limit and count < len(value):
                        place[count, 0], place[count, 1] = i, begin + j
                        value[count] = part[j] * unit
                        count += 1
    return count


@compiled
def evaluate_again(
    place: np.ndarray,
    value: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    total: np.ndarray,
    column_total: np.ndarray,
) -> None:
    """Puts entries as they are in the place of those of rounded features.

    Args:
        place: (E, 2) their rows and columns.
        value: (E,) their logarithms, base 2, which are replaced.
        one, other: (N, C), (M, C) whose products the logarithms are.
        total, column_total: (N,), (M,) sums of rows and columns, which follow.
    """
    for k in range(len(value)):
        i, j = place[k, 0], place[k, 1]
        a, b = one[i], other[j]
        s = np.float32(0)
        for c in range(len(a)):
            s += a[c] * b[c]
        change = _exp2(s) - _exp2(value[k])
        total[i] += change
        column_total[j] += change
        value[k] = s


@compiled
def best_of_rows(
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

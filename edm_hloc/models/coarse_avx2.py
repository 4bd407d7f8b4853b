"""Matrix products of whole numbers of 13 bits in the vector registers of a CPU (AVX2), in fp32.

A register holds sixteen numbers of 16 bits, twice as many as fp32 ones. One instruction (PMADDWD)
multiplies two registers and adds neighbouring products; where the CPU has one that also adds the
result to others (VNNI), LLVM takes that.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from edm_hloc.base.compiled import compiled

COLUMNS = 16  # of a result that are computed at a time: numbers of columns are multiples of this
_ROWS = 4  # likewise
_LANES = 8  # sums in a register
_SUMS = ir.VectorType(ir.IntType(32), _LANES)
_NUMBERS = ir.VectorType(ir.IntType(16), 2 * _LANES)
_ANY_ALIGNMENT = 4


def _compute_corner(typing, a, row_bytes, b, pairs, out, out_bytes):
    """Computes 4 rows and 16 columns of a result; its arguments are addresses and numbers of bytes.

    Args:
        a, row_bytes: where the first row of the first factor lies, and how far the next one is.
        b: the columns of the second factor, pair by pair, see `pack_columns`.
        pairs: half the depth.
        out, out_bytes: where the first row of the result lies, and how far the next one is.
    """

    def generate(context, builder, signature, arguments):
        a, row_bytes, b, pairs, out, out_bytes = arguments

        def at(base, kind, offset):
            return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

        def number(value):
            return ir.Constant(a.type, value)

        takes = ir.FunctionType(_SUMS, [_NUMBERS, _NUMBERS])
        products = cgutils.get_or_insert_function(builder.module, takes, "llvm.x86.avx2.pmadd.wd")
        sums = [
            [cgutils.alloca_once_value(builder, ir.Constant(_SUMS, [0] * _LANES)) for _ in range(2)]
            for _ in range(_ROWS)
        ]
        everywhere = ir.Constant(_SUMS, [0] * _LANES)
        with cgutils.for_range(builder, pairs, intp=a.type) as loop:
            along = builder.mul(loop.index, number(4))
            of_pair = builder.add(b, builder.mul(loop.index, number(4 * COLUMNS)))
            columns = [
                builder.load(at(of_pair, _NUMBERS, number(4 * _LANES * v)), align=_ANY_ALIGNMENT)
                for v in range(2)
            ]
            for r in range(_ROWS):
                row = builder.add(a, builder.mul(row_bytes, number(r)))
                pair = builder.load(at(row, ir.IntType(32), along), align=_ANY_ALIGNMENT)
                one = builder.insert_element(
                    ir.Constant(_SUMS, ir.Undefined), pair, ir.Constant(ir.IntType(32), 0)
                )
                same = builder.shuffle_vector(one, one, everywhere)
                same = builder.bitcast(same, _NUMBERS)
                for v in range(2):
                    more = builder.call(products, [same, columns[v]])
                    builder.store(builder.add(builder.load(sums[r][v]), more), sums[r][v])
        floats = ir.VectorType(ir.FloatType(), _LANES)
        for r in range(_ROWS):
            row = builder.add(out, builder.mul(out_bytes, number(r)))
            for v in range(2):
                place = at(row, floats, number(4 * _LANES * v))
                result = builder.sitofp(builder.load(sums[r][v]), floats)
                builder.store(result, place, align=_ANY_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate


_corner: Any = intrinsic(_compute_corner)


@compiled
def products(first: np.ndarray, second: np.ndarray, out: np.ndarray) -> None:
    """The product a·bᵀ.

    Args:
        first: (R, C) int16, a; R a multiple of 4.
        second: (M / 16, C / 2, 16, 2) int16, b as `pack_columns` writes it.
        out: (R, M) fp32 that is written to.
    """
    rows, depth = first.shape
    row_bytes, out_bytes = 2 * depth, 4 * out.shape[1]
    a, b, result = first.ctypes.data, second.ctypes.data, out.ctypes.data
    for j in range(len(second)):
        for i in range(0, rows, _ROWS):
            corner = result + i * out_bytes + 4 * COLUMNS * j
            columns = b + j * COLUMNS * row_bytes
            _corner(a + i * row_bytes, row_bytes, columns, depth // 2, corner, out_bytes)


@compiled
def pack_columns(whole: np.ndarray, out: np.ndarray) -> None:
    """Whole numbers (M, C) in the order in which `products` reads them.

    Args:
        whole: fp32.
        out: (M / 16, C / 2, 16, 2) int16 that is written to.
    """
    for i in range(len(whole)):
        panel, line = out[i // COLUMNS], i % COLUMNS
        for c in range(whole.shape[1] // 2):
            panel[c, line, 0] = np.int16(whole[i, 2 * c])
            panel[c, line, 1] = np.int16(whole[i, 2 * c + 1])


def factors(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers (R, C) and (M, C) in the form that `products` takes them.

    Args:
        a, b: fp32, up to 2¹² each, and so is the norm of each row; R is a multiple of 4, M of
            `COLUMNS` and C of 2.
    """
    second = np.empty((len(b) // COLUMNS, b.shape[1] // 2, COLUMNS, 2), np.int16)
    pack_columns(b, second)
    return a.astype(np.int16), second

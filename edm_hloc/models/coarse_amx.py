"""Matrix products of bfloat16 numbers in the tile registers of a CPU (AMX), with fp32 results.

PyTorch rounds the products of such matrices to bfloat16. Here the instructions are called from a
loop that Numba compiles, which only happens where the CPU has them and Linux lets them be used.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators
from __future__ import annotations

import ctypes
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edm_hloc.base.compiled import compiled, cpu_features, inlined

SIDE = 32  # rows and columns of a result are multiples of this, and so is the depth
_TILE = 16  # rows of a tile register; each holds 64 bytes
_PERMIT = 158, 0x1023, 18  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
_POINTER, _BYTE, _WORD = ir.IntType(8).as_pointer(), ir.IntType(8), ir.IntType(64)


def _instruction(name: str, *registers: int, takes: tuple[ir.Type, ...] = ()):
    """A function of compiled code that is one instruction, on fixed tile registers.

    Args:
        name: that LLVM has for it.
        takes: types of its arguments after the registers; addresses are passed as integers.
    """

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [_BYTE] * len(registers) + list(takes))
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        values = [
            builder.inttoptr(value, _POINTER) if wanted is _POINTER else value
            for value, wanted in zip(arguments, takes, strict=True)
        ]
        builder.call(function, [_BYTE(r) for r in registers] + values)
        return context.get_dummy_value()

    def alone(typing):
        return types.void(), generate

    def with_address(typing, address):
        return types.void(types.intp), generate

    def with_stride(typing, address, stride):
        return types.void(types.intp, types.intp), generate

    return intrinsic((alone, with_address, with_stride)[len(takes)])


# Registers 0 to 3 hold four tiles of a result, 4 and 5 rows of the first factor, 6 and 7 columns
# of the second one.
_configure = _instruction("llvm.x86.ldtilecfg", takes=(_POINTER,))
_release = _instruction("llvm.x86.tilerelease")
_zero0, _zero1, _zero2, _zero3 = (_instruction("llvm.x86.tilezero", r) for r in range(4))
_load4, _load5, _load6, _load7 = (
    _instruction("llvm.x86.tileloadd64", r, takes=(_POINTER, _WORD)) for r in range(4, 8)
)
_store0, _store1, _store2, _store3 = (
    _instruction("llvm.x86.tilestored64", r, takes=(_POINTER, _WORD)) for r in range(4)
)
_add0, _add1, _add2, _add3 = (
    _instruction("llvm.x86.tdpbf16ps", r, 4 + r // 2, 6 + r % 2) for r in range(4)
)


def _configuration() -> np.ndarray:
    """(64,) of eight registers of 16 rows of 64 bytes, as the processor reads it."""
    configuration = np.zeros(64, np.uint8)
    configuration[0] = 1  # palette
    configuration[16:32].view(np.uint16)[:] = 64
    configuration[48:56] = _TILE
    return configuration


_CONFIGURATION = _configuration()


@compiled
def products(
    configuration: np.ndarray, first: np.ndarray, second: np.ndarray, out: np.ndarray
) -> None:
    """The product (a + a')·(b + b')ᵀ of matrices in two parts.

    Args:
        configuration: of the registers.
        first: (R, 2·C) bits of bfloat16 numbers, a and a' side by side.
        second: (M / 16, C, 16, 2) those of b and b', see `split_columns`.
        out: (R, M) fp32 that is written to.
    """
    rows, depth = first.shape[0], first.shape[1] // 2
    row_bytes, tile_bytes, out_bytes = 2 * first.shape[1], 32 * first.shape[1], 4 * out.shape[1]
    a, b, result = first.ctypes.data, second.ctypes.data, out.ctypes.data
    _configure(configuration.ctypes.data)
    for j in range(0, out.shape[1], 32):
        for i in range(0, rows, 32):
            _zero0()
            _zero1()
            _zero2()
            _zero3()
            for k in range(0, depth, 32):
                for p in range(2):
                    x = a + i * row_bytes + 2 * (p * depth + k)
                    _load4(x, row_bytes)
                    _load5(x + 16 * row_bytes, row_bytes)
                    for q in range(2):
                        y = b + (j // 16) * tile_bytes + 32 * (q * depth + k)
                        _load6(y, 64)
                        _load7(y + tile_bytes, 64)
                        _add0()
                        _add1()
                        _add2()
                        _add3()
            corner = result + i * out_bytes + 4 * j
            _store0(corner, out_bytes)
            _store1(corner + 64, out_bytes)
            _store2(corner + 16 * out_bytes, out_bytes)
            _store3(corner + 16 * out_bytes + 64, out_bytes)
    _release()


@inlined
def _bits(value: np.float32) -> np.int16:
    """Of a number that bfloat16 holds exactly."""
    return np.int16(np.float32(value).view(np.int32) >> np.int32(16))


@compiled
def split_rows(whole: np.ndarray, split: np.float32, out: np.ndarray) -> None:
    """The first factor of `products` from whole numbers (R, C), in two parts: multiples of `split`,
    and what is left; `out` (R, 2·C) int16 is written to."""
    channels = whole.shape[1]
    for i in range(len(whole)):
        for c in range(channels):
            upper = np.rint(whole[i, c] / split) * split
            out[i, c] = _bits(upper)
            out[i, channels + c] = _bits(whole[i, c] - upper)


@compiled
def split_columns(whole: np.ndarray, split: np.float32, out: np.ndarray) -> None:
    """The same of the second factor (M, C); `out` (M / 16, C, 16, 2) int16 is written to."""
    channels = whole.shape[1]
    for i in range(len(whole)):
        tile, line = out[i // 16], i % 16
        for c in range(channels // 2):
            for odd in range(2):
                value = whole[i, 2 * c + odd]
                upper = np.rint(value / split) * split
                tile[c, line, odd] = _bits(upper)
                tile[channels // 2 + c, line, odd] = _bits(value - upper)


def permitted() -> bool:
    """Whether this CPU has the instructions, and Linux lets this process use them."""
    features = cpu_features()
    if sys.platform != "linux" or not (features.get("amx-tile") and features.get("amx-bf16")):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).syscall(*_PERMIT) == 0)


def factors(a: np.ndarray, b: np.ndarray, split: float) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers (R, C) and (M, C) in the form that `multiply` takes them.

    Args:
        a, b: fp32; R, M and C are multiples of `SIDE`.
        split: multiples of it and what is left have at most 8 bits each.
    """
    (rows, channels), columns = a.shape, len(b)
    first = np.empty((rows, 2 * channels), np.int16)
    second = np.empty((columns // _TILE, channels, _TILE, 2), np.int16)
    split_rows(a, np.float32(split), first)
    split_columns(b, np.float32(split), second)
    return first, second


def multiply(first: np.ndarray, second: np.ndarray, out: np.ndarray) -> None:
    """Writes the product (R, M) of rows of the first factor with the second one."""
    products(_CONFIGURATION, first, second, out)

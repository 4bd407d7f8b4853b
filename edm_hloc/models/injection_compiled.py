"""The injection of a coarser map into a finer one (Sec. 3.2), compiled for a CPU.

One loop reads the maps once and writes the result once, where PyTorch doubles the two coarser maps,
multiplies and adds. The result is the same to rounding. For inference: float32, without gradients.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.compiled import compiled, inlined


def inject_gated(finer: Tensor, gate: Tensor, coarser: Tensor) -> Tensor:
    """`edm.inject_gated`: finer · up(gate) + up(coarser).

    Args:
        finer: (B, C, H, W).
        gate, coarser: (B, C, H/2, W/2).

    Returns:
        (B, C, H, W), channels last.
    """
    maps = [m.permute(0, 2, 3, 1).contiguous().numpy() for m in (finer, gate, coarser)]
    result = torch.empty_like(finer, memory_format=torch.channels_last)
    out = result.permute(0, 2, 3, 1).numpy()
    for i in range(len(out)):
        add_doubled(maps[0][i], maps[1][i], maps[2][i], out[i])
    return result


@inlined
def _two_rows(rows: np.ndarray, r: int, mixed: np.ndarray) -> None:
    """Row r of a map (H, W, C) that is doubled with bilinear values, not yet doubled in width."""
    near = r // 2
    far = min(max(near + (1 if r % 2 else -1), 0), len(rows) - 1)
    a, b = rows[near], rows[far]
    for c in range(a.shape[0]):
        for k in range(a.shape[1]):
            mixed[c, k] = np.float32(0.75) * a[c, k] + np.float32(0.25) * b[c, k]


@compiled
def add_doubled(finer: np.ndarray, gate: np.ndarray, coarser: np.ndarray, out: np.ndarray) -> None:
    """Writes finer · up(gate) + up(coarser), where `up` doubles both sides with bilinear values.

    Args:
        finer, out: (2H, 2W, C).
        gate, coarser: (H, W, C).
    """
    height, width, channels = gate.shape
    gates = np.empty((width, channels), np.float32)
    adds = np.empty((width, channels), np.float32)
    most, rest = np.float32(0.75), np.float32(0.25)
    for r in range(2 * height):
        _two_rows(gate, r, gates)
        _two_rows(coarser, r, adds)
        for c in range(2 * width):
            near = c // 2
            far = min(max(near + (1 if c % 2 else -1), 0), width - 1)
            g0, g1, a0, a1 = gates[near], gates[far], adds[near], adds[far]
            f, o = finer[r, c], out[r, c]
            for k in range(channels):
                o[k] = f[k] * (most * g0[k] + rest * g1[k]) + (most * a0[k] + rest * a1[k])

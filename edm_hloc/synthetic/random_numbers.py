"""Random numbers for scenes, reproducible from a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Random:
    """Random tensors on one device from one generator: same seed and device, same numbers.

    Args:
        seed: of the generator.
        device: where the generator runs and the tensors are made.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform in [low, high): `shape` float32."""
        values = torch.rand(shape, generator=self.generator, device=self.device)
        return values * (high - low) + low

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        """Between two positive bounds, the logarithm uniform: `shape` float32."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal: `shape` float32."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """Uniform integers from low to high - 1: `shape` int64."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def between(self, low: Sequence[float], high: Sequence[float], *shape: int) -> Tensor:
        """Uniform points (*shape, D) of the box between two corners (D)."""
        a, b = self.values(*low), self.values(*high)
        return a + (b - a) * self.uniform(*shape, len(low))

    def values(self, *values: float) -> Tensor:
        """The given numbers, not random, on the device: (len(values),) float32."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        """Zeros on the device: `shape` float32."""
        return torch.zeros(shape, device=self.device)

    def chance(self, *shape: int, p: float | Tensor) -> Tensor:
        """True with probability p, which is a number or broadcasts: `shape` bool."""
        return self.uniform(*shape) < p

    def sign(self, *shape: int) -> Tensor:
        """-1 or 1 with equal probability: `shape` float32."""
        return self.integers(*shape, low=0, high=2).float() * 2 - 1

"""The normalising flow of EDM's training loss (Eq. 8), part of its checkpoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RealNVP(nn.Module):
    """Normalising flow that models the density of the refinement's residuals (Eq. 8).

    RealNVP of arXiv 1605.08803 in two dimensions. Only the training loss uses it; it is a part of
    the network because checkpoints contain it.
    """

    loc: Tensor
    cov: Tensor
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        couplings, hidden = 6, 64
        self.register_buffer("loc", torch.zeros(2))
        self.register_buffer("cov", torch.eye(2))
        self.register_buffer("mask", torch.tensor([[0.0, 1.0], [1.0, 0.0]] * (couplings // 2)))
        self.s = nn.ModuleList(
            nn.Sequential(*self._perceptron(hidden), nn.Tanh()) for _ in range(couplings)
        )
        self.t = nn.ModuleList(nn.Sequential(*self._perceptron(hidden)) for _ in range(couplings))

    @staticmethod
    def _perceptron(hidden: int) -> list[nn.Module]:
        return [
            nn.Linear(2, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 2),
        ]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (M,) of x (M, 2): latent normal density times the Jacobian determinant."""
        z, log_det = x, x.new_zeros(x.shape[0])
        for mask, scale_net, shift_net in reversed(
            list(zip(self.mask, self.s, self.t, strict=True))
        ):
            fixed, moving = mask * z, 1 - mask
            log_scale = scale_net(fixed) * moving
            z = fixed + moving * (z - shift_net(fixed)) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(dim=1)
        log_normal = -0.5 * z.square().sum(dim=1) - math.log(2 * math.pi)
        return log_normal + log_det

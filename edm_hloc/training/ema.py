"""Exponential moving average of a network's weights and normalisation statistics."""

from __future__ import annotations

import copy

import torch

from edm_hloc.models.edm import EDM


def averaged_copy(model: EDM) -> EDM:
    """A copy in evaluation mode, without gradients, to be kept up to date by `update_average`."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: EDM, model: EDM, decay: float, step: int) -> None:
    """Move `average` towards `model`; early in training faster than `decay` says."""
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    kept, new = average.state_dict(), model.state_dict()
    floating = [k for k, v in kept.items() if v.is_floating_point()]
    torch._foreach_lerp_([kept[k] for k in floating], [new[k] for k in floating], weight)
    for k in kept.keys() - set(floating):
        kept[k].copy_(new[k])

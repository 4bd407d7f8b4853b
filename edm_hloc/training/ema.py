"""Exponential moving average of a network's weights and normalisation statistics."""

from __future__ import annotations

import copy

import torch

from edm_hloc.models.edm import EDM


def averaged_copy(model: EDM) -> EDM:
    """A copy in evaluation mode without gradients, for `update_average` to update."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: EDM, model: EDM, decay: float, step: int) -> None:
    """Updates the moving average with the current weights of `model`.

    Args:
        average: of `averaged_copy`.
        model: the network that is trained.
        decay: weight of the old average; in the first steps a smaller one is used.
        step: number of the training step, from 0.
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    kept, new = average.state_dict(), model.state_dict()
    floating = [k for k, v in kept.items() if v.is_floating_point()]
    torch._foreach_lerp_([kept[k] for k in floating], [new[k] for k in floating], weight)
    for k in kept.keys() - set(floating):
        kept[k].copy_(new[k])

"""Folding of batch normalisation into convolutions, for inference."""

from __future__ import annotations

import copy
import itertools

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edm_hloc.models.edm import EDM


def fold_batch_norms(model: EDM) -> EDM:
    """A copy of a network for inference, each batch norm folded into the convolution before it.

    Its outputs equal those of the network in evaluation mode up to rounding. It cannot be trained,
    and its state dict does not fit a checkpoint.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in folded.modules():
        pairs: list[tuple[str, str]] = [("conv1", "bn1"), ("conv2", "bn2")]
        if isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(module._modules))
        for first, second in pairs:
            convolution, norm = getattr(module, first, None), getattr(module, second, None)
            if isinstance(convolution, nn.Conv1d | nn.Conv2d) and isinstance(
                norm, nn.BatchNorm1d | nn.BatchNorm2d
            ):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return folded

"""Lucas–Kanade alignment of the patches around matches, with the network's answer as a prior.

Inverse compositional form (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 2004): the
gradient is that of the fixed patch, so it is computed once. Patches are normalised to mean 0 and
contrast 1, which makes the alignment independent of brightness and contrast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from edm_hloc.base.compiled import floats
from edm_hloc.refinement.alignment_kernel import align_patches
from edm_hloc.refinement.config import RefinementConfig

NOISE_CONTRAST = 0.02  # standard deviation of grey values (in [0, 1]) that is taken for noise


class Alignment(NamedTuple):
    """Aligned points (M, 2) float32 in pixels, and the normalised cross-correlation (M,) float32
    of the patches around them."""

    points: np.ndarray
    correlation: np.ndarray


def align(
    images: tuple[Tensor, Tensor],
    points0: np.ndarray,
    points1: np.ndarray,
    affine: np.ndarray,
    config: RefinementConfig,
) -> Alignment:
    """Moves the points of image 1 to where the patches around them match those of image 0 best.

    Args:
        images: image 0 and image 1, each (1, H, W) grey in [0, 1]; sizes may differ.
        points0, points1: (M, 2) pixels, hloc's frame.
        affine: (M, 2, 2) maps from image 0 to image 1 around each match.
        config: the settings.
    """
    damping = (config.noise_sigma / config.prior_sigma) ** 2
    settings = (
        int(config.patch_radius),
        int(config.iterations),
        float(damping),
        NOISE_CONTRAST,
        float(2 * config.prior_sigma),
    )
    image0, image1 = (image[0].cpu().numpy() for image in images)
    points, correlation = align_patches(
        (floats(image0), floats(image1)),
        floats(points0),
        floats(points1),
        floats(affine),
        settings,
    )
    return Alignment(points, correlation)

"""Local descriptors of a photo, of which `vlad.py` makes a global one: SIFT, or EDM's features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edm_hloc.images.load import load_photo
from edm_hloc.images.sift import root_sift
from edm_hloc.models.weights import load as load_weights

_SIFT_SIZE, _SIFT_FEATURES = 640, 1500  # longest side of the photo in px; most keypoints
_EDM_SIZE = 512  # longest side of the photo in px


@dataclass(frozen=True)
class LocalFeatures:
    """A kind of local descriptors.

    Attributes:
        name: identifies the method in the provenance of files: "sift", or the SHA-256 of EDM's
            weights.
        extract: path of a photo → (N, D) float32 descriptors. Raises ImageError if the photo
            cannot be read.
    """

    name: str
    extract: Callable[[Path], np.ndarray]


def sift_descriptors(path: Path) -> np.ndarray:
    """(N, 128) float32 RootSIFT descriptors (Arandjelović and Zisserman, CVPR 2012) of a photo.

    Raises:
        ImageError: the photo cannot be read.
    """
    image = load_photo(path, resize_max=_SIFT_SIZE, divisor=8)
    grey = (image.tensor[0].numpy() * 255).round().astype(np.uint8)
    return root_sift(grey, _SIFT_FEATURES).descriptors


SIFT = LocalFeatures("sift", sift_descriptors)


def edm_features(weights: str | Path | None, device: torch.device) -> LocalFeatures:
    """The 1/16-resolution features of EDM's backbone: one descriptor of length 1 every 16 px.

    Args:
        weights: as for `models.weights.load`; None for the best on this computer.
        device: of the network.

    Raises:
        WeightsError: the weights cannot be found or loaded.
    """
    model, info = load_weights(weights, device)

    @torch.inference_mode()
    def extract(path: Path) -> np.ndarray:
        image = load_photo(path, resize_max=_EDM_SIZE, divisor=32)
        x16 = model.backbone(image.tensor[None].to(device))[1]
        rows = torch.nn.functional.normalize(x16[0].flatten(1).T.float(), dim=1)
        return rows.cpu().numpy()

    return LocalFeatures(info.sha256, extract)

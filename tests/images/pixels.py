"""The size of the test photo, and the pixels of a file as they are loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from edm_hloc.images.load import load_image

WIDTH, HEIGHT = 471, 313


def stored(path: Path, grayscale: bool = True) -> np.ndarray:
    """All pixels of a file whose sides are multiples of 1, in [0, 255], (H, W) or (H, W, 3)."""
    tensor = load_image(path, resize_max=None, divisor=1, grayscale=grayscale).tensor
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    pixels = tensor.numpy() * 255
    return pixels[0] if grayscale else pixels.transpose(1, 2, 0)

"""A photo, as pixels and as a Pillow image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.images.pixels import HEIGHT, WIDTH


@pytest.fixture(scope="session")
def scene() -> np.ndarray:
    """A smooth colour picture, (313, 471, 3) float in [0, 1], with black and white in it."""
    noise = np.random.default_rng(0).random((HEIGHT, WIDTH, 3), np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


@pytest.fixture(scope="session")
def photo(scene: np.ndarray) -> Image.Image:
    return Image.fromarray((scene * 255).astype(np.uint8))

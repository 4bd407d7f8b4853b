"""The size of the test photo, and the pixels of a file as they are loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edm_hloc.base.frames import turned_upright
from edm_hloc.images.load import load_image

WIDTH, HEIGHT = 471, 313

# Where the pixel (u, v) of the upright photo is in a stored photo of w × h pixels.
STORED_AT = {
    1: lambda u, v, w, h: (u, v),
    2: lambda u, v, w, h: (w - 1 - u, v),
    3: lambda u, v, w, h: (w - 1 - u, h - 1 - v),
    4: lambda u, v, w, h: (u, h - 1 - v),
    5: lambda u, v, w, h: (v, u),
    6: lambda u, v, w, h: (v, h - 1 - u),
    7: lambda u, v, w, h: (w - 1 - v, h - 1 - u),
    8: lambda u, v, w, h: (w - 1 - v, u),
}
_BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the orientation that undoes another


def turned_as(photo: Image.Image, orientation: int) -> np.ndarray:
    """The pixels of a photo as a file stores them that shows it by its EXIF orientation."""
    return turned_upright(np.asarray(photo), _BACK[orientation])


def store_turned(photo: Image.Image, path: Path, orientation: int, **options: object) -> None:
    """Saves a photo so that only its EXIF orientation shows it as it is given."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(turned_as(photo, orientation))
    Image.fromarray(pixels).save(path, exif=exif, **options)


def stored(path: Path, grayscale: bool = True) -> np.ndarray:
    """All pixels of a file whose sides are multiples of 1, in [0, 255], (H, W) or (H, W, 3)."""
    tensor = load_image(path, resize_max=None, divisor=1, grayscale=grayscale).tensor
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert 0 <= float(tensor.min()) <= float(tensor.max()) <= 1
    pixels = tensor.numpy() * 255
    return pixels[0] if grayscale else pixels.transpose(1, 2, 0)

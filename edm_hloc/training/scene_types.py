"""What a reader of real training data gives: scenes of pairs, images with their ground truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edm_hloc.base.errors import ImageError
from edm_hloc.base.frames import from_colmap
from edm_hloc.synthetic.textures import read_grey

Array = np.ndarray


class SupervisedImage(NamedTuple):
    """An image of a training pair with its ground truth.

    Attributes:
        image: (H, W) uint8.
        depth: (H, W) float32 along the optical axis, 0 where unknown; None with sparse truth.
        K: (3, 3) intrinsics in hloc's pixel frame.
        points: (P, 2) pixels, in hloc's frame, of the 3D points that both images of the pair
            observe, in the same order in both; None with depth maps.
    """

    image: Array
    depth: Array | None
    K: Array
    points: Array | None


class TrainingScene(NamedTuple):
    """The training pairs of one scene.

    Attributes:
        length: number of pairs.
        read: number of a pair → its two images and T_0to1 (4, 4). Raises ImageError if a file of
            the pair cannot be read.
    """

    length: int
    read: Callable[[int], tuple[SupervisedImage, SupervisedImage, Array]]


def photo_of_model(path: Path, camera: Any, points: Array) -> SupervisedImage:
    """A photo of a COLMAP model with sparse truth.

    Args:
        path: the photo.
        camera: its pycolmap.Camera in the model.
        points: (P, 2) pixels in hloc's frame, see `SupervisedImage`.

    Raises:
        ImageError: the photo cannot be read, or has another size than in the model.
    """
    pixels = read_grey(path)
    size = (camera.width, camera.height)
    if pixels.shape[::-1] != size:
        raise ImageError(f"{path} is {pixels.shape[::-1]} px, in the model {size}")
    K = camera.calibration_matrix()
    K[:2, 2] = from_colmap(K[:2, 2])
    return SupervisedImage(pixels, None, K, points)

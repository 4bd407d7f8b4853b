"""What a reader of real training data gives: scenes of pairs, images with their ground truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

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

"""RootSIFT: keypoints whose descriptors do not depend on a photo's rotation and scale (OpenCV)."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np


class RootSIFT(NamedTuple):
    """Keypoints of an image.

    Attributes:
        points: (N, 2) float32 pixels.
        descriptors: (N, 128) float32, of length 1.
    """

    points: np.ndarray
    descriptors: np.ndarray

    @property
    def nbytes(self) -> int:
        return self.points.nbytes + self.descriptors.nbytes


def root_sift(grey: np.ndarray, most: int, contrast: float = 0.04) -> RootSIFT:
    """SIFT with the square roots of its descriptors (Arandjelović and Zisserman, CVPR 2012).

    Args:
        grey: (H, W) uint8.
        most: number of keypoints that are kept, those of most contrast.
        contrast: OpenCV's threshold, below which keypoints are not taken.
    """
    sift: Any = cv2.SIFT.create(nfeatures=most, contrastThreshold=contrast)
    found, descriptors = sift.detectAndCompute(grey, None)
    if descriptors is None:
        return RootSIFT(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    shares = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    points = cv2.KeyPoint.convert(found)
    return RootSIFT(np.asarray(points, np.float32), np.sqrt(shares).astype(np.float32))

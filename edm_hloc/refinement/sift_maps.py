"""Points that two photos have in common by their SIFT keypoints, whatever rotation and scale.

The network finds little between photos of the same ground in different headings. SIFT's keypoints
are fewer and less exact than its matches, but enough to tell how the photos lie to each other.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from edm_hloc.images.sift import RootSIFT, root_sift

_SIZE = 480  # longest side in pixels to which photos are reduced
_MOST = 1000  # keypoints of a photo
_CONTRAST = 0.01  # lower than usual, for dark photos and those of little texture
_RATIO = 0.85  # largest ratio of the distances to the nearest and to the second nearest descriptor


def sift_keypoints(pixels: Tensor) -> RootSIFT:
    """Keypoints of a reduced photo, in pixels of the photo.

    Args:
        pixels: (C, H, W) in [0, 1], the photo.
    """
    grey = pixels.float().mean(dim=0).cpu().numpy()
    height, width = grey.shape
    scale = min(1.0, _SIZE / max(width, height))
    small = max(1, round(width * scale)), max(1, round(height * scale))
    if small != (width, height):
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    found = root_sift((grey * 255).round().clip(0, 255).astype(np.uint8), _MOST, _CONTRAST)
    points = (found.points + 0.5) * (np.array([width, height]) / small) - 0.5
    return found._replace(points=points.astype(np.float32))


def common_points(first: RootSIFT, second: RootSIFT) -> tuple[np.ndarray, np.ndarray]:
    """Points (M, 2) of each photo whose descriptors are mutually nearest, clearly so (Lowe,
    IJCV 2004, section 7.1), in pixels."""
    if min(len(first.points), len(second.points)) < 2:
        return first.points[:0], second.points[:0]
    cosines = first.descriptors @ second.descriptors.T
    rows = np.arange(len(cosines))
    nearest = cosines.argmax(axis=1)
    mutual = cosines.argmax(axis=0)[nearest] == rows
    best = cosines[rows, nearest]
    cosines[rows, nearest] = -1
    clear = 1 - best < _RATIO**2 * (1 - cosines.max(axis=1))  # squared distances are 2 − 2 cos
    chosen = mutual & clear
    return first.points[chosen], second.points[nearest[chosen]]

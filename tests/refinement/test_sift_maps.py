"""SIFT keypoints that photos have in common, in pixels of the photos."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from edm_hloc.images.sift import RootSIFT
from edm_hloc.refinement.sift_maps import common_points, sift_keypoints
from edm_hloc.synthetic.textures import TextureBank


def photo(width: int, height: int) -> np.ndarray:
    """(H, W) float32 in [0, 1]."""
    texture = TextureBank.procedural(1, size=512).textures[0].numpy()
    return cv2.resize(texture, (width, height)).astype(np.float32) / 255


@pytest.mark.parametrize(("width", "height"), [(471, 313), (1024, 768)])
@pytest.mark.parametrize("degrees", [45.0, 137.5])
def test_points_of_a_rotated_photo_correspond(width: int, height: int, degrees: float) -> None:
    image = photo(width, height)
    middle = (width - 1) / 2, (height - 1) / 2
    warp = cv2.getRotationMatrix2D(middle, degrees, 0.7)
    turned = cv2.warpAffine(image, warp, (width, height), flags=cv2.INTER_AREA)
    first, second = (sift_keypoints(torch.from_numpy(i)[None]) for i in (image, turned))
    points0, points1 = common_points(first, second)
    assert len(points0) > 100
    away = np.linalg.norm(points0 @ warp[:, :2].T + warp[:, 2] - points1, axis=1)
    assert np.mean(away < 2) > 0.9


def test_all_channels_count_and_half_precision_does() -> None:
    image = torch.from_numpy(photo(320, 256))
    grey = sift_keypoints(image[None])
    three = sift_keypoints(image.half().repeat(3, 1, 1))
    assert abs(len(grey.points) - len(three.points)) < 0.1 * len(grey.points)


def test_only_mutual_and_clear_neighbours_are_taken() -> None:
    def keypoints(*descriptors: tuple[float, float]) -> RootSIFT:
        rows = np.array(descriptors, np.float32).reshape(-1, 2)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
        return RootSIFT(np.arange(2 * len(rows), dtype=np.float32).reshape(-1, 2), rows)

    first = keypoints((1, 0), (0, 1))
    # the second of the first photo has two equally near ones
    second = keypoints((1, 0.01), (0.1, 1), (-0.1, 1))
    points0, points1 = common_points(first, second)
    assert points0.tolist() == [[0, 1]]
    assert points1.tolist() == [[0, 1]]
    for none in (keypoints(), keypoints((1, 0))):
        assert len(common_points(none, second)[0]) == 0
        assert len(common_points(first, none)[1]) == 0

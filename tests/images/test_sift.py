"""RootSIFT keypoints."""

from __future__ import annotations

import cv2
import numpy as np

from edm_hloc.images.sift import root_sift
from edm_hloc.synthetic.textures import TextureBank


def test_descriptors_have_length_one_and_lie_at_blobs() -> None:
    image = np.full((120, 160), 200, np.uint8)
    cv2.circle(image, (50, 60), 6, 20, -1)
    found = root_sift(image, 100)
    assert found.points.dtype == found.descriptors.dtype == np.float32
    assert np.linalg.norm(found.points - [50, 60], axis=1).min() < 1
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-5)
    assert found.nbytes == len(found.points) * 4 * (2 + 128)


def test_a_photo_without_any_has_none_and_the_best_are_kept() -> None:
    none = root_sift(np.zeros((40, 60), np.uint8), 100)
    assert none.points.shape == (0, 2)
    assert none.descriptors.shape == (0, 128)
    textured = TextureBank.procedural(1, size=256).textures[0].numpy()
    assert 0 < len(root_sift(textured, 50).points) <= 60  # OpenCV keeps equal ones

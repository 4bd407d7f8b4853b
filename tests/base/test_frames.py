"""The map between the pixels of a photo and of its resized copy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edm_hloc.base.frames import PixelTransform


def test_pixel_transform_closed_form() -> None:
    transform = PixelTransform((1.5, 4.0))
    network = np.array([[0, 0], [-0.5, -0.5], [1, 2]], np.float32)
    original = transform.to_original(network)
    assert original.dtype == np.float32
    # the corner of the image stays its corner
    np.testing.assert_allclose(original, [[0.25, 1.5], [-0.5, -0.5], [1.75, 9.5]])
    np.testing.assert_allclose(transform.to_network(original), network, atol=1e-6)
    assert transform.to_original(np.zeros((0, 2))).shape == (0, 2)
    assert transform.to_original(np.array([[1, 1]])).dtype == np.float64
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        transform.to_original(np.zeros((2, 3)))


@given(
    st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    st.lists(st.tuples(st.floats(-1, 9999), st.floats(-1, 9999)), min_size=1),
)
def test_pixel_transform_round_trip(
    scale: tuple[float, float], points: list[tuple[float, float]]
) -> None:
    transform = PixelTransform(scale)
    keypoints = np.array(points)
    back = transform.to_network(transform.to_original(keypoints))
    np.testing.assert_allclose(back, keypoints, rtol=1e-9, atol=1e-9)

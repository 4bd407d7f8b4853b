"""Two-view geometry on plain arrays."""

from __future__ import annotations

import numpy as np
import pycolmap

from edm_hloc.base.geometry import epipolar_errors, extent, far_from_all


def test_epipolar_errors_closed_form() -> None:
    # the second camera stands to the right of the first: epipolar lines are the rows
    E = pycolmap.essential_matrix_from_pose(
        pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-1.0, 0.0, 0.0]))
    )
    x1 = np.array([[0.1, 0.2, 1], [0.3, -0.1, 1]])
    x2 = np.array([[-0.4, 0.25, 1], [0.0, -0.1, 1]])
    first, second = epipolar_errors(x1, x2, E)
    np.testing.assert_allclose(first, [0.05, 0], atol=1e-12)
    np.testing.assert_allclose(second, [0.05, 0], atol=1e-12)
    forward = pycolmap.essential_matrix_from_pose(
        pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.0, 0.0, 1.0]))
    )
    epipole = np.array([[0.0, 0.0, 1.0]])
    assert np.isinf(epipolar_errors(epipole, epipole, forward)).all()


def test_one_camera_far_from_all_others_does_not_count() -> None:
    square = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    np.testing.assert_allclose(extent(square), np.sqrt(2))
    assert not far_from_all(square).any()
    with_one = np.vstack([square, [1e5, 0, 0]])
    assert far_from_all(with_one).tolist() == [False] * 4 + [True]
    np.testing.assert_allclose(extent(with_one), np.sqrt(2))
    np.testing.assert_allclose(extent(np.vstack([square, [20, 0, 0]])), np.hypot(20, 1))


def test_two_groups_of_cameras_are_one_extent() -> None:
    apart = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1000, 0, 0], [1000, 1, 0]])
    assert not far_from_all(apart).any()
    for few in (apart[:1], apart[:2], np.zeros((3, 3))):
        assert not far_from_all(few).any()

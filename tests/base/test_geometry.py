"""Two-view geometry on plain arrays."""

from __future__ import annotations

import numpy as np
import pycolmap

from edm_hloc.base.geometry import epipolar_errors


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

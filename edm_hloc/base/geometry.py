"""Geometry of points, cameras and their pairs on plain arrays."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

_FAR = 30.0  # times the median distance of cameras from their middle


def homogeneous(points: np.ndarray) -> np.ndarray:
    """(N, D + 1): points (N, D) with a last coordinate of 1."""
    return np.column_stack([points, np.ones(len(points))])


def largest_distance(points: np.ndarray) -> float:
    """Largest distance between two of (N, 3) points; row by row, to save memory."""
    return max(float(np.linalg.norm(points - point, axis=1).max()) for point in points)


def far_from_all(centres: np.ndarray) -> np.ndarray:
    """Which of the camera centres (N, 3) are far from all others, (N,) bool.

    Farther from the nearest other one than 30 times the median distance from the middle.
    """
    if len(centres) < 3:
        return np.zeros(len(centres), bool)
    usual = float(np.median(np.linalg.norm(centres - np.median(centres, axis=0), axis=1)))
    away = cKDTree(centres).query(centres, k=2)[0][:, 1]
    return np.asarray((usual > 0) & (away > _FAR * usual))


def extent(centres: np.ndarray) -> float:
    """Largest distance between two of the camera centres (N, 3) that are not far from all others.

    One camera that is wrong, or stood very far away, would make every share of it small.
    """
    return largest_distance(centres[~far_from_all(centres)])


def nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation R for which Σᵢⱼ Rᵢⱼ · matrixᵢⱼ is largest (orthogonal Procrustes problem)."""
    u, _, vt = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def cross_product_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3) matrix whose product with v is the cross product of `vector` (3,) with v."""
    x, y, z = vector
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])


def essential_matrix(T_0to1: np.ndarray) -> np.ndarray:
    """(3, 3) matrix E with x1ᵀ E x0 = 0, from the pose of camera 1 relative to camera 0.

    Args:
        T_0to1: (4, 4) or (3, 4), from the coordinates of camera 0 to those of camera 1.
    """
    E: np.ndarray = cross_product_matrix(T_0to1[:3, 3]) @ T_0to1[:3, :3]
    return E


def epipolar_errors(x0: np.ndarray, x1: np.ndarray, E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances of matched points from each other's epipolar lines.

    Args:
        x0: (N, 3) homogeneous points of the first image: normalised (depth 1) for an essential
            matrix, pixels for a fundamental matrix.
        x1: (N, 3) those of the second.
        E: (3, 3) with x1ᵀ E x0 = 0.

    Returns:
        (N,) distances in the first and in the second image, in the unit of the points; inf where a
        line is not defined (at the epipole).
    """
    line0, line1 = x1 @ E, x0 @ E.T
    value = np.abs(np.sum(x1 * line1, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        error0 = value / np.linalg.norm(line0[:, :2], axis=1)
        error1 = value / np.linalg.norm(line1[:, :2], axis=1)
    return np.nan_to_num(error0, nan=np.inf), np.nan_to_num(error1, nan=np.inf)

"""Local affine maps between two photos, fitted to neighbouring matches, and their inliers."""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from edm_hloc.base.grid import CELL

_MIN_DETERMINANT = 0.05  # of a local map; others mirror the patch or squeeze it to a line
_MIN_NEIGHBOURHOOD = 3  # matches, the one in the middle included, that an affine map is fitted to


def local_affine_maps(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, at: np.ndarray | None = None
) -> np.ndarray:
    """The affine map from image 0 to image 1 around each match.

    It is fitted robustly to the nearest matches, with a prior at the identity that decides where
    these are few or collinear.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: number of nearest other matches that the map is fitted to.
        at: (N,) indices of the matches whose maps are wanted; by default all.

    Returns:
        (N, 2, 2) matrices.
    """
    centres0, centres1 = (points0, points1) if at is None else (points0[at], points1[at])
    count = min(neighbours + 1, len(points0))
    if count < _MIN_NEIGHBOURHOOD:
        return np.tile(np.eye(2), (len(centres0), 1, 1))
    distance, nearest = KDTree(points0).query(centres0, k=count)
    source = points0[nearest] - centres0[:, None]
    target = points1[nearest] - centres1[:, None]
    fit = _robust_affine_fit(source, target, np.exp(-((distance / (3 * CELL)) ** 2)), 1.5)
    maps = np.ascontiguousarray(fit[:, :2].transpose(0, 2, 1))
    maps[np.linalg.det(maps) < _MIN_DETERMINANT] = np.eye(2)
    return maps


def neighbour_support(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, aligned: bool = False
) -> np.ndarray:
    """The share of each match's neighbours that are inliers of one affine map through the match.

    A neighbour is an inlier within half a cell plus a tenth of its distance, which leaves room
    for depth. After the alignment the tolerance is half of that.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: number of nearest other matches in image 0 that are asked.
        aligned: whether the matches have been aligned.

    Returns:
        (M,) in [0, 1]; 1 where there are fewer than four matches.
    """
    if len(points0) < 4:
        return np.ones(len(points0))
    distance, nearest = KDTree(points0).query(points0, k=min(neighbours + 1, len(points0)))
    distance, nearest = distance[:, 1:], nearest[:, 1:]
    source = points0[nearest] - points0[:, None]
    target = points1[nearest] - points1[:, None]
    # Fitted to the neighbours alone, so that a wrong match in their middle has no influence.
    tolerance = 0.5 if aligned else 1.0
    fit = _robust_affine_fit(source, target, np.ones_like(distance), 3.0 * tolerance)
    residual = np.linalg.norm(source @ fit[:, :2] - target, axis=2)
    share: np.ndarray = (residual < tolerance * (CELL / 2 + 0.1 * distance)).mean(axis=1)
    return share


def transfer(
    corners: np.ndarray, points: np.ndarray, others: np.ndarray, affine: np.ndarray
) -> np.ndarray:
    """Points beside matches, brought into the other image by the local affine maps.

    Args:
        corners: (N, 2) points of one image, pixels.
        points: (N, 2) the match nearest to each, in the same image.
        others: (N, 2) that match in the other image.
        affine: (N, 2, 2) the maps around these matches.

    Returns:
        (N, 2) float32 pixels of the other image.
    """
    offsets = (affine @ (corners - points)[:, :, None])[:, :, 0]
    return (others + offsets).astype(np.float32)


def _robust_affine_fit(
    source: np.ndarray, target: np.ndarray, weight: np.ndarray, scale: float
) -> np.ndarray:
    """Affine maps (N, 3, 2), translation last, from (N, K, 2) to (N, K, 2) points.

    They minimise a Cauchy loss of `scale` pixels, weighted by (N, K), by iteratively reweighted
    least squares.
    """
    source = np.concatenate([source, np.ones((*source.shape[:2], 1))], axis=2)
    # Worth half a neighbour at the distance of a cell; the translation is nearly free.
    prior = np.diag([0.5 * CELL**2, 0.5 * CELL**2, 1e-3])
    identity = np.eye(3)[:, :2]
    spatial = weight
    for _ in range(5):
        weighted = (source * weight[..., None]).transpose(0, 2, 1)
        fit = np.linalg.solve(weighted @ source + prior, weighted @ target + prior @ identity)
        squared = ((source @ fit - target) ** 2).sum(axis=2)
        weight = spatial / (1.0 + squared / scale**2)
    return fit

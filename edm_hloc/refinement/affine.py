"""Local affine maps between two photos, fitted to neighbouring matches, and their inliers."""

from __future__ import annotations

import numpy as np

from edm_hloc.base.compiled import floats
from edm_hloc.base.grid import CELL
from edm_hloc.refinement.neighbour_kernels import affine_maps, support

# Weight of the pair's rotation and scale in a fit: half a neighbour at the distance of a cell.
PRIOR = 0.5 * CELL**2
MIN_DETERMINANT = 0.05  # of a map; others mirror the patch or squeeze it to a line
MIN_NEIGHBOURHOOD = 3  # matches, the one in the middle included, that an affine map is fitted to


def local_affine_maps(
    points0: np.ndarray, points1: np.ndarray, neighbours: int, at: np.ndarray | None = None
) -> np.ndarray:
    """The affine map from image 0 to image 1 around each match.

    It is fitted robustly to the nearest matches, with a prior at the rotation and scale of the
    pair, which decides where these are few or collinear. The nearest weigh most, and the loss is
    Cauchy's. The prior is a median over neighbouring matches of the whole pair.

    Args:
        points0, points1: (M, 2) pixels.
        neighbours: number of nearest other matches that the map is fitted to.
        at: (N,) indices of the matches whose maps are wanted; by default all.

    Returns:
        (N, 2, 2) float32 matrices.
    """
    at = np.arange(len(points0)) if at is None else np.asarray(at, np.int64)
    if min(neighbours + 1, len(points0)) < MIN_NEIGHBOURHOOD:
        return np.tile(np.eye(2, dtype=np.float32), (len(at), 1, 1))
    settings = float(PRIOR), 1.5, MIN_DETERMINANT
    others = min(neighbours, len(points0) - 1)
    maps: np.ndarray = affine_maps(
        floats(points0), floats(points1), at, others, float(3 * CELL), settings
    )
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
        (M,) float32 in [0, 1]; 1 where there are fewer than four matches.
    """
    if len(points0) < 4:
        return np.ones(len(points0), np.float32)
    # Fitted to the neighbours alone, so that a wrong match in their middle has no influence.
    tolerance = 0.5 if aligned else 1.0
    settings = float(PRIOR), 3.0 * tolerance, MIN_DETERMINANT
    tolerances = tolerance * CELL / 2, tolerance * 0.1
    others = min(neighbours, len(points0) - 1)
    share: np.ndarray = support(floats(points0), floats(points1), others, settings, tolerances)
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


def inverse_maps(maps: np.ndarray) -> np.ndarray:
    """The inverses of (N, 2, 2) local affine maps."""
    a, b, c, d = maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1]
    adjoint = np.stack([d, -b, -c, a], axis=1) / (a * d - b * c)[:, None]
    inverse: np.ndarray = adjoint.reshape(-1, 2, 2)
    return inverse

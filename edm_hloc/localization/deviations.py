"""How uncertain a query's pose is: its standard deviations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edm_hloc.localization.fit import Fit, Lens, derivatives, loss_scale, median_distance
from edm_hloc.mapping.plausible import OFF_CENTRE

_CELLS = 8  # of a photo's longer side: errors in one of them may have one cause


class Deviations(NamedTuple):
    """Standard deviations (2,) of the camera's position, and of its rotation in degrees.

    Attributes:
        whole: None where the points do not determine the pose.
        of_lens: the part that comes from a principal point which is taken to be in the middle; None
            of others.
    """

    whole: np.ndarray | None
    of_lens: np.ndarray | None


def pose_deviations(
    fit: Fit, pixels: np.ndarray, points: np.ndarray, scale: float, lens: Lens
) -> Deviations:
    """The standard deviations of a refined pose.

    Args:
        fit: the pose and the camera, as refined.
        pixels, points: (N, 2) and (N, 3), by which they were refined.
        scale: of the loss, in median errors.
        lens: what is known of it. Estimated intrinsics count as unknown even where they were held,
            as they are no more certain for that.
    """
    residuals = np.asarray(fit.camera.img_from_cam(fit.pose * points)) - pixels
    every = derivatives(fit, points)
    J = every[:, :, : {"known": 6, "centred": -2, "told": None}[lens]]
    ahead = np.isfinite(residuals).all(axis=1) & np.isfinite(J).all(axis=(1, 2))
    residuals, J, pixels = residuals[ahead], J[ahead], pixels[ahead]
    errors = np.linalg.norm(residuals, axis=1)
    weights = 1 / (1 + (errors / loss_scale(errors, scale)) ** 2)
    slopes = weights**2  # mean derivatives of the residuals times their weights, over both axes
    try:
        covariance = np.linalg.inv(np.einsum("nai,naj->ij", J, J))
        inverse = np.linalg.inv(np.einsum("n,nai,naj->ij", slopes, J, J))
    except np.linalg.LinAlgError:
        return Deviations(None, None)
    variances = _of_pose(covariance) * _noise(errors, weights, J.shape[2]) ** 2
    pulls = np.einsum("n,nai,na->ni", weights, J, residuals)
    side = max(fit.camera.width, fit.camera.height)
    cells = np.unique(pixels // (side / _CELLS), axis=0, return_inverse=True)[1].reshape(-1)
    variances = variances * _sharing(pulls @ inverse, cells)
    if not (np.isfinite(variances) & (variances >= 0)).all():
        return Deviations(None, None)
    unit = np.array([median_distance(fit, points), np.degrees(1.0)])
    if lens != "centred":
        return Deviations(unit * np.sqrt(variances), None)
    moved = inverse @ np.einsum("n,nai,nap->ip", slopes, J, every[ahead][:, :, -2:])
    of_lens = _of_pose(moved @ moved.T) * (OFF_CENTRE * side) ** 2
    return Deviations(unit * np.sqrt(variances + of_lens), unit * np.sqrt(of_lens))


def _of_pose(covariance: np.ndarray) -> np.ndarray:
    """(2,) variances of position and rotation, summed over their axes."""
    variances = np.diag(covariance)
    return np.array([variances[:3].sum(), variances[3:6].sum()])


def _noise(errors: np.ndarray, weights: np.ndarray, parameters: int) -> float:
    """The standard deviation an axis, in pixels, of keypoints whose least-squares pose would be as
    uncertain as the one that the robust loss (Cauchy's) gives for these errors.

    It is larger than that of the keypoints, as points far off count less: the asymptotic variance
    of an M-estimator, for residuals in the plane, with Huber's correction for few of them (Robust
    Statistics, 7.6): residuals are smaller than errors by what the parameters take up.

    Args:
        errors, weights: (N,) reprojection errors in pixels, and their weights in the loss.
        parameters: number of those that were fitted.
    """
    slopes, residuals = weights**2, 2 * len(errors)
    few = (1 + parameters / residuals * slopes.var() / slopes.mean() ** 2) * np.sqrt(
        residuals / max(1, residuals - parameters)
    )
    return float(few * np.sqrt((slopes * errors**2).mean() / 2) / slopes.mean())


def _sharing(moves: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(2,) by how much larger the variances of position and rotation are than if errors were
    independent, as those of overlapping patches, of points that are off together and of a lens are
    not: what those of a cell of the photo add up to, and not each by itself, moves the pose.

    Args:
        moves: (N, P) by how much each residual moves the parameters.
        cells: (N,) where in the photo it is.
    """
    number, fitted = cells.max() + 1, moves.shape[1]
    together = np.zeros((number, fitted))
    np.add.at(together, cells, moves)

    def variances(of: np.ndarray) -> np.ndarray:
        # residuals are smaller than errors by what the parameters take up
        return _of_pose(of.T @ of) * 2 * len(of) / max(1, 2 * len(of) - fitted)

    return np.maximum(1.0, variances(together) / variances(moves))

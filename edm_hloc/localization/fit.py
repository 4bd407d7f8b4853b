"""A query's pose and camera, how far they are from its points, and their refinement by these."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pycolmap

from edm_hloc.mapping.plausible import LONGEST_LENS, SHORTEST_LENS

_LARGEST_LOSS = 1.0  # pixels, COLMAP's own, and the largest that is taken
_ROUNDS = 3  # of refinement, each with the scale that the last errors give


class Fit(NamedTuple):
    """A pose, cam_from_world, with the camera that was refined with it or is known."""

    pose: pycolmap.Rigid3d
    camera: pycolmap.Camera


def refinement_options(intrinsics: bool) -> pycolmap.AbsolutePoseRefinementOptions:
    """COLMAP's, with focal length and distortion refined or held."""
    options = pycolmap.AbsolutePoseRefinementOptions()
    options.refine_focal_length = options.refine_extra_params = intrinsics
    return options


def is_possible(fit: Fit, pixels: np.ndarray, points: np.ndarray) -> bool:
    """Whether the numbers are a pose and a lens that there can be, and most of the points (N, 3)
    are ahead."""
    camera = fit.camera
    focal = camera.params[camera.focal_length_idxs()] / max(camera.width, camera.height)
    return bool(
        np.isfinite(fit.pose.matrix()).all()
        and np.isfinite(camera.params).all()
        and (focal > SHORTEST_LENS).all()
        and (focal < LONGEST_LENS).all()
        and 2 * np.isfinite(reprojection_errors(fit, pixels, points)).sum() > len(points)
    )


def reprojection_errors(fit: Fit, pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) lengths of the reprojection errors, pixels; inf of points that end behind the camera."""
    seen = np.asarray(fit.camera.img_from_cam(fit.pose * points))
    return np.nan_to_num(np.linalg.norm(seen - pixels, axis=1), nan=np.inf)


def refined(
    fit: Fit,
    pixels: np.ndarray,
    points: np.ndarray,
    options: pycolmap.AbsolutePoseRefinementOptions,
    scale: float,
) -> Fit | None:
    """A pose that is refined by points (N, 3) and their pixels, with a loss whose scale follows
    their errors; None where that ends with nothing possible.

    Args:
        fit: the pose before, and the camera, which is refined with it where the options say so.
        pixels, points: the correspondences, all of them inliers.
        options: those of COLMAP; the scale of their loss is set.
        scale: of the loss, in median errors.
    """
    camera = pycolmap.Camera(fit.camera.todict())  # a copy, which COLMAP refines in place
    fit = Fit(fit.pose, camera)
    for _ in range(_ROUNDS):
        errors = reprojection_errors(fit, pixels, points)
        ahead: Any = np.isfinite(errors)
        options.loss_function_scale = loss_scale(errors, scale)
        answer = pycolmap.refine_absolute_pose(fit.pose, pixels, points, ahead, camera, options)
        if answer is None:
            return None
        fit = Fit(answer["cam_from_world"], camera)
        if not is_possible(fit, pixels, points):
            return None
    return fit


def loss_scale(errors: np.ndarray, scale: float) -> float:
    """The scale of the robust loss in pixels, for errors (N,) and a scale in median errors."""
    ahead = errors[np.isfinite(errors)]
    median = float(np.median(ahead)) if len(ahead) else 0.0
    return min(max(scale * median, 1e-3), _LARGEST_LOSS)

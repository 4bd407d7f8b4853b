"""A query's pose and camera, how far they are from its points, and their refinement by these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from edm_hloc.mapping.plausible import LONGEST_LENS, SHORTEST_LENS

_LARGEST_LOSS = 1.0  # pixels, COLMAP's own, and the largest that is taken
_ROUNDS = 3  # of refinement, each with the scale that the last errors give
_TELLING_STEPS = 8  # of Gauss and Newton, with the principal point
_STEP = 1e-6  # of the distance of the points, radians, and of the parameters of the camera

LESS_ERROR, MANY = 1.2, 100
"""Factor of the median error by which another camera explains points far better, and number of them
that tell: with the right one the error of so many points hardly changes."""

Lens = Literal["known", "centred", "told"]
"""What of a camera is estimated with its pose: nothing; all but the principal point, which is taken
to be in the middle; or that, too, as the points tell it."""


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


def median_distance(fit: Fit, points: np.ndarray) -> float:
    """Median distance of points (N, 3) from the camera."""
    return float(np.median(np.linalg.norm(fit.pose * points, axis=1))) or 1.0


def lens_parameters(camera: pycolmap.Camera) -> list[int]:
    """Indices of focal length and distortion, and at last of the principal point."""
    return [
        *camera.focal_length_idxs(),
        *camera.extra_params_idxs(),
        *camera.principal_point_idxs(),
    ]


def derivatives(fit: Fit, points: np.ndarray) -> np.ndarray:
    """(N, 2, P) derivatives of where the camera sees points (N, 3).

    They are by the camera's centre along its axes, in `median_distance`; by its rotation about
    these, radians; and by `lens_parameters`.
    """
    in_camera, camera = fit.pose * points, fit.camera
    distance = median_distance(fit, points)

    def moved(k: int, step: float) -> np.ndarray:
        way = step * np.eye(3)[k % 3]
        if k < 3:
            return np.asarray(camera.img_from_cam(in_camera - distance * way))
        turn = Rotation.from_rotvec(way).as_matrix()
        return np.asarray(camera.img_from_cam(in_camera @ turn.T))

    def changed(k: int, step: float) -> np.ndarray:
        return np.asarray(with_parameters(camera, [k], [step]).img_from_cam(in_camera))

    columns = [(moved(k, _STEP) - moved(k, -_STEP)) / (2 * _STEP) for k in range(6)]
    for k in lens_parameters(camera):
        step = _STEP * max(1.0, abs(camera.params[k]))
        columns.append((changed(k, step) - changed(k, -step)) / (2 * step))
    return np.stack(columns, axis=2)


def with_parameters(
    camera: pycolmap.Camera, which: Sequence[int], steps: Sequence[float]
) -> pycolmap.Camera:
    """A copy of a camera, with some of its parameters changed by `steps`."""
    copy, params = pycolmap.Camera(camera.todict()), np.array(camera.params)
    params[list(which)] += steps
    copy.params = params.tolist()
    return copy


def with_principal_point(
    fit: Fit, pixels: np.ndarray, points: np.ndarray, scale: float
) -> Fit | None:
    """A fit whose principal point is where the points tell it, with everything else refined, too.

    Args:
        fit: as refined with the principal point in the middle, which it is not in a cropped photo.
        pixels, points: by which it was refined.
        scale: of the loss, in median errors.

    Returns:
        None where that does not explain the points far better, or there are too few to tell.
    """
    new, which = fit, lens_parameters(fit.camera)
    before = float(np.median(reprojection_errors(fit, pixels, points)))
    for _ in range(_TELLING_STEPS if len(points) >= MANY else 0):
        residuals = np.asarray(new.camera.img_from_cam(new.pose * points)) - pixels
        J = derivatives(new, points)
        ahead = np.isfinite(residuals).all(axis=1) & np.isfinite(J).all(axis=(1, 2))
        J, residuals = J[ahead], residuals[ahead]
        errors = np.linalg.norm(residuals, axis=1)
        weights = 1 / (1 + (errors / loss_scale(errors, scale)) ** 2)
        try:
            step = -np.linalg.solve(
                np.einsum("n,nai,naj->ij", weights, J, J),
                np.einsum("n,nai,na->i", weights, J, residuals),
            )
        except np.linalg.LinAlgError:
            return None
        turn = Rotation.from_rotvec(step[3:6])
        way = median_distance(new, points) * step[:3]
        motion = pycolmap.Rigid3d(pycolmap.Rotation3d(turn.as_quat()), -turn.apply(way))
        new = Fit(motion * new.pose, with_parameters(new.camera, which, step[6:].tolist()))
        if not is_possible(new, pixels, points):
            return None
    after = float(np.median(reprojection_errors(new, pixels, points)))
    return new if before > LESS_ERROR * after else None


def off_centre(camera: pycolmap.Camera) -> float:
    """Distance of the principal point from the middle of the photo, by its longer side."""
    x, y = camera.principal_point_x, camera.principal_point_y
    side = max(camera.width, camera.height)
    return float(np.hypot(x - camera.width / 2, y - camera.height / 2) / side)

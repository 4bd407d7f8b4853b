"""Bundle adjustment of refined tracks, and the observations that do not fit it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import adjust_all_images, posed_images
from edm_hloc.mapping.incremental import refining_options
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.rigs import Rigs, put_in_rigs
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views

logger = logging.getLogger(__name__)

_ITERATIONS = 12  # by which cameras change far less than their errors
_LOSS_SCALE = 2.0  # times the median reprojection error, of the Cauchy loss
_FEW = 3  # of adjustments that others follow
_SETTLING = 5  # adjustments at most after cameras were put in rigs, each with a narrower loss,
_LESS = 0.9  # while the reprojection error becomes so many times as large
_ABSURD = 30.0  # times the same at the start, of most photos: 1 in a rig that is right, 780 where
# the photos of one camera are of the frame beside
_OFF = 3.0  # times its reprojection error without its rig, of a photo that does not fit this
_SETTLED = 1e-4  # relative change of the cost
_TANGIBLE = 0.01  # share of a model beyond a limit, which it was not made with then
_ANY_ERROR = 1e9  # pixels
_WEAK_PERSPECTIVE = 5.0  # focal length by the longer side


@dataclass(frozen=True)
class Freedom:
    """What an adjustment may change besides the points.

    Attributes:
        poses: the cameras' poses; without them nothing else of a camera changes either.
        points: without poses the ids of the points that change; None for all.
        constant: ids of the cameras whose intrinsics stay.
        focal, distortion, principal_point: whether these are refined in the other cameras.
        lenses: these may get other camera models between the rounds and after the last
            (see `tracks/lens.py`).
        rigid: ids of the cameras whose poses in their rigs stay.
        unsure: ids of the cameras of which no photo tells anything, which may be others of the
            model: where their lens is not told either, they may get that of these.
    """

    poses: bool = True
    points: frozenset[int] | None = None
    constant: frozenset[int] = frozenset()
    focal: bool = True
    distortion: bool = True
    principal_point: bool = False
    lenses: bool = True
    rigid: frozenset[int] = frozenset()
    unsure: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Kept:
    """What of the cameras an adjustment leaves as it is.

    Attributes:
        names: of the photos whose intrinsics stay.
        intrinsics: all intrinsics stay.
        distortion: that of all cameras stays, but where a lens is found (see `lens.fit_lenses`).
        poses: all poses and intrinsics stay: only the points are refined.
        lenses: the camera models and principal points of all cameras stay.
        rigs: file that says which cameras are fixed to each other (see `mapping.rigs`): they keep
            one pose in their rig, that of the file or one that all frames agree on.
    """

    names: frozenset[str] = frozenset()
    intrinsics: bool = False
    distortion: bool = False
    poses: bool = False
    lenses: bool = False
    rigs: Path | None = None

    def freedom(self, model: pycolmap.Reconstruction) -> Freedom:
        """What an adjustment of a model may change then."""
        constant = frozenset(
            image.camera_id
            for name, image in posed_images(model).items()
            if self.intrinsics or name in self.names
        )
        return Freedom(
            not self.poses,
            constant=constant,
            distortion=not self.distortion,
            lenses=not self.lenses,
        )


def with_telephotos_held(freedom: Freedom, model: pycolmap.Reconstruction) -> Freedom:
    """The same, where the intrinsics of long telephoto lenses stay.

    Through such a lens a photo hardly tells a longer focal length from a greater distance, and an
    adjustment of both can go on without bound.
    """
    long = {
        camera_id
        for camera_id, camera in model.cameras.items()
        if camera.mean_focal_length() > _WEAK_PERSPECTIVE * max(camera.width, camera.height)
    }
    return replace(freedom, constant=freedom.constant | long)


def reprojection_errors(tracks: Tracks, views: Views) -> np.ndarray:
    """(N, 2) of the observations, pixels; NaN behind a camera."""
    return tracks.xy - views.project(tracks.xyz[tracks.track], tracks.view)


def robust_scale(errors: np.ndarray) -> float:
    """Median length of the errors (N, 2), pixels; 0 without any."""
    length = np.linalg.norm(errors, axis=1)
    length = length[np.isfinite(length)]
    return float(np.median(length)) if len(length) else 0.0


def limits_of(model: pycolmap.Reconstruction) -> MappingOptions:
    """The limits of points that those of a model meet, which another program may have made.

    They are the usual ones, but for the angle of rays or the reprojection error, or both, that more
    than a few of its points or observations exceed: there no angle is too small, and no error
    larger than the largest.
    """
    limits = MappingOptions()
    sure = pycolmap.Reconstruction(model)
    pycolmap.ObservationManager(sure).filter_all_points3D(_ANY_ERROR, limits.min_tri_angle)
    if sure.num_points3D() < (1 - _TANGIBLE) * model.num_points3D():
        limits = replace(limits, min_tri_angle=0.0)
    views = Views.of(model)
    length = np.linalg.norm(reprojection_errors(Tracks.of(model, views), views), axis=1)
    length = length[np.isfinite(length)]
    if np.count_nonzero(length > limits.max_error) > _TANGIBLE * len(length):
        limits = replace(limits, max_error=float(length.max()))
    return limits


def adjuster_of(
    model: pycolmap.Reconstruction,
    scale: float,
    freedom: Freedom,
    options: MappingOptions,
    *,
    held: bool = True,
    iterations: int = _ITERATIONS,
) -> pycolmap.CeresBundleAdjuster:
    """The adjustment of a model with a Cauchy loss.

    Args:
        model: to be adjusted.
        scale: median reprojection error, pixels.
        freedom: what changes besides the points.
        options: threads.
        held: two cameras hold the frame, or one where distances in a rig are known.
        iterations: at most.
    """
    colmap = refining_options(options, freedom.focal, freedom.distortion)
    adjustment = colmap.get_global_bundle_adjustment()
    adjustment.print_summary = False
    adjustment.refine_principal_point = freedom.principal_point
    adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    adjustment.ceres.loss_function_scale = max(_LOSS_SCALE * scale, 1e-3)
    solver = adjustment.ceres.solver_options
    solver.max_num_iterations, solver.function_tolerance = iterations, _SETTLED
    if freedom.poses:
        config = adjust_all_images(model, freedom.constant)
        for camera_id in freedom.rigid & set(model.cameras):
            config.set_constant_sensor_from_rig_pose(model.cameras[camera_id].sensor_id)
        if held and has_known_baseline(model, freedom.rigid):  # which the scale follows
            config.set_constant_rig_from_world_pose(min(model.reg_frame_ids()))
        elif held:
            config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    else:
        config = pycolmap.BundleAdjustmentConfig()
        chosen = model.point3D_ids() if freedom.points is None else freedom.points
        for point_id in sorted(chosen):
            config.add_variable_point(point_id)
    return pycolmap.create_default_ceres_bundle_adjuster(adjustment, config, model)


def has_known_baseline(model: pycolmap.Reconstruction, rigid: frozenset[int]) -> bool:
    """Whether cameras whose poses in their rig stay are apart from its reference camera."""
    return any(
        sensor.id in rigid and pose is not None and bool(np.any(np.abs(pose.translation) > 0))
        for rig in model.rigs.values()
        for sensor, pose in rig.non_ref_sensors.items()
    )


def adjust(
    model: pycolmap.Reconstruction,
    tracks: Tracks,
    outlier: float,
    freedom: Freedom,
    options: MappingOptions,
    *,
    again: bool,
) -> None:
    """Adjusts points and cameras, and drops what does not fit by a bound from the data.

    Args:
        model: changed in place.
        tracks: all that it has.
        outlier: observations farther off than so many times the median are dropped, of all or of
            those of their photo, which may be as they were mapped.
        freedom: what changes besides the points.
        options: minimum angle of a point's rays, and threads.
        again: adjust points alone first, and everything once more without what was dropped.
    """
    scale = robust_scale(reprojection_errors(tracks, Views.of(model)))
    # Points alone tell what does not fit as well, where the cameras have been adjusted before.
    first = replace(freedom, poses=False) if again else freedom
    adjuster_of(model, scale, first, options, iterations=_FEW).solve()
    views = Views.of(model)
    tracks = tracks.at_points_of(model)
    errors = reprojection_errors(tracks, views)
    scale = robust_scale(errors)
    usual = np.array(
        [max(scale, robust_scale(errors[tracks.view == v])) for v in range(len(views.ids))]
    )
    near = np.linalg.norm(errors, axis=1) <= outlier * usual[tracks.view]
    drop_observations(model, tracks, views, ~near)
    pycolmap.ObservationManager(model).filter_all_points3D(options.max_error, options.min_tri_angle)
    if again:
        adjuster_of(model, scale, freedom, options).solve()
        # Points may have gone behind a camera, whose errors are as large as numbers get.
        pycolmap.ObservationManager(model).filter_observations_with_negative_depth()
    model.update_point_3d_errors()


def drop_observations(
    model: pycolmap.Reconstruction, tracks: Tracks, views: Views, which: np.ndarray
) -> None:
    """Takes observations (N,) out of a model, and the points that are seen only once then."""
    for n in np.flatnonzero(which).tolist():
        image_id, index = int(views.ids[tracks.view[n]]), int(tracks.index[n])
        if model.images[image_id].points2D[index].has_point3D():
            model.delete_observation(image_id, index)


def in_rigs(
    model: pycolmap.Reconstruction, kept: Kept, config: TrackConfig, options: MappingOptions
) -> tuple[pycolmap.Reconstruction, Rigs, Freedom]:
    """A model with its photos in rigs, adjusted so.

    Args:
        model: stays as it is.
        kept: with the file of the rigs.
        config: the bound on the residuals of observations that stay.
        options: minimum angle of a point's rays, and threads.

    Returns:
        The model, what became of its photos, and what a further adjustment may change.

    Raises:
        EdmHlocError: as `put_in_rigs`.
    """
    assert kept.rigs is not None
    before, each_before = _medians(model)
    model, rigs = put_in_rigs(model, kept.rigs)
    start, each = _medians(model)
    absurd = [error > _ABSURD * max(before, each_before[n]) for n, error in each.items()]
    if 2 * sum(absurd) > len(absurd):
        logger.warning(
            "In the rigs of %s most photos agree to %.2g px at first, and without rigs they "
            "agree to %.2g px: are photos of equal names of several moments, or the file wrong? "
            "Then end this: it takes many times as long, and bends the model.",
            *(kept.rigs, start, before),
        )
    freedom = kept.freedom(model)
    freedom = replace(freedom, rigid=rigs.given, constant=freedom.constant | rigs.calibrated)
    with at_work("Adjusting the rigs"):
        tracks = Tracks.of(model, Views.of(model))
        scale = np.inf
        for _ in range(_SETTLING):  # all cameras before anything is dropped: they moved by pixels
            was, scale = scale, robust_scale(reprojection_errors(tracks, Views.of(model)))
            if scale > _LESS * was:
                break
            adjuster_of(model, scale, freedom, options).solve()
            tracks = tracks.at_points_of(model)
        after, each = _medians(model)
        off = [n for n, error in each.items() if error > _OFF * max(before, each_before[n])]
        adjust(model, tracks, config.outlier, freedom, options, again=True)
    rigs = replace(rigs, residuals=(before, after), off=tuple(off))
    return model, rigs, freedom


def _medians(model: pycolmap.Reconstruction) -> tuple[float, dict[str, float]]:
    """Median reprojection errors in pixels: of all observations, and of each photo's by name."""
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    errors = reprojection_errors(tracks, views)
    each = {n: robust_scale(errors[tracks.view == v]) for v, n in enumerate(views.names)}
    return robust_scale(errors), each

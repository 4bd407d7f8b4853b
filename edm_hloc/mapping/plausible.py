"""Whether the cameras that a mapper has found can be those of real photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images

MIN_PLAUSIBLE = 0.9
"""A model is mapped again without distortion if fewer of its images have a plausible camera."""

LENSES = (0.3, 5.0)
"""Focal lengths by the longer side, between which those that nothing tells are plausible."""

_MOST_ERROR = 1.15  # of a shared camera, of that with a camera for each photo
_LEAST_SEEN = 0.5  # observations with a shared camera, likewise
_MOST_APART = 1.5  # factor between a focal length and the median of the others


def plausible_images(
    models: Sequence[pycolmap.Reconstruction], initial: Mapping[int, pycolmap.Camera]
) -> tuple[int, int]:
    """Of the largest model: registered images with a plausible camera, and registered images."""
    if not models:
        return 0, 0
    posed = posed_images(models[0]).values()
    plausible = {id: _is_plausible(camera, initial[id]) for id, camera in models[0].cameras.items()}
    return sum(plausible[i.camera_id] for i in posed), len(posed)


def focal_lengths_agree(model: pycolmap.Reconstruction) -> bool:
    """Whether the focal lengths of nearly all registered images are near their median.

    Photos of one size that tell of no focal length are most often of one camera. Where cameras of
    their own get focal lengths that differ by factors, as on photos of flat ground from above, the
    photos do not determine them one by one.
    """
    focal = np.array(
        [model.cameras[i.camera_id].mean_focal_length() for i in posed_images(model).values()]
    )
    ratio = focal / np.median(focal)
    near = (ratio < _MOST_APART) & (ratio > 1 / _MOST_APART)
    return bool(near.mean() >= MIN_PLAUSIBLE)


def fit_one_camera(
    shared: pycolmap.Reconstruction,
    own: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
) -> bool:
    """Whether photos that have a camera each fit a shared one no worse.

    Photos of two cameras that are made to share one have far larger reprojection errors. So have
    photos of one camera that were cropped, as long as its principal point is in the middle. Both
    models are therefore adjusted once more, the shared camera with a principal point of its own.

    Args:
        shared: the model with one camera; stays as it is.
        own: the model with a camera for each photo; stays as it is.
        adjustment: options of the adjustment of all else.
    """
    if (
        shared.num_reg_images() < own.num_reg_images()
        or shared.compute_num_observations() < _LEAST_SEEN * own.compute_num_observations()
    ):
        return False
    errors = []
    for model in (shared, own):
        adjusted = pycolmap.Reconstruction(model)
        adjustment.refine_principal_point = model is shared
        pycolmap.bundle_adjustment(adjusted, adjustment)
        adjusted.update_point_3d_errors()
        errors.append(adjusted.compute_mean_reprojection_error())
    return errors[0] <= _MOST_ERROR * errors[1]


def _is_plausible(camera: pycolmap.Camera, initial: pycolmap.Camera) -> bool:
    """Whether a focal length is near that of the EXIF data, or else in the range of lenses."""
    if initial.has_prior_focal_length:
        return 0.7 < camera.mean_focal_length() / initial.mean_focal_length() < 1.4
    return LENSES[0] < camera.mean_focal_length() / max(camera.width, camera.height) < LENSES[1]

"""Whether the cameras that a mapper has found can be those of real photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pycolmap

from edm_hloc.base.colmap import adjust_all_images, posed_images

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


def focal_lengths_agree(model: pycolmap.Reconstruction, names: Collection[str]) -> bool:
    """Whether the focal lengths of nearly all of some images are near the median of their size.

    Photos of one size that tell of no focal length are most often of one camera. Where cameras of
    their own get focal lengths that differ by factors, as on photos of flat ground from above, the
    photos do not determine them one by one.

    Args:
        model: of which registered images count.
        names: of the images.
    """
    of_size: dict[tuple[int, int], list[float]] = defaultdict(list)
    posed = posed_images(model)
    for name in posed.keys() & set(names):
        camera = model.cameras[posed[name].camera_id]
        shorter, longer = sorted((camera.width, camera.height))
        of_size[shorter, longer].append(camera.mean_focal_length())
    ratio = np.concatenate([np.array(f) / np.median(f) for f in of_size.values()] or [np.empty(0)])
    near = (ratio < _MOST_APART) & (ratio > 1 / _MOST_APART)
    return bool(near.sum() >= MIN_PLAUSIBLE * len(ratio))


def fit_shared_cameras(
    shared: pycolmap.Reconstruction,
    own: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: set[int],
) -> bool:
    """Whether photos that have a camera each fit shared ones no worse, those of each camera.

    Photos of two cameras that are made to share one have far larger reprojection errors. So have
    photos of one camera that were cropped, as long as its principal point is in the middle. Both
    models are therefore adjusted once more, the shared camera with a principal point of its own.

    Args:
        shared: the model with one camera for all photos of a size; stays as it is.
        own: the model with a camera for each photo; stays as it is.
        adjustment: options of the adjustment of all else.
        constant: ids of cameras whose intrinsics stay as they are.
    """
    if (
        shared.num_reg_images() < own.num_reg_images()
        or shared.compute_num_observations() < _LEAST_SEEN * own.compute_num_observations()
    ):
        return False
    own_of = {name: image.camera_id for name, image in posed_images(own).items()}
    of_camera: dict[int, set[str]] = defaultdict(set)
    for name, image in posed_images(shared).items():
        of_camera[image.camera_id].add(name)
    # photos of one camera in both models are not asked about
    sharing = [n for n in of_camera.values() if len({own_of.get(name) for name in n}) > 1]
    errors = []
    for model in (shared, own):
        adjusted = pycolmap.Reconstruction(model)
        adjustment.refine_principal_point = model is shared
        config = adjust_all_images(adjusted, constant)
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        # pycolmap.bundle_adjustment would turn COLMAP's log on again
        pycolmap.create_default_bundle_adjuster(adjustment, config, adjusted).solve()
        errors.append([_error(adjusted, names) for names in sharing])
    return all(a <= _MOST_ERROR * b for a, b in zip(*errors, strict=True))


def _error(model: pycolmap.Reconstruction, names: set[str]) -> float:
    """Mean over the points of their reprojection errors in some images, pixels."""
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    errors: list[np.ndarray] = [np.zeros(0)]
    posed = posed_images(model)
    for image in (posed[name] for name in sorted(names & posed.keys())):
        if seen := image.get_observation_points2D():
            of_points = [point.point3D_id for point in seen]
            xyz = np.array([model.points3D[i].xyz for i in of_points])
            pose = image.cam_from_world().matrix()
            there = xyz @ pose[:, :3].T + pose[:, 3]
            places = np.asarray(model.cameras[image.camera_id].img_from_cam(there))
            ids.append(np.array(of_points))
            errors.append(np.linalg.norm(places - np.array([p.xy for p in seen]), axis=1))
    _, point = np.unique(np.concatenate(ids), return_inverse=True)
    sums = np.bincount(point, np.nan_to_num(np.concatenate(errors)))
    return float((sums / np.bincount(point)).mean()) if len(point) else 0.0


def _is_plausible(camera: pycolmap.Camera, initial: pycolmap.Camera) -> bool:
    """Whether a focal length is near that of the EXIF data, or else in the range of lenses."""
    if initial.has_prior_focal_length:
        return 0.7 < camera.mean_focal_length() / initial.mean_focal_length() < 1.4
    return LENSES[0] < camera.mean_focal_length() / max(camera.width, camera.height) < LENSES[1]

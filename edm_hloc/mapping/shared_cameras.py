"""One camera for photos or one each: a model with it, and whether either fits no worse."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import (
    adjust_all_images,
    open_database,
    posed_images,
    take_poses,
    unposed_model,
    with_cameras,
)

_MOST_ERROR = 1.15  # of a shared camera, of that with a camera for each photo
_LEAST_SEEN = 0.5  # observations with a shared camera, likewise
_ITERATIONS = 100  # at most; a focal length moves slowly where the photos hardly tell it
_SETTLED = 1e-7  # relative change of the cost
_POINTS = 200  # of each photo, by which photos are told apart: as sure as by all, and fast


def merge_cameras(
    model: pycolmap.Reconstruction,
    database: Path,
    min_num_matches: int,
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: set[int],
) -> pycolmap.Reconstruction:
    """A model with the cameras of another database, where its photos share them, adjusted.

    Args:
        model: mapped from a database with a camera for each photo; stays as it is.
        database: of the same images, keypoints and frames, see `parts.share_cameras`.
        min_num_matches: with which it was mapped.
        adjustment: options of the adjustment, which begins at the medians of the intrinsics.
        constant: ids of cameras whose intrinsics stay as they are.
    """
    with open_database(database) as db:
        shared, _ = unposed_model(db, min_num_matches)
    params: dict[int, list[np.ndarray]] = defaultdict(list)
    for image in posed_images(model).values():
        camera_id = shared.images[image.image_id].camera_id
        params[camera_id].append(model.cameras[image.camera_id].params)
    for camera_id, of_each in params.items():
        shared.cameras[camera_id].params = np.median(of_each, axis=0)
    take_poses(shared, model)
    for point_id in sorted(model.point3D_ids()):
        point = model.points3D[point_id]
        shared.add_point3D(point.xyz, point.track, point.color)
    solver = adjustment.ceres.solver_options
    solver.max_num_iterations, solver.function_tolerance = _ITERATIONS, _SETTLED
    _adjust(shared, adjustment, constant)
    shared.update_point_3d_errors()
    shared.tear_down()  # takes out what has no pose, and cameras that no image has
    return shared


def fit_shared_cameras(
    shared: pycolmap.Reconstruction,
    own: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: set[int],
) -> bool:
    """Whether photos that have a camera each fit shared ones no worse, those of each camera.

    Photos of two cameras that are made to share one have far larger reprojection errors. So have
    photos of one camera that were cropped, as long as its principal point is in the middle, and
    those of a lens that is not quite SIMPLE_RADIAL, for which focal lengths and distortions of each
    photo make up. Both models are therefore adjusted once more, the shared camera with a principal
    point and a second coefficient of distortion of its own.

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
    together = _adjusted_errors(shared, sharing, adjustment, constant, freely=True)
    each = _adjusted_errors(own, sharing, adjustment, constant, freely=False)
    return all(a <= _MOST_ERROR * b for a, b in zip(together, each, strict=True))


def photos_told_apart(
    model: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: Collection[int],
    not_asked: Collection[str] = (),
) -> set[str]:
    """Photos that share a camera and fit cameras of their own far better, all of such a camera.

    Photos of equal EXIF data may have been cropped, or zoomed by software or by a lens that tells
    nothing of it. The same is compared as in `fit_shared_cameras`, with few points of each photo.

    Args:
        model: stays as it is.
        adjustment: options of the adjustment of all else.
        constant: ids of cameras whose intrinsics stay as they are, which are not asked about.
        not_asked: names of more photos that are not asked about.
    """
    of_camera: dict[int, set[str]] = defaultdict(set)
    for name, image in posed_images(model).items():
        if image.camera_id not in constant and name not in not_asked:
            of_camera[image.camera_id].add(name)
    groups = [names for names in of_camera.values() if len(names) > 1]
    if not groups:
        return set()
    asked = set().union(*groups)
    cameras = {i: pycolmap.Camera(c.todict()) for i, c in model.cameras.items()}
    shared, own, top = {}, {}, max(cameras)
    for name, image in posed_images(model).items():
        shared[image.image_id] = own[image.image_id] = image.camera_id
        if name in asked:
            camera = pycolmap.Camera(cameras[image.camera_id].todict())
            camera.camera_id = own[image.image_id] = top + image.image_id
            cameras[camera.camera_id] = camera
    few = _with_few_points(model)
    errors = []
    for camera_of in (shared, own):
        used = [cameras[i] for i in sorted(set(camera_of.values()))]
        with_them, freely = with_cameras(few, used, camera_of), camera_of is shared
        errors.append(_adjusted_errors(with_them, groups, adjustment, set(constant), freely=freely))
    worse = [a > _MOST_ERROR * b for a, b in zip(*errors, strict=True)]
    return {
        name for names, is_worse in zip(groups, worse, strict=True) if is_worse for name in names
    }


def take_second_coefficient(camera: pycolmap.Camera) -> None:
    """Makes a SIMPLE_RADIAL camera a RADIAL one of the same lens; other models stay."""
    if camera.model_name == "SIMPLE_RADIAL":
        params = list(camera.params)
        camera.model, camera.params = pycolmap.CameraModelId.RADIAL, [*params, 0.0]


def _with_few_points(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model with those points only that most photos see, a number of each photo."""
    few, seen = pycolmap.Reconstruction(model), Counter[int]()
    images = {i: {e.image_id for e in p.track.elements} for i, p in model.points3D.items()}
    for point_id in sorted(images, key=lambda i: (-len(images[i]), i)):
        if min(seen[image_id] for image_id in images[point_id]) < _POINTS:
            seen.update(images[point_id])
        else:
            few.delete_point3D(point_id)
    return few


def _error(model: pycolmap.Reconstruction, names: set[str]) -> float:
    """Mean over the points of their reprojection errors in some images, pixels.

    Infinite if most of the points are behind their cameras, as an adjustment that has gone astray
    leaves them.
    """
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
    together = np.concatenate(errors)
    known = np.isfinite(together)
    if 2 * np.count_nonzero(known) < len(known):
        return float("inf")
    _, point = np.unique(np.concatenate(ids)[known], return_inverse=True)
    sums = np.bincount(point, together[known])
    return float((sums / np.bincount(point)).mean()) if len(point) else 0.0


def _adjusted_errors(
    model: pycolmap.Reconstruction,
    groups: Sequence[set[str]],
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: set[int],
    *,
    freely: bool,
) -> list[float]:
    """Errors of groups of photos in an adjusted copy of a model.

    Freely is with principal points and second coefficients of distortion, unless that goes astray.
    """
    errors: list[float] = []
    for free in (True, False) if freely else (False,):
        copy = pycolmap.Reconstruction(model)
        adjustment.refine_principal_point = free
        for camera_id in set(copy.cameras) - constant if free else ():
            take_second_coefficient(copy.cameras[camera_id])
        _adjust(copy, adjustment, constant)
        errors = [_error(copy, names) for names in groups]
        if np.isfinite(errors).all():
            break
    return errors


def _adjust(
    model: pycolmap.Reconstruction,
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: set[int],
) -> None:
    """Adjusts all images and points of a model."""
    config = adjust_all_images(model, constant)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    # pycolmap.bundle_adjustment would turn COLMAP's log on again
    pycolmap.create_default_bundle_adjuster(adjustment, config, model).solve()

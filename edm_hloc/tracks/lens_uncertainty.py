"""How uncertain cameras are because their lenses are: of these, residuals show little.

Where the photos do not tell a lens, its principal point stays in the middle, and real ones are off
by up to a percent. Poses make up for that, and residuals do not show it. So principal points are
moved, by as much as those of lenses are off, and the model is adjusted again: the cameras move by
as much as they may be off for that reason. Where the photos tell a lens, it differs with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import posed_images
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.plausible import OFF_CENTRE
from edm_hloc.tracks.adjustment import Freedom
from edm_hloc.tracks.geometry import Views
from edm_hloc.tracks.lens import BETTER, Lens, adjust_to_lenses, with_fewer_points
from edm_hloc.tracks.uncertainty import free_of_frame

_PROBES = 8  # adjustments at most, each with all principal points moved
_MIDDLE = 0.51  # px from the middle, as which (width - 1) / 2 counts, too


def counting_lenses(
    covariance: np.ndarray | None,
    model: pycolmap.Reconstruction,
    lenses: Sequence[Lens],
    freedom: Freedom,
    options: MappingOptions,
) -> np.ndarray | None:
    """The covariance (6V, 6V) of cameras, with what comes from their lenses.

    Args:
        covariance: of `camera_covariances`.
        model: adjusted; stays as it is.
        lenses: of those of its cameras whose photos tell them.
        freedom: what the adjustment has changed besides the points.
        options: threads.

    Returns:
        None where it is not known, or an adjustment to other lenses comes to nothing.
    """
    if covariance is None:
        return None
    if held := held_principal_points(model, freedom):
        covariance = covariance + _of_held(model, held, freedom, options)
    found = [lens for lens in lenses if model.cameras[lens.camera].model_name == BETTER]
    if found and freedom.poses:
        covariance = covariance + _of_found(model, found, freedom, options)
    return covariance if np.isfinite(covariance).all() else None


def held_principal_points(model: pycolmap.Reconstruction, freedom: Freedom) -> list[int]:
    """Ids of the cameras whose principal point was held in the middle, without being known."""
    if not freedom.poses or freedom.principal_point or not freedom.focal:
        return []
    used = {image.camera_id for image in posed_images(model).values()}
    return sorted(i for i in used - freedom.constant if _is_centred(model.cameras[i]))


def _of_held(
    model: pycolmap.Reconstruction, held: Sequence[int], freedom: Freedom, options: MappingOptions
) -> np.ndarray:
    """Covariance (6V, 6V) that comes from principal points of cameras with these ids."""
    some = with_fewer_points(model)
    ways = np.eye(2 * len(held))
    if len(ways) > _PROBES:  # each moves all principal points
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (_PROBES, len(ways)))
        ways = signs / np.sqrt(_PROBES)
    changes = []
    for way in ways:
        copy = pycolmap.Reconstruction(some)
        for i, (x, y) in zip(held, way.reshape(-1, 2).tolist(), strict=True):
            camera = copy.cameras[i]
            sigma = OFF_CENTRE * max(camera.width, camera.height)
            camera.principal_point_x += sigma * x
            camera.principal_point_y += sigma * y
        changes.append(_change(some, copy, freedom, options))
    moved = np.array(changes)
    return free_of_frame(moved.T @ moved, Views.of(some))


def _of_found(
    model: pycolmap.Reconstruction,
    lenses: Sequence[Lens],
    freedom: Freedom,
    options: MappingOptions,
) -> np.ndarray:
    """Covariance (6V, 6V) that comes from lenses which the photos tell.

    The model is adjusted again with the lenses as they are without each group of photos (a
    jackknife), and as they are with pixels that need not be square and with tangential distortion
    (OPENCV). The residuals tell far less: they scatter about a lens of the kind that was fitted,
    and real ones are not quite of that kind.
    """
    some = with_fewer_points(model)
    ids = {lens.camera for lens in lenses}
    changes, held = [], replace(freedom, constant=freedom.constant | ids)
    for group in zip(*(lens.without for lens in lenses), strict=True):
        copy = pycolmap.Reconstruction(some)
        for lens, params in zip(lenses, group, strict=True):
            copy.cameras[lens.camera].params = list(params)
        changes.append(_change(some, copy, held, options))
    moved = np.array(changes) - np.mean(changes, axis=0)
    other = pycolmap.Reconstruction(some)
    for camera in map(other.cameras.__getitem__, sorted(ids)):
        f, cx, cy, k1, k2 = camera.params
        camera.model = pycolmap.CameraModelId.OPENCV
        camera.params = [f, f, cx, cy, k1, k2, 0.0, 0.0]
    kind = _change(some, other, replace(freedom, distortion=True, principal_point=True), options)
    covariance = (1 - 1 / len(moved)) * moved.T @ moved + np.outer(kind, kind)
    return free_of_frame(covariance, Views.of(some))


def _change(
    before: pycolmap.Reconstruction,
    copy: pycolmap.Reconstruction,
    freedom: Freedom,
    options: MappingOptions,
) -> np.ndarray:
    """How the cameras of a copy with other intrinsics move when it is adjusted to them, (6V,):
    turns about their axes, radians, and their centres in the world; NaN if there are none then."""
    adjust_to_lenses(copy, freedom, options)
    old, new = Views.of(before), Views.of(copy)
    if not (np.isfinite(new.R).all() and np.isfinite(new.centres).all()):
        return np.full(6 * len(old.ids), np.nan)
    turned = Rotation.from_matrix(new.R @ old.R.transpose(0, 2, 1)).as_rotvec()
    return np.hstack([turned, new.centres - old.centres]).reshape(-1)


def _is_centred(camera: pycolmap.Camera) -> bool:
    off_x = camera.principal_point_x - camera.width / 2
    off_y = camera.principal_point_y - camera.height / 2
    return bool(max(abs(off_x), abs(off_y)) < _MIDDLE)

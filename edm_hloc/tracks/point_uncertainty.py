"""How sure the points of an adjusted model are: by their observations, and by its cameras."""

from __future__ import annotations

import io
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np

from edm_hloc.base.files import write_whole
from edm_hloc.base.geometry import largest_distance
from edm_hloc.tracks.adjustment import reprojection_errors, robust_scale
from edm_hloc.tracks.geometry import Tracks, Views
from edm_hloc.tracks.uncertainty import RAYLEIGH, UNSEEN

_STEP = 0.5  # pixels, of the differences that derivatives are taken from
_SINGULAR = 1e-18  # determinant over the cubed size, of points at infinity
_MODES = 16  # in which the cameras' errors move the points; the others are far smaller
_OFF_SURFACE = 2.4  # true errors of depth over those that residuals tell: rendered scenes 3 to 5
_UPPER = np.triu_indices(3)


def point_covariances(
    tracks: Tracks, views: Views, as_mapped: Set[int], of_cameras: np.ndarray | None
) -> np.ndarray:
    """Covariances (T, 3, 3) of the points of a model in the world.

    The size of the errors in the photos is that of the residuals, of aligned points and of those
    as they were mapped each by themselves. Errors of focal lengths and distortion do not count.

    Args:
        tracks: all points and observations.
        views: the adjusted cameras.
        as_mapped: ids of the points that were not aligned.
        of_cameras: `uncertainty.camera_covariances`; without, the cameras are taken as exact.

    Returns:
        NaN for points whose observations do not determine them.
    """
    track, number = tracks.track, len(tracks.ids)
    square = _information(tracks, views)
    normal = np.zeros((number, 3, 3))
    for i, j in zip(*_UPPER, strict=True):
        normal[:, i, j] = normal[:, j, i] = np.bincount(track, square[:, i, j], number)
    size = np.trace(normal, axis1=1, axis2=2)
    sure = np.linalg.det(normal) > _SINGULAR * np.maximum(size, 1e-300) ** 3
    inverse = np.full((number, 3, 3), np.nan)
    inverse[sure] = np.linalg.inv(normal[sure])
    errors = reprojection_errors(tracks, views)
    mapped = np.isin(tracks.ids, sorted(as_mapped))
    noise = np.full(number, np.nan)
    for of_kind in (mapped, ~mapped):
        its = of_kind[track]
        measured, unknown = 2 * np.count_nonzero(its), 3 * np.count_nonzero(of_kind)
        if measured > unknown:
            free = (measured - unknown) / measured
            noise[of_kind] = UNSEEN * robust_scale(errors[its]) / RAYLEIGH / np.sqrt(free)
    covariance = inverse * noise[:, None, None] ** 2
    if of_cameras is not None:
        away = tracks.xyz[track] - views.centres[tracks.view]
        for turn, shift in _modes(of_cameras, views):
            moved = np.cross(away, turn[tracks.view]) + shift[tracks.view]
            pulled = np.einsum("nij,nj->ni", square, moved)
            total = np.stack([np.bincount(track, pulled[:, i], number) for i in range(3)], axis=1)
            moved = np.einsum("tij,tj->ti", inverse, total)
            covariance += moved[:, :, None] * moved[:, None, :]
    return covariance


def _information(tracks: Tracks, views: Views) -> np.ndarray:
    """(N, 3, 3) what each observation tells of its point, where its errors are of 1 px."""
    xyz = tracks.xyz[tracks.track]
    focal = np.array([camera.mean_focal_length() for camera in views.cameras])[tracks.view]
    step = _STEP * np.abs(views.depth(xyz, tracks.view)) / focal
    columns = []
    for axis in np.eye(3):
        shift = axis * step[:, None]
        ahead, behind = (views.project(xyz + s, tracks.view) for s in (shift, -shift))
        columns.append((ahead - behind) / (2 * step[:, None]))
    jacobian = np.nan_to_num(np.stack(columns, axis=2))
    return np.asarray(np.einsum("nki,nkj->nij", jacobian, jacobian))


def _modes(covariance: np.ndarray, views: Views) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Independent errors of one standard deviation each that cameras have together, the largest
    first: rotations (V, 3) about the axes of the world, radians, and shifts (V, 3)."""
    centres = views.centres - views.centres.mean(axis=0)
    spread = float(np.sqrt((centres**2).sum(axis=1).mean())) or 1.0
    unit = np.tile([1.0] * 3 + [1 / spread] * 3, len(centres))
    values, vectors = np.linalg.eigh(unit[:, None] * covariance * unit)
    for value, vector in zip(
        values[: -_MODES - 1 : -1], vectors.T[: -_MODES - 1 : -1], strict=True
    ):
        mode = (np.sqrt(max(value, 0.0)) * vector / unit).reshape(-1, 6)
        yield np.einsum("vji,vj->vi", views.R, mode[:, :3]), mode[:, 3:]


def deviations(covariances: np.ndarray, views: Views) -> np.ndarray:
    """Standard deviations (T, 3) of points along the axes of their error ellipsoids, the longest
    first, in % of the largest distance between two cameras.

    They are larger than the covariances by what residuals do not tell: photos may agree on a place
    that is off the surface, as near edges. On a plane they are as much too large.
    """
    extent = max(largest_distance(views.centres), 1e-12)
    known = np.isfinite(covariances).all(axis=(1, 2))
    found = np.full((len(covariances), 3), np.nan)
    found[known] = np.linalg.eigvalsh(covariances[known])[:, ::-1]
    return np.asarray(_OFF_SURFACE * 100 / extent * np.sqrt(np.maximum(found, 0)))


def point_uncertainty_file(model: Path) -> Path:
    """The file beside a model that holds the uncertainties of its points."""
    return model.with_name(f"{model.name}_points_uncertainty.npz")


def write_point_uncertainties(path: Path, ids: np.ndarray, sigmas: np.ndarray) -> None:
    """Writes `ids` (T,) int64 of the points and `deviations` (T, 3) float32.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    data = io.BytesIO()
    np.savez_compressed(data, ids=ids, deviations=sigmas.astype(np.float32))
    write_whole(path, data.getvalue())

"""How sure the points of an adjusted model are: by observations, by relief, and by its cameras."""

from __future__ import annotations

import io
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from edm_hloc.base.files import write_whole
from edm_hloc.base.geometry import extent
from edm_hloc.tracks.adjustment import reprojection_errors, robust_scale
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views
from edm_hloc.tracks.kernel import PATCH_SIGMAS
from edm_hloc.tracks.uncertainty import RAYLEIGH, UNSEEN

_STEP = 0.5  # pixels, of the differences that derivatives are taken from
_SINGULAR = 1e-18  # determinant over the cubed size, of points at infinity
_MODES = 16  # in which the cameras' errors move the points; the others are far smaller
_SURROUNDING = 12  # nearest points that tell the relief around a point
_NEAREST = 4  # of these, that count however far they are
_REACH = 2.0  # deviations of a patch's weight, within which the others count
_PLANE = 2.5  # points that a plane through several takes the freedom of
_USUAL = 4.0  # residuals that the size of all residuals counts as, beside those of a point
_UPPER = np.triu_indices(3)


def point_covariances(
    tracks: Tracks,
    views: Views,
    as_mapped: Set[int],
    of_cameras: np.ndarray | None,
    config: TrackConfig,
) -> np.ndarray:
    """Covariances (T, 3, 3) of the points of a model in the world.

    The size of the errors in the photos is that of the residuals, of aligned points and of those
    as they were mapped each by themselves, and of those of the point. A patch shows more than the
    point: where the surface is no plane, photos agree on a place between its parts, which the
    scatter of aligned points about a plane tells. Errors of focal lengths and distortion do not
    count.

    Args:
        tracks: all points and observations.
        views: the adjusted cameras.
        as_mapped: ids of the points that were not aligned.
        of_cameras: `uncertainty.camera_covariances`; without, the cameras are taken as exact.
        config: the settings of the refinement.

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
    length = np.diff(tracks.start)
    residuals = np.bincount(track, (errors**2).sum(axis=1), number)
    expected = _USUAL + np.maximum(2 * length - 3, 1)
    noise *= np.sqrt((_USUAL + residuals * (UNSEEN / np.maximum(noise, 1e-12)) ** 2) / expected)
    covariance = inverse * noise[:, None, None] ** 2
    relief = _relief(tracks, views, ~mapped, config)
    covariance += relief[:, :, None] * relief[:, None, :]
    if of_cameras is not None:
        away = tracks.xyz[track] - views.centres[tracks.view]
        for turn, shift in _modes(of_cameras, views):
            moved = np.cross(away, turn[tracks.view]) + shift[tracks.view]
            pulled = np.einsum("nij,nj->ni", square, moved)
            total = np.stack([np.bincount(track, pulled[:, i], number) for i in range(3)], axis=1)
            moved = np.einsum("tij,tj->ti", inverse, total)
            covariance += moved[:, :, None] * moved[:, None, :]
    return covariance


def _relief(tracks: Tracks, views: Views, aligned: np.ndarray, config: TrackConfig) -> np.ndarray:
    """(T, 3) across the plane through the aligned points near each point, as long as the standard
    deviation of these from it."""
    source = tracks.xyz[aligned]
    if len(source) <= _SURROUNDING:
        return np.zeros((len(tracks.ids), 3))
    focal, side = (
        np.array(values)[tracks.view]
        for values in (
            [camera.mean_focal_length() for camera in views.cameras],
            [max(camera.width, camera.height) for camera in views.cameras],
        )
    )
    pixel = np.abs(views.depth(tracks.xyz[tracks.track], tracks.view)) / focal
    pixel *= np.maximum(1.0, side / config.max_side)
    length = np.maximum(np.diff(tracks.start), 1)
    patch = np.bincount(tracks.track, pixel, len(length)) / length
    patch *= config.patch_radii[-1] / PATCH_SIGMAS
    distance, nearest = cKDTree(source).query(tracks.xyz, k=_SURROUNDING + 1)  # with the point
    reach = np.maximum(np.maximum(_REACH * patch, distance[:, _NEAREST]), 1e-12)
    weight = np.exp(-((distance / reach[:, None]) ** 2) / 2)
    total = weight.sum(axis=1, keepdims=True)
    offsets = source[nearest]
    offsets -= np.einsum("tk,tki->ti", weight / total, offsets)[:, None]
    spread = np.einsum("tk,tki,tkj->tij", weight / total, offsets, offsets)
    values, vectors = np.linalg.eigh(spread)
    counted = total[:, 0] ** 2 / (weight**2).sum(axis=1)
    free = np.maximum(counted - _PLANE, 0.5) / counted
    scatter = np.sqrt(np.maximum(values[:, 0], 0) / free)
    return np.asarray(vectors[:, :, 0] * scatter[:, None])


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
    first, in % of the cameras' extent."""
    whole = max(extent(views.centres), 1e-12)
    known = np.isfinite(covariances).all(axis=(1, 2))
    found = np.full((len(covariances), 3), np.nan)
    found[known] = np.linalg.eigvalsh(covariances[known])[:, ::-1]
    return np.asarray(100 / whole * np.sqrt(np.maximum(found, 0)))


def point_uncertainty_file(model: Path) -> Path:
    """The file beside a model that holds the uncertainties of its points."""
    return model.with_name(f"{model.name}_points_uncertainty.npz")


def write_point_uncertainties(path: Path, ids: np.ndarray, sigmas: np.ndarray) -> None:
    """Writes `ids` (T,) int64 of the points and `deviations` (T, 3) float32.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    data = io.BytesIO()
    # Not compressed: who imports pycolmap before this package has its zlib, which may crash.
    np.savez(data, ids=ids, deviations=sigmas.astype(np.float32))
    write_whole(path, data.getvalue())

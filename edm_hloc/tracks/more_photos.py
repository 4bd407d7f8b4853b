"""Photos that may see a point and were never matched there, and points that are there twice."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.spatial import cKDTree

from edm_hloc.base.errors import ImageError
from edm_hloc.images.masks import read_mask
from edm_hloc.tracks.geometry import Tracks, Views, mean_directions

_COMMON_POINTS = 30  # that two photos see, from which on they show the same place
_PARTNERS = 20  # photos with the most common points, of each photo
_WIDEST = 0.5  # cosine of the angle between a photo's direction and the mean one of the track
_MARGIN = 4.0  # pixels from the border
_SAME = 0.5  # pixels between two points of a photo that are one


def possible_observations(
    tracks: Tracks, views: Views, most: int, masks: Mapping[str, Path], images: Path
) -> Tracks:
    """Observations that a model may lack: points projected into photos like those that see them.

    Args:
        tracks: points and observations.
        views: the photos' cameras.
        most: number of observations of a point up to which they are added, those in the directions
            nearest to the mean one first.
        masks: of photos, by name; nothing is observed where they are black.
        images: folder of the photos.

    Returns:
        The points with these observations only, of index −1.

    Raises:
        EdmHlocError: a mask is damaged or has another aspect ratio than its photo.
    """
    number = len(tracks.ids), len(views.ids)
    ones = np.ones(len(tracks.view), np.int32)
    seen = coo_array((ones, (tracks.track, tracks.view)), shape=number).tocsr()
    seen.data[:] = 1
    new = coo_array(seen @ _partners(seen) - (len(views.ids) + 1) * seen)  # < 0 where it is seen
    told = new.data > 0
    track, view = new.coords[0][told].astype(np.int64), new.coords[1][told].astype(np.int64)
    xyz = tracks.xyz[track]
    xy = views.project(xyz, view)
    away = views.centres[view] - xyz
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)
    cosine = np.einsum("ni,ni->n", away, mean_directions(tracks, views)[track])
    size = np.array([(camera.width, camera.height) for camera in views.cameras])[view]
    fits = ((xy > _MARGIN) & (xy < size - _MARGIN)).all(axis=1) & (cosine > _WIDEST)
    fits[fits] = _visible(xy[fits], view[fits], views, masks, images)
    order = np.lexsort([view, -cosine, track])
    order = order[fits[order]]
    length = np.bincount(track[order], minlength=number[0])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(length) - length, length)
    order = order[rank < most - np.diff(tracks.start)[track[order]]]
    none = np.full(len(order), -1)
    return Tracks.gathered(tracks.ids, tracks.xyz, track[order], view[order], none, xy[order])


def _visible(
    xy: np.ndarray, view: np.ndarray, views: Views, masks: Mapping[str, Path], images: Path
) -> np.ndarray:
    """(N,) which points (N, 2) of photos are outside the masked parts."""
    visible = np.ones(len(view), bool)
    for v, name in enumerate(views.names):
        own = np.flatnonzero(view == v) if name in masks else ()
        if len(own):
            with contextlib.suppress(ImageError):  # a photo that cannot be read gets no points
                # COLMAP's pixel frame has the corner of the photo at (0, 0), that of masks has not
                visible[own] = read_mask(masks[name], images / name).visible(xy[own] - 0.5)
    return visible


def _partners(seen: csr_array) -> csr_array:
    """(V, V) 1 where a photo is among those with the most points in common with another."""
    common = (seen.T @ seen).toarray()
    np.fill_diagonal(common, 0)
    ranked = np.argsort(-common, axis=1, kind="stable")[:, :_PARTNERS]
    partners = np.zeros(common.shape, np.int32)
    np.put_along_axis(partners, ranked, 1, axis=1)
    partners[common < _COMMON_POINTS] = 0
    return csr_array(partners)


def joined(first: Tracks, second: Tracks) -> tuple[Tracks, np.ndarray]:
    """The observations of both, of the same points; and which of them (N,) are of the first."""
    track = np.concatenate([first.track, second.track])
    view = np.concatenate([first.view, second.view])
    index = np.concatenate([first.index, second.index])
    xy = np.concatenate([first.xy, second.xy])
    own = np.repeat([True, False], [len(first.view), len(second.view)])
    order = np.lexsort([index, view, track])
    both = Tracks.gathered(first.ids, first.xyz, track[order], view[order], index[order], xy[order])
    return both, own[order]


def repeated_points(tracks: Tracks, views: Views) -> np.ndarray:
    """(T,) which points others repeat: most of their observations are those of a longer track."""
    pairs = []
    track = tracks.track
    for v in range(len(views.ids)):
        its = np.flatnonzero(tracks.view == v)
        if len(its) > 1:
            near = cKDTree(tracks.xy[its]).query_pairs(_SAME, output_type="ndarray")
            pairs.append(track[its[near]])
    length = np.diff(tracks.start)
    repeated = np.zeros(len(length), bool)
    if not pairs:
        return repeated
    found = np.concatenate(pairs)
    a, b = found[found[:, 0] != found[:, 1]].T
    shorter = np.where(
        (length[a] < length[b]) | ((length[a] == length[b]) & (a > b)), [a, b], [b, a]
    ).T
    both, times = np.unique(shorter, axis=0, return_counts=True)
    repeated[both[times * 2 > length[both[:, 0]], 0]] = True
    return repeated

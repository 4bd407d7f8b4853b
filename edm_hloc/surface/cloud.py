"""An oriented cloud of points: samples that neighbours support, smoothed as far as they are unsure.

A sample is moved along the normal of the plane through its neighbours, by the share of its variance
in all of the deviation from that plane. What is sure keeps its detail, and noise is averaged out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from edm_hloc.base.grid import blocks
from edm_hloc.surface.samples import Samples

Array = np.ndarray

_NEIGHBOURS = 20
_SUPPORT_NEIGHBOURS = 16
_SUPPORT_WITHIN = 3.0  # voxels
_MIN_SUPPORTERS = 4  # samples there, besides the sample itself
_MIN_MATCHES = 6  # of these and the sample
_FARTHEST = 6.0  # voxels: a sample whose last neighbour is farther is alone
_OUTLIER = 3.0  # deviations from the plane
_FLOOR = 0.3  # voxels, added to the deviations, so that no few samples decide on the plane
_ROUNDS = 2
_BLOCK = 50_000  # samples at a time


@dataclass(frozen=True)
class Cloud:
    """N points of surfaces.

    Attributes:
        points: (N, 3) in the frame of the model.
        normals: (N, 3) unit vectors on the side of the cameras.
        spacings: (N,) distance between neighbours that can be told apart: the edge of the voxel.
        matches: (N,) number of matches that each is the mean of; None where that is unknown.
    """

    points: Array
    normals: Array
    spacings: Array
    matches: Array | None = None

    def __len__(self) -> int:
        return len(self.points)


def oriented_cloud(samples: Samples) -> Cloud:
    """The cloud of the samples, one a voxel, that others support; empty if none are."""
    samples = samples[supported(samples)]
    points, normals = samples.points, np.zeros((0, 3))
    deviations = samples.weights**-0.5
    for step in range(_ROUNDS + 1):
        if len(samples) <= _NEIGHBOURS:
            none = np.zeros((0, 3))
            return Cloud(none, none, np.zeros(0))
        plane = _planes(points, deviations, samples)
        normals = plane.normals
        kept = plane.reach < _FARTHEST * samples.voxels
        if step < _ROUNDS:
            spread = plane.variances + deviations**2
            off = np.sum((points - plane.centres) * normals, axis=1)
            kept &= np.abs(off) < _OUTLIER * np.sqrt(spread)
            points = points - (deviations**2 / spread * off)[:, None] * normals
        points, normals, deviations = points[kept], normals[kept], deviations[kept]
        samples = samples[kept]
    return Cloud(points, normals, samples.voxels, samples.matches)


def supported(samples: Samples) -> Array:
    """(N,) bool: which samples have enough others, of enough matches, close by."""
    number = min(_SUPPORT_NEIGHBOURS + 1, len(samples))
    if number < 2:
        return np.zeros(len(samples), bool)
    distances, which = cKDTree(samples.points).query(samples.points, k=number)
    close = distances < _SUPPORT_WITHIN * samples.voxels[:, None]
    matches = np.where(close, samples.matches[which], 0).sum(axis=1)
    return np.asarray((close.sum(axis=1) > _MIN_SUPPORTERS) & (matches >= _MIN_MATCHES))


@dataclass(frozen=True)
class _Planes:
    """Planes through the neighbours of N points.

    Attributes:
        centres, normals: (N, 3).
        variances: (N,) of the neighbours from the plane, beyond what their deviations explain.
        reach: (N,) distance of the last neighbour.
    """

    centres: Array
    normals: Array
    variances: Array
    reach: Array


def _planes(points: Array, deviations: Array, samples: Samples) -> _Planes:
    tree = cKDTree(points)
    parts = [_planes_of(tree, points, deviations, samples, b) for b in blocks(len(points), _BLOCK)]
    return _Planes(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _planes_of(
    tree: cKDTree, points: Array, deviations: Array, samples: Samples, block: slice
) -> tuple[Array, Array, Array, Array]:
    voxels = samples.voxels[block, None]
    distances, which = tree.query(points[block], k=_NEIGHBOURS + 1)
    widths = np.maximum(2 * voxels, 2 / 3 * distances[:, 6:7])  # of a Gaussian of the distance
    near = np.exp(-0.5 * (distances / widths) ** 2) * (distances < 3 * widths)
    weights = near / (deviations[which] ** 2 + (_FLOOR * voxels) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    centres = np.einsum("nk,nki->ni", weights, points[which])
    offsets = points[which] - centres[:, None]
    spread = np.einsum("nk,nki,nkj->nij", weights, offsets, offsets)
    values, vectors = np.linalg.eigh(spread)
    normals = vectors[:, :, 0]
    normals *= np.where(np.sum(normals * samples.towards[block], axis=1) < 0, -1, 1)[:, None]
    explained = np.sum(weights * deviations[which] ** 2, axis=1)
    return centres, normals, np.maximum(values[:, 0] - explained, 0), distances[:, -1]

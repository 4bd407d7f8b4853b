"""Samples of the surfaces that photos show: every match triangulated by the poses of a model.

A model has a point for each keypoint, at most some thousands a photo. Its pairs have many times as
many matches, each at its own place of the surface. With the poses known, two rays give a point, and
the points of all pairs are averaged in voxels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.geometry import homogeneous
from edm_hloc.base.progress import track
from edm_hloc.matching.reader import RawMatchReader

Array = np.ndarray

VOXEL = 4.0  # px of a photo whose longer side has as many as the matcher saw: half a cell
_UNKNOWN_SIDE = 1024  # px of the longer side, where the matches do not tell
_MIN_ANGLE = np.deg2rad(3.0)  # between the rays of a match
_NOISE = 0.2  # voxels: deviation of a match across its ray, with what is wrong in the poses
_MAX_ERROR = 1 / 16  # voxels from the epipolar line
_MAX_TIMES_MODEL = 2.0  # … or mean reprojection errors of the model, where these are more
_FARTHEST = 1 << 17  # voxels from the middle: what is farther has no room in a voxel's number
_MERGE_AT = 2_000_000  # samples, which take some 200 MB


@dataclass(frozen=True)
class Samples:
    """N points of surfaces, each from one match or the weighted mean of several in a voxel.

    Attributes:
        points: (N, 3) in the frame of the model.
        towards: (N, 3) unit vectors towards the cameras.
        voxels: (N,) edge of the voxel, a power of two in units of the model.
        weights: (N,) inverse of the variance along the rays.
        matches: (N,) number of matches.
    """

    points: Array
    towards: Array
    voxels: Array
    weights: Array
    matches: Array

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, which: Array) -> Samples:
        return Samples(*(getattr(self, field.name)[which] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Samples]) -> Samples:
        """Those of all parts; there must be one."""
        return Samples(
            *(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Samples))
        )


class _View(NamedTuple):
    """A posed camera: its centre (3,), world from camera (3, 3), px of the focal length."""

    camera: pycolmap.Camera
    centre: Array
    world_from_camera: Array
    focal: float

    def rays(self, points: Array) -> Array:
        """(N, 3) unit directions, in the world, of points (N, 2) in hloc's frame; NaN where the
        lens shows nothing there."""
        rays = homogeneous(self.camera.cam_from_img(to_colmap(points.astype(np.float64))))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        return np.asarray(rays @ self.world_from_camera.T)


def samples_of(model: pycolmap.Reconstruction, matches: RawMatchReader) -> Samples:
    """The samples of all matches between photos of a model, one a voxel.

    Args:
        model: its cameras are for the photos as they were matched.
        matches: raw matches of its photos.

    Raises:
        EdmHlocError: the raw matches are damaged.
    """
    posed = posed_images(model)
    middle = np.median([image.projection_center() for image in posed.values()], axis=0)
    found: list[Samples] = []
    side = matched_side(matches)
    partners: dict[str, list[str]] = defaultdict(list)
    for name0, name1 in matches.pairs():
        if name0 in posed and name1 in posed:
            partners[name0].append(name1)
    views = {name: _view(model, image, middle) for name, image in posed.items()}
    limit = _MAX_TIMES_MODEL * model.compute_mean_reprojection_error()
    for name0 in track(sorted(partners), "Triangulating matches", "photo"):
        for name1 in partners[name0]:
            pair = matches.read(name0, name1)
            two = (views[name0], views[name1])
            found.append(_of_pair(two, pair.keypoints0, pair.keypoints1, side, limit))
        if sum(map(len, found)) > _MERGE_AT:
            found = [merged(Samples.joined(found))]
    samples = merged(Samples.joined(found)) if found else _none()
    return Samples(
        samples.points + middle, *(getattr(samples, f.name) for f in fields(samples)[1:])
    )


def matched_side(matches: RawMatchReader) -> float:
    """Pixels of a photo's longer side as the matcher saw it, at most."""
    return float(matches.provenance.get("resize_max") or _UNKNOWN_SIDE)


def _view(model: pycolmap.Reconstruction, image: pycolmap.Image, middle: Array) -> _View:
    camera = model.cameras[image.camera_id]
    pose = image.cam_from_world().inverse()
    return _View(
        camera, pose.translation - middle, pose.rotation.matrix(), camera.mean_focal_length()
    )


def _none() -> Samples:
    return Samples(*(np.zeros((0, 3)) for _ in range(2)), *(np.zeros(0) for _ in range(3)))


def _of_pair(
    views: tuple[_View, _View], points0: Array, points1: Array, side: float, limit: float
) -> Samples:  # fmt: skip
    """The samples of the matches of a pair that agree with the poses."""
    rays0, rays1 = views[0].rays(points0), views[1].rays(points1)
    found, depths, errors = midpoints(views[0].centre, rays0, views[1].centre, rays1)
    sines = np.linalg.norm(np.cross(rays0, rays1), axis=1)
    voxels_px = [VOXEL * max(v.camera.width, v.camera.height, side) / side for v in views]
    limits = [max(_MAX_ERROR * voxel, limit) for voxel in voxels_px]
    with np.errstate(invalid="ignore", divide="ignore"):
        agree = (sines > np.sin(_MIN_ANGLE)) & np.isfinite(found).all(axis=1)
        for view, depth, most in zip(views, depths, limits, strict=True):
            agree &= (depth > 0) & (errors * view.focal < most * depth)
    kept = np.flatnonzero(agree)
    edges = voxels_px[0] * depths[0][kept] / views[0].focal
    towards = -(rays0[kept] + rays1[kept])
    return Samples(
        points=found[kept],
        towards=towards / np.linalg.norm(towards, axis=1, keepdims=True),
        voxels=np.exp2(np.rint(np.log2(edges))),
        weights=(sines[kept] / (_NOISE * edges)) ** 2,
        matches=np.ones(len(kept)),
    )


def midpoints(
    centre0: Array, rays0: Array, centre1: Array, rays1: Array
) -> tuple[Array, tuple[Array, Array], Array]:
    """The points half way between two rays where these come closest.

    Args:
        centre0, centre1: (3,) origins of the rays.
        rays0, rays1: (N, 3) unit directions.

    Returns:
        The points (N, 3); their depths (N,) along the rays of both; and half the distance (N,)
        between the rays. Not finite where the rays are parallel.
    """
    across = centre1 - centre0
    cosines = np.sum(rays0 * rays1, axis=1)
    along0, along1 = rays0 @ across, rays1 @ across
    with np.errstate(invalid="ignore", divide="ignore"):
        depth0 = (along0 - cosines * along1) / (1 - cosines**2)
        depth1 = (cosines * along0 - along1) / (1 - cosines**2)
        nearest0 = centre0 + depth0[:, None] * rays0
        nearest1 = centre1 + depth1[:, None] * rays1
        gaps = np.linalg.norm(nearest0 - nearest1, axis=1)
    return (nearest0 + nearest1) / 2, (depth0, depth1), gaps / 2


def merged(samples: Samples) -> Samples:
    """One sample for each voxel, the mean of those in it by their weights."""
    cells = np.floor(samples.points / samples.voxels[:, None])
    near = np.abs(cells).max(axis=1, initial=0) < _FARTHEST
    samples, cells = samples[near], cells[near].astype(np.int64) + _FARTHEST
    levels = np.rint(np.log2(samples.voxels)).astype(np.int64)
    key = np.zeros(len(samples), np.int64) if not len(levels) else levels - levels.min()
    for axis in range(3):
        key = key * (2 * _FARTHEST) + cells[:, axis]
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    number = len(first)
    weights = np.bincount(which, samples.weights, number)

    def mean(values: Array) -> Array:
        columns: Iterable[Array] = values.T
        sums = [np.bincount(which, samples.weights * column, number) for column in columns]
        return np.stack(sums, axis=1) / weights[:, None]

    towards = mean(samples.towards)
    return Samples(
        points=mean(samples.points),
        towards=towards / np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-12),
        voxels=samples.voxels[first],
        weights=weights,
        matches=np.bincount(which, samples.matches, number),
    )

"""Cameras, tracks and local planes of a model as arrays, and the maps between photos they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from edm_hloc.base.binary_models import ModelArrays
from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import panorama_in

_STEP = 0.5  # pixels, of the differences that derivatives are taken from
_REWEIGHTED = 3  # fits of a plane
_FLAT = 0.1  # thickness of a neighbourhood over its extent, up to which it is a plane
_TOGETHER = 1000  # tracks of which photos are chosen at a time
_STEEPEST = 0.2  # cosine of the angle between a plane's normal and the direction it is seen from


def check_refinable(model: pycolmap.Reconstruction) -> None:
    """Raises EdmHlocError if a model has no points, or cameras that are not of a lens."""
    if not model.num_points3D():
        raise EdmHlocError(
            "The model has no 3D points, so there are no tracks to refine. Make them first: "
            "edm-hloc triangulate MODEL IMAGES OUT"
        )
    if panorama := panorama_in(model):
        raise EdmHlocError(
            f"The camera of {panorama[0]} is {panorama[1]}, without a focal length, which is not "
            "refined: cut them by edm-hloc views PANORAMAS VIEWS, and make the model of those."
        )


@dataclass(frozen=True)
class Views:
    """The registered photos of a model, sorted by name.

    Attributes:
        names: of the photos.
        ids: of the images.
        cameras: of the photos.
        R, t: (V, 3, 3) and (V, 3), cam_from_world.
    """

    names: tuple[str, ...]
    ids: np.ndarray
    cameras: tuple[pycolmap.Camera, ...]
    R: np.ndarray
    t: np.ndarray

    @classmethod
    def of(cls, model: pycolmap.Reconstruction) -> Views:
        posed = posed_images(model)
        poses = [image.cam_from_world().matrix() for image in posed.values()]
        return cls(
            tuple(posed),
            np.array([image.image_id for image in posed.values()]),
            tuple(model.cameras[image.camera_id] for image in posed.values()),
            np.array([pose[:, :3] for pose in poses]),
            np.array([pose[:, 3] for pose in poses]),
        )

    @property
    def centres(self) -> np.ndarray:
        """(V, 3) in the world."""
        return -np.einsum("vji,vj->vi", self.R, self.t)

    def project(self, xyz: np.ndarray, view: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of points (N, 3) in the photos (N,), COLMAP's frame; NaN behind them."""
        pixels = np.full((len(view), 2), np.nan)
        for v, its in _by_value(view, len(self.ids)):
            pixels[its] = self.cameras[v].img_from_cam(xyz[its] @ self.R[v].T + self.t[v])
        return pixels

    def depth(self, xyz: np.ndarray, view: np.ndarray) -> np.ndarray:
        """(N,) of points (N, 3) in the photos (N,)."""
        return np.einsum("ni,ni->n", self.R[view, 2], xyz) + self.t[view, 2]


def _by_value(values: np.ndarray, number: int) -> list[tuple[int, np.ndarray]]:
    """For each value below `number` that occurs, where."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(np.bincount(values, minlength=number))
    parts = np.split(order, ends[:-1])
    return [(v, its) for v, its in enumerate(parts) if len(its)]


@dataclass(frozen=True)
class Tracks:
    """The points of a model, and where photos see them.

    Attributes:
        ids: (T,) of the points.
        xyz: (T, 3) in the world.
        start: (T + 1,) where each point's observations start.
        view: (N,) photo of each observation, ascending within a track.
        index: (N,) number of its keypoint in the photo, −1 for one that the model does not have.
        xy: (N, 2) its pixel, COLMAP's frame.
    """

    ids: np.ndarray
    xyz: np.ndarray
    start: np.ndarray
    view: np.ndarray
    index: np.ndarray
    xy: np.ndarray

    @property
    def track(self) -> np.ndarray:
        """(N,) number of the point of each observation."""
        return np.repeat(np.arange(len(self.ids)), np.diff(self.start))

    @classmethod
    def of(cls, model: pycolmap.Reconstruction, views: Views) -> Tracks:
        """The points of a model, and what its registered photos see of them."""
        found = ModelArrays.of(model)
        order = np.argsort(views.ids)
        view = order[np.searchsorted(views.ids, found.image, sorter=order)]
        track = np.searchsorted(found.ids, found.point)
        return cls.gathered(found.ids, found.xyz, track, view, found.index, found.xy)

    @classmethod
    def gathered(
        cls,
        ids: np.ndarray,
        xyz: np.ndarray,
        track: np.ndarray,
        view: np.ndarray,
        index: np.ndarray,
        xy: np.ndarray,
    ) -> Tracks:
        """Tracks from observations in any order; `track` (N,) has the point of each."""
        order = np.lexsort([index, view, track])
        start = np.concatenate([[0], np.cumsum(np.bincount(track, minlength=len(ids)))])
        return cls(ids, xyz, start, view[order], index[order], xy[order])

    def at_points_of(self, model: pycolmap.Reconstruction) -> Tracks:
        """The same observations of points that have moved in their model."""
        xyz = np.array([model.points3D[i].xyz for i in self.ids.tolist()]).reshape(-1, 3)
        return Tracks(self.ids, xyz, self.start, self.view, self.index, self.xy)

    def part(self, rows: np.ndarray) -> tuple[Tracks, np.ndarray]:
        """Some of the points (their rows), and the numbers of their observations."""
        length = np.diff(self.start)[rows]
        start = np.concatenate([[0], np.cumsum(length)])
        its = np.arange(start[-1]) + np.repeat(self.start[rows] - start[:-1], length)
        return (
            Tracks(
                self.ids[rows],
                self.xyz[rows],
                start,
                self.view[its],
                self.index[its],
                self.xy[its],
            ),
            its,
        )

    def chosen(self, keep: np.ndarray) -> Tracks:
        """The observations that are kept (N,), in their order, of all points."""
        length = np.bincount(self.track[keep], minlength=len(self.ids))
        start = np.concatenate([[0], np.cumsum(length)])
        return Tracks(self.ids, self.xyz, start, self.view[keep], self.index[keep], self.xy[keep])


def viewing_directions(tracks: Tracks, views: Views) -> np.ndarray:
    """(N, 3) unit vectors from each observation's point to its camera."""
    away = views.centres[tracks.view] - tracks.xyz[tracks.track]
    return away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-12)


def mean_directions(tracks: Tracks, views: Views) -> np.ndarray:
    """(T, 3) unit vectors from each point to the middle of its cameras."""
    total = np.zeros((len(tracks.ids), 3))
    np.add.at(total, tracks.track, viewing_directions(tracks, views))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-9, total / np.maximum(length, 1e-9), [[0.0, 0.0, 1.0]])


def plane_normals(xyz: np.ndarray, facing: np.ndarray, neighbours: int) -> np.ndarray:
    """Normals (T, 3) of planes through the nearest points, towards `facing` (T, 3).

    Where the neighbours form no plane, or one that is seen at a grazing angle, it is `facing`.
    """
    if len(xyz) <= neighbours:
        return facing
    _, nearest = cKDTree(xyz).query(xyz, k=neighbours)
    offsets = xyz[nearest] - xyz[nearest].mean(axis=1, keepdims=True)
    weight = np.ones(offsets.shape[:2])
    for _ in range(_REWEIGHTED):
        total = weight.sum(axis=1)[:, None]
        centre = np.einsum("tk,tki->ti", weight, offsets) / total
        offsets = offsets - centre[:, None]
        spread = np.einsum("tk,tki,tkj->tij", weight, offsets, offsets) / total[..., None]
        values, vectors = np.linalg.eigh(spread)
        normal = vectors[:, :, 0]
        away = np.abs(np.einsum("tki,ti->tk", offsets, normal))
        scale = np.maximum(2 * np.median(away, axis=1, keepdims=True), 1e-12)
        weight = 1 / (1 + (away / scale) ** 2)
    cosine = np.einsum("ti,ti->t", normal, facing)
    normal = normal * np.sign(cosine)[:, None]
    values = np.maximum(values, 0)
    sure = (values[:, 0] < _FLAT**2 * values[:, 1]) & (np.abs(cosine) > _STEEPEST)
    return np.where(sure[:, None], normal, facing)


def surface_maps(
    tracks: Tracks, views: Views, normals: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """How each observation's pixel moves (N, 3, 2) by shifts along its point's plane.

    A shift s moves the pixel by Js / (1 + e·s), with J the first two rows and e the third: farther
    parts of the plane are smaller. In photos from both sides of the plane's normal this bends
    patches in opposite ways, as a point does that lies behind the plane.

    Args:
        tracks: points and observations.
        views: the cameras.
        normals: (T, 3) of the planes.
        start: (N, 2) pixels that the points are projected to.
    """
    helper = np.eye(3)[np.argmin(np.abs(normals), axis=1)]
    first = np.cross(normals, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    axes = np.stack([first, np.cross(normals, first)], axis=1)
    track, view = tracks.track, tracks.view
    xyz = tracks.xyz[track]
    focal = np.array([camera.mean_focal_length() for camera in views.cameras])[view]
    depth = views.depth(xyz, view)
    step = _STEP * np.abs(depth) / focal
    columns = []
    for k in range(2):
        away = np.einsum("ni,ni->n", axes[track, k], views.R[view, 2]) / depth
        ahead = views.project(xyz + axes[track, k] * step[:, None], view)
        moved = (ahead - start) * (1 / step + away)[:, None]  # of which step · J · (1 + e·s)⁻¹
        columns.append(np.column_stack([moved, away]))
    return np.stack(columns, axis=2)


def determinants(maps: np.ndarray) -> np.ndarray:
    """(N,) of the first two rows of maps (N, 2 or 3, 2)."""
    return np.asarray(maps[:, 0, 0] * maps[:, 1, 1] - maps[:, 0, 1] * maps[:, 1, 0])


def reference_observations(tracks: Tracks, maps: np.ndarray) -> np.ndarray:
    """(T,) the observation of each point that shows its surface at the middle scale."""
    scale = np.abs(determinants(maps))
    order = np.lexsort([scale, tracks.track])
    middle = tracks.start[:-1] + (np.diff(tracks.start) - 1) // 2
    return order[np.clip(middle, 0, len(order) - 1)]


def spread_out(tracks: Tracks, views: Views, most: int) -> np.ndarray:
    """(N,) which observations are among the `most` of their point that are spread in viewpoint."""
    chosen = np.ones(len(tracks.view), bool)
    directions = viewing_directions(tracks, views)
    length = np.diff(tracks.start)
    long = np.flatnonzero(length > most)
    long = long[np.argsort(length[long], kind="stable")]  # of about the same length together
    for k in range(0, len(long), _TOGETHER):
        rows = long[k : k + _TOGETHER]
        place = np.arange(length[rows].max())
        its = tracks.start[rows, None] + np.minimum(place, length[rows, None] - 1)
        there = place < length[rows, None]
        taken = _farthest(directions[its], there, most)
        chosen[its[there]] = taken[there]
    return chosen


def _farthest(directions: np.ndarray, there: np.ndarray, most: int) -> np.ndarray:
    """(T, L) which `most` of the unit vectors (T, L, 3) of each row, those that are `there`, are
    far from each other, from the middle on."""
    every = np.arange(len(directions))
    taken = ~there
    nearest = np.full(there.shape, -np.inf)
    middle = np.einsum("tli,tl->ti", directions, there)
    latest = np.argmax(
        np.where(there, np.einsum("tli,ti->tl", directions, middle), -np.inf), axis=1
    )
    for _ in range(most):
        taken[every, latest] = True
        along = np.einsum("tli,ti->tl", directions, directions[every, latest])
        nearest = np.maximum(nearest, along)
        latest = np.argmin(np.where(taken, np.inf, nearest), axis=1)
    return taken & there

"""Finds photos of different places that a model takes for one: equal walls of a courtyard.

The matches of two places that look alike are as good as true ones, and a model that takes them
folds: all walls lie on each other. What is not repeated gives it away: a door that only one of the
photos shows although, in the model, both look at it from the same side (conflicting observations,
Heinly et al., "Correcting for Duplicate Scene Structure in Sparse 3D Reconstruction", ECCV 2014).
It needs no training, and a model that is right has few such photos. What is seen in few photos
counts most, since repeated things are seen in many.

An object on a turntable before a wall has the same signs: there the model is right, and the wall is
not part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycolmap
from scipy.sparse import coo_array

from edm_hloc.base.colmap import posed_images

logger = logging.getLogger(__name__)

_CELLS = 32  # along the longer side of a photo
_MIN_TRACK = 3  # photos that have seen a point which another photo should see
_MIN_SHARED = 30  # points of two photos that are compared
_MAX_COMPARED = 1500  # pairs, evenly over all
_MAX_ANGLE = 20.0  # degrees between the directions from which two photos see a point, and
_MAX_SCALE = 1.4  # ratio of their distances from it, up to which both should see it
_MARGIN = 0.04  # of the longer side: nearer to the border a point may be outside
_FRONT = 0.93  # of the depth of a point: what is nearer hides it
_MIN_CELLS = 25  # of a photo that the other one should see; with fewer nothing is said
_CONFLICT = 0.5  # share below which two photos show different things
_MIN_CONFLICTS = 3  # pairs, and
_MIN_OF_COMPARED = 0.25  # of those compared. In models that are right 0 to 0.12, where the photos
# see a thing from far apart; in folded ones, and of objects that were turned, 0.4 to 0.65.
_RARITY = 2.0  # exponent: things seen in n photos weigh n to minus this


@dataclass(frozen=True)
class ViewAgreement:
    """How far two photos that look at the same points of a model show the same.

    Attributes:
        images: their ids, the smaller one first.
        share: of the places of either photo that the other one should show, those where they have a
            point in common, rare things counting most; the smaller of the two shares, in [0, 1].
    """

    images: tuple[int, int]
    share: float


def view_agreements(model: pycolmap.Reconstruction) -> list[ViewAgreement]:
    """The agreement of all photos of a model that see many points from nearly the same side.

    Args:
        model: with poses and points.
    """
    scene = _Scene.of(model)
    found = []
    pairs = list(scene.pairs_that_look_alike())
    for a, b in pairs[:: -(-len(pairs) // _MAX_COMPARED) or 1]:
        first, second = _share(scene, a, b), _share(scene, b, a)
        if first is not None and second is not None:
            found.append(ViewAgreement((scene.ids[a], scene.ids[b]), min(first, second)))
    return found


def shown_share(model: pycolmap.Reconstruction, a: int, b: int) -> float | None:
    """The share of what image b should show of image a that it does, in [0, 1].

    Args:
        model: with poses and points.
        a, b: ids of two posed images.

    Returns:
        None where b should show too little of a to tell.
    """
    scene = _Scene.of(model)
    return _share(scene, scene.ids.index(a), scene.ids.index(b))


@dataclass(frozen=True)
class ConflictSummary:
    """Photos that a model puts before the same place although they show different things.

    Attributes:
        pairs: names of the two photos of each such pair, those that agree least first; empty where
            so few disagree that it may be by chance.
        compared: number of pairs of photos that see the same points from the same side.
    """

    pairs: tuple[tuple[str, str], ...]
    compared: int


def find_conflicts(model: pycolmap.Reconstruction) -> ConflictSummary:
    """The pairs of photos of a model that disagree, if they are many; says so.

    Args:
        model: with poses and points.
    """
    agreements = sorted(view_agreements(model), key=lambda agreement: agreement.share)
    pairs = [a.images for a in agreements if a.share < _CONFLICT]
    if len(pairs) < max(_MIN_CONFLICTS, _MIN_OF_COMPARED * len(agreements)):
        pairs = []
    name = {image.image_id: image.name for image in posed_images(model).values()}
    names = tuple((name[a], name[b]) for a, b in pairs)
    if names:
        logger.warning(
            "%d of %d pairs of photos that are in the same place in the model show different "
            "things there, as %s and %s do. Either places that look alike lie on each other, and "
            "the model is wrong; or an object was turned before a background, which is not part of "
            "the model.",
            len(names),
            len(agreements),
            *names[0],
        )
    return ConflictSummary(names, len(agreements))


@dataclass(frozen=True)
class _View:
    """A posed photo; its points are those that it observes.

    Attributes:
        camera, cam_from_world: of the photo.
        centre: (3,) of the camera, in the world.
        points: (N,) sorted rows of `_Scene.xyz`.
        cells: (N, 2) rows and columns of the cells in which it sees them.
        nearest: (rows, columns) depth of the nearest point of each cell, inf without any.
    """

    camera: pycolmap.Camera
    cam_from_world: np.ndarray
    centre: np.ndarray
    points: np.ndarray
    cells: np.ndarray
    nearest: np.ndarray

    @classmethod
    def of(
        cls, image: pycolmap.Image, camera: pycolmap.Camera, row: dict[int, int], xyz: np.ndarray
    ) -> _View:
        observed = [(row[p.point3D_id], *p.xy) for p in image.get_observation_points2D()]
        table = np.array(observed, dtype=np.float64).reshape(-1, 3)
        table = table[np.unique(table[:, 0], return_index=True)[1]]
        points = table[:, 0].astype(np.int64)
        pose = image.cam_from_world().matrix()
        shape = _shape(camera)
        cells = np.clip(_cells_of(table[:, 1:], camera), 0, np.subtract(shape, 1))
        nearest = np.full(shape, np.inf)
        np.minimum.at(nearest, tuple(cells.T), (xyz[points] @ pose[2, :3] + pose[2, 3]))
        return cls(camera, pose, -pose[:, :3].T @ pose[:, 3], points, cells, nearest)


@dataclass(frozen=True)
class _Scene:
    """The posed photos of a model by number, and its points.

    Attributes:
        ids: of the images.
        views: of these.
        xyz: (P, 3) points.
        length: (P,) number of photos that see each.
    """

    ids: Sequence[int]
    views: Sequence[_View]
    xyz: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, model: pycolmap.Reconstruction) -> _Scene:
        row = {point_id: i for i, point_id in enumerate(model.points3D)}
        xyz = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
        length = np.array([point.track.length() for point in model.points3D.values()], dtype=int)
        images = sorted(posed_images(model).values(), key=lambda image: image.image_id)
        views = [_View.of(image, model.cameras[image.camera_id], row, xyz) for image in images]
        return cls([image.image_id for image in images], views, xyz, length)

    def pairs_that_look_alike(self) -> Iterator[tuple[int, int]]:
        """Numbers of two views that see many points in common, and these from the same side."""
        number = np.repeat(np.arange(len(self.views)), [len(view.points) for view in self.views])
        points = np.concatenate([view.points for view in self.views] or [np.zeros(0, int)])
        shape = (len(self.views), max(1, len(self.xyz)))
        seen = coo_array((np.ones(len(points), np.int32), (number, points)), shape).tocsr()
        shared = (seen @ seen.T).tocoo()
        rows, columns = shared.coords
        chosen = np.nonzero((rows < columns) & (shared.data >= _MIN_SHARED))[0]
        for a, b in zip(rows[chosen], columns[chosen], strict=True):
            common = np.intersect1d(self.views[a].points, self.views[b].points)
            same = self.seen_from_same_side(int(a), int(b), common[:: -(-len(common) // 64)])
            if same.mean() >= 0.5:
                yield int(a), int(b)

    def seen_from_same_side(self, a: int, b: int, points: np.ndarray) -> np.ndarray:
        """(N,) bool, whether two views see points (N,) from similar directions and distances."""
        to_a, to_b = (self.views[i].centre - self.xyz[points] for i in (a, b))
        far_a, far_b = (np.linalg.norm(ray, axis=1) for ray in (to_a, to_b))
        cosine = (to_a * to_b).sum(axis=1) / np.maximum(far_a * far_b, 1e-12)
        ratio = np.maximum(far_a, far_b) / np.maximum(np.minimum(far_a, far_b), 1e-12)
        return np.asarray((cosine > np.cos(np.radians(_MAX_ANGLE))) & (ratio < _MAX_SCALE))


def _share(scene: _Scene, a: int, b: int) -> float | None:
    """The share of what view b should show of view a that it does; None if that is too little."""
    first, second = scene.views[a], scene.views[b]
    expected = scene.length[first.points] >= _MIN_TRACK
    expected &= scene.seen_from_same_side(a, b, first.points)
    points, cells = first.points[expected], first.cells[expected]
    there = scene.xyz[points] @ second.cam_from_world[:, :3].T + second.cam_from_world[:, 3]
    in_front = there[:, 2] > 0
    points, cells, there = points[in_front], cells[in_front], there[in_front]
    if not len(points):
        return None
    pixels = np.asarray(second.camera.img_from_cam(there))
    size = np.array([second.camera.width, second.camera.height])
    margin = _MARGIN * size.max()
    inside = ((pixels > margin) & (pixels < size - margin)).all(axis=1)
    points, cells, pixels, depth = points[inside], cells[inside], pixels[inside], there[inside, 2]
    nearest = second.nearest[tuple(_cells_of(pixels, second.camera).T)]
    seen = np.isfinite(nearest) & (nearest > _FRONT * depth)  # it shows something, not nearer
    points, cells = points[seen], cells[seen]
    found = np.isin(points, second.points, assume_unique=True)
    shape = _shape(first.camera)
    visible, common = np.zeros(shape, bool), np.zeros(shape, bool)
    visible[tuple(cells.T)] = True
    common[tuple(cells[found].T)] = True
    if visible.sum() < _MIN_CELLS:
        return None
    # of a cell and those around it: not every point of a repeated thing is in all photos
    photos = np.zeros(shape, np.float32)
    np.maximum.at(photos, tuple(cells.T), scene.length[points].astype(np.float32))
    around = np.asarray(cv2.dilate(photos, np.ones((3, 3), np.uint8)))
    weight = around[visible] ** -_RARITY
    return float(weight[common[visible]].sum() / weight.sum())


def _shape(camera: pycolmap.Camera) -> tuple[int, int]:
    """Rows and columns of the cells of a photo."""
    side = max(camera.width, camera.height) / _CELLS
    return int(np.ceil(camera.height / side)), int(np.ceil(camera.width / side))


def _cells_of(pixels: np.ndarray, camera: pycolmap.Camera) -> np.ndarray:
    """(N, 2) rows and columns of the cells of points (N, 2) in pixels."""
    side = max(camera.width, camera.height) / _CELLS
    return (pixels[:, ::-1] / side).astype(int)

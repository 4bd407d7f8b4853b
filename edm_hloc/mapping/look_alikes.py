"""Finds photos of different places that a model takes for one: equal walls of a courtyard.

The matches of two places that look alike are as good as true ones, and a model that takes them
folds: all walls lie on each other. What is not repeated gives it away: a door that only one of the
photos shows although, in the model, both look at it from the same side (conflicting observations,
Heinly et al., "Correcting for Duplicate Scene Structure in Sparse 3D Reconstruction", ECCV 2014).
It needs no training, and a model that is right has few such photos. What is seen in few photos
counts most, since repeated things are seen in many.

Two photos show the same where they have verified matches, even if no track reaches both: tracks
break, most of all in vegetation. For the same reason pairs that were not matched say nothing.

An object on a turntable before a wall may have the same signs: there the model is right, and the
wall is not part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from scipy.sparse import coo_array

from edm_hloc.base.binary_models import ModelArrays
from edm_hloc.base.colmap import open_database, posed_images, verified_pairs
from edm_hloc.mapping.database_reading import IdPair

logger = logging.getLogger(__name__)

_DISAGREEMENT = 0.4  # share below which two photos show different things
_ENOUGH = 10  # compared pairs; where there are fewer, photos further apart are compared, too,
_WIDE_ANGLE = 20.0  # degrees, up to this, and
_WIDE_DISAGREEMENT = 0.2  # with this share, as right ones have less in common there

_CELLS = 32  # along the longer side of a photo
_MIN_TRACK = 3  # photos that have seen a point which another photo should see
_MIN_SHARED = 30  # points of two photos that are compared
_MAX_COMPARED = 1500  # pairs, evenly over all
_MIN_MATCHES = 15  # verified matches of a pair that counts as matched
_MAX_ANGLE = 10.0  # degrees between the directions from which two photos see a point, and
_MAX_SCALE = 1.4  # ratio of their distances from it, up to which both should see it
_MARGIN = 0.04  # of the longer side: nearer to the border a point may be outside
_FRONT = 0.93  # of the depth of a point: what is nearer hides it
_MIN_CELLS = 25  # of a photo that the other one should see; with fewer nothing is said
_MIN_CONFLICTS = 3  # pairs, and
_MIN_OF_COMPARED = 0.3  # of those compared. In models that are right 0 to 0.22, most in woods,
# and 0.35 of an object that was turned; in folded ones 0.36 to 0.75.
_TOGETHER = 0.3  # of the points of a photo in another one: they look at the same place
_RARITY = 2.0  # exponent: things seen in n photos weigh n to minus this


@dataclass(frozen=True)
class ViewAgreement:
    """How far two photos that look at the same points of a model show the same.

    Attributes:
        images: their ids, the smaller one first.
        shares: of the places of the first photo that the second one should show, those where they
            have verified matches or points in common, rare things counting most, in [0, 1]; and the
            other way round.
        limit: share below which they show different things.
    """

    images: IdPair
    shares: tuple[float, float]
    limit: float

    @property
    def share(self) -> float:
        """The smaller of the two shares."""
        return min(self.shares)

    @property
    def disagree(self) -> bool:
        """Whether the two photos show different things."""
        return self.share < self.limit


def view_agreements(model: pycolmap.Reconstruction, database: Path) -> list[ViewAgreement]:
    """The agreement of all matched photos of a model that see many points from nearly one side.

    Few photos may have few such pairs, or none. Then those further apart are compared as well.

    Args:
        model: with poses and points.
        database: with the keypoints and verified matches of its photos, by their names.
    """
    scene = _Scene.of(model)
    with open_database(database) as db:
        matches = _Matches.of(db, model, scene)
        found = _agreements(scene, matches, _MAX_ANGLE, _DISAGREEMENT)
        if len(found) < _ENOUGH:
            near = {agreement.images for agreement in found}
            wide = _agreements(scene, matches, _WIDE_ANGLE, _WIDE_DISAGREEMENT)
            found += [agreement for agreement in wide if agreement.images not in near]
    return found


def _agreements(
    scene: _Scene, matches: _Matches, angle: float, limit: float
) -> list[ViewAgreement]:
    """The agreement of photos that see many points from directions less than an angle apart."""
    pairs = list(scene.pairs_that_look_alike(matches.pairs, angle))
    found = []
    for a, b in pairs[:: -(-len(pairs) // _MAX_COMPARED) or 1]:
        in_a, in_b = matches.cells(a, b)
        first, second = (
            _share(scene, one, other, cells, angle)
            for one, other, cells in ((a, b, in_a), (b, a, in_b))
        )
        if first is not None and second is not None:
            found.append(ViewAgreement((scene.ids[a], scene.ids[b]), (first, second), limit))
    return found


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


def many_conflicts(agreements: Sequence[ViewAgreement]) -> list[IdPair]:
    """The pairs that disagree, those that agree least first; none if so few may be by chance."""
    ordered = sorted(agreements, key=lambda agreement: agreement.share)
    pairs = [a.images for a in ordered if a.disagree]
    few = len(pairs) < max(_MIN_CONFLICTS, _MIN_OF_COMPARED * len(agreements))
    return [] if few else pairs


def stay_together(model: pycolmap.Reconstruction, pairs: Sequence[IdPair]) -> int:
    """Number of pairs of images that a model has before the same place.

    Args:
        model: with poses and points.
        pairs: ids of images. A pair of which one is not in the model does not count.
    """
    scene = _Scene.of(model)
    number = {image_id: k for k, image_id in enumerate(scene.ids)}
    there = [(number[a], number[b]) for a, b in pairs if a in number and b in number]
    return sum(
        scene.overlap(a, b) >= _TOGETHER and scene.overlap(b, a) >= _TOGETHER for a, b in there
    )


def find_conflicts(model: pycolmap.Reconstruction, database: Path) -> ConflictSummary:
    """The pairs of photos of a model that disagree, if they are many; says so.

    A model as the mapper leaves it, whose lens is not yet known, can have a few more of them.

    Args:
        model, database: as for `view_agreements`.
    """
    agreements = view_agreements(model, database)
    pairs = many_conflicts(agreements)
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
        cls,
        pose: np.ndarray,
        camera: pycolmap.Camera,
        seen: tuple[np.ndarray, np.ndarray],
        xyz: np.ndarray,
    ) -> _View:
        """Of the rows of `xyz` (N,) that it sees and their pixels (N, 2)."""
        points, first = np.unique(seen[0], return_index=True)
        cells = _cells_within(seen[1][first], camera)
        nearest = np.full(_shape(camera), np.inf)
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
        found = ModelArrays.of(model)
        rows = np.searchsorted(found.ids, found.point)
        order = np.argsort(found.image, kind="stable")
        images = sorted(posed_images(model).values(), key=lambda image: image.image_id)
        ids = [image.image_id for image in images]
        ends = (np.searchsorted(found.image[order], ids, side) for side in ("left", "right"))
        views = [
            _View.of(
                image.cam_from_world().matrix(),
                model.cameras[image.camera_id],
                (rows[order[start:end]], found.xy[order[start:end]]),
                found.xyz,
            )
            for image, start, end in zip(images, *ends, strict=True)
        ]
        return cls(ids, views, found.xyz, np.bincount(rows, minlength=len(found.ids)))

    def pairs_that_look_alike(
        self, among: Collection[tuple[int, int]], angle: float
    ) -> Iterator[tuple[int, int]]:
        """Those that see many points in common, and these from the same side, of pairs of views."""
        number = np.repeat(np.arange(len(self.views)), [len(view.points) for view in self.views])
        points = np.concatenate([view.points for view in self.views] or [np.zeros(0, int)])
        shape = (len(self.views), max(1, len(self.xyz)))
        seen = coo_array((np.ones(len(points), np.int32), (number, points)), shape).tocsr()
        shared = (seen @ seen.T).tocoo()
        rows, columns = shared.coords
        chosen = np.nonzero((rows < columns) & (shared.data >= _MIN_SHARED))[0]
        for a, b in zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True):
            if (a, b) not in among:
                continue
            points = self.views[b].points
            common = points[_among(self.views[a].points, points)]
            same = self.seen_from_same_side(a, b, common[:: -(-len(common) // 64)], angle)
            if same.mean() >= 0.5:
                yield a, b

    def overlap(self, a: int, b: int) -> float:
        """The share of the points of view a that lie in the photo of b, seen from the same side."""
        first, second = self.views[a], self.views[b]
        points = first.points[self.seen_from_same_side(a, b, first.points, _WIDE_ANGLE)]
        there = self.xyz[points] @ second.cam_from_world[:, :3].T + second.cam_from_world[:, 3]
        there = there[there[:, 2] > 0]
        if not len(there):
            return 0.0
        pixels = np.asarray(second.camera.img_from_cam(there))
        inside = (pixels > 0) & (pixels < [second.camera.width, second.camera.height])
        return float(inside.all(axis=1).sum() / len(first.points))

    def seen_from_same_side(self, a: int, b: int, points: np.ndarray, angle: float) -> np.ndarray:
        """(N,) bool, whether two views see points (N,) from similar directions and distances.

        Args:
            a, b: numbers of the views.
            points: rows of `xyz`.
            angle: between the directions, in degrees, up to which they are similar.
        """
        to_a, to_b = (self.views[i].centre - self.xyz[points] for i in (a, b))
        far_a, far_b = (np.linalg.norm(ray, axis=1) for ray in (to_a, to_b))
        cosine = (to_a * to_b).sum(axis=1) / np.maximum(far_a * far_b, 1e-12)
        ratio = np.maximum(far_a, far_b) / np.maximum(np.minimum(far_a, far_b), 1e-12)
        return np.asarray((cosine > np.cos(np.radians(angle))) & (ratio < _MAX_SCALE))


@dataclass(frozen=True)
class _Matches:
    """Where in the photos of a scene their verified matches are.

    Attributes:
        db: the database.
        ids: of the views of the scene in the database.
        keypoint_cells: of a view, (N, 2) rows and columns of its keypoints' cells.
        pairs: numbers of two views, the smaller first, with enough verified matches.
    """

    db: pycolmap.Database
    ids: Sequence[int]
    keypoint_cells: Callable[[int], np.ndarray]
    pairs: frozenset[tuple[int, int]]

    @classmethod
    def of(cls, db: pycolmap.Database, model: pycolmap.Reconstruction, scene: _Scene) -> _Matches:
        """Of the photos with the names of those of a model."""
        by_name = {image.name: image.image_id for image in db.read_all_images()}
        ids = [by_name[model.images[image_id].name] for image_id in scene.ids]
        number = {image_id: k for k, image_id in enumerate(ids)}
        pairs = set()
        for pair in verified_pairs(db, _MIN_MATCHES):
            a, b = sorted(number.get(i, -1) for i in pair)
            if a >= 0:
                pairs.add((a, b))

        @cache
        def keypoint_cells(view: int) -> np.ndarray:
            pixels = db.read_keypoints(ids[view])[:, :2]
            return _cells_within(pixels, scene.views[view].camera).astype(np.uint8)

        return cls(db, ids, keypoint_cells, frozenset(pairs))

    def cells(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) rows and columns of the cells of the matches of two views, in either."""
        inliers = self.db.read_two_view_geometry(self.ids[a], self.ids[b]).inlier_matches
        in_a, in_b = (
            self.keypoint_cells(v)[side] for v, side in zip((a, b), inliers.T, strict=True)
        )
        return in_a, in_b


def _share(scene: _Scene, a: int, b: int, matched: np.ndarray, angle: float) -> float | None:
    """The share of what view b should show of view a that it does; None if that is too little.

    Args:
        scene: the views.
        a, b: their numbers.
        matched: (N, 2) rows and columns of the cells of view a with matches to view b.
        angle: see `_Scene.seen_from_same_side`.
    """
    first, second = scene.views[a], scene.views[b]
    expected = scene.length[first.points] >= _MIN_TRACK
    expected &= scene.seen_from_same_side(a, b, first.points, angle)
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
    found = _among(second.points, points)
    shape = _shape(first.camera)
    visible, common = np.zeros(shape, bool), np.zeros(shape, bool)
    visible[tuple(cells.T)] = True
    common[tuple(matched.T)] = True
    common[tuple(cells[found].T)] = True
    if visible.sum() < _MIN_CELLS:
        return None
    # of a cell and those around it: not every point of a repeated thing is in all photos
    photos = np.zeros(shape, np.float32)
    np.maximum.at(photos, tuple(cells.T), scene.length[points].astype(np.float32))
    around = np.asarray(cv2.dilate(photos, np.ones((3, 3), np.uint8)))
    weight = around[visible] ** -_RARITY
    return float(weight[common[visible]].sum() / weight.sum())


def _among(members: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(N,) whether numbers (N,) are among sorted ones (M,)."""
    if not len(members):
        return np.zeros(len(numbers), bool)
    at = np.minimum(np.searchsorted(members, numbers), len(members) - 1)
    return np.asarray(members[at] == numbers)


def _shape(camera: pycolmap.Camera) -> tuple[int, int]:
    """Rows and columns of the cells of a photo."""
    side = max(camera.width, camera.height) / _CELLS
    return int(np.ceil(camera.height / side)), int(np.ceil(camera.width / side))


def _cells_of(pixels: np.ndarray, camera: pycolmap.Camera) -> np.ndarray:
    """(N, 2) rows and columns of the cells of points (N, 2) in pixels."""
    side = max(camera.width, camera.height) / _CELLS
    return (pixels[:, ::-1] / side).astype(int)


def _cells_within(pixels: np.ndarray, camera: pycolmap.Camera) -> np.ndarray:
    """The same, of points that may lie on the border or outside: the nearest cells of the photo."""
    return np.clip(_cells_of(pixels, camera), 0, np.subtract(_shape(camera), 1))

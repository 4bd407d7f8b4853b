"""Which photo shows each triangle of a mesh best, with few seams between different ones.

Each triangle has candidates: the photos that see it, those from near, squarely and in focus before
others.
Photos that show another colour there than most do (a passer-by, a reflection) count little.
Neighbouring triangles prefer the same photo; the best choice for all is sought by belief
propagation, as in Lempitsky and Ivanov, "Seamless Mosaicing of Image-Based Texture Maps", 2007.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from edm_hloc.base.compiled import floats
from edm_hloc.base.errors import ImageError
from edm_hloc.base.log import warn_of_skipped
from edm_hloc.base.progress import track
from edm_hloc.images.load import colours_at
from edm_hloc.surface.colours import ReducedPhoto
from edm_hloc.surface.ply import Mesh
from edm_hloc.surface.projection import Projected
from edm_hloc.surface.raster import draw_inverse_depths

Array = np.ndarray

_CANDIDATES = 8
_LEAST_FACING = 0.15  # cosine between normal and ray: about 81°
_BORDER = 0.01  # of the photo's longer side, where lenses are worst
_BESIDE = 2  # px of the reduced photo to what is in front: there it may show that instead
_BESIDE_SCORE = 0.1
_NOISE = 2.0  # grey levels a pixel, that are no contrast
_BLUR = 2.0  # px of the reduced photo
_SEAM = 0.3  # cost of an edge between two photos; a photo that is not the best costs up to 1
_OTHER_COLOUR = 1.5  # cost of a photo that shows another colour than most
_LEAST_OTHER = 25.0  # grey levels that are another colour, and three times the usual difference
_ROUNDS = 30
# weights of a triangle's corners in points a little inside of them, and in its middle
_INNER = np.vstack([0.8 * np.eye(3) + 0.2 / 3, np.full((1, 3), 1 / 3)])


@dataclass(frozen=True)
class Candidates:
    """The photos that see each of T triangles best, K of them.

    Attributes:
        photos: (T, K) int32, numbers of photos; -1 where there are no more.
        scores: (T, K), 0 there.
        colours: (T, K, 3) mean colours of the triangle in them.
    """

    photos: Array
    scores: Array
    colours: Array

    @classmethod
    def of(
        cls,
        mesh: Mesh,
        model: pycolmap.Reconstruction,
        images: Mapping[Path, pycolmap.Image],
        side: float,
    ) -> Candidates:
        """Those of a mesh.

        Args:
            mesh: in the frame of the model.
            model: its cameras are for the photos as they are stored.
            images: the posed images of the photos' files; their order numbers them.
            side: px of a photo's longer side as the matcher saw it.
        """
        number = len(mesh.triangles)
        found = cls(
            np.full((number, _CANDIDATES), -1, np.int32),
            np.zeros((number, _CANDIDATES), np.float32),
            np.zeros((number, _CANDIDATES, 3), np.float32),
        )
        view, unreadable = _View(mesh), []
        for index, (path, image) in enumerate(track(images.items(), "Choosing textures", "photo")):
            try:
                photo = ReducedPhoto.read(path, side)
            except ImageError as error:
                unreadable.append(str(error))
                continue
            which, scores, colours = view.seen(model.cameras[image.camera_id], image, photo)
            found._add(index, which, scores, colours)
        warn_of_skipped(unreadable)
        return found

    def _add(self, photo: int, which: Array, scores: Array, colours: Array) -> None:
        """Puts a photo in the place of the worst candidate wherever it is better."""
        worst = np.argmin(self.scores[which], axis=1)
        better = scores > self.scores[which, worst]
        which, worst = which[better], worst[better]
        self.photos[which, worst] = photo
        self.scores[which, worst] = scores[better]
        self.colours[which, worst] = colours[better]

    def costs(self) -> Array:
        """(T, K) cost of each candidate: 0 for the best one, infinite where there is none."""
        best = self.scores.max(axis=1, keepdims=True)
        costs = 1 - self.scores / np.maximum(best, 1e-30)
        costs += np.where(self._of_another_colour, _OTHER_COLOUR, 0)
        return np.where(self.photos >= 0, costs, np.inf)

    def colours_in(self, photos: Array) -> Array:
        """(T, 3) the colours of the triangles in photos (T,), 0 where it is no candidate."""
        chosen = self.photos == photos[:, None]
        return np.where(chosen[..., None], self.colours, 0).sum(axis=1)

    def usual_colours(self) -> Array:
        """(T, 3) the mean colours of the triangles in the photos that show the same as most."""
        shown = ((self.photos >= 0) & ~self._of_another_colour)[..., None]
        return np.where(shown, self.colours, 0).sum(axis=1) / np.maximum(shown.sum(axis=1), 1)

    @cached_property
    def _of_another_colour(self) -> Array:
        """(T, K) bool: of three photos and more, those that show another colour than most."""
        there = self.photos >= 0
        colours = np.where(there[..., None], self.colours, np.nan)
        several = there.sum(axis=1) >= 3
        other = np.zeros(there.shape, bool)
        if not several.any():
            return other
        off = np.full(colours.shape, np.nan)
        off[several] = colours[several] - np.nanmedian(colours[several], axis=1, keepdims=True)
        for photo in np.unique(self.photos[there]):  # exposures differ
            of_photo = (self.photos == photo) & several[:, None]
            if of_photo.any():
                off[of_photo] -= np.median(off[of_photo], axis=0)
        off = np.abs(off[several]).max(axis=2)
        usual = np.nanmedian(off, axis=1, keepdims=True)
        other[several] = off > np.maximum(_LEAST_OTHER, 3 * usual)
        return other


class _View:
    """What a photo sees of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        corners = [mesh.vertices[column] for column in mesh.triangles.T]
        normals = np.cross(corners[1] - corners[0], corners[2] - corners[0])
        self._middles = sum(corners) / 3
        self._normals = normals / np.maximum(np.linalg.norm(normals, axis=1), 1e-300)[:, None]

    def seen(
        self, camera: pycolmap.Camera, image: pycolmap.Image, photo: ReducedPhoto
    ) -> tuple[Array, Array, Array]:
        """Rows (M,) of the triangles that a photo sees whole, their scores, and mean colours."""
        triangles = self._mesh.triangles
        projected = Projected.of(self._mesh.vertices, camera, image)
        points, inverse = floats(photo.reduced(projected.pixels)), floats(1 / projected.depths)
        height, width = photo.pixels.shape[:2]
        drawn = triangles[_of_all_corners(np.isfinite(points[:, 0]), triangles)]
        nearest = np.zeros((height, width), np.float32)
        draw_inverse_depths(floats(points[drawn]), floats(inverse[drawn]), nearest)
        border = _BORDER * max(height, width)
        within = (points >= border) & (points <= [width - border, height - border])
        rows = np.flatnonzero(_of_all_corners(within[:, 0] & within[:, 1], triangles))
        rays = self._middles[rows] - image.projection_center()
        facing = -np.einsum("ij,ij->i", rays, self._normals[rows]) / np.linalg.norm(rays, axis=1)
        rows, facing = rows[facing > _LEAST_FACING], facing[facing > _LEAST_FACING]

        # points of each triangle a little inside: (4, M) at its corners, and its middle
        at = np.einsum("kc,mci->kmi", _INNER, points[triangles[rows]])
        depth = np.einsum("kc,mc->km", _INNER, inverse[triangles[rows]])
        x, y = np.rint(at.reshape(-1, 2)).astype(np.int64).T
        focal = camera.mean_focal_length() * photo.scale
        slack = 1 + (1 + 2 / facing) / focal  # of a pixel, and by its slope
        around = cv2.dilate(nearest, np.ones((2 * _BESIDE + 1,) * 2, np.uint8))
        beside = slack + 4 * _BESIDE * (slack - 1)
        in_front = (depth * slack >= nearest[y, x].reshape(depth.shape)).all(axis=0)
        clear = (depth * beside >= around[y, x].reshape(depth.shape)).all(axis=0)
        scores = facing**2 * (camera.mean_focal_length() * depth[-1]) ** 2
        scores *= _sharpness(photo.pixels)[y, x].reshape(depth.shape).mean(axis=0) ** 2
        scores *= np.where(clear, 1, _BESIDE_SCORE)
        colours = colours_at(photo.pixels, at[:, in_front].reshape(-1, 2))
        colours = colours.reshape(len(_INNER), -1, 3).mean(axis=0)
        return rows[in_front], scores[in_front], colours


def _of_all_corners(flags: Array, triangles: Array) -> Array:
    """(T,) bool: whether a flag (V,) of the vertices is set at all corners of a triangle."""
    a, b, c = triangles.T
    return np.asarray(flags[a] & flags[b] & flags[c])


def _sharpness(pixels: Array) -> Array:
    """(H, W) contrast between pixels by that after blurring: about 1 where a photo is out of focus,
    or shows nothing, and more where it is sharp, whatever the contrast."""
    grey = pixels.mean(axis=2).astype(np.float32)
    fine, coarse = (
        cv2.blur(np.hypot(*np.gradient(image)), (5, 5))
        for image in (grey, cv2.GaussianBlur(grey, (0, 0), _BLUR))
    )
    return np.asarray((_NOISE + fine) / (_NOISE + coarse))


def neighbours(mesh: Mesh) -> Array:
    """(E, 2) pairs of triangles that have an edge in common."""
    triangles = mesh.triangles.astype(np.int64)
    edges = np.sort(np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=2), axis=2)
    keys = (edges[..., 0] * len(mesh.vertices) + edges[..., 1]).ravel()
    order = np.argsort(keys, kind="stable")
    same = np.flatnonzero(np.diff(keys[order]) == 0)
    return np.stack([order[same] // 3, order[same + 1] // 3], axis=1)


def best_photos(candidates: Candidates, pairs: Array) -> Array:
    """(T,) the photo of each triangle, -1 where none sees it.

    Args:
        candidates: of T triangles.
        pairs: (E, 2) neighbouring triangles.
    """
    photos, costs = candidates.photos.T, candidates.costs().T  # (K, T): few and long rows
    none = ~np.isfinite(costs).any(axis=0)
    costs[:, none] = 0
    pairs = pairs[~(none[pairs[:, 0]] | none[pairs[:, 1]])]
    source, target = np.concatenate([pairs, pairs[:, ::-1]]).T
    back = np.roll(np.arange(len(source)), len(pairs))
    # the place of the target's photos among those of the source; the last row stands for none
    place = np.full((_CANDIDATES, len(source)), _CANDIDATES)
    for k in range(_CANDIDATES):
        place[photos[k, source] == photos[:, target]] = k
    messages = np.zeros((_CANDIDATES, len(source)), np.float32)
    total = costs
    for _ in range(_ROUNDS):
        held = np.full((_CANDIDATES + 1, len(source)), np.inf, np.float32)
        held[:-1] = total[:, source] - messages[:, back]
        least = held.min(axis=0)
        new = np.minimum(np.take_along_axis(held, place, axis=0), least + _SEAM) - least
        messages = (messages + new) / 2
        total = costs + _summed(target, messages, costs.shape[1])
    chosen = photos[np.argmin(total, axis=0), np.arange(len(none))]
    return np.where(none, -1, chosen)


def _summed(rows: Array, values: Array, number: int) -> Array:
    """(K, number) sums of values (K, E) by their rows (E,)."""
    return np.stack([np.bincount(rows, column, number) for column in values])

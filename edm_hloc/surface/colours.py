"""Colours of a cloud: from the photos that see a point, most from those that look at it squarely.

A photo sees what faces it and has no other points of the cloud in front. At an outline a match may
lie on the surface and its pixel on what is behind, so the colours are not those of the matches.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import ImageError
from edm_hloc.base.frames import from_colmap, to_colmap
from edm_hloc.base.log import warn_of_skipped
from edm_hloc.base.progress import track
from edm_hloc.images.load import colours_at, stored_pixels
from edm_hloc.surface.cloud import Cloud
from edm_hloc.surface.projection import Projected
from edm_hloc.surface.samples import VOXEL

Array = np.ndarray

_GREY = 128.0
_FILLED = 10.0  # spacings, up to which a point that no photo sees has the colour of its neighbour
_LEAST_FACING = 0.25  # cosine between normal and ray: about 75°
_CELL = 2 * VOXEL  # px, as `VOXEL`, of the grid in which points hide what is behind


def colours_of(cloud: Cloud, model: pycolmap.Reconstruction, images: Path, side: float) -> Array:
    """Colours (N, 3) uint8 of a cloud; grey where no photo that can be read sees a point or one
    beside it.

    Args:
        cloud: in the frame of the model.
        model: its cameras are for the photos as they are stored.
        images: folder of the photos.
        side: px of a photo's longer side as the matcher saw it.
    """
    sums, weights = np.zeros((len(cloud), 3)), np.zeros(len(cloud))
    unreadable = []
    for name, image in track(posed_images(model).items(), "Colouring", "photo"):
        try:
            photo = ReducedPhoto.read(images / name, side)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        which, points, weight = _seen(cloud, model.cameras[image.camera_id], image, side)
        sums[which] += weight[:, None] * photo.at(points)
        weights[which] += weight
    warn_of_skipped(unreadable)
    seen = weights > 0
    means = np.full((len(cloud), 3), _GREY)
    means[seen] = sums[seen] / weights[seen, None]
    if seen.any() and not seen.all():  # such as at rims, which look away from all photos
        distances, nearest = cKDTree(cloud.points[seen]).query(cloud.points[~seen])
        close = distances < _FILLED * cloud.spacings[~seen]
        means[np.flatnonzero(~seen)[close]] = means[seen][nearest[close]]
    return np.asarray(np.rint(means).clip(0, 255), np.uint8)


def _seen(
    cloud: Cloud, camera: pycolmap.Camera, image: pycolmap.Image, side: float
) -> tuple[Array, Array, Array]:
    """Rows of the points that a photo sees, where it does (M, 2) in hloc's frame, and weights."""
    projected = Projected.of(cloud.points, camera, image)
    rows = np.flatnonzero(np.isfinite(projected.pixels[:, 0]))
    points, rays = projected.pixels[rows], projected.rays[rows]
    depths = np.linalg.norm(rays, axis=1)
    facing = -np.sum(rays * cloud.normals[rows], axis=1) / depths
    size = _CELL * max(camera.width, camera.height, side) / side
    column, row = (to_colmap(points) / size).astype(np.int64).T
    shape = (int(camera.height / size) + 1, int(camera.width / size) + 1)
    nearest = np.full(shape, np.inf)
    np.minimum.at(nearest, (row, column), depths)
    slack = cloud.spacings[rows] * (2 + 2 / np.maximum(facing, _LEAST_FACING))
    seen = (facing > _LEAST_FACING) & (depths < nearest[row, column] + slack)
    weight = facing[seen] ** 4 * (camera.mean_focal_length() / depths[seen]) ** 2
    return rows[seen], points[seen], weight


class ReducedPhoto(NamedTuple):
    """A photo, reduced so that half a voxel is a pixel: else single pixels would be the colours."""

    pixels: Array
    scale: float

    @classmethod
    def read(cls, path: Path, side: float) -> ReducedPhoto:
        """The file `path`, whose longer side had `side` px for the matcher.

        Raises:
            ImageError: it cannot be read.
        """
        return cls.of(stored_pixels(path), side)

    @classmethod
    def of(cls, pixels: Array, side: float) -> ReducedPhoto:
        """That of a photo's pixels."""
        scale = min(1.0, 2 * side / (VOXEL * max(pixels.shape)))
        size = [max(1, round(scale * length)) for length in pixels.shape[1::-1]]
        return cls(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), scale)

    def at(self, points: Array) -> Array:
        """(N, 3) colours at points (N, 2) of the photo in hloc's frame."""
        return colours_at(self.pixels, self.reduced(points))

    def reduced(self, points: Array) -> Array:
        """(N, 2) points of the photo in the reduced one, both in hloc's frame."""
        return from_colmap(self.scale * to_colmap(points))

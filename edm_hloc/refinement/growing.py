"""Region growing: matches at corners beside those already found, where the network missed them."""

from __future__ import annotations

import cv2
import numpy as np

from edm_hloc.base.frames import inside
from edm_hloc.base.grid import cells_of
from edm_hloc.refinement.affine import inverse_maps, local_affine_maps, transfer
from edm_hloc.refinement.alignment import align
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corner_matches import AlignedMatches
from edm_hloc.refinement.corners import Photo
from edm_hloc.refinement.neighbour_kernels import nearest_point


def grow(
    photos: tuple[Photo, Photo], found: AlignedMatches, config: RefinementConfig, limit: int
) -> AlignedMatches:
    """Adds matches in cells without any that lie beside cells with one.

    The corner of such a cell is predicted in the other photo by the affine map around the nearest
    match, and aligned there: first corners of photo 0 in photo 1, then of photo 1 in photo 0. New
    matches lead to further cells, until there are `limit` matches or none is added. Each cell is
    tried once.

    Args:
        photos: sizes may differ.
        found: the matches to start from; they come first in the result, unchanged.
        config: the settings.
        limit: maximum number of matches in all.
    """
    points = [found.points0, found.points1]
    correlation, match = found.correlation, found.match
    free = [photo.corners.textured.copy() for photo in photos]
    for cells, taken in zip(free, points, strict=True):
        cells[cells_of(taken, cells.shape)] = False
    front = 0  # matches before this one have been grown from
    while front < len(match) < limit:
        new = np.arange(front, len(match))
        front = len(match)
        onto1 = local_affine_maps(points[0], points[1], config.neighbours, new)
        for here, affine in ((0, onto1), (1, inverse_maps(onto1))):
            beside = _adjacent_cells(points[here][new], free[here])
            free[here][beside] = False
            corners = photos[here].corners.points[beside]
            if not len(corners):
                continue
            nearest = nearest_point(corners, points[here][new])
            source = new[nearest]
            guess = transfer(
                corners, points[here][source], points[1 - here][source], affine[nearest]
            )
            other = photos[1 - here]
            aligned = align(
                (photos[here].grey, other.grey), corners, guess, affine[nearest], config
            )
            good = (
                (aligned.correlation >= config.min_grown_correlation)
                & (np.linalg.norm(aligned.points - guess, axis=1) <= config.prior_sigma / 2)
                & inside(aligned.points, *other.size)
            ).nonzero()[0][: limit - len(match)]
            points[here] = np.concatenate([points[here], corners[good]])
            points[1 - here] = np.concatenate([points[1 - here], aligned.points[good]])
            correlation = np.concatenate([correlation, aligned.correlation[good]])
            match = np.concatenate([match, match[source[good]]])
            # A cell of the other photo may get several matches: they came from different cells.
            cells = free[1 - here]
            cells[cells_of(aligned.points[good], cells.shape)] = False
    return AlignedMatches(points[0], points[1], correlation, match)


def _adjacent_cells(points: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows and columns of those of the free cells (R, C) that touch a cell with a point."""
    taken = np.zeros(free.shape, np.uint8)
    taken[cells_of(points, free.shape)] = 1
    return (cv2.dilate(taken, np.ones((3, 3), np.uint8)).astype(bool) & free).nonzero()

"""Each match becomes two: the nearest corner of either photo, and its aligned partner in the other.

A semi-dense network locates a point to about a pixel; the photos themselves locate a corner to a
fraction of one. The corner of a cell is the same in all pairs of its photo, so that tracks connect.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edm_hloc.base.compiled import floats
from edm_hloc.base.grid import CELL, cells_of
from edm_hloc.refinement.affine import inverse_maps, local_affine_maps, transfer
from edm_hloc.refinement.alignment import align
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corners import Corners, Photo
from edm_hloc.refinement.neighbour_kernels import repeated

_ONE_CELL = 1.2  # reduction of the photos up to which a match stands for one cell of theirs
DUPLICATE = 0.5  # pixels, in both photos together, up to which two matches are the same


class AlignedMatches(NamedTuple):
    """N matches whose patches have been aligned.

    Attributes:
        points0, points1: (N, 2) float32 pixels.
        correlation: (N,) normalised cross-correlation of the patches around them.
        match: (N,) index of the network's match that each comes from.
    """

    points0: np.ndarray
    points1: np.ndarray
    correlation: np.ndarray
    match: np.ndarray

    def chosen(self, which: np.ndarray) -> AlignedMatches:
        """Some of them, by mask or indices."""
        return AlignedMatches(*(values[which] for values in self))

    def joined(self, others: AlignedMatches) -> AlignedMatches:
        """These, followed by others."""
        return AlignedMatches(*(np.concatenate(both) for both in zip(self, others, strict=True)))

    def distinct(self) -> AlignedMatches:
        """Without those that repeat an earlier one, as where both photos have the same corner."""
        if not len(self.match):
            return self
        return self.chosen(~repeated(floats(self.points0), floats(self.points1), DUPLICATE))


def align_to_corners(
    photos: tuple[Photo, Photo],
    points0: np.ndarray,
    points1: np.ndarray,
    config: RefinementConfig,
    reduction: float = 1.0,
) -> AlignedMatches:
    """Two aligned matches for each match: one at a corner of photo 0, one at a corner of photo 1.

    First come those whose corner is in photo 0. A corner that several matches lead to is returned
    once, for the first of them.

    Args:
        photos: sizes may differ.
        points0, points1: (M, 2) pixels, hloc's frame, best match first.
        config: the settings, of which `prior_sigma` is in pixels of what the network saw.
        reduction: length in the photos over that in what the network saw. Where its cells are
            clearly larger than theirs, each match leads to the corners of all cells that it fills.
    """
    photo0, photo1 = photos
    config = replace(config, prior_sigma=reduction * config.prior_sigma)
    offsets = cell_offsets(reduction)
    affine = local_affine_maps(points0, points1, config.neighbours)
    inverse = inverse_maps(affine)
    first = _moved_to_corners(points0, points1, affine, photo0.corners, offsets)
    second = _moved_to_corners(points1, points0, inverse, photo1.corners, offsets)
    match = np.concatenate([first.match, second.match])
    split = len(first.match)
    points0 = np.concatenate([first.corners, second.others])
    points1 = np.concatenate([first.others, second.corners])
    correlation = np.zeros(len(match), np.float32)
    affine = affine[match]
    images = photo0.grey, photo1.grey
    for number in range(config.rounds):
        if number > 0:
            affine = local_affine_maps(points0, points1, config.neighbours)
        onto1, onto0 = affine[:split], inverse_maps(affine[split:])
        in1 = align(images, points0[:split], points1[:split], onto1, config)
        in0 = align(images[::-1], points1[split:], points0[split:], onto0, config)
        points1[:split], points0[split:] = in1.points, in0.points
        correlation = np.concatenate([in1.correlation, in0.correlation])
    return AlignedMatches(points0, points1, correlation, match)


def cell_offsets(reduction: float) -> np.ndarray:
    """(K, 2) float32 pixels from a match to points in each cell of the photo that it stands for:
    the centres of the quarters of the network's cell around it, or the match alone."""
    if reduction < _ONE_CELL:
        return np.zeros((1, 2), np.float32)
    away = reduction * CELL / 4
    return np.array([[x, y] for y in (-away, away) for x in (-away, away)], np.float32)


def aligned_neighbours(config: RefinementConfig, reduction: float) -> int:
    """Number of neighbours that aligned matches are checked by: of as many of the network's matches
    whether each led to the corners of one cell or of several."""
    cells = min(reduction**2, len(cell_offsets(reduction)))
    return round(cells * config.neighbours)


class _MovedMatches(NamedTuple):
    """Corners (N, 2) of one photo, their estimated positions (N, 2) in the other, and the match
    (N,) each comes from."""

    corners: np.ndarray
    others: np.ndarray
    match: np.ndarray


def _moved_to_corners(
    points: np.ndarray,
    others: np.ndarray,
    affine: np.ndarray,
    corners: Corners,
    offsets: np.ndarray,
) -> _MovedMatches:
    """Matches (M, 2), (M, 2) moved to the corners of the cells of points beside them, each once.

    Beside a match's own cell, textured ones count alone: elsewhere nothing could align a guess.
    """
    places = (points[:, None] + offsets).reshape(-1, 2)
    shape = corners.textured.shape
    cell, own = (np.ravel_multi_index(cells_of(p, shape), shape) for p in (places, points))
    wanted = corners.textured.ravel()[cell] | (cell == np.repeat(own, len(offsets)))
    (wanted,) = wanted.nonzero()
    place = wanted[np.sort(np.unique(cell[wanted], return_index=True)[1])]
    found = corners.points.reshape(-1, 2)[cell[place]].astype(np.float32)
    match = place // len(offsets)
    return _MovedMatches(found, transfer(found, points[match], others[match], affine[match]), match)

"""Each match becomes two: the nearest corner of either photo, and its aligned partner in the other.

A semi-dense network locates a point to about a pixel; the photos themselves locate a corner to a
fraction of one. The corner of a cell is the same in all pairs of its photo, so that tracks connect.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edm_hloc.base.compiled import floats
from edm_hloc.base.grid import cells_of
from edm_hloc.refinement.affine import inverse_maps, local_affine_maps, transfer
from edm_hloc.refinement.alignment import align
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corners import Corners, Photo
from edm_hloc.refinement.neighbour_kernels import repeated

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
) -> AlignedMatches:
    """Two aligned matches for each match: one at a corner of photo 0, one at a corner of photo 1.

    First come those whose corner is in photo 0. A corner that several matches lead to is returned
    once, for the first of them.

    Args:
        photos: sizes may differ.
        points0, points1: (M, 2) pixels, hloc's frame, best match first.
        config: the settings.
    """
    photo0, photo1 = photos
    affine = local_affine_maps(points0, points1, config.neighbours)
    inverse = inverse_maps(affine)
    first = _moved_to_corners(points0, points1, affine, photo0.corners)
    second = _moved_to_corners(points1, points0, inverse, photo1.corners)
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


class _MovedMatches(NamedTuple):
    """Corners (N, 2) of one photo, their estimated positions (N, 2) in the other, and the match
    (N,) each comes from."""

    corners: np.ndarray
    others: np.ndarray
    match: np.ndarray


def _moved_to_corners(
    points: np.ndarray, others: np.ndarray, affine: np.ndarray, corners: Corners
) -> _MovedMatches:
    """Matches (M, 2), (M, 2) moved to the corners of the points' cells, each corner once."""
    row, column = cells_of(points, corners.textured.shape)
    cell = row * corners.textured.shape[1] + column
    match = np.sort(np.unique(cell, return_index=True)[1])
    found = corners.points[row[match], column[match]].astype(np.float32)
    return _MovedMatches(found, transfer(found, points[match], others[match], affine[match]), match)

"""Drops matches of repeated structure that contradict those of places that are seen only once.

Repeated façades, tiles and prints agree on wrong motions, often with more matches than there are
right ones, and their patches correlate. But each photo shows by itself what is repeated: a cell is
distinct where no other place of the photo looks like it to the network, and matches of distinct
cells are right much more often. So the epipolar geometry of a pair is estimated from a sample that
prefers them. Where most of the distinct matches fit it, and clearly fewer of the others do, those
that do not fit are dropped. Otherwise all stay: lens distortion and moving things contradict one
epipolar geometry, too, but not the more, the less distinct they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pycolmap

from edm_hloc.base.geometry import epipolar_errors, homogeneous
from edm_hloc.base.grid import cells_of
from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import DISTINCTNESS_STEP
from edm_hloc.refinement.views import WarpedView

_FEWEST = 60  # confident matches of which thirds say something
_SAMPLE = 400  # matches that the epipolar geometry is estimated from, at most half of them
_SOFTNESS = 1.5  # of the preference; distinctness is about 8 for right matches, 4 for wrong ones
_LARGEST_DISTINCTNESS = 12.0
_INLIER_PX = 4.0  # pixels of what the network saw
_MIN_DISTINCT_INLIERS = 0.6  # share of the most distinct third of the matches


class DistinctPhoto(NamedTuple):
    """A photo as it was matched, and what `Matcher.distinctness` says of it (rows, columns)."""

    view: WarpedView
    distinctness: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """The distinctness (M,) of points (M, 2) in pixels of the photo."""
        of_points: np.ndarray = self.distinctness[
            cells_of(self.view.warped(points) / DISTINCTNESS_STEP, self.distinctness.shape)
        ]
        return of_points


def without_twins(
    matches: Matches,
    photos: tuple[DistinctPhoto, DistinctPhoto],
    confident: float,
    min_difference: float,
) -> Matches:
    """The matches of a pair without those that distinct ones show to be wrong.

    Args:
        matches: in pixels of the photos as they were loaded.
        photos: the pair.
        confident: score from which matches are asked.
        min_difference: `RefinementConfig.min_distinct_difference`.
    """
    asked = (matches.scores >= confident).nonzero()[0]
    if len(asked) < _FEWEST:
        return matches
    points0, points1 = (p.astype(float) for p in (matches.keypoints0, matches.keypoints1))
    distinctness = np.minimum(photos[0].at(points0), photos[1].at(points1))[asked]
    distinctness = distinctness.clip(0, _LARGEST_DISTINCTNESS)  # inf in tiny photos
    tolerance = _INLIER_PX * max(photo.view.reduction for photo in photos)
    weights = np.exp(distinctness / _SOFTNESS)
    generator = np.random.default_rng(len(asked))
    size = min(_SAMPLE, len(asked) // 2)
    drawn = generator.choice(asked, size, replace=False, p=weights / weights.sum())
    options = pycolmap.RANSACOptions(max_error=tolerance, random_seed=0)
    options.min_num_trials, options.max_num_trials = 100, 2000
    estimate = pycolmap.estimate_fundamental_matrix(points0[drawn], points1[drawn], options)
    if estimate is None:
        return matches
    x0, x1 = homogeneous(points0), homogeneous(points1)
    errors = np.minimum(*epipolar_errors(x0, x1, estimate["F"]))
    inlier = errors[asked] < tolerance
    low, high = np.quantile(distinctness, (1 / 3, 2 / 3))
    most, least = inlier[distinctness >= high].mean(), inlier[distinctness <= low].mean()
    if most < _MIN_DISTINCT_INLIERS or most - least < min_difference:
        return matches
    return matches[errors < 2 * tolerance]

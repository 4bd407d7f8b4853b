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

import numpy as np
import pycolmap

from edm_hloc.base.geometry import epipolar_errors, homogeneous
from edm_hloc.base.matches import Matches

_FEWEST = 60  # confident matches of which thirds say something
_SAMPLE = 400  # matches that the epipolar geometry is estimated from, at most half of them
_SOFTNESS = 1.5  # of the preference; distinctness is about 8 for right matches, 4 for wrong ones
_INLIER_PX = 4.0  # pixels of what the network saw
_MIN_DISTINCT_INLIERS = 0.6  # share of the most distinct third of the matches


def without_twins(
    matches: Matches,
    distinctness: np.ndarray,
    reduction: float,
    confident: float,
    min_difference: float,
) -> Matches:
    """The matches of a pair without those that distinct ones show to be wrong.

    Args:
        matches: in pixels of the photos as they were loaded.
        distinctness: (M,), `views.distinctness_of` them.
        reduction: length in the photos over that in what the network saw.
        confident: score from which matches are asked.
        min_difference: `RefinementConfig.min_distinct_difference`.
    """
    asked = (matches.scores >= confident).nonzero()[0]
    distinctness = distinctness[asked]
    if len(asked) < _FEWEST or np.ptp(distinctness) == 0:
        return matches
    points0, points1 = (p.astype(float) for p in (matches.keypoints0, matches.keypoints1))
    tolerance = _INLIER_PX * reduction
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

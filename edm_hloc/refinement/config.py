"""The settings of the refinement of matches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefinementConfig:
    """Settings of the refinement; lengths are in pixels of the photos as they were loaded.

    The defaults were chosen by the error of relative poses on rendered pairs and on two surveyed
    scenes (docs/training.md).

    Attributes:
        min_distinct_difference: how many more of the most distinct third of the matches than of
            the least distinct one, as a share, must fit one epipolar geometry for matches that do
            not fit it to be dropped (`twins.py`); above 1 for never.
        patch_radius: patches are squares of 2·patch_radius + 1 pixels, weighted by a Gaussian.
        prior_sigma: standard deviation of the network's points, in pixels of what it saw: the
            prior of the alignment. A point moves by twice this at most along each axis. In region
            growing, whose guesses come from aligned neighbours, it is in pixels of the photos, and
            a match that moves by more than half of it is dropped.
        noise_sigma: standard deviation of the difference between two views of the same patch,
            normalised to contrast 1; its ratio to `prior_sigma` damps the alignment.
        iterations: Gauss–Newton iterations of the alignment in each round.
        rounds: number of alignments; the affine maps of a round come from the points of the one
            before.
        min_correlation: minimum normalised cross-correlation of the aligned patches of a match.
            Patches without texture count as agreeing.
        neighbours: number of nearest matches that a local affine map is fitted to.
        min_support: minimum share of a match's neighbours that are consistent with it, before the
            alignment.
        min_aligned_support: the same after the alignment, when the tolerance is half as large.
        min_isolated_correlation: correlation from which a match between cells with texture is kept
            whatever its neighbours say: an object in front of a wall has few neighbours of its own.
            Patches without texture correlate whatever they show: there the share of consistent
            neighbours must be `min_support`.
        min_matches_to_grow: pairs with fewer matches are not grown, since all of them may be
            outliers.
        min_grown_correlation: minimum correlation of a match that is grown beside others.
        target_matches: pairs with fewer confident matches are filled up to this number with the
            matcher's less confident candidates, where patches and neighbours agree.
    """

    min_distinct_difference: float = 0.15
    patch_radius: int = 7
    prior_sigma: float = 2.0
    noise_sigma: float = 0.15
    iterations: int = 3
    rounds: int = 2
    min_correlation: float = 0.8
    neighbours: int = 20
    min_support: float = 0.4
    min_aligned_support: float = 0.8
    min_isolated_correlation: float = 0.97
    min_matches_to_grow: int = 50
    min_grown_correlation: float = 0.9
    target_matches: int = 400

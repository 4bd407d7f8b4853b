"""Matches pairs with few matches again, one photo warped into the frame of the other.

A network trained on upright photos of similar scale finds little where the camera was rolled or
came much closer. The few matches still define an affine map between the photos, found by RANSAC.
The less detailed photo is warped by it into the frame of the other, where the two look alike, and
the pair is matched again. Where few of the first matches agree, SIFT keypoints may give another
map, and then thumbnails that the network matches: as they are, rotated by quarter turns, or at
twice the scale of each other. The cheap ones come first: where two of them agree, or one is sure,
no others are asked. On repeated structure some agree on a wrong map: maps that differ are all
tried, and the one with the most expected matches of distinct places is taken. Where neither the
network nor SIFT finds anything in photos full of keypoints, these have nothing in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from edm_hloc.base.frames import inside
from edm_hloc.base.grid import blocks, cell_numbers
from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.refinement.batched_consensus import Correspondences, RobustMap, robust_maps
from edm_hloc.refinement.sift_maps import common_points
from edm_hloc.refinement.views import (
    ImageViews,
    ThumbnailName,
    ViewEncoder,
    WarpedPhoto,
    WarpedView,
    distinctness_of,
    in_photos,
)

_MAX_ANISOTROPY = 5.0  # ratio of the singular values from which an affine map is implausible

_NEAR_MAP = 2.0  # times the tolerance of inliers: a match farther from the map contradicts it


@dataclass(frozen=True)
class SecondLookConfig:
    """When and how a pair is matched a second time.

    Attributes:
        min_confident_share: minimum number of confident matches, as a share of the smaller
            image's 8 px cells. Pairs with fewer are candidates for a second look.
        inlier_tolerance: maximum residual of an inlier of the affine map, as a share of the
            image's longer side. It is generous because depth moves points off any affine map.
        min_inliers: minimum number of confident inliers of an affine map that is used.
        min_inlier_share: where the map of thumbnails has fewer inliers, as a share of the smaller
            image's cells, dearer thumbnails are asked.
        min_agreement: minimum number of inliers of a map of the first matches, as a share of the
            confident ones. Photos with little in common have some that agree by chance.
        trusted_inlier_share: maps with this inlier share or more are the only ones tried, and
            where the first matches give one, no others are asked for. Repeated and symmetric
            structures agree on wrong maps as well, but over less of the image.
        min_rotation: in degrees, and
        min_stretch: as a ratio of lengths: from either of these on, the photos differ enough for
            a second look to pay. Maps that differ by less are the same.
        min_sift_inliers: minimum number of inliers of a map of SIFT keypoints, and
        min_sift_share: as a share of those that the photos have in common.
        trusted_sift_share: with this share or more, the map goes before one of the first matches
            that contradicts it or has inliers in less than `min_inlier_share` of the cells, and no
            thumbnails are asked.
        many_keypoints: number of keypoints of either photo from which no map of SIFT, and fewer
            than `min_inliers` first matches, mean that the photos have nothing in common.
        thumbnail_size: longest side of the thumbnails, pixels.
    """

    min_confident_share: float = 0.25
    inlier_tolerance: float = 0.04
    min_inliers: int = 20
    min_inlier_share: float = 0.05
    min_agreement: float = 0.4
    trusted_inlier_share: float = 0.2
    min_rotation: float = 12.0
    min_stretch: float = 1.25
    min_sift_inliers: int = 8
    min_sift_share: float = 0.2
    trusted_sift_share: float = 0.6
    many_keypoints: int = 500
    thumbnail_size: int = 256


# The thumbnails of the first and of the second photo that are matched with each other, cheapest
# first, each stage only where those before agree on no map: as they are; rotated by one, two and
# three quarter turns; at twice the scale of each other either way.
_THUMBNAIL_STAGES: tuple[tuple[tuple[ThumbnailName, ThumbnailName], ...], ...] = (
    (("upright", "upright"),),
    (("upright", "turned_90"), ("upright", "turned_180"), ("upright", "turned_270")),
    (("upright", "upright_double"), ("upright_double", "upright")),
)


class AffineHypothesis(NamedTuple):
    """An affine map (3, 3) from photo 0 to photo 1 in pixels, its number of inliers, and that as a
    share of the smaller view's cells, or of the points that it was found from."""

    warp: np.ndarray
    inliers: int
    share: float


_NO_HYPOTHESIS = AffineHypothesis(np.eye(3), 0, 0.0)


class _MatchedViews(NamedTuple):
    """Views of two photos that were matched.

    Attributes:
        views: of photo 0 and of photo 1.
        matches: in pixels of the views.
        size1: (width, height) of photo 1, which the tolerance is a share of.
    """

    views: tuple[WarpedView, WarpedView]
    matches: Matches
    size1: tuple[int, int]


class SecondLook:
    """Improves the matches of pairs in which a matcher found few.

    Args:
        network: the matcher.
        config: the settings.
        batched: warp photos and fit maps for several pairs at a time, on the network's device;
            otherwise pair by pair on the CPU.
    """

    def __init__(self, network: Matcher, config: SecondLookConfig, batched: bool) -> None:
        self.network = network
        self.config = config
        self.batched, self.device = batched, network.info.device
        self.views = ViewEncoder(network, config.thumbnail_size, batched)

    def improve(
        self, pairs: Sequence[tuple[ImageViews, ImageViews]], found: Sequence[Matches]
    ) -> list[Matches]:
        """The matches of each pair after a second look, where that found more.

        Args:
            pairs: the photos of each pair.
            found: their first matches, pixels of the whole views.

        Returns:
            The matches in pixels of the photos.
        """
        wholes = [(first.whole, second.whole) for first, second in pairs]
        few = {
            i: _MatchedViews(wholes[i], matches, pairs[i][1].size)
            for i, matches in enumerate(found)
            if self._num_confident(matches) < self._min_confident(*wholes[i])
        }
        found = [in_photos(views, m) for views, m in zip(wholes, found, strict=True)]
        tries = [(i, warp) for i, warps in self._maps(pairs, few).items() for warp in warps]
        second: list[Matches] = []
        for some in blocks(len(tries), max(1, len(pairs))):  # no more at a time than were given
            second += self._match_aligned([(pairs[i], warp) for i, warp in tries[some]])
        best: dict[int, tuple[Matches, np.ndarray]] = {}
        for (i, warp), matches in zip(tries, second, strict=True):
            most = best[i][0] if i in best else found[i]
            if self._expected(matches, pairs[i]) > self._expected(most, pairs[i]):
                best[i] = matches, warp
        for i, (matches, warp) in best.items():
            near = self._near_map(found[i], warp, pairs[i][1].size)
            found[i] = self._merged(matches, found[i][near], wholes[i][0])
        return found

    def _maps(
        self,
        pairs: Sequence[tuple[ImageViews, ImageViews]],
        first: Mapping[int, _MatchedViews],
    ) -> dict[int, list[np.ndarray]]:
        """The affine maps (3, 3) with which pairs are worth to be matched again.

        Args:
            pairs: the photos of each pair.
            first: the first matches of those with few.
        """
        fits = self._fit_affine(list(first.values()))
        by_first = {i: self._agreed(first[i], fit) for i, fit in zip(first, fits, strict=True)}
        unsure = [i for i, h in by_first.items() if h.share < self.config.trusted_inlier_share]
        by_sift = dict(zip(unsure, self._from_sift([pairs[i] for i in unsure]), strict=True))
        left = []
        for i, sift in by_sift.items():
            confirmed = sift.inliers and by_first[i].inliers and self._alike(sift, by_first[i])
            apart = not sift.inliers and self._apart(pairs[i], first[i].matches)
            few_agree = by_first[i].share < self.config.min_inlier_share
            if sift.share >= self.config.trusted_sift_share:
                if few_agree or not confirmed:
                    by_first[i] = _NO_HYPOTHESIS
            elif not (confirmed or apart):
                left.append(i)
        by_thumbnails = dict(
            zip(left, self._from_thumbnails([pairs[i] for i in left]), strict=True)
        )
        maps = {}
        for i in first:
            of_network = [by_first[i], by_thumbnails.get(i, _NO_HYPOTHESIS)]
            sure = [h for h in of_network if h.share >= self.config.trusted_inlier_share]
            maps[i] = self._to_try(sure or [*of_network, by_sift.get(i, _NO_HYPOTHESIS)])
        return maps

    def _to_try(self, hypotheses: Sequence[AffineHypothesis]) -> list[np.ndarray]:
        """The maps (3, 3) that rotate or scale enough, and differ from those before."""
        tried: list[AffineHypothesis] = []
        for one in hypotheses:
            new = not any(self._alike(one, other) for other in tried)
            if one.inliers and new and self._is_worthwhile(one.warp):
                tried.append(one)
        return [one.warp for one in tried]

    def _alike(self, first: AffineHypothesis, second: AffineHypothesis) -> bool:
        """Whether photos warped by either map look alike: only rotation and scale matter."""
        return not self._is_worthwhile(first.warp @ np.linalg.inv(second.warp))

    def _agreed(self, first: _MatchedViews, hypothesis: AffineHypothesis) -> AffineHypothesis:
        """A hypothesis, or none if too few of the first matches agree on it."""
        least = self.config.min_agreement * self._num_confident(first.matches)
        return hypothesis if hypothesis.inliers >= least else _NO_HYPOTHESIS

    def _num_confident(self, matches: Matches) -> int:
        return int((matches.scores >= self.network.info.confident).sum())

    def _expected(self, matches: Matches, photos: tuple[ImageViews, ImageViews]) -> float:
        """How much the confident matches speak for their map: how many are right, by their scores,
        where those of distinct places count for more, because repeated structure matches with
        itself by wrong maps too."""
        confident = matches[matches.scores >= self.network.info.confident]
        return float((confident.scores * distinctness_of(photos, confident)).sum())

    def _min_confident(self, view0: WarpedView, view1: WarpedView) -> float:
        """Number of confident matches with which a pair needs no second look."""
        topk = self.network.info.topk
        number = self.config.min_confident_share * min(view0.cells, view1.cells)
        return number if topk is None else min(number, topk)

    def _fit_affine(self, looks: Sequence[_MatchedViews]) -> list[AffineHypothesis]:
        """Of each, the map that its confident matches agree on."""
        sets = {}
        for i, look in enumerate(looks):
            chosen = look.matches.scores >= self.network.info.confident
            if chosen.sum() >= self.config.min_inliers:
                sets[i] = Correspondences(
                    look.views[0].unwarp(look.matches.keypoints0[chosen]),
                    look.views[1].unwarp(look.matches.keypoints1[chosen]),
                    self.config.inlier_tolerance * max(look.size1),
                )
        found = [_NO_HYPOTHESIS] * len(looks)
        for i, hypothesis in self._agreed_maps(sets, self.config.min_inliers).items():
            cells = min(view.cells for view in looks[i].views)
            found[i] = hypothesis._replace(share=hypothesis.inliers / cells)
        return found

    def _agreed_maps(
        self, sets: Mapping[int, Correspondences], least: int
    ) -> dict[int, AffineHypothesis]:
        """Of each set that agrees on one, the similarity or, with as many inliers, the affine map
        found by RANSAC, if it is plausible and has at least so many inliers."""
        if self.batched:
            maps = [list(kinds) for kinds in robust_maps(list(sets.values()), self.device)]
        else:
            maps = [_robust_maps(one) for one in sets.values()]
        best: dict[int, AffineHypothesis] = {}
        for i, kinds in zip(sets, maps, strict=True):
            for rows, inliers in kinds:
                if not np.isfinite(rows).all():
                    continue
                long, short = np.linalg.svd(rows[:, :2], compute_uv=False)
                plausible = np.linalg.det(rows[:, :2]) > 0 and long < _MAX_ANISOTROPY * short
                # With fewer inliers the freedom of an affine map is not worth its risk.
                if plausible and inliers >= max(least, best.get(i, _NO_HYPOTHESIS).inliers):
                    warp = np.vstack([rows, [0.0, 0.0, 1.0]])
                    best[i] = AffineHypothesis(warp, inliers, inliers / len(sets[i].points0))
        return best

    def _apart(self, photos: tuple[ImageViews, ImageViews], found: Matches) -> bool:
        """Whether photos on whose keypoints no map was found seem to have nothing in common."""
        fewest = min(len(photo.keypoints().points) for photo in photos)
        few = self._num_confident(found) < self.config.min_inliers
        return few and fewest >= self.config.many_keypoints

    def _from_sift(self, pairs: Sequence[tuple[ImageViews, ImageViews]]) -> list[AffineHypothesis]:
        """The map that the SIFT keypoints of each pair agree on."""
        sets = {}
        for i, (first, second) in enumerate(pairs):
            points = common_points(first.keypoints(), second.keypoints())
            if len(points[0]) >= self.config.min_sift_inliers:
                tolerance = self.config.inlier_tolerance * max(second.size)
                sets[i] = Correspondences(*points, tolerance)
        maps = self._agreed_maps(sets, self.config.min_sift_inliers)
        return [
            maps[i] if i in maps and maps[i].share >= self.config.min_sift_share else _NO_HYPOTHESIS
            for i in range(len(pairs))
        ]

    def _from_thumbnails(
        self, pairs: Sequence[tuple[ImageViews, ImageViews]]
    ) -> list[AffineHypothesis]:
        """The best hypothesis that two thumbnails of each pair give."""
        best = [_NO_HYPOTHESIS] * len(pairs)
        for stage in _THUMBNAIL_STAGES:
            left = [i for i, h in enumerate(best) if h.share < self.config.min_inlier_share]
            some = [pairs[i] for i in left]
            looks = [look for names in stage for look in self._thumbnail_looks(some, names)]
            for number, hypothesis in enumerate(self._fit_affine(looks)):
                i = left[number % len(left)]
                best[i] = self._better(best[i], hypothesis)
        return best

    def _thumbnail_looks(
        self,
        pairs: Sequence[tuple[ImageViews, ImageViews]],
        names: tuple[ThumbnailName, ThumbnailName],
    ) -> list[_MatchedViews]:
        """A thumbnail of the first photo matched with one of the second, of each pair."""
        if not pairs:
            return []
        sides = zip(*pairs, strict=True)
        views0, views1 = (self.views.thumbnails(s, n) for s, n in zip(sides, names, strict=True))
        found = self.network.match_cells(_features(views0, views1))
        return [
            _MatchedViews((view0, view1), matches, pair[1].size)
            for view0, view1, matches, pair in zip(views0, views1, found, pairs, strict=True)
        ]

    def _better(self, first: AffineHypothesis, second: AffineHypothesis) -> AffineHypothesis:
        trusted = self.config.trusted_inlier_share
        return max(first, second, key=lambda h: (h.share >= trusted, h.inliers))

    def _is_worthwhile(self, warp: np.ndarray) -> bool:
        """Whether an affine map (3, 3) rotates or scales enough."""
        A = warp[:2, :2]
        long, short = np.linalg.svd(A, compute_uv=False)
        rotation = abs(math.degrees(math.atan2(A[1, 0] - A[0, 1], A[0, 0] + A[1, 1])))
        return rotation > self.config.min_rotation or max(long, 1 / short) > self.config.min_stretch

    def _match_aligned(
        self, pairs: Sequence[tuple[tuple[ImageViews, ImageViews], np.ndarray]]
    ) -> list[Matches]:
        """The matches of each pair with the less detailed photo warped onto the other's whole view.

        Args:
            pairs: the photos of each pair, and the affine map (3, 3) from photo 0 to photo 1.

        Returns:
            Matches in pixels of the photos.
        """
        found: dict[int, Matches] = {}
        closer0 = [np.linalg.det(warp[:2, :2]) <= 1 for _, warp in pairs]
        for photo0_stays in (True, False):
            chosen = [i for i, closer in enumerate(closer0) if closer == photo0_stays]
            stays, moves = (0, 1) if photo0_stays else (1, 0)
            staying = [pairs[i][0][stays] for i in chosen]
            moving = [pairs[i][0][moves] for i in chosen]
            onto = [np.linalg.inv(pairs[i][1]) if photo0_stays else pairs[i][1] for i in chosen]
            divisor = self.network.info.preprocessing.divisor
            wholes = [photo.whole for photo in staying]
            warped = self.views.warped(
                [
                    WarpedPhoto(photo.pixels, frame.warp @ warp, frame.size).cropped(divisor)
                    for photo, warp, frame in zip(moving, onto, wholes, strict=True)
                ]
            )
            sides = (wholes, warped) if photo0_stays else (warped, wholes)
            matched = self._matched_by_size(*sides)
            for i, view0, view1, matches in zip(chosen, *sides, matched, strict=True):
                matches = in_photos((view0, view1), matches)
                photo0, photo1 = pairs[i][0]
                seen = inside(matches.keypoints0, *photo0.size)
                found[i] = matches[seen & inside(matches.keypoints1, *photo1.size)]
        return [found[i] for i in range(len(pairs))]

    def _matched_by_size(
        self, views0: Sequence[WarpedView], views1: Sequence[WarpedView]
    ) -> list[Matches]:
        """The matches of views that may differ in size, in pixels of the views."""
        alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for i, views in enumerate(zip(views0, views1, strict=True)):
            alike.setdefault(tuple(view.size for view in views), []).append(i)
        found: dict[int, Matches] = {}
        for some in alike.values():
            pairs = _features([views0[i] for i in some], [views1[i] for i in some])
            found |= zip(some, self.network.match_pixels(pairs), strict=True)
        return [found[i] for i in range(len(views0))]

    def _near_map(self, matches: Matches, warp: np.ndarray, size1: tuple[int, int]) -> np.ndarray:
        """Which matches an affine map (3, 3) about leads to, (M,) bool.

        First matches far from the map that gave more are wrong, nearly all of them.
        """
        mapped = matches.keypoints0 @ warp[:2, :2].T + warp[:2, 2]
        off = np.linalg.norm(mapped - matches.keypoints1, axis=1)
        return np.asarray(off < _NEAR_MAP * self.config.inlier_tolerance * max(size1))

    def _merged(self, second: Matches, first: Matches, view0: WarpedView) -> Matches:
        """The matches of the second look, and those of the first in cells of view 0 without any."""
        topk = self.network.info.topk
        cells, filled = (cell_numbers(view0.warped(m.keypoints0)) for m in (first, second))
        new = ~np.isin(cells, filled)
        if topk is not None:
            new &= np.cumsum(new) <= topk - len(second)
        return second.joined(first[new])


def _features(
    views0: Sequence[WarpedView], views1: Sequence[WarpedView]
) -> list[tuple[Features, Features]]:
    return [(a.features, b.features) for a, b in zip(views0, views1, strict=True)]


def _robust_maps(one: Correspondences) -> list[RobustMap]:
    """The similarity and the affine map that OpenCV's RANSAC finds."""
    maps = []
    for fit in (cv2.estimateAffinePartial2D, cv2.estimateAffine2D):
        rows, inliers = fit(
            one.points0,
            one.points1,
            method=cv2.RANSAC,
            ransacReprojThreshold=one.tolerance,
            maxIters=1000,
        )
        if rows is not None:
            maps.append(RobustMap(rows, int(inliers.sum())))
    return maps

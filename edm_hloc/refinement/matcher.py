"""A matcher whose matches are checked, refined and completed by the photos themselves.

    first matches ─ second look ─▶ more matches of rotated and scaled pairs   (second_look.py)
      ─ distinct matches ─▶ without wrong ones of repeated structure          (twins.py)
      ─ neighbours' support ─▶ without gross outliers                         (affine.py)
      ─ alignment at corners ─▶ sub-pixel, repeated in all pairs of a photo   (corner_matches.py)
      ─ neighbours' support ─▶ without small outliers                         (affine.py)
      ─ region growing ─▶ where the network missed them                       (growing.py)

The network may see the photos reduced; from the second look on, all is in pixels of the photos as
they were loaded, hloc's frame. From the neighbours' support on, the photo that shows things larger
is the first one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import numpy as np
import torch

from edm_hloc.base.frames import inside
from edm_hloc.base.grid import cell_numbers, cells_of
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage, reduced
from edm_hloc.matchers.base import Features, Matcher
from edm_hloc.models.types import default_topk
from edm_hloc.refinement.affine import neighbour_support
from edm_hloc.refinement.batched_alignment import Images
from edm_hloc.refinement.batched_corners import DeviceCorners
from edm_hloc.refinement.batched_corners import strongest_corners as corners_on_device
from edm_hloc.refinement.batched_growing import Photos
from edm_hloc.refinement.batched_refinement import BatchedRefinement
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corner_matches import (
    AlignedMatches,
    align_to_corners,
    aligned_neighbours,
)
from edm_hloc.refinement.corners import Corners, Photo, strongest_corners
from edm_hloc.refinement.growing import grow
from edm_hloc.refinement.second_look import SecondLook, SecondLookConfig
from edm_hloc.refinement.twins import without_twins
from edm_hloc.refinement.views import (
    ImageViews,
    OnDemand,
    distinctness_of,
    in_photos,
    whole_view,
)

_NEARER = 1.1  # ratio of the numbers of cells with a match from which one photo is the nearer one


class RefinedPhoto(NamedTuple):
    """What is remembered of a photo: its pixels once, its views, and if refined its corners."""

    views: ImageViews
    corners: Corners | DeviceCorners | None

    def moved(self, views: ImageViews, device: torch.device) -> RefinedPhoto:
        """Views that are on another device, with the corners there if they were on one."""
        corners = self.corners
        there = corners.to(device) if isinstance(corners, DeviceCorners) else corners
        return self._replace(views=views, corners=there)


class RefinedFeatures(Features):
    """Features whose `data` is a `RefinedPhoto`, which gets thumbnails when pairs ask for them."""

    @property
    def nbytes(self) -> int:
        data: RefinedPhoto = self.data
        return self.held + data.views.on_demand.nbytes


class RefinedMatcher(Matcher):
    """Another matcher with a second look at pairs with few matches, and with refinement.

    Each match of the network gives up to two, one at a corner of either photo, and matches beside
    them are added up to twice the network's own limit. Scores are the network's times the
    correlation of the aligned patches.

    Args:
        network: the matcher that finds the first matches.
        refinement: settings of the refinement; None for none.
        second_look: settings of the second look; None for none.
        batched: refine all pairs of a batch at a time, on the network's device; None: on a GPU.
            Otherwise pairs are refined one by one on the CPU.
        network_size: longest side in pixels to which photos are reduced for the network; None: it
            sees them as they were loaded.
    """

    def __init__(
        self,
        network: Matcher,
        refinement: RefinementConfig | None = None,
        second_look: SecondLookConfig | None = None,
        batched: bool | None = None,
        network_size: int | None = None,
    ) -> None:
        self.network = network
        self.network_size = network_size
        device = network.info.device
        self.batched = device.type == "cuda" if batched is None else batched
        self.info = replace(network.info, batch_size=self._batch_size())
        self.refinement = refinement
        self.second_look = (
            None if second_look is None else SecondLook(network, second_look, self.batched)
        )
        # Where pixels and corners are kept; not on Apple's GPUs, for which nothing is batched.
        self._device = device if self.batched else torch.device("cpu")

    def _batch_size(self) -> int:
        """That of the network; up to four times as many pairs where a GPU has the memory, since
        the operations of the refinement are small."""
        info = self.network.info
        if info.device.type != "cuda" or not self.batched:
            return info.batch_size
        memory = torch.cuda.get_device_properties(info.device).total_memory
        return info.batch_size * min(4, max(1, round(memory / (8 << 30))))

    @property
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        settings = dict(self.network.provenance)
        if self.network_size is not None:
            settings["network_size"] = self.network_size
        if self.second_look is not None:
            looks = asdict(self.second_look.config)
            settings |= {f"second_look_{name}": value for name, value in looks.items()}
        if self.refinement is not None:
            stages = asdict(self.refinement)
            settings |= {f"refinement_{name}": value for name, value in stages.items()}
        return settings

    def encode(self, image: NetworkImage) -> Features:
        return self.encode_batch([image])[0]

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[NetworkImage]) -> list[Features]:
        seen = [self._as_seen(image) for image in images]
        encoded = self.network.encode_batch(seen)
        photos: list[Features] = []
        for image, reduced_image, features in zip(images, seen, encoded, strict=True):
            pixels = image.tensor.half().to(self._device)
            held = features.nbytes + pixels.nbytes
            corners: Corners | DeviceCorners | None = None
            if self.refinement is not None:
                grey = image.tensor.mean(dim=0, keepdim=True)
                if self.batched:
                    corners = corners_on_device(grey.to(self._device)).of(0)
                else:
                    corners = strongest_corners(grey)
                held += corners.nbytes
            distinctness: np.ndarray | None = None
            if self.refinement is not None or self.second_look is not None:
                distinctness = self.network.distinctness(features)
                held += 0 if distinctness is None else distinctness.nbytes
            whole = whole_view(features, image, reduced_image)
            views = ImageViews(pixels, whole, distinctness, OnDemand())
            photos.append(RefinedFeatures(RefinedPhoto(views, corners), image.transform, held))
        return photos

    def _as_seen(self, image: NetworkImage) -> NetworkImage:
        """A photo as the network sees it."""
        if self.network_size is None:
            return image
        return reduced(image, self.network_size, self.info.preprocessing.divisor)

    def to_host(self, features: Features) -> Features | None:
        data: RefinedPhoto = features.data
        whole = self.network.to_host(data.views.whole.features)
        if whole is None:
            return None
        views = ImageViews(
            data.views.pixels.cpu(),
            data.views.whole._replace(features=whole),
            data.views.distinctness,
            data.views.on_demand.moved(self.network.to_host),
        )
        return replace(features, data=data.moved(views, torch.device("cpu")))

    def from_host(self, features: Features) -> Features:
        data: RefinedPhoto = features.data
        whole = data.views.whole
        views = ImageViews(
            data.views.pixels.to(self._device),
            whole._replace(features=self.network.from_host(whole.features)),
            data.views.distinctness,
            data.views.on_demand.moved(self.network.from_host),
        )
        return replace(features, data=data.moved(views, self._device))

    @torch.inference_mode()
    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        views = [(first.data.views, second.data.views) for first, second in pairs]
        found = self.network.match_pixels([(a.whole.features, b.whole.features) for a, b in views])
        if self.second_look is not None:
            found = self.second_look.improve(views, found)
        else:
            wholes = [(a.whole, b.whole) for a, b in views]
            found = [in_photos(pair, m) for pair, m in zip(wholes, found, strict=True)]
        if self.refinement is None:
            return found
        refined: dict[int, Matches] = {}
        both = [(first.data, second.data) for first, second in pairs]
        found = [
            without_twins(
                matches,
                distinctness_of((pair[0].views, pair[1].views), matches),
                _reduction(pair),
                self.info.confident,
                self.refinement.min_distinct_difference,
            )
            for pair, matches in zip(both, found, strict=True)
        ]
        exchanged = [
            self._second_is_nearer(matches, _reduction(pair))
            for pair, matches in zip(both, found, strict=True)
        ]
        for exchange in (False, True):  # a batch has photos of one size on either side
            some = [i for i, value in enumerate(exchanged) if value == exchange]
            photos = [both[i][::-1] if exchange else both[i] for i in some]
            matches = [found[i].swapped() if exchange else found[i] for i in some]
            for i, better in zip(some, self._all_refined(photos, matches), strict=True):
                refined[i] = better.swapped() if exchange else better
        return [refined[i] for i in range(len(pairs))]

    def _second_is_nearer(self, matches: Matches, reduction: float) -> bool:
        """Whether the confident matches fill clearly more of the network's cells of photo 1 than of
        photo 0.

        The photo that shows everything larger must come first: neighbours are sought in photo 0,
        where the same matches would lie so closely that maps cannot be fitted to them.
        """
        chosen = matches.scores >= self.info.confident
        points = matches.keypoints0[chosen], matches.keypoints1[chosen]
        filled = [len(np.unique(cell_numbers(p / reduction))) for p in points]
        return filled[1] > _NEARER * filled[0]

    def _all_refined(
        self, photos: Sequence[tuple[RefinedPhoto, RefinedPhoto]], found: Sequence[Matches]
    ) -> list[Matches]:
        """The matches of each pair after all stages but the second look."""
        if not photos or self.refinement is None:
            return []
        if self.batched:
            first, second = (_photos(side) for side in zip(*photos, strict=True))
            limit = self._limit(first.textured[0].numel())
            together = BatchedRefinement(
                self.refinement, self.info.confident, limit, _reduction(photos[0])
            )
            return together.refined((first, second), found)
        return [
            self._refined(pair, matches, self.refinement)
            for pair, matches in zip(photos, found, strict=True)
        ]

    def _refined(
        self, pair: tuple[RefinedPhoto, RefinedPhoto], matches: Matches, config: RefinementConfig
    ) -> Matches:
        """The matches of one pair after all stages but the second look."""
        photos = _photo(pair[0]), _photo(pair[1])
        reduction = _reduction(pair)
        matches = self._supported_candidates(matches, config, reduction)
        neighbours = aligned_neighbours(config, reduction)
        aligned = align_to_corners(
            photos, matches.keypoints0, matches.keypoints1, config, reduction
        )
        agree = (
            (aligned.correlation >= config.min_correlation)
            & inside(aligned.points0, *photos[0].size)
            & inside(aligned.points1, *photos[1].size)
        ).nonzero()[0]
        scores = matches.scores[aligned.match[agree]]
        count = max(2 * config.target_matches, int((scores >= self.info.confident).sum()))
        best = agree[np.argsort(-scores, kind="stable")[:count]]
        limit = self._limit(photos[0].corners.textured.size)
        aligned = aligned.chosen(best).distinct()
        support = neighbour_support(aligned.points0, aligned.points1, neighbours, aligned=True)
        isolated = (aligned.correlation >= config.min_isolated_correlation) & (
            _on_texture(photos, aligned) | (support >= config.min_support)
        )
        found = aligned.chosen((support >= config.min_aligned_support).nonzero()[0])
        if len(found.match) >= config.min_matches_to_grow:
            grown = grow(photos, found, config, limit).distinct()
            support = neighbour_support(grown.points0, grown.points1, neighbours, aligned=True)
            found = grown.chosen((support >= config.min_aligned_support).nonzero()[0])
        found = found.joined(aligned.chosen(isolated.nonzero()[0])).distinct()
        # The two that come from one match differ in correlation: equal scores would be ties where
        # keypoints are merged.
        scores = matches.scores[found.match] * found.correlation.clip(min=0)
        order = np.argsort(-scores, kind="stable")[:limit]
        return Matches(found.points0[order], found.points1[order], scores[order])

    def _limit(self, cells: int) -> int:
        """Maximum number of matches of a pair whose first photo has so many cells: each match of
        the network may give two."""
        return self.info.topk or 2 * default_topk(cells)

    def _supported_candidates(
        self, matches: Matches, config: RefinementConfig, reduction: float
    ) -> Matches:
        """The matches that neighbours support in the pixels of what the network saw, best first;
        the confident ones if these suffice."""
        points = matches.keypoints0 / reduction, matches.keypoints1 / reduction
        support = neighbour_support(*points, config.neighbours)
        kept = support >= config.min_support
        confident = kept & (matches.scores >= self.info.confident)
        if confident.sum() >= config.target_matches:
            kept = confident
        order = np.argsort(-np.where(kept, matches.scores, -1), kind="stable")
        return matches[order[: kept.sum()]]


def _reduction(pair: tuple[RefinedPhoto, RefinedPhoto]) -> float:
    """Length in the photos over that in what the network saw, the larger one of both photos."""
    return max(photo.views.whole.reduction for photo in pair)


def _photo(data: RefinedPhoto) -> Photo:
    assert isinstance(data.corners, Corners)
    grey = data.views.pixels.cpu().float()
    if len(grey) > 1:  # the mean over one channel takes as long as over three
        grey = grey.mean(dim=0, keepdim=True)
    return Photo(grey, data.corners)


def _on_texture(photos: tuple[Photo, Photo], found: AlignedMatches) -> np.ndarray:
    """Whether both points (M,) are in cells with texture: any two without it correlate."""
    textured = np.ones(len(found.match), bool)
    for photo, points in zip(photos, (found.points0, found.points1), strict=True):
        cells = photo.corners.textured
        textured &= cells[cells_of(points, cells.shape)]
    return textured


def _photos(several: Sequence[RefinedPhoto]) -> Photos:
    """Photos of one size as the refinement of batches sees them."""
    grey = torch.stack([photo.views.pixels for photo in several]).float().mean(dim=1)
    corners = [photo.corners for photo in several if isinstance(photo.corners, DeviceCorners)]
    return Photos(
        Images.of(grey),
        torch.stack([c.points for c in corners]),
        torch.stack([c.textured for c in corners]),
    )

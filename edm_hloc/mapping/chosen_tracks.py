"""The photos of one part → its models: begun with chosen tracks, completed, without folds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database, verified_pairs
from edm_hloc.mapping.completion import complete_model
from edm_hloc.mapping.contradictions import (
    consistent_pairs,
    misplaced_photos,
    strongest_pairs,
    weakest_points,
)
from edm_hloc.mapping.database_reading import IdPair
from edm_hloc.mapping.focal_lengths import calibrate_focal_lengths
from edm_hloc.mapping.forecast import forecast
from edm_hloc.mapping.incremental import (
    FoundModel,
    IncrementalMapping,
    cameras_of,
    map_believably,
    with_points,
)
from edm_hloc.mapping.joining import join_models
from edm_hloc.mapping.look_alikes import many_conflicts, view_agreements
from edm_hloc.mapping.parts import copy_images
from edm_hloc.mapping.plausible import MIN_PLAUSIBLE, plausible_images
from edm_hloc.mapping.rotations import StrongestPairs
from edm_hloc.mapping.thinning import thin_database
from edm_hloc.mapping.unfolding import REGISTERED, pairs_of_places, shown_by_both, stay, unfold

logger = logging.getLogger(__name__)

_STRONG = (0.15, 0.3, 0.5)  # of the matches of a photo's best pair, in the pairs that are trusted
_FEW = 3  # misplaced photos, up to which models without them are asked for
_FEWER = 0.5  # misplaced photos, of those before, that mapping by these must leave at most
_LARGEST = 0.8  # images of the largest model, of those before, that it must have at least
_LESS = 0.75  # of what does not fit of the photo that fits least, that mapping once more must leave
_AS_WELL = 0.02  # less of that photo's matches that may fit a model that fits the strongest pairs
_DOUBTED = 2  # images for each misplaced one that models without them may lack, if none has all:
# of photos that contradict each other either side is named


@dataclass(frozen=True)
class ChosenTracks:
    """A part of the photos, and what its model is begun with.

    Attributes:
        mapping: of the whole database of the part.
        thinned: of a copy with chosen tracks only; None where that would save little.
        kept: by image id, the numbers that the copy's keypoints have in the database.
        expected: seconds that mapping and completing are going to take, 0 where it is not known.
    """

    mapping: IncrementalMapping
    thinned: IncrementalMapping | None
    kept: Mapping[int, np.ndarray]
    expected: float

    @classmethod
    def of(cls, mapping: IncrementalMapping, thin: Path) -> ChosenTracks:
        """Chooses the tracks of a database.

        Args:
            mapping: on the database.
            thin: the file to write.
        """
        start = time.monotonic()
        kept = thin_database(mapping.database, thin, mapping.options.min_inliers)
        if kept is None:
            return cls(mapping, None, {}, 0.0)
        calibrate_focal_lengths(thin)
        expected = forecast(mapping.database, kept, time.monotonic() - start)
        return cls(mapping, replace(mapping, database=thin, thinned=True), kept, expected)

    def models(self, refine: bool) -> list[FoundModel]:
        """The models of the part, the one with most images first.

        Args:
            refine: refine the intrinsics of the cameras that are not constant.
        """
        found = self._completed(self._begun(refine), refine)
        if not found:
            found = map_believably(self.mapping, refine)
        if not found:
            return []
        conflicts = many_conflicts(view_agreements(found[0].model, self.mapping.database))
        unfolded = self._unfolded(found[0], conflicts, refine) if conflicts else None
        if unfolded is not None:
            return [unfolded, *found[1:]]
        database, least = self.mapping.database, self.mapping.options.min_inliers
        misplaced = misplaced_photos([found[0].model], database, least)
        trusted = self._by_strongest_pairs(found, misplaced, refine)
        if not trusted and misplaced:
            trusted = self._by_trusted_pairs(found, misplaced, refine)
        if trusted:
            found = trusted
            conflicts = many_conflicts(view_agreements(found[0].model, self.mapping.database))
        places = self._of_places(found, conflicts, refine) if conflicts else None
        return places or found

    def _begun(self, refine: bool) -> list[FoundModel]:
        """Models of the chosen tracks, where there are such."""
        return [] if self.thinned is None else map_believably(self.thinned, refine)

    def _completed(self, found: Sequence[FoundModel], refine: bool) -> list[FoundModel]:
        """Models of chosen tracks completed, without those whose images a larger one has got."""
        if not found:
            return []
        mapping = self.mapping.like(found[0])
        undistorted = found[0].undistorted or not refine
        whole = self._whole(found, mapping, refine, not undistorted)
        if not undistorted and self._spoiled(found[0].model, whole):
            logger.info("Completing once more, without distortion.")
            whole, undistorted = self._whole(found, mapping, refine, False), True
        return [
            replace(found[0], model=model, undistorted=undistorted and refine) for model in whole
        ]

    def _whole(
        self,
        found: Sequence[FoundModel],
        mapping: IncrementalMapping,
        focal: bool,
        distortion: bool,
    ) -> list[pycolmap.Reconstruction]:
        """Models of chosen tracks completed, with what is refined of the cameras."""
        colmap = mapping.colmap_options(focal, distortion)
        covered: set[int] = set()
        whole = []
        for each in found:
            if not set(each.model.reg_image_ids()) <= covered:
                whole.append(complete_model(each.model, self.kept, mapping.database, colmap))
                covered |= set(whole[-1].reg_image_ids())
        # they have grown over more photos of one another
        return with_points(join_models(with_points(whole), mapping.database, colmap))

    def _spoiled(
        self, begun: pycolmap.Reconstruction, whole: Sequence[pycolmap.Reconstruction]
    ) -> bool:
        """Whether completion has left the largest model with fewer plausible cameras, too few."""
        initial = cameras_of(self.mapping.database)
        plausible, registered = plausible_images(whole, initial)
        before = plausible_images([begun], initial)[0]
        return plausible < min(before, MIN_PLAUSIBLE * registered)

    def _unfolded(
        self, folded: FoundModel, conflicts: Sequence[IdPair], refine: bool
    ) -> FoundModel | None:
        """The model without pairs that look alike, if it has no signs of a fold."""
        base = self.mapping.like(folded)
        registered = folded.model.num_reg_images()
        begun: list[FoundModel] = []
        kept: dict[int, np.ndarray] = {}

        def mapping(database: Path) -> pycolmap.Reconstruction | None:
            found, numbers = _begun_on(replace(base, database=database, images=registered), refine)
            begun.extend(found)
            kept.update(numbers)
            return begun[0].model if begun else None

        least = base.options.min_inliers
        left = unfold(base.database, base.folder, folded.model, conflicts, mapping, least)
        if left is None:
            return None
        fitting = replace(base, database=left.database)
        completed = ChosenTracks(fitting, None, kept, 0.0)._completed(begun[:1], refine)
        if not completed or completed[0].model.num_reg_images() < REGISTERED * registered:
            return None
        whole = completed[0]
        if many_conflicts(view_agreements(whole.model, base.database)):
            return None
        return replace(
            whole,
            one_camera=folded.one_camera or whole.one_camera,
            look_alikes=left.look_alikes,
        )

    @cached_property
    def _verified(self) -> tuple[dict[IdPair, int], dict[int, str]]:
        """The number of matches of each verified pair that counts, and the images' names by id."""
        with open_database(self.mapping.database) as db:
            counts = verified_pairs(db, max(1, self.mapping.options.min_inliers))
            return counts, {image.image_id: image.name for image in db.read_all_images()}

    def _of_places(
        self, found: Sequence[FoundModel], conflicts: Sequence[IdPair], refine: bool
    ) -> list[FoundModel] | None:
        """Models of the places, where only pairs that look alike connect them."""
        database, least = self.mapping.database, self.mapping.options.min_inliers
        counts, names = self._verified
        left_out = set(found[0].look_alikes)
        with open_database(database) as db:
            shares = {
                pair: share
                for pair, share in shown_by_both(db, least).items()
                if tuple(sorted((names[pair[0]], names[pair[1]]))) not in left_out
            }
        trusted = pairs_of_places(shares, counts, conflicts)
        if trusted is None:
            return None

        def moved(models: Sequence[pycolmap.Reconstruction]) -> bool:
            return not stay(models, conflicts)

        apart = self._mapped_by(trusted, found, moved, refine)
        models = [each.model for each in apart]
        if len(_images(models)) < REGISTERED * len(_images(each.model for each in found)):
            return None
        if any(many_conflicts(view_agreements(model, database)) for model in models):
            return None
        return apart

    def _by_strongest_pairs(
        self, found: Sequence[FoundModel], misplaced: Collection[str], refine: bool
    ) -> list[FoundModel] | None:
        """Models without the pairs that contradict the strongest ones, where the largest model has
        misplaced photos or is bent against the strongest pairs. None if they are no better."""
        base, least = self.mapping.like(found[0]), self.mapping.options.min_inliers
        counts, _ = self._verified
        largest = found[0].model
        with open_database(base.database) as db:
            pairs = StrongestPairs.of(db, largest, counts)
        bent = pairs.bent(largest)
        if not (bent or misplaced) or not (others := pairs.contradicting()):
            return None
        agreement, _ = weakest_points([largest], base.database, least)

        def better(models: Sequence[pycolmap.Reconstruction]) -> bool:
            now, loose = weakest_points(models, base.database, least)
            left = pairs.bent(models[0])
            if loose:  # the strongest of the pairs that connect its parts may be wrong as well
                return False
            if 1 - now <= _LESS * (1 - agreement):
                return left <= bent
            return left <= _FEWER * bent and left < bent and now >= agreement - _AS_WELL

        apart = self._mapped_by(counts.keys() - others, found, better, refine)
        before = [each.model for each in found]
        # A model that nothing contradicts outright is not left for a smaller one.
        enough = bool(misplaced) or _images(before) <= _images(each.model for each in apart)
        return apart if enough and _as_large(apart, before) else None

    def _by_trusted_pairs(
        self, found: Sequence[FoundModel], misplaced: Collection[str], refine: bool
    ) -> list[FoundModel] | None:
        """Models without the weaker pairs, as with them the largest has misplaced photos.

        The weaker pairs come back that fit these models. Where no choice of pairs gives models as
        large, they may lack photos that are doubted. None if the models are no better.
        """
        base, least = self.mapping.like(found[0]), self.mapping.options.min_inliers
        counts, names = self._verified
        before = [each.model for each in found]
        still = set(misplaced)

        def better(models: Sequence[pycolmap.Reconstruction]) -> bool:
            nonlocal still
            still = set(misplaced_photos(models, base.database, least))
            return len(still) <= _FEWER * len(misplaced)

        smaller: list[list[FoundModel]] = []
        for trusted in _strongest(counts):
            apart = self._mapped_by(trusted, found, better, refine)
            if _as_large(apart, before):
                return apart
            if _as_large(apart, before, _DOUBTED * len(misplaced)):
                smaller.append(apart)
        # Nothing may tell where a photo belongs that shares matches with its neighbours by mistake.
        doubted, still = set[str](), set(misplaced)
        while still - doubted and not smaller and len(doubted | still) <= _FEW:
            doubted |= still
            others = {p for p in counts if not {names[i] for i in p} & doubted}
            apart = self._mapped_by(others, found, better, refine)
            if _as_large(apart, before, len(doubted)):
                smaller.append(apart)
        return max(smaller, key=lambda each: each[0].model.num_reg_images(), default=None)

    def _mapped_by(
        self,
        trusted: set[IdPair],
        found: Sequence[FoundModel],
        better: Callable[[Sequence[pycolmap.Reconstruction]], bool],
        refine: bool,
    ) -> list[FoundModel]:
        """Models by trusted pairs and those that fit them, none if they are not better.

        Args:
            trusted: the pairs.
            found: models of all pairs.
            better: asked of the models as they begin, and when they are complete.
            refine: as for `models`.
        """
        base = self.mapping.like(found[0])
        counts, names = self._verified
        logger.info(
            "Mapping once more, without %d of %d pairs, which contradict the model or may look "
            "alike.",
            len(counts) - len(trusted),
            len(counts),
        )
        begun, kept = _begun_on(_copy_with(base, "strongest", trusted), refine)
        if not begun or not better([each.model for each in begun]):
            return []
        fitting = trusted | _fitting(base.database, begun, counts)
        whole = ChosenTracks(_copy_with(base, "fitting", fitting), None, kept, 0.0)
        completed = whole._completed(begun, refine)
        if not completed or not better([each.model for each in completed]):
            return []
        before = _images(each.model for each in found)
        together = [_images([each.model]) for each in completed]
        left = [p for p in counts.keys() - fitting if any(set(p) & images for images in together)]
        alike = tuple(sorted((names[a], names[b]) for a, b in left if {a, b} <= before))
        one_camera = found[0].one_camera
        apart = [replace(each, one_camera=one_camera or each.one_camera) for each in completed]
        return [replace(apart[0], look_alikes=alike), *apart[1:]]


def _strongest(counts: Mapping[IdPair, int]) -> Iterator[set[IdPair]]:
    """Choices of the strongest pairs of each photo, from most to fewest."""
    before = set(counts)
    for share in _STRONG:
        strong = strongest_pairs(counts, share)
        if strong != before:
            before = strong
            yield strong


def _as_large(
    found: Sequence[FoundModel], before: Sequence[pycolmap.Reconstruction], less: int = 0
) -> bool:
    """Whether models have nearly as many images as others, or as others of so many less."""
    models = [each.model for each in found]
    of_all, of_largest = len(_images(before)) - less, before[0].num_reg_images() - less
    if not models or len(_images(models)) < REGISTERED * of_all:
        return False
    return models[0].num_reg_images() >= _LARGEST * of_largest


def _begun_on(
    mapping: IncrementalMapping, refine: bool
) -> tuple[list[FoundModel], Mapping[int, np.ndarray]]:
    """Models to be completed, and the numbers of their keypoints in the whole, by image id."""
    thin = mapping.database.with_name(f"thin-{mapping.database.name}")
    chosen = ChosenTracks.of(mapping, thin)
    begun = chosen._begun(refine)
    if begun:
        return begun, chosen.kept
    with open_database(mapping.database) as db:
        ids = [image.image_id for image in db.read_all_images()]
        every = {i: np.arange(db.num_keypoints_for_image(i)) for i in ids}
    return map_believably(mapping, refine), every


def _copy_with(
    base: IncrementalMapping, name: str, pairs: Collection[IdPair]
) -> IncrementalMapping:
    """The same on a copy of the database with some of its pairs."""
    copy = base.folder / f"{name}-{base.database.name}"
    with open_database(base.database) as db:
        copy_images(db, copy, {i.image_id for i in db.read_all_images()}, sorted(pairs))
    return replace(base, database=copy)


def _fitting(database: Path, found: Iterable[FoundModel], pairs: Collection[IdPair]) -> set[IdPair]:
    """The pairs that fit one of the models."""
    with open_database(database) as db:
        return {p for each in found for p in consistent_pairs(db, each.model, pairs)}


def _images(models: Iterable[pycolmap.Reconstruction]) -> set[int]:
    """Ids of the images that one of the models has."""
    return {image_id for model in models for image_id in model.reg_image_ids()}

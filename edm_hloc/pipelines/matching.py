"""Pairs of photos → raw matches → keypoints and matches: the first steps of every pipeline."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.fingerprint import file_stamp, fingerprint_of
from edm_hloc.base.h5 import DamagedH5Error
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.roots import ImageRoot
from edm_hloc.keypoints.aggregation import KeypointFiles, ReferenceFiles, aggregate
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.mapping.backdrop import BackdropSummary
from edm_hloc.mapping.not_scene import NotScene
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.damage import drop_damaged
from edm_hloc.matching.engine import MatchingConfig, MatchingSummary
from edm_hloc.matching.masked import MaskedMatchReader
from edm_hloc.matching.shards import shard_times
from edm_hloc.pairs.files import read_pairs, write_pairs
from edm_hloc.pairs.retrieval import SimilarPhotos
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs
from edm_hloc.pipelines.retrieval import similar_pairs
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.spreading import spread_matching
from edm_hloc.pipelines.workers import match_in_processes

MATCHING_FILES = ("features.h5", "matches.h5")
"""Names of the files that `match_and_quantize` writes, for `Run.begin`, besides the list of pairs
and the raw matches, which tell themselves whether they may be continued."""


def names_of(pairs: Sequence[Pair] | SimilarPhotos) -> Sequence[str]:
    """Names of all photos of the pairs."""
    return pairs.names if isinstance(pairs, SimilarPhotos) else names_in(pairs)


def find_pairs(
    run: Run, pairs: Sequence[Pair] | SimilarPhotos, image_root: Path, matcher: Matcher
) -> Sequence[Pair]:
    """The listed pairs as they are, or pairs of similar photos by global descriptors.

    Raises:
        EdmHlocError: the descriptors cannot be computed or read.
    """
    if isinstance(pairs, SimilarPhotos):
        return similar_pairs(run, pairs, image_root, matcher)
    return pairs


@dataclass(frozen=True)
class PairsToMatch:
    """The input of `match_and_quantize`.

    Attributes:
        image_root: folder or folders of the photos.
        pairs: names of the two photos of each pair, relative to `image_root`.
        masks: mask file of each photo that has one, black where matches do not count.
        reference_features: H5 file of keypoints. The images in it keep these keypoints: matches
            are indices into them, and `features.h5` holds the other images only.
        chosen: the matching of these pairs, where they were chosen while they were matched.
        turntable: leave out the still background of an object that turns before the camera.
    """

    image_root: ImageRoot
    pairs: Sequence[Pair]
    masks: Mapping[str, Path] = field(default_factory=dict)
    reference_features: Path | None = None
    chosen: MatchingSummary | None = None
    turntable: bool = False


def match_and_quantize(
    run: Run,
    photos: PairsToMatch,
    matcher: Matcher,
    keypoints: QuantizationConfig,
    matching: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> str:
    """Matches pairs and merges the matched points: `features.h5` and `matches.h5` of a run.

    Pairs that are in `raw_matches` already are not matched again, except those that turn out to be
    damaged when they are read. The two files are written again only if raw matches, pairs, masks or
    settings have changed.

    Args:
        run: the run in whose folder the files go.
        photos: the pairs, their photos and masks.
        matcher: finds the matches of a pair.
        keypoints: how matched points are merged into keypoints.
        matching: memory and threads of the matching.
        overwrite: match every pair again.

    Returns:
        The fingerprint of the two files, for the steps that depend on them.

    Raises:
        EdmHlocError: from any step; pairs that were matched are kept.
        WorkLeftError: pairs are left to workers, see `spread_matching`.
    """
    out, image_root, pairs, masks = run.out, photos.image_root, photos.pairs, photos.masks
    raw_matches = out / "raw_matches"
    _record_pairs(run, pairs)

    def match(*, overwrite: bool) -> None:
        spread_matching(run, image_root, pairs, matcher)
        summary = match_in_processes(
            image_root, pairs, matcher, raw_matches, matching, overwrite=overwrite
        )
        record(summary)

    def record(summary: MatchingSummary) -> None:
        run.results["matching"] = asdict(summary)
        if summary.matched:
            run.measure("matching", time.monotonic() - summary.seconds)
        run.write()

    if photos.chosen is None:
        match(overwrite=overwrite)
    else:
        record(photos.chosen)
    features, matches = out / "features.h5", out / "matches.h5"

    def quantize(raw: MaskedMatchReader, made_from: str) -> dict[str, Any]:
        reference = photos.reference_features
        files = KeypointFiles(features, matches, made_from)
        references = ReferenceFiles((reference,) if reference else ())
        found = {}
        if photos.turntable:
            not_scene = find_backgrounds(raw, pairs)
            found["background"] = _leave_out(raw, pairs, not_scene)
        summary = aggregate(raw, pairs, files, keypoints, references)
        # of a run that goes on, raw matches were read of the last images only
        if raw.any_masked and not raw.any_visible and not summary.matches:
            raise EdmHlocError(
                "The masks leave none of the matches: only matches in the white parts of the "
                "masks count. Are black and white exchanged?"
            )
        return {"keypoints": summary, "masked": raw.summary(), **found}

    depends_on: list[Any] = [asdict(keypoints)]
    if photos.reference_features is not None:
        # not its path: it may lie in OUT, which may move
        depends_on.append(file_stamp(photos.reference_features))
    run.results.pop("masks", None)
    if masks:
        depends_on.append(mask_stamps(raw_matches, masks))
        run.results["masks"] = {"photos": len(masks)}

    def make_keypoints() -> str:
        with MaskedMatchReader(raw_matches, masks, image_root) as raw:
            used = [pair for pair in pairs if not raw.is_outdated(pair)]
            inputs = [shard_times(raw_matches), used, *depends_on]
            files, made_from = [features, matches], fingerprint_of(inputs)
            return run.step("keypoints", inputs, files, lambda: quantize(raw, made_from))

    try:
        return make_keypoints()
    except DamagedH5Error as error:
        if error.path.parent != raw_matches:
            raise
    drop_damaged(raw_matches)
    match(overwrite=False)
    return make_keypoints()


def mask_stamps(raw_matches: Path, masks: Mapping[str, Path]) -> dict[str, list[Any]]:
    """Path and time of the mask of each photo that has one; equal content keeps its time.

    Args:
        raw_matches: see `KnownPhotos`.
        masks: as in `PairsToMatch`.
    """
    stamps = KnownPhotos(raw_matches).noted(Path(), [*dict.fromkeys(map(str, masks.values()))])
    return {name: [str(mask), stamps[str(mask)][1]] for name, mask in masks.items()}


def find_backgrounds(raw: MaskedMatchReader, pairs: Sequence[Pair]) -> NotScene:
    """Finds the still backgrounds before which an object turns, see `mapping.backdrop`.

    Args:
        raw: reads the matches of the pairs.
        pairs: those among which backgrounds are sought.
    """
    sizes = {}
    for name in names_in(pairs):
        with contextlib.suppress(ImageError):
            sizes[name] = raw.photo_size(name)
    return NotScene(unique_pairs(pairs), partial(_matched, raw), sizes)


def _matched(raw: MaskedMatchReader, pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
    """The matched points (M, 2) of both photos of a pair; None without any stored."""
    found = raw.read(*pair) if pair in raw else None
    return None if found is None else (found.keypoints0, found.keypoints1)


def _leave_out(
    raw: MaskedMatchReader, pairs: Sequence[Pair], not_scene: NotScene
) -> BackdropSummary:
    """Has a reader leave out the matches in backgrounds, and counts them."""
    number = 0
    for pair in unique_pairs(pairs):
        if not not_scene.backdrops.keys().isdisjoint(pair):
            both = _matched(raw, pair)
            number += 0 if both is None else int(not_scene.in_background(pair, both).sum())
    raw.not_scene = not_scene.in_background
    return BackdropSummary(tuple(not_scene.backdrops), number, tuple(not_scene.kept))


def _record_pairs(run: Run, pairs: Sequence[Pair]) -> None:
    """Writes the pairs into `pairs.txt`; somebody's own list of the same pairs stays as it is.

    Raises:
        EdmHlocError: somebody's list of other pairs is there, or the file cannot be written.
    """
    path = run.out / "pairs.txt"
    try:
        run.claim(path.name)
    except EdmHlocError:
        with contextlib.suppress(EdmHlocError):
            listed = {frozenset(pair) for pair in read_pairs(path)}
            if listed == {frozenset(pair) for pair in pairs}:
                return
        raise
    write_pairs(path, pairs)

"""Raw matches → keypoint and match files that hloc and COLMAP read, one image at a time."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import Provenance
from edm_hloc.base.journal import Journal, journal_path
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import StepProgress
from edm_hloc.keypoints.adjustment import (
    PairConstraints,
    adjust_keypoints,
    pair_constraints,
)
from edm_hloc.keypoints.assignment import assign_points, matched_points, unique_matches
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchWriter
from edm_hloc.keypoints.kept import KeptKeypoints
from edm_hloc.keypoints.quantization import QuantizationConfig, quantize_image
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.rules import Pair, unique_pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeypointFiles:
    """The two H5 files that `aggregate` writes.

    Attributes:
        features: keypoints and scores of each image, without images of fixed keypoints.
        matches: indices of matched keypoints of each pair.
        made_from: fingerprint of everything that both depend on. With it, images that are done are
            kept in `journal_path(features)`, from which the same call goes on after the process was
            killed. Without it nothing is kept.
    """

    features: Path
    matches: Path
    made_from: str = ""


@dataclass(frozen=True)
class ReferenceFiles:
    """Feature files of images that have keypoints already.

    Attributes:
        paths: the files; of several with the same image the last counts.
        fixed: True: these images keep their keypoints, and matches are indices into them; those of
            score 0 get none. False: their keypoints vote with their scores (1 where a file has
            none), before the points of the matches do, and new keypoints result.
    """

    paths: Sequence[Path] = ()
    fixed: bool = True


@dataclass(frozen=True)
class KeypointWriters:
    """Where `aggregate_into` writes: open files, or objects with their methods.

    Attributes:
        features: gets keypoints and scores of each image.
        matches: gets indices of matched keypoints of each pair.
        kept: gets what is done, 4 bytes per raw match and, where keypoints are adjusted, 20 bytes
            per match, and 10 more if it outlives the process; None is a temporary file.
    """

    features: FeatureWriter
    matches: MatchWriter
    kept: Journal | None = None


@dataclass(frozen=True)
class ReferenceKeypoints:
    """`ReferenceFiles` that are open, or objects with their methods."""

    readers: Sequence[FeatureReader] = ()
    fixed: bool = True


@dataclass(frozen=True)
class AggregationSummary:
    """What `aggregate` wrote.

    Attributes:
        images: images in the feature file.
        pairs: pairs in the match file.
        keypoints: number of keypoints of all these images.
        matches: number of matches of all these pairs.
        missing_pairs: pairs that were asked for but have no raw matches.
    """

    images: int
    pairs: int
    keypoints: int
    matches: int
    missing_pairs: tuple[Pair, ...]


def aggregate(
    raw: RawMatchReader,
    pairs: Iterable[Pair],
    files: KeypointFiles,
    config: QuantizationConfig,
    references: ReferenceFiles | None = None,
    provenance: Provenance | None = None,
) -> AggregationSummary:
    """Makes keypoints and match indices out of raw matches, as hloc would from the same ones.

    Both files replace older ones at the end of a successful call; until then these are left as
    they are. Memory holds the raw matches of one image; each pair is read twice. With
    `config.position` "adjusted" memory also holds the keypoints of all images, unless one image of
    each pair has fixed keypoints (as in localization, where queries are adjusted one by one).

    Args:
        raw: raw matches, in pixels of the photos, with the centre of the top-left pixel at (0, 0).
        pairs: image names; repeated pairs (in either order) count once, pairs of an image with
            itself not at all. For localization the query comes first.
        files: the two files to write.
        config: how points are merged into keypoints.
        references: keypoints that some images have already.
        provenance: stored in both files, beside that of the raw matches and `config`.

    Raises:
        EdmHlocError: a file cannot be read or written, or raw matches or keypoints are damaged.
    """
    references = references or ReferenceFiles()
    stored = {
        **raw.provenance,
        **(provenance or {}),
        "max_error": config.max_error,
        "cell_size": config.cell_size,
        "max_kps": config.max_kps,
        "position": config.position,
    }
    journal = Journal(None, folder=files.matches.parent)
    if files.made_from:
        journal = Journal(journal_path(files.features), files.made_from)
    with journal, ExitStack() as stack:
        readers = [stack.enter_context(FeatureReader(path)) for path in references.paths]
        writers = KeypointWriters(
            stack.enter_context(FeatureWriter(files.features, stored)),
            stack.enter_context(MatchWriter(files.matches, stored)),
            kept=journal,
        )
        opened = ReferenceKeypoints(readers, references.fixed)
        summary = aggregate_into(raw, pairs, writers, config, opened)
    journal.remove()
    return summary


def aggregate_into(
    raw: RawMatchReader,
    pairs: Iterable[Pair],
    writers: KeypointWriters,
    config: QuantizationConfig,
    references: ReferenceKeypoints | None = None,
) -> AggregationSummary:
    """Does the work of `aggregate` between open files.

    Raises:
        EdmHlocError: as `aggregate`.
    """
    references = references or ReferenceKeypoints()
    asked = unique_pairs(pairs)
    ordered = _in_hlocs_order([pair for pair in asked if pair in raw])
    missing = tuple(pair for pair in asked if pair not in raw)
    if missing:
        logger.warning("%d of %d pairs have no raw matches.", len(missing), len(asked))
    pairs_of: dict[str, list[int]] = defaultdict(list)  # indices into `ordered`
    for i, pair in enumerate(ordered):
        for name in pair:
            pairs_of[name].append(i)
    reader_of = {n: reader for reader in references.readers for n in pairs_of if n in reader}
    fixed = set(reader_of) if references.fixed else set()
    jointly = config.position == "adjusted" and any(fixed.isdisjoint(pair) for pair in ordered)

    num_keypoints = num_matches = 0
    # fixed images come first, so that the others can be adjusted to them at once
    in_order = sorted(pairs_of, key=lambda name: (name not in fixed, name))
    with ExitStack() as stack:
        journal = writers.kept
        if journal is None:
            journal = stack.enter_context(Journal(None))
        kept = KeptKeypoints(journal)
        work = _Work(raw, ordered, pairs_of, reader_of, fixed, config, kept, jointly)
        adjustment = _JointAdjustment(journal, config.max_error) if jointly else None
        before = sum(kept.has_image(k) for k in range(len(in_order)))
        progress = StepProgress("Keypoints", "photo", len(in_order), before=before)
        stack.enter_context(progress)
        for k, name in enumerate(in_order):
            if kept.has_image(k):
                image = work.image_again(k, name)
            else:
                image = work.image(k, name)
                progress.update()
            for i, matches0, scores0 in image.matches:
                writers.matches.add(*ordered[i], matches0, scores0)
                num_matches += int(np.count_nonzero(matches0 != -1))
                if adjustment:
                    adjustment.add_pair(i, ordered[i])
            if image.scores is not None:
                num_keypoints += len(image.keypoints)
            if adjustment:
                adjustment.add_image(name, image.keypoints, image.scores)
            elif image.scores is not None:
                writers.features.add(name, image.keypoints, image.scores)
        progress.close()
        if adjustment:
            adjustment.finish(writers.features)
    return AggregationSummary(
        images=len(pairs_of.keys() - fixed),
        pairs=len(ordered),
        keypoints=num_keypoints,
        matches=num_matches,
        missing_pairs=missing,
    )


def _in_hlocs_order(pairs: list[Pair]) -> list[Pair]:
    """Sorts pairs as hloc does: the order of keypoints and the rounding of scores depend on it."""
    pairs_per_image = Counter(name for pair in pairs for name in pair)
    return sorted(pairs, key=lambda pair: (min(pairs_per_image[name] for name in pair), pair))


def _read(raw: RawMatchReader, pair: Pair) -> Matches:
    matches = raw.read(*pair)
    if not len(matches.keypoints0) == len(matches.keypoints1) == len(matches.scores):
        raise EdmHlocError(
            f"Raw matches of {pair} differ in length from one array to another: match them again."
        )
    return matches


# --------------------------------------------------------------------------- one image


class _Image(NamedTuple):
    """What becomes of an image: keypoints (N, 2), scores (N,) or None where the keypoints are
    fixed, and the pairs that are complete with it: their numbers, matches0 and scores0."""

    keypoints: np.ndarray
    scores: np.ndarray | None
    matches: list[tuple[int, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Work:
    """Merges the points of one image after the other, and keeps what it finds.

    Attributes:
        raw: raw matches.
        pairs: all pairs.
        pairs_of: numbers of the pairs of each image.
        reader_of: file of the images that have keypoints already.
        fixed: images that keep these.
        config: how points are merged.
        kept: what is done already, and the keypoints of the points in the image of a pair that
            comes first, until the other one comes.
        jointly: whether the keypoints of all images are adjusted together later on.
    """

    raw: RawMatchReader
    pairs: Sequence[Pair]
    pairs_of: Mapping[str, Sequence[int]]
    reader_of: Mapping[str, FeatureReader]
    fixed: Collection[str]
    config: QuantizationConfig
    kept: KeptKeypoints
    jointly: bool
    half_done: set[int] = field(default_factory=set)

    def image_again(self, k: int, name: str) -> _Image:
        """What `image` has kept of the `k`-th image."""
        complete = self._complete_with(name)
        matches = [(i, *self.kept.matches(i)) for i in complete]
        if name in self.fixed:
            return _Image(self.reader_of[name].keypoints(name), None, matches)
        return _Image(*self.kept.image(k), matches)

    def image(self, k: int, name: str) -> _Image:
        """Merges the points of the `k`-th image."""
        numbers, complete = self.pairs_of[name], self._complete_with(name)
        own_pairs = [self.pairs[i] for i in numbers]
        found = [_read(self.raw, pair) for pair in own_pairs]
        keypoints, scores, ids = _quantize(
            name, own_pairs, found, self.reader_of.get(name), self.fixed, self.config
        )
        matches, constraints = [], []
        for i, pair_matches, own in zip(numbers, found, ids, strict=True):
            if i not in complete:
                self.kept.put_ids(i, own)
                continue
            other = self.kept.ids(i)
            ids0, ids1 = (own, other) if name == self.pairs[i][0] else (other, own)
            matches0, scores0 = unique_matches(ids0, ids1, pair_matches.scores)
            matches.append((i, matches0, scores0))
            self.kept.put_matches(i, matches0, scores0)
            if self.config.position == "adjusted":
                used = matched_points(ids0, ids1, matches0)
                of_pair = pair_constraints(self.pairs[i], pair_matches, ids0, ids1, used)
                if self.jointly:
                    self.kept.put_constraints(i, of_pair)
                else:
                    constraints.append(of_pair)
        if scores is not None and constraints:
            keypoints = _adjust_to_fixed(
                name, keypoints, constraints, self.reader_of, self.config.max_error
            )
        self.kept.put_image(k, keypoints, scores)
        return _Image(keypoints, scores, matches)

    def _complete_with(self, name: str) -> list[int]:
        """The pairs of an image whose other one is done already."""
        numbers = self.pairs_of[name]
        complete = [i for i in numbers if i in self.half_done]
        self.half_done.symmetric_difference_update(numbers)
        return complete


def _quantize(
    name: str,
    pairs: Sequence[Pair],
    found: Sequence[Matches],
    reference: FeatureReader | None,
    fixed: Collection[str],
    config: QuantizationConfig,
) -> tuple[np.ndarray, np.ndarray | None, list[np.ndarray]]:
    """Merges the points of an image from all its pairs into keypoints.

    Returns:
        The keypoints (N, 2); their scores (N,), or None where the keypoints are fixed; and for each
        pair (M,) int64, the keypoints of its points, -1 for none.
    """
    points = [
        matches.keypoints0 if name == name0 else matches.keypoints1
        for matches, (name0, _) in zip(found, pairs, strict=True)
    ]
    scores: np.ndarray | None = None
    try:
        if reference is not None and name in fixed:
            keypoints, weights = _earlier_keypoints(reference, name)
            usable = np.flatnonzero(weights)
            ids = assign_points(np.concatenate(points), keypoints[usable], config.max_error)
            ids = np.append(usable, -1)[ids]
        else:
            earlier, weights = _earlier_keypoints(reference, name)
            # A query keeps its points where the other image's keypoints are fixed.
            kept = [
                config.max_kps is None and name == name0 and name1 in fixed
                for name0, name1 in pairs
            ]
            lengths = [len(earlier), *map(len, points)]
            keypoints, scores, ids = quantize_image(
                np.concatenate([earlier, *points]),
                np.concatenate([weights, *(matches.scores for matches in found)]),
                config,
                binned=~np.repeat([False, *kept], lengths),
            )
            ids = ids[len(earlier) :]
    except ValueError as error:
        raise EdmHlocError(
            f"The raw matches or reference keypoints of image {name!r} are damaged "
            f"({error}): delete them and make them again."
        ) from error
    ends = np.cumsum([len(matches) for matches in found])
    return keypoints, scores, np.split(ids, ends[:-1])


def _earlier_keypoints(reference: FeatureReader | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The keypoints (N, 2) that an image has already, and their weights (N,)."""
    if reference is None:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    keypoints, scores = reference.keypoints(name), reference.scores(name)
    if scores is None:
        scores = np.ones(len(keypoints))
    return keypoints.astype(np.float32), scores.astype(np.float32)


# --------------------------------------------------------------------------- adjustment


def _adjust_to_fixed(
    name: str,
    keypoints: np.ndarray,
    constraints: Sequence[PairConstraints],
    reader_of: Mapping[str, FeatureReader],
    max_shift: float,
) -> np.ndarray:
    """Adjusts the keypoints (N, 2) of an image that is matched to images of fixed ones only."""
    fixed = {other for pair in constraints for other in (pair.name0, pair.name1)} - {name}
    every = {name: keypoints, **{other: reader_of[other].keypoints(other) for other in fixed}}
    return adjust_keypoints(every, lambda: constraints, max_shift, fixed)[name]


class _JointAdjustment:
    """Collects the keypoints of all images and the matches of all pairs, then adjusts them."""

    def __init__(self, journal: Journal, max_shift: float) -> None:
        self._journal, self._max_shift = journal, max_shift
        self._keypoints: dict[str, np.ndarray] = {}
        self._scores: dict[str, np.ndarray] = {}
        self._pairs: dict[int, Pair] = {}

    def add_image(self, name: str, keypoints: np.ndarray, scores: np.ndarray | None) -> None:
        """Adds an image; without scores its keypoints are fixed."""
        self._keypoints[name] = keypoints
        if scores is not None:
            self._scores[name] = scores

    def add_pair(self, i: int, pair: Pair) -> None:
        """Adds a pair whose constraints are kept."""
        self._pairs[i] = pair

    def finish(self, features: FeatureWriter) -> None:
        """Adjusts all keypoints and writes them."""
        kept = KeptKeypoints(self._journal)
        adjusted = adjust_keypoints(
            self._keypoints,
            lambda: (kept.constraints(i, pair) for i, pair in self._pairs.items()),
            self._max_shift,
            self._keypoints.keys() - self._scores.keys(),
            journal=self._journal,
        )
        for name, keypoints in adjusted.items():
            features.add(name, keypoints, self._scores[name])

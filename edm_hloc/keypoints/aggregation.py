"""Raw matches → the keypoint and match files that hloc and COLMAP read, one image at a time."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import Provenance
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.adjustment import LINK, Links, adjust_keypoints, links_between
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchWriter
from edm_hloc.keypoints.quantization import (
    QuantizationConfig,
    assign,
    quantize_image,
    unique_matches,
)
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.rules import Pair, unique_pairs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AggregateSummary:
    """What `aggregate` wrote.

    Attributes:
        images: images in the feature file (those whose keypoints a reference fixes are not).
        pairs: pairs in the match file.
        keypoints: keypoints of all those images.
        matches: matches of all those pairs.
        missing_pairs: pairs asked for of which there are no raw matches.
    """

    images: int
    pairs: int
    keypoints: int
    matches: int
    missing_pairs: tuple[Pair, ...]


def aggregate(
    raw: RawMatchReader,
    pairs: Iterable[Pair],
    features_path: Path,
    matches_path: Path,
    config: QuantizationConfig,
    *,
    reference_features: Path | Sequence[Path] | None = None,
    quantize_references: bool = False,
    provenance: Provenance | None = None,
) -> AggregateSummary:
    """Makes keypoints and match indices out of raw matches, as hloc would from the same ones.

    Both files replace older ones when everything is done; until then nothing is seen of them.
    Memory holds the raw matches of one image; each pair is read twice. Where `config.position` is
    "adjusted" it also holds all keypoints, unless all pairs have an image of fixed keypoints: such
    as the queries of a localization, which are adjusted one by one.

    Args:
        raw: raw matches, in pixels of the original images (top-left pixel's centre at (0, 0)).
        pairs: pairs of image names; repeated ones (in either order) and self pairs count once or
            not at all. For localization the query comes first.
        features_path: the feature file to write; it gets no images with fixed keypoints.
        matches_path: the match file to write.
        config: the quantization.
        reference_features: feature files of images that have keypoints already. Of several files
            with the same image the last counts.
        quantize_references: let those keypoints vote with their scores (1 where a file has none),
            before the matches do, instead of keeping them as they are.
        provenance: stored in both files beside that of the raw matches and the quantization.

    Raises:
        EdmHlocError: if a file cannot be read or written, or the raw matches are damaged.
    """
    if reference_features is None:
        reference_features = []
    elif isinstance(reference_features, Path):
        reference_features = [reference_features]
    stored = {
        **raw.provenance,
        **(provenance or {}),
        "max_error": config.max_error,
        "cell_size": config.cell_size,
        "max_kps": config.max_kps,
        "position": config.position,
    }
    with ExitStack() as stack:
        references = [stack.enter_context(FeatureReader(path)) for path in reference_features]
        features = stack.enter_context(FeatureWriter(features_path, stored))
        matches = stack.enter_context(MatchWriter(matches_path, stored))
        return aggregate_into(
            raw,
            pairs,
            features,
            matches,
            config,
            references=references,
            quantize_references=quantize_references,
            scratch=matches_path.parent,
        )


def aggregate_into(
    raw: RawMatchReader,
    pairs: Iterable[Pair],
    features: FeatureWriter,
    matches: MatchWriter,
    config: QuantizationConfig,
    *,
    references: Sequence[FeatureReader] = (),
    quantize_references: bool = False,
    scratch: Path | None = None,
) -> AggregateSummary:
    """Does the work of `aggregate` between open files, or objects that behave like them.

    Args:
        scratch: folder for temporary files, of 4 bytes a raw match and, where keypoints are
            adjusted, 20 bytes a match; None is the system's.
    """
    asked = unique_pairs(pairs)
    ordered = _in_order_of_votes([pair for pair in asked if pair in raw])
    missing = tuple(pair for pair in asked if pair not in raw)
    if missing:
        logger.warning("%d of %d pairs have no raw matches.", len(missing), len(asked))
    pairs_of: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(ordered):
        for name in pair:
            pairs_of[name].append(i)
    reference_of = {n: reference for reference in references for n in pairs_of if n in reference}
    fixed = set() if quantize_references else set(reference_of)
    adjusted = config.position == "adjusted"
    together = adjusted and any(fixed.isdisjoint(pair) for pair in ordered)

    num_keypoints = num_matches = 0
    with ExitStack() as stack:
        spool = stack.enter_context(_Spool(len(ordered), np.dtype(np.int32), scratch))
        adjuster = None
        if together:
            links = stack.enter_context(_Spool(len(ordered), LINK, scratch))
            adjuster = _Adjuster(links, config.max_error)
        # those that are fixed come first, so that the others can be adjusted to them at once
        in_order = sorted(pairs_of, key=lambda name: (name not in fixed, name))
        for name in tqdm(in_order, desc="keypoints", unit="image", disable=None):
            own_pairs = [ordered[i] for i in pairs_of[name]]
            to_fixed: list[Links] = []
            reads = [_read(raw, pair) for pair in own_pairs]
            keypoints, scores, ids = _keypoints_of(
                name, own_pairs, reads, reference_of.get(name), fixed, config
            )
            if scores is not None:
                num_keypoints += len(keypoints)
            if adjuster:
                adjuster.hold(name, keypoints, scores)
            for i, read, own in zip(pairs_of[name], reads, ids, strict=True):
                if i not in spool:
                    spool.put(i, own.astype(np.int32))
                    continue
                other = spool.take(i)
                ids0, ids1 = (own, other) if name == ordered[i][0] else (other, own)
                matches0, scores0 = unique_matches(ids0, ids1, read.scores)
                matches.add(*ordered[i], matches0, scores0)
                num_matches += int(np.count_nonzero(matches0 != -1))
                if adjusted:
                    kept = _kept(ids0, ids1, matches0)
                    found = links_between(ordered[i], read, ids0, ids1, kept)
                    if adjuster:
                        adjuster.link(i, found)
                    else:
                        to_fixed.append(found)
            if scores is not None and not adjuster:
                if to_fixed:
                    keypoints = _adjusted_to(
                        reference_of, name, keypoints, to_fixed, config.max_error
                    )
                features.add(name, keypoints, scores)
        if adjuster:
            adjuster.release(features)
    return AggregateSummary(
        images=len(pairs_of.keys() - fixed),
        pairs=len(ordered),
        keypoints=num_keypoints,
        matches=num_matches,
        missing_pairs=missing,
    )


def _in_order_of_votes(pairs: list[Pair]) -> list[Pair]:
    """hloc's order of working, which decides the order of keypoints and the rounding of scores."""
    pairs_per_image = Counter(name for pair in pairs for name in pair)
    return sorted(pairs, key=lambda pair: (min(pairs_per_image[name] for name in pair), pair))


def _read(raw: RawMatchReader, pair: Pair) -> Matches:
    matches = raw.read(*pair)
    if not len(matches.keypoints0) == len(matches.keypoints1) == len(matches.scores):
        raise EdmHlocError(
            f"Raw matches of {pair} differ in length from one array to another: match them again."
        )
    return matches


def _keypoints_of(
    name: str,
    pairs: Sequence[Pair],
    reads: Sequence[Matches],
    reference: FeatureReader | None,
    fixed: Collection[str],
    config: QuantizationConfig,
) -> tuple[np.ndarray, np.ndarray | None, list[np.ndarray]]:
    """An image's keypoints (N, 2), their scores (N,) or None where they are fixed, and for each of
    its pairs the keypoints that the matches' points belong to (M,)."""
    points = [
        read.keypoints0 if name == name0 else read.keypoints1
        for read, (name0, _) in zip(reads, pairs, strict=True)
    ]
    scores: np.ndarray | None = None
    try:
        if reference is not None and name in fixed:
            keypoints = reference.keypoints(name)
            ids = assign(np.concatenate(points), keypoints, config.max_error)
        else:
            anchors, weights = _anchors(reference, name)
            # A query keeps its own points where only fixed keypoints are opposite.
            keep = [
                config.max_kps is None and name == name0 and name1 in fixed
                for name0, name1 in pairs
            ]
            lengths = [len(anchors), *map(len, points)]
            keypoints, scores, ids = quantize_image(
                np.concatenate([anchors, *points]),
                np.concatenate([weights, *(read.scores for read in reads)]),
                config,
                binned=~np.repeat([False, *keep], lengths),
            )
            ids = ids[len(anchors) :]
    except ValueError as error:
        raise EdmHlocError(
            f"The raw matches or reference keypoints of image {name!r} are damaged "
            f"({error}): delete them and make them again."
        ) from error
    ends = np.cumsum([len(read.scores) for read in reads])
    return keypoints, scores, np.split(ids, ends[:-1])


def _anchors(reference: FeatureReader | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The keypoints (N, 2) that vote first, and their weights (N,)."""
    if reference is None:
        return np.zeros((0, 2), np.float32), np.zeros(0, np.float32)
    keypoints, scores = reference.keypoints(name), reference.scores(name)
    if scores is None:
        scores = np.ones(len(keypoints))
    return keypoints.astype(np.float32), scores.astype(np.float32)


def _kept(ids0: np.ndarray, ids1: np.ndarray, matches0: np.ndarray) -> np.ndarray:
    """Which raw matches (M,) between keypoints say what `matches0` (N0,) says: indices."""
    among = np.flatnonzero((ids0 >= 0) & (ids0 < len(matches0)) & (ids1 >= 0))
    kept: np.ndarray = among[matches0[ids0[among]] == ids1[among]]
    return kept


def _adjusted_to(
    reference_of: Mapping[str, FeatureReader],
    name: str,
    keypoints: np.ndarray,
    links: Sequence[Links],
    reach: float,
) -> np.ndarray:
    """The keypoints (N, 2) of an image whose links are all to images of fixed keypoints."""
    fixed = {other for found in links for other in (found.name0, found.name1)} - {name}
    every = {name: keypoints, **{other: reference_of[other].keypoints(other) for other in fixed}}
    return adjust_keypoints(every, lambda: links, reach, fixed, progress=False)[name]


class _Adjuster:
    """Holds keypoints back until the matches of all pairs are known, and adjusts them to these."""

    def __init__(self, links: _Spool, reach: float) -> None:
        self._links, self._reach = links, reach
        self._keypoints: dict[str, np.ndarray] = {}
        self._scores: dict[str, np.ndarray] = {}
        self._pairs: dict[int, tuple[str, str, np.ndarray]] = {}

    def hold(self, name: str, keypoints: np.ndarray, scores: np.ndarray | None) -> None:
        """Without scores they are fixed."""
        self._keypoints[name] = keypoints
        if scores is not None:
            self._scores[name] = scores

    def link(self, pair: int, links: Links) -> None:
        self._pairs[pair] = links[:3]
        self._links.put(pair, links.matches)

    def release(self, features: FeatureWriter) -> None:
        adjusted = adjust_keypoints(
            self._keypoints,
            lambda: (Links(*pair, self._links.take(i)) for i, pair in self._pairs.items()),
            self._reach,
            self._keypoints.keys() - self._scores.keys(),
        )
        for name, keypoints in adjusted.items():
            features.add(name, keypoints, self._scores[name])


class _Spool:
    """Keeps an array of each pair on disk."""

    def __init__(self, num_pairs: int, dtype: np.dtype, directory: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed in __exit__)
        self._dtype = dtype
        self._offsets = np.full(num_pairs, -1, np.int64)
        self._lengths = np.zeros(num_pairs, np.int64)
        self._end = 0

    def put(self, pair: int, values: np.ndarray) -> None:
        try:
            self._file.seek(self._end)
            self._offsets[pair], self._lengths[pair] = self._end, len(values)
            self._end += self._file.write(values.tobytes())
        except OSError as error:
            raise EdmHlocError(
                f"Cannot write a temporary file ({error.strerror or error}): free disk space."
            ) from error

    def __contains__(self, pair: int) -> bool:
        return bool(self._offsets[pair] >= 0)

    def take(self, pair: int) -> np.ndarray:
        """The values put there."""
        self._file.seek(int(self._offsets[pair]))
        size = int(self._lengths[pair]) * self._dtype.itemsize
        return np.frombuffer(self._file.read(size), self._dtype)

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

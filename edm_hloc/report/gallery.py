"""The pairs whose matches are drawn in a page: which are chosen, and their lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edm_hloc.base.frames import PixelTransform, to_colmap, upright_size
from edm_hloc.report.facts import PhotoFacts, RunFacts
from edm_hloc.report.packing import pack
from edm_hloc.report.pair_matches import PairMatches, PairSource

GROUP_SIZE = 6  # pairs in each group of the gallery
MAX_PAIRS = 400  # a run with at most this many pairs has the lines of all
MAX_BEST_PAIRS = 1200  # with lines in a larger run: the gallery and the best pair of photos
LINES, REJECTED_LINES = 180, 40  # inliers and outliers that are drawn of a pair

Pair = tuple[int, int]  # indices into `RunFacts.names`


def best_partners(facts: RunFacts) -> dict[int, int]:
    """For each photo the one with which it has the most inliers, then the most matches."""
    best: dict[int, tuple[int, int, int]] = {}
    for (a, b), m, n in zip(facts.pairs.tolist(), facts.matches, facts.inliers, strict=True):
        for this, that in ((a, b), (b, a)):
            best[this] = max(best.get(this, (-2, -1, -1)), (int(n), int(m), that))
    return {photo: entry[2] for photo, entry in best.items()}


def gallery(facts: RunFacts) -> list[dict[str, Any]]:
    """Groups of pairs that show how good the matches are: title, text and pairs of each.

    A localization has none, since the table of queries shows its pairs.
    """
    if not len(facts.pairs) or facts.kind == "localization":
        return []
    value = facts.inliers if facts.verified else facts.matches
    order = np.lexsort((-facts.matches, -value))
    each = min(GROUP_SIZE, max(1, len(order) // 3))
    if not facts.verified:
        middle = len(order) // 2
        candidates = [
            ("Most matches", "", order[:each]),
            ("In between", "", order[middle : middle + each]),
            ("Fewest matches", "", order[::-1][:each]),
        ]
    else:
        good = order[value[order] >= facts.min_inliers]
        rejected = order[value[order] < facts.min_inliers]
        fewest_first = good[np.argsort(value[good], kind="stable")]
        most_matches_first = rejected[np.argsort(-facts.matches[rejected], kind="stable")]
        candidates = [
            (
                "Best",
                "The pairs with the most verified matches.",
                good[: max(1, min(each * 3, len(good) // 3))],
            ),
            (
                "Borderline",
                f"The verified pairs with the fewest inliers; {facts.min_inliers} is the minimum. "
                "Wrong pairs are most likely to be found here.",
                fewest_first[: max(1, len(good) // 3)],
            ),
            (
                "Rejected",
                "The pairs with the most matches among those without a two-view geometry.",
                most_matches_first,
            ),
        ]
    taken: set[int] = set()
    groups = []
    for title, text, indices in candidates:
        chosen = _varied(facts, indices.tolist(), taken)
        taken.update(chosen)
        if chosen:
            pairs = [facts.pairs[i].tolist() for i in chosen]
            groups.append({"title": title, "text": text, "pairs": pairs})
    return groups


def _varied(facts: RunFacts, candidates: Sequence[int], taken: set[int]) -> list[int]:
    """The first `GROUP_SIZE` candidates that are not taken, in their order.

    Pairs are passed over if one of their photos is in two chosen pairs already, unless there are
    too few others.
    """
    chosen: list[int] = []
    uses: Counter[int] = Counter()
    for most in (2, GROUP_SIZE):
        for i in candidates:
            a, b = facts.pairs[i].tolist()
            if len(chosen) == GROUP_SIZE or i in taken or i in chosen:
                continue
            if max(uses[a], uses[b]) < most:
                chosen.append(i)
                uses.update((a, b))
    return sorted(chosen, key=list(candidates).index)


def pairs_to_draw(
    facts: RunFacts, groups: Sequence[Mapping[str, Any]], best: Mapping[int, int]
) -> list[Pair]:
    """The pairs whose lines are in the page, sorted.

    Args:
        facts: the run.
        groups: the gallery.
        best: for each photo its best partner.
    """
    every = {(a, b) for a, b in facts.pairs.tolist()}
    if len(every) <= MAX_PAIRS:
        return sorted(every)
    chosen = {(a, b) for group in groups for a, b in group["pairs"]}
    limit = MAX_BEST_PAIRS if facts.kind != "localization" else 2 * MAX_BEST_PAIRS
    for i, j in best.items():
        if len(chosen) >= limit:
            break
        if facts.kind != "localization" or i < facts.query_count:
            chosen.add((i, j) if (i, j) in every else (j, i))
    return sorted(chosen)


def pack_pairs(
    facts: RunFacts,
    shown: Sequence[Pair],
    photos: Mapping[str, PhotoFacts],
    source: PairSource,
) -> dict[str, Any]:
    """Counts and lines of pairs, by "a-b" with the indices of the two photos.

    Args:
        facts: the run.
        shown: the pairs.
        photos: facts of all photos; a pair with a photo of unknown size gets no lines.
        source: where the matches are read.
    """
    index = {(a, b): k for k, (a, b) in enumerate(facts.pairs.tolist())}
    rng = np.random.default_rng(0)
    limit = LINES if len(shown) <= MAX_PAIRS else LINES // 2
    packed = {}
    for a, b in shown:
        matches = source.read(facts.names[a], facts.names[b])
        both = photos[facts.names[a]], photos[facts.names[b]]
        k = index[a, b]
        entry: dict[str, Any] = {"matches": int(facts.matches[k]), "inliers": int(facts.inliers[k])}
        if matches is not None and both[0].size is not None and both[1].size is not None:
            if matches.inliers is not None and facts.kind == "localization":
                # inliers of the pose, several of which may share a 3D point
                entry["inliers"] = int(matches.inliers.sum())
            entry["lines"] = _pack_lines(matches, both, limit, rng)
        packed[f"{a}-{b}"] = entry
    return packed


def upright_places(
    points: np.ndarray, size: tuple[int, int] | None, orientation: int
) -> np.ndarray:
    """(N, 2) places of points in the upright photo, as shares of its sides from its outer edges.

    Args:
        points: (N, 2) pixels of the photo as stored, hloc's frame.
        size: (width, height) of the photo as stored; None if it is not known.
        orientation: EXIF's.
    """
    if size is None:
        size = tuple(points.max(axis=0) + 1) if len(points) else (1, 1)
    upright = PixelTransform((1.0, 1.0), orientation, size).to_network(points)
    # COLMAP's frame has its origin at the photo's outer corner
    return to_colmap(upright) / upright_size(size, orientation)


def _pack_lines(
    matches: PairMatches,
    photos: tuple[PhotoFacts, PhotoFacts],
    limit: int,
    rng: np.random.Generator,
) -> str:
    """A random choice of matches, 9 bytes each, in the order in which they are drawn.

    x0, y0, x1, y1 are 16-bit shares of the upright photos' sides, from their edges; the last byte
    has the score in its upper 7 bits and the inlier flag in the lowest.
    """
    inlier = matches.inliers
    if inlier is None:
        inlier = np.ones(len(matches.scores), bool)
    outliers = rng.permutation(np.flatnonzero(~inlier))[:REJECTED_LINES]
    inliers = rng.permutation(np.flatnonzero(inlier))[:limit]
    pick = np.concatenate([outliers, inliers])
    # outliers lowest, the most confident inliers on top
    pick = pick[np.lexsort((matches.scores[pick], inlier[pick]))]
    points = matches.points0[pick], matches.points1[pick]
    places = np.hstack(
        [
            upright_places(of_one, photo.size, photo.orientation)
            for of_one, photo in zip(points, photos, strict=True)
        ]
    )
    record = np.zeros(len(pick), [("xy", "<u2", 4), ("score", "u1")])
    record["xy"] = (places.clip(0, 1) * 65535).round()
    score = (matches.scores[pick].clip(0, 1) * 127).round().astype(np.uint8)
    record["score"] = (score << 1) | inlier[pick]
    return pack(record.tobytes())

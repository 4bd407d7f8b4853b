"""Which pairs of a run were matched, with their numbers of matches and inliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database
from edm_hloc.keypoints.h5 import MatchReader
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.files import read_pairs
from edm_hloc.pairs.rules import Pair
from edm_hloc.report.facts import RunFacts

_Counts = list[tuple[str, str, int, int]]  # two names, matches, inliers (−1: not verified)


def read_pair_counts(facts: RunFacts) -> None:
    """Fills `names`, `query_count`, `pairs`, `matches`, `inliers` and `listed` of `facts`.

    The counts come from the latest step of the run that has any: the COLMAP database, the log of a
    localization, the matches of the keypoints, or the raw matches.
    """
    path = facts.out / "pairs.txt"
    listed: list[Pair] = read_pairs(path) if path.is_file() else []
    facts.listed = len({frozenset(pair) for pair in listed})
    in_pairs = {name for pair in listed for name in pair}
    if facts.kind == "localization":
        queries = {answer.query for answer in facts.queries} | {pair[0] for pair in listed}
        facts.names = [*sorted(queries), *sorted(in_pairs - queries)]
        facts.query_count = len(queries)
    else:
        facts.names = sorted(in_pairs | set(facts.registered))

    found: _Counts = []
    for count in (_from_database, _from_answers, _from_matches, _from_raw_matches):
        with facts.noting_errors("Pairs"):
            found = count(facts, listed)
        if found:
            break
    index = {name: i for i, name in enumerate(facts.names)}
    rows = [
        (index[a], index[b], m, n) for a, b, m, n in found if a in index and b in index and a != b
    ]
    table = np.array(rows, np.int64).reshape(-1, 4)
    facts.pairs, facts.matches, facts.inliers = table[:, :2], table[:, 2], table[:, 3]


def count_matched_pairs(facts: RunFacts) -> int | None:
    """Number of the listed pairs that have raw matches; None without any raw matches."""
    folder = facts.out / "raw_matches"
    if folder.is_dir() and any(folder.glob("*.h5")):
        listed = {frozenset(pair) for pair in read_pairs(facts.out / "pairs.txt")}
        with RawMatchReader(folder) as reader:
            return len(listed & {frozenset(pair) for pair in reader.pairs()})
    return None


def _from_database(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    """Inliers of the two-view geometries."""
    path = facts.out / "database.db"
    if facts.kind == "localization" or not path.is_file():
        return []
    facts.min_inliers = int(facts.settings.get("mapping", {}).get("min_inliers", 15))
    with open_database(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        inliers = dict(zip(*database.read_two_view_geometry_num_inliers(), strict=True))
        matches = dict(zip(*database.read_num_matches(), strict=True))
    counts = []
    for pair_id, number in matches.items():
        a, b = pycolmap.pair_id_to_image_pair(pair_id)
        if a in names and b in names:
            counts.append((names[a], names[b], int(number), int(inliers.get(pair_id, 0))))
    return counts


def _from_answers(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    """Inliers of the queries' poses."""
    if not facts.queries:
        return []
    inliers_of = {answer.query: answer.inliers_of for answer in facts.queries}
    counts = _from_matches(facts, [pair for pair in listed if pair[0] in inliers_of])
    return [(a, b, m, inliers_of[a].get(b, 0)) for a, b, m, _ in counts]


def _from_matches(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    path = facts.out / "matches.h5"
    if not path.is_file():
        return []
    with MatchReader(path) as reader:
        return [(a, b, len(reader.indices(a, b)), -1) for a, b in listed if (a, b) in reader]


def _from_raw_matches(facts: RunFacts, listed: Sequence[Pair]) -> _Counts:
    folder = facts.out / "raw_matches"
    if not folder.is_dir() or not any(folder.glob("*.h5")):
        return []
    with RawMatchReader(folder) as reader:
        return [(a, b, len(reader.read(a, b).scores), -1) for a, b in listed if (a, b) in reader]

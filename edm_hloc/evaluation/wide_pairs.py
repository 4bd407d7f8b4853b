"""Evaluates matchers on HPatches, EVD or WxBS: from the set to the table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import track
from edm_hloc.evaluation import epipolar_recall, homography
from edm_hloc.evaluation.areas import as_json
from edm_hloc.evaluation.input_sizes import FittedMatcher
from edm_hloc.evaluation.timed_matching import match_timed
from edm_hloc.evaluation.wide_sets import WidePair, WideSet
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig

Protocol = homography.HomographyProtocol | epipolar_recall.RecallProtocol


@dataclass(frozen=True)
class _Measure:
    """The functions that belong to a kind of truth."""

    measure: Callable[[WidePair, Matches | None, Any], Any]
    summarise: Callable[[str, Sequence[Any], float | None], list[Any]]
    table: Callable[[Sequence[Any]], str]


_HOMOGRAPHY = _Measure(
    homography.measure_homography,
    homography.summarise_homographies,
    homography.homography_table,
)
_RECALL = _Measure(
    epipolar_recall.measure_recall,
    epipolar_recall.summarise_recall,
    epipolar_recall.recall_table,
)


def published_protocol(data: WideSet) -> Protocol:
    """How figures of the set are published."""
    if data.kind == "WxBS":
        return epipolar_recall.WXBS
    return homography.HPATCHES if data.kind == "HPatches" else homography.EVD


def evaluate_wide_pairs(
    data: WideSet,
    matchers: Mapping[str, Matcher],
    out: Path,
    protocol: Protocol,
    dense: MatchingConfig | None = None,
) -> str:
    """Matches all pairs with every matcher and measures the errors.

    Writes to `out` the folders `matches-NAME` of raw matches, from which an interrupted evaluation
    continues, and `homography.json` with the protocol, the matchers' settings, the summaries and
    the results of all pairs. Pairs with an unreadable photo count as failures.

    Args:
        data: the set.
        matchers: by the name that they have in the results.
        out: folder of the output files.
        protocol: for the set's kind of truth; it gives the size of the photos.
        dense: memory and threads of matching.

    Returns:
        The table, in Markdown.

    Raises:
        EdmHlocError: matching failed; finished matches are kept.
    """
    make_folder(out)
    kind = _RECALL if isinstance(protocol, epipolar_recall.RecallProtocol) else _HOMOGRAPHY
    names = [(pair.name0, pair.name1) for pair in data.pairs]
    results: dict[str, list[Any]] = {}
    summaries: list[Any] = []
    settings = {}
    for name, matcher in matchers.items():
        fitted = FittedMatcher(matcher, protocol.size)
        settings[name] = dict(fitted.provenance)
        timed = match_timed(data.root, names, fitted, out / f"matches-{name}", dense)
        results[name] = [
            kind.measure(pair, timed.of((pair.name0, pair.name1)), protocol)
            for pair in track(data.pairs, f"Errors ({name})", "pair")
        ]
        summaries += kind.summarise(name, results[name], timed.cpu_ms)
    content = {
        "set": data.kind,
        "root": str(data.root),
        "protocol": str(protocol),
        "matchers": settings,
        "summaries": [dataclasses.asdict(summary) for summary in summaries],
        "pairs": {name: [as_json(r) for r in found] for name, found in results.items()},
    }
    write_whole(out / "homography.json", json.dumps(content, indent=1) + "\n")
    return kind.table(summaries)

"""The figures at the top of a page."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edm_hloc.base.text import format_duration, plural
from edm_hloc.report.facts import RunFacts


class Figure(NamedTuple):
    """One figure: its name, the number, and what follows the number in smaller type."""

    label: str
    value: str
    small: str = ""


def headline(facts: RunFacts, seconds: float) -> list[Figure]:
    """The most important figures of a run.

    Args:
        facts: the run.
        seconds: time of all its stages; 0 if unknown.
    """
    if facts.kind == "localization":
        figures = _localization(facts)
    else:
        figures = [*_model(facts), *_pairs(facts)]
    if seconds:
        time = format_duration(seconds).replace(" s", "\u00a0s")  # a line does not end before it
        figures.append(Figure("Time", time))
    peak = facts.record.get("peak_memory_mib")
    if peak:
        figures.append(Figure("Peak memory", f"{peak / 1024:.1f}", " GiB"))
    return figures


def _localization(facts: RunFacts) -> list[Figure]:
    if not facts.queries:
        return []
    localized = [answer for answer in facts.queries if answer.status == "localized"]
    high = sum(answer.confidence == "high" for answer in facts.queries)
    figures = [
        Figure("Localized", f"{len(localized):,}", f" of {len(facts.queries):,} queries"),
        Figure("High confidence", f"{high:,}"),
    ]
    errors = [a.median_error for a in facts.queries if a.median_error is not None]
    if localized:
        inliers = np.median([answer.inliers for answer in localized])
        figures.append(Figure("Inliers, median", f"{inliers:,.0f}"))
    if errors:
        figures.append(Figure("Reprojection error, median", f"{np.median(errors):.2f}", " px"))
    return figures


def _model(facts: RunFacts) -> list[Figure]:
    figures = []
    if facts.registered or facts.kind != "matching":
        photos = len(facts.names) + len(set(facts.skipped) - set(facts.names))
        figures.append(
            Figure("In the model", f"{len(facts.registered):,}", f" of {photos:,} photos")
        )
    if facts.registered:
        statistics = facts.results.get("mapped", {}).get("statistics", {})
        length = statistics.get("mean_track_length")
        error = statistics.get("mean_reprojection_error")
        figures.append(Figure("Points", f"{len(facts.points):,}"))
        if length is not None:
            figures.append(Figure("Track length, mean", f"{length:.2f}"))
        if error is not None:
            figures.append(Figure("Reprojection error, mean", f"{error:.2f}", " px"))
        uncertainty = facts.results.get("tracks", {}).get("uncertainty")
        if uncertainty:
            position, rotation = uncertainty
            figures.append(
                Figure(
                    "Middle camera, 1 σ", f"{position:.2g}", f" % of the extent, {rotation:.2g}°"
                )
            )
    return figures


def _pairs(facts: RunFacts) -> list[Figure]:
    if not len(facts.pairs):
        return []
    if facts.verified:
        good = int((facts.inliers >= facts.min_inliers).sum())
        return [Figure("Verified", f"{good:,}", f" of {plural(len(facts.pairs), 'pair')}")]
    return [Figure("Matched", f"{len(facts.pairs):,}", f" of {plural(facts.listed, 'pair')}")]

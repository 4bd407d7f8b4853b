"""Histograms of a run as SVG geometry: the template draws them without a script, so they print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edm_hloc.report.facts import RunFacts

WIDTH, HEIGHT = 360, 170  # of the SVG's view box
LEFT, BASELINE = 8, 148  # left end and height of the horizontal axis
_TOP = 16  # room above the bars, for the largest count
_MAX_BINS = 24
_MIN_VALUES = 3


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram: its rectangle in the view box, its range as text and its count."""

    x: float
    y: float
    width: float
    height: float
    label: str
    count: int


class Tick(NamedTuple):
    """A number below the axis: its place in the view box and SVG's text-anchor."""

    x: float
    anchor: str
    text: str


class Histogram(NamedTuple):
    """A histogram, ready to draw.

    Attributes:
        title: what is counted.
        bars: the bins from left to right.
        ticks: numbers below the axis.
        highest: the largest count of a bin.
        caption: median, mean and number of the values.
    """

    title: str
    bars: list[Bar]
    ticks: list[Tick]
    highest: int
    caption: str


def run_histograms(facts: RunFacts) -> list[Histogram]:
    """The histograms of a run's page; distributions of fewer than three values are left out."""
    found: list[Histogram | None] = []
    if facts.kind == "localization":
        answers = [a for a in facts.queries if a.correspondences]
        errors = np.array([a.median_error for a in answers if a.median_error is not None])
        found = [
            histogram("Inliers per query", np.array([a.inliers for a in answers]), whole=True),
            histogram(
                "Inlier ratio per query",
                np.array([a.inliers / a.correspondences for a in answers]),
            ),
            histogram("Reprojection error per query", errors, unit=" px"),
        ]
    elif len(facts.points):
        found = [
            histogram("Track length: photos that observe a point", facts.points.tracks, whole=True),
            histogram("Reprojection error of points", facts.points.errors, unit=" px"),
        ]
    if len(facts.pairs):
        found.append(histogram("Matches per pair", facts.matches, whole=True))
        if facts.verified:
            some = facts.matches > 0
            ratio = np.maximum(facts.inliers[some], 0) / facts.matches[some]
            found.append(histogram("Inlier ratio per pair", ratio))
    return [h for h in found if h is not None]


def histogram(
    title: str, values: np.ndarray, *, unit: str = "", whole: bool = False
) -> Histogram | None:
    """Counts values in at most 24 bins of a round width.

    Args:
        title: what is counted.
        values: (N,) numbers; those that are not finite are left out, those above the 99th
            percentile are counted in the last bin.
        unit: appended to numbers, such as " px".
        whole: the values are integers; bins then begin and end at integers.

    Returns:
        None for fewer than three values.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < _MIN_VALUES:
        return None
    edges = _edges(values, whole)
    overflow = bool((values > edges[-1]).any())
    counts = np.histogram(values.clip(max=edges[-1]), edges)[0]
    caption = (
        f"Median {_number(float(np.median(values)), whole)}{unit}, "
        f"mean {_number(float(values.mean()), False)}{unit}, {len(values):,} in all"
    )
    width = (WIDTH - 2 * LEFT) / len(counts)
    highest = max(1, int(counts.max()))
    bars = []
    for i, count in enumerate(counts):
        height = (BASELINE - _TOP) * count / highest
        label = _range(float(edges[i]), float(edges[i + 1]), whole)
        if overflow and i == len(counts) - 1:
            label = f"{label} or more"
        bars.append(
            Bar(
                x=LEFT + i * width + 0.5,
                y=BASELINE - height,
                width=max(0.5, width - 1),
                height=height,
                label=label + unit,
                count=int(count),
            )
        )
    return Histogram(title, bars, _ticks(edges, whole, overflow), highest, caption)


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """(B + 1,) edges of the bins, up to about the 99th percentile."""
    low, high = float(values.min()), float(np.percentile(values, 99))
    if whole:
        low, high = np.floor(low), max(np.ceil(high), np.floor(low))
        step = max(1.0, np.ceil((high - low + 1) / _MAX_BINS))
        return np.arange(low, high + step + 1e-9, step) - 0.5
    low = min(0.0, low)
    high = high if high > low else low + 1.0
    step = _round_up((high - low) / _MAX_BINS)
    return np.arange(0, np.ceil((high - low) / step) + 1) * step + low


def _round_up(step: float) -> float:
    """The next of 1, 2, 2.5 and 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999))


def _number(value: float, whole: bool) -> str:
    if whole and value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _range(low: float, high: float, whole: bool) -> str:
    if whole and high - low == 1:
        return _number(round(low + 0.5), True)
    if whole:
        return f"{_number(low + 0.5, True)} to {_number(high - 0.5, True)}"
    return f"{_number(low, False)} to {_number(high, False)}"


def _ticks(edges: np.ndarray, whole: bool, overflow: bool) -> list[Tick]:
    """Five ticks at edges of bins, or one in the middle of each bin of a single integer."""
    bins = len(edges) - 1
    width = (WIDTH - 2 * LEFT) / bins
    marks = sorted({round(i * bins / 4) for i in range(5)})
    if whole and bins <= 10:
        marks = list(range(bins))
    ticks = []
    for mark in marks:
        centred = whole and edges[1] - edges[0] == 1
        if centred and mark == bins:
            mark -= 1
        value = float(edges[mark]) + (0.5 if whole else 0.0)
        text = f"{value:,.0f}" if whole else f"{value:g}"
        if overflow and mark >= bins - (1 if centred else 0):
            text = f"≥ {text}"
        place = mark + 0.5 if centred else float(mark)
        anchor = "middle"
        if not centred:
            anchor = "start" if mark == 0 else "end" if mark == bins else "middle"
        ticks.append(Tick(LEFT + place * width, anchor, text))
    return ticks

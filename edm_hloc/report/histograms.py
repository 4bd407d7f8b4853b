"""Histograms as SVG, drawn when the page is made: they need no script and print well."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 170, 8, 22, 16
_BINS = 24
_LEAST = 3  # values; fewer have no distribution


def histogram(title: str, values: np.ndarray, *, unit: str = "", whole: bool = False) -> str:
    """A histogram with its median, as HTML.

    Args:
        title: what is counted, plain text.
        values: (N,) of them; those above the 99th percentile share the last bar.
        unit: after numbers.
        whole: the values are whole numbers, each a bar of its own where they are few.

    Returns:
        Nothing for fewer than three values.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < _LEAST:
        return ""
    edges = _edges(values, whole)
    over = bool((values > edges[-1]).any())
    counts = np.histogram(values.clip(max=edges[-1]), edges)[0]
    return (
        '<figure class="card">'
        f"<h3>{escape(title)}</h3>{_svg(title, counts, edges, unit, whole, over)}"
        f"<figcaption>Median {_number(float(np.median(values)), whole)}{escape(unit)}, "
        f"mean {_number(float(values.mean()), False)}{escape(unit)}, "
        f"{len(values):,} in all</figcaption></figure>"
    )


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    low, high = float(values.min()), float(np.percentile(values, 99))
    if whole:
        low, high = np.floor(low), max(np.ceil(high), np.floor(low))
        step = max(1.0, np.ceil((high - low + 1) / _BINS))
        return np.arange(low, high + step + 1e-9, step) - 0.5
    low = min(0.0, low)
    high = high if high > low else low + 1.0
    step = _nice((high - low) / _BINS)
    return np.arange(0, np.ceil((high - low) / step) + 1) * step + low


def _nice(step: float) -> float:
    power = 10.0 ** np.floor(np.log10(step))
    return float(next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step * 0.999))


def _number(value: float, whole: bool) -> str:
    if whole and value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _svg(
    title: str, counts: np.ndarray, edges: np.ndarray, unit: str, whole: bool, over: bool
) -> str:
    width = (_WIDTH - 2 * _LEFT) / len(counts)
    bottom = _HEIGHT - _BOTTOM
    top = max(1, int(counts.max()))
    parts = []
    for i, count in enumerate(counts):
        height = (bottom - _TOP) * count / top
        low, high = edges[i], edges[i + 1]
        if whole and high - low == 1:
            label = _number(round(low + 0.5), True)
        elif whole:
            label = f"{_number(low + 0.5, True)} to {_number(high - 0.5, True)}"
        else:
            label = f"{_number(float(low), False)} to {_number(float(high), False)}"
        if over and i == len(counts) - 1:
            label = f"{label} or more"
        parts.append(
            f'<rect class="b" x="{_LEFT + i * width + 0.5:.1f}" y="{bottom - height:.1f}" '
            f'width="{max(0.5, width - 1):.1f}" height="{height:.1f}">'
            f"<title>{escape(label + unit)}: {count:,}</title></rect>"
        )
    parts.append(
        f'<line class="ax" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _LEFT}" y2="{bottom}"/>'
    )
    for place, anchor, text in _ticks(edges, whole, over):
        parts.append(
            f'<text class="tx" x="{_LEFT + place * width:.1f}" y="{_HEIGHT - 6}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )
    parts.append(f'<text class="tx" x="{_LEFT}" y="11">{top:,}</text>')
    label = escape(f"Histogram: {title}", quote=True)
    head = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    return f"{head}{''.join(parts)}</svg>"


def _ticks(edges: np.ndarray, whole: bool, over: bool) -> Sequence[tuple[float, str, str]]:
    bars = len(edges) - 1
    marks = sorted({round(i * bars / 4) for i in range(5)})
    if whole and bars <= 10:
        marks = list(range(bars))
    ticks = []
    for mark in marks:
        middle = whole and edges[1] - edges[0] == 1
        if middle and mark == bars:
            mark -= 1
        value = float(edges[mark]) + (0.5 if whole else 0.0)
        text = f"{value:,.0f}" if whole else f"{value:g}"
        if over and mark >= bars - (1 if middle else 0):
            text = f"≥ {text}"
        place = mark + 0.5 if middle else float(mark)
        anchor = "middle"
        if not middle:
            anchor = "start" if mark == 0 else "end" if mark == bars else "middle"
        ticks.append((place, anchor, text))
    return ticks

"""A map of a model on Earth: its cameras, and their distances from GPS or other positions."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from edm_hloc.base.log import first_few

_WIDTH, _MOST_HEIGHT, _MARGIN = 720, 720, 40  # of the SVG's view box


def draw_map(places: Mapping[str, np.ndarray], placed: Mapping[str, Any]) -> str:
    """An SVG with north up: a dot for each camera or point, a line from it to its position.

    It is empty where there are none.

    Args:
        places: (3,) metres to the east, the north and up, by name.
        placed: the fields of a `Georeference`.
    """
    if not places:
        return ""
    residuals = {n: np.array(r) for n, r in placed["residuals"].items() if n in places}
    wrong = set(placed["wrong"])
    # a wrong position may be far away: the line to it then leaves the map
    shown = [xyz[:2] for xyz in places.values()]
    shown += [(places[n] - r)[:2] for n, r in residuals.items() if n not in wrong]
    low, high = np.min(shown, axis=0), np.max(shown, axis=0)
    extent = np.maximum(high - low, 1e-6)
    scale = min((_WIDTH - 2 * _MARGIN) / extent[0], (_MOST_HEIGHT - 2 * _MARGIN) / extent[1])
    width, height = extent * scale + 2 * _MARGIN

    def pixel(xy: np.ndarray) -> tuple[float, float]:
        x, y = (xy[:2] - low) * scale
        return float(x + _MARGIN), float(height - _MARGIN - y)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height + 30:.0f}" '
        f'width="{width:.0f}" role="img" aria-label="Map of the cameras" font-family="sans-serif" '
        'font-size="13">'
    ]
    for name, residual in residuals.items():
        (x0, y0), (x1, y1) = pixel(places[name]), pixel(places[name] - residual)
        colour = "#d33" if name in wrong else "#e90"
        parts.append(
            f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{colour}" '
            'stroke-width="1.5"/>'
        )
    for name, xyz in places.items():
        x, y = pixel(xyz)
        told = name
        if name in residuals:
            told += f": {np.linalg.norm(residuals[name]):.2f} m off"
        colour = "#d33" if name in wrong else "#27c"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"><title>{escape(told)}'
            "</title></circle>"
        )
    bar = 10 ** np.floor(np.log10(float(max(extent)) / 2))
    bar *= max(f for f in (1, 2, 5) if f * bar <= float(max(extent)) / 2)
    y = height + 14
    parts.append(
        f'<path d="M{_MARGIN} {y - 6:.0f}v6h{bar * scale:.1f}v-6" fill="none" stroke="#888"/>'
        f'<text x="{_MARGIN + bar * scale + 8:.0f}" y="{y:.0f}" fill="#888">{bar:g} m, north is '
        "up</text></svg>"
    )
    return "".join(parts)


def place_figures(placed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is said of a model on Earth and of its parts: labels and values."""
    parts = []
    every = placed.get("parts", {})
    without = [number for number, part in every.items() if not part["positions"]]
    if without:
        numbers = ", ".join(first_few(without, "", 12))
        parts.append((f"Parts {numbers}", "without positions, each in a frame of its own"))
    for number, part in every.items():
        if number in without:
            continue
        said = f"in its own frame: {part['why']}"
        if part["used"]:
            said = (
                f"in the same frame, median {part['median']:.2f} m and at most "
                f"{part['largest']:.2f} m from {part['source']}"
            )
            if not part["heights"]:
                said += "; heights not told, taken to be on one level"
        parts.append((f"Part {number}", said))
    if not placed["used"]:
        return [("Frame", f"the model's own: {placed['why']}"), *parts]
    latitude, longitude, altitude = placed["origin"]
    right = [r for n, r in placed["residuals"].items() if n not in placed["wrong"]]
    off = np.abs(np.array(right))
    flat = np.hypot(off[:, 0], off[:, 1])
    distance = f"median {np.median(flat):.2f} m, largest {flat.max():.2f} m, level"
    certain = "not known, as heights are not told"
    if placed["heights"] and placed["tilt_uncertainty"] is not None:
        distance = (
            f"median {placed['median']:.2f} m, largest {placed['largest']:.2f} m "
            f"(level: {np.median(flat):.2f} and {flat.max():.2f} m; height: "
            f"{np.median(off[:, 2]):.2f} and {off[:, 2].max():.2f} m)"
        )
        certain = (
            f"{100 * placed['scale_uncertainty']:.2g} % in scale, "
            f"{placed['tilt_uncertainty']:.2g}° in direction"
        )
    height = f", {altitude:.1f} m" if placed["heights"] else ""
    figures = [
        ("Frame", "metres to the east, to the north and up from the origin (WGS 84)"),
        ("Origin", f"{latitude:.6f}°, {longitude:.6f}°{height}"),
        (f"Distance from {placed['source']}", distance),
        ("Positions", f"{len(right)} agree, {len(placed['wrong'])} were left out"),
        ("Certain to", certain),
    ]
    if placed.get("told_accuracy") is not None:
        figures.append(("Told accuracy", f"{placed['told_accuracy']:.3g} m"))
    if not placed["heights"]:
        figures.append(
            (
                "Heights",
                "not told: the cameras are taken to be on one level; if they are not, the model is "
                "tilted",
            )
        )
    return [*figures, *parts]

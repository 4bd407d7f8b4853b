"""Homographies from matches: the error of the photo's corners and its AUC, as on HPatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edm_hloc.base.frames import inside, resizing_matrix
from edm_hloc.base.matches import Matches
from edm_hloc.evaluation.areas import SEEDS, areas_text, in_groups, markdown_table, mean_areas
from edm_hloc.evaluation.input_sizes import InputSize
from edm_hloc.evaluation.timed_matching import cpu_text
from edm_hloc.evaluation.wide_sets import WidePair

CORNER_THRESHOLDS = (3.0, 5.0, 10.0)
"""Errors of the corners in pixels up to which the AUC is computed."""

VISIBLE_THRESHOLDS = np.logspace(0, np.log10(20), 10)
"""Of EVD's benchmark: mean errors in pixels, of which the shares of pairs below are averaged."""

MOST_ITERATIONS, CONFIDENCE = 2000, 0.995  # OpenCV's defaults
_ROBUST = {"RANSAC": cv2.RANSAC, "MAGSAC++": cv2.USAC_MAGSAC}


@dataclass(frozen=True)
class HomographyProtocol:
    """All that decides the figures of homographies but the matcher and the pairs.

    Attributes:
        size: of the photos for the networks.
        resized: whether errors and thresholds are in pixels of the photos at that size; else in
            those of the photos as they are.
        best: number of matches that are used, by confidence; None for all.
        method: "RANSAC" or "MAGSAC++", OpenCV's.
        ransac: its threshold in pixels.
        visible: whether the mean error over the pixels of photo 0 that photo 1 shows is measured
            as well.
    """

    size: InputSize
    resized: bool = True
    best: int | None = 1000
    method: str = "RANSAC"
    ransac: float = 3.0
    visible: bool = False

    def __str__(self) -> str:
        """All of it in one line."""
        matches = "all matches" if self.best is None else f"the best {self.best:,} matches"
        pixels = "the resized photos" if self.resized else "the photos as they are"
        iterations = f", {MOST_ITERATIONS:,} iterations at most" if self.method == "RANSAC" else ""
        return (
            f"photos: {self.size}; {matches} by confidence; OpenCV's {self.method} at "
            f"{self.ransac:g} px{iterations}, {len(SEEDS)} seeds; mean distance of the four "
            f"corners in pixels of {pixels}; failures count as infinite"
        )


HPATCHES = HomographyProtocol(InputSize(shorter=480))
"""As LoFTR and its successors evaluate HPatches."""

EVD = HomographyProtocol(InputSize(shorter=600), False, None, "MAGSAC++", 0.5, visible=True)
"""The robust estimator and the errors of EVD's benchmark."""


def corner_error(H: np.ndarray | None, truth: np.ndarray, size: tuple[int, int]) -> float:
    """Mean distance of the four corners of photo 0, mapped by an estimate and by the truth.

    Args:
        H: (3, 3) from photo 0 to photo 1; None gives an infinite error.
        truth: (3, 3), likewise.
        size: (width, height) of photo 0; the corners are the centres of its corner pixels.

    Returns:
        In pixels of photo 1; infinite where a corner is mapped to infinity.
    """
    if H is None:
        return float("inf")
    right, bottom = size[0] - 1, size[1] - 1
    corners = np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)], float)
    return _mean_distance(corners, H, truth)


def visible_error(H: np.ndarray | None, truth: np.ndarray, pair: WidePair) -> float:
    """As `corner_error`, over all pixels of photo 0 that photo 1 shows, in pixels as they are."""
    if H is None:
        return float("inf")
    x, y = np.meshgrid(np.arange(pair.size0[0]), np.arange(pair.size0[1]))
    pixels = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    shown = inside(warped(truth, pixels), *pair.size1, 0.5)
    return _mean_distance(pixels[shown], H, truth)


def _mean_distance(points: np.ndarray, H: np.ndarray, truth: np.ndarray) -> float:
    away = np.linalg.norm(warped(H, points) - warped(truth, points), axis=1)
    return float(away.mean()) if np.isfinite(away).all() and len(away) else float("inf")


def warped(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N, 2) points mapped by a homography (3, 3); infinite or not a number beyond its horizon."""
    mapped = np.column_stack([points, np.ones(len(points))]) @ H.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mapped = mapped[:, :2] / mapped[:, 2:]
    return mapped


def estimate_homography(
    x0: np.ndarray, x1: np.ndarray, protocol: HomographyProtocol, seed: int
) -> np.ndarray | None:
    """The homography (3, 3) from (M, 2) to (M, 2) points by OpenCV.

    The seed is of the order of the matches, since OpenCV's own draws are always the same.

    Returns:
        None if there are fewer than four matches, or no homography is found.
    """
    if len(x0) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(x0))
    H: np.ndarray | None
    H, _ = cv2.findHomography(
        x0[order].astype(np.float64),
        x1[order].astype(np.float64),
        _ROBUST[protocol.method],
        protocol.ransac,
        maxIters=MOST_ITERATIONS if protocol.method == "RANSAC" else 100_000,
        confidence=CONFIDENCE if protocol.method == "RANSAC" else 0.999,
    )
    return H


@dataclass(frozen=True)
class HomographyResult:
    """Results of one matcher on one pair.

    Attributes:
        name0, name1: paths of the photos, relative to their folder.
        group: of the pair.
        matches: number of matches before the best are chosen.
        corners: errors of the corners in pixels, one for each of the `SEEDS`.
        visible: mean errors of the visible part in pixels, likewise; empty where not measured.
    """

    name0: str
    name1: str
    group: str
    matches: int
    corners: tuple[float, ...]
    visible: tuple[float, ...] = ()


def measure_homography(
    pair: WidePair, matches: Matches | None, protocol: HomographyProtocol
) -> HomographyResult:
    """Estimates the homography of a pair from its matches and measures its errors.

    Args:
        matches: in pixels of the photos as they are; None if a photo could not be read.
    """
    number = 0 if matches is None else len(matches)
    seen, truth, size = np.empty((2, 0, 2)), pair.truth, pair.size0
    if matches is not None:
        best = matches[np.argsort(-matches.scores, kind="stable")[: protocol.best]]
        seen = np.stack([best.keypoints0, best.keypoints1]).astype(float)
    if protocol.resized:
        small0, small1 = protocol.size.of(*pair.size0), protocol.size.of(*pair.size1)
        to0, to1 = resizing_matrix(pair.size0, small0), resizing_matrix(pair.size1, small1)
        seen = np.stack([warped(to0, seen[0]), warped(to1, seen[1])])
        truth, size = to1 @ truth @ np.linalg.inv(to0), small0
    found = [estimate_homography(seen[0], seen[1], protocol, seed) for seed in SEEDS]
    return HomographyResult(
        pair.name0,
        pair.name1,
        pair.group,
        number,
        tuple(corner_error(H, truth, size) for H in found),
        tuple(visible_error(H, truth, pair) for H in found) if protocol.visible else (),
    )


@dataclass(frozen=True)
class HomographySummary:
    """Results of one matcher on the pairs of a group.

    Attributes:
        matcher: its name.
        group: "all" or that of the pairs.
        pairs: number of pairs.
        matches: mean number of matches of a pair.
        failures: share of pairs and seeds without any homography.
        areas: AUC of the corners' errors at 3, 5 and 10 px in %, mean over the `SEEDS`.
        spread: standard deviation of the first over the seeds.
        visible: mean share of pairs and seeds below the `VISIBLE_THRESHOLDS` in %; None where not
            measured.
        cpu_ms: CPU time of matching a pair in milliseconds; None where it is not known.
    """

    matcher: str
    group: str
    pairs: int
    matches: float
    failures: float
    areas: tuple[float, ...]
    spread: float
    visible: float | None = None
    cpu_ms: float | None = None


def summarise_homographies(
    matcher: str, results: Sequence[HomographyResult], cpu_ms: float | None = None
) -> list[HomographySummary]:
    """Summaries of all pairs, then of each group if there are several."""
    summaries = []
    for group, found in in_groups(results).items():
        areas, spread = mean_areas([r.corners for r in found], CORNER_THRESHOLDS)
        errors = np.array([r.corners for r in found])
        summary = HomographySummary(
            matcher,
            group,
            len(found),
            float(np.mean([r.matches for r in found])),
            float(np.isinf(errors).mean()),
            areas,
            spread,
            cpu_ms=cpu_ms,
        )
        if found[0].visible:
            visible = np.array([r.visible for r in found])
            below = np.mean([(visible <= t).mean() for t in VISIBLE_THRESHOLDS])
            summary = replace(summary, visible=float(100 * below))
        summaries.append(summary)
    return summaries


def homography_table(summaries: Sequence[HomographySummary]) -> str:
    """The summaries as a Markdown table."""
    columns = ["matcher", "", "pairs", "matches", "failures %", "CPU ms a pair", "AUC@3/5/10 px"]
    visible = any(s.visible is not None for s in summaries)
    if visible:
        columns.append("visible part, mean share within 1–20 px")
    rows = []
    for s in summaries:
        row = [s.matcher, s.group, str(s.pairs), f"{s.matches:,.0f}", f"{100 * s.failures:.1f}"]
        row += [cpu_text(s.cpu_ms), areas_text(s.areas, s.spread)]
        rows.append(row + ([f"{s.visible:.1f}"] if visible and s.visible is not None else []))
    return markdown_table(columns, rows)

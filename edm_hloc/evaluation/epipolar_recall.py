"""Recall of known correspondences by the fundamental matrix of the matches, as on WxBS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edm_hloc.base.matches import Matches
from edm_hloc.evaluation.areas import SEEDS, in_groups, markdown_table
from edm_hloc.evaluation.input_sizes import InputSize
from edm_hloc.evaluation.timed_matching import cpu_text
from edm_hloc.evaluation.wide_sets import WidePair

DISTANCES = tuple(range(1, 21))
"""Largest distances in pixels of a correspondence that is found."""

_SHOWN = (1, 3, 5, 10, 20)
_MOST_ITERATIONS, _CONFIDENCE = 100_000, 0.999


@dataclass(frozen=True)
class RecallProtocol:
    """All that decides the figures of recall but the matcher and the pairs.

    Attributes:
        size: of the photos for the networks.
        ransac: threshold of OpenCV's MAGSAC++ in pixels of the photos as they are.
    """

    size: InputSize
    ransac: float = 0.25

    def __str__(self) -> str:
        """All of it in one line."""
        return (
            f"photos: {self.size}; all matches; OpenCV's MAGSAC++ at {self.ransac:g} px, "
            f"{len(SEEDS)} seeds; share of the known correspondences whose two distances to the "
            "epipolar lines, squared, added and rooted, are at most 1 to 20 px in the photos as "
            "they are; failures find none"
        )


WXBS = RecallProtocol(InputSize(shorter=600))
"""The estimator of the baseline of WxBS's benchmark."""


@dataclass(frozen=True)
class RecallResult:
    """Results of one matcher on one pair.

    Attributes:
        name0, name1: paths of the photos, relative to their folder.
        group: of the pair.
        matches: number of matches.
        recall: at each of the `DISTANCES`, mean over the `SEEDS`.
    """

    name0: str
    name1: str
    group: str
    matches: int
    recall: tuple[float, ...]


def epipolar_recall(F: np.ndarray | None, correspondences: np.ndarray) -> np.ndarray:
    """Share of (N, 4) correspondences within each of the `DISTANCES` of their epipolar lines.

    Args:
        F: (3, 3) with x1ᵀ F x0 = 0; None finds none.
        correspondences: x and y in photo 0, then in photo 1, in pixels.

    Returns:
        (20,) in [0, 1].
    """
    if F is None:
        return np.zeros(len(DISTANCES))
    ones = np.ones(len(correspondences))
    x0 = np.column_stack([correspondences[:, :2], ones])
    x1 = np.column_stack([correspondences[:, 2:], ones])
    lines1, lines0 = x0 @ F.T, x1 @ F
    off = np.abs(np.sum(x1 * lines1, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.hypot(*(off / np.hypot(li[:, 0], li[:, 1]) for li in (lines0, lines1)))
    return np.array([(distances <= d).mean() for d in DISTANCES])


def measure_recall(
    pair: WidePair, matches: Matches | None, protocol: RecallProtocol
) -> RecallResult:
    """Estimates the fundamental matrix of a pair from its matches and measures the recall.

    Args:
        matches: in pixels of the photos as they are; None if a photo could not be read.
    """
    found = np.zeros(len(DISTANCES))
    number = 0 if matches is None else len(matches)
    if matches is not None and number >= 8:
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(number)
            F, _ = cv2.findFundamentalMat(
                matches.keypoints0[order].astype(np.float64),
                matches.keypoints1[order].astype(np.float64),
                cv2.USAC_MAGSAC,
                protocol.ransac,
                _CONFIDENCE,
                _MOST_ITERATIONS,
            )
            usable = F is not None and F.shape[0] >= 3
            found += epipolar_recall(F[:3] if usable else None, pair.truth) / len(SEEDS)
    return RecallResult(pair.name0, pair.name1, pair.group, number, tuple(map(float, found)))


@dataclass(frozen=True)
class RecallSummary:
    """Results of one matcher on the pairs of a group.

    Attributes:
        matcher: its name.
        group: "all" or that of the pairs.
        pairs: number of pairs.
        matches: mean number of matches of a pair.
        recall: at each of the `DISTANCES` in %, mean over the pairs.
        cpu_ms: CPU time of matching a pair in milliseconds; None where it is not known.
    """

    matcher: str
    group: str
    pairs: int
    matches: float
    recall: tuple[float, ...]
    cpu_ms: float | None = None


def summarise_recall(
    matcher: str, results: Sequence[RecallResult], cpu_ms: float | None = None
) -> list[RecallSummary]:
    """Summaries of all pairs, then of each group if there are several."""
    return [
        RecallSummary(
            matcher,
            group,
            len(found),
            float(np.mean([r.matches for r in found])),
            tuple(map(float, 100 * np.mean([r.recall for r in found], axis=0))),
            cpu_ms,
        )
        for group, found in in_groups(results).items()
    ]


def recall_table(summaries: Sequence[RecallSummary]) -> str:
    """The summaries as a Markdown table."""
    shown = "/".join(map(str, _SHOWN))
    columns = ("matcher", "", "pairs", "matches", "CPU ms a pair", f"recall at {shown} px", "mean")
    rows = [
        (
            s.matcher,
            s.group,
            str(s.pairs),
            f"{s.matches:,.0f}",
            cpu_text(s.cpu_ms),
            " / ".join(f"{s.recall[d - 1]:.1f}" for d in _SHOWN),
            f"{np.mean(s.recall):.1f}",
        )
        for s in summaries
    ]
    return markdown_table(columns, rows)

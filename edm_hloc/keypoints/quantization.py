"""Quantization: merges the points that matches have in an image into keypoints, as hloc does.

Matches of semi-dense matchers have no keypoints that repeat between pairs. Here the points of an
image from all its pairs vote, weighted by their scores, for small bins, and each larger square cell
gives one keypoint, its bin with the largest sum of scores. The results equal hloc's bit for bit:
sums are float32 and taken in the order of the pairs, and ties are decided by the same calls of
NumPy and SciPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from edm_hloc.base.settings import check_range, check_type
from edm_hloc.keypoints.assignment import assign_points
from edm_hloc.keypoints.lattice import (
    MAX_COORDINATE,
    checked_points,
    index_keys,
    lattice_indices,
    number_keys,
    position_keys,
    snap,
)


@dataclass(frozen=True)
class QuantizationConfig:
    """How the points of matches are merged into keypoints. Lengths are in pixels of the photo.

    Attributes:
        max_error: side of the bins that points vote for (its integer part; below 1 each distinct
            point is its own bin), and the largest distance between a point and the keypoint it is
            assigned to.
        cell_size: side of the square cells that give one keypoint each; what is less than
            `max_error` becomes that.
        max_kps: maximum number of keypoints an image keeps, those with the best scores. With None
            all are kept, points belong to their cell's keypoint at any distance, and (for
            localization) points of a query that are matched to an image of fixed keypoints are not
            binned.
        position: where a keypoint is placed. "bin": the centre of its bin, as in hloc. "mean": the
            mean of the points assigned to it, weighted by their scores, which is more accurate.
            "adjusted": that mean, moved by keypoint adjustment to where the matches of all pairs
            agree, which reduces reprojection errors by a third and holds the keypoints of all
            images in memory (see `adjustment.py`).

    Raises:
        EdmHlocError: a value is out of its range.
    """

    max_error: float
    cell_size: float
    max_kps: int | None
    position: Literal["bin", "mean", "adjusted"] = "bin"

    def __post_init__(self) -> None:
        # below a tenth of a pixel the rounding to 0.01 px would merge neighbouring cells
        check_range("max_error", self.max_error, 0.1, MAX_COORDINATE)
        check_range("cell_size", self.cell_size, 0, MAX_COORDINATE)
        check_range("max_kps", self.max_kps, 1)
        object.__setattr__(self, "cell_size", max(self.cell_size, self.max_error))  # it is recorded
        check_type("position", self.position, Literal["bin", "mean", "adjusted"])

    @property
    def bin_side(self) -> int:
        """Side of the bins in pixels; 0 means that points are not binned."""
        return int(self.max_error)


class QuantizedImage(NamedTuple):
    """Keypoints of one image, and the keypoint that each point was merged into.

    Attributes:
        keypoints: (N, 2) float32, (x, y) in the frame of the points.
        scores: (N,) float32, the sum of the scores of the points in each keypoint's bin.
        ids: (M,) int64, the keypoint of each point, -1 for none.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    ids: np.ndarray


def quantize_image(
    points: np.ndarray,
    scores: np.ndarray,
    config: QuantizationConfig,
    *,
    binned: np.ndarray | None = None,
) -> QuantizedImage:
    """Merges all points of one image into keypoints.

    Keypoints are in the order in which their cells first appear among the points, or, if
    `config.max_kps` limits their number, in descending order of their scores.

    Args:
        points: (M, 2) float32, the points of the image's pairs one after the other, in pixels with
            the centre of the top-left pixel at (0, 0). Ties and rounding depend on their order.
        scores: (M,) float32, the weights of the points.
        config: sizes of bins and cells, and the number of keypoints.
        binned: (M,) bool, False for points that are not binned: each distinct one has a cell of its
            own. None bins all points.

    Raises:
        ValueError: shapes disagree, or a value is not finite or too large for a pixel coordinate.
    """
    points = checked_points(np.ascontiguousarray(points, dtype=np.float32))
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    if scores.shape != (len(points),):
        raise ValueError(f"{len(points)} points but scores of shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not all finite")
    if len(points) == 0:
        return QuantizedImage(
            np.zeros((0, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        )

    if config.bin_side > 0 and (binned is None or binned.all()):
        binned = None
        bins = _bins_by_index(points, config)
    else:
        bins = _bins_by_position(points, config, binned)
    num_bins, num_cells = len(bins.first_point), int(bins.cell_of_bin.max()) + 1

    totals = np.zeros(num_bins, np.float32)
    np.add.at(totals, bins.bin_of_point, scores)  # one by one in their order, unlike np.sum
    best = np.full(num_cells, -np.inf, np.float32)
    np.maximum.at(best, bins.cell_of_bin, totals)
    candidates = np.flatnonzero(totals == best[bins.cell_of_bin])
    winner = np.full(num_cells, num_bins)
    np.minimum.at(winner, bins.cell_of_bin[candidates], candidates)  # of equal bins the first one
    source = bins.first_point[winner]
    keypoints = snap(points[source], config.bin_side, None if binned is None else binned[source])

    if config.max_kps is None:
        ids = bins.cell_of_bin[bins.bin_of_point]
    else:
        # hloc's own call, not a stable sort, so that equal scores come in the same order as there
        kept = np.argsort(best)[::-1][: config.max_kps]
        keypoints, best = keypoints[kept], best[kept]
        ids = assign_points(points, keypoints, config.max_error)
    if config.position != "bin":
        keypoints = _mean_positions(keypoints, ids, points, scores)
    return QuantizedImage(keypoints, best, ids)


class _Bins(NamedTuple):
    """The bins that points fall in. A bin across a border of cells counts as one bin in each.

    Attributes:
        bin_of_point: (M,) int64, the bin of each point.
        first_point: (B,) int64, the first point in each bin.
        cell_of_bin: (B,) int64, the cell of each bin.
    """

    bin_of_point: np.ndarray
    first_point: np.ndarray
    cell_of_bin: np.ndarray


def _bins_by_index(points: np.ndarray, config: QuantizationConfig) -> _Bins:
    """Groups points by cell and bin, which are told apart by their lattice indices."""
    indices = lattice_indices(points, config.cell_size)
    if config.bin_side != config.cell_size:
        # Along an axis the indices of cell and bin grow together: their sum stands for both.
        indices += lattice_indices(points, config.bin_side)
    bin_of_point, first_point = number_keys(index_keys(indices))
    cells = lattice_indices(points[first_point], config.cell_size)
    cell_of_bin, _ = number_keys(index_keys(cells))
    return _Bins(bin_of_point, first_point, cell_of_bin)


def _bins_by_position(
    points: np.ndarray, config: QuantizationConfig, binned: np.ndarray | None
) -> _Bins:
    """Groups points by the centres of cell and bin: slower, but some may be left unbinned."""
    cells, _ = number_keys(position_keys(snap(points, config.cell_size, binned)))
    bins, _ = number_keys(position_keys(snap(points, config.bin_side, binned)))
    bin_of_point, first_point = number_keys(cells * (int(bins.max()) + 1) + bins)
    return _Bins(bin_of_point, first_point, cells[first_point])


def _mean_positions(
    keypoints: np.ndarray, ids: np.ndarray, points: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """(N, 2) float32 weighted means of the points of each keypoint; without weight it stays."""
    assigned = np.flatnonzero(ids >= 0)
    ids, weights = ids[assigned], scores[assigned].astype(np.float64)
    total = np.bincount(ids, weights, len(keypoints))
    sums = [np.bincount(ids, weights * points[assigned, d], len(keypoints)) for d in (0, 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.stack(sums, axis=1) / total[:, None]
    return np.where(total[:, None] > 0, means, keypoints).astype(np.float32)

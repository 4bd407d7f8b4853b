"""The two-view geometry of a pair by COLMAP's RANSAC, from a sample of its matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap

from edm_hloc.base.geometry import homogeneous
from edm_hloc.mapping.database_reading import IdPair
from edm_hloc.mapping.options import MappingOptions

SAMPLE = 800
"""Matches of a pair that its geometry is estimated from; its inliers are sought among all. RANSAC's
time grows with their number, and which matches are inliers changes no more than with the seed
(docs/speed.md)."""

MATRICES = ("E", "F", "H")
"""The attributes of a two-view geometry that hold a matrix, or None."""

# Among hundreds of wrong matches RANSAC finds 2 to 10 % that are consistent by chance, which can be
# more than `min_inliers`.
_MIN_INLIER_RATIO = 0.15

Estimate = Callable[[IdPair, tuple[np.ndarray, np.ndarray], np.ndarray], pycolmap.TwoViewGeometry]


def estimator(camera_of: Mapping[int, pycolmap.Camera], options: MappingOptions) -> Estimate:
    """A function of the ids of two images, their keypoints (N, 2) float64 and matches (M, 2).

    Args:
        camera_of: cameras by the id of the image.
        options: `max_error`, `min_inliers` and `seed` count here.
    """
    two_view = pycolmap.TwoViewGeometryOptions()
    two_view.min_num_inliers = options.min_inliers
    two_view.ransac.max_error = options.max_error
    two_view.ransac.random_seed = options.seed

    def estimate(
        images: IdPair, points: tuple[np.ndarray, np.ndarray], matches: np.ndarray
    ) -> pycolmap.TwoViewGeometry:
        a, b = (camera_of[i] for i in images)
        some = _sample(matches, options.seed)
        geometry = pycolmap.estimate_two_view_geometry(a, points[0], b, points[1], some, two_view)
        if len(some) < len(matches):
            geometry = _TwoPhotos((a, b), points, options.max_error).of_all(geometry, some, matches)
        # `two_view.ransac.min_inlier_ratio` has no effect here
        if len(geometry.inlier_matches) < _MIN_INLIER_RATIO * len(matches):
            return pycolmap.TwoViewGeometry(config=pycolmap.TwoViewGeometryConfiguration.DEGENERATE)
        return geometry

    return estimate


def _sample(matches: np.ndarray, seed: int) -> np.ndarray:
    """At most `SAMPLE` of the matches (M, 2), in their order."""
    if len(matches) <= SAMPLE:
        return matches
    chosen = np.random.default_rng(seed).permutation(len(matches))[:SAMPLE]
    sampled: np.ndarray = matches[np.sort(chosen)]
    return sampled


@dataclass(frozen=True)
class _TwoPhotos:
    """Two photos whose keypoints are matched.

    Attributes:
        cameras: of both.
        points: (N, 2) float64 keypoints of both, COLMAP's frame.
        max_error: of an inlier, pixels.
    """

    cameras: tuple[pycolmap.Camera, pycolmap.Camera]
    points: tuple[np.ndarray, np.ndarray]
    max_error: float

    def of_all(
        self, geometry: pycolmap.TwoViewGeometry, some: np.ndarray, matches: np.ndarray
    ) -> pycolmap.TwoViewGeometry:
        """A geometry of some of the matches (N, 2) with its inliers among all of them (M, 2).

        They are the inliers of that matrix which explains best what COLMAP took as inliers of the
        sample: of the homography, for instance, where the scene is a plane.
        """
        of_sample = _among(some, geometry.inlier_matches)
        best, most = np.zeros(len(matches), bool), 0
        for kind in MATRICES:
            matrix = getattr(geometry, kind)
            if matrix is None:
                continue
            agreeing = int((self.inliers(kind, matrix, some) == of_sample).sum())
            if agreeing > most:
                best, most = self.inliers(kind, matrix, matches), agreeing
        geometry.inlier_matches = matches[best]
        return geometry

    def inliers(self, kind: str, matrix: np.ndarray, matches: np.ndarray) -> np.ndarray:
        """(M,) bool: which matches agree with one of `MATRICES` as COLMAP asks them to.

        By Sampson's error; with "H" by the distance in the second photo.
        """
        x0, x1 = (p[matches[:, i]] for i, p in enumerate(self.points))
        largest = self.max_error
        if kind == "H":
            mapped = homogeneous(x0) @ matrix.T
            with np.errstate(divide="ignore", invalid="ignore"):
                distance = np.linalg.norm(mapped[:, :2] / mapped[:, 2:] - x1, axis=1)
            near: np.ndarray = distance <= largest
            return near
        if kind == "E":
            a, b = self.cameras
            x0, x1 = np.asarray(a.cam_from_img(x0)), np.asarray(b.cam_from_img(x1))
            largest = (a.cam_from_img_threshold(largest) + b.cam_from_img_threshold(largest)) / 2
        errors = np.asarray(pycolmap.compute_squared_sampson_error(x0, x1, matrix))
        agree: np.ndarray = errors <= largest**2
        return agree


def _among(matches: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(M,) bool: which of the matches (M, 2) are among some chosen from them (N, 2)."""
    numbers = [np.asarray(m).astype(np.int64) @ np.array([1 << 32, 1]) for m in (matches, chosen)]
    return np.isin(*numbers)

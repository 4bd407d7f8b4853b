"""One query: its 2D–3D correspondences, and its pose by PnP with RANSAC and refinement (COLMAP)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.colmap import camera_text
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.settings import check_range
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.localization.deviations import pose_deviations
from edm_hloc.localization.fit import (
    LESS_ERROR,
    MANY,
    Fit,
    Lens,
    is_possible,
    off_centre,
    refined,
    refinement_options,
    reprojection_errors,
    with_principal_point,
)
from edm_hloc.localization.points import PointSource
from edm_hloc.localization.poses import to_numbers
from edm_hloc.localization.results import QueryPose

_MIN_CORRESPONDENCES = 4  # of PnP: three for the pose, one more to choose among its solutions
_FEWEST_ALIGNED = 30  # points that a pose is refined by
# Scales of the robust loss, in median errors of the points: matches have far longer tails
_MATCHED_LOSS, _ALIGNED_LOSS = 1.0, 2.0
_OTHER_FOCAL = 0.03  # change of a known focal length that leaves it in doubt

ALIGNMENTS = 2
"""Number of times that a query is aligned to the photos of a model, each from the last pose on."""

Align = Callable[
    [int, pycolmap.Camera, pycolmap.Rigid3d, Mapping[str, int]], tuple[np.ndarray, np.ndarray]
]
"""Aligns a query's photo to a model's, see `photo_alignment.PhotoAligner`: (number of the
alignment, camera, pose, inliers by database photo) → pixels (N, 2), points (N, 3)."""


@dataclass(frozen=True)
class PoseOptions:
    """Settings of the pose estimation.

    Attributes:
        max_error: RANSAC's threshold: largest reprojection error of an inlier, pixels of the
            original photo. The default is hloc's.
        min_inliers: minimum number of inliers of a localized query.
        min_matches: database images with fewer matches to the query are left out.
        clusters: estimate a pose from each group of covisible database images by itself, and keep
            the one with most inliers. For places that look alike.
        seed: seed of RANSAC. The same seed gives the same poses, whatever the number of threads.
        threads: number of queries estimated at a time; −1 for one a processor core.

    Raises:
        EdmHlocError: a number is out of its range.
    """

    max_error: float = 12.0
    min_inliers: int = 10
    min_matches: int = 0
    clusters: bool = False
    seed: int = 0
    threads: int = -1

    def __post_init__(self) -> None:
        check_range("PoseOptions.max_error", self.max_error, 1e-3)
        check_range("PoseOptions.min_inliers", self.min_inliers, 4)  # fewer agree with some pose
        check_range("PoseOptions.seed", self.seed, 0, 2**31)


@dataclass(frozen=True)
class Correspondences:
    """2D–3D correspondences of a query, from its matches with a group of database images.

    Attributes:
        pixels: (N, 2) keypoints of the query in COLMAP's frame.
        points: (N, 3) world coordinates.
        sources: each matched database image with the indices of the correspondences it gave.
        retrieved: number of database images in the group.
        matches: number of matches to them.
    """

    pixels: np.ndarray
    points: np.ndarray
    sources: list[tuple[str, np.ndarray]]
    retrieved: int
    matches: int


def find_correspondences(
    query: str,
    retrieved: Sequence[str],
    features: FeatureReader,
    matches: MatchReader,
    points: PointSource,
    min_matches: int,
) -> Correspondences:
    """Joins the matches of a query with the 3D points of database images.

    Several images that see the same point give equal correspondences, which count once.

    Args:
        query: its name.
        retrieved: names of the group of database images.
        features: keypoints of the query, hloc's frame.
        matches: matches of the query and the images.
        points: the 3D points of the images' keypoints.
        min_matches: images with fewer matches are left out.

    Raises:
        EdmHlocError: the matches are indices of other keypoints than those at hand.
    """
    rows, names, number = [np.zeros((0, 5))], [], 0
    keypoints = np.zeros((0, 2), np.float32)
    if query in features:
        keypoints = to_colmap(features.keypoints(query)[:, :2].astype(np.float32))
    for name in retrieved:
        if name not in points or (query, name) not in matches:
            continue
        indices = matches.indices(query, name)
        if not len(indices) or len(indices) < min_matches:
            continue
        known = points.points(name)
        if indices[:, 0].max() >= len(keypoints) or indices[:, 1].max() >= len(known):
            raise EdmHlocError(
                f"The matches of {query} and {name} in {matches.path} are of other keypoints than "
                "those at hand: take the files of one run, or run again with --overwrite."
            )
        number += len(indices)
        row = np.hstack([keypoints[indices[:, 0]].astype(np.float64), known[indices[:, 1]]])
        rows.append(row[np.isfinite(row).all(axis=1)])
        names.append(name)
    unique, inverse = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    ends = np.cumsum([len(row) for row in rows[1:]])[:-1]
    sources = list(zip(names, np.split(inverse.reshape(-1), ends), strict=True)) if names else []
    return Correspondences(unique[:, :2], unique[:, 2:], sources, len(retrieved), number)


def estimate_pose(
    query: str,
    camera: pycolmap.Camera,
    matched: Correspondences,
    options: PoseOptions,
    *,
    lens: Lens,
    align: Align | None = None,
) -> QueryPose:
    """Estimates the pose of a query; "localized" or "failed".

    Args:
        query: its name.
        camera: its intrinsics, which are not changed.
        matched: its correspondences.
        options: thresholds and seed.
        lens: what of the intrinsics is refined with the pose. The focal length is estimated first
            unless the camera `has_prior_focal_length`.
        align: refines the pose by the photos; without it, it is that of the matches.
    """
    start = time.monotonic()
    # The pose is refined about the origin, which may be far away, as in the coordinates of a map.
    origin: Any = np.median(matched.points, axis=0) if len(matched.points) else np.zeros(3)
    matched = replace(matched, points=matched.points - origin)
    to_origin = pycolmap.Rigid3d(pycolmap.Rotation3d(), -origin)
    found, fit, refinement = None, Fit(pycolmap.Rigid3d(), camera), refinement_options(False)
    if len(matched.pixels) >= _MIN_CORRESPONDENCES:
        found, fit, refinement = _estimated(camera, matched, options, lens != "known")
    answer = QueryPose(
        query,
        "failed",
        retrieved=matched.retrieved,
        matched=len(matched.sources),
        matches=matched.matches,
        correspondences=len(matched.pixels),
        inliers=found["num_inliers"] if found else 0,
        seconds=round(time.monotonic() - start, 4),
    )
    if found is None or answer.inliers < options.min_inliers:
        return replace(answer, reason=_why_not(answer, options))
    inlier = found["inlier_mask"]
    inliers_of = {
        name: int(n)
        for name, indices in matched.sources
        if (n := np.count_nonzero(inlier[indices]))
    }
    pixels, points = _each_point_once(matched.pixels[inlier], matched.points[inlier])
    if len(pixels) >= options.min_inliers:
        fit = refined(fit, pixels, points, refinement, _MATCHED_LOSS) or fit
    better_focal = _better_focal(fit, pixels, points) if lens == "known" else None
    told = None
    if lens == "told" and refinement.refine_focal_length:
        told = with_principal_point(fit, pixels, points, _MATCHED_LOSS)
    fit, lens = (told or fit), ("centred" if lens == "told" and told is None else lens)
    aligned = 0
    for number in range(ALIGNMENTS if align else 0):
        assert align is not None
        new_pixels, new_points = align(number, fit.camera, fit.pose * to_origin, inliers_of)
        new_points = new_points - origin
        if len(new_pixels) < max(options.min_inliers, _FEWEST_ALIGNED):
            break
        better = refined(fit, new_pixels, new_points, refinement, _ALIGNED_LOSS)
        if better is None:
            break
        fit, pixels, points, aligned = better, new_pixels, new_points, len(new_pixels)
    scale = _ALIGNED_LOSS if aligned else _MATCHED_LOSS
    deviations = pose_deviations(fit, pixels, points, scale, lens)
    position, rotation = (None, None) if deviations.whole is None else deviations.whole.tolist()
    of_lens = None if deviations.of_lens is None else tuple(deviations.of_lens.tolist())
    return replace(
        answer,
        status="localized",
        cam_from_world=to_numbers(fit.pose * to_origin),
        camera=camera_text(fit.camera),
        better_focal=better_focal,
        median_error=float(np.median(reprojection_errors(fit, pixels, points))),
        distance=float(np.median(np.linalg.norm(fit.pose * points, axis=1))),
        position_deviation=position,
        rotation_deviation=rotation,
        lens_deviations=of_lens,
        off_centre=off_centre(fit.camera) if told else None,
        inliers_of=inliers_of,
        aligned=aligned,
    )


def _why_not(answer: QueryPose, options: PoseOptions) -> str:
    """Why a query with too few inliers has no pose."""
    if not answer.matched:
        enough = f"has {options.min_matches} matches with" if options.min_matches > 1 else "matches"
        return f"None of its {answer.retrieved} retrieved images {enough} it."
    if not answer.correspondences:
        return f"None of its {answer.matches} matches is of a known 3D point."
    return (
        f"{answer.inliers} of {answer.correspondences} correspondences agree with a pose; "
        f"{options.min_inliers} are needed."
    )


def _estimated(
    camera: pycolmap.Camera, matched: Correspondences, options: PoseOptions, uncalibrated: bool
) -> tuple[dict[str, Any] | None, Fit, pycolmap.AbsolutePoseRefinementOptions]:
    """COLMAP's answer, the pose and camera in it, and what of these is to be refined further.

    Where the points hardly tell the focal length from the distance, as those of a wall that the
    camera looks squarely at, COLMAP may end with one that no lens has, even below zero. Then the
    focal length and the distortion are held as given.
    """
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.ransac.max_error = options.max_error
    estimation.ransac.random_seed = options.seed
    for free in (True, False) if uncalibrated else (False,):
        estimation.estimate_focal_length = free and not camera.has_prior_focal_length
        refinement = refinement_options(free)
        copy = pycolmap.Camera(camera.todict())  # COLMAP refines it in place
        found = pycolmap.estimate_and_refine_absolute_pose(
            matched.pixels, matched.points, copy, estimation, refinement
        )
        if found is None:
            break
        fit, inlier = Fit(found["cam_from_world"], copy), found["inlier_mask"]
        if is_possible(fit, *_each_point_once(matched.pixels[inlier], matched.points[inlier])):
            return found, fit, refinement
    return None, Fit(pycolmap.Rigid3d(), camera), refinement


def _better_focal(fit: Fit, pixels: np.ndarray, points: np.ndarray) -> float | None:
    """The focal length that explains points (N, 3) far better than a known one; None if none does,
    or there are too few of them to tell."""
    if len(points) < MANY:
        return None
    options = refinement_options(False)
    options.refine_focal_length = True
    other = refined(fit, pixels, points, options, _MATCHED_LOSS)
    if other is None:
        return None
    focal, known = (each.camera.mean_focal_length() for each in (other, fit))
    less = np.median(reprojection_errors(fit, pixels, points)) > LESS_ERROR * np.median(
        reprojection_errors(other, pixels, points)
    )
    return float(focal) if less and abs(focal / known - 1) > _OTHER_FOCAL else None


def _each_point_once(pixels: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each point (N, 3) once, at the median of the pixels (N, 2) that matches with several database
    images give it in the query."""
    unique, point = np.unique(points, axis=0, return_inverse=True)
    point = point.reshape(-1)
    count = np.bincount(point)
    first = np.cumsum(count) - count
    middle = np.zeros((len(unique), 2))
    for axis in range(2):
        values = pixels[np.lexsort([pixels[:, axis], point]), axis]
        middle[:, axis] = (values[first + (count - 1) // 2] + values[first + count // 2]) / 2
    return middle, unique

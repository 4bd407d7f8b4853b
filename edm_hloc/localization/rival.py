"""Whether a query may as well be elsewhere: another pose that many of its correspondences fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pycolmap

from edm_hloc.images.intrinsics import parse_camera
from edm_hloc.localization.fit import Fit, refinement_options, reprojection_errors
from edm_hloc.localization.pnp import Correspondences, PoseOptions
from edm_hloc.localization.results import QueryPose

_RIVAL_SHARE = 0.5  # of the places in the photo that the pose explains
_PLACE = 1 / 64  # of the longer side: the side of a place
_ELSEWHERE = 0.1  # of the longer side: how far another pose moves the points in the photo
_SURE = 0.99  # probability to find a pose that has so many inliers
_MOST_TRIALS = 5_000


def inliers_elsewhere(
    answer: QueryPose, groups: Sequence[Correspondences], options: PoseOptions
) -> int:
    """The number of correspondences that fit another pose than that of the answer.

    There is such a pose where places look alike, and where a part of the model is in it twice. It
    is sought among the correspondences that do not fit the answer. A pose that moves the points in
    the photo by less than a tenth of its longer side is the same one.

    Counted are the places in the photo, squares of a 64th of its longer side, where correspondences
    fit: each photo of the model gives correspondences of its own at the same place, so that their
    number says how often the model shows a place rather than how well it explains the query.

    Args:
        answer: of a query that is localized.
        groups: its correspondences, of each group of database images.
        options: by which the answer was found.

    Returns:
        0 where no other pose explains half as many places in the photo as the answer's.
    """
    assert answer.pose is not None
    rows = [np.hstack([group.pixels, group.points]) for group in groups]
    pixels, points = np.split(np.unique(np.concatenate(rows), axis=0), [2], axis=1)
    origin = np.median(points, axis=0)  # which may be far away, as in the coordinates of a map
    points = points - origin
    pose = answer.pose * pycolmap.Rigid3d(pycolmap.Rotation3d(), origin)
    camera = parse_camera(answer.camera.split(), answer.query)
    inlier = reprojection_errors(Fit(pose, camera), pixels, points) <= options.max_error
    place = _PLACE * max(camera.width, camera.height)
    others, rest = pixels[~inlier], points[~inlier]
    needed = max(1, math.ceil(_RIVAL_SHARE * _number_of_places(pixels[inlier], place)))
    if len(others) < options.min_inliers or _number_of_places(others, place) < needed:
        return 0
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    ransac = estimation.ransac
    ransac.max_error, ransac.random_seed = options.max_error, options.seed
    ransac.confidence = _SURE
    ransac.min_inlier_ratio = max(needed, options.min_inliers) / len(others)
    ransac.dyn_num_trials_multiplier, ransac.max_num_trials = 1.0, _MOST_TRIALS
    found = pycolmap.estimate_and_refine_absolute_pose(
        others, rest, camera, estimation, refinement_options(False)
    )
    if found is None or found["num_inliers"] < options.min_inliers:
        return 0
    if _number_of_places(others[found["inlier_mask"]], place) < needed:
        return 0
    moved = reprojection_errors(
        Fit(found["cam_from_world"], camera),
        np.asarray(camera.img_from_cam(pose * points[inlier])),
        points[inlier],
    )
    same = np.median(moved) < _ELSEWHERE * max(camera.width, camera.height)
    return 0 if same else int(found["num_inliers"])


def _number_of_places(pixels: np.ndarray, side: float) -> int:
    """The number of squares with a side in pixels that hold any of the pixels (N, 2)."""
    return len(np.unique(np.floor(pixels / side), axis=0))

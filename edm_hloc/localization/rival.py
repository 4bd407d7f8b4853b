"""Whether a query may as well be elsewhere: another pose that many of its correspondences fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pycolmap

from edm_hloc.images.intrinsics import parse_camera
from edm_hloc.localization.fit import Fit, refinement_options, reprojection_errors
from edm_hloc.localization.pnp import Correspondences, PoseOptions
from edm_hloc.localization.results import RIVAL_SHARE, QueryPose

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

    Args:
        answer: of a query that is localized.
        groups: its correspondences, of each group of database images.
        options: by which the answer was found.

    Returns:
        0 where no other pose has `RIVAL_SHARE` of the answer's inliers.
    """
    assert answer.pose is not None
    rows = [np.hstack([group.pixels, group.points]) for group in groups]
    pixels, points = np.split(np.unique(np.concatenate(rows), axis=0), [2], axis=1)
    origin = np.median(points, axis=0)  # which may be far away, as in the coordinates of a map
    points = points - origin
    pose = answer.pose * pycolmap.Rigid3d(pycolmap.Rotation3d(), origin)
    camera = parse_camera(answer.camera.split(), answer.query)
    inlier = reprojection_errors(Fit(pose, camera), pixels, points) <= options.max_error
    others = np.count_nonzero(~inlier)
    needed = max(options.min_inliers, math.ceil(RIVAL_SHARE * answer.inliers))
    if others < needed:
        return 0
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    ransac = estimation.ransac
    ransac.max_error, ransac.random_seed = options.max_error, options.seed
    ransac.confidence, ransac.min_inlier_ratio = _SURE, needed / others
    ransac.dyn_num_trials_multiplier, ransac.max_num_trials = 1.0, _MOST_TRIALS
    found = pycolmap.estimate_and_refine_absolute_pose(
        pixels[~inlier], points[~inlier], camera, estimation, refinement_options(False)
    )
    if found is None or found["num_inliers"] < needed:
        return 0
    moved = reprojection_errors(
        Fit(found["cam_from_world"], camera),
        np.asarray(camera.img_from_cam(pose * points[inlier])),
        points[inlier],
    )
    same = np.median(moved) < _ELSEWHERE * max(camera.width, camera.height)
    return 0 if same else int(found["num_inliers"])

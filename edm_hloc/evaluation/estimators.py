"""Estimators of relative pose: COLMAP's LO-RANSAC, OpenCV's RANSAC and PoseLib's LO-RANSAC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import cv2
import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.pose_pairs import PosePair

Pose = tuple[np.ndarray, np.ndarray]
"""R (3, 3) and t (3,), from the coordinates of camera 0 to those of camera 1."""


@dataclass(frozen=True)
class PairMatches:
    """The matches of a pair as its cameras see them.

    Attributes:
        points0, points1: (M, 2) pixels of the pair's cameras, in COLMAP's frame.
        rays0, rays1: (M, 2) the same in normalised coordinates, without distortion.
    """

    points0: np.ndarray
    points1: np.ndarray
    rays0: np.ndarray
    rays1: np.ndarray


Estimate = Callable[[PairMatches, PosePair, float, int], Pose | None]
"""The pose from the matches of a pair, with a threshold in pixels of its cameras and a seed; None
if there are fewer than five matches, or no model is found."""


def estimate_opencv(
    matches: PairMatches, pair: PosePair, threshold: float, seed: int
) -> Pose | None:
    """Pose by OpenCV's RANSAC as in LoFTR's evaluation: the threshold over the mean focal length.

    The seed is of the order of the matches, since OpenCV's own draws are always the same. See
    `Estimate`.
    """
    if len(matches.rays0) < 5:
        return None
    focal = (pair.camera0.mean_focal_length() + pair.camera1.mean_focal_length()) / 2
    order = np.random.default_rng(seed).permutation(len(matches.rays0))
    x0, x1 = matches.rays0[order], matches.rays1[order]
    E, mask = cv2.findEssentialMat(
        x0, x1, np.eye(3), threshold=threshold / focal, prob=0.99999, method=cv2.RANSAC
    )
    if E is None:
        return None
    best, pose = 0, None
    for candidate in np.split(E, len(E) // 3):
        number, R, t, _, _ = cv2.recoverPose(
            candidate, x0, x1, np.eye(3), distanceThresh=1e9, mask=mask.copy()
        )
        if number > best:
            best, pose = number, (R, t[:, 0])
    return pose


def estimate_colmap(
    matches: PairMatches, pair: PosePair, threshold: float, seed: int
) -> Pose | None:
    """Pose by COLMAP's LO-RANSAC, refined on the inliers. See `Estimate`.

    With the numbers of trials and the confidence with which COLMAP verifies pairs; the estimator's
    own make at least 1,000 trials and up to 100,000, which takes eight times as long.
    """
    x0, x1 = matches.points0, matches.points1
    if len(x0) < 5:
        return None
    options = pycolmap.TwoViewGeometryOptions().ransac
    options.max_error = threshold
    options.random_seed = seed
    found = pycolmap.estimate_essential_matrix(x0, x1, pair.camera0, pair.camera1, options)
    if found is None:
        return None
    pose = found["cam2_from_cam1"]
    refined = pycolmap.refine_relative_pose(
        pose, pair.camera0, x0, pair.camera1, x1, found["inlier_mask"]
    )
    if refined is not None:
        pose = refined["cam2_from_cam1"]
    return pose.rotation.matrix(), pose.translation


def estimate_poselib(
    matches: PairMatches, pair: PosePair, threshold: float, seed: int
) -> Pose | None:
    """Pose by PoseLib's LO-RANSAC with its defaults but the threshold and the seed.

    See `Estimate`.

    Raises:
        EdmHlocError: PoseLib is not installed.
    """
    poselib = require_poselib()
    if len(matches.rays0) < 5:
        return None
    points, cameras = [], []
    for rays, camera in ((matches.rays0, pair.camera0), (matches.rays1, pair.camera1)):
        # of a pinhole camera: PoseLib does not know all of COLMAP's models
        K = camera.calibration_matrix()
        points.append(rays * K[[0, 1], [0, 1]] + K[:2, 2])
        params = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
        cameras.append(
            {"model": "PINHOLE", "width": camera.width, "height": camera.height, "params": params}
        )
    found, info = poselib.estimate_relative_pose(
        *points, *cameras, {"max_epipolar_error": threshold, "seed": seed}
    )
    if info["num_inliers"] < 5:
        return None
    return np.asarray(found.R), np.asarray(found.t)


def require_poselib() -> ModuleType:
    """PoseLib.

    Raises:
        EdmHlocError: it is not installed.
    """
    try:
        import poselib
    except ModuleNotFoundError:
        raise EdmHlocError(
            "PoseLib's LO-RANSAC needs poselib: pip install 'edm_hloc[poselib]'."
        ) from None
    module: ModuleType = poselib
    return module


ESTIMATORS: Mapping[str, tuple[str, Estimate]] = {
    "colmap": ("COLMAP's LO-RANSAC", estimate_colmap),
    "opencv": ("OpenCV's RANSAC", estimate_opencv),
    "poselib": ("PoseLib's LO-RANSAC", estimate_poselib),
}
"""By the name in the results: what people call it, and the function."""

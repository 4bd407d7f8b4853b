"""Geometric verification: which matches of a pair are inliers, by RANSAC or by known poses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.geometry import epipolar_errors
from edm_hloc.base.progress import StepProgress, track
from edm_hloc.mapping.options import MappingOptions

# Among hundreds of wrong matches RANSAC finds 2 to 10 % that are consistent by chance, which can be
# more than `min_inliers`.
_MIN_INLIER_RATIO = 0.15
_BATCH = 256  # pairs whose matches are read at once, verified in parallel and written
CACHED_IMAGES = 256
"""Images whose viewing rays stay in memory while known poses are verified, 24 bytes a keypoint."""


@dataclass(frozen=True)
class VerificationSummary:
    """Result of geometric verification.

    Attributes:
        pairs: pairs with matches.
        verified_pairs: pairs with a two-view geometry.
        matches: matches of all pairs.
        inliers: matches that are consistent with the geometry of their pair.
        seconds: wall-clock time; 0 where it was not measured.
    """

    pairs: int
    verified_pairs: int
    matches: int
    inliers: int
    seconds: float

    @classmethod
    def of(cls, db: pycolmap.Database, seconds: float = 0.0) -> VerificationSummary:
        """Counts what a verified database holds."""
        inliers = db.read_two_view_geometry_num_inliers()[1]
        return cls(
            pairs=db.num_matched_image_pairs(),
            # COLMAP's own count includes pairs without inliers
            verified_pairs=sum(number > 0 for number in inliers),
            matches=db.num_matches(),
            inliers=sum(inliers),
            seconds=seconds,
        )


def verify_pairs(db: pycolmap.Database, options: MappingOptions) -> None:
    """Estimates the two-view geometry of each matched pair by RANSAC and writes it.

    The result does not depend on the number of threads.
    """
    two_view = pycolmap.TwoViewGeometryOptions()
    two_view.min_num_inliers = options.min_inliers
    two_view.ransac.max_error = options.max_error
    two_view.ransac.random_seed = options.seed
    cameras = {camera.camera_id: camera for camera in db.read_all_cameras()}
    camera_of = {image.image_id: cameras[image.camera_id] for image in db.read_all_images()}

    def points_of(image_id: int) -> np.ndarray:
        return db.read_keypoints(image_id)[:, :2].astype(np.float64)

    def estimate(
        images: tuple[int, int], points: tuple[np.ndarray, np.ndarray], matches: np.ndarray
    ) -> pycolmap.TwoViewGeometry:
        a, b = (camera_of[i] for i in images)
        geometry = pycolmap.estimate_two_view_geometry(
            a, points[0], b, points[1], matches, two_view
        )
        # `two_view.ransac.min_inlier_ratio` has no effect here
        if len(geometry.inlier_matches) < _MIN_INLIER_RATIO * len(matches):
            return pycolmap.TwoViewGeometry(config=pycolmap.TwoViewGeometryConfiguration.DEGENERATE)
        return geometry

    pairs = [pycolmap.pair_id_to_image_pair(pair_id) for pair_id in db.read_num_matches()[0]]
    progress = StepProgress("Verifying", "pair", len(pairs))
    threads = options.threads if options.threads > 0 else os.cpu_count() or 1
    with progress, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            points = {i: points_of(i) for i in {i for pair in batch for i in pair}}
            both = [(points[a], points[b]) for a, b in batch]
            matches: list[np.ndarray] = [db.read_matches(a, b) for a, b in batch]
            for (a, b), geometry in zip(
                batch, pool.map(estimate, batch, both, matches), strict=True
            ):
                db.write_two_view_geometry(a, b, geometry)
                progress.update()


def verify_known_poses(
    db: pycolmap.Database,
    model: pycolmap.Reconstruction,
    uncertainty: Mapping[int, float],
    options: MappingOptions,
) -> None:
    """Writes the two-view geometry of each matched pair from the poses of a model.

    A match is an inlier where both keypoints lie within `max_error` times the uncertainty of their
    image's keypoints of their epipolar lines.

    Args:
        db: database with keypoints and matches.
        model: cameras and poses, with the ids of the database.
        uncertainty: standard deviation of the keypoints of each image in pixels, by image id.
        options: `max_error` counts here.
    """
    camera_of = {i.image_id: model.cameras[i.camera_id] for i in posed_images(model).values()}
    pose_of = {image_id: model.images[image_id].cam_from_world() for image_id in camera_of}
    threshold = {
        image_id: camera_of[image_id].cam_from_img_threshold(options.max_error * pixels)
        for image_id, pixels in uncertainty.items()
    }

    @lru_cache(CACHED_IMAGES)
    def rays_of(image_id: int) -> np.ndarray:
        """(N, 3) viewing rays of the keypoints, of depth 1."""
        keypoints = db.read_keypoints(image_id)[:, :2].astype(np.float64)
        points = np.asarray(camera_of[image_id].cam_from_img(keypoints))
        return np.concatenate([points, np.ones((len(points), 1))], axis=1)

    pairs = sorted(pycolmap.pair_id_to_image_pair(i) for i in db.read_num_matches()[0])
    for a, b in track(pairs, "Verifying", "pair"):
        matches: np.ndarray = db.read_matches(a, b)
        cam2_from_cam1 = pose_of[b] * pose_of[a].inverse()
        E = pycolmap.essential_matrix_from_pose(cam2_from_cam1)
        rays = rays_of(a)[matches[:, 0]], rays_of(b)[matches[:, 1]]
        error_a, error_b = epipolar_errors(*rays, E)
        geometry = pycolmap.TwoViewGeometry(
            # COLMAP's triangulation ignores pairs whose configuration is UNDEFINED, without a word
            config=pycolmap.TwoViewGeometryConfiguration.CALIBRATED,
            E=E,
            cam2_from_cam1=cam2_from_cam1,
            inlier_matches=matches[(error_a <= threshold[a]) & (error_b <= threshold[b])],
        )
        db.write_two_view_geometry(a, b, geometry)

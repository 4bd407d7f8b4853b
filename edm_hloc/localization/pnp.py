"""One query's 2D–3D correspondences → its camera pose, by RANSAC and refinement (pycolmap)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import to_colmap
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.localization.points import PointSource
from edm_hloc.localization.poses import to_numbers
from edm_hloc.localization.results import QueryPose


@dataclass(frozen=True)
class PoseOptions:
    """How poses are found.

    Attributes:
        max_error: of an inlier's reprojection, pixels of the original photo.
        min_inliers: with fewer the query counts as not localized.
        min_matches: database images with fewer matches to the query are left out.
        clusters: localize against each group of retrieved images that share points, and keep the
            pose with most inliers: for places that look alike.
        seed: of RANSAC; the same seed gives the same poses, whatever the number of threads.
        threads: -1 for all cores.
    """

    max_error: float = 12.0
    min_inliers: int = 10
    min_matches: int = 0
    clusters: bool = False
    seed: int = 0
    threads: int = -1


@dataclass(frozen=True)
class Correspondences:
    """2D–3D correspondences of a query with a group of database images."""

    pixels: np.ndarray  # (N, 2) COLMAP's frame
    points: np.ndarray  # (N, 3)
    sources: list[tuple[str, np.ndarray]]  # database image and the correspondences it gave
    retrieved: int
    matches: int


def gather(
    query: str,
    retrieved: Sequence[str],
    features: FeatureReader,
    matches: MatchReader,
    points: PointSource,
    options: PoseOptions,
) -> Correspondences:
    """All correspondences of a query; equal ones, from several images of a point, count once."""
    rows, names, number = [np.zeros((0, 5))], [], 0
    keypoints = np.zeros((0, 2), np.float32)
    if query in features:
        keypoints = to_colmap(features.keypoints(query)[:, :2].astype(np.float32))
    for name in retrieved:
        if name not in points or (query, name) not in matches:
            continue
        found = matches.matches(query, name)[0]
        if not len(found) or len(found) < options.min_matches:
            continue
        known = points.points(name)
        if found[:, 0].max() >= len(keypoints) or found[:, 1].max() >= len(known):
            raise EdmHlocError(
                f"The matches of {query} and {name} in {matches.path} are of other keypoints than "
                "those at hand: take the files of one run, or run again with --overwrite."
            )
        number += len(found)
        row = np.hstack([keypoints[found[:, 0]].astype(np.float64), known[found[:, 1]]])
        rows.append(row[np.isfinite(row).all(axis=1)])
        names.append(name)
    unique, place = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    ends = np.cumsum([len(row) for row in rows[1:]])[:-1]
    sources = list(zip(names, np.split(place.reshape(-1), ends), strict=True)) if names else []
    return Correspondences(unique[:, :2], unique[:, 2:], sources, len(retrieved), number)


def estimate_pose(
    query: str, camera: pycolmap.Camera, matched: Correspondences, options: PoseOptions, free: bool
) -> QueryPose:
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.ransac.max_error = options.max_error
    estimation.ransac.random_seed = options.seed
    estimation.estimate_focal_length = free and not camera.has_prior_focal_length
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = refinement.refine_extra_params = free
    camera = pycolmap.Camera(camera.todict())  # COLMAP changes it
    start = time.monotonic()
    found = None
    if len(matched.pixels) >= 4:
        found = pycolmap.estimate_and_refine_absolute_pose(
            matched.pixels, matched.points, camera, estimation, refinement, True
        )
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
        reason = f"{answer.inliers} of {answer.correspondences} correspondences agree with a pose"
        return replace(answer, reason=f"{reason}; {options.min_inliers} are needed.")
    pose, inlier = found["cam_from_world"], found["inlier_mask"]
    # of the camera that was refined, on the points that count
    seen = camera.img_from_cam(pose * matched.points[inlier])
    error = np.linalg.norm(np.asarray(seen) - matched.pixels[inlier], axis=1)
    position, rotation = _deviations(pose, found["covariance"], error)
    return replace(
        answer,
        status="localized",
        cam_from_world=to_numbers(pose),
        camera=" ".join(
            [camera.model_name, str(camera.width), str(camera.height)]
            + [repr(float(p)) for p in camera.params]
        ),
        median_error=float(np.median(error)),
        position_deviation=position,
        rotation_deviation=rotation,
        inliers_of={
            name: int(n)
            for name, places in matched.sources
            if (n := np.count_nonzero(inlier[places]))
        },
    )


def _deviations(
    pose: pycolmap.Rigid3d, covariance: np.ndarray | None, errors: np.ndarray
) -> tuple[float | None, float | None]:
    """Standard deviations of the position, and of the rotation in degrees.

    COLMAP gives the covariance for keypoints with a deviation of 1 px an axis, of half the rotation
    vector (Ceres's quaternion manifold) and of the translation.
    """
    if covariance is None:
        return None, None
    noise = float(np.median(errors)) / 1.1774  # the median of a Rayleigh distribution
    covariance = np.diag([2.0] * 3 + [1.0] * 3) @ covariance @ np.diag([2.0] * 3 + [1.0] * 3)
    R, (x, y, z) = pose.rotation.matrix(), pose.translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    J = -R.T @ np.hstack([cross, np.eye(3)])  # of the centre -Rᵀ t
    position = noise * np.sqrt(np.trace(J @ covariance @ J.T))
    rotation = noise * np.sqrt(np.trace(covariance[:3, :3]))
    return float(position), float(np.degrees(rotation))

"""Tells photos of a camera that only turned, of which no model can be made.

Two photos taken from one place are related by a rotation whatever the scene is; a model of them is
an invention. A plane seen by a moving camera is related by a homography too, but by one that no
rotation and no plausible focal length explain.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.optimize import least_squares
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edm_hloc.base.colmap import verified_pairs
from edm_hloc.base.geometry import epipolar_errors, homogeneous, nearest_rotation
from edm_hloc.base.grid import evenly
from edm_hloc.mapping.database_reading import cameras_by_image
from edm_hloc.mapping.plausible import focal_by_side

# Turning explains a pair where its residuals are at most so many times the distances of the matches
# from epipolar lines, which leave the motion free. On synthetic pairs with 0.1 to 1 px of noise:
# 0.9 to 1.3 for a camera that turned, with distortion or not; 1.5 to 90 for nine of ten pairs of a
# camera that moved by 2 % or more of the distance per photo along a plane or a relief.
_MAX_RATIO = 1.5
_SMALL = 0.2  # px; below it, residuals are those of the matcher and of the camera model
_MIN_SHARE = 0.9  # of the pairs that turning must explain
_MAX_PAIRS = 200  # that are looked at
_MAX_MATCHES = 400  # of a pair that are looked at
_FOCAL_UNKNOWN = (0.4, 40.0)  # range of the focal length where unknown, in longer sides
_FOCAL_OF_SHIFT = 10.0  # longer sides; what turned with a longer focal length may be a mere shift
_FOCAL_PRIOR = (0.8, 1.25)  # factor that EXIF's focal length may be wrong by
_MAX_DISTORTION = 0.3
_MAX_STEPS = 40  # of the fit of a pair
_MIN_MATCHES = 16  # of a pair that is looked at
_MIN_GROUP = 3  # photos that are said to be taken from one place, if no model says more of them
_MEDIAN_OF_TWO = 1.1774  # median length of a 2-D error whose standard deviation is 1 an axis


@dataclass(frozen=True)
class _Fit:
    """The rotation between two photos, and the camera, that explain a pair best.

    Attributes:
        explained: turning explains the pair as well as any motion could.
        mere_shift: the focal length grew beyond plausible ones: the picture is shifted, as by a
            camera that moves along a wall.
    """

    explained: bool
    mere_shift: bool


def only_turned(
    db: pycolmap.Database, known: Collection[int] = (), images: Collection[int] | None = None
) -> bool:
    """Whether a rotation explains nearly all verified pairs as well as any motion could.

    Args:
        db: database with verified pairs.
        known: ids of the cameras whose intrinsics are known.
        images: ids of the images whose pairs are looked at; all by default.
    """
    camera_of = cameras_by_image(db)
    pairs = list(verified_pairs(db, _MIN_MATCHES))
    if images is not None:
        inside = set(images)
        pairs = [pair for pair in pairs if inside.issuperset(pair)]
    if not pairs:
        return False
    pairs = evenly(pairs, _MAX_PAIRS)
    fits: list[_Fit] = []
    for a, b in pairs:
        matches = db.read_two_view_geometry(a, b).inlier_matches
        matches = matches[:: -(-len(matches) // _MAX_MATCHES)]
        points = [
            db.read_keypoints(image_id)[matches[:, side], :2].astype(np.float64)
            for side, image_id in enumerate((a, b))
        ]
        fits.append(_fit((camera_of[a], camera_of[b]), points, known))
        if sum(not fit.explained for fit in fits) > (1 - _MIN_SHARE) * len(pairs):
            return False
    return sum(fit.mere_shift for fit in fits) < len(fits) / 2


def turned_groups(
    db: pycolmap.Database, known: Collection[int], images: Collection[int]
) -> set[int]:
    """Ids of the images, of some that are in no model, in groups of which `only_turned` holds.

    Args:
        db: database with verified pairs.
        known: ids of the cameras whose intrinsics are known.
        images: ids of the images. A group has at least three that are connected by verified pairs.
    """
    place = {image_id: i for i, image_id in enumerate(sorted(images))}
    edges = [
        (place[a], place[b])
        for a, b in verified_pairs(db, _MIN_MATCHES)
        if a in place and b in place
    ]
    if not edges:
        return set()
    rows, columns = np.transpose(edges)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(place), len(place)))
    labels = connected_components(graph, directed=False)[1]
    groups = [np.array(sorted(images))[labels == k] for k in np.unique(labels)]
    return {
        image_id
        for group in groups
        if len(group) >= _MIN_GROUP and only_turned(db, known, set(group.tolist()))
        for image_id in group.tolist()
    }


def _fit(
    cameras: tuple[pycolmap.Camera, pycolmap.Camera],
    points: list[np.ndarray],
    known: Collection[int],
) -> _Fit:
    low, high = _range_of_scale(cameras, known)
    rays = [np.asarray(c.cam_from_img(p)) for c, p in zip(cameras, points, strict=True)]
    focal = float(np.mean([camera.mean_focal_length() for camera in cameras]))
    lens, rotation = _turn(rays, focal, low, high)
    rays = [_corrected(r, lens) for r in rays]
    pixel = focal * lens[0]
    side = max(max(camera.width, camera.height) for camera in cameras)
    turning = float(np.median(np.linalg.norm(_residuals(rays, rotation), axis=1)))
    turning *= pixel / _MEDIAN_OF_TWO
    return _Fit(
        turning <= _SMALL or turning <= _MAX_RATIO * _epipolar_noise(rays) * pixel,
        high > low and (lens[0] > 0.97 * high or pixel > _FOCAL_OF_SHIFT * side),
    )


def _range_of_scale(
    cameras: tuple[pycolmap.Camera, pycolmap.Camera], known: Collection[int]
) -> tuple[float, float]:
    """Factors that the focal length may be wrong by."""
    if all(camera.camera_id in known for camera in cameras):
        return 1.0, 1.0
    if any(c.has_prior_focal_length or c.camera_id in known for c in cameras):
        return _FOCAL_PRIOR
    sides = [focal_by_side(camera) for camera in cameras]
    low, high = (limit / float(np.mean(sides)) for limit in _FOCAL_UNKNOWN)
    return low, high


def _corrected(rays: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """(N, 2) rays of depth 1; `lens` is the factor of the focal length and two distortions."""
    square = (rays**2).sum(axis=1, keepdims=True)
    return np.asarray(rays / lens[0] * (1 + lens[1] * square + lens[2] * square**2))


def _residuals(rays: list[np.ndarray], rotation: np.ndarray) -> np.ndarray:
    """(N, 2) differences at depth 1 after the rotation from the first to the second photo."""
    turned = homogeneous(rays[0]) @ rotation.T
    return np.asarray(turned[:, :2] / np.maximum(turned[:, 2:], 0.1) - rays[1])


def _turn(
    rays: list[np.ndarray], focal: float, low: float, high: float
) -> tuple[np.ndarray, np.ndarray]:
    """The lens, as in `_corrected`, and the rotation that fit best."""
    starts = []
    for scale in np.geomspace(low, high, 7 if high > low else 1):
        lens = np.array([scale, 0.0, 0.0])
        corrected = [_corrected(r, lens) for r in rays]
        rotation = _rotation_between(corrected)
        error = np.linalg.norm(_residuals(corrected, rotation), axis=1)
        starts.append((float(np.median(error) * scale), lens, rotation))
    _, lens, start = min(starts, key=lambda item: item[0])
    free = high > low

    def unpack(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        more = pycolmap.Rotation3d(x[:3]).matrix()
        return (x[3:] if free else lens), np.asarray(more @ start)

    def error_of(x: np.ndarray) -> np.ndarray:
        lens, rotation = unpack(x)
        corrected = [_corrected(r, lens) for r in rays]
        return np.asarray(_residuals(corrected, rotation).ravel() * (focal * lens[0]))

    bounds = [(-np.pi, np.pi)] * 3
    x = np.zeros(3)
    if free:
        bounds += [(low, high), *[(-_MAX_DISTORTION, _MAX_DISTORTION)] * 2]
        x = np.append(x, [np.clip(lens[0], low * 1.001, high * 0.999), 0.0, 0.0])
    limits = np.transpose(bounds)
    # Along a valley of focal length and distortion it would go on for hundreds of steps.
    fit = least_squares(
        error_of, x, bounds=limits, loss="soft_l1", x_scale="jac", max_nfev=_MAX_STEPS
    )
    return unpack(fit.x)


def _rotation_between(rays: list[np.ndarray]) -> np.ndarray:
    """The rotation from the first to the second photo, by the half of the rays that fits best."""
    first, second = (homogeneous(r) for r in rays)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    use = np.arange(len(first))
    rotation = np.eye(3)
    for _ in range(4):
        rotation = nearest_rotation(second[use].T @ first[use])
        error = np.linalg.norm(first @ rotation.T - second, axis=1)
        use = np.argsort(error)[: max(5, len(error) // 2)]
    return rotation


def _epipolar_noise(rays: list[np.ndarray]) -> float:
    """Robust standard deviation from the epipolar lines that fit best, at depth 1."""
    x0, x1 = (homogeneous(r) for r in rays)
    T0, T1 = _centring(rays[0]), _centring(rays[1])
    rows = np.einsum("ni,nj->nij", x1 @ T1.T, x0 @ T0.T).reshape(-1, 9)
    use = np.ones(len(rows), bool)
    noise = 0.0
    for _ in range(5):
        u, s, vt = np.linalg.svd(np.linalg.eigh(rows[use].T @ rows[use])[1][:, 0].reshape(3, 3))
        F = T1.T @ (u @ np.diag([s[0], s[1], 0]) @ vt) @ T0
        distance = epipolar_errors(x0, x1, F)[1]
        noise = 1.4826 * float(np.median(distance))
        use = distance <= 3 * noise
    return noise


def _centring(rays: np.ndarray) -> np.ndarray:
    """(3, 3) that brings the mean to 0 and the spread to 1."""
    x, y = rays.mean(axis=0)
    spread = max(float(rays.std()), 1e-9)
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, spread]]) / spread

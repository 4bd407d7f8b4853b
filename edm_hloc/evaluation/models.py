"""Comparison of a COLMAP model with the truth: registered images, rotation and position errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from edm_hloc.base import geometry
from edm_hloc.base.colmap import ModelStatistics, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.geometry import largest_distance, nearest_rotation
from edm_hloc.evaluation.pose_pairs import rotation_angle
from edm_hloc.evaluation.uncertainties import ToldUncertainty, told_uncertainty
from edm_hloc.images.find import find_images
from edm_hloc.interop.poses.colmap import colmap_folder
from edm_hloc.interop.poses.files import read_poses_alone
from edm_hloc.interop.poses.given import PhotosAtHand

_MAX_HYPOTHESES = 200  # cameras from each of which a similarity is computed
_REFITS = 3
# Inliers have an error below three standard deviations, estimated from the median error, …
_INLIER_FACTOR = 3 * 1.4826
# … or below this: radians, or share of the centres' root mean square distance from their mean.
_ALWAYS_INLIER = 0.01


@dataclass(frozen=True)
class Similarity:
    """The similarity transform x ↦ scale · R x + translation."""

    scale: float
    R: np.ndarray
    translation: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) → (N, 3)."""
        return self.scale * points @ self.R.T + self.translation


@dataclass(frozen=True)
class ModelComparison:
    """Errors of a model's cameras after alignment to the truth by a similarity transform.

    Attributes:
        images: number of images with a true pose.
        registered: number of those that the model has registered.
        rotation_median, rotation_max: rotation errors in degrees.
        position_median, position_max: errors of the camera centres in % of `extent`.
        extent: largest distance between two true camera centres, in units of the truth.
        points: number of the model's 3D points.
        mean_track_length: of these points, in observations.
        mean_reprojection_error: mean over the points, in pixels.
        missing: names of the images with a true pose that the model has not registered.
        told: of a refined model, whether its uncertainties are right; None of others.
    """

    images: int
    registered: int
    rotation_median: float
    rotation_max: float
    position_median: float
    position_max: float
    extent: float
    points: int
    mean_track_length: float
    mean_reprojection_error: float
    missing: tuple[str, ...]
    told: ToldUncertainty | None = None

    def __str__(self) -> str:
        rows = [
            ("Registered", f"{self.registered} of {self.images} images"),
            ("Rotation", f"{self.rotation_median:.3f}° median, {self.rotation_max:.3f}° max"),
            (
                "Position",
                f"{self.position_median:.4f} % of the extent median, {self.position_max:.4f} % max "
                f"(extent {self.extent:.4g})",
            ),
            ("Points", f"{self.points:,}, mean track length {self.mean_track_length:.2f}"),
            ("Reprojection", f"{self.mean_reprojection_error:.3f} px mean"),
        ]
        if self.told is not None:
            rows.append(("Uncertain", str(self.told)))
        if self.missing:
            more = " …" if len(self.missing) > 5 else ""
            rows.append(("Missing", ", ".join(self.missing[:5]) + more))
        return "\n".join(f"{title:<14}{text}" for title, text in rows)


def compare(model: Path, truth: Path, images: Path | None = None) -> ModelComparison:
    """Aligns a COLMAP model to the truth and measures the errors of its cameras.

    Images correspond by their path or, where the folders differ, by their file name if it is
    unique.

    Args:
        model: folder of the model to be measured.
        truth: folder of a model with the true cameras, which needs no points; or with `images` a
            file of poses in any of the formats of `interop.poses`.
        images: folder of the photos, among which those of such a file are looked up.

    Raises:
        EdmHlocError: a model or file cannot be read, they have fewer than two images in common, or
            all true camera centres coincide.
    """
    reconstruction = read_model(model)
    found, true = _poses_of(reconstruction), _true_poses(truth, images)
    common = same_images(found, true)
    if len(common) < 2:
        example = f" The model has {next(iter(found), 'none')!r}, the truth "
        raise EdmHlocError(
            f"{model} and {truth} have {len(common)} image(s) in common; two are needed."
            f"{example}{next(iter(true), 'none')!r}."
        )
    extent = largest_distance(_arrays(list(true.values()))[1])
    rotations, centres = _arrays([found[a] for a, _ in common])
    true_rotations, true_centres = _arrays([true[b] for _, b in common])
    if np.ptp(true_centres, axis=0).max() <= 1e-9 * max(1.0, np.abs(true_centres).max()):
        raise EdmHlocError(f"All cameras of {truth} stand in one place: there is no scale.")
    similarity = align(rotations, centres, true_rotations, true_centres)
    rotation, position = _errors(similarity, rotations, centres, true_rotations, true_centres)
    position = 100 * position / extent
    own_extent = similarity.scale * geometry.extent(centres)  # of which uncertainties are told
    off = 100 * (similarity(centres) - true_centres) / (own_extent or 1.0)
    turned = _turned(similarity, rotations, true_rotations)
    turns = Rotation.from_matrix(turned).as_rotvec(degrees=True)
    along = np.einsum("nij,nj->ni", rotations @ similarity.R.T, off)
    statistics = ModelStatistics.of(reconstruction)
    present = {b for _, b in common}
    return ModelComparison(
        images=len(true),
        registered=len(common),
        rotation_median=float(np.median(rotation)),
        rotation_max=float(rotation.max()),
        position_median=float(np.median(position)),
        position_max=float(position.max()),
        extent=extent,
        points=statistics.points,
        mean_track_length=statistics.mean_track_length,
        mean_reprojection_error=statistics.mean_reprojection_error,
        missing=tuple(name for name in true if name not in present),
        told=told_uncertainty(model, {a: (along[n], turns[n]) for n, (a, _) in enumerate(common)}),
    )


def align(
    rotations: np.ndarray, centres: np.ndarray, true_rotations: np.ndarray, true_centres: np.ndarray
) -> Similarity:
    """Robust similarity transform from one set of cameras to another.

    It is estimated from both the centres and the rotations, so that cameras on a line, whose
    centres leave a rotation about it undetermined, and even two cameras suffice. The error of a
    camera combines its rotation error in radians and its position error over the root mean square
    distance of the true centres from their mean. The hypotheses are one similarity from each
    camera; the one with the smallest median error is refined by least squares on its inliers.

    Args:
        rotations, true_rotations: (N, 3, 3), cam_from_world.
        centres, true_centres: (N, 3) camera centres.
    """
    spread = float(np.sqrt(np.mean(np.sum((true_centres - true_centres.mean(0)) ** 2, axis=1))))

    def errors(similarity: Similarity) -> np.ndarray:
        rotation, position = _errors(similarity, rotations, centres, true_rotations, true_centres)
        return np.hypot(np.radians(rotation), position / spread)

    best, least = None, np.inf
    for i in range(0, len(centres), 1 + len(centres) // _MAX_HYPOTHESES):
        R = true_rotations[i].T @ rotations[i]
        lengths = np.linalg.norm(centres - centres[i], axis=1)
        true_lengths = np.linalg.norm(true_centres - true_centres[i], axis=1)
        apart = lengths > 0
        scale = float(np.median(true_lengths[apart] / lengths[apart])) if apart.any() else 0.0
        hypothesis = Similarity(scale, R, true_centres[i] - scale * R @ centres[i])
        median = float(np.median(errors(hypothesis)))
        if best is None or median < least:
            best, least = hypothesis, median
    assert best is not None
    for _ in range(_REFITS):
        error = errors(best)
        inlier = error <= max(_INLIER_FACTOR * float(np.median(error)), _ALWAYS_INLIER)
        best = _fit(
            rotations[inlier], centres[inlier], true_rotations[inlier], true_centres[inlier]
        )
    return best


def _fit(
    rotations: np.ndarray, centres: np.ndarray, true_rotations: np.ndarray, true_centres: np.ndarray
) -> Similarity:
    """Least-squares similarity of all cameras in closed form (orthogonal Procrustes problem)."""
    mean, true_mean = centres.mean(axis=0), true_centres.mean(axis=0)
    a, b = centres - mean, true_centres - true_mean
    spread, true_spread = (float(np.sqrt(np.mean(np.sum(x**2, axis=1)))) for x in (a, b))
    # The directions are the cameras' axes and the centres over their root mean square distance.
    M = np.einsum("nki,nkj->ij", true_rotations, rotations)
    if spread > 0 and true_spread > 0:
        M += np.einsum("ni,nj->ij", b / true_spread, a / spread)
    R = nearest_rotation(M)
    scale = (
        max(0.0, float(np.mean(np.sum(b * (a @ R.T), axis=1))) / spread**2) if spread > 0 else 0.0
    )
    return Similarity(scale, R, true_mean - scale * R @ mean)


def _errors(
    similarity: Similarity,
    rotations: np.ndarray,
    centres: np.ndarray,
    true_rotations: np.ndarray,
    true_centres: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation errors in degrees and position errors in units of the truth, (N,) each."""
    difference = _turned(similarity, rotations, true_rotations)
    distance = np.linalg.norm(similarity(centres) - true_centres, axis=1)
    return rotation_angle(difference), distance


def _turned(
    similarity: Similarity, rotations: np.ndarray, true_rotations: np.ndarray
) -> np.ndarray:
    """(N, 3, 3) by which cameras are turned from the true ones."""
    return np.asarray(np.einsum("nij,kj,nlk->nil", rotations, similarity.R, true_rotations))


def _poses_of(model: pycolmap.Reconstruction) -> dict[str, pycolmap.Rigid3d]:
    """cam_from_world of the registered images by name."""
    return {name: image.cam_from_world() for name, image in posed_images(model).items()}


def _true_poses(truth: Path, images: Path | None) -> dict[str, pycolmap.Rigid3d]:
    """cam_from_world by name, of a COLMAP model or of another file of poses."""
    if images is not None:
        return read_poses_alone(truth, PhotosAtHand(images, find_images(images)))
    if truth.is_file() and colmap_folder(truth) is None:
        raise EdmHlocError(
            f"{truth} is no folder of a COLMAP model: give --images with the folder of the photos, "
            "among which those of a file of poses are looked up."
        )
    return _poses_of(read_model(truth))


def _arrays(poses: Sequence[pycolmap.Rigid3d]) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (N, 3, 3) of cam_from_world, and camera centres (N, 3)."""
    rotations = np.array([pose.rotation.matrix() for pose in poses])
    return rotations, np.array([pose.inverse().translation for pose in poses])


def same_images(found: Collection[str], true: Collection[str]) -> list[tuple[str, str]]:
    """Names (found, true) of the same images: equal paths, otherwise equal, unique file names."""
    common = [(name, name) for name in found if name in true]
    left = [name for name in found if name not in true]
    free = [name for name in true if name not in found]
    by_file: dict[str, list[str]] = {}
    for name in free:
        by_file.setdefault(name.rpartition("/")[2], []).append(name)
    counts = Counter(name.rpartition("/")[2] for name in left)
    for name in left:
        file = name.rpartition("/")[2]
        if counts[file] == 1 and len(by_file.get(file, ())) == 1:
            common.append((name, by_file[file][0]))
    return common

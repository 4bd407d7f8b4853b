"""Compare a COLMAP model with the truth: registered images, rotation and position errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import ModelStatistics, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.pose_pairs import rotation_angle

_PROPOSALS = 200  # cameras that propose an alignment
_REFITS = 3
_FAR = 3 * 1.4826  # times the median error: three standard deviations
_NEAR = 0.01  # radians, or of the spread: cameras so near are never left out


@dataclass(frozen=True)
class Similarity:
    """x ↦ scale · R x + translation."""

    scale: float
    R: np.ndarray
    translation: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) → (N, 3)."""
        return self.scale * points @ self.R.T + self.translation


@dataclass(frozen=True)
class ModelComparison:
    """Errors of a model's cameras after alignment to the truth by a similarity.

    Attributes:
        images: images with a pose in the truth.
        registered: those that the model has too.
        rotation_median, rotation_max: degrees.
        position_median, position_max: distance of the camera centres, % of the scene's extent.
        extent: largest distance between two true camera centres, in the truth's units.
        points, mean_track_length, mean_reprojection_error: of the model, the last in px.
        missing: true images that the model does not have.
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
        if self.missing:
            more = " …" if len(self.missing) > 5 else ""
            rows.append(("Missing", ", ".join(self.missing[:5]) + more))
        return "\n".join(f"{title:<14}{text}" for title, text in rows)


def compare(model: Path, truth: Path) -> ModelComparison:
    """Align a COLMAP model to the truth and measure its cameras.

    Images are matched by name or, where folders differ, by their unambiguous file name. The
    truth needs no points.

    Raises:
        EdmHlocError: a model cannot be read, they share fewer than two images, or the true
            cameras all stand in one place.
    """
    reconstruction, reference = read_model(model), read_model(truth)
    found, true = posed_images(reconstruction), posed_images(reference)
    common = _same_images(found, true)
    if len(common) < 2:
        example = f" The model has {next(iter(found), 'none')!r}, the truth "
        raise EdmHlocError(
            f"{model} and {truth} have {len(common)} image(s) in common; two are needed."
            f"{example}{next(iter(true), 'none')!r}."
        )
    every_true_centre = np.array([image.projection_center() for image in true.values()])
    extent = float(_largest_distance(every_true_centre))
    rotations, centres = _poses([found[a] for a, _ in common])
    true_rotations, true_centres = _poses([true[b] for _, b in common])
    if np.ptp(true_centres, axis=0).max() <= 1e-9 * max(1.0, np.abs(true_centres).max()):
        raise EdmHlocError(f"All cameras of {truth} stand in one place: there is no scale.")
    similarity = align(rotations, centres, true_rotations, true_centres)
    rotation, position = _errors(similarity, rotations, centres, true_rotations, true_centres)
    position = 100 * position / extent
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
    )


def align(
    rotations: np.ndarray, centres: np.ndarray, true_rotations: np.ndarray, true_centres: np.ndarray
) -> Similarity:
    """The similarity that takes one set of cameras to another, by their centres and orientations.

    Both kinds of error count in comparable units (radians, and lengths over the spread of the true
    centres), so that cameras on a line, which leave a turn about it open, and even two cameras are
    enough. Cameras that are far off are left out: each camera alone proposes a similarity, the one
    with the smallest median error is taken, and then the best one for those near it.

    Args:
        rotations, true_rotations: (N, 3, 3), camera from world.
        centres, true_centres: (N, 3).
    """
    spread = float(np.sqrt(np.mean(np.sum((true_centres - true_centres.mean(0)) ** 2, axis=1))))

    def errors(similarity: Similarity) -> np.ndarray:
        rotation, position = _errors(similarity, rotations, centres, true_rotations, true_centres)
        return np.hypot(np.radians(rotation), position / spread)

    best, least = None, np.inf
    for i in range(0, len(centres), 1 + len(centres) // _PROPOSALS):
        R = true_rotations[i].T @ rotations[i]
        lengths = np.linalg.norm(centres - centres[i], axis=1)
        true_lengths = np.linalg.norm(true_centres - true_centres[i], axis=1)
        apart = lengths > 0
        scale = float(np.median(true_lengths[apart] / lengths[apart])) if apart.any() else 0.0
        proposal = Similarity(scale, R, true_centres[i] - scale * R @ centres[i])
        if best is None or np.median(errors(proposal)) < least:
            best, least = proposal, float(np.median(errors(proposal)))
    assert best is not None
    for _ in range(_REFITS):
        error = errors(best)
        near = error <= max(_FAR * float(np.median(error)), _NEAR)
        best = _fit(rotations[near], centres[near], true_rotations[near], true_centres[near])
    return best


def _fit(
    rotations: np.ndarray, centres: np.ndarray, true_rotations: np.ndarray, true_centres: np.ndarray
) -> Similarity:
    """Least squares in closed form, of all cameras alike."""
    mean, true_mean = centres.mean(axis=0), true_centres.mean(axis=0)
    a, b = centres - mean, true_centres - true_mean
    spread, true_spread = (float(np.sqrt(np.mean(np.sum(x**2, axis=1)))) for x in (a, b))
    # Procrustes on directions: the axes of the cameras, and centres divided by their spread
    M = np.einsum("nki,nkj->ij", true_rotations, rotations)
    if spread > 0 and true_spread > 0:
        M += np.einsum("ni,nj->ij", b / true_spread, a / spread)
    U, _, Vt = np.linalg.svd(M)
    R = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
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
    """Angles in degrees and distances in the truth's units, each (N,)."""
    difference = np.einsum("nij,kj,nlk->nil", rotations, similarity.R, true_rotations)
    distance = np.linalg.norm(similarity(centres) - true_centres, axis=1)
    return rotation_angle(difference), distance


def _poses(images: list[pycolmap.Image]) -> tuple[np.ndarray, np.ndarray]:
    rotations = np.array([image.cam_from_world().rotation.matrix() for image in images])
    return rotations, np.array([image.projection_center() for image in images])


def _same_images(
    found: dict[str, pycolmap.Image], true: dict[str, pycolmap.Image]
) -> list[tuple[str, str]]:
    """Pairs of names of the same image: equal ones, else equal and unambiguous file names."""
    common = [(name, name) for name in found if name in true]
    left = [name for name in found if name not in true]
    free = [name for name in true if name not in found]
    by_file: dict[str, list[str]] = {}
    for name in free:
        by_file.setdefault(name.rpartition("/")[2], []).append(name)
    files = [name.rpartition("/")[2] for name in left]
    for name, file in zip(left, files, strict=True):
        if files.count(file) == 1 and len(by_file.get(file, ())) == 1:
            common.append((name, by_file[file][0]))
    return common


def _largest_distance(points: np.ndarray) -> float:
    """Between any two of (N, 3) points, row by row to save memory."""
    return max(float(np.linalg.norm(points - point, axis=1).max()) for point in points)

"""Compare a COLMAP model with the truth: registered images, rotation and position errors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.colmap import ModelStatistics, posed_images, read_model
from edm_hloc.errors import EdmHlocError

_ROBUST_ITERATIONS = 20


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
        rotation_median=float(np.median(np.degrees(rotation))),
        rotation_max=float(np.degrees(rotation).max()),
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

    Closed form with both kinds of error in comparable units (radians, and lengths over the spread
    of the centres), so that cameras on a line, which leave a turn about it open, and even two
    cameras are enough. Repeated with weights that fall for cameras far off (Geman–McClure), so
    that a few wrong ones do not spoil the rest.

    Args:
        rotations, true_rotations: (N, 3, 3), camera from world.
        centres, true_centres: (N, 3).
    """
    weights = np.ones(len(centres))
    for _ in range(_ROBUST_ITERATIONS):
        w = weights / weights.sum()
        mean, true_mean = w @ centres, w @ true_centres
        a, b = centres - mean, true_centres - true_mean
        spread, true_spread = (np.sqrt(w @ (x**2).sum(axis=1)) for x in (a, b))
        if spread < 1e-12 or true_spread < 1e-12:
            break
        # Procrustes on directions: normalised centres, and the axes of the cameras.
        M = np.einsum("n,ni,nj->ij", w, b / true_spread, a / spread)
        M += np.einsum("n,nki,nkj->ij", w, true_rotations, rotations)
        U, _, Vt = np.linalg.svd(M)
        R = U @ np.diag([1.0, 1.0, np.linalg.det(U @ Vt)]) @ Vt
        scale = float(np.einsum("n,ni,ni", w, b, a @ R.T) / spread**2)
        similarity = Similarity(abs(scale), R, true_mean - abs(scale) * R @ mean)
        rotation, position = _errors(similarity, rotations, centres, true_rotations, true_centres)
        error = np.hypot(rotation, position / true_spread)
        weights = 1.0 / (1.0 + (error / max(3 * np.median(error), 1e-12)) ** 2) ** 2
    return similarity


def _errors(
    similarity: Similarity,
    rotations: np.ndarray,
    centres: np.ndarray,
    true_rotations: np.ndarray,
    true_centres: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Angles in radians and distances in the truth's units, each (N,)."""
    difference = np.einsum("nij,kj,nlk->nil", rotations, similarity.R, true_rotations)
    # The chord gives small angles exactly, where the trace has lost them to rounding.
    chord = np.linalg.norm(difference - np.eye(3), axis=(1, 2))
    rotation = 2 * np.arcsin(np.clip(chord / np.sqrt(8), 0, 1))
    return rotation, np.linalg.norm(similarity(centres) - true_centres, axis=1)


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

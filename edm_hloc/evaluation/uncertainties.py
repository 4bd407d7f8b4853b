"""Whether a model's cameras are as exact as their uncertainties tell: true errors over these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_hloc.tracks.uncertainty import median_uncertainty, read_uncertainties, uncertainty_file


@dataclass(frozen=True)
class ToldUncertainty:
    """The standard deviations beside a refined model, and the true errors by these.

    Attributes:
        position, rotation: medians over the cameras of the standard deviations in all directions
            together, in % of the extent and in degrees.
        position_ratio, rotation_ratio: root mean square of the true errors along or about the
            axes of the cameras, each over its standard deviation: 1 if these are right, more if
            they are too small.
        position_within, rotation_within: shares of these errors within one and within two standard
            deviations: 0.68 and 0.95 if these are right and the errors normal.
    """

    position: float
    rotation: float
    position_ratio: float
    rotation_ratio: float
    position_within: tuple[float, float]
    rotation_within: tuple[float, float]

    def __str__(self) -> str:
        shares = (
            f"{100 * position:.0f} and {100 * rotation:.0f} % within {k} σ"
            for k, position, rotation in zip(
                (1, 2), self.position_within, self.rotation_within, strict=True
            )
        )
        return (
            f"{self.position:.2g} % and {self.rotation:.2g}° (1 σ, medians); errors are "
            f"{self.position_ratio:.2g} and {self.rotation_ratio:.2g} times that (rms),\n"
            f"{'':14}{', '.join(shares)}"
        )


def told_uncertainty(
    model: Path, errors: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> ToldUncertainty | None:
    """The uncertainties in the file beside a model, by the true errors of its cameras.

    Args:
        model: folder of a refined model.
        errors: by image name, (3,) of the position along the camera's axes, in % of the extent of
            the model's cameras, and (3,) of the rotation about them, degrees.

    Returns:
        None where there is no such file, or it has none of these cameras.

    Raises:
        EdmHlocError: the file is damaged.
    """
    file = uncertainty_file(model)
    if not file.is_file():
        return None
    told = {name: own for name, own in read_uncertainties(file).items() if name in errors}
    sigmas = np.array([(own.position, own.rotation) for own in told.values()]).reshape(-1, 2, 3)
    medians = median_uncertainty(told)
    if medians is None or not (sigmas > 0).all():
        return None
    ratios = np.array([errors[name] for name in told]) / sigmas
    of_position, of_rotation = np.sqrt(np.mean(ratios**2, axis=(0, 2))).tolist()
    within = [(np.abs(ratios) < k).mean(axis=(0, 2)).tolist() for k in (1, 2)]
    of_positions, of_rotations = zip(*within, strict=True)
    return ToldUncertainty(*medians, of_position, of_rotation, of_positions, of_rotations)

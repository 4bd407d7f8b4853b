"""A camera pose as a file has it, and the photos among which the file's names are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import photo_size
from edm_hloc.pairs.names import NameFinder

_NOT_A_ROTATION = 1e-2  # deviation of R Rᵀ from the identity; programs round to fewer digits
OPENGL = np.diag([1.0, -1.0, -1.0])
"""Axes of OpenGL's camera (y up, looking along −z) to those of COLMAP's (y down, along z)."""


@dataclass(frozen=True)
class GivenPose:
    """The pose of a photo.

    Attributes:
        name: of the photo, as the photos at hand are named.
        cam_from_world: the pose, in the file's own world.
        camera: intrinsics for photos of its width and height; None where the file has none.
    """

    name: str
    cam_from_world: pycolmap.Rigid3d
    camera: pycolmap.Camera | None = None


class PhotosAtHand:
    """The photos of a folder, found by the names that a file of poses has for them.

    Args:
        root: folder of the photos.
        names: relative to it.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, names
        self._finder = NameFinder(names)
        self._absent: set[str] = set()

    def find(self, texts: Sequence[str]) -> list[str | None]:
        """The photos that a file calls so, by their paths, or file names where these are unique.

        Of several names that could be a photo's its path is it, or else those that end with this.
        """
        found = [self._finder.find_path(text) for text in texts]
        self._absent |= {text for text, name in zip(texts, found, strict=True) if name is None}
        fits = [
            (text == name) + f"/{text}".endswith(f"/{name}")
            for text, name in zip(texts, found, strict=True)
        ]
        best: dict[str | None, int] = {}
        for name, fit in zip(found, fits, strict=True):
            best[name] = max(fit, best.get(name, 0))
        for i, text in enumerate(texts):
            if fits[i] < best[found[i]]:
                self._finder.forget(text)
                found[i] = None
        return found

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) of a photo as stored, in pixels. Raises ImageError."""
        return photo_size(self.root / name)

    def report(self, path: Path) -> None:
        """Warns of names that were taken for another, that fit several photos, or none."""
        self._finder.report(path)
        if self._absent:
            warn_once(
                f"{path} names {len(self._absent):,} photos that are not in {self.root}, "
                f"such as {min(self._absent)!r}: they are left out."
            )


def pose_from_world(world_from_cam: np.ndarray, where: str) -> pycolmap.Rigid3d:
    """cam_from_world of a camera's axes and place.

    Args:
        world_from_cam: (3, 4) or (4, 4); the camera looks along z, with y down.
        where: file and photo, for the message.

    Raises:
        EdmHlocError: it is no rotation and place: mirrored, scaled, or not finite.
    """
    R, centre = world_from_cam[:3, :3], world_from_cam[:3, 3]
    if not np.isfinite(world_from_cam).all():
        raise EdmHlocError(f"{where}: the pose holds a number that is not finite.")
    if np.linalg.det(R) < 0:
        raise EdmHlocError(
            f"{where}: the pose is mirrored (its rotation has the determinant −1): export it anew "
            "in a right-handed frame."
        )
    if np.abs(R @ R.T - np.eye(3)).max() > _NOT_A_ROTATION:
        raise EdmHlocError(
            f"{where}: the pose is no rotation and place (its axes are not of length 1 and at "
            "right angles): export it anew without scaling."
        )
    U, _, Vt = np.linalg.svd(R)
    return pycolmap.Rigid3d(pycolmap.Rotation3d(U @ Vt), centre).inverse()

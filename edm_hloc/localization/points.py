"""The 3D points behind the keypoints of database images, from a COLMAP model or another source."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Protocol

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.fingerprint import file_stamp, fingerprint_of
from edm_hloc.base.frames import from_colmap
from edm_hloc.base.progress import track
from edm_hloc.images.sizes import fit_model
from edm_hloc.keypoints.h5 import FeatureWriter
from edm_hloc.localization.poses import to_numbers

_CACHED_IMAGES = 1024  # database images whose points stay in memory: 24 bytes a keypoint


class PointSource(Protocol):
    """Database images that know the 3D points behind their keypoints.

    `ModelPoints` and `scans.ScanPoints` are two; scripts may bring their own.
    """

    def names(self) -> list[str]:
        """Names of all database images, sorted."""

    def __contains__(self, name: str) -> bool: ...

    def points(self, name: str) -> np.ndarray:
        """World coordinates (N, 3) of an image's keypoints, in their order; NaN where unknown."""

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        """cam_from_world of an image, which a query without a pose is given; None if unknown."""

    def clusters(self, names: Sequence[str]) -> list[list[str]]:
        """Groups of covisible images (which share 3D points), the largest first."""

    def fingerprint(self) -> str:
        """A short name of all points and poses, which is another one once any of them changes."""


class ModelPoints:
    """The points of a COLMAP model.

    Args:
        folder: folder of the model, binary or text.
        prefix: put before the names of the model's images.
        image_root: folder of the model's photos, to whose sizes cameras and keypoints are scaled
            (see `images.sizes.fit_model`); None to take them as they are in the model.

    Attributes:
        scaled: (width, height) of the photos for which this was necessary, by name.

    Raises:
        EdmHlocError: the folder holds no model, or one without points; or a photo is another one
            than the model's.
    """

    def __init__(self, folder: Path, prefix: str = "", image_root: Path | None = None) -> None:
        self.folder, self.prefix, self.image_root = Path(folder), prefix, image_root
        stamps = {
            f"{part}.{end}": file_stamp(self.folder / f"{part}.{end}")
            for part in ("rigs", "cameras", "frames", "images", "points3D")
            for end in ("bin", "txt")
        }
        self._fingerprint = fingerprint_of(["model", prefix, stamps])
        self.model = read_model(self.folder)
        if not self.model.num_points3D():
            raise EdmHlocError(
                f"The model in {folder} has no 3D points, so nothing can be localized against it. "
                f"Make them first: edm-hloc triangulate {quote(str(folder))} IMAGES OUT"
            )
        self.scaled: dict[str, tuple[int, int]] = {}
        if image_root is not None:
            self.model, scaled = fit_model(self.model, image_root, f"the model {folder}")
            self.scaled = {prefix + name: size for name, size in scaled.items()}
        posed = posed_images(self.model)
        self.images = {prefix + name: image for name, image in posed.items()}
        self._cached_points = lru_cache(_CACHED_IMAGES)(self._points)

    def names(self) -> list[str]:
        return list(self.images)

    def __contains__(self, name: str) -> bool:
        return name in self.images

    def points(self, name: str) -> np.ndarray:
        return self._cached_points(name)

    def _points(self, name: str) -> np.ndarray:
        indices, ids = self._observations(name)
        points = np.full((self.images[name].num_points2D(), 3), np.nan)
        if ids:
            points[indices] = [self.model.points3D[i].xyz for i in ids]
        return points

    def keypoints(self, name: str) -> np.ndarray:
        """Keypoints (N, 2) that the model has of an image, pixels of the photo, hloc's frame."""
        found = self.images[name].points2D
        return from_colmap(np.array([point.xy for point in found]).reshape(-1, 2))

    def has_point(self, name: str) -> np.ndarray:
        """(N,) bool, which of the keypoints of an image observe a 3D point."""
        found = np.zeros(self.images[name].num_points2D(), bool)
        found[self._observations(name)[0]] = True
        return found

    def cameras(self, names: Iterable[str]) -> dict[str, pycolmap.Camera]:
        """Cameras of images, by the image's name."""
        return {name: self.model.cameras[self.images[name].camera_id] for name in names}

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        return self.images[name].cam_from_world() if name in self.images else None

    def clusters(self, names: Sequence[str]) -> list[list[str]]:
        left = {name: set(self._observations(name)[1]) for name in names if name in self.images}
        groups: list[list[str]] = []
        while left:
            first = next(iter(left))
            seen, group = left.pop(first), [first]
            while covisible := [name for name, ids in left.items() if not seen.isdisjoint(ids)]:
                for name in covisible:
                    seen |= left.pop(name)
                group += covisible
            groups.append(group)
        return sorted(groups, key=len, reverse=True)

    def fingerprint(self) -> str:
        return self._fingerprint

    def fingerprint_of_poses(self) -> str:
        """That of the poses alone, the same wherever the files of the model are copied to."""
        return fingerprint_of(
            {i.name: to_numbers(i.cam_from_world()) for i in self.images.values()}
        )

    def _observations(self, name: str) -> tuple[np.ndarray, list[int]]:
        """Indices of the keypoints that observe a 3D point, and the ids of these points."""
        image = self.images[name]
        indices = np.asarray(image.get_observation_point2D_idxs(), np.int64)
        return indices, [point.point3D_id for point in image.get_observation_points2D()]


def write_model_keypoints(points: ModelPoints, names: Iterable[str], path: Path) -> None:
    """Writes the keypoints that a model has of its images as an H5 file, in hloc's frame.

    The score of a keypoint is 1 where it has a 3D point and 0 elsewhere, so that no match of a
    query is assigned to it (see `keypoints.aggregation`). Their indices are those of the model.
    Images without any 3D point are left out.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    with FeatureWriter(path, {"model": str(points.folder)}) as features:
        for name in track(sorted(set(names)), "Model keypoints", "photo"):
            usable = points.has_point(name)
            if usable.any():
                features.add(name, points.keypoints(name), usable.astype(np.float32))

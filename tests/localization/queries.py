"""A query with known truth: its camera, its pose, and the points it sees."""

from __future__ import annotations

import numpy as np
import pycolmap

from edm_hloc.base.frames import from_colmap

CAMERA = pycolmap.Camera(
    model="SIMPLE_RADIAL", width=471, height=313, params=[400.0, 235.5, 156.5, -0.05]
)
TRUTH = pycolmap.Rigid3d(
    pycolmap.Rotation3d(np.array([0.1, -0.2, 0.05, 0.97]) / np.linalg.norm([0.1, 0.2, 0.05, 0.97])),
    np.array([0.3, -0.2, 1.5]),
)


class Points:
    """Database images whose k-th keypoint is the k-th point of a cloud."""

    def __init__(self, cloud: np.ndarray, names: tuple[str, ...] = ("db/a.jpg", "db/b.jpg")):
        self.cloud, self._names = cloud, list(names)

    def names(self) -> list[str]:
        return self._names

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def points(self, name: str) -> np.ndarray:
        return self.cloud

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        return pycolmap.Rigid3d() if name in self._names else None

    def clusters(self, names: list[str]) -> list[list[str]]:
        return [[name] for name in names]

    def fingerprint(self) -> str:
        return f"{self._names} {self.cloud.tobytes().hex()}"


def seen(cloud: np.ndarray) -> np.ndarray:
    """(N, 2) pixels of the cloud in the query, hloc's frame."""
    return from_colmap(CAMERA.img_from_cam(TRUTH * cloud))

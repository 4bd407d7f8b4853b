"""A rendered scene with known truth and a matcher that knows it, for end-to-end tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from filelock import FileLock

from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that many tests read and none changes, made once for all workers of pytest-xdist."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    made = folder.with_suffix(".made")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


class TruthMatcher(Matcher):
    """Matches an 8 px grid by the true depth and cameras, with Gaussian noise and outliers.

    Photos are known by their pixels, as a matcher sees nothing else of them.
    """

    info = MatcherInfo("truth", Preprocessing(resize_max=None))

    def __init__(
        self, scene: Path, noise: float = 0.3, outliers: float = 0.05, images: str = "images"
    ) -> None:
        self.noise, self.outliers = noise, outliers
        model = pycolmap.Reconstruction(scene / "truth")
        self.views = {}
        for image in model.images.values():
            K = model.cameras[image.camera_id].calibration_matrix()
            K[:2, 2] -= 0.5  # COLMAP's frame to hloc's
            depth = np.load((scene / "depth" / image.name).with_suffix(".npy"))
            key = self._key(load_image(scene / images / image.name, resize_max=None))
            self.views[key] = (K, image.cam_from_world().matrix(), depth)

    @staticmethod
    def _key(image: NetworkImage) -> str:
        return f"{image.original_size} {float(image.tensor.double().sum()):.3f}"

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": self.info.name, "noise": self.noise, "outliers": self.outliers}

    def encode(self, image: NetworkImage) -> Features:
        return Features(self._key(image), image.transform, 1)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        raise NotImplementedError("its matches are in pixels of the original photos")

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self.find(*pair) for pair in pairs]

    def find(self, features0: Features, features1: Features) -> Matches:
        (K0, pose0, depth0), (K1, pose1, depth1) = (
            self.views[f.data] for f in (features0, features1)
        )
        height, width = depth0.shape
        x, y = (a.ravel() for a in np.meshgrid(np.arange(0, width, 8), np.arange(0, height, 8)))
        points0 = np.stack([x, y], axis=1).astype(np.float64)
        z = depth0[y, x]
        rays = np.linalg.solve(K0, np.column_stack([points0, np.ones(len(x))]).T)
        world = pose0[:, :3].T @ (rays * z - pose0[:, 3:])
        seen = K1 @ (pose1[:, :3] @ world + pose1[:, 3:])
        with np.errstate(divide="ignore", invalid="ignore"):
            points1 = (seen[:2] / seen[2]).T
        nearest = np.rint(np.nan_to_num(points1, nan=-1, posinf=-1, neginf=-1)).clip(-1, 10**6)
        u, v = nearest.astype(int).T
        height, width = depth1.shape
        inside = (z > 0) & (seen[2] > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
        there = depth1[np.where(inside, v, 0), np.where(inside, u, 0)]
        keep = inside & (np.abs(there / np.where(inside, seen[2], 1) - 1) < 0.02)

        points0, points1 = points0[keep], points1[keep]
        rng = np.random.default_rng(len(points0))
        points1 = points1 + rng.normal(0, self.noise, points1.shape)
        wrong = rng.random(len(points1)) < self.outliers
        points1[wrong] = rng.uniform(0, [width - 1, height - 1], (wrong.sum(), 2))
        scores = rng.uniform(0.3, 1.0, len(points0)).astype(np.float32)
        return Matches(points0.astype(np.float32), points1.astype(np.float32), scores)

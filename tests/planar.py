"""A textured plane seen by two cameras: images, depth maps and warps in closed form."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import h5py
import numpy as np

NORMAL, OFFSET = np.array([0.2, -0.3, 0.9]), 4.0  # the plane normal·X = offset in camera 0
COLMAP_OFFSET = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # of K, from hloc's frame


class PlanarPair:
    """Two cameras that differ in focal length and roll, so that an error of half a pixel in the
    principal points of both does not cancel out.

    Args:
        size0, size1: (width, height); the principal points are the images' centres.
    """

    def __init__(self, size0: tuple[int, int], size1: tuple[int, int]) -> None:
        self.sizes = size0, size1
        focals = 0.9 * size0[0], 1.5 * size1[0]
        self.K = [
            np.array([[f, 0, (w - 1) / 2], [0, f, (h - 1) / 2], [0, 0, 1]])
            for f, (w, h) in zip(focals, self.sizes, strict=True)
        ]
        self.T_0to1 = np.eye(4)
        self.T_0to1[:3, :3] = cv2.Rodrigues(np.radians([3.0, -6.0, 40.0]))[0]
        self.T_0to1[:3, 3] = 0.4, -0.1, 0.2
        self._poses = np.eye(4), self.T_0to1

    def plane_points(self, i: int, pixels: np.ndarray) -> np.ndarray:
        """(N, 3) points of the plane, in camera 0, that image `i` sees at (N, 2) pixels."""
        R, t = self._poses[i][:3, :3], self._poses[i][:3, 3]
        rays = np.column_stack([pixels, np.ones(len(pixels))]) @ np.linalg.inv(self.K[i]).T @ R
        centre = -R.T @ t
        return centre + rays * ((OFFSET - NORMAL @ centre) / (rays @ NORMAL))[:, None]

    def project(self, i: int, points: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of image `i` where it sees (N, 3) points."""
        seen = (points @ self._poses[i][:3, :3].T + self._poses[i][:3, 3]) @ self.K[i].T
        return seen[:, :2] / seen[:, 2:]

    def warp(self, i: int, pixels: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of image `i` → the same points in the other image."""
        return self.project(1 - i, self.plane_points(i, pixels))

    def _pixels(self, i: int) -> np.ndarray:
        width, height = self.sizes[i]
        return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)

    def image(self, i: int) -> np.ndarray:
        """(H, W) uint8, a smooth texture at the pixels' centres."""
        x, y, _ = self.plane_points(i, self._pixels(i)).T
        rng = np.random.default_rng(0)
        value = np.zeros(len(x))
        for _ in range(12):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            wavelength = rng.uniform(0.35, 0.9)
            along = x * np.cos(angle) + y * np.sin(angle)
            value += np.cos(2 * np.pi * along / wavelength + phase)
        grey = np.clip(128 + 25 * value, 0, 255).round().astype(np.uint8)
        return grey.reshape(self.sizes[i][::-1])

    def depth(self, i: int) -> np.ndarray:
        """(H, W) float32 along the optical axis."""
        points = self.plane_points(i, self._pixels(i))
        z = points @ self._poses[i][2, :3] + self._poses[i][2, 3]
        return z.astype(np.float32).reshape(self.sizes[i][::-1])

    def write_as_megadepth(self, root: Path) -> Path:
        """Writes the images, depth maps and LoFTR's index file; gives the folder of the index.

        The index is a pickled dictionary named `*.npz`, its intrinsics are COLMAP's, and images
        that no pair needs are None, all as in LoFTR's files.
        """
        for i in range(2):
            (root / "imgs").mkdir(exist_ok=True)
            assert cv2.imwrite(str(root / f"imgs/{i}.png"), self.image(i))
            (root / "depths").mkdir(exist_ok=True)
            with h5py.File(root / f"depths/{i}.h5", "w") as file:
                file["depth"] = self.depth(i)
        world = np.eye(4)
        world[:3, :3], world[:3, 3] = cv2.Rodrigues(np.array([0.3, 0.5, 0.1]))[0], (3, 2, 1)
        K0, K1 = (K + COLMAP_OFFSET for K in self.K)
        content = {
            "image_paths": np.array(["imgs/0.png", None, "imgs/1.png"], object),
            "depth_paths": np.array(["depths/0.h5", None, "depths/1.h5"], object),
            "intrinsics": np.array([K0, None, K1], object),
            "poses": np.array([world, None, self.T_0to1 @ world], object),
            "pair_infos": [(np.array([0, 2]), np.float64(0.6), np.zeros(4))],
        }
        index = root / "index"
        index.mkdir()
        (index / "0015_0.1_0.3.npz").write_bytes(pickle.dumps(content))
        return index

"""Photos of random points by a camera that walks and turns, with exact truth."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.images.cameras import CameraOptions
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.mapping.database import ImportSummary, MatchedImages, build_database
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions

SIZE = (640, 480)


class Walk:
    """Photos of random points, with exact truth: poses, keypoints with noise, all pairs matched.

    Args:
        points: (P, 3) in the world.
        turns: degrees about y, x and z of each photo.
        centres: (N, 3).
        overlay: number of points of a strip at the bottom that stays at the same pixels.
        backdrop: number of points at the left and the right that stay at the same pixels.
    """

    def __init__(
        self,
        folder: Path,
        points: np.ndarray,
        turns: np.ndarray,
        centres: np.ndarray,
        *,
        focal: float = 640.0,
        distortion: float = 0.0,
        noise: float = 0.4,
        overlay: int = 0,
        backdrop: int = 0,
    ) -> None:
        self.folder, self.rng = folder, np.random.default_rng(len(points))
        self.camera = pycolmap.Camera(
            camera_id=1,
            model="SIMPLE_RADIAL",
            width=640,
            height=480,
            params=[focal, 320.0, 240.0, distortion],
        )
        self.names = [f"{i}.jpg" for i in range(len(turns))]
        model = pycolmap.Reconstruction()
        model.add_camera_with_trivial_rig(self.camera)
        (folder / "images").mkdir(parents=True)
        seen: list[np.ndarray] = []
        strip = self.rng.uniform([0, 400], SIZE, (overlay, 2))
        sides = self.rng.uniform([0, 0], [400, 480], (backdrop, 2))
        sides[:, 0] += np.where(sides[:, 0] > 200, 240, 0)
        still = np.concatenate([strip, sides])
        with FeatureWriter(folder / "features.h5", {}) as features:
            for i, name in enumerate(self.names, start=1):
                Image.new("RGB", SIZE, (200, 100, 50)).save(folder / "images" / name)
                R = Rotation.from_euler("yxz", turns[i - 1], degrees=True).as_matrix()
                pose = pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ centres[i - 1])
                image = pycolmap.Image(name=name, camera_id=1, image_id=i)
                model.add_image_with_trivial_frame(image, pose)
                there = points @ R.T - R @ centres[i - 1]
                pixels = np.asarray(self.camera.img_from_cam(there))
                pixels = pixels + self.rng.normal(0, noise, pixels.shape)
                inside = (there[:, 2] > 0.5) & np.all((pixels > 0) & (pixels < SIZE), axis=1)
                inside &= np.hypot(*(there[:, :2] / there[:, 2:]).T) < 1
                inside &= (pixels[:, 1] < 400) | (overlay == 0)
                ids = np.flatnonzero(inside)[:1000]
                seen.append(np.append(ids, len(points) + np.arange(len(still))))
                fixed = np.clip(still + self.rng.normal(0, 0.1, still.shape), 0, SIZE)
                keypoints = np.concatenate([pixels[ids], fixed]) - 0.5
                features.add(name, keypoints, np.ones(len(keypoints)))
        (folder / "truth").mkdir()
        model.write_text(folder / "truth")
        pairs = list(itertools.combinations(self.names, 2))
        with MatchWriter(folder / "matches.h5", {}) as writer:
            for a, b in pairs:
                ids0, ids1 = (seen[self.names.index(n)] for n in (a, b))
                place = {point: k for k, point in enumerate(ids1)}
                matches = np.array([place.get(point, -1) for point in ids0])
                writer.add(a, b, matches, (matches >= 0).astype(np.float32))
        self.matched = MatchedImages(
            folder / "images", folder / "features.h5", folder / "matches.h5", pairs
        )

    def map(self, options: MappingOptions, *, known: bool = False) -> tuple[ImportSummary, Path]:
        """Verifies and maps; gives the summary of the import, and the model."""
        names = self.names if known else []
        cameras = CameraOptions(known=dict.fromkeys(names, self.camera), mode="single")
        imported, _ = build_database(self.folder / "d.db", self.matched, cameras, options)
        out = self.folder / "model"
        database = self.folder / "d.db"
        self.mapped = map_database(database, self.folder / "images", out, options, names)
        return imported, out

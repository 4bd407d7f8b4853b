"""Draws pairs with little overlap from a film with depth, in the files of 7-Scenes.

    python benchmarks/room_pairs.py FRAMES PAIRS [--pairs 16] [--seed 5]

FRAMES holds frame-N.color.jpg (or .png), frame-N.depth.png (mm) and frame-N.pose.txt
(world_from_cam, metres), as each sequence of 7-Scenes and the demonstration of
andyzeng/tsdf-fusion-python do. PAIRS gets --pairs pairs of each of three ranges of overlap (10 to
25, 25 to 45 and 45 to 80 % of the first frame's points are seen in the second one), with cameras
at least 40 cm and at most 60° apart, for

    edm-hloc evaluate pose PAIRS FRAMES OUT

The poses are a depth camera's, exact to a few centimetres and of a camera a few centimetres beside
the one that took the photos: thresholds of 10 and 20° mean more than that of 5°.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.evaluation.pose_pairs import rotation_angle
from edm_hloc.pairs.with_truth import PairWithPose, write_pairs_with_gt

K_DEPTH = np.array([[585, 0, 320], [0, 585, 240], [0, 0, 1.0]])  # as published with 7-Scenes
K_COLOUR = np.array([[525, 0, 320], [0, 525, 240], [0, 0, 1.0]])  # usual, not calibrated
RANGES = ((0.1, 0.25), (0.25, 0.45), (0.45, 0.8))  # of the overlap
NEAREST, FARTHEST = 0.3, 6.0  # metres where depth counts
STEP = 16  # pixels between the points whose visibility is asked
TOLERANCE = 0.08  # of the depth
MIN_FRAMES_APART, MIN_BASELINE, MAX_ROTATION = 20, 0.4, 60.0
TRIALS = 100_000


class Film:
    """The frames of a film that have a photo, depth and a pose.

    Attributes:
        left_out: the number of frames that lack one of the three.

    Raises:
        EdmHlocError: fewer than two frames are complete, or a pose cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = sorted(path.name[:-9] for path in folder.glob("frame-*.pose.txt"))
        photos = {stem: self._photo(stem) for stem in found if self._depth_file(stem).exists()}
        self._photos = {stem: photo for stem, photo in photos.items() if photo is not None}
        self._stems = list(self._photos)
        self.left_out = len(found) - len(self._stems)
        if len(self._stems) < 2:
            raise EdmHlocError(
                f"{folder} holds no two frames with frame-000000.color.jpg (or .png), "
                "frame-000000.depth.png and frame-000000.pose.txt."
            )
        self.poses = [self._pose(folder / f"{stem}.pose.txt") for stem in self._stems]

    def name(self, k: int) -> str:
        """File name of the photo of frame k."""
        return self._photos[self._stems[k]]

    def depth(self, k: int) -> np.ndarray:
        """(H, W) metres.

        Raises:
            ImageError: the file cannot be read.
        """
        path = self._depth_file(self._stems[k])
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if depth is None or depth.ndim != 2:
            raise ImageError(f"{path} is no depth map. Copy it anew, or delete it.")
        return depth / 1000.0

    def overlap(self, a: int, b: int, T_ab: np.ndarray) -> float:
        """The share of frame a's points that frame b sees; T_ab leads from camera a to camera b."""
        depth = self.depth(a)
        v, u = np.mgrid[STEP // 2 : depth.shape[0] : STEP, STEP // 2 : depth.shape[1] : STEP]
        z = depth[v, u]
        there = (z > NEAREST) & (z < FARTHEST)
        rays = np.linalg.inv(K_DEPTH) @ np.stack([u[there], v[there], np.ones(there.sum())])
        x, y, z = K_DEPTH @ (T_ab[:3, :3] @ (rays * z[there]) + T_ab[:3, 3:])
        depth = self.depth(b)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = x / z, y / z
        inside = (z > 0.2) & (u > 0) & (v > 0) & (u < depth.shape[1] - 1) & (v < depth.shape[0] - 1)
        seen = depth[v[inside].astype(int), u[inside].astype(int)]
        return float((np.abs(seen - z[inside]) < TOLERANCE * z[inside]).sum() / max(1, len(z)))

    def _depth_file(self, stem: str) -> Path:
        return self.folder / f"{stem}.depth.png"

    def _photo(self, stem: str) -> str | None:
        names = (f"{stem}.color.jpg", f"{stem}.color.png")
        return next((name for name in names if (self.folder / name).exists()), None)

    @staticmethod
    def _pose(path: Path) -> np.ndarray:
        try:
            pose = np.loadtxt(path)
        except ValueError:
            pose = np.zeros(0)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise EdmHlocError(f"{path} is no matrix of 4 × 4 numbers. Copy it anew, or delete it.")
        return pose


def draw_pairs(film: Film, number: int, seed: int) -> list[PairWithPose]:
    """At most `number` pairs of each range of overlap, those with little overlap first."""
    rng = np.random.default_rng(seed)
    found: list[list[PairWithPose]] = [[] for _ in RANGES]
    for _ in range(TRIALS):
        if min(map(len, found)) >= number:
            break
        a, b = rng.integers(0, len(film.poses), 2)
        if abs(a - b) < MIN_FRAMES_APART:
            continue
        T_ab = np.linalg.inv(film.poses[b]) @ film.poses[a]
        if np.linalg.norm(T_ab[:3, 3]) < MIN_BASELINE:
            continue
        if rotation_angle(T_ab[:3, :3]) > MAX_ROTATION:
            continue
        overlap = film.overlap(a, b, T_ab)
        for pairs, (least, most) in zip(found, RANGES, strict=True):
            if least < overlap <= most and len(pairs) < number:
                names = film.name(a), film.name(b)
                pairs.append(PairWithPose(*names, 0, 0, K_COLOUR, K_COLOUR, T_ab))
    return [pair for pairs in found for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description="Pairs with little overlap from a film with depth")
    parser.add_argument("frames", type=Path)
    parser.add_argument("pairs_file", type=Path, metavar="PAIRS")
    parser.add_argument("--pairs", type=int, default=16, help="of each range of overlap")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    try:
        film = Film(args.frames)
        if film.left_out:
            print(f"{film.left_out} frames without a photo or depth are left out", file=sys.stderr)
        pairs = draw_pairs(film, args.pairs, args.seed)
        write_pairs_with_gt(args.pairs_file, pairs)
    except EdmHlocError as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"{len(pairs)} pairs of {len(RANGES)} ranges of overlap in {args.pairs_file}")


if __name__ == "__main__":
    main()

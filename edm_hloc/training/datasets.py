"""Real training pairs: MegaDepth and ScanNet as LoFTR indexes them, and any COLMAP model.

Formats (poses are cam_from_world unless said otherwise; intrinsics have the top-left pixel's
centre at (0, 0)):

MegaDepth: the index is a folder of `*.npz` files, one a scene, with `image_paths` and
    `depth_paths` (relative to the root), `intrinsics` (N, 3, 3), `poses` (N, 4, 4) and
    `pair_infos`, a list of ((i, j), overlap, …). Depth maps are H5 files with the entry `depth`.
ScanNet: the index is a folder of `*.npz` files with `name` (P, 4), rows scene, scan, frame,
    frame, and `score` (P,), the overlap; beside them `intrinsics.npz`, one 3×3 array a scene.
    The root has `sceneSSSS_NN/{color/F.jpg, depth/F.png, pose/F.txt}`; depth in millimetres,
    intrinsics for the size of the depth map, poses world_from_cam.
COLMAP: the index is a model, the root its folder of photos. Truth are the model's points:
    around those that two images share the warp is taken to be affine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.threads import single_core_pool
from edm_hloc.pairs.with_truth import read_index, read_scannet_pose
from edm_hloc.synthetic.textures import read_grey
from edm_hloc.training.config import RealData
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import (
    Supervision,
    grid_points,
    mutual_partners,
    nearest_cells,
    supervise,
)

logger = logging.getLogger(__name__)

Array = np.ndarray
MAX_UNREADABLE = 50  # pairs in a row
SPARSE_REACH = 12.0  # px from a grid point to the nearest shared point
SPARSE_NEIGHBOURS = 8
SPARSE_RESIDUAL = 0.5  # px, rms of the affine fit
MIN_SHARED_POINTS = 40


class View(NamedTuple):
    """An image with what is known of it, at one size.

    Attributes:
        image: (H, W) uint8.
        depth: (H, W) float32, 0 where unknown; None with sparse truth.
        K: (3, 3).
        points: (P, 2) pixels of the points shared with the other view; None with depth.
    """

    image: Array
    depth: Array | None
    K: Array
    points: Array | None


def fit(view: View, height: int, width: int, centre: Array) -> View:
    """Scale a view so that it covers (height, width), and cut that out around `centre` (x, y)."""
    h, w = view.image.shape
    scale = max(height / h, width / w)
    size = (max(width, round(w * scale)), max(height, round(h * scale)))  # width first
    sx, sy = size[0] / w, size[1] / h
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(view.image, size, interpolation=method)
    x, y = (centre + 0.5) * (sx, sy) - 0.5
    left = int(np.clip(round(x - width / 2), 0, size[0] - width))
    top = int(np.clip(round(y - height / 2), 0, size[1] - height))
    window = slice(top, top + height), slice(left, left + width)
    depth = view.depth
    if depth is not None:
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)[window]
    # x maps to (x + 0.5)·s − 0.5 − left.
    A = np.array([[sx, 0, sx / 2 - 0.5 - left], [0, sy, sy / 2 - 0.5 - top], [0, 0, 1.0]])
    points = view.points
    if points is not None:
        points = points @ A[:2, :2].T + A[:2, 2]
    return View(image[window], depth, A @ view.K, points)


def covisible_centre(view0: View, view1: View, T_0to1: Array) -> tuple[Array, Array]:
    """Middle of what both views see, in pixels (x, y) of each; the image's middle if nothing."""
    if view0.points is not None and view1.points is not None:
        return np.median(view0.points, axis=0), np.median(view1.points, axis=0)
    truth = _dense_truth(view0, view1, T_0to1)
    centres = []
    for grid, visible, view in (
        (truth.grid0, truth.visible0, view0),
        (truth.grid1, truth.visible1, view1),
    ):
        seen = grid_points(grid)[visible[0]]
        h, w = view.image.shape
        centres.append(seen.median(dim=0).values.numpy() if len(seen) else np.array([w, h]) / 2)
    return centres[0], centres[1]


def _dense_truth(view0: View, view1: View, T_0to1: Array, tolerance: float = 0.05) -> Supervision:
    def tensor(array: Array | None) -> Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.float32))[None]

    return supervise(
        tensor(view0.depth),
        tensor(view1.depth),
        tensor(view0.K),
        tensor(view1.K),
        tensor(T_0to1),
        tolerance,
    )


def sparse_truth(
    points0: Tensor, points1: Tensor, size0: tuple[int, int], size1: tuple[int, int]
) -> Supervision:
    """Ground truth of one pair from points that both images see.

    Around each grid point an affine map is fitted to its nearest shared points; a grid point
    has truth if one of them is near and the fit agrees with all of them.

    Args:
        points0, points1: (P, 2) pixels of the same points.
        size0, size1: (height, width) of the images.
    """
    grids = tuple((h // 8, w // 8) for h, w in (size0, size1))
    warped0, visible0 = _warp_affinely(grid_points(grids[0]), points0, points1, size1)
    warped1, visible1 = _warp_affinely(grid_points(grids[1]), points1, points0, size0)
    warped0, visible0, warped1, visible1 = (t[None] for t in (warped0, visible0, warped1, visible1))
    partner = mutual_partners(
        nearest_cells(warped0, visible0, grids[1]), nearest_cells(warped1, visible1, grids[0])
    )
    return Supervision(warped0, visible0, warped1, visible1, partner, grids[0], grids[1])


def _warp_affinely(
    grid: Tensor, source: Tensor, target: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    if len(source) < SPARSE_NEIGHBOURS:
        return torch.zeros_like(grid), torch.zeros(len(grid), dtype=torch.bool)
    distance, near = torch.cdist(grid, source).topk(SPARSE_NEIGHBOURS, largest=False)
    x = source[near] - grid[:, None]  # (N, k, 2)
    design = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1).double()
    y = target[near].double()
    # Damped, since the neighbours may lie on a line; the residual then tells.
    normal = design.mT @ design + 1e-3 * torch.eye(3, dtype=torch.float64)
    map_ = torch.linalg.solve(normal, design.mT @ y)
    residual = (design @ map_ - y).square().sum(dim=-1).mean(dim=-1).sqrt()
    warped = map_[:, 2].float()
    height, width = size
    inside = ((warped > -0.5) & (warped < torch.tensor([width, height]) - 0.5)).all(dim=-1)
    surrounded = distance[:, -1] < 5 * SPARSE_REACH
    near_enough = distance[:, 0] < SPARSE_REACH
    return warped, inside & near_enough & surrounded & (residual < SPARSE_RESIDUAL)


# --- Scenes ---------------------------------------------------------------------------------


class PairList(NamedTuple):
    """Pairs of one scene and how to read one: number → two views and T_0to1 (4, 4)."""

    length: int
    read: Callable[[int], tuple[View, View, Array]]


def megadepth_scenes(root: Path, index: Path, min_overlap: float) -> list[PairList]:
    """One list of pairs a scene of MegaDepth-like data (see the module's docstring)."""

    def scene(path: Path) -> PairList:
        content = read_index(
            path, "image_paths", "depth_paths", "intrinsics", "poses", "pair_infos"
        )
        pairs = [i[0] for i in content["pair_infos"] if i[1] >= min_overlap]

        def view(i: int) -> View:
            image = read_grey(root / str(content["image_paths"][i]))
            depth_path = root / str(content["depth_paths"][i])
            try:
                with h5py.File(depth_path) as file:
                    depth = np.asarray(file["depth"], dtype=np.float32)
            except (OSError, KeyError) as error:
                raise ImageError(f"cannot read the depth map {depth_path}: {error}") from error
            if depth.shape != image.shape:
                raise ImageError(f"{depth_path} is {depth.shape}, its image {image.shape}")
            return View(image, depth, np.asarray(content["intrinsics"][i], float), None)

        def read(number: int) -> tuple[View, View, Array]:
            i, j = pairs[number]
            poses = content["poses"]
            T = np.asarray(poses[j], float) @ np.linalg.inv(np.asarray(poses[i], float))
            return view(i), view(j), T

        return PairList(len(pairs), read)

    return [scene(p) for p in sorted(index.glob("*.npz"))]


def scannet_scenes(root: Path, index: Path, min_overlap: float) -> list[PairList]:
    """One list of pairs an index file of ScanNet-like data (see the module's docstring)."""
    intrinsics_path = index / "intrinsics.npz"
    intrinsics = read_index(intrinsics_path)

    def scene(path: Path) -> PairList:
        content = read_index(path, "name", "score")
        pairs = content["name"][content["score"] >= min_overlap]

        def view(folder: str, frame: int) -> View:
            depth_path = root / folder / "depth" / f"{frame}.png"
            try:
                depth = cv2.imdecode(np.fromfile(depth_path, np.uint8), cv2.IMREAD_UNCHANGED)
            except (OSError, cv2.error) as error:
                raise ImageError(f"cannot read the depth map {depth_path}: {error}") from error
            if depth is None:
                raise ImageError(f"cannot read the depth map {depth_path}: not an image")
            image = read_grey(root / folder / "color" / f"{frame}.jpg")
            image = cv2.resize(image, depth.shape[::-1], interpolation=cv2.INTER_AREA)
            if folder not in intrinsics:
                raise EdmHlocError(f"The index file {intrinsics_path} lacks {folder}.")
            K = np.asarray(intrinsics[folder], float).reshape(3, 3)
            return View(image, depth.astype(np.float32) / 1000, K, None)

        def read(number: int) -> tuple[View, View, Array]:
            number0, number1, frame0, frame1 = (int(v) for v in pairs[number])
            folder = f"scene{number0:04d}_{number1:02d}"
            pose0, pose1 = (read_scannet_pose(root / folder, frame) for frame in (frame0, frame1))
            T = pose1 @ np.linalg.inv(pose0)
            return view(folder, frame0), view(folder, frame1), T

        return PairList(len(pairs), read)

    paths = [p for p in sorted(index.glob("*.npz")) if p != intrinsics_path]
    return [scene(p) for p in paths]


@dataclass(frozen=True)
class _SparseImage:
    name: str
    points: Array  # numbers of those it sees
    pixels: Array  # of the points, as the model projects them
    size: tuple[int, int]  # width, height
    K: Array
    cam_from_world: Array


def colmap_scenes(model: Path, images: Path) -> list[PairList]:
    """The pairs of a COLMAP model that share enough points."""
    try:
        from scipy.sparse import triu

        from edm_hloc.base.colmap import posed_images, read_model
        from edm_hloc.pairs.covisibility import visibility
    except ImportError as error:
        raise EdmHlocError("training on a COLMAP model needs pycolmap and scipy") from error

    reconstruction = read_model(model)
    xyz = np.array([p.xyz for p in reconstruction.points3D.values()]).reshape(-1, 3)
    names, sees = visibility(reconstruction)
    posed = posed_images(reconstruction)
    views = []
    for i, name in enumerate(names):
        image, seen = posed[name], slice(*sees.indptr[i : i + 2])
        points = sees.indices[seen]
        pose = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        camera = reconstruction.cameras[image.camera_id]
        # From COLMAP's pixel frame to that of the network.
        pixels = camera.img_from_cam(xyz[points] @ pose[:3, :3].T + pose[:3, 3]) - 0.5
        K = camera.calibration_matrix() - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        keep = np.isfinite(pixels).all(axis=1)
        sees.data[seen] = keep
        size = (camera.width, camera.height)
        views.append(_SparseImage(name, points[keep], pixels[keep], size, K, pose))
    enough = triu(sees @ sees.T >= MIN_SHARED_POINTS, k=1)
    pairs = [(views[i], views[j]) for i, j in sorted(zip(*enough.nonzero(), strict=True))]
    if not pairs:
        raise EdmHlocError(
            f"no two images of the model {model} share {MIN_SHARED_POINTS} points; "
            "training needs a reconstruction with overlapping photos"
        )

    def view(image: _SparseImage, points: Array) -> View:
        pixels = read_grey(images / image.name)
        if pixels.shape[::-1] != image.size:
            raise ImageError(
                f"{images / image.name} is {pixels.shape[::-1]} px, in the model {image.size}"
            )
        return View(pixels, None, image.K, points)

    def read(number: int) -> tuple[View, View, Array]:
        a, b = pairs[number]
        _, in_a, in_b = np.intersect1d(a.points, b.points, assume_unique=True, return_indices=True)
        T = b.cam_from_world @ np.linalg.inv(a.cam_from_world)
        return view(a, a.pixels[in_a]), view(b, b.pixels[in_b]), T

    return [PairList(len(pairs), read)]


# --- Batches --------------------------------------------------------------------------------


class RealSource:
    """Batches of real pairs (see `sources.BatchSource`); scenes have equal chances.

    A pair that cannot be read is reported and replaced by another.

    Raises:
        EdmHlocError: if the data is missing, malformed, or has no pairs.
    """

    def __init__(self, data: RealData, tolerance: float, workers: int = 8) -> None:
        root, index = Path(data.root), Path(data.index)
        for path in (root, index):
            if not path.is_dir():
                raise EdmHlocError(f"training data: there is no folder {path}")
        if data.format == "megadepth":
            scenes = megadepth_scenes(root, index, data.min_overlap)
        elif data.format == "scannet":
            scenes = scannet_scenes(root, index, data.min_overlap)
        elif data.format == "colmap":
            scenes = colmap_scenes(index, root)
        else:
            raise EdmHlocError(f"unknown format of training data: {data.format!r}")
        self.scenes = [s for s in scenes if s.length]
        if not self.scenes:
            raise EdmHlocError(f"no training pairs with enough overlap in {index}")
        self.tolerance = tolerance
        self.workers = workers

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        with single_core_pool(min(self.workers, pairs), "read-pair") as pool:
            drawn = list(
                pool.map(
                    lambda i: self._pair(height, width, np.random.default_rng((seed, i))),
                    range(pairs),
                )
            )
        images0, images1, truths = zip(*drawn, strict=True)
        return PairBatch(_stack(images0), _stack(images1), _join(truths))

    def _pair(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[Array, Array, Supervision]:
        for _ in range(MAX_UNREADABLE):
            scene = self.scenes[rng.integers(len(self.scenes))]
            try:
                view0, view1, T = scene.read(int(rng.integers(scene.length)))
            except ImageError as error:
                logger.warning("pair left out: %s", error)
                continue
            if rng.random() < 0.5:
                view0, view1, T = view1, view0, np.linalg.inv(T)
            centre0, centre1 = covisible_centre(view0, view1, T)
            view0, view1 = fit(view0, height, width, centre0), fit(view1, height, width, centre1)
            if view0.points is not None and view1.points is not None:
                points0, points1 = _both_inside(view0.points, view1.points, height, width)
                truth = sparse_truth(points0, points1, (height, width), (height, width))
            else:
                truth = _dense_truth(view0, view1, T, self.tolerance)
            return view0.image, view1.image, truth
        raise EdmHlocError(
            f"{MAX_UNREADABLE} training pairs in a row cannot be read; see the warnings above"
        )


def _both_inside(points0: Array, points1: Array, height: int, width: int) -> tuple[Tensor, Tensor]:
    both = np.stack([points0, points1])
    inside = ((both > -0.5) & (both < np.array([width, height]) - 0.5)).all(axis=(0, 2))
    kept = torch.from_numpy(both[:, inside]).float()
    return kept[0], kept[1]


def _stack(images: Sequence[Array]) -> Tensor:
    return torch.from_numpy(np.stack(images))[:, None].float() / 255


def _join(truths: Sequence[Supervision]) -> Supervision:
    return Supervision(
        torch.cat([t.warped0 for t in truths]),
        torch.cat([t.visible0 for t in truths]),
        torch.cat([t.warped1 for t in truths]),
        torch.cat([t.visible1 for t in truths]),
        torch.cat([t.partner for t in truths]),
        truths[0].grid0,
        truths[0].grid1,
    )

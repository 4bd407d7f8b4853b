"""Batches of real training pairs: photos scaled and cropped to one size, with ground truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.frames import Origin, inside, resizing_matrix
from edm_hloc.base.geometry import homogeneous
from edm_hloc.base.threads import single_core_pool
from edm_hloc.training.config import RealData
from edm_hloc.training.scene_types import SupervisedImage
from edm_hloc.training.scenes import read_scenes
from edm_hloc.training.sparse_supervision import sparse_supervision
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import (
    DepthMap,
    Supervision,
    depth_at,
    grid_points,
    supervise,
)

logger = logging.getLogger(__name__)

Array = np.ndarray
MAX_UNREADABLE = 50  # pairs in a row
SAME_SURFACE = 0.05  # relative difference of the depths of adjacent pixels, at most
_WORKERS = 8  # threads that read pairs, at most


class RealSource:
    """Batches of real pairs (a `sources.BatchSource`); all scenes are drawn equally often.

    A pair that cannot be read is reported and replaced by another.

    Args:
        data: the data set.
        tolerance: see `supervise`.
        origin: where (0, 0) of the network's pixel frame lies.

    Raises:
        EdmHlocError: the data is missing or malformed, or has no pair.
    """

    def __init__(self, data: RealData, tolerance: float, origin: Origin = "centre") -> None:
        self.scenes = read_scenes(data)
        self.tolerance, self.origin = tolerance, origin

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        """See `sources.BatchSource`.

        Raises:
            EdmHlocError: `MAX_UNREADABLE` pairs in a row cannot be read.
        """
        with single_core_pool(min(_WORKERS, pairs), "read-pair") as pool:
            drawn = list(
                pool.map(
                    lambda i: self._pair(height, width, np.random.default_rng((seed, i))),
                    range(pairs),
                )
            )
        images0, images1, truths = zip(*drawn, strict=True)
        return PairBatch(_stack(images0), _stack(images1), _concatenate(truths))

    def _pair(
        self, height: int, width: int, rng: np.random.Generator
    ) -> tuple[Array, Array, Supervision]:
        for _ in range(MAX_UNREADABLE):
            scene = self.scenes[rng.integers(len(self.scenes))]
            try:
                image0, image1, T = scene.read(int(rng.integers(scene.length)))
            except ImageError as error:
                logger.warning("pair left out: %s", error)
                continue
            if rng.random() < 0.5:
                image0, image1, T = image1, image0, np.linalg.inv(T)
            centre0, centre1 = covisible_centres(image0, image1, T)
            image0 = crop_to_size(image0, height, width, centre0)
            image1 = crop_to_size(image1, height, width, centre1)
            truth = ground_truth(image0, image1, T, self.tolerance, self.origin)
            return image0.image, image1.image, truth
        raise EdmHlocError(
            f"{MAX_UNREADABLE} training pairs in a row cannot be read; see the warnings above"
        )


def crop_to_size(image: SupervisedImage, height: int, width: int, centre: Array) -> SupervisedImage:
    """Scales an image until it covers (height, width), and crops that size around `centre`.

    Args:
        image: of any size.
        height, width: of the result in pixels.
        centre: (x, y) in pixels of `image`; the crop is moved as far as it takes to lie inside.
    """
    h, w = image.image.shape
    scale = max(height / h, width / w)
    size = (max(width, round(w * scale)), max(height, round(h * scale)))  # width first
    A = resizing_matrix((w, h), size)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(image.image, size, interpolation=method)
    x, y = A[:2, :2] @ centre + A[:2, 2]
    left = int(np.clip(round(x - width / 2), 0, size[0] - width))
    top = int(np.clip(round(y - height / 2), 0, size[1] - height))
    window = slice(top, top + height), slice(left, left + width)
    A[:2, 2] -= left, top
    depth: Array | None = None
    if image.depth is not None:
        nearest = cv2.resize(image.depth, size, interpolation=cv2.INTER_NEAREST_EXACT)[window]
        y, x = np.mgrid[:height, :width].reshape(2, -1)
        points = homogeneous(np.stack([x, y], axis=1)) @ np.linalg.inv(A)[:2].T
        smooth = depth_at(_one(image.depth), _one(points), SAME_SURFACE)
        between = smooth.numpy().reshape(nearest.shape)
        depth = np.where(between > 0, between, nearest)  # at edges that of one of the sides
    shared = image.points
    if shared is not None:
        shared = shared @ A[:2, :2].T + A[:2, 2]
    return SupervisedImage(pixels[window], depth, A @ image.K, shared)


def covisible_centres(
    image0: SupervisedImage, image1: SupervisedImage, T_0to1: Array
) -> tuple[Array, Array]:
    """Centre of the covisible region in each image as (x, y); the image's centre if it is empty.

    It is the median of the shared points or, with depth maps, of the visible grid points.
    """
    if image0.points is not None and image1.points is not None:
        return np.median(image0.points, axis=0), np.median(image1.points, axis=0)
    truth = ground_truth(image0, image1, T_0to1)
    centres = []
    for grid, visible, image in (
        (truth.grid0, truth.visible0, image0),
        (truth.grid1, truth.visible1, image1),
    ):
        seen = grid_points(grid)[visible[0]]
        h, w = image.image.shape
        centres.append(seen.median(dim=0).values.numpy() if len(seen) else np.array([w, h]) / 2)
    return centres[0], centres[1]


def ground_truth(
    image0: SupervisedImage,
    image1: SupervisedImage,
    T_0to1: Array,
    tolerance: float = 0.05,
    origin: Origin = "centre",
) -> Supervision:
    """Ground truth of one pair, from its shared points or from its depth maps.

    Args:
        image0, image1: of any size.
        T_0to1: (4, 4), from the coordinates of camera 0 to those of camera 1.
        tolerance, origin: see `supervise`.
    """
    if image0.points is not None and image1.points is not None:
        size0, size1 = image0.image.shape, image1.image.shape
        points0, points1 = _points_inside(image0.points, image1.points, size0, size1)
        return sparse_supervision(points0, points1, size0, size1, origin)
    map0, map1 = (DepthMap(_one(image.depth), _one(image.K)) for image in (image0, image1))
    return supervise(map0, map1, _one(T_0to1), tolerance, origin)


def _points_inside(
    points0: Array, points1: Array, size0: tuple[int, int], size1: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The points that lie inside both images, of (height, width) each."""
    kept = inside(points0, size0[1], size0[0], 0.5) & inside(points1, size1[1], size1[0], 0.5)
    return torch.from_numpy(points0[kept]).float(), torch.from_numpy(points1[kept]).float()


def _one(array: Array | None) -> Tensor:
    """A batch of one array."""
    return torch.from_numpy(np.asarray(array, dtype=np.float32))[None]


def _stack(images: Sequence[Array]) -> Tensor:
    """(B, 1, H, W) grey in [0, 1] from images (H, W) uint8."""
    return torch.from_numpy(np.stack(images))[:, None].float() / 255


def _concatenate(truths: Sequence[Supervision]) -> Supervision:
    """One batch from ground truths of pairs of the same size."""
    return Supervision(
        torch.cat([t.warped0 for t in truths]),
        torch.cat([t.visible0 for t in truths]),
        torch.cat([t.warped1 for t in truths]),
        torch.cat([t.visible1 for t in truths]),
        torch.cat([t.partner for t in truths]),
        torch.cat([t.known0 for t in truths]),
        truths[0].grid0,
        truths[0].grid1,
    )

"""Cameras, planes and batches with known ground truth, for the tests of training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.models.types import EDMConfig
from edm_hloc.synthetic.pairs import PairOptions, PairSampler, RenderedPairs
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.config import Stage, TrainConfig
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import (
    DepthMap,
    Supervision,
    supervise,
)

TINY = EDMConfig(widths=(8, 8, 16, 16, 16), heads=2, train_size=None)


def pinhole(focal: float, height: int, width: int) -> Tensor:
    return torch.tensor(
        [[focal, 0.0, (width - 1) / 2], [0.0, focal, (height - 1) / 2], [0.0, 0.0, 1.0]]
    )


def rotation(axis: int, degrees: float) -> Tensor:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    a, b = [i for i in range(3) if i != axis]
    R = torch.eye(3)
    R[a, a], R[a, b], R[b, a], R[b, b] = c, -s, s, c
    return R


def plane_depth(normal: Tensor, offset: float, K: Tensor, height: int, width: int) -> Tensor:
    """(H, W) depth of the plane normal·X = offset, given in the camera's coordinates."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).float() @ torch.linalg.inv(K).T
    return offset / (rays @ normal)


def shifted(dx: float, dy: float = 0.0, size: tuple[int, int] = (96, 128)) -> Supervision:
    """Ground truth of a fronto-parallel plane that appears shifted by (dx, dy) px in image 1."""
    height, width = size
    K = pinhole(100.0, height, width)[None]
    T = torch.eye(4)[None].clone()
    T[0, :2, 3] = torch.tensor([dx, dy]) / 100.0 * 5.0
    depth = torch.full((1, height, width), 5.0)
    return supervise(DepthMap(depth, K), DepthMap(depth, K), T)


def rendered_pair(height: int = 96, width: int = 128) -> RenderedPairs:
    bank = TextureBank.dead_leaves(4, 128)
    options = PairOptions(photometric_effects=False)
    return PairSampler(bank, 0.2, seed=3, options=options).sample(1, height, width)


def write_jpeg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


class OneBatch:
    """A source that always gives the same batch."""

    def __init__(self, batch: PairBatch) -> None:
        self._batch = batch

    def batch(self, pairs: int, height: int, width: int, seed: int) -> PairBatch:
        return self._batch


def tiny_config(**changes: object) -> TrainConfig:
    base = TrainConfig(
        model=TINY,
        steps=6,
        stages=(Stage(1.0, (64, 64), 2 * 64 * 64),),
        fine_matches=24,
        validation_sets=((2, 64, 96),),
        validations=1,
        checkpoints=1,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]

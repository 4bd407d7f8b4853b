"""How good a network is on fixed pairs with known truth, matched as at inference."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.grid import CELL
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import STRIDE, MatchOptions, RefinedImage
from edm_hloc.pairs.with_truth import read_pairs_with_gt
from edm_hloc.synthetic.textures import read_grey
from edm_hloc.training.step import PairBatch


def _take(values: Tensor, cell: Tensor) -> Tensor:
    return values.gather(1, cell[..., None].expand(-1, -1, 2))


@torch.no_grad()
def validate(
    model: EDM, batches: list[PairBatch], threshold: float, refined: RefinedImage = "best"
) -> dict[str, float]:
    """Match pairs and compare with their truth.

    A match has one end on the grid; its error is the distance of the other end from where the
    truth warps the first.

    Returns:
        coarse_precision: share of matches with an error of at most a cell along both axes,
        coarse_recall: share of true matches from whose cell such a match starts,
        fine_error: median error of those in px, matches: mean number a pair.
    """
    right = found = known = matches = pairs = 0
    errors = []
    for batch in batches:
        truth = batch.truth
        out = model.match(
            model.encode(batch.image0),
            model.encode(batch.image1),
            MatchOptions(truth.partner.shape[1], threshold, refined=refined),
        )
        columns = torch.tensor([truth.grid0[1], truth.grid1[1]])
        cell0, cell1 = (
            (k[..., 1] / CELL).round().long() * int(n) + (k[..., 0] / CELL).round().long()
            for k, n in zip((out.keypoints0, out.keypoints1), columns, strict=True)
        )
        cell0 = cell0.clamp(0, truth.visible0.shape[1] - 1)  # of matches that are not valid
        cell1 = cell1.clamp(0, truth.visible1.shape[1] - 1)
        from0 = (out.keypoints0 % CELL == 0).all(dim=-1)
        error = torch.where(
            from0[..., None],
            out.keypoints1 - _take(truth.warped0, cell0),
            out.keypoints0 - _take(truth.warped1, cell1),
        )
        visible = torch.where(
            from0, truth.visible0.gather(1, cell0), truth.visible1.gather(1, cell1)
        )
        near = out.valid & visible & (error.abs() <= CELL).all(dim=-1)
        start = torch.zeros_like(truth.visible0, dtype=torch.long).scatter_add(
            1, cell0, near.long()
        )
        right += int(near.sum())
        found += int(((start > 0) & (truth.partner >= 0)).sum())
        known += int((truth.partner >= 0).sum())
        matches += int(out.valid.sum())
        pairs += len(batch.image0)
        errors.append(error[near].norm(dim=1))
    return {
        "coarse_precision": right / max(matches, 1),
        "coarse_recall": found / max(known, 1),
        "fine_error": float(torch.cat(errors).median()) if right else float("nan"),
        "matches": matches / max(pairs, 1),
    }


class RealPair(NamedTuple):
    """Two photos at the network's size with the fundamental matrix there.

    Attributes:
        image0, image1: (1, 1, H, W) grey in [0, 1].
        F: (3, 3), x1ᵀ·F·x0 = 0.
    """

    image0: Tensor
    image1: Tensor
    F: Tensor


def load_real_pairs(path: Path, images: Path, longest: int = 640) -> list[RealPair]:
    """Photos of a list in SuperGlue's format, scaled to a longest side of about `longest`.

    Raises:
        EdmHlocError: for a malformed list, photos with an EXIF rotation or an unreadable photo.
    """
    pairs = []
    for pair in read_pairs_with_gt(path):
        if pair.rotation0 or pair.rotation1:
            raise EdmHlocError(f"{path}: {pair.name0}, {pair.name1} have an EXIF rotation")
        image0, A0 = _network_image(images / pair.name0, longest)
        image1, A1 = _network_image(images / pair.name1, longest)
        x, y, z = pair.T_0to1[:3, 3]
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        E = cross @ pair.T_0to1[:3, :3]
        F = np.linalg.inv(A1 @ pair.K1).T @ E @ np.linalg.inv(A0 @ pair.K0)
        pairs.append(RealPair(image0, image1, torch.from_numpy(F).float()))
    return pairs


def _network_image(path: Path, longest: int) -> tuple[Tensor, np.ndarray]:
    image = read_grey(path)
    h, w = image.shape
    height, width = (max(1, round(n * longest / max(h, w) / STRIDE)) * STRIDE for n in (h, w))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    sx, sy = width / w, height / h
    A = np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]])
    return torch.from_numpy(image)[None, None].float() / 255, A


@torch.no_grad()
def validate_real(model: EDM, pairs: list[RealPair], threshold: float) -> dict[str, float]:
    """Match photos and see how far matches are from each other's epipolar lines.

    Returns:
        precision: share of matches within 1 px of the lines in both images, matches: mean
        number of them, right or wrong, a pair.
    """
    device = next(model.parameters()).device
    right = total = 0
    for pair in pairs:
        features0, features1 = (model.encode(image.to(device)) for image in pair[:2])
        out = model.match(features0, features1, MatchOptions(threshold=threshold))
        x0, x1 = (k[out.valid].cpu() for k in (out.keypoints0, out.keypoints1))
        x0, x1 = (torch.cat([x, torch.ones_like(x[:, :1])], dim=1) for x in (x0, x1))
        line1, line0 = x0 @ pair.F.T, x1 @ pair.F
        product = (x1 * line1).sum(dim=1).abs()
        distance = product / torch.minimum(line1[:, :2].norm(dim=1), line0[:, :2].norm(dim=1))
        right += int((distance < 1.0).sum())
        total += len(x0)
    return {"precision": right / max(total, 1), "matches": total / max(len(pairs), 1)}

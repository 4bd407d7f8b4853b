"""Validation: matches of fixed pairs, made as in inference, compared with their ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import Origin, origin_shift, resizing_matrix
from edm_hloc.base.geometry import epipolar_errors, essential_matrix
from edm_hloc.base.grid import CELL
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import STRIDE, MatchOptions, RefinedImage
from edm_hloc.pairs.with_truth import read_pairs_with_gt
from edm_hloc.synthetic.textures import read_grey
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import surely_wrong


class JudgedMatches(NamedTuple):
    """M matches of some pairs, compared with the ground truth.

    Attributes:
        confidence: (M,).
        near: (M,) bool, whether the error is at most one cell along both axes, and the point
            visible.
        wrong: (M,) bool, whether they are surely wrong; of the others that are not `near`, the
            depth is unknown, or the point is hidden there, or they are less than two cells off.
        error: (E,) px, of those that are near.
        found: (F,) confidence of the matches that are near, one for each true coarse match whose
            cell in image 0 has one.
        known: number of true coarse matches.
    """

    confidence: Tensor
    near: Tensor
    wrong: Tensor
    error: Tensor
    found: Tensor
    known: int


@torch.no_grad()
def judge_matches(
    model: EDM, batch: PairBatch, threshold: float, refined: RefinedImage = "best"
) -> JudgedMatches:
    """Matches pairs as in inference and compares the matches with the ground truth.

    One point of a match is a grid point; the error is the distance of the other point from the true
    warp of the grid point. Matches and ground truth are both in the network's pixel frame.

    Args:
        model: in evaluation mode.
        batch: the pairs.
        threshold: smallest confidence of a match.
        refined: which point of a match leaves the grid, see `EDM.match`.
    """
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
    # Matches that are not valid may lie anywhere.
    cell0 = cell0.clamp(0, truth.visible0.shape[1] - 1)
    cell1 = cell1.clamp(0, truth.visible1.shape[1] - 1)
    from0 = (out.keypoints0 % CELL == 0).all(dim=-1)
    error = torch.where(
        from0[..., None],
        out.keypoints1 - _of_cells(truth.warped0, cell0),
        out.keypoints0 - _of_cells(truth.warped1, cell1),
    )
    visible = torch.where(from0, truth.visible0.gather(1, cell0), truth.visible1.gather(1, cell1))
    near = out.valid & visible & (error.abs() <= CELL).all(dim=-1)
    start = torch.full_like(truth.warped0[..., 0], -1.0).scatter_reduce(
        1, cell0, out.confidence.where(near, -1.0), "amax"
    )
    found = start[(start >= 0) & (truth.partner >= 0)]
    known = int((truth.partner >= 0).sum())
    wrong = out.valid & surely_wrong(truth, cell0, cell1)
    return JudgedMatches(
        out.confidence[out.valid],
        near[out.valid],
        wrong[out.valid],
        error[near].norm(dim=1),
        found,
        known,
    )


def validate(
    model: EDM, batches: list[PairBatch], threshold: float, refined: RefinedImage = "best"
) -> dict[str, float]:
    """Matches rendered pairs and compares the matches with the ground truth.

    Args:
        model: in evaluation mode.
        batches: the pairs.
        threshold: smallest confidence of a match.
        refined: which point of a match leaves the grid, see `EDM.match`.

    Returns:
        coarse_precision: share of matches with an error of at most one cell along both axes,
        coarse_recall: share of the true coarse matches whose cell in image 0 has such a match,
        fine_error: median error of these matches in px, matches: mean number of matches a pair.
    """
    judged = [judge_matches(model, batch, threshold, refined) for batch in batches]
    pairs = sum(len(batch.image0) for batch in batches)
    matches = sum(len(j.near) for j in judged)
    errors = torch.cat([j.error for j in judged]) if judged else torch.empty(0)
    return {
        "coarse_precision": len(errors) / max(matches, 1),
        "coarse_recall": sum(len(j.found) for j in judged) / max(sum(j.known for j in judged), 1),
        "fine_error": float(errors.median()) if len(errors) else float("nan"),
        "matches": matches / max(pairs, 1),
    }


def _of_cells(values: Tensor, cell: Tensor) -> Tensor:
    """Rows (B, K, 2) of `values` (B, N, 2) at the cells (B, K)."""
    return values.gather(1, cell[..., None].expand(-1, -1, 2))


class RealPair(NamedTuple):
    """Two photos at the network's size with their fundamental matrix.

    Attributes:
        image0, image1: (1, 1, H, W) grey in [0, 1].
        F: (3, 3) with x1ᵀ·F·x0 = 0, in hloc's pixel frame of these images.
    """

    image0: Tensor
    image1: Tensor
    F: np.ndarray


def load_real_pairs(path: Path, images: Path, longest: int = 640) -> list[RealPair]:
    """Loads the pairs of a list in SuperGlue's format `pairs_with_gt`.

    Args:
        path: the list.
        images: folder of the photos.
        longest: longest side in pixels to which the photos are scaled; both sides are rounded to
            multiples of 32.

    Raises:
        EdmHlocError: the list is malformed, or a photo has an EXIF rotation or cannot be read.
    """
    pairs = []
    for pair in read_pairs_with_gt(path):
        if pair.rotation0 or pair.rotation1:
            raise EdmHlocError(f"{path}: {pair.name0}, {pair.name1} have an EXIF rotation")
        image0, A0 = _network_image(images / pair.name0, longest)
        image1, A1 = _network_image(images / pair.name1, longest)
        E = essential_matrix(pair.T_0to1)
        F = np.linalg.inv(A1 @ pair.K1).T @ E @ np.linalg.inv(A0 @ pair.K0)
        pairs.append(RealPair(image0, image1, F))
    return pairs


def _network_image(path: Path, longest: int) -> tuple[Tensor, np.ndarray]:
    """The scaled photo (1, 1, H, W), and the matrix from the photo's pixels to its pixels."""
    image = read_grey(path)
    h, w = image.shape
    height, width = (max(1, round(n * longest / max(h, w) / STRIDE)) * STRIDE for n in (h, w))
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy(image)[None, None].float() / 255
    return pixels, resizing_matrix((w, h), (width, height))


@torch.no_grad()
def validate_real(
    model: EDM, pairs: list[RealPair], threshold: float, origin: Origin = "centre"
) -> dict[str, float]:
    """Matches real pairs and measures the epipolar errors of the matches.

    Args:
        model: in evaluation mode.
        pairs: of `load_real_pairs`.
        threshold: smallest confidence of a match.
        origin: where (0, 0) of the network's pixel frame lies.

    Returns:
        precision: share of matches with an epipolar error below 1 px in both images, matches:
        mean number of matches a pair.
    """
    device = next(model.parameters()).device
    correct = total = 0
    for pair in pairs:
        features0, features1 = (model.encode(image.to(device)) for image in pair[:2])
        out = model.match(features0, features1, MatchOptions(threshold=threshold))
        points0, points1 = (
            (keypoints[out.valid].double() - origin_shift(origin)).cpu().numpy()
            for keypoints in (out.keypoints0, out.keypoints1)
        )
        x0, x1 = (np.column_stack([x, np.ones(len(x))]) for x in (points0, points1))
        error = np.maximum(*epipolar_errors(x0, x1, pair.F))
        correct += int((error < 1.0).sum())
        total += len(error)
    return {"precision": correct / max(total, 1), "matches": total / max(len(pairs), 1)}

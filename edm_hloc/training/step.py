"""One training step: the module that computes the loss of a network on a batch of pairs."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edm_hloc.base.grid import CELL
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import CoarseMatches, EDMFeatures, default_topk
from edm_hloc.training.config import TrainConfig
from edm_hloc.training.dual_softmax import DualSoftmax, Entries
from edm_hloc.training.losses import (
    focal_loss,
    residual_log_likelihood,
    total_loss,
    wrong_match_loss,
)
from edm_hloc.training.supervision import (
    Supervision,
    fine_targets,
    grid_points,
    pad_with_truth,
    surely_wrong,
)


class PairBatch(NamedTuple):
    """B pairs of images with ground truth.

    Attributes:
        image0, image1: (B, 1, H, W) grey in [0, 1].
        truth: their ground truth, at these sizes.
    """

    image0: Tensor
    image1: Tensor
    truth: Supervision

    def to(self, device: torch.device) -> PairBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in self.truth._asdict().items() if isinstance(v, Tensor)
        }
        truth = self.truth._replace(**moved)
        return PairBatch(self.image0.to(device), self.image1.to(device), truth)


def initialise(model: EDM) -> None:
    """Draws all weights from torch's global generator.

    Convolutions of the backbone and of the fine stage get Kaiming's initialisation, linear layers
    Xavier's.
    """
    for module in model.backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in model.neck.modules():
        if isinstance(module, nn.Conv2d):  # no ReLU follows; fan_out is wrong if depthwise
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for module in model.fine_matching.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.fine_matching.flow.modules():
        if isinstance(module, nn.Linear):  # the flow starts near the identity
            nn.init.xavier_uniform_(module.weight, gain=0.01)
            nn.init.zeros_(module.bias)


class TrainingStep(nn.Module):
    """The loss of a network on a batch, and figures for the training curves.

    Args:
        model: the network that is trained.
        config: its settings of the losses and of the fine stage are used.
    """

    def __init__(self, model: EDM, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(
        self, batch: PairBatch, position_scale: float, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of Eq. 9.

        Args:
            batch: B pairs.
            position_scale: factor on the positions in self-attention along both axes.
            seed: of the random choice of matches for the fine stage.

        Returns:
            The loss, and detached scalars: loss_coarse (Eq. 6), loss_wrong, loss_fine,
            coarse_precision (share of confident coarse matches with an error of at most one cell
            along both axes), coarse_recall (share of true coarse matches whose cell in image 0 is
            matched with such an error), fine_error (median, px).
        """
        config, model, truth = self.config, self.model, batch.truth
        with torch.set_grad_enabled(config.trained == "all"):
            features0, features1 = self._encode(batch, position_scale)
            coarse0, coarse1 = model.interact(features0, features1)
        tokens0, tokens1 = coarse0.flatten(2).mT, coarse1.flatten(2).mT
        softmax = DualSoftmax(tokens0, tokens1, model.config.temperature)
        confidence, best = softmax.probability, softmax.column
        true = _entries(truth.partner, truth.partner >= 0)
        own = torch.arange(best.shape[1], device=best.device).expand_as(best)
        wrong = _entries(best, surely_wrong(truth, own, best) & (config.wrong_weight > 0))
        pair, row, column = (torch.cat(parts) for parts in zip(true, wrong, strict=True))
        log_true, log_wrong = softmax.log_entries((pair, row, column)).split(
            [len(true[0]), len(wrong[0])]
        )
        coarse_loss = focal_loss(log_true, config.focal_alpha, config.focal_gamma)
        wrong_loss = wrong_match_loss(log_wrong, len(log_true) + len(log_wrong), config.focal_gamma)

        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            cell0 = self._draw_cells(confidence, generator)
            cell0, cell1 = pad_with_truth(
                truth, cell0, best.gather(1, cell0), config.true_matches, generator
            )
        target, valid = fine_targets(truth, cell0, cell1, bidirectional=model.config.bidirectional)
        offset, sigma = model.refine(
            features0, features1, coarse0, coarse1, CoarseMatches(cell0, cell1, cell0)
        )
        fine_loss = residual_log_likelihood(
            offset[valid], sigma[valid], target[valid], model.fine_matching.flow, config.residual
        )
        metrics = {
            "loss_coarse": coarse_loss.detach(),
            "loss_wrong": wrong_loss.detach(),
            "loss_fine": fine_loss.detach(),
            **coarse_metrics(truth, confidence, best, config.threshold),
            "fine_error": (offset[valid] - target[valid]).detach().norm(dim=1).nanmedian() * CELL,
        }
        coarse_loss = coarse_loss + config.wrong_weight * wrong_loss
        return total_loss(coarse_loss, fine_loss, config.fine_weight), metrics

    def _encode(self, batch: PairBatch, scale: float) -> tuple[EDMFeatures, EDMFeatures]:
        # One batch of both images, so that batch normalisation has the same statistics for both.
        features = self.model.encode(torch.cat([batch.image0, batch.image1]), (scale, scale))
        half = len(batch.image0)
        first, second = (
            EDMFeatures(f.f32[part], f.f16[part], f.f8[part], f.fine[part], f.position_scale)
            for f, part in ((features, slice(half)), (features, slice(half, None)))
        )
        return first, second

    def _draw_cells(self, confidence: Tensor, generator: torch.Generator) -> Tensor:
        """Draws cells of image 0 for the fine stage among those that inference takes: (B, K)."""
        rows = confidence.shape[1]
        kept = confidence.topk(default_topk(rows), dim=1).indices
        count = min(self.config.fine_matches, kept.shape[1])
        order = torch.rand(kept.shape, generator=generator).argsort(dim=1)[:, :count]
        return kept.gather(1, order.to(kept.device))


def _entries(matched: Tensor, chosen: Tensor) -> Entries:
    """The entries of the matrices at (B, N0) matched cells of image 1, where they are chosen."""
    pair, row = chosen.nonzero(as_tuple=True)
    return pair, row, matched[pair, row]


@torch.no_grad()
def coarse_metrics(
    truth: Supervision, confidence: Tensor, best: Tensor, threshold: float
) -> dict[str, Tensor]:
    """Precision and recall of the coarse matches, where errors of up to one cell are allowed.

    Args:
        truth: of B pairs.
        confidence: (B, N0) of each cell's best match.
        best: (B, N0) long, the best match of each cell of image 0.
        threshold: smallest confidence of the matches that count in the precision.
    """
    point = grid_points(truth.grid1, best.device)[best]
    near = ((point - truth.warped0).abs() <= CELL).all(dim=-1) & truth.visible0
    confident = confidence > threshold
    known = truth.partner >= 0
    return {
        "coarse_precision": (near & confident).sum() / confident.sum().clamp(min=1),
        "coarse_recall": (near & known).sum() / known.sum().clamp(min=1),
    }

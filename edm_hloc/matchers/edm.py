"""EDM behind the matcher contract: weights, devices and pixel frames around the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from edm_hloc.images import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, Matches, Preprocessing
from edm_hloc.models import weights as weights_module
from edm_hloc.models.edm import RefinedImage


@dataclass(frozen=True)
class EDMMatcherConfig:
    """Settings of the EDM matcher.

    Attributes:
        weights: path, registry name, or None for the best on this computer.
        preprocessing: how photos become the network's input.
        threshold: smallest coarse probability; None for what the weights were made for.
        topk: most matches a pair; None for 0.35 of the first image's cells.
        border_cells: matches this close (in 8 px cells) to an edge are dropped.
        refined: in which image matches leave the 8 px grid, see `EDM.match`.
        device: "cuda", "cpu", "mps"; None for the fastest there is.
    """

    weights: str | Path | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None
    topk: int | None = None
    border_cells: int = 0
    refined: RefinedImage = "best"
    device: str | None = None


def default_device() -> str:
    """The fastest kind of device on this computer."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class EDMMatcher(Matcher):
    """EDM (arXiv 2503.05122).

    Raises:
        WeightsError: see `edm_hloc.models.weights.load`.
    """

    name = "edm"

    def __init__(self, config: EDMMatcherConfig | None = None) -> None:
        self.config = config or EDMMatcherConfig()
        self.preprocessing = self.config.preprocessing
        self.device = torch.device(self.config.device or default_device())
        self.model, self.weights = weights_module.load(self.config.weights, self.device)
        self.threshold = (
            self.weights.threshold if self.config.threshold is None else self.config.threshold
        )

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.name,
            "architecture": self.weights.architecture,
            "weights_sha256": self.weights.sha256,
            "threshold": self.threshold,
            "topk": self.config.topk,
            "border_cells": self.config.border_cells,
            "refined": self.config.refined,
            **asdict(self.preprocessing),
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        encoded = self.model.encode(image.tensor[None].to(self.device))
        return Features(encoded, image.transform, encoded.nbytes)

    @torch.inference_mode()
    def match(self, features0: Features, features1: Features) -> Matches:
        found = self.model.match(
            features0.data,
            features1.data,
            topk=self.config.topk,
            threshold=self.threshold,
            border_cells=self.config.border_cells,
            refined=self.config.refined,
        )
        valid = found.valid[0]
        keypoints0, keypoints1, scores = (
            t[0][valid].float().cpu().numpy()
            for t in (found.keypoints0, found.keypoints1, found.confidence)
        )
        return Matches(
            features0.transform.to_original(keypoints0),
            features1.transform.to_original(keypoints1),
            scores,
        )

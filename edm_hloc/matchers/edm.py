"""EDM behind the matcher contract: weights, devices and pixel frames around the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, Preprocessing
from edm_hloc.models import weights as weights_module
from edm_hloc.models.edm import EDM
from edm_hloc.models.folding import fold_batch_norms
from edm_hloc.models.types import EDMFeatures, RefinedImage

if TYPE_CHECKING:
    from edm_hloc.models.onnx import OnnxEDM


@dataclass(frozen=True)
class EDMMatcherConfig:
    """Settings of the EDM matcher.

    Attributes:
        weights: path, registry name, or None for the best on this computer.
        preprocessing: how photos become the network's input.
        threshold: smallest coarse probability; None for what the weights were made for.
        candidates: also give matches below `threshold`, down to a probability of 0.05.
        topk: most matches a pair; None for 0.35 of the first image's cells.
        border_cells: matches this close (in 8 px cells) to an edge are dropped.
        refined: in which image matches leave the 8 px grid, see `EDM.match`.
        device: "cuda", "cpu", "mps"; None for the fastest there is.
        batch_size: pairs that go through the network together; None for 8 on a GPU and 1 on a
            CPU, which gains nothing from more. The matches are the same, to rounding.
        onnx: folder of `edm-hloc export`, whose graphs ONNX Runtime runs where they are faster:
            `encode` always, `match` with TensorRT. They give the same matches, to rounding (those
            exported in half precision: about the same); `match` no more of a pair than it was
            exported for.
        half_cache: keep encoded images in half precision: half the memory, and slightly other
            matches.
    """

    weights: str | Path | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None
    topk: int | None = None
    border_cells: int = 0
    refined: RefinedImage = "best"
    device: str | None = None
    batch_size: int | None = None
    onnx: Path | None = None
    half_cache: bool = False
    candidates: bool = False


CANDIDATE = 0.05  # probability from which a match is worth another look


def default_device() -> str:
    """The fastest kind of device on this computer."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class EDMMatcher(Matcher):
    """EDM (arXiv 2503.05122).

    Raises:
        WeightsError: see `edm_hloc.models.weights.load`.
        EdmHlocError: `onnx` has the graphs of other weights, or see `OnnxEDM`.
    """

    name = "edm"

    def __init__(self, config: EDMMatcherConfig | None = None) -> None:
        self.config = config or EDMMatcherConfig()
        self.preprocessing = self.config.preprocessing
        self.topk = self.config.topk
        self.device = torch.device(self.config.device or default_device())
        model, self.weights = weights_module.load(self.config.weights, self.device)
        self.model = fold_batch_norms(model)
        # On the CPU convolutions are a tenth faster so.
        cpu = self.device.type == "cpu"
        self._layout = torch.channels_last if cpu else torch.contiguous_format
        self.model.to(memory_format=self._layout)  # type: ignore[call-overload]
        if self.device.type == "cuda":
            self._fuse_coarse_matching()
        self._encoder: EDM | OnnxEDM = self.model
        self._pair_matcher: EDM | OnnxEDM = self.model
        self._of_graphs: dict[str, bool | int] = {}  # what they change, for the provenance
        if self.config.onnx is not None:
            self._use_graphs(self.config.onnx)
        self.batch_size = self.config.batch_size or (8 if self.device.type == "cuda" else 1)
        self.threads = torch.get_num_threads() if cpu else 1
        self.confident = (
            self.weights.threshold if self.config.threshold is None else self.config.threshold
        )
        self.threshold = self.confident
        if self.config.candidates:
            self.threshold = min(CANDIDATE, self.confident)

    def _fuse_coarse_matching(self) -> None:
        try:
            from edm_hloc.models import coarse_triton
        except ModuleNotFoundError:  # no Triton, as on Windows: plain PyTorch does as well
            return
        if coarse_triton.works_on(self.device):
            self.model.coarse_search = coarse_triton.fused_columns

    def _use_graphs(self, folder: Path) -> None:
        from edm_hloc.models.onnx import TENSORRT, OnnxEDM

        graphs = OnnxEDM(folder, self.device)
        if graphs.weights_sha256 != self.weights.sha256:
            raise EdmHlocError(
                f"The graphs in {folder} were made of other weights than {self.weights.name}: make "
                f"them with edm-hloc export {folder} --weights {self.weights.name}"
            )
        self._encoder = graphs
        if graphs.dtype == torch.float16:
            self._of_graphs["half_graphs"] = True
        if TENSORRT in graphs.providers:
            self._pair_matcher = graphs
            self._of_graphs["graphs_topk"] = graphs.topk

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.name,
            "architecture": self.weights.architecture,
            "weights_sha256": self.weights.sha256,
            "threshold": self.confident,
            **({"candidates": self.threshold} if self.config.candidates else {}),
            "topk": self.config.topk,
            "border_cells": self.config.border_cells,
            "refined": self.config.refined,
            **({"half_cache": True} if self.config.half_cache else {}),
            **self._of_graphs,
            **asdict(self.preprocessing),
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        encoded = self._encoder.encode(image.tensor[None].to(self.device))
        encoded = encoded.to(memory_format=self._layout)
        if self.config.half_cache:
            encoded = encoded.to(torch.float16)
        return Features(encoded, image.transform, encoded.nbytes)

    def match(self, features0: Features, features1: Features) -> Matches:
        return self.match_batch([(features0, features1)])[0]

    @torch.inference_mode()
    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        if not pairs:
            return []
        firsts, seconds = zip(*pairs, strict=True)
        found = self._pair_matcher.match(
            self._together(firsts),
            self._together(seconds),
            topk=self.config.topk,
            threshold=self.threshold,
            border_cells=self.config.border_cells,
            refined=self.config.refined,
        )
        columns = (found.keypoints0, found.keypoints1, found.confidence[..., None])
        together = torch.cat(columns, dim=-1).float()
        # One copy from the device for the whole batch.
        rows, valid = together.cpu().numpy(), found.valid.cpu().numpy()
        matches = []
        for i, (features0, features1) in enumerate(pairs):
            keypoints0, keypoints1, scores = np.split(rows[i][valid[i]], (2, 4), axis=1)
            matches.append(
                Matches(
                    features0.transform.to_original(keypoints0),
                    features1.transform.to_original(keypoints1),
                    scores[:, 0],
                )
            )
        return matches

    def to_host(self, features: Features) -> Features | None:
        if self.device.type != "cuda":
            return None
        maps = [
            torch.empty_like(m, device="cpu", pin_memory=True).copy_(m) for m in features.data[:4]
        ]
        data = EDMFeatures(maps[0], maps[1], maps[2], maps[3], features.data.position_scale)
        return replace(features, data=data)

    def from_host(self, features: Features) -> Features:
        return replace(features, data=features.data.to(self.device, non_blocking=True))

    def _together(self, features: Sequence[Features]) -> EDMFeatures:
        """One batch of images of equal shape, in full precision."""
        batch: EDMFeatures = features[0].data
        if len(features) > 1:
            f32, f16, f8, fine = (torch.cat([f.data[i] for f in features]) for i in range(4))
            batch = EDMFeatures(f32, f16, f8, fine, batch.position_scale)
        return batch.to(torch.float32)

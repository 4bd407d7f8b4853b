"""EDM behind the matcher contract: weights, devices and pixel frames around the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import upright_size
from edm_hloc.base.grid import CELL, blocks
from edm_hloc.base.matches import Matches
from edm_hloc.base.settings import check_range
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import (
    DISTINCTNESS_STEP,
    Features,
    MatcherConfig,
    MatcherInfo,
    NetworkMatcher,
)
from edm_hloc.matchers.loading import default_device
from edm_hloc.models.edm import EDM
from edm_hloc.models.folding import fold_batch_norms
from edm_hloc.models.types import EDMFeatures, MatchOptions, RefinedImage
from edm_hloc.models.weights import load as load_weights

if TYPE_CHECKING:
    from edm_hloc.models.onnx import OnnxEDM


@dataclass(frozen=True)
class EDMMatcherConfig(MatcherConfig):
    """Settings of the EDM matcher beside those of every matcher.

    Attributes:
        refined, plenty: the image in which points leave the 8 px grid, see `MatchOptions`.
        batch_size: number of pairs that go through the network together; None for 8 on a GPU and
            1 on a CPU, which gains nothing from more. The matches are the same to rounding.
        onnx: folder written by `edm-hloc export`, whose graphs ONNX Runtime runs where they are
            faster: `encode` always, `match` with TensorRT. They give the same matches to rounding
            (graphs exported in half precision: nearly the same), and at most as many per pair as
            they were exported for.
        candidates: also return matches below `threshold`, down to `CANDIDATE`.
    """

    refined: RefinedImage = "best"
    plenty: int | None = None
    batch_size: int | None = None
    onnx: Path | None = None
    candidates: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("batch_size", self.batch_size, 1)


CANDIDATE = 0.05  # coarse probability from which refinement may still accept a match
_SIDE = 704  # of photos, for networks that state none: benchmarks/network_sizes.py


class EDMMatcher(NetworkMatcher):
    """EDM (arXiv 2503.05122).

    Raises:
        WeightsError: see `edm_hloc.models.weights.load`.
        EdmHlocError: `onnx` holds the graphs of other weights, or see `OnnxEDM`.
    """

    def __init__(self, config: EDMMatcherConfig | None = None) -> None:
        self.config = config = config or EDMMatcherConfig()
        device = torch.device(config.device or default_device())
        model, weights = load_weights(config.weights, device)
        self.origin = weights.origin
        self.model = fold_batch_norms(model)
        # On the CPU convolutions are a tenth faster so.
        cpu = device.type == "cpu"
        self._layout = torch.channels_last if cpu else torch.contiguous_format
        self.model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._use_fused_stages(device)
        confident = weights.threshold if config.threshold is None else config.threshold
        self.threshold = min(CANDIDATE, confident) if config.candidates else confident
        self.info = MatcherInfo(
            name="edm",
            preprocessing=config.preprocessing,
            weights=weights,
            device=device,
            batch_size=config.batch_size or (8 if device.type == "cuda" else 1),
            threads=torch.get_num_threads() if cpu else 1,
            confident=confident,
            topk=config.topk,
            side=self.model.config.train_size or _SIDE,
        )
        self._encoder: EDM | OnnxEDM = self.model
        self._pair_matcher: EDM | OnnxEDM = self.model
        self._of_graphs: dict[str, bool | int] = {}  # what they change, for the provenance
        if config.onnx is not None:
            self._use_graphs(config.onnx)

    def _use_fused_stages(self, device: torch.device) -> None:
        """The forms of the network's stages that are the fastest on a device."""
        if device.type == "cpu":
            from edm_hloc.models import coarse_compiled, injection_compiled

            self.model.coarse_search = coarse_compiled.compiled_columns
            self.model.neck.inject_gated = injection_compiled.inject_gated
        if device.type != "cuda":
            return
        try:
            from edm_hloc.models import coarse_triton
        except ModuleNotFoundError:  # no Triton, as on Windows: plain PyTorch does as well
            return
        if coarse_triton.works_on(device):
            self.model.coarse_search = coarse_triton.fused_columns

    def _use_graphs(self, folder: Path) -> None:
        from edm_hloc.models.onnx import TENSORRT, OnnxEDM

        weights = self.info.weights
        graphs = OnnxEDM(folder, self.info.device)
        if graphs.weights_sha256 != weights.sha256:
            raise EdmHlocError(
                f"The graphs in {folder} were made of other weights than {weights.name}: make them "
                f"with edm-hloc export {quote(str(folder))} --weights {quote(weights.argument)}"
            )
        self._encoder = graphs
        if graphs.dtype == torch.float16:
            self._of_graphs["half_graphs"] = True
        if TENSORRT in graphs.providers:
            self._pair_matcher = graphs
            self._of_graphs["graphs_topk"] = graphs.topk
            self.config = replace(self.config, plenty=None)  # the graphs refine as they were made

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        weights = self.info.weights
        return {
            "matcher": self.info.name,
            "architecture": weights.architecture,
            "weights_sha256": weights.sha256,
            "origin": self.origin,
            "threshold": self.info.confident,
            **({"candidates": self.threshold} if self.config.candidates else {}),
            "topk": self.config.topk,
            "border_cells": 0,  # a setting once, and in the raw matches of before
            "refined": self.config.refined,
            **({} if self.config.plenty is None else {"plenty": self.config.plenty}),
            **self._of_graphs,
            **asdict(self.config.preprocessing),
        }

    def encode(self, image: NetworkImage) -> Features:
        return self._encode([image])[0]

    def encode_batch(self, images: Sequence[NetworkImage]) -> list[Features]:
        # The graphs take one photo at a time.
        together = self.info.batch_size if self._encoder is self.model else 1
        by_size: dict[tuple[torch.Size, tuple[int, int] | None], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault((image.tensor.shape, _shown(image)), []).append(i)
        encoded: dict[int, Features] = {}
        for same in by_size.values():
            for part in blocks(len(same), together):
                some = same[part]
                encoded |= zip(some, self._encode([images[i] for i in some]), strict=True)
        return [encoded[i] for i in range(len(images))]

    @torch.inference_mode()
    def _encode(self, images: Sequence[NetworkImage]) -> list[Features]:
        """Features of images of equal shape and padding, which go through the network together."""
        batch = torch.stack([image.tensor for image in images]).to(self.info.device)
        shown = _shown(images[0])
        # the graphs know of no padding
        if shown is None:
            encoded = self._encoder.encode(batch)
        else:
            encoded = self.model.encode(batch, shown=shown)
        encoded = encoded.to(memory_format=self._layout)
        if len(images) == 1:
            return [Features(encoded, images[0].transform, encoded.nbytes)]
        features = []
        for i, image in enumerate(images):
            # A view would hold the memory of the whole batch.
            f32, f16, f8, fine = (m[i : i + 1].clone() for m in encoded[:4])
            one = EDMFeatures(f32, f16, f8, fine, encoded.position_scale, encoded.shown)
            features.append(Features(one, image.transform, one.nbytes))
        return features

    def match_in_network_frame(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return self._in_batches(pairs, self._options)

    def cells_in_network_frame(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        rough = replace(self._options, threshold=self.info.confident, refined="neither")
        return self._in_batches(pairs, rough)

    @property
    def _options(self) -> MatchOptions:
        return MatchOptions(
            topk=self.config.topk,
            threshold=self.threshold,
            refined=self.config.refined,
            plenty=self.config.plenty,
        )

    def _in_batches(
        self, pairs: Sequence[tuple[Features, Features]], options: MatchOptions
    ) -> list[Matches]:
        padded = any(f.data.shown is not None for pair in pairs for f in pair)
        size = 1 if padded else self.info.batch_size
        return [m for part in blocks(len(pairs), size) for m in self._match(pairs[part], options)]

    @torch.inference_mode()
    def _match(
        self, pairs: Sequence[tuple[Features, Features]], options: MatchOptions
    ) -> list[Matches]:
        """The matches of pairs that go through the network together."""
        firsts, seconds = zip(*pairs, strict=True)
        padded = any(f.data.shown is not None for f in (*firsts, *seconds))
        # The graphs know of no padding, and refine always.
        by_model = padded or options.refined == "neither"
        found = (self.model if by_model else self._pair_matcher).match(
            self._together(firsts), self._together(seconds), options
        )
        columns = (found.keypoints0, found.keypoints1, found.confidence[..., None])
        together = torch.cat(columns, dim=-1).float()
        # One copy from the device for the whole batch.
        rows, valid = together.cpu().numpy(), found.valid.cpu().numpy()
        matches = []
        for i in range(len(pairs)):
            keypoints0, keypoints1, scores = np.split(rows[i][valid[i]], (2, 4), axis=1)
            matches.append(Matches(keypoints0, keypoints1, scores[:, 0]))
        return matches

    @torch.inference_mode()
    def distinctness(self, features: Features) -> np.ndarray:
        return self.model.distinctness(self._together([features]), DISTINCTNESS_STEP).cpu().numpy()

    def to_host(self, features: Features) -> Features | None:
        if self.info.device.type != "cuda":
            return None
        maps = [
            torch.empty_like(m, device="cpu", pin_memory=True).copy_(m) for m in features.data[:4]
        ]
        scale, shown = features.data.position_scale, features.data.shown
        data = EDMFeatures(maps[0], maps[1], maps[2], maps[3], scale, shown)
        return replace(features, data=data)

    def from_host(self, features: Features) -> Features:
        return replace(features, data=features.data.to(self.info.device, non_blocking=True))

    def _together(self, features: Sequence[Features]) -> EDMFeatures:
        """One batch of images of equal shape, in full precision."""
        batch: EDMFeatures = features[0].data
        if len(features) > 1:
            f32, f16, f8, fine = (torch.cat([f.data[i] for f in features]) for i in range(4))
            batch = EDMFeatures(f32, f16, f8, fine, batch.position_scale)
        return batch.to(torch.float32)


def _shown(image: NetworkImage) -> tuple[int, int] | None:
    """(rows, columns) of 8 px that show the photo, where the network's input is padded."""
    if not all(image.transform.size):
        return None
    upright = upright_size(image.transform.size, image.transform.orientation)
    width, height = (
        round(side / scale) for side, scale in zip(upright, image.transform.scale, strict=True)
    )
    if width >= image.tensor.shape[2] and height >= image.tensor.shape[1]:
        return None
    return -(-height // CELL), -(-width // CELL)

"""EfficientLoFTR (arXiv 2403.04765): the trained networks of `transformers`, matched here.

`transformers` (seen in 5.24) runs the network on two images of one size and then pairs the cells
of its matches wrongly and gives all the same sub-pixel offset, so only its networks are used
(backbone, attention, fusion of fine features); coarse selection and the two steps of refinement
follow the paper, Sec. 3.3 and 3.4. So an image goes through the backbone once, sizes may differ,
and only the windows of matches are refined.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.errors import EdmHlocError
from edm_hloc.images import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, Matches, Preprocessing
from edm_hloc.matchers.edm import default_device
from edm_hloc.matchers.registry import missing_library, state_sha256
from edm_hloc.models.edm import best_columns
from edm_hloc.models.weights import WeightsError

HUB_ID = "zju-community/efficientloftr"
CELL = 8  # pixels of the input per coarse cell
_BLOCK = 1024  # matches refined at a time: 64 × 100 similarities each

Maps = tuple[Tensor, ...]
"""The backbone's maps (1, C, h, w) of one image, at 1/2, 1/4 and 1/8."""


@dataclass(frozen=True)
class ELoFTRMatcherConfig:
    """Settings of the EfficientLoFTR matcher.

    Attributes:
        weights: name on the Hugging Face hub, or the path of a folder with a saved model.
        preprocessing: how photos become the network's input.
        threshold: smallest coarse probability; None for what comes with the weights.
        topk: most matches a pair, best first; None for all.
        device: "cuda", "cpu", "mps"; None for the fastest there is.
    """

    weights: str | Path | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None
    topk: int | None = None
    device: str | None = None


class ELoFTRMatcher(Matcher):
    """EfficientLoFTR. Points of image 0 are sub-pixel, those of image 1 whole pixels.

    Raises:
        EdmHlocError: transformers is not installed, or there are no weights.
    """

    name = "eloftr"

    def __init__(self, config: ELoFTRMatcherConfig | None = None) -> None:
        self.config = config or ELoFTRMatcherConfig()
        self.preprocessing = self.config.preprocessing
        self.device = torch.device(self.config.device or default_device())
        self.weights = str(self.config.weights or HUB_ID)
        model = _load(self.weights)
        self.sha256 = state_sha256(model)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.threshold: float = (
            model.config.coarse_matching_threshold
            if self.config.threshold is None
            else self.config.threshold
        )

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.name,
            "weights_sha256": self.sha256,
            "threshold": self.threshold,
            "topk": self.config.topk,
            **asdict(self.preprocessing),
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        """Raises ValueError unless the image is grey with sides that are multiples of 32."""
        channels, height, width = image.tensor.shape
        if channels != 1 or height % 32 or width % 32 or not height * width:
            raise ValueError(
                "EfficientLoFTR takes (1, H, W) with H and W positive multiples of 32, "
                f"got {tuple(image.tensor.shape)}"
            )
        maps = tuple(self.model.efficientloftr.backbone(image.tensor[None].to(self.device)))
        return Features(maps, image.transform, sum(m.nbytes for m in maps))

    @torch.inference_mode()
    def match(self, features0: Features, features1: Features) -> Matches:
        # The network refines the points of its second image; hloc wants those of the first refined.
        found = self._match(features1.data, features0.data)
        keypoints1, keypoints0, scores = (t.float().cpu().numpy() for t in found)
        return Matches(
            features0.transform.to_original(keypoints0),
            features1.transform.to_original(keypoints1),
            scores,
        )

    def _match(self, maps0: Maps, maps1: Maps) -> tuple[Tensor, Tensor, Tensor]:
        """Points (M, 2) in the two networks' inputs, hloc's frame, and scores (M,)."""
        config = self.model.config
        coarse0, coarse1 = self._interact(maps0[-1], maps1[-1])
        cells0, cells1, scores = self._coarse_matches(coarse0, coarse1)
        fine0, fine1 = (
            self.model.refinement_layer.forward_pyramid(
                coarse / config.hidden_size**0.5, list(reversed(maps[:-1]))
            )[0]
            for coarse, maps in ((coarse0, maps0), (coarse1, maps1))
        )
        blocks = [
            self._refine(_windows(fine0, c0, border=0), _windows(fine1, c1, border=1))
            for c0, c1 in zip(cells0.split(_BLOCK), cells1.split(_BLOCK), strict=True)
        ]
        pixel0, pixel1 = (torch.cat(pixels) for pixels in zip(*blocks, strict=True))
        # Pixel k of a window stands for k − 3.5 from its cell's point (8c, 8r), in the frame of
        # training, where the centre of the top-left pixel is at (0.5, 0.5).
        points0, points1 = (
            CELL * cells.flip(1) + pixel - CELL / 2
            for cells, pixel in ((cells0, pixel0), (cells1, pixel1))
        )
        inside = _inside(points0, maps0[-1]) & _inside(points1, maps1[-1])
        return points0[inside], points1[inside], scores[inside]

    def _interact(self, map0: Tensor, map1: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse maps (1, C, h, w) that have seen each other. The attention layers take both at
        one size: the smaller map is padded with zeros at its right and lower edges."""
        height, width = (max(map0.shape[d], map1.shape[d]) for d in (2, 3))
        both = torch.cat(
            [F.pad(m, (0, width - m.shape[3], 0, height - m.shape[2])) for m in (map0, map1)]
        )
        network = self.model.efficientloftr
        position = tuple(
            t.expand(2, -1, -1, -1).reshape(2, -1, both.shape[1]) for t in network.rotary_emb(both)
        )
        seen = network.local_feature_transformer(both[None], position_embeddings=position)[0]
        coarse0, coarse1 = (
            s[None, :, : m.shape[2], : m.shape[3]] for s, m in zip(seen, (map0, map1), strict=True)
        )
        return coarse0, coarse1

    def _coarse_matches(self, coarse0: Tensor, coarse1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mutually best cells (M, 2) as (row, column) and their probability (M,), falling."""
        config = self.model.config
        width0, width1 = coarse0.shape[3], coarse1.shape[3]
        flat0, flat1 = (c.flatten(2).transpose(1, 2) for c in (coarse0, coarse1))
        temperature = config.coarse_matching_temperature
        score, best1 = (t[0] for t in best_columns(flat0, flat1, temperature))
        best0 = best_columns(flat1, flat0, temperature)[1][0]
        index0 = torch.arange(len(best1), device=best1.device)
        cells0 = torch.stack([index0 // width0, index0 % width0], dim=1)
        cells1 = torch.stack([best1 // width1, best1 % width1], dim=1)
        border = config.coarse_matching_border_removal
        keep = (score > self.threshold) & (best0[best1] == index0)
        for cells, coarse in ((cells0, coarse0), (cells1, coarse1)):
            size = cells.new_tensor(coarse.shape[2:])
            keep &= ((cells >= border) & (cells < size - border)).all(dim=1)
        order = score[keep].argsort(descending=True, stable=True)[: self.config.topk]
        return cells0[keep][order], cells1[keep][order], score[keep][order]

    def _refine(self, windows0: Tensor, windows1: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (x, y) in a cell's 8 × 8 window: whole ones in image 0, refined in image 1.

        Args:
            windows0: (M, 64, C) fine features of the cells in image 0.
            windows1: (M, 100, C) those in image 1, with a border of one pixel.
        """
        config = self.model.config
        split = windows0.shape[2] - config.fine_matching_slice_dim
        similarity = windows0[..., :split] @ windows1[..., :split].transpose(1, 2) / split
        confidence = similarity.softmax(dim=1) * similarity.softmax(dim=2)
        side = CELL + 2
        inner = confidence.unflatten(2, (side, side))[..., 1:-1, 1:-1].flatten(1)
        best = inner.argmax(dim=1)
        best0, best1 = best // CELL**2, best % CELL**2
        pixel0 = torch.stack([best0 % CELL, best0 // CELL], dim=1).float()
        pixel1 = torch.stack([best1 % CELL, best1 // CELL], dim=1)

        # The mean position among the 3 × 3 neighbours, by the channels set aside for it.
        rows = torch.arange(len(best), device=best.device)
        query = windows0[rows, best0, split:]
        step = torch.arange(3, device=best.device)
        y, x = torch.meshgrid(step, step, indexing="ij")
        neighbours = (pixel1[:, 1, None] + y.flatten()) * side + pixel1[:, 0, None] + x.flatten()
        keys = windows1[rows[:, None], neighbours, split:]
        heat = (keys @ query[..., None])[..., 0] / config.fine_matching_slice_dim**0.5
        weights = (heat / config.fine_matching_regress_temperature).softmax(dim=1)
        offsets = torch.stack([x.flatten(), y.flatten()], dim=1).float() - 1
        return pixel0, pixel1 + weights @ offsets


def _load(weights: str) -> Any:
    try:
        from transformers import EfficientLoFTRForKeypointMatching
    except ModuleNotFoundError as error:
        raise missing_library("eloftr", error, "eloftr") from None
    except ImportError:
        raise EdmHlocError(
            "This transformers knows no EfficientLoFTR: pip install --upgrade 'edm_hloc[eloftr]'."
        ) from None
    load = EfficientLoFTRForKeypointMatching.from_pretrained
    try:
        return load(weights, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        if Path(weights).exists():
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(
                f"{weights} cannot be loaded as an EfficientLoFTR model ({reason}): give a folder "
                "into which one was saved or downloaded."
            ) from None
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it warns of each attempt; the last error says it all
    try:
        return load(weights)
    except (OSError, ValueError, RuntimeError):
        raise WeightsError(
            f"The EfficientLoFTR weights {weights!r} are not in the Hugging Face cache and cannot "
            "be downloaded: run once with network, or give --weights a folder into which the model "
            "was downloaded elsewhere."
        ) from None
    finally:
        hub.setLevel(level)


def _windows(fine: Tensor, cells: Tensor, border: int) -> Tensor:
    """Features (M, side², C), side = 8 + 2·border, around the cells (M, 2) of a map (C, H, W)."""
    side = CELL + 2 * border
    padded = F.pad(fine, (border,) * 4)
    windows = padded.unfold(1, side, CELL).unfold(2, side, CELL)  # a view (C, h, w, side, side)
    return windows[:, cells[:, 0], cells[:, 1]].flatten(2).permute(1, 2, 0)


def _inside(points: Tensor, coarse: Tensor) -> Tensor:
    """Whether points (M, 2) lie in the image that has this map at 1/8."""
    size = points.new_tensor([coarse.shape[3], coarse.shape[2]]) * CELL
    return ((points >= -0.5) & (points <= size - 0.5)).all(dim=1)

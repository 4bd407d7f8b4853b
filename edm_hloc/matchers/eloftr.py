"""EfficientLoFTR (arXiv 2403.04765): the trained networks of `transformers`, matched here.

`transformers` (seen in 5.24) runs the network on two images of one size, then pairs the cells of
its matches wrongly, and gives all the same sub-pixel offset. So only its trained modules are used
(backbone, attention, fusion of fine features); what happens between them follows the authors'
implementation, whose matches it gives. An image goes through the backbone once, sizes may differ,
and only the windows of matches are refined.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError, missing_library
from edm_hloc.base.grid import CELL
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, MatcherConfig, MatcherInfo, NetworkMatcher
from edm_hloc.matchers.loading import default_device, state_sha256
from edm_hloc.models.coarse import best_columns
from edm_hloc.models.weights_file import WeightsError, check_finite

HUB_ID = "zju-community/efficientloftr"
AGGREGATED = 4  # coarse cells per token of the attention, along each axis
TRAINED_SIDE = 832  # pixels of the images of the training
_BLOCK = 1024  # matches refined at a time: 64 × 100 similarities each

Maps = tuple[Tensor, ...]
"""The backbone's maps (1, C, h, w) of one image, at 1/2, 1/4 and 1/8."""


class ELoFTRMatcher(NetworkMatcher):
    """EfficientLoFTR. Points of image 0 are sub-pixel, those of image 1 lie on whole pixels.

    `MatcherConfig.weights` is a name on the Hugging Face hub (default: `HUB_ID`), or the path of a
    folder with a saved model.

    Raises:
        EdmHlocError: transformers is not installed, or there are no weights.
    """

    # Trained on MegaDepth with grid coordinates taken as those of its K, where cx = w / 2.
    origin = "corner"

    def __init__(self, config: MatcherConfig | None = None) -> None:
        self.config = config = config or MatcherConfig()
        device = torch.device(config.device or default_device())
        weights = str(config.weights or HUB_ID)
        model = _load(weights).float()  # of whatever precision it was saved in
        check_finite(model.state_dict(), weights)
        self.sha256 = state_sha256(model)
        self.model = model.eval().requires_grad_(False).to(device)
        self.threshold: float = (
            model.config.coarse_matching_threshold if config.threshold is None else config.threshold
        )
        self.info = MatcherInfo(
            "eloftr",
            config.preprocessing,
            weights=weights,
            device=device,
            threads=torch.get_num_threads() if device.type == "cpu" else 1,
            topk=config.topk,
        )

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.info.name,
            "weights_sha256": self.sha256,
            "origin": self.origin,
            "threshold": self.threshold,
            "topk": self.config.topk,
            **asdict(self.config.preprocessing),
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
        maps = tuple(self.model.efficientloftr.backbone(image.tensor[None].to(self.info.device)))
        return Features(maps, image.transform, sum(m.nbytes for m in maps))

    @torch.inference_mode()
    def match_in_network_frame(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        matches = []
        for features0, features1 in pairs:
            # The network refines the points of its second image; hloc wants those of the first.
            found = self._match(features1.data, features0.data)
            keypoints1, keypoints0, scores = (t.float().cpu().numpy() for t in found)
            matches.append(Matches(keypoints0, keypoints1, scores))
        return matches

    def _match(self, maps0: Maps, maps1: Maps) -> tuple[Tensor, Tensor, Tensor]:
        """Points (M, 2) in the two inputs, in the network's frame, and scores (M,)."""
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
        # Pixel k of a window lies k − 3.5 from its cell's grid point (8c, 8r).
        points0, points1 = (
            CELL * cells.flip(1) + pixel - (CELL - 1) / 2
            for cells, pixel in ((cells0, pixel0), (cells1, pixel1))
        )
        visible = _inside(points0, maps0[-1]) & _inside(points1, maps1[-1])
        return points0[visible], points1[visible], scores[visible]

    def _interact(self, map0: Tensor, map1: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse maps (1, C, h, w) that have seen themselves and each other."""
        network = self.model.efficientloftr
        position0, position1 = (_positions(m, network.rotary_emb.inv_freq) for m in (map0, map1))
        for layer in network.local_feature_transformer.layers:
            map0 = _attend(layer.self_attention, map0, map0, position0)
            map1 = _attend(layer.self_attention, map1, map1, position1)
            # One after the other: so the weights were trained.
            map0 = _attend(layer.cross_attention, map0, map1)
            map1 = _attend(layer.cross_attention, map1, map0)
        return map0, map1

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
        channels = windows0.shape[2]
        split = channels - config.fine_matching_slice_dim
        similarity = windows0[..., :split] @ windows1[..., :split].transpose(1, 2) / channels
        confidence = similarity.softmax(dim=1) * similarity.softmax(dim=2)
        side = CELL + 2
        inner = confidence.unflatten(2, (side, side))[..., 1:-1, 1:-1].flatten(1)
        best = inner.argmax(dim=1)
        best0, best1 = best // CELL**2, best % CELL**2
        pixel0 = torch.stack([best0 % CELL, best0 // CELL], dim=1).float()
        pixel1 = torch.stack([best1 % CELL, best1 // CELL], dim=1)

        # The mean position among 3 × 3 pixels, by the channels set aside for it. In training they
        # were taken one pixel up and left of the neighbours, around the window's edge if need be.
        rows = torch.arange(len(best), device=best.device)
        query = windows0[rows, best0, split:]
        step = torch.arange(3, device=best.device)
        y, x = torch.meshgrid(step, step, indexing="ij")
        x, y = x.flatten() - 1, y.flatten() - 1
        column, row = (pixel1[:, 0, None] + x) % side, (pixel1[:, 1, None] + y) % side
        keys = windows1[rows[:, None], row * side + column, split:]
        heat = (keys @ query[..., None])[..., 0] / config.fine_matching_slice_dim**0.5
        weights = (heat / config.fine_matching_regress_temperature).softmax(dim=1)
        return pixel0, pixel1 + weights @ torch.stack([x, y], dim=1).float()


def _load(weights: str) -> Any:
    try:
        from transformers import EfficientLoFTRForKeypointMatching
    except ModuleNotFoundError as error:
        raise missing_library("The matcher eloftr", error, "eloftr") from None
    except (ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EdmHlocError(
            f"transformers gives no EfficientLoFTR ({reason}): it is too old, or does not fit the "
            "installed torch or torchvision. Try pip install --upgrade 'edm_hloc[eloftr]'."
        ) from error
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


def _positions(coarse: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (h/4, w/4, C) of the rotary positions of a map's 4 × 4 blocks. Of images
    longer than those of the training positions shrink to their range, as the authors advise."""
    rows, columns = coarse.shape[2] // AGGREGATED, coarse.shape[3] // AGGREGATED
    scale = min(1.0, TRAINED_SIDE / (CELL * max(coarse.shape[2:])))
    y, x = (scale * torch.arange(1, n + 1, device=coarse.device) for n in (rows, columns))
    angles_y = (y[:, None] * frequencies)[:, None].expand(-1, columns, -1)
    angles_x = (x[:, None] * frequencies)[None].expand(rows, -1, -1)
    angles = torch.stack([angles_y, angles_x], dim=-1).flatten(2).repeat_interleave(2, dim=-1)
    return angles.cos(), angles.sin()


def _attend(
    block: Any, target: Tensor, source: Tensor, position: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """A map (1, C, h, w) that has seen another one, through one attention block of the library,
    whose own code takes maps of one size only."""
    attention = block.attention
    query, key = block.aggregation(target, source)  # (1, h/4, w/4, C)
    value = attention.v_proj(key)
    query, key = attention.q_proj(query), attention.k_proj(key)
    rows, columns = query.shape[1:3]
    if position is not None:
        query, key = _rotate(query, *position), _rotate(key, *position)
    query, key, value = (
        t.flatten(1, 2).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        for t in (query, key, value)
    )
    message = F.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
    message = attention.o_proj(message.transpose(1, 2).flatten(2))
    message = message.transpose(1, 2).unflatten(2, (rows, columns))
    message = F.interpolate(message, scale_factor=float(AGGREGATED), mode="bilinear")
    both = torch.cat([target, message], dim=1).permute(0, 2, 3, 1)
    update: Tensor = block.mlp(both).permute(0, 3, 1, 2)
    return target + update


def _rotate(features: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Neighbouring channels turned as pairs by the angle of their place."""
    even, odd = features[..., ::2], features[..., 1::2]
    return features * cosine + torch.stack([-odd, even], dim=-1).flatten(-2) * sine


def _windows(fine: Tensor, cells: Tensor, border: int) -> Tensor:
    """Features (M, side², C), side = 8 + 2·border, around the cells (M, 2) of a map (C, H, W)."""
    side = CELL + 2 * border
    padded = F.pad(fine, (border,) * 4)
    windows = padded.unfold(1, side, CELL).unfold(2, side, CELL)  # a view (C, h, w, side, side)
    return windows[:, cells[:, 0], cells[:, 1]].flatten(2).permute(1, 2, 0)


def _inside(points: Tensor, coarse: Tensor) -> Tensor:
    """Whether points (M, 2), in the corner frame, lie in the image that has this map at 1/8."""
    size = points.new_tensor([coarse.shape[3], coarse.shape[2]]) * CELL
    return ((points >= 0) & (points <= size)).all(dim=1)

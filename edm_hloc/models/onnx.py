"""EDM as two ONNX graphs, `encode` and `match`: their export, check, and use by ONNX Runtime.

    encode.onnx   image (B, 1, H, W), grey in [0, 1] → f32, f16, f8, fine
    match.onnx    those of two images → keypoints0, keypoints1 (B, K, 2) in px,
                                        confidence, certainty (B, K)

All of B, H and W may change from call to call (H and W: multiples of 32); K is fixed when the
graphs are made, as TensorRT wants it. Matches come with falling confidence; those to be used
exceed a threshold, which the caller applies. Keypoints are pixels of the network's input, as in
`edm_hloc.models.edm`. What the graphs were made of is in their metadata.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.grid import CELL
from edm_hloc.models.coarse import similarity
from edm_hloc.models.edm import EDM
from edm_hloc.models.folding import fold_batch_norms
from edm_hloc.models.types import (
    STRIDE,
    CoarseMatches,
    EDMFeatures,
    EDMMatches,
    RefinedImage,
    default_topk,
)
from edm_hloc.models.weights import WeightsInfo, config_from_json, config_to_json

MOST_MATCHES = 3840  # of TensorRT's top-k
ENCODE, MATCH = "encode.onnx", "match.onnx"
TENSORRT = "TensorrtExecutionProvider"
_MAPS = ("f32", "f16", "f8", "fine")
_OPSET = 18
_SHARE_IN_COMMON = 0.98  # of cell-to-cell matches; what rounding may change


@dataclass(frozen=True)
class OnnxConfig:
    """What is fixed when the graphs are made.

    Attributes:
        topk: K, the matches that `match` gives.
        half: weights and features in half precision; similarities stay in fp32.
        refined: in which image matches leave the 8 px grid, see `EDM.match`.
    """

    topk: int = 2048
    half: bool = False
    refined: RefinedImage = "best"


@dataclass(frozen=True)
class OnnxSummary:
    """What `export` made and how it compares with PyTorch on the same images.

    Attributes:
        paths: the two files.
        feature_error: largest difference of features, relative to the largest feature.
        in_common: least share of matches found by both.
        keypoint_error: largest distance in px between matches found by both, per axis.
    """

    paths: tuple[Path, Path]
    feature_error: float
    in_common: float
    keypoint_error: float


# --- The graphs ----------------------------------------------------------------------------------


class _EncodeGraph(nn.Module):
    def __init__(self, model: EDM) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return self.model.encode(image.to(self.model.backbone.conv1.weight.dtype))[:4]


class _MatchGraph(nn.Module):
    def __init__(self, model: EDM, config: OnnxConfig) -> None:
        super().__init__()
        self.model = model
        self.topk = config.topk
        self.refined: RefinedImage = config.refined

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """f32, f16, f8, fine of image 0, then of image 1."""
        features0, features1 = self._features(*maps[:4]), self._features(*maps[4:])
        coarse0, coarse1 = self.model.interact(features0, features1)
        cells = self._coarse(coarse0, coarse1)
        return self.model.locate(features0, features1, coarse0, coarse1, cells, self.refined)[:4]

    def _features(self, f32: Tensor, f16: Tensor, f8: Tensor, fine: Tensor) -> EDMFeatures:
        height, width = (STRIDE * side for side in f32.shape[-2:])
        return EDMFeatures(f32, f16, f8, fine, self.model.config.position_scale(height, width))

    def _coarse(self, coarse0: Tensor, coarse1: Tensor) -> CoarseMatches:
        """The dual softmax in few operations that every runtime has, at any threshold."""
        tokens0, tokens1 = (c.flatten(2).transpose(1, 2) for c in (coarse0, coarse1))
        s = similarity(tokens0, tokens1, self.model.config.temperature)
        row, column = (_logsumexp(s, dim) for dim in (2, 1))
        value, best = (2.0 * s - column).max(dim=2)
        probability = (value - row[:, :, 0]).exp()
        # Filled up with rows of no confidence, so that K is a constant for small images too.
        confidence, cell0 = F.pad(probability, (0, self.topk)).topk(self.topk, dim=1)
        cell0 = cell0.clamp(max=best.shape[1] - 1)
        return CoarseMatches(cell0, best.gather(1, cell0), confidence)


def _logsumexp(s: Tensor, dim: int) -> Tensor:
    # Spelt out: not every runtime shifts the exponentials of its own.
    top = s.amax(dim=dim, keepdim=True)
    return top + (s - top).exp().sum(dim=dim, keepdim=True).log()


# --- Export --------------------------------------------------------------------------------------


def export(
    model: EDM, weights: WeightsInfo, folder: Path, config: OnnxConfig | None = None
) -> OnnxSummary:
    """Writes the two graphs into `folder`, and compares them with PyTorch.

    Args:
        model: the network, in fp32.
        weights: where it comes from; noted in the graphs.
        folder: made if missing.
        config: what is fixed.

    Raises:
        EdmHlocError: a library is missing, the folder cannot be written, K is too large, or the
            graphs do not give PyTorch's matches.
    """
    config = config or OnnxConfig()
    if not 1 <= config.topk <= MOST_MATCHES:
        raise EdmHlocError(f"Top-k must be 1 to {MOST_MATCHES}, the most that TensorRT takes.")
    _import_onnxruntime()  # before minutes of work
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
    steps = (1, 2, 4, 4)  # cells of each map per cell at 1/32
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(paths, (encode, match), strict=True):
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError as error:
        raise EdmHlocError(
            f"Cannot write into {folder}: {error.strerror or error}. Choose another folder."
        ) from error
    return _compare(folded, paths, config)


def _convert(
    graph: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
    metadata: dict[str, str],
) -> bytes:
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
            raise _missing(error) from None
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    data: bytes = proto.SerializeToString()
    return data


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of libraries that are not needed, and of its own old calls."""
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
    """Runs the graphs and PyTorch on images with something to match, of sizes not traced."""
    graphs = OnnxEDM(paths[0].parent, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
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
            wanted = model.match(
                *plain, topk=config.topk, threshold=graphs.threshold, refined=config.refined
            )
            ours = [graphs.encode(image) for image in images]
            found = graphs.match(*ours, topk=config.topk, threshold=graphs.threshold)
        for a, b in zip(plain, ours, strict=True):
            for x, y in zip(a[:4], b[:4], strict=True):
                error = (x - y.float()).abs().max() / x.abs().max().clamp(min=1e-6)
                feature_error = max(feature_error, float(error))
        for i in range(batch):
            cells = [_cells(m, i) for m in (wanted, found)]
            both = cells[0].keys() & cells[1].keys()
            if cells[0] or cells[1]:
                in_common = min(in_common, len(both) / max(map(len, cells)))
            for key in both:
                difference = (cells[0][key] - cells[1][key]).abs().max()
                keypoint_error = max(keypoint_error, float(difference))
    # In half precision a match may leave the grid in the other image, and few are near a threshold.
    if feature_error > (3e-2 if config.half else 1e-3) or (
        not config.half and in_common < _SHARE_IN_COMMON
    ):
        raise EdmHlocError(
            f"The graphs in {paths[0].parent} differ from PyTorch: features by "
            f"{feature_error:.1e}, {100 * in_common:.1f} % of the matches in common."
        )
    return OnnxSummary(paths, feature_error, in_common, keypoint_error)


def _cells(matches: EDMMatches, pair: int) -> dict[tuple[int, ...], Tensor]:
    """Valid matches (x0, y0, x1, y1) of a pair in px, by the nearest cells."""
    points = torch.cat([matches.keypoints0[pair], matches.keypoints1[pair]], dim=1)
    points = points[matches.valid[pair]]
    cells = (points / CELL).round().long().tolist()
    return {tuple(cell): point for cell, point in zip(cells, points, strict=True)}


# --- Use -----------------------------------------------------------------------------------------


class OnnxEDM:
    """Runs exported graphs with ONNX Runtime; `encode` and `match` are used as those of `EDM`.

    On a CUDA device TensorRT runs them where ONNX Runtime has it, else CUDA; the engines that
    TensorRT builds for each range of sizes stay in the folder of the graphs.

    Attributes:
        topk, threshold, refined, weights_sha256: of the export.
        providers: of ONNX Runtime, in the order in which they are asked.

    Raises:
        EdmHlocError: ONNX Runtime is missing, cannot use the device, or a graph cannot be read.
    """

    def __init__(
        self, folder: Path, device: torch.device, providers: Sequence[str] | None = None
    ) -> None:
        runtime = _import_onnxruntime()
        self.device = device
        self.folder = folder
        self.providers = list(providers or _providers(runtime, device))
        self._runtime = runtime
        # TensorRT must know the precision beforehand.
        graph = self._load(ENCODE, ["CPUExecutionProvider"])
        half = graph.get_outputs()[0].type == "tensor(float16)"
        self.dtype = torch.float16 if half else torch.float32
        metadata = self._metadata = graph.get_modelmeta().custom_metadata_map
        if "topk" not in metadata:
            raise EdmHlocError(f"{folder / ENCODE} was not made by: edm-hloc export {folder}")
        self.config = config_from_json(metadata["edm_config"])
        self.topk = int(metadata["topk"])
        self.threshold = float(metadata["threshold"])
        self.refined = metadata["refined"]
        self.weights_sha256 = metadata["weights_sha256"]
        on_cpu = self.providers == ["CPUExecutionProvider"]
        self._sessions = {ENCODE: graph if on_cpu else self._load(ENCODE, self.providers)}

    def _session(self, name: str) -> Any:
        """The graph, made ready at its first use."""
        if name not in self._sessions:
            session = self._load(name, self.providers)
            if session.get_modelmeta().custom_metadata_map != self._metadata:
                raise EdmHlocError(
                    f"The graphs in {self.folder} were not made together: edm-hloc export "
                    f"{self.folder}"
                )
            self._sessions[name] = session
        return self._sessions[name]

    def _load(self, name: str, providers: list[str]) -> Any:
        """Made ready to be run by the first of the providers that can."""
        path = self.folder / name
        remedy = f"edm-hloc export {self.folder}"
        if not path.is_file():
            raise EdmHlocError(f"No such file: {path}. Make it with: {remedy}")
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait must not take the cores from those that decode photos.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        settings = [
            {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": str(self.folder),
                # a permission for the whole graph, not only for what is half in it
                "trt_fp16_enable": self.dtype == torch.float16,
            }
            if provider == TENSORRT
            else {}
            for provider in providers
        ]
        try:
            return self._runtime.InferenceSession(
                str(path), options, providers=providers, provider_options=settings
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise EdmHlocError(
                f"{path} cannot be used ({error}). Make it again: {remedy}"
            ) from error

    def encode(self, images: Tensor) -> EDMFeatures:
        """As `EDM.encode`."""
        batch, _, height, width = images.shape
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"sides must be multiples of {STRIDE}, got {tuple(images.shape)}")
        maps = [
            torch.empty(
                batch,
                self.config.dim,
                height // s,
                width // s,
                dtype=self.dtype,
                device=self.device,
            )
            for s in (32, 16, 8, 8)
        ]
        self._run(ENCODE, [images.to(self.device, torch.float32)], maps)
        scale = self.config.position_scale(height, width)
        return EDMFeatures(maps[0], maps[1], maps[2], maps[3], scale)

    def match(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        *,
        topk: int | None = None,
        threshold: float = 0.2,
        sigma_threshold: float = 1e-6,
        border_cells: int = 0,
        refined: RefinedImage | None = None,
    ) -> EDMMatches:
        """As `EDM.match`, with `topk` up to that of the export and `refined` equal to it.

        Raises:
            EdmHlocError: for others.
        """
        sides0, sides1 = (tuple(f.f8.shape[-2:]) for f in (features0, features1))
        if (topk or 0) > self.topk or (refined or self.refined) != self.refined:
            raise EdmHlocError(
                f"The graphs were made for at most {self.topk} matches refined in "
                f"{self.refined!r}: export them again for others."
            )
        limit = min(topk or default_topk(sides0[0] * sides0[1]), self.topk)
        batch = features0.f8.shape[0]
        inputs = [m.to(self.device, self.dtype) for f in (features0, features1) for m in f[:4]]
        outputs = [
            torch.empty(batch, self.topk, *rest, device=self.device)
            for rest in ((2,), (2,), (), ())
        ]
        self._run(MATCH, inputs, outputs)
        points0, points1, confidence, certainty = (o[:, :limit] for o in outputs)
        valid = torch.ones_like(confidence, dtype=torch.bool)
        found = EDMMatches(points0, points1, confidence, certainty, valid)
        return found.within(sides0, sides1, threshold, sigma_threshold, border_cells)

    def _run(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Runs a graph from tensors into tensors, without a copy."""
        session = self._session(name)
        binding = session.io_binding()
        kept = [tensor.contiguous() for tensor in inputs]  # alive until the graph has run
        for bind, sockets, tensors in (
            (binding.bind_input, session.get_inputs(), kept),
            (binding.bind_output, session.get_outputs(), outputs),
        ):
            for socket, tensor in zip(sockets, tensors, strict=True):
                bind(
                    name=socket.name,
                    device_type=self.device.type,
                    device_id=self.device.index or 0,
                    element_type=_NUMPY_TYPES[tensor.dtype],
                    shape=tuple(tensor.shape),
                    buffer_ptr=tensor.data_ptr(),
                )
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        session.run_with_iobinding(binding)


_NUMPY_TYPES = {torch.float32: "float32", torch.float16: "float16"}


def _providers(runtime: Any, device: torch.device) -> list[str]:
    available = runtime.get_available_providers()
    wanted = ["CPUExecutionProvider"]
    if device.type == "cuda":
        wanted = [TENSORRT, "CUDAExecutionProvider", *wanted]
        if "CUDAExecutionProvider" not in available:
            raise EdmHlocError(
                "This ONNX Runtime cannot use a GPU: pip install onnxruntime-gpu, or use "
                "--device cpu."
            )
    elif device.type != "cpu":
        raise EdmHlocError(f"ONNX graphs run on cpu or cuda, not on {device.type}.")
    return [provider for provider in wanted if provider in available]


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return onnxruntime


def _missing(error: ModuleNotFoundError) -> EdmHlocError:
    return EdmHlocError(f"ONNX graphs need {error.name}: pip install 'edm_hloc[onnx]'.")

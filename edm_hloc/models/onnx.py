"""EDM run by ONNX Runtime from two ONNX graphs, `encode` and `match` (made by onnx_export.py).

    encode.onnx   image (B, 1, H, W), greyscale in [0, 1] → f32, f16, f8, fine
    match.onnx    those of two images → keypoints0, keypoints1 (B, K, 2) in px,
                                        confidence, certainty (B, K)

B, H and W may change from call to call (H and W: multiples of 32). K is fixed by the export, as
TensorRT requires. Matches are in descending order of confidence; the caller applies the thresholds.
Keypoints are in the frame of the network (models/edm.py). The metadata of both graphs name the
weights and options they were exported with.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError, missing_library
from edm_hloc.models.types import (
    STRIDE,
    EDMFeatures,
    EDMMatches,
    MatchOptions,
    RefinedImage,
    default_topk,
)
from edm_hloc.models.weights_file import config_from_json

logger = logging.getLogger(__name__)

ENCODE, MATCH = "encode.onnx", "match.onnx"
CHECKSUMS = "sha256.json"  # of the two graphs by name; exports of older versions have none
TENSORRT = "TensorrtExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_CPU_ONLY = ["CPUExecutionProvider"]
_NO_GPU = (
    "This ONNX Runtime cannot use the GPU: pip install onnxruntime-gpu, with the versions of CUDA "
    "and cuDNN that it asks for, or use --device cpu."
)
_ELEMENT_TYPES = {torch.float32: "float32", torch.float16: "float16"}


class OnnxEDM:
    """Exported graphs with the interface of `EDM`: `encode` and `match`.

    On a CUDA device the graphs are run by TensorRT if ONNX Runtime has it, otherwise by CUDA. The
    engines that TensorRT builds for each range of image sizes are cached in folders beside the
    graph they are of, which its checksum names: TensorRT takes any graph of the same operations
    for the same, whatever its weights.

    Args:
        folder: with encode.onnx and match.onnx.
        device: of the inputs and outputs, CPU or CUDA.

    Attributes:
        providers: execution providers of ONNX Runtime that run the graphs, in order of preference.
        config: architecture of the exported network.
        dtype: of the features.
        topk, refined: K and the refined image, fixed by the export.
        threshold: that of the weights.
        weights_sha256: of the file of the weights.

    Raises:
        EdmHlocError: ONNX Runtime is missing or cannot use the device, or a graph cannot be read.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._runtime = import_onnxruntime()
        self.device = device
        self.folder = folder
        wanted = _providers(self._runtime, device)
        # The precision has to be known before a graph is loaded by TensorRT.
        graph = self._load(ENCODE, _CPU_ONLY)
        half = graph.get_outputs()[0].type == "tensor(float16)"
        self.dtype = torch.float16 if half else torch.float32
        metadata = self._metadata = graph.get_modelmeta().custom_metadata_map
        try:
            self.config = config_from_json(metadata["edm_config"])
            self.topk = int(metadata["topk"])
            self.threshold = float(metadata["threshold"])
            self.refined: RefinedImage = metadata["refined"]
            self.weights_sha256 = metadata["weights_sha256"]
        except (KeyError, TypeError, ValueError) as error:
            raise EdmHlocError(
                f"{folder / ENCODE} was not made by this version of: edm-hloc export "
                f"{quote(str(folder))}"
            ) from error
        self._sessions = {ENCODE: graph if wanted == _CPU_ONLY else self._load(ENCODE, wanted)}
        self.providers: list[str] = self._sessions[ENCODE].get_providers()
        if device.type == "cuda" and _CUDA not in self.providers:
            raise EdmHlocError(_NO_GPU)

    def _session(self, name: str) -> Any:
        """The session of a graph, which is loaded at its first use."""
        if name not in self._sessions:
            session = self._load(name, self.providers)
            if session.get_modelmeta().custom_metadata_map != self._metadata:
                raise EdmHlocError(
                    f"The graphs in {self.folder} were not made together: edm-hloc export "
                    f"{quote(str(self.folder))}"
                )
            self._sessions[name] = session
        return self._sessions[name]

    def _load(self, name: str, providers: list[str]) -> Any:
        """A session of a graph; its operations are run by the first provider that supports them."""
        path = self.folder / name
        remedy = f"edm-hloc export {quote(str(self.folder))}"
        if not path.is_file():
            raise EdmHlocError(f"No such file: {path}. Make it with: {remedy}")
        sha256 = _check_whole(path, remedy)
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        # Photos are encoded side by side, each on one core: with another number of threads the
        # results are rounded differently.
        options.intra_op_num_threads = 1
        try:
            return self._runtime.InferenceSession(
                str(path),
                options,
                providers=providers,
                provider_options=[self._settings(provider, sha256) for provider in providers],
                enable_fallback=False,  # which forgets the settings, and with them the device
            )
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            reason = " ".join(str(error).split())
            if TENSORRT in providers:  # its libraries are missing
                logger.info("%s is not run by TensorRT: %s", path, reason)
                return self._load(name, [p for p in providers if p != TENSORRT])
            raise EdmHlocError(
                f"{path} cannot be used ({reason}). Make it again: {remedy}"
            ) from error

    def _settings(self, provider: str, sha256: str) -> dict[str, Any]:
        """What an execution provider is told, for the graph with this checksum."""
        if provider not in (TENSORRT, _CUDA):
            return {}
        settings: dict[str, Any] = {"device_id": self.device.index or 0}
        if provider == TENSORRT:
            settings |= {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": str(self.folder / f"engines-{sha256[:16]}"),
                # allows fp16 everywhere in the graph, not only where it is stored so
                "trt_fp16_enable": self.dtype == torch.float16,
            }
        return settings

    def encode(self, images: Tensor) -> EDMFeatures:
        """See `EDM.encode`; images (B, 1, H, W) on any device.

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
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
        options: MatchOptions | None = None,
    ) -> EDMMatches:
        """See `EDM.match`; by default with the refined image of the export.

        Raises:
            EdmHlocError: `topk` exceeds that of the export, or `refined` differs from it.
        """
        options = options or MatchOptions(refined=self.refined)
        if (options.topk or 0) > self.topk or options.refined != self.refined:
            raise EdmHlocError(
                f"The graphs were made for at most {self.topk} matches refined in "
                f"{self.refined!r}: export them again for others."
            )
        grid0, grid1 = features0.f8.shape[-2:], features1.f8.shape[-2:]
        limit = min(options.topk or default_topk(grid0.numel()), self.topk)
        batch = features0.f8.shape[0]
        inputs = [m.to(self.device, self.dtype) for f in (features0, features1) for m in f[:4]]
        outputs = [
            torch.empty(batch, self.topk, *rest, device=self.device)
            for rest in ((2,), (2,), (), ())
        ]
        self._run(MATCH, inputs, outputs)
        points0, points1, confidence, certainty = (o[:, :limit] for o in outputs)
        valid = torch.ones_like(confidence, dtype=torch.bool)
        matches = EDMMatches(points0, points1, confidence, certainty, valid)
        return matches.validated(grid0, grid1, options)

    def _run(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Runs a graph on the memory of the tensors, without copies."""
        session = self._session(name)
        binding = session.io_binding()
        inputs = [tensor.contiguous() for tensor in inputs]  # must live until the graph has run
        for bind, nodes, tensors in (
            (binding.bind_input, session.get_inputs(), inputs),
            (binding.bind_output, session.get_outputs(), outputs),
        ):
            for node, tensor in zip(nodes, tensors, strict=True):
                bind(
                    name=node.name,
                    device_type=self.device.type,
                    device_id=self.device.index or 0,
                    element_type=_ELEMENT_TYPES[tensor.dtype],
                    shape=tuple(tensor.shape),
                    buffer_ptr=tensor.data_ptr(),
                )
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        session.run_with_iobinding(binding)


def _check_whole(path: Path, remedy: str) -> str:
    """SHA-256 of a graph.

    Raises:
        EdmHlocError: it is not the file that was exported, or cannot be read.
    """
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        checksums = path.parent / CHECKSUMS
        if not checksums.exists() or json.loads(checksums.read_text("utf-8"))[path.name] == sha256:
            return sha256
    except OSError as error:
        raise EdmHlocError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise EdmHlocError(
        f"{path} has changed since it was exported (see {CHECKSUMS} beside it), so it is damaged "
        f"or another file. Make it again: {remedy}"
    )


def _providers(runtime: Any, device: torch.device) -> list[str]:
    """The execution providers for a device that ONNX Runtime was built with, the fastest first."""
    available = runtime.get_available_providers()
    wanted = _CPU_ONLY
    if device.type == "cuda":
        wanted = [TENSORRT, _CUDA, *wanted]
        if _CUDA not in available:
            raise EdmHlocError(_NO_GPU)
    elif device.type != "cpu":
        raise EdmHlocError(f"ONNX graphs run on cpu or cuda, not on {device.type}.")
    return [provider for provider in wanted if provider in available]


def import_onnxruntime() -> Any:
    """The package onnxruntime.

    Raises:
        EdmHlocError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise missing_library("The use of ONNX graphs", error, "onnx") from None
    return onnxruntime

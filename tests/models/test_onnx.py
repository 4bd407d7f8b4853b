"""The exported graphs: PyTorch's matches at any size, batch and precision, and clear errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig
from edm_hloc.matching.engine import match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.models import onnx as onnx_graphs
from edm_hloc.models import weights
from edm_hloc.models.edm import EDM
from edm_hloc.models.onnx import CHECKSUMS, ENCODE, MATCH, TENSORRT, OnnxEDM
from edm_hloc.models.onnx_export import OnnxConfig, OnnxSummary, export
from edm_hloc.models.types import EDMFeatures, MatchOptions
from edm_hloc.models.weights_file import metadata_of

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights in a network whose positions depend on the image's size."""
    shipped, _ = weights.load("edm_s")
    config = dataclasses.replace(shipped.config, train_size=256)
    path = tmp_path_factory.mktemp("weights") / "scaled.safetensors"
    save_file(shipped.state_dict(), path, metadata_of(config, 0.2, "centre"))
    return path


@pytest.fixture(scope="module")
def model(trained: Path) -> EDM:
    return weights.load(trained)[0]


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OnnxSummary]:
    folder = tmp_path_factory.mktemp("onnx")
    return folder, export(*weights.load(trained), folder, OnnxConfig(topk=400))


def views(height: int, width: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping parts of random textures, (B, 1, height, width) and a narrower one."""
    generator = torch.Generator().manual_seed(height)
    texture = torch.rand(batch, 1, height // 4, width // 4 + 8, generator=generator)
    scene = interpolate(texture, (height, width + 32), mode="bicubic").clamp(0, 1)
    return scene[..., :width], scene[..., 32:width].contiguous()


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("shape", [(64, 96, 1), (192, 160, 1), (96, 224, 3)])
def test_same_matches_as_pytorch(
    shape: tuple[int, int, int], model: EDM, exported: tuple[Path, OnnxSummary]
) -> None:
    graphs = OnnxEDM(exported[0], CPU)
    images = views(*shape)
    ours, theirs = ([m.encode(image) for image in images] for m in (graphs, model))
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, EDMFeatures)
        assert a.position_scale == pytest.approx(b.position_scale)
        for x, y in zip(a[:4], b[:4], strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    options = MatchOptions(topk=300, threshold=0.1, border_cells=1)
    found, expected = graphs.match(*ours, options), model.match(*theirs, options)
    for i in range(shape[2]):
        sets = []
        for matches in (found, expected):
            columns = [matches.keypoints0, matches.keypoints1, matches.confidence[..., None]]
            rows = torch.cat([c[i] for c in columns], dim=1)[matches.valid[i]]
            sets.append(rows[rows[:, 1].argsort(stable=True)].double().numpy())
        assert len(sets[1]) > 10
        assert len(sets[0]) == len(sets[1])
        distance = np.abs(sets[0][:, None] - sets[1][None]).max(-1).min(1)
        assert (distance < 1e-3).mean() > 0.99


@pytest.mark.slow
def test_the_check_of_the_export(exported: tuple[Path, OnnxSummary]) -> None:
    _, summary = exported
    assert summary.feature_error < 1e-4
    assert summary.in_common > 0.98
    assert summary.keypoint_error < 0.05
    assert all(path.is_file() for path in summary.paths)


@pytest.mark.slow
def test_few_cells_and_limits(exported: tuple[Path, OnnxSummary]) -> None:
    """An image of fewer cells than K; and calls that the graphs were not made for."""
    graphs = OnnxEDM(exported[0], CPU)
    features = [graphs.encode(image) for image in views(32, 64)]
    found = graphs.match(*features, MatchOptions(topk=400, threshold=-1.0))
    assert found.keypoints0.shape == (1, 400, 2)
    assert (found.confidence[0, 32:] == 0).all()  # 4 × 8 cells
    assert graphs.match(*features).keypoints0.shape[1] == int(0.35 * 32)
    with pytest.raises(EdmHlocError, match="at most 400"):
        graphs.match(*features, MatchOptions(topk=401))
    with pytest.raises(EdmHlocError, match="'best'"):
        graphs.match(*features, MatchOptions(refined="image1"))
    with pytest.raises(ValueError, match="multiples of 32"):
        graphs.encode(torch.zeros(1, 1, 60, 64))
    with pytest.raises(EdmHlocError, match="mps"):
        OnnxEDM(exported[0], torch.device("mps"))


@pytest.mark.slow
def test_other_weights_and_damaged_graphs(
    exported: tuple[Path, OnnxSummary], tmp_path: Path
) -> None:
    with pytest.raises(EdmHlocError, match=r"No such file.*edm-hloc export"):
        EDMMatcher(EDMMatcherConfig("edm_s", device="cpu", onnx=tmp_path))
    for path in exported[1].paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / MATCH).write_bytes(b"no graph")
    graphs = OnnxEDM(tmp_path, CPU)  # `match` is read when it is needed
    features = [graphs.encode(image) for image in views(64, 96)]
    with pytest.raises(EdmHlocError, match=f"{MATCH} cannot be used") as caught:
        graphs.match(*features)
    assert "\n" not in str(caught.value)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.REGISTRY["edm_s"].path.read_bytes())
    for given in ("edm_s", copy):
        with pytest.raises(EdmHlocError, match=rf"other weights.* --weights {given}$"):
            EDMMatcher(EDMMatcherConfig(given, device="cpu", onnx=exported[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [ENCODE, MATCH])
def test_a_graph_with_a_bit_turned_is_refused(
    name: str, exported: tuple[Path, OnnxSummary], tmp_path: Path
) -> None:
    for path in exported[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 64  # among the weights, where ONNX Runtime notices nothing
    (tmp_path / name).write_bytes(data)

    def use() -> None:
        graphs = OnnxEDM(tmp_path, CPU)
        graphs.match(*[graphs.encode(image) for image in views(64, 96)])

    with pytest.raises(EdmHlocError, match=rf"{name} has changed since .*Make it again: edm-hloc "):
        use()
    (tmp_path / CHECKSUMS).write_text("[]")
    with pytest.raises(EdmHlocError, match="has changed since"):
        use()
    (tmp_path / CHECKSUMS).unlink()  # as in exports of older versions
    use()


def test_too_many_matches_for_tensorrt(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="3840"):
        export(*weights.load("edm_s"), tmp_path, OnnxConfig(topk=3841))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    scene = (views(128, 192)[0][0, 0].numpy() * 255).astype(np.uint8)
    for i in range(3):
        Image.fromarray(scene[:, 16 * i : 160 + 16 * i]).save(root / f"{i}.png")
    return root


PAIRS = [("0.png", "1.png"), ("0.png", "2.png"), ("1.png", "2.png")]


def shares_in_common(first: Path, second: Path) -> list[float]:
    with RawMatchReader(first) as a, RawMatchReader(second) as b:
        shares = []
        for pair in PAIRS:
            cells = [
                {
                    tuple(row)
                    for row in np.round(
                        np.hstack(list(r.read(*pair).arrays().values())[:2]), 1
                    ).tolist()
                }
                for r in (a, b)
            ]
            assert len(cells[0]) > 20
            shares.append(len(cells[0] & cells[1]) / max(map(len, cells)))
    return shares


@pytest.mark.slow
def test_matcher_encodes_with_the_graph(
    trained: Path, exported: tuple[Path, OnnxSummary], photos: Path, tmp_path: Path
) -> None:
    config = EDMMatcherConfig(trained, device="cpu")
    plain, graphs = EDMMatcher(config), EDMMatcher(dataclasses.replace(config, onnx=exported[0]))
    graphs.model.backbone.register_forward_hook(lambda *_: pytest.fail("PyTorch encoded"))
    assert plain.provenance == graphs.provenance
    match_pairs(photos, PAIRS, plain, tmp_path / "plain")
    match_pairs(photos, PAIRS, graphs, tmp_path / "graphs")
    assert min(shares_in_common(tmp_path / "plain", tmp_path / "graphs")) > 0.95


CUDA = "CUDAExecutionProvider"


class Runtime:
    """Sessions on the CPU that say they were made with what is `loadable`; `told` by graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loadable: Sequence[str]) -> None:
        self.told: dict[str, dict[str, dict[str, Any]]] = {}
        self.loadable = loadable
        session = onnxruntime.InferenceSession

        def make(path: str, options: object, *, providers: list[str], **settings: Any) -> Any:
            self.told[Path(path).name] = dict(
                zip(providers, settings["provider_options"], strict=True)
            )
            assert settings["enable_fallback"] is False
            if TENSORRT in providers and TENSORRT not in self.loadable:
                raise RuntimeError("Please install TensorRT libraries")
            made = session(path, options, providers=["CPUExecutionProvider"])
            made.get_providers = lambda: [p for p in providers if p in self.loadable]
            return made

        monkeypatch.setattr(onnxruntime, "InferenceSession", make)
        built_with = [TENSORRT, CUDA, "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: built_with)


def with_tensorrt_for_cpu(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(onnx_graphs, "_providers", lambda *_: TENSORRT_AND_CPU)
    return Runtime(monkeypatch, TENSORRT_AND_CPU)


TENSORRT_AND_CPU = [TENSORRT, "CPUExecutionProvider"]


@pytest.mark.slow
def test_matching_with_tensorrt_is_noted(
    trained: Path, exported: tuple[Path, OnnxSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K of the graphs may cut matches off."""
    with_tensorrt_for_cpu(monkeypatch)
    config = EDMMatcherConfig(trained, device="cpu")
    # the graphs refine as they were exported, in both directions
    graphs = EDMMatcher(dataclasses.replace(config, onnx=exported[0], plenty=10))
    assert graphs.provenance == {**EDMMatcher(config).provenance, "graphs_topk": 400}


@pytest.mark.slow
def test_what_onnx_runtime_was_built_with_is_not_what_runs(
    exported: tuple[Path, OnnxSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT is a part of every onnxruntime-gpu, but its libraries are not."""
    runtime = Runtime(monkeypatch, [CUDA, "CPUExecutionProvider"])
    graphs = OnnxEDM(exported[0], torch.device("cuda:2"))
    assert graphs.providers == [CUDA, "CPUExecutionProvider"]
    assert runtime.told[ENCODE][CUDA] == {"device_id": 2}
    runtime.loadable = ["CPUExecutionProvider"]  # nor are those of CUDA here
    with pytest.raises(EdmHlocError, match=r"cannot use the GPU: pip install .*--device cpu"):
        OnnxEDM(exported[0], torch.device("cuda"))


@pytest.mark.slow
def test_engines_of_tensorrt_are_of_the_device_and_the_graph(
    exported: tuple[Path, OnnxSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(monkeypatch, [TENSORRT, CUDA, "CPUExecutionProvider"])
    folders = []
    for weights_of_graph in (b"as exported", b"of another export"):
        for path in exported[1].paths:
            (tmp_path / path.name).write_bytes(path.read_bytes())
        with (tmp_path / ENCODE).open("ab") as file:  # an unknown field, which is skipped
            file.write(b"\xfa\x7f" + bytes([len(weights_of_graph)]) + weights_of_graph)
        graphs = OnnxEDM(tmp_path, torch.device("cuda:1"))
        assert graphs.providers[0] == TENSORRT
        settings = runtime.told[ENCODE]
        assert settings[CUDA]["device_id"] == settings[TENSORRT]["device_id"] == 1
        folders.append(Path(settings[TENSORRT]["trt_engine_cache_path"]))
    assert [folder.parent for folder in folders] == [tmp_path] * 2
    assert folders[0] != folders[1]


def half_is_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What TensorRT is told when the graphs are loaded."""
    runtime = with_tensorrt_for_cpu(monkeypatch)
    graphs = OnnxEDM(folder, CPU)
    graphs.match(*(graphs.encode(image) for image in views(64, 96)))
    return [runtime.told[name][TENSORRT]["trt_fp16_enable"] for name in (ENCODE, MATCH)]


@pytest.mark.slow
def test_full_precision_stays_so_with_tensorrt(
    exported: tuple[Path, OnnxSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert half_is_allowed(exported[0], monkeypatch) == [False, False]


@pytest.mark.slow
def test_half_precision_on_the_command_line(
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "graphs"
    assert main(["export", str(folder), "--weights", "edm_s", "--half", "--topk", "500"]) == 0
    assert "of the matches are the same" in capsys.readouterr().out
    graphs = OnnxEDM(folder, CPU)
    features = [graphs.encode(image) for image in views(96, 160)]
    assert features[0].f8.dtype == torch.float16
    assert graphs.match(*features).valid.sum() > 10
    config = EDMMatcherConfig("edm_s", device="cpu")
    half = EDMMatcher(dataclasses.replace(config, onnx=folder))
    match_pairs(photos, PAIRS, EDMMatcher(config), tmp_path / "plain")
    match_pairs(photos, PAIRS, half, tmp_path / "half")
    assert min(shares_in_common(tmp_path / "plain", tmp_path / "half")) > 0.8
    with pytest.raises(EdmHlocError, match="half_graphs"):
        match_pairs(photos, PAIRS, half, tmp_path / "plain")
    assert half_is_allowed(folder, monkeypatch) == [True, True]

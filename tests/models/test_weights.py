"""The registry: what is loaded, what is refused, and what the user reads."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import http.client
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edm_hloc.models import weights
from edm_hloc.models.edm import EDM
from edm_hloc.models.types import CONFIGS
from edm_hloc.models.weights import load
from edm_hloc.models.weights_file import (
    WeightsError,
    config_to_json,
    metadata_of,
    read_state,
    stored_config,
    stored_origin,
)
from tests.models.test_edm_golden import GOLDEN, reference_state


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("EDM_HLOC_CACHE", str(cache))
    monkeypatch.delenv(weights.ENVIRONMENT_VARIABLE, raising=False)
    return cache


@pytest.fixture(scope="module")
def small_state() -> dict[str, torch.Tensor]:
    return reference_state("edm_s")


def official_checkpoint(path: Path, variant: str = "edm") -> Path:
    """A checkpoint as the authors' training script leaves it: prefix, wrapper, other objects."""
    state = {f"matcher.{key}": value for key, value in reference_state(variant).items()}
    everything = {"epoch": 29, "state_dict": state, "hyper_parameters": argparse.Namespace(lr=1)}
    torch.save(everything, path)
    return path


def pretend_official(monkeypatch: pytest.MonkeyPatch, path: Path, url: str) -> None:
    entry = dataclasses.replace(
        weights.REGISTRY["edm-outdoor"], sha256=weights.file_sha256(path), urls=(url,)
    )
    monkeypatch.setitem(weights.REGISTRY, "edm-outdoor", entry)


@pytest.mark.parametrize("variant", ["edm", "edm_s"])
def test_names_and_shapes_of_the_official_checkpoint(variant: str) -> None:
    expected = {
        k: tuple(s) for k, s in json.loads((GOLDEN / f"{variant}_state.json").read_text()).items()
    }
    assert {k: tuple(v.shape) for k, v in EDM(CONFIGS[variant]).state_dict().items()} == expected


def test_official_format_loads_strictly(tmp_path: Path) -> None:
    model, info = load(official_checkpoint(tmp_path / "mine.ckpt"))
    assert info.architecture == "edm"
    assert model.config.train_size == 832
    assert info.threshold == 0.05
    assert not model.training
    assert info.sha256 == hashlib.sha256((tmp_path / "mine.ckpt").read_bytes()).hexdigest()
    for key, value in reference_state("edm").items():
        torch.testing.assert_close(model.state_dict()[key], value)


def test_safetensors_in_half_precision(tmp_path: Path, small_state: dict) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in small_state.items()}
    config = dataclasses.replace(CONFIGS["edm_s"], train_size=640)
    save_file(
        half,
        tmp_path / "own.safetensors",
        metadata_of(config, threshold=0.1, origin="centre"),
    )
    model, info = load(tmp_path / "own.safetensors")
    assert model.config == config
    assert (info.threshold, info.argument) == (0.1, str(tmp_path / "own.safetensors"))
    assert next(model.parameters()).dtype == torch.float32
    torch.testing.assert_close(
        model.backbone.conv1.weight, small_state["backbone.conv1.weight"], atol=1e-3, rtol=1e-3
    )


def test_the_shipped_file_is_the_registered_one() -> None:
    """Whoever ships other weights registers their checksum: `weights verify` compares it."""
    assert weights.verify("edm_s") == weights.REGISTRY["edm_s"].sha256
    assert load("edm_s")[1].argument == "edm_s"


def test_each_file_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    sha256 = weights.file_sha256
    monkeypatch.setattr(weights, "file_sha256", lambda path: (hashed.append(path), sha256(path))[1])
    shipped = weights.REGISTRY["edm_s"].path
    for given in ("edm_s", None, shipped):
        assert load(given)[1].sha256 == weights.weights_sha256(given)
        assert hashed == [shipped] * 2
        hashed.clear()


def test_a_shipped_file_that_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "changed.safetensors"
    changed.write_bytes(weights.REGISTRY["edm_s"].path.read_bytes() + b" ")
    entry = dataclasses.replace(weights.REGISTRY["edm_s"], filename=str(changed))
    monkeypatch.setitem(weights.REGISTRY, "edm_s", entry)
    for use in (weights.verify, weights.pull, load, weights.weights_sha256):
        with pytest.raises(WeightsError, match=r"changed\.safetensors is not .*Reinstall edm_hloc"):
            use("edm_s")


def test_the_shipped_file_says_which_network_it_is() -> None:
    path = weights.REGISTRY["edm_s"].path
    assert stored_config(read_state(path)[1], path) == CONFIGS["edm_s"]


def test_origin_of_the_registry_s_entries() -> None:
    assert {name: entry.origin for name, entry in weights.REGISTRY.items()} == {
        "edm-outdoor": "corner",
        "edm_s": "centre",
    }
    assert load("edm_s")[1].origin == "centre"
    path = weights.REGISTRY["edm_s"].path
    assert stored_origin(read_state(path)[1], path) == "centre"
    assert load(path)[1].origin == "centre"


@pytest.mark.parametrize(
    ("metadata", "origin"),
    [
        ({"origin": "corner"}, "corner"),
        ({"origin": "centre"}, "centre"),
        ({"origin": "corner", "edm_hloc": "0.2.0"}, "corner"),
        ({"edm_hloc": "0.1.0", "training": "{}"}, "centre"),  # of before the key `origin`
    ],
)
def test_origin_by_the_metadata(
    tmp_path: Path,
    small_state: dict,
    caplog: pytest.LogCaptureFixture,
    metadata: dict[str, str],
    origin: str,
) -> None:
    save_file(small_state, tmp_path / "w.safetensors", metadata)
    assert load(tmp_path / "w.safetensors")[1].origin == origin
    assert not caplog.records


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_origin_of_unknown_weights(
    tmp_path: Path, small_state: dict, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    path = tmp_path / f"w.{suffix}"
    torch.save(small_state, path) if suffix == "ckpt" else save_file(small_state, path)
    assert load(path)[1].origin == "corner"
    assert "outer corner of the top-left pixel is assumed" in caplog.text
    assert "{'origin': 'centre'}" in caplog.text


def test_origin_by_the_checksum(
    tmp_path: Path,
    small_state: dict,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy of a registered file under any name has the origin of its entry."""
    path = tmp_path / "copy.ckpt"
    torch.save(small_state, path)
    for origin in ("centre", "corner"):
        entry = dataclasses.replace(
            weights.REGISTRY["edm-outdoor"], sha256=weights.file_sha256(path), origin=origin
        )
        monkeypatch.setitem(weights.REGISTRY, "edm-outdoor", entry)
        assert load(path)[1].origin == origin
    assert not caplog.records


def test_an_origin_that_does_not_exist(tmp_path: Path, small_state: dict) -> None:
    save_file(small_state, tmp_path / "w.safetensors", {"origin": "center"})
    with pytest.raises(WeightsError, match=r"w\.safetensors has the origin 'center'"):
        load(tmp_path / "w.safetensors")


def test_a_network_that_is_not_known(tmp_path: Path, small_state: dict) -> None:
    known = json.loads(config_to_json(CONFIGS["edm_s"]))
    never = ({"heads": 3}, {"heads": 0}, {"temperature": 0}, {"train_size": "x"}, {"widths": [16]})
    for config in (
        "no JSON",
        "{}",
        '{"widths": [1], "layers": [], "of_tomorrow": 1}',
        *(json.dumps({**known, **wrong}) for wrong in never),
    ):
        save_file(small_state, tmp_path / "w.safetensors", {"config": config})
        with pytest.raises(WeightsError, match=r"w\.safetensors belongs to another network"):
            load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("threshold", ["high", "nan", "-1", "1", "inf", ""])
def test_a_threshold_that_cannot_be(
    threshold: str, tmp_path: Path, small_state: dict[str, torch.Tensor]
) -> None:
    save_file(small_state, tmp_path / "w.safetensors", {"threshold": threshold})
    with pytest.raises(
        WeightsError, match=rf"w\.safetensors has the threshold '{threshold}' .* save the weights"
    ):
        load(tmp_path / "w.safetensors")


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "was-here"),)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError, match=r"evil\.ckpt.*would run code"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "was-here").exists()


def test_a_file_that_is_not_weights(tmp_path: Path) -> None:
    page = tmp_path / "page.ckpt"
    page.write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    with pytest.raises(WeightsError, match=r"page\.ckpt is a web page"):
        load(page)
    for suffix in ("ckpt", "safetensors"):
        broken = tmp_path / f"broken.{suffix}"
        broken.write_bytes(b"\x00\x01\x02 nothing of use")
        with pytest.raises(WeightsError, match=rf"broken\.{suffix}.*download it again"):
            load(broken)
        broken.write_bytes(b"")
        with pytest.raises(WeightsError, match=rf"broken\.{suffix} \(0 bytes\)"):
            load(broken)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_truncated_download(tmp_path: Path, small_state: dict, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    torch.save(small_state, path) if suffix == "ckpt" else save_file(small_state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=rf"cut\.{suffix}.*download it again"):
        load(path)


def test_wrong_network(tmp_path: Path, small_state: dict) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth holds no EDM network"):
        load(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth holds no state dict"):
        load(tmp_path / "list.pth")
    for change, message in (
        ({k: v for k, v in small_state.items() if "x_head" not in k}, "lacks"),
        (small_state | {"neck.extra": torch.zeros(1)}, r"unknown 1 of .*neck\.extra"),
        (small_state | {"neck.fc8.c.weight": torch.zeros(2, 2, 1, 1)}, "misshapen"),
    ):
        torch.save(change, tmp_path / "near.pth")
        with pytest.raises(WeightsError, match=message):
            load(tmp_path / "near.pth")


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights file .*gone\.ckpt"):
        load(tmp_path / "gone.ckpt")
    with pytest.raises(WeightsError, match="known names: edm-outdoor, edm_s"):
        load("edm-indor")


def test_download_checks_and_leaves_no_half_file(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = official_checkpoint(tmp_path / "source.ckpt")
    pretend_official(monkeypatch, source, source.as_uri())
    model, info = load("edm-outdoor")
    assert info.path == empty_cache / "edm_outdoor.ckpt"
    assert info.reason == "asked for by name"
    assert sum(p.numel() for p in model.parameters()) > 10e6
    assert [p.name for p in empty_cache.iterdir()] == ["edm_outdoor.ckpt"]

    info.path.write_bytes(b"tampered")
    with pytest.raises(WeightsError, match=r"edm_outdoor\.ckpt is not the file"):
        load("edm-outdoor")

    info.path.unlink()
    other = tmp_path / "other.html"
    other.write_text("<html>please log in</html>")
    entry = dataclasses.replace(weights.REGISTRY["edm-outdoor"], urls=(other.as_uri(),))
    monkeypatch.setitem(weights.REGISTRY, "edm-outdoor", entry)
    with pytest.raises(WeightsError, match="another file than expected"):
        load("edm-outdoor")
    assert list(empty_cache.iterdir()) == []


def test_no_network(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        weights.REGISTRY,
        "edm-outdoor",
        dataclasses.replace(weights.REGISTRY["edm-outdoor"], urls=("http://127.0.0.1:9/none",)),
    )
    with pytest.raises(WeightsError, match=r"On a computer with network.*edm_outdoor\.ckpt"):
        load("edm-outdoor")
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http.client.IncompleteRead(b"x", 10), "1 bytes read, 10 more expected"),
        (http.client.HTTPException(), "HTTPException"),
        (ConnectionResetError("reset by peer"), "reset by peer"),
    ],
)
def test_a_download_that_breaks_off(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", break_off)
    path = tmp_path / "mine.ckpt"
    problems = weights.download(["http://one/x", "http://two/x"], path, None)
    assert problems.count(said) == 2
    with pytest.raises(WeightsError, match=rf"edm-outdoor.*{said}.*On a computer with network"):
        load("edm-outdoor")


def test_default_is_the_best_present(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, small_state: dict
) -> None:
    packaged = dataclasses.replace(
        weights.REGISTRY["edm_s"], filename=str(tmp_path / "packaged.safetensors")
    )
    monkeypatch.setitem(weights.REGISTRY, "edm_s", packaged)
    with pytest.raises(WeightsError, match="edm-hloc weights pull edm-outdoor"):
        load()
    save_file(small_state, tmp_path / "packaged.safetensors")
    sha256 = weights.file_sha256(tmp_path / "packaged.safetensors")
    monkeypatch.setitem(weights.REGISTRY, "edm_s", dataclasses.replace(packaged, sha256=sha256))
    assert load()[1].name == "edm_s"
    empty_cache.mkdir()
    pretend_official(monkeypatch, official_checkpoint(empty_cache / "edm_outdoor.ckpt"), "http://x")
    _, info = load()
    assert info.name == "edm-outdoor"
    assert "best weights on this computer" in str(info)
    monkeypatch.setenv(weights.ENVIRONMENT_VARIABLE, str(tmp_path / "packaged.safetensors"))
    assert "EDM_HLOC_WEIGHTS" in load()[1].reason


def test_weights_that_unpack_to_far_more_than_their_size_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"matcher.a": torch.zeros(8)}}, tmp_path / "whole.ckpt")
    path = tmp_path / "bomb.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "whole.ckpt") as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, bytes(50 << 20) if name.endswith("data/0") else whole.read(name))
    with pytest.raises(WeightsError, match=r"bomb\.ckpt .*unpacks to 52,4.* bytes, which weights"):
        read_state(path)
    assert list(read_state(tmp_path / "whole.ckpt")[0]) == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("count", [1, None])
def test_weights_with_numbers_that_are_not_finite_are_refused(
    value: float,
    suffix: str,
    count: int | None,
    small_state: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    name = "backbone.conv1.weight"
    state = {key: tensor.clone() for key, tensor in small_state.items()}
    state[name].view(-1)[:count] = value
    path = tmp_path / f"mine.{suffix}"
    if suffix == "ckpt":
        torch.save({"state_dict": {f"matcher.{k}": v for k, v in state.items()}}, path)
    else:
        save_file(state, path)
    size = state[name].numel()
    with pytest.raises(WeightsError, match=rf"{path} are damaged.*: {count or size} of {size} num"):
        load(path)
    with pytest.raises(WeightsError, match=rf"in {name} are NaN or infinite, in 1 of {len(state)}"):
        read_state(path)


def test_wrappers_of_other_trainings_are_taken_off(tmp_path: Path, small_state: dict) -> None:
    matcher = {f"matcher.{k}": v for k, v in small_state.items()}
    wrapped = {
        "parallel": {f"module.{k}": v for k, v in small_state.items()},
        "lightning": {"state_dict": {f"module.{k}": v for k, v in matcher.items()}},
        "named": {"model": small_state, "epoch": 3},
    }
    for name, content in wrapped.items():
        torch.save(content, tmp_path / f"{name}.pth")
        model, _ = load(tmp_path / f"{name}.pth")
        assert model.state_dict().keys() == small_state.keys()
    run = {"config": "{}", "progress": {}, "model": small_state, "average": small_state}
    torch.save(run, tmp_path / "checkpoint.pt")
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        load(tmp_path / "checkpoint.pt")

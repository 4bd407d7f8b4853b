"""Folders that cannot be made and values that make no sense: one sentence before any work."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.training.config import PRESETS, load_config
from edm_hloc.training.trainer import run_training


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("the work has begun")

    for name in (
        "edm_hloc.cli.options.make_matcher",
        "edm_hloc.models.weights.load",
        "edm_hloc.synthetic.aachen_miniature.make_aachen",
        "edm_hloc.synthetic.inloc_miniature.make_inloc",
        "edm_hloc.training.trainer.build_synthetic",
        "edm_hloc.evaluation.pose_pairs.read_pose_pairs",
        "edm_hloc.evaluation.wide_sets.read_wide_set",
    ):
        monkeypatch.setattr(name, work)


def _exit_code(arguments: list[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as error:  # of argparse
        return error.code


WITH_FOLDERS = [
    ["demo", "OUT"],
    ["synth", "aachen", "OUT"],
    ["synth", "inloc", "OUT"],
    ["export", "OUT"],
    ["evaluate", "pose", "TRUTH", "IMAGES", "OUT"],
    ["evaluate", "homography", "DIR", "OUT"],
    ["ablate", "OUT"],
    ["train", "--minutes", "1", "--out", "OUT"],
]


@pytest.mark.parametrize("words", WITH_FOLDERS, ids=" ".join)
def test_folders_that_cannot_be_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/none"), Path("a\0b")):
        assert main([str(bad) if word == "OUT" else word for word in words]) == 1
        said = capsys.readouterr().err.strip()
        assert said.startswith("edm-hloc: Cannot make the folder")
        assert "Choose another output folder" in said
        assert len(said.splitlines()) == 1
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    try:
        assert main(["export", str(tmp_path)]) == 1
    finally:
        tmp_path.chmod(0o700)
    assert "choose another output folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "demo OUT --views 0",
        "match A B --lines -1",
        "demo OUT --views -3",
        "demo OUT --views 100000000",
        "demo OUT --seed -1",
        "synth aachen OUT --size 32000 32000",
        "synth inloc OUT --size 640 32",
        "synth aachen OUT --queries 1",
        "synth inloc OUT --views -1",
        "synth aachen OUT --views nan",
        "export OUT --topk 0",
        "export OUT --topk 5000",
        "evaluate pose T I OUT --max-rotation nan",
        "evaluate pose T I OUT --max-rotation -1",
        "evaluate pose T I OUT --threshold nan",
        "evaluate pose T I OUT --cache inf",
        "train --out OUT --minutes nan",
        "train --out OUT --minutes inf",
        "train --out OUT --minutes -1",
        "train --out OUT --steps 0",
        "train --out OUT --minutes 1 --threads 0",
        "train --out OUT --minutes 1 --threads -2",
        "train --out OUT --minutes 1 --seed -1",
        "train --out OUT --minutes 1 --set learning_rate=NaN",
        "train --out OUT --minutes 1 --set ema=2",
        "train --out OUT --minutes 1 --set seed=1e400",
        'train --out OUT --minutes 1 --set stages=[{"until":1,"sides":[32000,32000],"pixels":9}]',
        'train --out OUT --minutes 1 --set stages=[{"until":1,"sides":["a",96],"pixels":9}]',
        'train --out OUT --minutes 1 --set stages=[{"until":1,"sides":[96,128],"pixels":-9}]',
        "train --out OUT --minutes 1 --set stages=7",
        "train --out OUT --minutes 1 --set validation_sets=[[4,32000,32000]]",
        "train --out OUT --minutes 1 --set real=[[]]",
        "train --out OUT --minutes 1 --set difficulty=[0,NaN]",
    ],
)
def test_values_that_make_no_sense(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tmp_path / "out") if word == "OUT" else word for word in words.split()]
    assert _exit_code(arguments) in (1, 2)
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    assert len(said.splitlines()[-1]) < 300
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "localize M I Q OUT --min-inliers -5",
        "localize M I Q OUT --min-inliers 3",
        "localize M I Q OUT --ransac inf",
        "aachen D OUT --min-inliers 0",
        "inloc D OUT --min-matches -1",
    ],
)
def test_thresholds_of_poses_that_make_no_sense(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _exit_code(words.split()) == 2
    *_, option, value = words.split()
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: must be at least" in said
    assert said.endswith(f"not {value}")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"[1]", b'{"preset": []}'])
def test_files_of_settings_that_are_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(EdmHlocError, match=r"settings\.json"):
        load_config(str(path))
    with pytest.raises(EdmHlocError, match="Cannot read"):
        load_config(str(tmp_path))


class _Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("kind", ["malicious", "cut", "text", "list", "names", "folder", "shapes"])
def test_checkpoints_that_are_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("edm_s", {"steps": 1, "minutes": None, "validations": 0})
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    content = {
        "malicious": {"config": config.to_json(), "model": _Malicious()},
        "list": [1, 2],
        "names": {"config": config.to_json()},
        "shapes": {
            "config": config.to_json(),
            "progress": {"step": 1},
            "model": {"a": torch.zeros(2)},
            "average": {},
            "optimizer": {},
        },
    }
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    else:
        torch.save(content.get(kind, content["names"]), path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(EdmHlocError) as caught:
        run_training(config, path.parent, accelerator="cpu", devices=1)
    said = str(caught.value)
    assert said.startswith(f"{path} is damaged or no checkpoint of edm-hloc train")
    assert "weights_only" not in said
    assert "torch" not in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "ran").exists()
    assert path.exists()


def test_all_presets_are_in_their_ranges() -> None:
    assert all(json.loads(config.to_json()) for config in PRESETS.values())


WITH_RAY = [
    ["reconstruct", "IMAGES", "OUT"],
    ["match-pairs", "IMAGES", "PAIRS", "OUT"],
    ["inloc", "DATA", "OUT"],
    ["match-shard", "OUT", "--all"],
]


@pytest.mark.parametrize("words", WITH_RAY, ids=" ".join)
def test_ray_that_is_not_installed(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is said at once, and also where the pairs are too few for workers."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*words, "--ray", "auto"]) == 1
    assert "--ray needs ray: pip install 'edm_hloc[ray]'" in capsys.readouterr().err

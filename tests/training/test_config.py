"""Configuration of training runs: presets, errors, schedules."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.models.types import CONFIGS
from edm_hloc.training import command, trainer
from edm_hloc.training.config import PRESETS, RealData, TrainConfig, load_config
from edm_hloc.training.trainer import run_training
from tests.training.tools import (
    TINY,
)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(PRESETS[name].to_json())
    assert load_config(str(path)) == PRESETS[name]


def test_config_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="neither a file nor a preset"):
        load_config(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(EdmHlocError, match="not JSON"):
        load_config(str(tmp_path / "bad.json"))
    with pytest.raises(EdmHlocError, match="learningrate"):
        load_config("edm_s", {"learningrate": 1})
    with pytest.raises(EdmHlocError, match="either minutes or steps"):
        run_training(TrainConfig(model=TINY), tmp_path / "run")
    for length in ({"steps": 0}, {"minutes": -1.0}):
        with pytest.raises(EdmHlocError, match="longer than 0"):
            load_config("edm_s", length)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("learning_rate", "abc", "float"),
        ("learning_rate", True, "float"),
        ("seed", 0.5, "int"),
        ("minutes", "long", "float or None"),
        ("textures", 3, "str or None"),
        ("difficulty", [0.1], "tuple[float, float]"),
        ("difficulty", ["a", "b"], "tuple[float, float]"),
        ("schedule", "linear", "'cosine' or 'paper'"),
    ],
)
def test_settings_of_another_type_are_named(name: str, value: object, kind: str) -> None:
    with pytest.raises(EdmHlocError, match=rf"{name} is .*: it must be {re.escape(kind)}\.$"):
        load_config("edm_s", {name: value})


def test_what_lightning_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="cannot train with accelerator 'foo'"):
        run_training(TrainConfig(model=TINY, steps=1), tmp_path / "run", accelerator="foo")
    assert not (tmp_path / "run").exists()


def test_a_start_from_another_file_is_named(tmp_path: Path) -> None:
    torch.save({"other": 1}, tmp_path / "other.pt")
    (tmp_path / "text").write_text("root:x:0:0:root:/root:/bin/bash\n" * 20)
    for name in ("other.pt", "text"):
        initial = str(tmp_path / name)
        config = TrainConfig(model=TINY, steps=1, initial=initial)
        said = f"from {initial}: .*(holds no EDM network|cannot be read)"
        with pytest.raises(EdmHlocError, match=said):
            run_training(config, tmp_path / "run", accelerator="cpu")


@pytest.mark.parametrize("name", PRESETS)
def test_batch_shapes_follow_the_stages(name: str) -> None:
    config = PRESETS[name]
    rng = np.random.default_rng(0)
    for progress in np.linspace(0, 1, 30):
        pairs, height, width = config.batch_shape(float(progress), rng)
        assert height % 32 == 0
        assert width % 32 == 0
        stage = next((s for s in config.stages if progress < s.until), config.stages[-1])
        assert stage.sides[0] - 32 <= math.sqrt(height * width) <= stage.sides[1] + 32
        assert pairs >= 2
        assert pairs * height * width <= max(1.2 * stage.pixels, 2 * height * width)


def test_position_scales_reach_the_largest_images() -> None:
    rng = np.random.default_rng(0)
    scales = [TrainConfig().draw_position_scale(256, rng) for _ in range(400)]
    assert 0.4 < np.mean([s == 1.0 for s in scales]) < 0.6
    assert min(scales) >= 1.0
    assert 3.5 < max(scales) <= 4.0


def test_schedules() -> None:
    cosine = TrainConfig(learning_rate=1.0, warmup=0.1)
    assert [cosine.learning_rate_at(p) for p in (0.0, 0.05, 0.1)] == pytest.approx([0, 0.5, 1.0])
    assert cosine.learning_rate_at(0.55) == pytest.approx(0.5)
    assert cosine.learning_rate_at(1.0) == pytest.approx(0.0)
    assert cosine.learning_rate_at(1.01) == pytest.approx(0.0)
    paper = dataclasses.replace(PRESETS["edm_paper"], learning_rate=2e-3)
    epochs = (1.5, 3, 7.9, 8.1, 12.1, 16.1, 20.1, 24.1, 29.9)
    expected = [1e-3, 2e-3, 2e-3, 1e-3, 5e-4, 2.5e-4, 1.25e-4, 6.25e-5, 6.25e-5]
    assert [paper.learning_rate_at(e / 30) for e in epochs] == pytest.approx(expected)


def test_settings_to_give_away_name_no_folders() -> None:
    real = RealData("colmap", "/home/me/photos", "/home/me/model", share=0.5)
    config = TrainConfig(
        textures="/home/me/textures",
        initial="/home/me/run/checkpoint.pt",
        real=(real,),
        validation_images="/home/me/photos",
        validation_pairs="/home/me/pairs.txt",
    )
    given = config.without_folders()
    assert (given.textures, given.initial) == ("textures", "checkpoint.pt")
    assert (given.real[0].root, given.real[0].index) == ("photos", "model")
    assert (given.validation_images, given.validation_pairs) == ("photos", "pairs.txt")
    assert "/home/me" not in given.to_json()
    assert TrainConfig().without_folders() == TrainConfig()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": ["self", "corss"]}, "layers is"),
        ({"layers": []}, "layers"),
        ({"injection": "sumed"}, "injection is 'sumed'"),
        ({"bidirectional": "false"}, "bidirectional is 'false': it must be bool"),
        ({"widths": [8, 8, 16, 16]}, "widths is"),
        ({"widths": [8, 8, 16, 16, 18], "heads": 2}, "multiple of"),
        ({"widths": [0, 8, 16, 16, 16]}, "widths must be above 0"),
        ({"heads": 3}, "multiple of"),
        ({"bins": 0}, "bins must be above 0"),
        ({"attention_scale": float("nan")}, "attention_scale must be above 0"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"train_size": 0}, "train_size must be above 0"),
    ],
)
def test_networks_that_do_not_exist_are_named(changes: dict, said: str) -> None:
    with pytest.raises(EdmHlocError, match=said):
        load_config("edm_s", {"model": changes})


def test_settings_of_the_network_are_added_to_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model": {"widths": [8, 8, 16, 16, 16], "heads": 2}}')
    config = load_config(str(path), {"model": {"bins": 8}})
    assert config.model == dataclasses.replace(TINY, bins=8)
    path.write_text('{"model": "edm"}')
    config = load_config(str(path), {"model": {"bins": 8}})
    assert config.model == dataclasses.replace(CONFIGS["edm"], bins=8)


def test_settings_of_the_network_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[TrainConfig] = []
    monkeypatch.setattr(trainer, "run_training", lambda config, *_, **__: seen.append(config))
    settings = ["--set", 'model={"bins": 8}', "--set", 'model={"heads": 2}']
    command.main(["edm_s", "--steps", "1", "--out", str(tmp_path), *settings])
    assert seen[0].model == dataclasses.replace(CONFIGS["edm_s"], bins=8, heads=2)

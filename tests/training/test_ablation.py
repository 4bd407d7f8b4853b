"""Ablations: what each variant is, that all can be trained and loaded, and the table."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.models import weights
from edm_hloc.models.edm import EDM
from edm_hloc.models.flow import RealNVP
from edm_hloc.models.types import CONFIGS
from edm_hloc.models.weights_file import config_from_json
from edm_hloc.training import trainer
from edm_hloc.training.ablation import (
    FINE_VARIANTS,
    VARIANTS,
    ablation_base,
    ablation_table,
    run_ablation,
    variant_config,
)
from edm_hloc.training.checkpoint import read_checkpoint
from edm_hloc.training.config import PRESETS, Stage, TrainConfig
from edm_hloc.training.losses import residual_log_likelihood
from tests.training.tools import TINY

BASE = dataclasses.replace(PRESETS["edm_s"], steps=1)
SHORT = dataclasses.replace(
    BASE, stages=(Stage(1.0, (64, 64), 2 * 64 * 64),), validation_sets=((2, 64, 96),), validations=1
)


def test_variants_are_what_they_say() -> None:
    configs = {name: variant_config(name, BASE, 3) for name in VARIANTS}
    full = configs["full"]
    assert full == dataclasses.replace(BASE, seed=3)
    assert all(config != full for name, config in configs.items() if name != "full")
    sizes = {
        name: sum(p.numel() for p in EDM(config.model).parameters())
        for name, config in configs.items()
    }
    assert sizes["narrow"] < sizes["layers-1"] < sizes["full"] < sizes["layers-3"] < sizes["wide"]
    assert sizes["summed"] < sizes["full"]
    assert sizes["plain-attention"] == sizes["full"]
    with pytest.raises(EdmHlocError, match=r"no variant 'none'.*layers-1"):
        variant_config("none", BASE, 0)


def test_plain_and_normalised_attention() -> None:
    """Plain attention sees the length of queries and keys, normalised attention does not."""
    features = torch.randn(1, 128, 2, 3), torch.randn(1, 128, 2, 3)
    for normalised in (True, False):
        config = dataclasses.replace(CONFIGS["edm_s"], normalised_attention=normalised)
        torch.manual_seed(0)
        attention = EDM(config).neck.loftr_32
        before = attention.interact(*features, ((1.0, 1.0), (1.0, 1.0)))[0]
        with torch.no_grad():
            for layer in attention.layers:
                layer.q_proj.weight *= 3
        after = attention.interact(*features, ((1.0, 1.0), (1.0, 1.0)))[0]
        assert torch.allclose(before, after, atol=1e-5) == normalised


def test_plain_errors_in_closed_form() -> None:
    offset, target = torch.tensor([[0.1, -0.2], [0.3, 0.0]]), torch.zeros(2, 2)
    sigma = torch.rand(2, 2)
    l1 = residual_log_likelihood(offset, sigma, target, RealNVP(), "l1")
    l2 = residual_log_likelihood(offset, sigma, target, RealNVP(), "l2")
    assert l1.item() == pytest.approx(0.6 / 4)
    assert l2.item() == pytest.approx(0.14 / 4)
    with pytest.raises(EdmHlocError, match="no σ"):
        TrainConfig(residual="l2", steps=1)


def test_older_files_of_a_network_can_be_read(tmp_path: Path) -> None:
    """Files without the younger settings of the network: they have their defaults."""
    old = dataclasses.asdict(TINY)
    for name in ("normalised_attention", "injection"):
        del old[name]
    assert config_from_json(json.dumps(old)) == TINY
    config = dataclasses.replace(SHORT, model=TINY)
    content = json.loads(config.to_json())
    content["model"] = old
    torch.save({"config": json.dumps(content)}, tmp_path / "checkpoint.pt")
    assert read_checkpoint(tmp_path / "checkpoint.pt", config) is not None
    plain = dataclasses.replace(config, model=dataclasses.replace(TINY, injection="summed"))
    with pytest.raises(EdmHlocError, match="other settings"):
        read_checkpoint(tmp_path / "checkpoint.pt", plain)


def test_variants_of_the_fine_stage() -> None:
    """They leave all other weights of the network as they are; others are refused."""
    base = ablation_base(None, 1, None, "edm_s")
    assert base.trained == "fine-anew"
    assert base.initial is not None
    before = EDM(base.model).state_dict()
    for name in FINE_VARIANTS:
        after = EDM(variant_config(name, base, 0).model).state_dict()
        assert {k for k in before if not k.startswith("fine_matching.")} == {
            k for k in after if not k.startswith("fine_matching.")
        }
    with pytest.raises(EdmHlocError, match=r"layers-1 is more than another fine stage: .*bins-8"):
        variant_config("layers-1", base, 0)
    with pytest.raises(EdmHlocError, match="fine-anew needs initial weights"):
        dataclasses.replace(BASE, trained="fine-anew")


@pytest.mark.slow
def test_a_new_fine_stage_behind_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is that of the weights; the errors are compared on the same pairs."""
    monkeypatch.setattr(trainer, "draw_curves", lambda _: None)
    base = ablation_base(None, 1, None, "edm_s")
    base = dataclasses.replace(base, stages=SHORT.stages, validation_sets=((3, 96, 128),))
    rows = run_ablation(["full", "no-selection", "bins-8"], base, (0,), tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "full-seed0",  # of which no-selection is another way to answer
        "bins-8-seed0",
    }
    shipped, _ = weights.load("edm_s")
    made, _ = weights.load(tmp_path / "bins-8-seed0" / "weights.safetensors")
    assert made.config == dataclasses.replace(shipped.config, bins=8)
    same = {k: torch.equal(v, made.state_dict()[k]) for k, v in shipped.state_dict().items()}
    fine = {k for k in same if k.startswith("fine_matching.")}
    assert all(same[k] for k in same.keys() - fine)
    assert not any(same[k] for k in fine if k.endswith("weight") and "flow" not in k)
    full, unselected, _ = rows
    assert full.change == (0.0, 0.0)
    assert unselected.change[0] != 0.0
    last = ablation_table(rows).splitlines()[3].split("|")
    assert f"{100 * unselected.change[0]:+.1f} ±" in last[-2]


@pytest.mark.slow
def test_a_table_of_two_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are trained, written, not trained again, and their weights can be loaded."""
    monkeypatch.setattr(trainer, "draw_curves", lambda _: None)
    names = ["l1", "summed"]
    base = dataclasses.replace(SHORT, model=TINY)
    rows = run_ablation(names, base, (0, 1), tmp_path)
    assert [row.name for row in rows] == names
    assert all(row.seeds == 2 and row.pairs == 2 for row in rows)
    assert "| l1 | L1, no σ |" in ablation_table(rows)
    assert (tmp_path / "ablation.md").read_text().strip() == ablation_table(rows)
    model, _ = weights.load(str(tmp_path / "summed-seed1" / "weights.safetensors"))
    assert model.config.injection == "summed"
    curve = (tmp_path / "l1-seed0" / "training.csv").read_text()
    again = run_ablation([*names, "gaussian"], base, (0, 1), tmp_path)
    assert ablation_table(again).startswith(ablation_table(rows))
    assert (tmp_path / "l1-seed0" / "training.csv").read_text() == curve


def test_unknown_variants_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(tmp_path / "out"), "--variants", "full,small"]) == 1
    assert "no variant 'small'" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("names", [["narrow"], list(VARIANTS)])
def test_every_variant_can_be_trained(tmp_path: Path, names: list[str]) -> None:
    """`narrow` corrupted the heap; glibc's checks make that a crash."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.train_variants", str(tmp_path), *names],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == names, done.stderr[-2000:]
    assert done.returncode == 0

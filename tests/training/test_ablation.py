"""Ablations: what each variant is, that all can be trained and loaded, and the table."""

from __future__ import annotations

import dataclasses
import json
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
from edm_hloc.training.ablation import VARIANTS, ablation_table, run_ablation, variant_config
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

"""Trains variants for two steps, by default all: a crash would take the other tests with it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from edm_hloc.training import trainer
from edm_hloc.training.ablation import VARIANTS, variant_config
from edm_hloc.training.step import PairBatch
from edm_hloc.training.supervision import Supervision
from tests.training.tools import OneBatch, shifted, tiny_config

PAIRS = 4


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    trainer.draw_curves = lambda _: None
    one = shifted(8.0)
    truth = Supervision(*(torch.cat(PAIRS * [t]) for t in one[:6]), *one[6:])
    images = torch.rand(2, PAIRS, 1, 96, 128)
    source = OneBatch(PairBatch(images[0], images[1], truth))
    base = dataclasses.replace(tiny_config(steps=2, validations=0), model=trainer.TrainConfig.model)
    for name in names or VARIANTS:
        config = variant_config(name, base, 0)
        trainer.run_training(config, out / name, source=source, accelerator="cpu", devices=1)
        print(name, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""Fixtures of the tests of training: one thread, and a source of rendered batches."""

from __future__ import annotations

import pytest
import torch

from edm_hloc.synthetic.pairs import PairOptions, PairSampler
from edm_hloc.synthetic.textures import TextureBank
from edm_hloc.training.sources import SyntheticSource


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scenes() -> SyntheticSource:
    bank = TextureBank.dead_leaves(4, 128)
    return SyntheticSource(
        PairSampler(bank, options=PairOptions(photometric_effects=False)), (0.0, 0.3), 0.05
    )

"""The renderer is tested on one thread, on which its results are reproducible bit for bit."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)

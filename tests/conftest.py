"""Fixtures that several tests share; torch keeps to one thread, since tests run side by side."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.scenes import made_once

torch.set_num_threads(1)
# What tests start in processes of their own: threads that spin would take the others' time.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rendered photos of 320 × 240 with depth and their true COLMAP model."""
    from edm_hloc.synthetic.photo_collection import make_photo_collection

    def make(folder: Path) -> None:
        make_photo_collection(folder, views=7, size=(320, 240), seed=3, depth_maps=True)

    return made_once(tmp_path_factory, "scene", make)


@pytest.fixture(scope="session")
def small_aachen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of Aachen with 6 photos and 4 queries of 320 × 240, with depth."""
    from edm_hloc.synthetic.aachen_miniature import make_aachen

    def make(folder: Path) -> None:
        make_aachen(folder, 6, (2, 2), size=(320, 240), seed=3, depth_maps=True)

    return made_once(tmp_path_factory, "aachen", make)

"""Fixtures that several tests share; torch keeps to one thread, since tests run side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rendered photos of 320 × 240 with depth and their true COLMAP model."""
    from edm_hloc.synthetic.dataset import make_photo_collection

    folder = tmp_path_factory.mktemp("scene")
    make_photo_collection(folder, views=7, size=(320, 240), seed=3, depth_maps=True)
    return folder

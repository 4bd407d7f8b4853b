"""Damaged COLMAP models are refused at once, whole ones are read."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 4, 30
    pycolmap.synthesize_dataset(options).write_binary(tmp_path)
    return tmp_path


def test_a_whole_model_is_read(model: Path) -> None:
    assert read_model(model).num_points3D() == 30


@pytest.mark.parametrize("name", ["images.bin", "points3D.bin", "frames.bin"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(model: Path, name: str, share: float) -> None:
    data = (model / name).read_bytes()
    (model / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(EdmHlocError, match=f"damaged: {name} ends too early"):
        read_model(model)

"""What holds of the models of every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edm_hloc.base.colmap import read_model
from tests.mapping.scenes import repeats


@pytest.fixture(autouse=True)
def _photos_observe_points_once(tmp_path: Path) -> Iterator[None]:
    yield
    for file in tmp_path.rglob("model*/**/points3D.bin"):
        assert repeats(read_model(file.parent)) == 0, file.parent

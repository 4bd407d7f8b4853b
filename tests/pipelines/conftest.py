"""What holds of the models of every run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from tests.mapping.scenes import repeats


@pytest.fixture(autouse=True)
def _photos_observe_points_once(tmp_path: Path) -> Iterator[None]:
    yield
    for file in tmp_path.rglob("model*/**/points3D.bin"):
        with contextlib.suppress(EdmHlocError):  # of a test that damages it
            assert repeats(read_model(file.parent)) == 0, file.parent

"""A camera that only turned gives no model; one that moved along a plane gives its model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare
from edm_hloc.mapping.options import MappingOptions
from tests.mapping.walk import Walk

THREADS = MappingOptions(threads=1)
GLOBAL = MappingOptions(threads=1, mapper="global")


def around(rng: np.random.Generator, thickness: float) -> np.ndarray:
    return rng.uniform(-1, 1, (5000, 3)) * [12, 9, thickness] + [0, 0, 10]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("known", "distortion", "options"),
    [(False, 0.0, THREADS), (True, -0.08, THREADS), (False, -0.08, THREADS), (True, 0.0, GLOBAL)],
)
def test_a_camera_that_only_turned_gives_no_model(
    tmp_path: Path, seed: int, known: bool, distortion: float, options: MappingOptions
) -> None:
    rng = np.random.default_rng(seed)
    turns = rng.normal(0, 1.5, (5, 3)) + np.outer(np.arange(-2, 3), [5.0, 0, 0])
    walk = Walk(tmp_path / "w", around(rng, 6.0), turns, np.zeros((5, 3)), distortion=distortion)
    with pytest.raises(EdmHlocError, match=r"turned without moving.* 10 verified.*no model"):
        walk.map(options, known=known)
    assert not (tmp_path / "w" / "model").exists()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("thickness", [0.0, 3.0])
def test_a_camera_that_moved_along_a_wall_gives_its_model(
    tmp_path: Path, seed: int, thickness: float
) -> None:
    rng = np.random.default_rng(seed)
    steps = np.arange(-2, 3)
    centres = rng.normal(0, 0.3, (5, 3)) + np.outer(steps, [1.0, 0.0, 0.0])
    turns = rng.normal(0, 2.0, (5, 3)) - np.outer(steps, [5.0, 0, 0])
    walk = Walk(tmp_path / "w", around(rng, thickness), turns, centres)
    imported, out = walk.map(THREADS, known=True)
    assert imported.still == ()
    found = compare(out, tmp_path / "w" / "truth")
    assert found.registered == 5
    assert found.rotation_max < 0.5
    assert found.position_max < 5.0

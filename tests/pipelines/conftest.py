"""What holds of the models of every run."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from tests.mapping.scenes import repeats
from tests.scenes import TruthMatcher, made_once


@pytest.fixture(autouse=True)
def _photos_observe_points_once(tmp_path: Path) -> Iterator[None]:
    yield
    for file in tmp_path.rglob("model*/**/points3D.bin"):
        with contextlib.suppress(EdmHlocError):  # of a test that damages it
            assert repeats(read_model(file.parent)) == 0, file.parent


def _run_on(scene: Path, out: Path, *, refine_tracks: bool) -> None:
    config = ReconstructionConfig(
        cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"),
        mapping=MappingOptions(threads=1),
        refine_tracks=refine_tracks,
    )
    pairs = list(itertools.combinations(find_images(scene / "images"), 2))
    reconstruct(scene / "images", out, pairs, TruthMatcher(scene), config)


@pytest.fixture(scope="session")
def finished(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run on `scene` with one camera for all."""
    return made_once(
        tmp_path_factory, "finished", lambda out: _run_on(scene, out, refine_tracks=True)
    )


@pytest.fixture(scope="session")
def mapped(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of a run without refinement."""
    return made_once(
        tmp_path_factory, "mapped", lambda out: _run_on(scene, out, refine_tracks=False)
    )

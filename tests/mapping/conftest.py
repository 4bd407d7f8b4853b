"""Fixtures of the mapping tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from edm_hloc.images.cameras import CameraOptions
from tests.mapping.scenes import NAMES, Scene, build, make_scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), NAMES)


@pytest.fixture(scope="module")
def database(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one camera for all."""
    path = tmp_path_factory.mktemp("database") / "database.db"
    build(scene, path, CameraOptions(mode="single"))
    return path

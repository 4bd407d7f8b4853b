"""Triangulation of points with known poses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.mapping.triangulation import triangulate
from tests.mapping.scenes import THREADS, Scene, make_scene, same


@pytest.mark.parametrize("form", ["text", "binary", "old text"])
def test_triangulation(scene: Scene, tmp_path: Path, form: str) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    read_model(scene.truth).write_binary(reference) if form == "binary" else None
    if form != "binary":
        for path in scene.truth.iterdir():
            if form == "text" or path.stem in ("cameras", "images", "points3D"):
                shutil.copy(path, reference)
    verified, summary = triangulate(
        reference,
        scene.matched,
        tmp_path / "d.db",
        tmp_path / "model",
        THREADS,
    )
    correct = sum(
        len(set(scene.ids[a][scene.ids[a] >= 0]) & set(scene.ids[b])) for a, b in scene.pairs
    )
    assert 0.9 * correct < verified.inliers < min(correct, verified.matches)
    model, truth = read_model(tmp_path / "model"), read_model(scene.truth)
    # the trap: 0 points
    assert 500 < summary.statistics.points == model.num_points3D() <= 640
    assert summary.statistics.mean_track_length > 4.5
    assert summary.unregistered == ()
    for image_id, image in truth.images.items():
        there = model.images[image_id]
        assert there.name == image.name
        np.testing.assert_allclose(
            there.cam_from_world().matrix(), image.cam_from_world().matrix(), atol=1e-9
        )
    assert same(next(iter(model.cameras.values())))
    errors = []
    for point in model.points3D.values():
        image_name = model.images[point.track.elements[0].image_id].name
        shown = scene.ids[image_name][point.track.elements[0].point2D_idx]
        if shown >= 0:
            errors.append(np.linalg.norm(point.xyz - scene.points[shown]))
    assert len(errors) > 500
    # half a pixel of 550 at a distance of 6 is 0.005
    assert np.median(errors) < 0.01


def test_triangulation_with_the_wrong_model(scene: Scene, tmp_path: Path) -> None:
    other = make_scene(tmp_path / "other", ["x.jpg", "y.jpg"])

    def run(reference: Path) -> None:
        triangulate(reference, scene.matched, tmp_path / "d.db", tmp_path / "m")

    with pytest.raises(EdmHlocError, match="names must be the same"):
        run(other.truth)
    with pytest.raises(EdmHlocError, match="No COLMAP model"):
        run(tmp_path / "nowhere")
    assert not (tmp_path / "m").exists()

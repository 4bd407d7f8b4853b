"""Triangulation of points with known poses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter
from edm_hloc.mapping.triangulation import triangulate
from tests.mapping.scenes import NAMES, THREADS, Scene, make_scene, same


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


def test_triangulation_with_photos_of_other_sizes(scene: Scene, tmp_path: Path) -> None:
    """The reference is of photos twice the size, but for one that is a quarter of the others."""
    small = 0.25
    shutil.copytree(scene.images, tmp_path / "images")
    with Image.open(scene.images / NAMES[4]) as photo:
        photo.resize((160, 120)).save(tmp_path / "images" / NAMES[4])
    with (
        FeatureReader(scene.features) as old,
        FeatureWriter(tmp_path / "features.h5", {}) as new,
    ):
        for name in NAMES:
            points = old.keypoints(name)
            if name == NAMES[4]:
                points = (points + 0.5) * small - 0.5
            new.add(name, points, np.ones(len(points)))
    reference = read_model(scene.truth)
    reference.cameras[1].rescale(2.0)
    (tmp_path / "reference").mkdir()
    reference.write_text(tmp_path / "reference")
    matched = replace(
        scene.matched, image_root=tmp_path / "images", features=tmp_path / "features.h5"
    )
    out = tmp_path / "model"
    _, summary = triangulate(tmp_path / "reference", matched, tmp_path / "d.db", out, THREADS)
    assert summary.unregistered == ()
    assert 500 < summary.statistics.points <= 640
    model = read_model(out)
    errors = []
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        factor = small if image.name == NAMES[4] else 1.0
        assert camera.params.tolist() == [550 * factor, 320 * factor, 240 * factor, 0.02]
    for point in model.points3D.values():
        element = point.track.elements[0]
        shown = scene.ids[model.images[element.image_id].name][element.point2D_idx]
        if shown >= 0:
            errors.append(np.linalg.norm(point.xyz - scene.points[shown]))
    assert np.median(errors) < 0.01


def test_triangulation_with_the_wrong_model(scene: Scene, tmp_path: Path) -> None:
    other = make_scene(tmp_path / "other", ["x.jpg", "y.jpg"])

    def run(reference: Path) -> None:
        triangulate(reference, scene.matched, tmp_path / "d.db", tmp_path / "m")

    with pytest.raises(EdmHlocError, match="names must be the same"):
        run(other.truth)
    many = replace(THREADS, min_inliers=100_000)
    with pytest.raises(EdmHlocError, match=r"No pair has 100000 matches .* the most are \d+\."):
        triangulate(scene.truth, scene.matched, tmp_path / "db.db", tmp_path / "out", many)
    with pytest.raises(EdmHlocError, match="No COLMAP model"):
        run(tmp_path / "nowhere")
    assert not (tmp_path / "m").exists()

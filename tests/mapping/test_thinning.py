"""Mapping by chosen tracks, completed with all matches, on scenes with known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base import progress
from edm_hloc.base.colmap import open_database, posed_images, read_model
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping import chosen_tracks, forecast
from edm_hloc.mapping.completion import complete_model
from edm_hloc.mapping.incremental import IncrementalMapping
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.output import MappingSummary
from edm_hloc.mapping.thinning import thin_database
from tests.mapping.scenes import CAMERA, THREADS, Scene, assert_near_truth, build, make_scene

PHOTOS = [f"{i}.jpg" for i in range(8)]


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("many"), PHOTOS, number=3000)


@pytest.fixture(scope="session")
def database(many: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "database.db"
    build(many, path, CameraOptions(mode="single"))
    return path


@pytest.fixture(scope="session")
def mapped(
    many: Scene, database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MappingSummary, Path]:
    out = tmp_path_factory.mktemp("mapped") / "m"
    return map_database(database, many.images, out, THREADS), out


def test_a_thinned_database_holds_whole_tracks_of_the_same_photos(
    many: Scene, database: Path, tmp_path: Path
) -> None:
    kept = thin_database(database, tmp_path / "thin.db", 30)
    assert kept is not None
    with open_database(database) as full, open_database(tmp_path / "thin.db") as thin:
        images = {image.image_id: image.name for image in full.read_all_images()}
        assert {i.image_id: i.name for i in thin.read_all_images()} == images
        (camera,), (same,) = full.read_all_cameras(), thin.read_all_cameras()
        assert camera.params.tolist() == same.params.tolist()
        for image_id in images:
            keypoints = full.read_keypoints(image_id)[:, :2]
            assert np.array_equal(thin.read_keypoints(image_id)[:, :2], keypoints[kept[image_id]])
            assert 300 < len(kept[image_id]) < len(keypoints) / 3
        for pair_id, geometry in zip(*thin.read_two_view_geometries(), strict=True):
            a, b = pycolmap.pair_id_to_image_pair(pair_id)
            whole = full.read_two_view_geometry(a, b)
            assert geometry.config == whole.config
            matches = np.stack(
                [
                    kept[a][geometry.inlier_matches[:, 0]],
                    kept[b][geometry.inlier_matches[:, 1]],
                ],
                axis=1,
            )
            assert set(map(tuple, matches.tolist())) <= set(
                map(tuple, whole.inlier_matches.tolist())
            )
            shown = many.ids[images[a]][matches[:, 0]], many.ids[images[b]][matches[:, 1]]
            assert (shown[0] == shown[1]).mean() > 0.99


@pytest.mark.slow
def test_a_forecast_comes_before_the_mapping(
    many: Scene,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kept = thin_database(database, tmp_path / "thin.db", 30)
    assert kept is not None
    with open_database(database) as db:
        keypoints, matches = db.num_keypoints(), db.num_inlier_matches()
    work = 47 * sum(map(len, kept.values())) + 6 * keypoints
    assert forecast.forecast(database, kept, 1e-5 * matches) == pytest.approx(1e-5 * work)

    options = (database, many.images, tmp_path / "model", THREADS)
    map_database(*options)
    assert "going to take" not in capsys.readouterr().err  # of two seconds
    monkeypatch.setattr(forecast, "_WORTH_SAYING", 0.0)
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.05)
    map_database(*options)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith("Mapping 8 photos is going to take about")
    assert any(line.startswith("Mapping: ") for line in others)


def test_few_keypoints_are_not_thinned(scene: Scene, tmp_path: Path) -> None:
    build(scene, tmp_path / "d.db")
    assert thin_database(tmp_path / "d.db", tmp_path / "thin.db", 30) is None
    assert not (tmp_path / "thin.db").exists()


@pytest.mark.slow
def test_the_model_has_all_points_and_the_cameras_of_all_matches(
    many: Scene,
    database: Path,
    mapped: tuple[MappingSummary, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary, out = mapped
    again = map_database(database, many.images, tmp_path / "again", THREADS)
    assert (summary.components, summary.unregistered) == ((8,), ())
    assert_near_truth(many, out, rotation=0.15, position=0.2)
    model = read_model(out)
    same = read_model(tmp_path / "again")
    assert summary.statistics.points == again.statistics.points
    for name, image in posed_images(model).items():
        other = posed_images(same)[name]
        assert np.array_equal(image.projection_center(), other.projection_center())
        assert image.num_points2D() == len(many.ids[name])
    for point in model.points3D.values():  # the numbers of keypoints are those of the database
        shown = [
            many.ids[model.images[e.image_id].name][e.point2D_idx] for e in point.track.elements
        ]
        assert max(shown.count(i) for i in shown) >= len(shown) / 2
    monkeypatch.setattr(chosen_tracks, "thin_database", lambda *_: None)
    full = map_database(database, many.images, tmp_path / "full", THREADS)
    assert summary.statistics.points == pytest.approx(full.statistics.points, rel=0.02)
    assert summary.statistics.mean_track_length == pytest.approx(
        full.statistics.mean_track_length, rel=0.02
    )


def test_known_intrinsics_stay(many: Scene, tmp_path: Path) -> None:
    build(many, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(PHOTOS, CAMERA)))
    map_database(tmp_path / "d.db", many.images, tmp_path / "m", THREADS, known=PHOTOS)
    for camera in read_model(tmp_path / "m").cameras.values():
        assert camera.params.tolist() == CAMERA.params.tolist()
    assert_near_truth(many, tmp_path / "m", rotation=0.1, position=0.1)


def test_distortion_waits_where_each_photo_has_a_camera(
    many: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(many, tmp_path / "d.db", CameraOptions(mode="per-image"))
    run, calls = IncrementalMapping.run, []

    def watched(mapping: IncrementalMapping, *refined: bool) -> list[pycolmap.Reconstruction]:
        calls.append(refined)
        return run(mapping, *refined)

    monkeypatch.setattr(IncrementalMapping, "run", watched)
    own = replace(THREADS, one_camera=False)
    summary = map_database(tmp_path / "d.db", many.images, tmp_path / "m", own)
    assert calls == [(True, False)]
    assert not summary.undistorted
    for camera in read_model(tmp_path / "m").cameras.values():
        assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.03)
        assert camera.params[3] != 0.0
        assert camera.params[3] == pytest.approx(CAMERA.params[3], abs=0.03)
    assert_near_truth(many, tmp_path / "m", rotation=0.3, position=0.5)


@pytest.mark.parametrize("begun", [1.0, pytest.param(13.0, marks=pytest.mark.slow)])
def test_cameras_that_completion_spoils_are_completed_without_distortion(
    many: Scene,
    database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: float,
) -> None:
    """Only where the model was begun with better ones."""
    run, completed = IncrementalMapping.run, []

    def beginning(mapping: IncrementalMapping, *refined: bool) -> list[pycolmap.Reconstruction]:
        models = run(mapping, *refined)
        for camera in models[0].cameras.values():
            camera.focal_length *= begun
        return models

    def spoiling(
        model: pycolmap.Reconstruction,
        kept: dict[int, np.ndarray],
        database: Path,
        colmap: pycolmap.IncrementalPipelineOptions,
    ) -> pycolmap.Reconstruction:
        completed.append(colmap.ba_refine_extra_params)
        whole = complete_model(model, kept, database, colmap)
        for camera in whole.cameras.values():
            camera.focal_length *= 13.0 if colmap.ba_refine_extra_params else 1.0
        return whole

    monkeypatch.setattr(IncrementalMapping, "run", beginning)
    monkeypatch.setattr(chosen_tracks, "complete_model", spoiling)
    summary = map_database(database, many.images, tmp_path / "m", THREADS)
    assert completed == ([True, False] if begun == 1.0 else [True])
    assert summary.undistorted == (begun == 1.0)


def test_parts_stay_parts(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, PHOTOS, number=3000, split=5)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.components == (5, 3)
    assert summary.statistics.points > 2000
    assert read_model(tmp_path / "m_parts" / "2").num_points3D() > 2000


def test_photos_that_the_chosen_tracks_miss_are_registered_afterwards(
    many: Scene, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = IncrementalMapping.run

    def missing_two(mapping: IncrementalMapping, *refined: bool) -> list[pycolmap.Reconstruction]:
        models = run(mapping, *refined)
        for image_id in (1, 5):
            models[0].deregister_frame(models[0].images[image_id].frame_id)
        return models

    monkeypatch.setattr(IncrementalMapping, "run", missing_two)
    summary = map_database(database, many.images, tmp_path / "m", THREADS)
    assert summary.unregistered == ()
    assert_near_truth(many, tmp_path / "m", rotation=0.15, position=0.2)

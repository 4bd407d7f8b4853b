"""COLMAP's mappers on scenes with known truth, and what is tried where they fail."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.progress import StepProgress
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.keypoints.h5 import MatchWriter
from edm_hloc.mapping import incremental
from edm_hloc.mapping.chosen_tracks import ChosenTracks
from edm_hloc.mapping.incremental import IncrementalMapping
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from tests.mapping.scenes import (
    CAMERA,
    NAMES,
    THREADS,
    Scene,
    assert_near_truth,
    build,
    exif,
    make_scene,
)


def contents(database: Path) -> str:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump())


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_mapping_finds_the_truth(scene: Scene, database: Path, tmp_path: Path, mapper: str) -> None:
    options = MappingOptions(mapper=mapper, threads=1)  # type: ignore[arg-type]
    out = tmp_path / "model"
    before = contents(database)
    summary = map_database(database, scene.images, out, options)
    assert contents(database) == before
    assert (summary.images, summary.components, summary.unregistered) == (6, (6,), ())
    assert summary.statistics.registered == 6
    assert 500 < summary.statistics.points <= 640
    assert summary.statistics.mean_track_length > 4.5
    assert summary.statistics.mean_reprojection_error == pytest.approx(0.5 * 1.25, abs=0.15)
    assert_near_truth(scene, out, rotation=0.3, position=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert {p.suffix for p in out.iterdir()} == {".bin"}
    model = read_model(out)
    assert next(iter(model.cameras.values())).focal_length == pytest.approx(550, rel=0.02)
    colours = np.array([point.color for point in model.points3D.values()])
    assert np.abs(np.median(colours, axis=0) - [200, 100, 50]).max() <= 5

    # again over the first, which is replaced; the same seed gives the same model (COLMAP's global
    # mapper repeats itself only nearly)
    again = map_database(database, scene.images, out, options)
    assert again.statistics.points == summary.statistics.points
    assert again.statistics.mean_reprojection_error == pytest.approx(
        summary.statistics.mean_reprojection_error, rel=1e-6 if mapper == "incremental" else 1e-2
    )


def test_points_of_the_global_mapper_have_the_least_angle(
    scene: Scene, database: Path, tmp_path: Path
) -> None:
    options = MappingOptions(mapper="global", min_tri_angle=52, threads=1)
    summary = map_database(database, scene.images, tmp_path / "m", options)
    assert summary.statistics.points > 100
    model = read_model(tmp_path / "m")
    assert min(widest_angle(model, point) for point in model.points3D.values()) > 52


def test_a_photo_with_an_impossible_focal_length_is_left_out(tmp_path: Path) -> None:
    """As a plan of the place, whose rays are parallel: of few photos COLMAP keeps any camera."""
    names = [f"{i}.jpg" for i in range(8)]
    scene = make_scene(tmp_path, names)
    plan = names[-1]
    shown = scene.ids[plan] >= 0
    with h5py.File(scene.features, "r+") as file:
        keypoints = file[plan]["keypoints"]
        places = keypoints[:]
        places[shown] = [320, 240] + 80 * scene.points[scene.ids[plan][shown], :2]
        keypoints[...] = places
    build(scene, tmp_path / "d.db")
    options = replace(THREADS, one_camera=False)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options)
    assert summary.unregistered == (plan,)
    assert plan not in posed_images(read_model(tmp_path / "m"))
    assert compare(tmp_path / "m", scene.truth).position_max < 1


def widest_angle(model: pycolmap.Reconstruction, point: pycolmap.Point3D) -> float:
    """Between two rays to a point, degrees."""
    seen_by = {element.image_id for element in point.track.elements}
    rays = np.array([point.xyz - model.images[i].projection_center() for i in seen_by])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    return float(np.rad2deg(np.arccos((rays @ rays.T).min().clip(-1, 1))))


def test_points_of_two_views_are_an_option(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES[:3], outliers=0.0)
    pairs = [(NAMES[0], NAMES[1]), (NAMES[1], NAMES[2])]
    with MatchWriter(tmp_path / "pairwise.h5", {}) as writer:
        for (a, b), odd in zip(pairs, (0, 1), strict=True):
            place = {point: k for k, point in enumerate(scene.ids[b])}
            matches = np.array([place.get(i, -1) if i >= 0 else -1 for i in scene.ids[a]])
            # a third of the points in both pairs, a third in each one only
            matches[(scene.ids[a] % 3 == odd)] = -1
            writer.add(a, b, matches, np.ones(len(matches)))
    build(scene, tmp_path / "d.db", pairs=pairs, matches=tmp_path / "pairwise.h5")
    numbers = []
    for two_view_points in (True, False):
        options = MappingOptions(threads=1, two_view_points=two_view_points)
        summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options)
        assert summary.statistics.registered == 3
        numbers.append(summary.statistics.points)
    assert numbers[0] > 1.2 * numbers[1] > 0


def test_two_photos_make_a_model(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ["a.jpg", "b.jpg"])
    build(scene, tmp_path / "d.db", CameraOptions(known={"a.jpg": CAMERA, "b.jpg": CAMERA}))
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=NAMES)
    assert summary.statistics.registered == 2
    assert summary.statistics.points > 300


def test_walking_straight_on_makes_a_model(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [f"{i}.jpg" for i in range(8)], street=True, exif=exif(30))
    build(scene, tmp_path / "d.db")
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.undistorted
    assert (summary.statistics.registered, summary.unregistered) == (8, ())
    (camera,) = read_model(tmp_path / "m").cameras.values()
    assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.1)
    assert camera.params[3] == 0.0
    assert_near_truth(scene, tmp_path / "m", rotation=1.0, position=2.0)


@pytest.mark.parametrize("told", [True, False])
def test_a_model_with_an_impossible_camera_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    scene = make_scene(tmp_path, NAMES, exif=exif(30) if told else None)
    build(scene, tmp_path / "d.db")
    run = IncrementalMapping.run

    def diverging(
        mapping: IncrementalMapping, refine_focal: bool, refine_distortion: bool
    ) -> list[pycolmap.Reconstruction]:
        models = run(mapping, refine_focal, refine_distortion)
        for camera in models[0].cameras.values() if refine_distortion else ():
            camera.params = [(1.6 if told else 13.0) * camera.params[0], *camera.params[1:]]
        return models

    monkeypatch.setattr(IncrementalMapping, "run", diverging)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.undistorted
    assert summary.statistics.registered == len(NAMES)
    for camera in read_model(tmp_path / "m").cameras.values():
        assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.1)


def test_distortion_is_not_blamed_for_a_wrong_focal_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The EXIF data tell 2.7 times the true focal length, with distortion and without."""
    scene = make_scene(tmp_path, NAMES, exif=exif(80))
    build(scene, tmp_path / "d.db")
    run, calls = IncrementalMapping.run, []

    def fewer_points(mapping: IncrementalMapping, *refine: bool) -> list[pycolmap.Reconstruction]:
        calls.append(refine)
        models = run(mapping, *refine)
        for point_id in sorted(models[0].point3D_ids())[:100] if all(refine) else ():
            models[0].delete_point3D(point_id)
        return models

    monkeypatch.setattr(IncrementalMapping, "run", fewer_points)
    # rotations of pairs are by the focal length of the EXIF data, and contradict the model
    monkeypatch.setattr(ChosenTracks, "_by_strongest_pairs", lambda *_: None)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert calls == [(True, True), (True, False)]
    assert not summary.undistorted
    assert summary.statistics.registered == len(NAMES)
    for camera in read_model(tmp_path / "m").cameras.values():
        assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.1)
        assert camera.params[3] != 0.0


def test_parts_have_photos_of_their_own(
    database: Path, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = IncrementalMapping.run

    def several(mapping: IncrementalMapping, *refine: bool) -> list[pycolmap.Reconstruction]:
        (whole,) = run(mapping, *refine)
        models = []
        for kept in ([1, 2, 3], [1, 2, 3, 4, 5], [2, 3, 4], [4, 5, 6]):
            (tmp_path / "copy").mkdir(exist_ok=True)
            whole.write_binary(tmp_path / "copy")
            models.append(pycolmap.Reconstruction(tmp_path / "copy"))
            for image_id in set(whole.reg_image_ids()) - set(kept):
                models[-1].deregister_frame(models[-1].images[image_id].frame_id)
        return models

    monkeypatch.setattr(IncrementalMapping, "run", several)
    summary = map_database(database, scene.images, tmp_path / "m", THREADS)
    assert summary.components == (5, 3)
    assert [path.name for path in (tmp_path / "m_parts").iterdir()] == ["2"]
    names = set(posed_images(read_model(tmp_path / "m_parts" / "2")))
    assert names == set(sorted(NAMES)[3:])


def test_half_a_model_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(tmp_path, NAMES, exif=exif(30))
    build(scene, tmp_path / "d.db")
    run, calls = IncrementalMapping.run, []

    def stopping(mapping: IncrementalMapping, *refined: bool) -> list[pycolmap.Reconstruction]:
        calls.append(refined)
        models = run(mapping, *refined)
        if calls == [(True, True)]:
            for image_id in list(models[0].reg_image_ids())[2:]:
                models[0].deregister_frame(models[0].images[image_id].frame_id)
        return models

    monkeypatch.setattr(IncrementalMapping, "run", stopping)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert calls == [(True, True), (True, False)]
    assert summary.statistics.registered == len(NAMES)
    calls.append(())  # the same photos once more, with a mapper that does its work
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert calls[3:] == [(True, True)]
    assert not summary.undistorted


@pytest.mark.parametrize(
    ("wrong", "mappings"), [pytest.param(1, 1, marks=pytest.mark.slow), (2, 2)]
)
def test_one_impossible_camera_of_many_is_no_reason_to_map_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, mappings: int
) -> None:
    scene = make_scene(tmp_path, [f"{i}.jpg" for i in range(10)])
    build(scene, tmp_path / "d.db", CameraOptions(mode="per-image"))
    run, number = IncrementalMapping.run, 0

    def diverging(mapping: IncrementalMapping, *refine: bool) -> list[pycolmap.Reconstruction]:
        nonlocal number
        number += 1
        models = run(mapping, *refine)
        for camera in list(models[0].cameras.values())[:wrong]:
            camera.params = [6.0 * camera.params[0], *camera.params[1:]]
        return models

    monkeypatch.setattr(IncrementalMapping, "run", diverging)
    # the matches of their photos contradict the model, which has reasons of its own to map again
    monkeypatch.setattr(ChosenTracks, "_by_strongest_pairs", lambda *_: None)
    monkeypatch.setattr(ChosenTracks, "_by_trusted_pairs", lambda *_: None)
    own = replace(THREADS, one_camera=False)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", own)
    assert summary.statistics.registered == 10
    assert number == mappings


def test_progress_starts_anew_with_another_pair_of_photos(
    scene: Scene, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLMAP drops a model that is too small, and may register a photo twice."""
    shown: list[float] = []

    class Progress(StepProgress):
        def update(self, number: float = 1) -> None:
            super().update(number)
            shown.append(self.done)

        def restart(self, done: float, note: str = "") -> None:
            super().restart(done, note)
            shown.append(self.done)

    def mapping(
        *arguments: object,
        initial_image_pair_callback: Callable[[], None],
        next_image_callback: Callable[[], None],
        **named: object,
    ) -> dict[int, object]:
        for number in (3, 7):
            initial_image_pair_callback()
            for _ in range(number):
                next_image_callback()
        return {}

    monkeypatch.setattr(incremental, "StepProgress", Progress)
    monkeypatch.setattr(pycolmap, "incremental_mapping", mapping)
    IncrementalMapping(database, scene.images, tmp_path, set(), 6, MappingOptions()).run(True, True)
    assert shown == [2, 3, 4, 5, 2, 3, 4, 5, 6]

"""Several places in one folder of photos do not depend on each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import open_database, posed_images, read_model
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.incremental import IncrementalMapping
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import part_folders
from edm_hloc.mapping.parts import copy_images, part_cameras, share_cameras, split_database
from edm_hloc.mapping.priors import PositionPriors, with_priors
from tests.mapping.scenes import CAMERA, THREADS, Scene, assert_near_truth, build, exif, make_scene

ARC = [f"arc/{i:02}.jpg" for i in range(12)]
STREET = [f"street/{i}.jpg" for i in range(8)]


def two_places(folder: Path, *names: list[str]) -> list[Scene]:
    """An arc of photos around a place, and a street that photos taken straight ahead show."""
    scenes = []
    for k, its in enumerate(names):
        scene = make_scene(folder, its, street=its[0].startswith("street"), exif=exif(30))
        for made in (scene.features, scene.matches, scene.truth):
            made.rename(made.with_name(f"{k} {made.name}"))
        scenes.append(replace(scene, truth=folder / f"{k} truth"))
    for file in ("features.h5", "matches.h5"):
        with h5py.File(folder / file, "w") as whole:
            for k in range(len(names)):
                with h5py.File(folder / f"{k} {file}") as part:
                    for group in part:
                        part.copy(group, whole)
    return scenes


@pytest.mark.slow
def test_a_place_without_distortion_beside_a_larger_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos taken straight ahead do not determine distortion; the arc's do, and are mapped once.

    The EXIF data of all photos tell of the same camera.
    """
    arc, street = two_places(tmp_path, ARC, STREET)
    build(arc, tmp_path / "d.db", pairs=arc.pairs + street.pairs)
    run, runs = IncrementalMapping.run, []

    def counted(
        mapping: IncrementalMapping, *refine: bool, **named: bool
    ) -> list[pycolmap.Reconstruction]:
        runs.append((mapping.images, *refine))
        return run(mapping, *refine, **named)

    monkeypatch.setattr(IncrementalMapping, "run", counted)
    summary = map_database(tmp_path / "d.db", arc.images, tmp_path / "m", THREADS)
    assert runs[:3] == [(12, True, True), (8, True, True), (8, True, False)]
    assert all(images == 8 for images, *_ in runs[3:])
    assert summary.components == (12, 8)
    assert not summary.undistorted
    assert summary.undistorted_photos == tuple(STREET)
    assert_near_truth(arc, tmp_path / "m", rotation=0.3, position=0.5)
    (camera,) = read_model(tmp_path / "m").cameras.values()
    assert camera.params[3] == pytest.approx(CAMERA.params[3], abs=0.02)
    assert camera.params[3] != 0
    part = part_folders(tmp_path / "m")["2"]
    assert_near_truth(street, part, rotation=1.0, position=2.0)
    (camera,) = read_model(part).cameras.values()
    assert camera.params[3] == 0
    assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.1)


def test_a_place_comes_out_as_it_does_alone(tmp_path: Path) -> None:
    arc, other = two_places(tmp_path, ARC[:8], [f"other/{i}.jpg" for i in range(6)])
    build(arc, tmp_path / "both.db", pairs=arc.pairs + other.pairs)
    for name in ("both", "alone"):
        if name == "alone":
            build(arc, tmp_path / "alone.db", features=tmp_path / "0 features.h5")
        map_database(tmp_path / f"{name}.db", arc.images, tmp_path / name, THREADS)
    first, second = (posed_images(read_model(tmp_path / name)) for name in ("both", "alone"))
    assert list(first) == list(second) == ARC[:8]
    for name in ARC[:8]:
        np.testing.assert_allclose(
            first[name].projection_center(), second[name].projection_center(), atol=1e-9
        )


def test_a_database_is_split_where_no_verified_pair_connects_it(tmp_path: Path) -> None:
    names = [f"a/{i}.jpg" for i in range(4)], [f"b/{i}.jpg" for i in range(5)], ["c/0", "c/1"]
    scenes = two_places(
        tmp_path, *([f"{n.removesuffix('.jpg')}.jpg" for n in its] for its in names)
    )
    pairs = [pair for scene in scenes for pair in scene.pairs]
    build(scenes[0], tmp_path / "d.db", CameraOptions(mode="per-image"), pairs=pairs)
    (tmp_path / "parts").mkdir()
    parts = split_database(tmp_path / "d.db", tmp_path / "parts", 30)
    assert [part.images for part in parts] == [5, 4]  # two photos are no part
    with open_database(tmp_path / "d.db") as db:
        whole = {image.name: image for image in db.read_all_images()}
        for part, letter, number in zip(parts, "ba", (10, 6), strict=True):
            with open_database(part.database) as split:
                images = {image.name: image for image in split.read_all_images()}
                assert sorted(images) == [name for name in sorted(whole) if name[0] == letter]
                for name, image in images.items():
                    assert image.image_id == whole[name].image_id
                    assert image.camera_id == whole[name].camera_id
                    assert image.frame_id == whole[name].frame_id
                    np.testing.assert_array_equal(
                        split.read_keypoints(image.image_id), db.read_keypoints(image.image_id)
                    )
                ids, geometries = split.read_two_view_geometries()
                assert len(ids) == number
                for pair_id, geometry in zip(ids, geometries, strict=True):
                    pair = pycolmap.pair_id_to_image_pair(pair_id)
                    np.testing.assert_array_equal(
                        geometry.inlier_matches, db.read_two_view_geometry(*pair).inlier_matches
                    )
    # with more matches asked for than there are, nothing is left to split
    (part,) = split_database(tmp_path / "d.db", tmp_path / "parts", 10_000)
    assert (part.database, part.images) == (tmp_path / "d.db", 0)


def test_known_cameras_of_one_place_stay(tmp_path: Path) -> None:
    arc, other = two_places(tmp_path, ARC[:8], [f"other/{i}.jpg" for i in range(6)])
    known = dict.fromkeys([f"other/{i}.jpg" for i in range(6)], CAMERA)
    build(arc, tmp_path / "d.db", CameraOptions(known=known), pairs=arc.pairs + other.pairs)
    summary = map_database(
        tmp_path / "d.db", arc.images, tmp_path / "m", MappingOptions(threads=1), known
    )
    assert summary.components == (8, 6)
    part = read_model(part_folders(tmp_path / "m")["2"])
    for camera in part.cameras.values():
        assert camera.params.tolist() == CAMERA.params.tolist()
    (camera,) = read_model(tmp_path / "m").cameras.values()
    assert camera.params.tolist() != CAMERA.params.tolist()


def test_photos_whose_own_cameras_are_not_believable_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos of one size without EXIF data, whose focal lengths come out at random."""
    names = [f"{i}.jpg" for i in range(8)]
    scene = make_scene(tmp_path, names)
    build(scene, tmp_path / "d.db")
    run, cameras = IncrementalMapping.run, []

    def scattered(mapping: IncrementalMapping, *refine: bool) -> list[pycolmap.Reconstruction]:
        models = run(mapping, *refine)
        cameras.append(models[0].num_cameras())
        if cameras[-1] == 8:
            for camera, factor in zip(
                models[0].cameras.values(), np.linspace(0.6, 4, 8), strict=True
            ):
                camera.params = [factor * camera.params[0], *camera.params[1:]]
        return models

    monkeypatch.setattr(IncrementalMapping, "run", scattered)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert cameras == [8, 1]
    assert summary.one_camera_photos == tuple(names)
    assert (summary.components, summary.undistorted_photos) == ((8,), ())
    (camera,) = read_model(tmp_path / "m").cameras.values()
    assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.05)
    assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)
    # not where the user has said that each photo has its own
    own = replace(THREADS, one_camera=False)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", own)
    assert summary.one_camera_photos == ()
    assert read_model(tmp_path / "m").num_cameras() == 8


def test_a_model_found_late_on_shared_cameras_is_completed_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither photos with their own cameras nor those with one give a model at first."""
    names = [f"{i}.jpg" for i in range(8)]
    scene = make_scene(tmp_path, names, number=3000, outliers=0.0)
    build(scene, tmp_path / "d.db")
    run, thinned = IncrementalMapping.run, []

    def late(mapping: IncrementalMapping, *refine: bool, **named: bool) -> list:
        thinned.append(mapping.thinned)
        return run(mapping, *refine, **named) if len(thinned) > 2 else []

    monkeypatch.setattr(IncrementalMapping, "run", late)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert thinned == [True, True, True]
    assert summary.one_camera_photos == tuple(names)
    assert read_model(tmp_path / "m").num_cameras() == 1
    assert summary.statistics.points > 2000
    assert_near_truth(scene, tmp_path / "m", rotation=0.3, position=0.5)


def test_cameras_are_shared_by_photos_of_one_size_only_and_priors_stay(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [f"{i}.jpg" for i in range(4)])
    build(scene, tmp_path / "d.db")
    priors = PositionPriors({"2.jpg": (1.0, 2.0, 3.0)}, {"2.jpg": (1.0, 1.0, 2.0)})
    with_priors(tmp_path / "d.db", tmp_path / "p.db", priors)
    names = share_cameras(tmp_path / "p.db", tmp_path / "shared.db")
    assert names == ("0.jpg", "1.jpg", "2.jpg", "3.jpg")
    with open_database(tmp_path / "shared.db") as db:
        images = {image.name: image for image in db.read_all_images()}
        assert {image.camera_id for image in images.values()} == {1}
        (prior,) = db.read_all_pose_priors()
        assert prior.position.ravel().tolist() == [1.0, 2.0, 3.0]
        assert prior.corr_data_id == images["2.jpg"].data_id
        assert db.num_verified_image_pairs() == 6
    build(scene, tmp_path / "told.db", CameraOptions(known={"1.jpg": CAMERA}))
    others = ("0.jpg", "2.jpg", "3.jpg")
    assert not share_cameras(tmp_path / "told.db", tmp_path / "no.db", beside=["1.jpg"])
    assert not (tmp_path / "no.db").exists()
    assert share_cameras(tmp_path / "told.db", tmp_path / "others.db", beside=["3.jpg"]) == others
    with open_database(tmp_path / "others.db") as db:
        camera_of = {image.name: image.camera_id for image in db.read_all_images()}
        assert {name for name in camera_of if camera_of[name] == camera_of["0.jpg"]} == set(others)


def test_photos_that_share_a_camera_get_one_each(tmp_path: Path) -> None:
    """With ids that are the same in the copy of a part, and their priors and matches."""
    names = [f"{i}.jpg" for i in range(4)]
    scene = make_scene(tmp_path, names, exif=exif(31))
    build(scene, tmp_path / "d.db", CameraOptions(known={"3.jpg": CAMERA}))
    priors = PositionPriors({"2.jpg": (1.0, 2.0, 3.0)}, {"2.jpg": (1.0, 1.0, 2.0)})
    with_priors(tmp_path / "d.db", tmp_path / "p.db", priors)
    assert not part_cameras(tmp_path / "p.db", tmp_path / "no.db", ["3.jpg"])
    assert not (tmp_path / "no.db").exists()
    assert part_cameras(tmp_path / "p.db", tmp_path / "own.db", ["1.jpg"]) == tuple(names[:3])
    with open_database(tmp_path / "d.db") as db:
        before = {image.name: db.read_camera(image.camera_id) for image in db.read_all_images()}
    with open_database(tmp_path / "own.db") as db:
        images = {image.name: image for image in db.read_all_images()}
        cameras = {name: db.read_camera(image.camera_id) for name, image in images.items()}
        (prior,) = db.read_all_pose_priors()
        assert prior.corr_data_id == images["2.jpg"].data_id
        assert db.num_verified_image_pairs() == 6
    assert len({camera.camera_id for camera in cameras.values()}) == 4
    assert cameras["3.jpg"].camera_id == before["3.jpg"].camera_id
    for name, camera in cameras.items():
        assert camera.params.tolist() == before[name].params.tolist()
        assert camera.has_prior_focal_length
    with open_database(tmp_path / "d.db") as db:
        ids = {i.image_id for i in db.read_all_images() if i.name in ("0.jpg", "2.jpg")}
        copy_images(db, tmp_path / "part.db", ids, [])
    part_cameras(tmp_path / "part.db", tmp_path / "own-part.db", ["0.jpg"])
    with open_database(tmp_path / "own-part.db") as db:
        for image in db.read_all_images():
            assert image.camera_id == images[image.name].camera_id

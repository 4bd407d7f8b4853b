"""Databases, verification, mapping and triangulation of synthetic scenes with known truth."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.geometry import epipolar_errors
from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions, check_cameras, load_intrinsics
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.mapping import sfm
from edm_hloc.mapping.mappers import MappingOptions, _Mapping
from edm_hloc.mapping.sfm import (
    ImportSummary,
    build_database,
    diagnose,
    map_database,
    triangulate,
)

SIZE = (640, 480)
CAMERA = pycolmap.Camera(
    camera_id=1, model="SIMPLE_RADIAL", width=640, height=480, params=[550.0, 320.0, 240.0, 0.02]
)
THREADS = MappingOptions(threads=1)


@dataclass(frozen=True)
class Scene:
    """Files of a scene and the truth behind its keypoints."""

    images: Path
    truth: Path
    features: Path
    matches: Path
    pairs: list[tuple[str, str]]
    points: np.ndarray  # (P, 3)
    ids: dict[str, np.ndarray]  # which point each keypoint shows, -1 for clutter


def look_at(centre: np.ndarray, target: np.ndarray) -> pycolmap.Rigid3d:
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross([0.0, -1.0, 0.0], z)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)


def make_scene(
    folder: Path,
    names: Sequence[str],
    *,
    noise: float = 0.5,
    outliers: float = 0.05,
    photos: bool = True,
    seed: int = 0,
    centres: np.ndarray | None = None,
    split: int | None = None,
    uncertainty: float | None = None,
    street: bool = False,
    exif: Image.Exif | None = None,
) -> Scene:
    """Random points seen from an arc of cameras; matches by shared points, with some wrong.

    With `split`, images before it share no matches with those from it on. With `street` the
    cameras walk straight on between two rows of houses instead.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (600, 3)) * [2.0, 1.5, 1.0]
    targets = np.zeros((len(names), 3))
    if street:
        forward = np.arange(len(names))
        centres = np.stack([0.3 * np.sin(forward), 0.05 * np.cos(forward), 5.0 * forward], axis=1)
        targets = np.add(centres, [0.0, 0.0, 1.0])
        length = centres[-1, 2] + 20
        points = rng.uniform([-2.6, -2.5, 0], [-2.4, 1.2, length], (60 * len(names) + 200, 3))
        points[::2, 0] *= -1
    if centres is None:
        angles = np.linspace(-0.5, 0.5, len(names))
        centres = 6 * np.stack([np.sin(angles), 0.15 * np.cos(5 * angles), -np.cos(angles)], axis=1)
    images, truth = folder / "images", folder / "truth"
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    ids: dict[str, np.ndarray] = {}
    with FeatureWriter(folder / "features.h5", {}) as features:
        for i, (name, centre) in enumerate(zip(names, centres, strict=True), start=1):
            path = images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if photos:
                with_exif = {"exif": exif} if exif else {}
                Image.new("RGB", SIZE, (200, 100, 50)).save(path, **with_exif)
            pose = look_at(centre, targets[i - 1])
            image = pycolmap.Image(name=name, camera_id=1, image_id=i)
            model.add_image_with_trivial_frame(image, pose)
            # in COLMAP's frame; features hold hloc's, half a pixel less
            there = points @ pose.rotation.matrix().T + pose.translation
            seen = CAMERA.img_from_cam(there) + rng.normal(0, noise, (len(there), 2))
            near = (there[:, 2] > 1) & (there[:, 2] < 25)
            inside = np.flatnonzero(near & np.all((seen > 0) & (seen < SIZE), axis=1))
            clutter = rng.uniform(0, SIZE, (50, 2))
            keypoints = np.concatenate([seen[inside], clutter]) - 0.5
            order = rng.permutation(len(keypoints))
            ids[name] = np.concatenate([inside, np.full(50, -1)])[order]
            scores = np.ones(len(order))
            features.add(name, keypoints[order], scores, uncertainty)
    truth.mkdir()
    model.write_text(truth)
    pairs = list(itertools.combinations(names, 2))
    with MatchWriter(folder / "matches.h5", {}) as writer:
        for a, b in pairs:
            if split is not None and (names.index(a) < split) != (names.index(b) < split):
                continue
            place = {point: k for k, point in enumerate(ids[b]) if point >= 0}
            matches = np.array([place.get(point, -1) for point in ids[a]])
            wrong = rng.random(len(matches)) < outliers
            matches[wrong] = rng.integers(0, len(ids[b]), wrong.sum())
            writer.add(a, b, matches, (matches >= 0).astype(np.float32))
    return Scene(images, truth, folder / "features.h5", folder / "matches.h5", pairs, points, ids)


NAMES = ["sub dir/a 1.jpg", "sub dir/b.jpg", "é ü/с.jpg", "é ü/d-e.png", "f.jpg", "g.jpg"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), NAMES)


@pytest.fixture(scope="module")
def database(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With one camera for all."""
    path = tmp_path_factory.mktemp("database") / "database.db"
    build(scene, path, CameraOptions(mode="single"))
    return path


def build(
    scene: Scene, path: Path, cameras: CameraOptions | None = None, **changes: object
) -> ImportSummary:
    arguments = {"features": scene.features, "matches": scene.matches, "pairs": scene.pairs}
    return build_database(
        path, scene.images, **(arguments | changes), cameras=cameras, options=THREADS
    )[0]


# --------------------------------------------------------------------------- database


def test_database_holds_what_the_files_do(scene: Scene, database: Path, tmp_path: Path) -> None:
    twice = scene.pairs + [(b, a) for a, b in scene.pairs] + [(NAMES[0], NAMES[0])]
    imported, verified = build_database(
        tmp_path / "new" / "database.db",
        scene.images,
        scene.features,
        scene.matches,
        [*twice, (NAMES[0], "unknown.jpg")],
        CameraOptions(mode="single"),
        MappingOptions(threads=2),
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["database.db"]
    assert (imported.images, imported.cameras, imported.prior_focal) == (6, 1, 0)
    assert (imported.pairs, imported.missing_pairs, imported.skipped) == (15, 1, {})
    assert verified.pairs == verified.verified_pairs == 15
    assert verified.matches == imported.matches
    correct = sum(
        len(set(scene.ids[a][scene.ids[a] >= 0]) & set(scene.ids[b])) for a, b in scene.pairs
    )
    assert 0.9 * correct < verified.inliers < correct

    # the reversed and repeated pairs changed nothing, nor did the number of threads
    with quiet_colmap():
        for path in (database, tmp_path / "new" / "database.db"):
            db = pycolmap.Database.open(path)
            geometries = db.read_two_view_geometries()[1]
            if path == database:
                before = geometries
            assert len(geometries) == 15
            for a, b in zip(before, geometries, strict=True):
                np.testing.assert_array_equal(a.inlier_matches, b.inlier_matches)
            db.close()


def test_half_a_pixel_is_added_once(scene: Scene, database: Path) -> None:
    import h5py

    db = pycolmap.Database.open(database)
    with h5py.File(scene.features) as h5:
        for image in db.read_all_images():
            expected = h5[image.name]["keypoints"][:] + np.float32(0.5)
            np.testing.assert_array_equal(db.read_keypoints(image.image_id), expected)
    db.close()


@pytest.mark.parametrize(
    ("mode", "cameras"), [("auto", 6), ("single", 1), ("per-folder", 3), ("per-image", 6)]
)
def test_camera_modes(scene: Scene, tmp_path: Path, mode: str, cameras: int) -> None:
    options = CameraOptions(mode=mode, model="SIMPLE_PINHOLE")  # type: ignore[arg-type]
    assert build(scene, tmp_path / "d.db", options, pairs=[]).cameras == cameras
    db = pycolmap.Database.open(tmp_path / "d.db")
    assert [c.params.tolist() for c in db.read_all_cameras()] == [[768.0, 320.0, 240.0]] * cameras
    camera_of = {image.name: image.camera_id for image in db.read_all_images()}
    db.close()
    if mode == "per-folder":
        assert camera_of[NAMES[0]] == camera_of[NAMES[1]] != camera_of[NAMES[2]]


def test_sizes_never_share_a_camera(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(tmp_path, NAMES[:4])
    Image.new("L", (720, 999)).save(scene.images / NAMES[1])
    with caplog.at_level(logging.WARNING):
        imported = build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    assert imported.cameras == 2
    assert "2 sizes" in caplog.text


def exif(focal_35mm: int | None, model: str | None = "Model 5") -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = 6
    if model is not None:
        data[0x010F], data[0x0110] = "Make", model
    if focal_35mm is not None:
        data.get_ifd(0x8769)[0xA405] = focal_35mm
    return data


def test_exif_focal_length_as_colmap_reads_it(tmp_path: Path) -> None:
    cameras = {
        "a.jpg": exif(35),
        "b.jpg": exif(35),
        "c.jpg": exif(50),
        "d.webp": exif(28),
        "d2.webp": exif(28),
        "e.jpg": None,
        "f.jpg": exif(35, model=None),  # as some apps leave the data
        "f2.jpg": exif(35, model=None),
        "g.jpg": exif(None),  # a zoom lens at any length
        "g2.jpg": exif(None),
    }
    scene = make_scene(tmp_path, list(cameras))
    for name, data in cameras.items():
        with_exif = {"exif": data} if data else {}
        # portrait by EXIF, landscape by its pixels: the pixels count
        Image.new("RGB", SIZE).save(scene.images / name, **with_exif)
    imported = build(scene, tmp_path / "d.db", pairs=[])
    assert (imported.cameras, imported.prior_focal) == (7, 7)
    db = pycolmap.Database.open(tmp_path / "d.db")
    for image in db.read_all_images():
        camera = db.read_camera(image.camera_id)
        assert (camera.width, camera.height) == SIZE
        assert camera.has_prior_focal_length == (image.name[0] not in "eg")
        if image.name.endswith("webp"):  # which COLMAP cannot read
            assert camera.focal_length == pytest.approx(28 * 800 / np.hypot(36, 24))
        else:
            guess = pycolmap.infer_camera_from_image(scene.images / image.name)
            np.testing.assert_allclose(camera.params, guess.params)
    db.close()


def test_fisheye_lenses_need_a_focal_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["exif.jpg", "bare.jpg", "broken.jpg"]
    Image.new("L", SIZE).save(tmp_path / "exif.jpg", exif=exif(35))
    Image.new("L", SIZE).save(tmp_path / "bare.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"")
    fisheye = CameraOptions(model="SIMPLE_RADIAL_FISHEYE")
    with pytest.raises(EdmHlocError, match=r"none is known of bare\.jpg"):
        check_cameras(tmp_path, names, fisheye)
    check_cameras(tmp_path, names, replace(fisheye, known={"bare.jpg": CAMERA}))
    check_cameras(tmp_path, names, replace(fisheye, mode="single"))
    assert caplog.text == ""  # broken.jpg is told of when it is skipped


def test_unreadable_photos_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(tmp_path, NAMES)
    (scene.images / NAMES[1]).write_bytes(b"")
    (scene.images / NAMES[2]).write_text("not a photo")
    (scene.images / NAMES[4]).unlink()
    with caplog.at_level(logging.WARNING):
        imported = build(scene, tmp_path / "d.db")
    assert set(imported.skipped) == {NAMES[1], NAMES[2], NAMES[4]}
    assert (imported.images, imported.pairs, imported.missing_pairs) == (3, 3, 12)
    assert caplog.text.count("Skipping a photo") == 3
    shutil.rmtree(scene.images)
    with pytest.raises(EdmHlocError, match="None of the 6 images"):
        build(scene, tmp_path / "d.db")
    assert not list(tmp_path.glob(".d.db*"))
    db = pycolmap.Database.open(tmp_path / "d.db")  # the older one is still there
    assert db.num_images() == 3
    db.close()


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES[:3])
    other = make_scene(tmp_path / "other", NAMES[:3], seed=5)
    with FeatureWriter(tmp_path / "few.h5", {}) as features:
        for name in NAMES[:3]:
            features.add(name, np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(EdmHlocError, match="two files of one run"):
        build(scene, tmp_path / "d.db", features=tmp_path / "few.h5")
    for name in NAMES[:3]:
        Image.new("L", (320, 240)).save(other.images / name)
    with pytest.raises(EdmHlocError, match="another size"):
        build(other, tmp_path / "d.db")
    with pytest.raises(EdmHlocError, match="No camera model 'FISH'"):
        build(scene, tmp_path / "d.db", CameraOptions(model="FISH"))
    assert not (tmp_path / "d.db").exists()


# --------------------------------------------------------------------------- known intrinsics


def same(camera: pycolmap.Camera) -> bool:
    return camera.model == CAMERA.model and camera.params.tolist() == CAMERA.params.tolist()


def test_intrinsics_from_every_form(scene: Scene, tmp_path: Path) -> None:
    for path in (scene.truth, scene.truth / "cameras.txt"):
        found = load_intrinsics(path, NAMES)
        assert list(found) == NAMES
        assert all(same(camera) for camera in found.values())
    shutil.copy(scene.truth / "cameras.txt", tmp_path)  # without its images: everyone's
    assert set(load_intrinsics(tmp_path / "cameras.txt", ["x.jpg", "y.jpg"])) == {"x.jpg", "y.jpg"}

    listed = tmp_path / "intrinsics.txt"
    numbers = "640 480 550.0 320 240 0.02"
    listed.write_text(
        f"# comment\n{NAMES[0]} SIMPLE_RADIAL {numbers}\n\n"
        f"other/folder/g.jpg SIMPLE_RADIAL {numbers}\r\nf.jpg PINHOLE 640 480 1 2 3 4\n"
    )
    found = load_intrinsics(listed, NAMES)
    assert set(found) == {NAMES[0], "g.jpg", "f.jpg"}
    assert same(found[NAMES[0]])
    assert same(found["g.jpg"])
    assert found["f.jpg"].params.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 640 480 500", "expected 'name MODEL width"),
        ("a.jpg PINHOLE 640 480 500", "not a camera"),
        ("a.jpg PINHOLE 640 x 5 5 5 5", "not a camera"),
        ("a.jpg PINHOLE 640 480 5 5 nan 5", "not a camera"),
        ("a.jpg SIMPLE_RADIAL 640 480 5 5 5 inf", "not a camera"),
        ("b.jpg PINHOLE 640 480 5 5 5 5", "none of the 1 images"),
        ("", "none of the 1 images"),
    ],
)
def test_wrong_intrinsics(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(EdmHlocError, match=message):
        load_intrinsics(tmp_path / "list.txt", ["a.jpg"])
    with pytest.raises(EdmHlocError, match="Cannot read"):
        load_intrinsics(tmp_path / "none.txt", ["a.jpg"])
    two = "1 PINHOLE 640 480 5 5 5 5\n"
    (tmp_path / "cameras.txt").write_text(two * 2)
    with pytest.raises(EdmHlocError, match="2 cameras"):
        load_intrinsics(tmp_path / "cameras.txt", ["a.jpg"])


def test_known_intrinsics_of_another_size(scene: Scene, tmp_path: Path) -> None:
    small = pycolmap.Camera(CAMERA.todict())
    small.rescale(0.5)
    with pytest.raises(EdmHlocError, match="are for 320 × 240"):
        build(scene, tmp_path / "d.db", CameraOptions(known={NAMES[0]: small}))


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_known_intrinsics_stay_as_they_are(scene: Scene, tmp_path: Path, mapper: str) -> None:
    known = load_intrinsics(scene.truth, NAMES)
    assert build(scene, tmp_path / "d.db", CameraOptions(known=known)).cameras == 1
    options = MappingOptions(mapper=mapper, threads=1)  # type: ignore[arg-type]
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options, known=known)
    model = read_model(tmp_path / "m")
    assert len(model.cameras) == 1
    assert same(next(iter(model.cameras.values())))
    assert_near_truth(scene, tmp_path / "m", rotation=0.1, position=0.3)


def test_known_and_unknown_cameras_mix(scene: Scene, tmp_path: Path) -> None:
    known = dict.fromkeys(NAMES[:4], CAMERA)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single", known=known))
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=known)
    model = read_model(tmp_path / "m")
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        assert same(camera) == (image.name in known)
        assert camera.focal_length == pytest.approx(550, rel=0.02)
    options = MappingOptions(mapper="global", threads=1)
    with pytest.raises(EdmHlocError, match="all or none"):
        map_database(tmp_path / "d.db", scene.images, tmp_path / "g", options, known=known)


# --------------------------------------------------------------------------- mapping


def contents(database: Path) -> str:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump())


def assert_near_truth(scene: Scene, model: Path, rotation: float, position: float) -> None:
    """Largest errors: degrees, and % of the extent."""
    comparison = compare(model, scene.truth)
    assert comparison.registered == comparison.images
    assert comparison.rotation_max < rotation
    assert comparison.position_max < position


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


@pytest.mark.parametrize("suffix", ["webp", "tif"])
def test_colours_are_of_the_stored_pixels(tmp_path: Path, suffix: str) -> None:
    scene = make_scene(tmp_path, [f"{i}.{suffix}" for i in range(3)], noise=0.2, outliers=0)
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:240], pixels[240:] = (255, 0, 0), (0, 0, 255)
    for i in range(3):
        Image.fromarray(pixels).save(scene.images / f"{i}.{suffix}", exif=exif(35), lossless=True)
    known = {f"{i}.{suffix}": CAMERA for i in range(3)}
    build(scene, tmp_path / "d.db", CameraOptions(known=known))
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    model = read_model(tmp_path / "m")
    image = model.images[1]
    checked = 0
    for keypoint in image.points2D:
        if keypoint.has_point3D() and abs(keypoint.xy[1] - 240) > 60:
            red, _, blue = model.points3D[keypoint.point3D_id].color
            assert (red > 200 > 50 > blue) == (keypoint.xy[1] < 240)
            checked += 1
    assert checked > 100


def test_two_photos_make_a_model(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ["a.jpg", "b.jpg"])
    build(scene, tmp_path / "d.db", CameraOptions(known={"a.jpg": CAMERA, "b.jpg": CAMERA}))
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=NAMES)
    assert summary.statistics.registered == 2
    assert summary.statistics.points > 300


def test_each_component_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{i}.jpg" for i in range(9)]
    scene = make_scene(tmp_path, names, split=4)
    build(scene, tmp_path / "d.db", CameraOptions(mode="single"))
    for mapper in ("incremental", "global"):
        caplog.clear()
        options = MappingOptions(mapper=mapper, threads=1)  # type: ignore[arg-type]
        with caplog.at_level(logging.WARNING):
            summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", options)
        assert summary.components == (5, 4)
        assert summary.unregistered == tuple(names[:4])
        assert set(read_model(tmp_path / "m").reg_image_ids()) == {5, 6, 7, 8, 9}
        assert "2 separate models of 5, 4 images" in caplog.text
        (part,) = (tmp_path / "m_parts").iterdir()
        assert part.name == "2"
        assert set(read_model(part).reg_image_ids()) == {1, 2, 3, 4}
    # what one mapping left is gone after the next, which needs no parts
    whole = make_scene(tmp_path / "whole", names)
    build(whole, tmp_path / "whole.db", CameraOptions(mode="single"))
    map_database(tmp_path / "whole.db", whole.images, tmp_path / "m", THREADS)
    assert not (tmp_path / "m_parts").exists()


def test_no_matches_no_model_but_a_reason(scene: Scene, tmp_path: Path) -> None:
    build(scene, tmp_path / "none.db", pairs=[])
    with pytest.raises(EdmHlocError, match=r"0 of their pairs have matches.*Nothing was matched"):
        map_database(tmp_path / "none.db", scene.images, tmp_path / "m")

    wrong = make_scene(tmp_path / "wrong", NAMES[:3], outliers=1.0)
    build(wrong, tmp_path / "wrong.db")
    with pytest.raises(EdmHlocError, match="agree with one geometry"):
        map_database(tmp_path / "wrong.db", wrong.images, tmp_path / "m")
    assert re.search(
        r"3 of their pairs have matches, \d+ in all; 0 pairs", diagnose(tmp_path / "wrong.db")
    )
    assert "f.jpg" not in diagnose(tmp_path / "wrong.db")
    with pytest.raises(EdmHlocError, match=r"No COLMAP database .*absent\.db"):
        map_database(tmp_path / "absent.db", scene.images, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("whole", [0, 8192])
def test_a_scrambled_database_is_named(database: Path, tmp_path: Path, whole: int) -> None:
    data = bytearray(database.read_bytes())
    data[whole:] = np.random.default_rng(0).bytes(len(data) - whole)
    (tmp_path / "d.db").write_bytes(data)
    with pytest.raises(EdmHlocError, match=r"database .*d\.db is damaged .* delete it"):
        map_database(tmp_path / "d.db", tmp_path, tmp_path / "model")


def test_turning_on_the_spot_gives_a_reason(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES[:4], centres=np.array([[0.0, 0.0, -6.0]] * 4), noise=0.1)
    build(scene, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(NAMES, CAMERA)))
    with pytest.raises(EdmHlocError, match="more places"):
        map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=NAMES)
    assert [p.name for p in tmp_path.glob("*m*") if p.name.startswith(".")] == []


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
    run = _Mapping.run

    def diverging(
        mapping: _Mapping, refine_focal: bool, refine_distortion: bool
    ) -> list[pycolmap.Reconstruction]:
        models = run(mapping, refine_focal, refine_distortion)
        for camera in models[0].cameras.values() if refine_distortion else ():
            camera.params = [(1.6 if told else 6.0) * camera.params[0], *camera.params[1:]]
        return models

    monkeypatch.setattr(_Mapping, "run", diverging)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.undistorted
    assert summary.statistics.registered == len(NAMES)
    for camera in read_model(tmp_path / "m").cameras.values():
        assert camera.mean_focal_length() == pytest.approx(CAMERA.mean_focal_length(), rel=0.1)


def test_half_a_model_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(tmp_path, NAMES, exif=exif(30))
    build(scene, tmp_path / "d.db")
    run, calls = _Mapping.run, []

    def stopping(mapping: _Mapping, *refined: bool) -> list[pycolmap.Reconstruction]:
        calls.append(refined)
        models = run(mapping, *refined)
        if calls == [(True, True)]:
            for image_id in list(models[0].reg_image_ids())[2:]:
                models[0].deregister_frame(models[0].images[image_id].frame_id)
        return models

    monkeypatch.setattr(_Mapping, "run", stopping)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert calls == [(True, True), (True, False)]
    assert summary.statistics.registered == len(NAMES)
    calls.append(())  # the same photos once more, with a mapper that does its work
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert calls[3:] == [(True, True)]
    assert not summary.undistorted


@pytest.mark.parametrize(("wrong", "mappings"), [(1, 1), (2, 2)])
def test_one_impossible_camera_of_many_is_no_reason_to_map_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, mappings: int
) -> None:
    scene = make_scene(tmp_path, [f"{i}.jpg" for i in range(10)])
    build(scene, tmp_path / "d.db", CameraOptions(mode="per-image"))
    run, number = _Mapping.run, 0

    def diverging(mapping: _Mapping, *refine: bool) -> list[pycolmap.Reconstruction]:
        nonlocal number
        number += 1
        models = run(mapping, *refine)
        for camera in list(models[0].cameras.values())[:wrong]:
            camera.params = [6.0 * camera.params[0], *camera.params[1:]]
        return models

    monkeypatch.setattr(_Mapping, "run", diverging)
    summary = map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    assert summary.statistics.registered == 10
    assert number == mappings


def test_other_files_are_not_overwritten(scene: Scene, database: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EdmHlocError, match="holds other things"):
        map_database(database, scene.images, tmp_path, THREADS)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# --------------------------------------------------------------------------- known poses


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
        scene.images,
        scene.features,
        scene.matches,
        scene.pairs,
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


def test_keypoint_uncertainty_widens_the_band(tmp_path: Path) -> None:
    inliers = []
    for uncertainty in (None, 3.0):
        folder = tmp_path / str(uncertainty)
        scene = make_scene(folder, NAMES[:3], noise=4.0, outliers=0, uncertainty=uncertainty)
        verified, _ = triangulate(
            scene.truth, scene.images, scene.features, scene.matches, scene.pairs,
            folder / "d.db", folder / "m", THREADS,
        )  # fmt: skip
        inliers.append(verified.inliers / verified.matches)
    assert inliers[0] < 0.6  # 4 px of noise in both images, a band of 4 px
    assert inliers[1] > 0.9


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often the keypoints of each image were read."""
    number: Counter[int] = Counter()
    read = pycolmap.Database.read_keypoints

    def counted(database: pycolmap.Database, image_id: int) -> np.ndarray:
        number[image_id] += 1
        return read(database, image_id)

    monkeypatch.setattr(pycolmap.Database, "read_keypoints", counted)
    return number


def test_verification_reads_keypoints_once(
    scene: Scene, tmp_path: Path, reads: Counter[int]
) -> None:
    build(scene, tmp_path / "d.db")
    assert set(reads.values()) == {1}


def test_known_poses_keep_few_images_in_memory(
    scene: Scene, tmp_path: Path, reads: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inliers = []
    for room, most in ((256, 1), (2, 5)):  # of 6 images, each in 5 pairs
        monkeypatch.setattr(sfm, "_CACHED_IMAGES", room)
        reads.clear()
        verified, _ = triangulate(
            scene.truth, scene.images, scene.features, scene.matches, scene.pairs,
            tmp_path / "d.db", tmp_path / "m", THREADS,
        )  # fmt: skip
        assert max(reads.values()) == most
        inliers.append(verified.inliers)
    assert inliers[0] == inliers[1]


def test_a_disk_without_room_is_an_error_beforehand(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    database = tmp_path / "database.db"
    with pytest.raises(
        EdmHlocError, match=r"database\.db: it may need \d+ MiB .* are 0\. Free some"
    ):
        build_database(database, scene.images, scene.features, scene.matches, scene.pairs)
    assert not any(tmp_path.iterdir())


def test_triangulation_with_the_wrong_model(scene: Scene, tmp_path: Path) -> None:
    other = make_scene(tmp_path / "other", ["x.jpg", "y.jpg"])

    def run(reference: Path) -> None:
        triangulate(
            reference, scene.images, scene.features, scene.matches, scene.pairs,
            tmp_path / "d.db", tmp_path / "m",
        )  # fmt: skip

    with pytest.raises(EdmHlocError, match="names must be the same"):
        run(other.truth)
    with pytest.raises(EdmHlocError, match="No COLMAP model"):
        run(tmp_path / "nowhere")
    assert not (tmp_path / "m").exists()


def test_epipolar_errors_closed_form() -> None:
    # the second camera stands to the right of the first: epipolar lines are the rows
    E = pycolmap.essential_matrix_from_pose(
        pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-1.0, 0.0, 0.0]))
    )
    x1 = np.array([[0.1, 0.2, 1], [0.3, -0.1, 1]])
    x2 = np.array([[-0.4, 0.25, 1], [0.0, -0.1, 1]])
    first, second = epipolar_errors(x1, x2, E)
    np.testing.assert_allclose(first, [0.05, 0], atol=1e-12)
    np.testing.assert_allclose(second, [0.05, 0], atol=1e-12)
    forward = pycolmap.essential_matrix_from_pose(
        pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.0, 0.0, 1.0]))
    )
    epipole = np.array([[0.0, 0.0, 1.0]])
    assert np.isinf(epipolar_errors(epipole, epipole, forward)).all()


# --------------------------------------------------------------------------- pycolmap itself


def test_pillow_works_beside_pycolmap() -> None:
    """pycolmap brings a zlib of its own; imported first, it crashes Pillow as it writes a PNG."""
    code = (
        "import edm_hloc.base.colmap, io, os\n"
        "from PIL import Image\n"
        "Image.frombytes('RGB', (200, 200), os.urandom(120000)).save(io.BytesIO(), 'PNG')\n"
        "print('written')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "written\n", result.stderr[-500:]


def test_quiet_colmap_restores_the_level(capfd: pytest.CaptureFixture[str]) -> None:
    before = pycolmap.logging.minloglevel

    def fail() -> None:
        with quiet_colmap():
            pycolmap.logging.error("unheard of")
            raise ValueError("anything")

    with pytest.raises(ValueError, match="anything"):
        fail()
    assert pycolmap.logging.minloglevel == before
    assert "unheard of" not in capfd.readouterr().err

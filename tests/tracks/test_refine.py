"""Tracks refined over all photos: a textured roof, its exact truth, and a disturbed model."""

from __future__ import annotations

import re
import shutil
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.evaluation.models import compare
from edm_hloc.mapping.frames import frame_change
from edm_hloc.mapping.georeference import is_on_earth
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks import alignment, refine
from edm_hloc.tracks.adjustment import Freedom, Kept, adjust
from edm_hloc.tracks.alignment import Alignment
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views, check_refinable
from edm_hloc.tracks.photos import GreyPhoto, PhotoShelf, PhotoStack
from edm_hloc.tracks.point_uncertainty import deviations, point_covariances
from edm_hloc.tracks.refine import (
    TrackSummary,
    refine_model,
    refine_tracks,
    rounds_folder,
)
from edm_hloc.tracks.uncertainty import camera_covariances
from tests.mapping.scenes import look_at, repeats

SIZE = (240, 180)
CAMERA = pycolmap.Camera(
    camera_id=1, model="SIMPLE_PINHOLE", width=240, height=180, params=[220.0, 120.0, 90.0]
)
SLOPES = (np.array([0.3, 0.0, -1.0]), np.array([-0.3, 0.1, -1.0]))  # z = 0 on the ridge
THREADS = MappingOptions(threads=1)
FIXED = Freedom(constant=frozenset({1}))


@dataclass(frozen=True)
class Roof:
    """Files of the scene: photos, the true model, and a disturbed one."""

    images: Path
    truth: Path
    model: Path


@pytest.fixture(scope="module")
def roof(tmp_path_factory: pytest.TempPathFactory) -> Roof:
    """Six photos of a roof, and a model whose keypoints are 0.5 px off, adjusted to them."""
    folder = tmp_path_factory.mktemp("roof")
    rng = np.random.default_rng(0)
    texture = _texture(rng)
    points = rng.uniform(-1, 1, (500, 3)) * [1.6, 1.1, 0]
    points[:, 2] = np.where(points[:, 0] < 0, *(_height(points, n) for n in SLOPES))
    angles = np.linspace(-0.5, 0.5, 6)
    centres = 4 * np.stack([np.sin(angles), 0.3 * np.cos(4 * angles), -np.cos(angles)], axis=1)
    truth, model = pycolmap.Reconstruction(), pycolmap.Reconstruction()
    seen: list[list[tuple[int, int]]] = [[] for _ in points]
    (folder / "images").mkdir()
    for which in (truth, model):
        which.add_camera_with_trivial_rig(CAMERA)
    for k, centre in enumerate(centres, start=1):
        pose, name = look_at(centre, np.zeros(3)), f"{k}.png"
        cv2.imwrite(str(folder / "images" / name), _photo(pose.matrix(), texture, rng))
        truth.add_image_with_trivial_frame(pycolmap.Image(name=name, camera_id=1, image_id=k), pose)
        image = pycolmap.Image(name=name, camera_id=1, image_id=k)
        xy = CAMERA.img_from_cam(points @ pose.rotation.matrix().T + pose.translation)
        inside = np.flatnonzero(((xy > 8) & (xy < np.array(SIZE) - 8)).all(axis=1))
        inside = inside[rng.random(len(inside)) < 0.8]  # matching has missed some
        noisy = xy[inside] + rng.normal(0, 0.5, (len(inside), 2))
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(p) for p in noisy])
        for n, i in enumerate(inside.tolist()):
            seen[i].append((k, n))
        model.add_image_with_trivial_frame(image, pose)
    for point, elements in zip(points, seen, strict=True):
        if len(elements) > 1:
            track = pycolmap.Track([pycolmap.TrackElement(*e) for e in elements])
            model.add_point3D(point, track)
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = options.print_summary = False
    pycolmap.bundle_adjustment(model, options)
    for name, which in (("truth", truth), ("model", model)):
        (folder / name).mkdir()
        which.write_binary(folder / name)
    return Roof(folder / "images", folder / "truth", folder / "model")


def _texture(rng: np.random.Generator) -> np.ndarray:
    """(1200, 1200), 300 pixels to a unit."""
    fine = cv2.GaussianBlur(rng.normal(0, 1, (1200, 1200)), (0, 0), 3)
    coarse = cv2.GaussianBlur(rng.normal(0, 1, (1200, 1200)), (0, 0), 12)
    return 128 + 30 * fine / fine.std() + 25 * coarse / coarse.std()


def _height(points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    return -(points[:, :2] @ normal[:2]) / normal[2]


def _photo(pose: np.ndarray, texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The photo, with a gain, a bias and noise of its own."""
    x, y = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    f, cx, cy = CAMERA.params
    rays = np.stack([(x - cx) / f, (y - cy) / f, np.ones_like(x)], axis=-1) @ pose[:, :3]
    centre = -pose[:, :3].T @ pose[:, 3]
    hits = [centre + rays * (-(centre @ n) / (rays @ n))[..., None] for n in SLOPES]
    hit = np.where(hits[0][..., :1] < 0, *hits)
    u, v = (300 * (hit[..., :2] + 2)).astype(np.float32).transpose(2, 0, 1)
    photo = cv2.remap(texture.astype(np.float32), u, v, cv2.INTER_CUBIC)
    photo = rng.uniform(0.8, 1.2) * photo + rng.uniform(-15, 15) + rng.normal(0, 1.5, photo.shape)
    return np.clip(photo, 0, 255).astype(np.uint8)


def _refined(
    roof: Roof, images: Path | None = None, config: TrackConfig | None = None
) -> tuple[pycolmap.Reconstruction, TrackSummary]:
    model = pycolmap.Reconstruction(roof.model)
    found = refine_tracks(model, images or roof.images, FIXED, config, THREADS)
    return found.model, found.summary


def test_cameras_become_several_times_as_exact(roof: Roof, tmp_path: Path) -> None:
    before = compare(roof.model, roof.truth)
    model, summary = _refined(roof)
    model.write_binary(tmp_path)
    after = compare(tmp_path, roof.truth)
    assert before.position_median > 0.02  # %: the model was disturbed
    assert after.position_median < before.position_median / 3
    assert after.rotation_median < before.rotation_median / 3
    assert summary.after.mean_reprojection_error < 0.12 < summary.before.mean_reprojection_error
    assert summary.after.points > 0.9 * summary.before.points


def test_points_are_found_in_photos_that_were_not_matched(roof: Roof) -> None:
    before = pycolmap.Reconstruction(roof.model)
    model, summary = _refined(roof)
    assert summary.added > 200  # a fifth of some 2,500 was left out
    for image_id, image in model.images.items():  # keypoints keep their numbers
        old = before.images[image_id].points2D
        assert len(image.points2D) > len(old)
        both = [
            (p, q)
            for p, q in zip(old, image.points2D, strict=False)
            if p.has_point3D() and q.has_point3D()
        ]
        assert len(both) > 0.8 * len(old)
        assert all(p.point3D_id == q.point3D_id for p, q in both)
    assert model.is_valid()


def test_the_adjustment_knows_what_the_model_has(
    roof: Roof, monkeypatch: pytest.MonkeyPatch
) -> None:
    adjusted = []

    def check(model: pycolmap.Reconstruction, tracks: Tracks, *others: Any, again: bool) -> None:
        there = Tracks.of(model, Views.of(model))
        for name in ("ids", "start", "view", "index", "xy"):
            assert np.array_equal(getattr(tracks, name), getattr(there, name)), name
        adjusted.append(len(tracks.view))
        adjust(model, tracks, *others, again=again)

    monkeypatch.setattr(refine, "adjust", check)
    _, summary = _refined(roof)
    assert summary.added > 0
    assert adjusted[1] > adjusted[0]  # with what was never matched


def test_the_same_again_and_with_little_memory(roof: Roof) -> None:
    def content(config: TrackConfig) -> list[tuple]:
        model, _ = _refined(roof, config=config)
        return [(i, *p.xyz, len(p.track.elements)) for i, p in sorted(model.points3D.items())]

    config = replace(TrackConfig(), patch_radii=(7,))
    whole = content(config)
    assert whole == content(config)
    little = content(replace(config, photo_bytes=1))  # the photos of one point at a time
    assert [(i, n) for i, *_, n in little] == [(i, n) for i, *_, n in whole]
    assert np.allclose([xyz for _, *xyz, _ in little], [xyz for _, *xyz, _ in whole], atol=1e-9)


def test_photos_that_are_not_needed_are_gone_before_others_are_read(
    roof: Roof, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[weakref.ref[PhotoStack]] = []
    stack, read = PhotoShelf.stack, GreyPhoto.read

    def stacked(shelf: PhotoShelf, needed: np.ndarray) -> PhotoStack:
        found = stack(shelf, needed)
        stacks.append(weakref.ref(found))
        return found

    def read_after(path: Path, max_side: int) -> GreyPhoto:
        assert all(before() is None for before in stacks)
        return read(path, max_side)

    monkeypatch.setattr(PhotoShelf, "stack", stacked)
    monkeypatch.setattr(GreyPhoto, "read", read_after)
    _refined(roof, config=replace(TrackConfig(), photo_bytes=150_000))  # of two photos
    assert len(stacks) > 4


def test_observations_that_do_not_agree_are_dropped(roof: Roof) -> None:
    model = pycolmap.Reconstruction(roof.model)
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    rng = np.random.default_rng(1)
    long = np.flatnonzero(np.diff(tracks.start) > 4)[::7]
    wrong = [int(tracks.start[t]) for t in long]
    away = {}
    for n in wrong:  # matched to another place
        image = model.images[int(views.ids[tracks.view[n]])]
        image.points2D[int(tracks.index[n])].xy = tracks.xy[n] + rng.choice([-30.0, 30.0], 2)
        away[image.image_id, int(tracks.index[n])] = tracks.xy[n]
    refine_tracks(model, roof.images, FIXED, options=THREADS)
    for (image_id, index), xy in away.items():  # back where it belongs, or gone
        point = model.images[image_id].points2D[index]
        assert not point.has_point3D() or np.linalg.norm(point.xy - xy) < 3


def test_observations_of_one_photo_do_not_vouch_for_each_other(roof: Roof, tmp_path: Path) -> None:
    """Points that lie before the roof, each seen by two photos, by three keypoints in each."""
    model = pycolmap.Reconstruction(roof.model)
    right = [i for i, point in model.points3D.items() if np.abs(point.xyz[:2]).max() < 0.8][:80]
    images = [model.images[k] for k in (1, 4)]
    wrong = []
    for i in right:
        centre = images[0].projection_center()
        xyz = centre + 0.7 * (model.points3D[i].xyz - centre)
        track = pycolmap.Track()
        for image in images:
            for _ in range(3):
                track.add_element(image.image_id, len(image.points2D))
                image.points2D.append(pycolmap.Point2D(image.project_point(xyz)))
        wrong.append(model.add_point3D(xyz, track))
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    (tmp_path / "georeference.json").write_text('{"used": true, "origin": [47.0, 8.0, 400.0]}')
    summary = refine_model(tmp_path / "model", roof.images, tmp_path / "of/out", options=THREADS)
    assert is_on_earth(tmp_path / "of/out")
    _, usual = _refined(roof)
    assert summary.kept - usual.kept > 0.8 * len(wrong)  # their photos do not agree
    assert repeats(read_model(tmp_path / "of/out")) == 0
    photos = [len({e.image_id for e in point.track.elements}) for point in model.points3D.values()]
    assert summary.before.mean_track_length == pytest.approx(np.mean(photos))


def test_a_photo_that_is_gone_keeps_its_points(roof: Roof, tmp_path: Path) -> None:
    for path in roof.images.iterdir():
        if path.name != "3.png":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    before = pycolmap.Reconstruction(roof.model).images[3]
    model, summary = _refined(roof, tmp_path)
    assert summary.unread == ("3.png",)
    after = model.images[3]
    assert after.num_points3D > 0
    moved = [
        np.abs(p.xy - q.xy).max() for p, q in zip(before.points2D, after.points2D, strict=True)
    ]
    assert max(moved) == 0


def test_points_that_do_not_align_stay_as_they_were_mapped(roof: Roof, tmp_path: Path) -> None:
    before = pycolmap.Reconstruction(roof.model)
    for path in roof.images.iterdir():  # the left of all photos is without texture
        photo = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        photo[:, : SIZE[0] // 3] = 100
        cv2.imwrite(str(tmp_path / path.name), photo)
    model, summary = _refined(roof, tmp_path)
    left = [
        i
        for i, point in before.points3D.items()
        if all(
            before.images[e.image_id].points2D[e.point2D_idx].x() < SIZE[0] // 3 - 10
            for e in point.track.elements
        )
    ]
    assert summary.kept >= len(left) > 50
    for i in left:
        point, old = model.points3D[i], before.points3D[i]
        assert len(point.track.elements) == len(old.track.elements)
        assert np.linalg.norm(point.xyz - old.xyz) < 0.1
        for e in point.track.elements:
            keypoint = model.images[e.image_id].points2D[e.point2D_idx]
            assert (keypoint.xy == before.images[e.image_id].points2D[e.point2D_idx].xy).all()
            error = keypoint.xy - model.images[e.image_id].project_point(point.xyz)
            assert np.linalg.norm(error) < 3  # it was moved along with the cameras
    assert model.num_points3D() > 0.95 * before.num_points3D()
    model.write_binary(tmp_path)
    assert compare(tmp_path, roof.truth).position_median < 0.02


def test_a_blurred_photo_stays_where_it_was(roof: Roof, tmp_path: Path) -> None:
    for path in roof.images.iterdir():
        photo = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if path.name == "3.png":
            photo = cv2.GaussianBlur(photo, (0, 0), 12)
        cv2.imwrite(str(tmp_path / path.name), photo)
    model, summary = _refined(roof, tmp_path)
    assert summary.blurred == ("3.png",)
    assert model.images[3].num_points3D > 100
    truth, before = (pycolmap.Reconstruction(f) for f in (roof.truth, roof.model))

    def off(which: pycolmap.Reconstruction) -> float:
        frame = frame_change(which, truth, posed_images(which))
        found = frame * which.images[3].projection_center()
        return float(np.linalg.norm(found - truth.images[3].projection_center()))

    assert off(model) < 1.5 * off(before)


def test_photos_that_only_photos_that_are_gone_confirm_are_not_blurred(
    roof: Roof, tmp_path: Path
) -> None:
    """The third shares 30 points with the others that are left, and hundreds with those gone."""
    model = pycolmap.Reconstruction(roof.model)
    shared = 0
    for point in list(model.points3D.values()):
        seen = {e.image_id: e.point2D_idx for e in point.track.elements}
        if 3 in seen and not {1, 2}.isdisjoint(seen):
            shared += 1
            for k in {1, 2} & seen.keys() if shared > 30 else ():
                model.delete_observation(k, seen[k])
    for k in (1, 2, 3):
        shutil.copy(roof.images / f"{k}.png", tmp_path)
    found = refine_tracks(model, tmp_path, FIXED, options=THREADS)
    assert found.summary.unread == ("4.png", "5.png", "6.png")
    assert found.summary.blurred == ()
    assert found.model.images[3].num_points3D > 200


def test_other_photos_are_said_to_be_wrong_and_nothing_is_written(
    roof: Roof, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    images = tmp_path / "images"
    images.mkdir()
    for k in range(1, 7):
        cv2.imwrite(str(images / f"{k}.png"), rng.integers(0, 255, SIZE[::-1], np.uint8))
    with pytest.raises(EdmHlocError, match="are they the ones that it was made of"):
        refine_model(roof.model, images, tmp_path / "out", options=THREADS)
    for k in (2, 4, 5):
        (images / f"{k}.png").unlink()
    with pytest.raises(EdmHlocError, match="3 others of its photos cannot be read"):
        refine_model(roof.model, images, tmp_path / "out", options=THREADS)
    with pytest.raises(EdmHlocError, match="None of the 6 photos"):
        refine_model(roof.model, tmp_path, tmp_path / "out", options=THREADS)
    assert not (tmp_path / "out").exists()


def test_a_model_of_which_no_point_is_left_is_not_replaced(
    roof: Roof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(model: pycolmap.Reconstruction, *others: Any, again: bool) -> None:
        for point_id in list(model.point3D_ids()):
            model.delete_point3D(point_id)

    model = tmp_path / "model"
    shutil.copytree(roof.model, model)
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    monkeypatch.setattr(refine, "adjust", empty)
    with pytest.raises(EdmHlocError, match="No point of the model is left"):
        refine_model(model, roof.images, model, options=THREADS)
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_panoramas_are_refused_by_their_name() -> None:
    """They have no focal length, by which lengths in the photo would become angles."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 1, 640, 320)
    model.add_camera_with_trivial_rig(camera)
    image = pycolmap.Image(name="sphere.jpg", image_id=1, camera_id=1)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    with pytest.raises(EdmHlocError, match="no 3D points"):
        check_refinable(model)
    model.add_point3D(np.ones(3), pycolmap.Track())
    with pytest.raises(EdmHlocError, match=r"of sphere\.jpg is EQUIRECTANGULAR, without a focal"):
        check_refinable(model)


def test_the_command_refines_a_model_into_another_folder(
    roof: Roof, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["refine-model", str(roof.model), str(roof.images), str(out), "--keep-intrinsics"]
    (tmp_path / "file").touch()
    command[3] = str(tmp_path / "file" / "out")
    assert main(command) == 1
    error = capsys.readouterr().err.strip()
    assert re.search(r"Cannot write .*file.out: .*\. Choose another output folder\.$", error)
    command[3] = str(out)
    assert main(command) == 0
    assert "Tracks      " in capsys.readouterr().out
    assert (tmp_path / "out_uncertainty.json").is_file()
    camera = pycolmap.Reconstruction(out).cameras[1]
    assert list(camera.params) == list(CAMERA.params)
    assert (
        compare(out, roof.truth).position_median
        < 0.5 * compare(roof.model, roof.truth).position_median
    )


def test_a_model_in_the_coordinates_of_a_map_is_refined_as_well(roof: Roof, tmp_path: Path) -> None:
    """Five thousand kilometres from the origin, which an adjustment turns the cameras about."""
    on_map = pycolmap.Sim3d(1.0, pycolmap.Rotation3d(), np.array([691234.5, 5335678.9, 512.0]))
    for name in ("model", "truth"):
        moved = pycolmap.Reconstruction(getattr(roof, name))
        moved.transform(on_map)
        (tmp_path / name).mkdir()
        moved.write_binary(tmp_path / name)
    kept = Kept(intrinsics=True)
    refine_model(tmp_path / "model", roof.images, tmp_path / "out", kept, THREADS)
    found, before = (compare(tmp_path / n, tmp_path / "truth") for n in ("out", "model"))
    assert found.position_median < before.position_median / 3
    for name, image in posed_images(read_model(tmp_path / "out")).items():
        there = posed_images(read_model(tmp_path / "model"))[name].projection_center()
        np.testing.assert_allclose(image.projection_center(), there, rtol=0, atol=0.05)


def test_points_alone_are_refined_with_known_poses(roof: Roof, tmp_path: Path) -> None:
    """Of a model with the true poses, as of surveyed cameras: points move, cameras do not."""
    model, truth = pycolmap.Reconstruction(roof.model), pycolmap.Reconstruction(roof.truth)
    true = posed_images(truth)
    for name, image in posed_images(model).items():
        image.frame.rig_from_world = true[name].cam_from_world()
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    refine_model(tmp_path / "model", roof.images, tmp_path / "out", Kept(poses=True), THREADS)
    refined = pycolmap.Reconstruction(tmp_path / "out")
    for name, image in posed_images(refined).items():
        assert (image.cam_from_world().matrix() == true[name].cam_from_world().matrix()).all()
    assert not (tmp_path / "out_uncertainty.json").exists()

    def off(which: pycolmap.Reconstruction) -> np.ndarray:
        xyz = np.array([p.xyz for p in which.points3D.values()])
        heights = [_height(xyz, n) for n in SLOPES]
        clear = np.abs(xyz[:, 0]) > 0.1  # of the ridge
        return (xyz[:, 2] - np.where(xyz[:, 0] < 0, *heights))[clear]

    assert np.median(np.abs(off(refined))) < np.median(np.abs(off(model))) / 3
    # Patches that are warped by affine maps lie 0.0005 behind a plane that is 4 away.
    assert abs(np.median(off(refined))) < 0.0001


def test_a_killed_refinement_goes_on_after_its_last_round(
    roof: Roof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    refine_model(roof.model, roof.images, whole, options=THREADS)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(refine, "possible_observations", kill)  # the second round begins with it
        with pytest.raises(KeyboardInterrupt):
            refine_model(roof.model, roof.images, again, options=THREADS)
    assert not again.exists()
    assert (rounds_folder(again) / "round-1" / "points3D.bin").is_file()
    radii = []

    def align(*arguments: Any) -> Alignment:
        radii.append(arguments[-1][0])
        return alignment.align(*arguments)

    monkeypatch.setattr(refine, "align", align)
    refine_model(roof.model, roof.images, again, options=THREADS)
    assert radii == [TrackConfig().patch_radii[1]]
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {
        f"{name}{end}"
        for name in ("whole", "again")
        for end in ("", "_uncertainty.json", "_points_uncertainty.npz")
    }


def test_points_are_as_far_from_the_surface_as_is_told(roof: Roof) -> None:
    found = refine_tracks(pycolmap.Reconstruction(roof.model), roof.images, FIXED, options=THREADS)
    model, truth = found.model, pycolmap.Reconstruction(roof.truth)
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    assert (tracks.ids == found.ids).all()
    of_cameras = camera_covariances(model, FIXED, TrackConfig(), THREADS)
    covariance = point_covariances(tracks, views, set(), of_cameras, TrackConfig())
    told = deviations(covariance, views)
    assert (told[:, 0] >= told[:, 2]).all()
    frame = frame_change(model, truth, posed_images(model))
    turn = frame.rotation.matrix()
    model.transform(frame)
    xyz = np.array([model.points3D[i].xyz for i in found.ids.tolist()])
    normals = np.where(xyz[:, :1] < 0, *SLOPES)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    off = np.einsum("ti,ti->t", xyz, normals)
    along = normals @ turn  # the same directions in the frame of the covariances
    sigma = frame.scale * np.sqrt(np.einsum("ti,tij,tj->t", along, covariance, along))
    long = np.diff(tracks.start) > 2
    ridge = long & (np.abs(xyz[:, 0]) < 0.1)  # patches of which show both slopes
    slopes = long & (np.abs(xyz[:, 0]) > 0.2)
    assert np.count_nonzero(slopes) > 300
    assert np.count_nonzero(ridge) > 15
    ratio = np.abs(off / sigma)
    assert 0.3 < np.sqrt(np.mean(ratio[slopes] ** 2)) < 1.1
    assert np.mean(ratio[ridge] < 2) > 0.88
    assert np.median(sigma[ridge]) > 5 * np.median(sigma[slopes])
    # Their residuals alone do not tell what patches across the ridge do.
    assert np.mean(np.abs(off[ridge]) < 5 * np.median(sigma[slopes])) < 0.7


def test_uncertainties_are_about_as_large_as_the_errors(roof: Roof) -> None:
    model = pycolmap.Reconstruction(roof.model)
    found = refine_tracks(model, roof.images, FIXED, options=THREADS).cameras
    truth = pycolmap.Reconstruction(roof.truth)
    now, then = posed_images(model), posed_images(truth)
    assert found.keys() == now.keys()
    frame = frame_change(model, truth, now)
    turn, centres = frame.rotation.matrix(), [i.projection_center() for i in now.values()]
    extent = max(np.linalg.norm(a - b) for a in centres for b in centres)
    ratios = []
    for name, image in now.items():
        off = frame * image.projection_center() - then[name].projection_center()
        own = image.cam_from_world().rotation.matrix() @ turn.T @ off / frame.scale
        ratios.append(100 * own / extent / found[name].position)
    assert 0.3 < np.sqrt(np.mean(np.square(ratios))) < 2.5

"""Writing models: colours, separate parts, folders that hold other files."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.incremental import with_points
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import drop_repeats, new_model_folder, run_folder
from edm_hloc.mapping.triangulation import triangulate
from tests.mapping.scenes import (
    CAMERA,
    THREADS,
    Scene,
    build,
    exif,
    make_scene,
    repeats,
    with_twins,
)


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


def test_colours_are_those_of_colmap(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, [f"{i}.png" for i in range(3)], noise=0.2, outliers=0)
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = rng.integers(0, 255, (480, 640, 3), np.uint8)
        Image.fromarray(pixels).save(scene.images / f"{i}.png")
    known = {f"{i}.png": CAMERA for i in range(3)}
    build(scene, tmp_path / "d.db", CameraOptions(known=known))
    map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS)
    ours, theirs = read_model(tmp_path / "m"), read_model(tmp_path / "m")
    theirs.extract_colors_for_all_images(scene.images)
    difference = [
        np.abs(point.color.astype(int) - theirs.points3D[i].color).max()
        for i, point in ours.points3D.items()
    ]
    assert len(difference) > 300
    assert max(difference) <= 1  # of rounding


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin", "frames.bin"])
def test_a_model_that_was_not_written_whole_is_no_success(name: str, tmp_path: Path) -> None:
    """COLMAP does not look whether the disk was full."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_frames_per_rig, options.num_points3D = 3, 20
    model = pycolmap.synthesize_dataset(options)
    out = tmp_path / "model"
    with new_model_folder(out) as folder:
        model.write_binary(folder)
    before = read_model(out).num_points3D()

    def write() -> None:
        with new_model_folder(out) as folder:
            model.write_binary(folder)
            data = (folder / name).read_bytes()
            (folder / name).write_bytes(data[: len(data) // 2])

    with pytest.raises(EdmHlocError, match=f"Cannot write {out}: COLMAP could not write all of it"):
        write()
    assert read_model(out).num_points3D() == before == 20
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("at", ["rename", "replace"])
def test_an_interrupted_replacement_keeps_a_model(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the only one there is, where a model is refined in place."""
    out = tmp_path / "model"
    with new_model_folder(out) as folder:
        pycolmap.Reconstruction().write_binary(folder)
    original, left = getattr(Path, at), [1]

    def interrupted(path: Path, target: Path) -> Path:
        if left and at == "replace":
            raise KeyboardInterrupt
        found: Path = original(path, target)
        if left:
            left.pop()
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Path, at, interrupted)
    with pytest.raises(KeyboardInterrupt), new_model_folder(out) as folder:
        pycolmap.Reconstruction().write_binary(folder)
    assert read_model(out).num_images() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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
        assert summary.unregistered == summary.elsewhere == tuple(names[:4])
        assert set(read_model(tmp_path / "m").reg_image_ids()) == {5, 6, 7, 8, 9}
        assert "2 separate models of 5, 4 images" in caplog.text
        assert str(tmp_path) not in caplog.text  # of a run, which has it in a hidden folder yet
        (part,) = (tmp_path / "m_parts").iterdir()
        assert part.name == "2"
        assert set(read_model(part).reg_image_ids()) == {1, 2, 3, 4}
    # what one mapping left is gone after the next, which needs no parts
    whole = make_scene(tmp_path / "whole", names[:5])
    build(whole, tmp_path / "whole.db", CameraOptions(mode="single"))
    map_database(tmp_path / "whole.db", whole.images, tmp_path / "m", THREADS)
    assert not (tmp_path / "m_parts").exists()


def test_parts_are_numbered_and_beside_the_folder_of_the_largest_model(tmp_path: Path) -> None:
    run = tmp_path / "engine_parts"
    (run / "model").mkdir(parents=True)
    (tmp_path / "engine").mkdir()
    assert run_folder(run / "model") == (run, False)
    assert run_folder(run / "model_parts" / "2") == (run, True)
    assert run_folder(tmp_path / "turbine_parts" / "0") == (tmp_path / "turbine_parts", False)


def test_other_files_are_not_overwritten(scene: Scene, database: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EdmHlocError, match="holds other things"):
        map_database(database, scene.images, tmp_path, THREADS)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("cameras", [1, 2])
def test_images_without_points_have_no_poses(cameras: int) -> None:
    """COLMAP's mapper leaves them in small models. In a rig the others' points hold them."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, cameras, 4
    options.num_points3D = 40
    pycolmap.set_random_seed(0)
    with quiet_colmap():
        model = pycolmap.synthesize_dataset(options)
        last = max(model.images)
        for index, keypoint in enumerate(model.images[last].points2D):
            if keypoint.has_point3D():
                model.delete_observation(last, index)
        smaller = pycolmap.Reconstruction(model)
        smaller.deregister_frame(model.images[min(model.images)].frame_id)
        assert with_points([smaller, model, pycolmap.Reconstruction()]) == [model]
    assert model.num_reg_images() == (3 if cameras == 1 else 8)
    assert model.images[last].has_pose == (cameras == 2)


def test_a_photo_observes_a_point_once(tmp_path: Path) -> None:
    """COLMAP makes one track of several keypoints of a photo."""
    names = [f"{i}.png" for i in range(4)]
    scene = make_scene(tmp_path, names, noise=0.2, outliers=0, number=100)
    twins = with_twins(scene, tmp_path)
    build(twins, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(names, CAMERA)))
    map_database(tmp_path / "d.db", scene.images, tmp_path / "mapped", THREADS)
    _, summary = triangulate(
        scene.truth, twins.matched, tmp_path / "t.db", tmp_path / "triangulated", THREADS
    )
    for name in ("mapped", "triangulated"):
        model = read_model(tmp_path / name)
        assert repeats(model) == 0
        assert model.num_points3D() > 80
    assert 2 <= summary.statistics.mean_track_length <= 4


def test_the_observation_with_the_smallest_error_stays() -> None:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    points = np.array([[0.0, 0.0, 5.0], [1.0, 0.5, 6.0], [-1.0, 0.0, 4.0]])
    off = [[3.0, 0.0], [0.0, -1.0], [2.0, 2.0]]
    for k in (1, 2):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.5 * k, 0.0, 0.0]))
        xy = CAMERA.img_from_cam(pose * points)
        image = pycolmap.Image(name=f"{k}.jpg", camera_id=1, image_id=k)
        places = [p + o for p in xy for o in off]
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(p) for p in places])
        model.add_image_with_trivial_frame(image, pose)
    seen = [
        [(1, 0), (1, 1), (1, 2), (2, 0), (2, 2)],
        [(1, 3), (2, 4)],
        [(1, 6), (1, 7), (1, 8)],  # in one photo alone
    ]
    ids = [
        model.add_point3D(point, pycolmap.Track([pycolmap.TrackElement(*e) for e in elements]))
        for point, elements in zip(points, seen, strict=True)
    ]
    drop_repeats(model)
    left = {
        i: sorted((e.image_id, e.point2D_idx) for e in point.track.elements)
        for i, point in model.points3D.items()
    }
    assert left == {ids[0]: [(1, 1), (2, 2)], ids[1]: [(1, 3), (2, 4)]}
    assert model.points3D[ids[0]].error == pytest.approx((1 + 8**0.5) / 2)
    assert not model.images[1].points2D[7].has_point3D()

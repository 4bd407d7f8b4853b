"""Training pairs from a reconstruction's refined matches, on a model with exact poses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import from_colmap
from edm_hloc.base.matches import Matches
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.training.config import RealData
from edm_hloc.training.real_pairs import RealSource
from edm_hloc.training.refined_matches import MIN_MATCHES, reconstruction_scenes

from .tools import write_jpeg


@pytest.fixture
def reconstruction(tmp_path: Path) -> pycolmap.Reconstruction:
    """A model of four photos, which are noise, in tmp_path/out/model and tmp_path/images."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 4
    options.num_points3D = 400
    options.camera_width, options.camera_height = 400, 300
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [360.0, 200.0, 150.0, -0.1]
    model = pycolmap.synthesize_dataset(options)
    (tmp_path / "out/model").mkdir(parents=True)
    model.write(tmp_path / "out/model")
    rng = np.random.default_rng(0)
    for image in model.images.values():
        write_jpeg(tmp_path / "images" / image.name, rng.integers(0, 255, (300, 400), np.uint8))
    return model


def exact_matches(model: pycolmap.Reconstruction, name0: str, name1: str) -> Matches:
    """Where the model's points are in two photos, by its own lenses."""
    points = []
    xyz = np.array([p.xyz for p in model.points3D.values()])
    for name in (name0, name1):
        image = model.find_image_with_name(name)
        pose = image.cam_from_world().matrix()
        camera = model.cameras[image.camera_id]
        points.append(from_colmap(camera.img_from_cam(xyz @ pose[:, :3].T + pose[:, 3])))
    seen = np.all(
        [np.isfinite(p).all(1) & (p > 0).all(1) & (p < [399, 299]).all(1) for p in points], 0
    )
    kept = [p[seen].astype(np.float32) for p in points]
    return Matches(*kept, np.ones(len(kept[0]), np.float32))


def test_matches_that_the_model_confirms_are_the_truth(
    tmp_path: Path, reconstruction: pycolmap.Reconstruction
) -> None:
    names = sorted(image.name for image in reconstruction.images.values())
    exact = exact_matches(reconstruction, names[0], names[1])
    assert len(exact) > MIN_MATCHES
    # Wrong matches: off by 3 px across the epipolar lines or along them, whichever it is.
    wrong = Matches(exact.keypoints0, exact.keypoints1 + np.float32([3, -3]), exact.scores)
    few = exact_matches(reconstruction, names[0], names[2])[slice(MIN_MATCHES - 1)]
    with RawMatchWriter(tmp_path / "out/raw_matches", {"preset": "test"}) as writer:
        writer.add(names[0], names[1], exact.joined(wrong))
        writer.add(names[0], names[2], few)
        writer.add(names[0], "not_registered.jpg", exact)
    data = RealData("reconstruction", str(tmp_path / "images"), str(tmp_path / "out"))
    source = RealSource(data, 0.05)
    (scene,) = source.scenes
    assert scene.length == 1
    view0, view1, T = scene.read(0)
    assert view0.points is not None
    assert view1.points is not None
    np.testing.assert_allclose(view0.points[: len(exact)], exact.keypoints0)
    np.testing.assert_allclose(view1.points[: len(exact)], exact.keypoints1)
    assert len(view0.points) < 1.3 * len(exact)  # few of the wrong ones lie near their lines
    pose0, pose1 = (
        np.vstack([reconstruction.find_image_with_name(n).cam_from_world().matrix(), [0, 0, 0, 1]])
        for n in names[:2]
    )
    np.testing.assert_allclose(T, pose1 @ np.linalg.inv(pose0), atol=1e-9)
    assert source.batch(2, 128, 160, 0).image0.shape == (2, 1, 128, 160)


def test_points_are_in_pixels_of_the_photos_as_they_are_stored(
    tmp_path: Path, reconstruction: pycolmap.Reconstruction
) -> None:
    names = sorted(image.name for image in reconstruction.images.values())[:2]
    exact = exact_matches(reconstruction, *names)
    with RawMatchWriter(tmp_path / "out/raw_matches", {"preset": "test"}) as writer:
        writer.add(*names, exact)
    for image in reconstruction.images.values():
        write_jpeg(tmp_path / "images" / image.name, np.zeros((150, 200), np.uint8))
    (scene,) = reconstruction_scenes(tmp_path / "out", tmp_path / "images")
    both = (exact.keypoints0, exact.keypoints1)
    for view, points in zip(scene.read(0)[:2], both, strict=True):
        assert view.image.shape == (150, 200)
        np.testing.assert_allclose(view.points, (points + 0.5) / 2 - 0.5, atol=1e-4)


def test_a_reconstruction_without_such_pairs_is_refused(
    tmp_path: Path, reconstruction: pycolmap.Reconstruction
) -> None:
    with pytest.raises(EdmHlocError, match=r"No raw matches at .*raw_matches"):
        reconstruction_scenes(tmp_path / "out", tmp_path / "images")
    names = sorted(image.name for image in reconstruction.images.values())
    with RawMatchWriter(tmp_path / "out/raw_matches", {"preset": "test"}) as writer:
        writer.add(*names[:2], exact_matches(reconstruction, *names[:2])[:10])
    with pytest.raises(EdmHlocError, match=r"no two photos of .* have 100 matches that agree"):
        reconstruction_scenes(tmp_path / "out", tmp_path / "images")

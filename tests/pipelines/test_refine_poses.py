"""Noisy and wrong poses of a rendered scene are mended by the photos' matches."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli.refine_poses import _print_poses
from edm_hloc.evaluation.models import compare
from edm_hloc.interop.poses.files import GivenPoses, read_given_poses
from edm_hloc.interop.poses.given import PhotosAtHand
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.pose_refinement import PoseChange, PoseRefinementSummary
from edm_hloc.pairs.rules import exhaustive
from edm_hloc.pipelines.reconstruct import ReconstructionConfig
from edm_hloc.pipelines.refine_poses import PosedPhotos, refine_given_poses
from edm_hloc.pipelines.run import Run
from tests.scenes import TruthMatcher

OPENGL = np.diag([1.0, -1, -1, 1])
FIXED = MappingOptions(refine_intrinsics=False, threads=1)


def write_noisy(
    scene: Path, path: Path, degrees: float, share: float, wrong: str = "", focal: float = 1.0
) -> None:
    """A transforms.json of the true poses with noise, those of the photo `wrong` turned by 90°."""
    model = read_model(scene / "truth")
    images = posed_images(model)
    rng = np.random.default_rng(2)
    centres = np.array([image.projection_center() for image in images.values()])
    extent = np.linalg.norm(centres[:, None] - centres[None], axis=2).max()
    frames = []
    for name, image in images.items():
        axis, step = rng.normal(size=(2, 3))
        T = np.eye(4)
        T[:3] = image.cam_from_world().inverse().matrix()
        angle = 90.0 if name == wrong else degrees
        T[:3, :3] = (
            Rotation.from_rotvec(np.radians(angle) * axis / np.linalg.norm(axis)).as_matrix()
            @ T[:3, :3]
        )
        T[:3, 3] += share * extent * step / np.linalg.norm(step)
        frames.append({"file_path": f"images/{name}", "transform_matrix": (T @ OPENGL).tolist()})
    camera = next(iter(model.cameras.values()))
    f, cx, cy = camera.params
    lens = {"fl_x": f * focal, "fl_y": f * focal, "cx": cx, "cy": cy}
    size = {"w": camera.width, "h": camera.height}
    path.write_text(json.dumps({**lens, **size, "frames": frames}))


def refine(
    scene: Path, path: Path, out: Path, mapping: MappingOptions = FIXED
) -> tuple[Run, GivenPoses]:
    images = scene / "images"
    names = sorted(p.name for p in images.iterdir())
    given = read_given_poses(path, PhotosAtHand(images, names))
    posed = PosedPhotos(given.model, path, images, given.write_again)
    config = ReconstructionConfig(mapping=mapping)
    run = refine_given_poses(posed, out, exhaustive(names), TruthMatcher(scene), config)
    return run, given


def test_two_degrees_and_two_percent_are_mended(scene: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "transforms.json", tmp_path / "out"
    write_noisy(scene, path, 2.0, 0.02)
    run, given = refine(scene, path, out)
    before = compare(out / "given_poses", scene / "truth")
    assert before.rotation_median > 1
    assert before.position_median > 0.5
    found = compare(out / "model", scene / "truth")
    assert found.registered == 7
    assert found.rotation_max < 0.05
    assert found.position_max < 0.05
    # in the world of the given poses, so that every camera has moved about as far as its noise
    poses = run.results["poses"]
    assert poses["rotated_median"] == pytest.approx(2, abs=0.7)
    assert poses["moved_median"] == pytest.approx(0.02, abs=0.01)
    assert {change["state"] for change in poses["changes"]} == {"refined"}
    with (out / "poses.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 7
    # and back in the form that they came in
    again = read_given_poses(out / "transforms.json", given.photos)
    for name, image in posed_images(read_model(out / "model")).items():
        matrix = posed_images(again.model)[name].cam_from_world().matrix()
        np.testing.assert_allclose(matrix, image.cam_from_world().matrix(), atol=1e-6)


@pytest.mark.slow
def test_the_copy_of_a_file_follows_the_file(scene: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "transforms.json", tmp_path / "out"
    write_noisy(scene, path, 1.0, 0.01)
    _, given = refine(scene, path, out)
    # another entry of the file is in the copy, too
    path.write_text(json.dumps({**json.loads(path.read_text()), "aabb_scale": 4}))
    refine(scene, path, out)
    assert json.loads((out / "transforms.json").read_text())["aabb_scale"] == 4
    # the same poses from a file that is not written again: that of the earlier run does not stay
    posed = PosedPhotos(given.model, out / "given_poses", scene / "images")
    pairs, config = exhaustive(given.photos.names), ReconstructionConfig(mapping=FIXED)
    refine_given_poses(posed, out, pairs, TruthMatcher(scene), config)
    assert not (out / "transforms.json").exists()


@pytest.mark.slow
def test_a_wrong_camera_is_found_and_registered_anew(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object) -> None:
        raise EdmHlocError("it has no such camera")

    monkeypatch.setattr(GivenPoses, "write_again", unknown)
    path, out = tmp_path / "transforms.json", tmp_path / "out"
    write_noisy(scene, path, 1.0, 0.01, wrong="view_03.jpg")
    run, _ = refine(scene, path, out)
    # refined cameras of another form cost the copy of the file, not the model
    assert f"{out / 'transforms.json'} was not written: it has no such camera" in caplog.text
    states = {c["name"]: c["state"] for c in run.results["poses"]["changes"]}
    assert states.pop("view_03.jpg") == "registered anew"
    assert set(states.values()) == {"refined"}
    found = compare(out / "model", scene / "truth")
    assert found.registered == 7
    assert found.rotation_max < 0.05


@pytest.mark.parametrize("wrong", ["view_03.jpg", pytest.param(None, marks=pytest.mark.slow)])
def test_a_photo_without_a_pose_is_left_out_whether_or_not_another_is_wrong(
    wrong: str | None, scene: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "transforms.json", tmp_path / "out"
    write_noisy(scene, path, 1.0, 0.01, wrong=wrong)
    record = json.loads(path.read_text())
    (gone,) = (f for f in record["frames"] if f["file_path"].endswith("view_05.jpg"))
    record["frames"].remove(gone)
    path.write_text(json.dumps(record))
    refine(scene, path, out)
    model = read_model(out / "model")
    assert sorted(posed_images(model)) == [f"view_0{i}.jpg" for i in range(7) if i != 5]
    assert len(model.cameras) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "error"), [(False, 0.03), (True, 0.0)])
def test_intrinsics_are_refined_if_asked(
    asked: bool, error: float, scene: Path, tmp_path: Path
) -> None:
    path = tmp_path / "transforms.json"
    write_noisy(scene, path, 1.0, 0.01, focal=1.03)
    true = next(iter(read_model(scene / "truth").cameras.values())).params[0]
    out = tmp_path / "out"
    refine(scene, path, out, replace(FIXED, refine_intrinsics=asked))
    focal = next(iter(read_model(out / "model").cameras.values())).mean_focal_length()
    assert focal / true - 1 == pytest.approx(error, abs=0.005)


def test_poses_of_other_photos_are_said_to_be_so(scene: Path, tmp_path: Path) -> None:
    path = tmp_path / "transforms.json"
    write_noisy(scene, path, 0.0, 0.0)
    record = json.loads(path.read_text())
    rng = np.random.default_rng(0)
    for frame in record["frames"]:
        T = np.eye(4)
        T[:3, :3] = Rotation.random(random_state=rng).as_matrix()
        T[:3, 3] = rng.normal(size=3)
        frame["transform_matrix"] = T.tolist()
    path.write_text(json.dumps(record))
    with pytest.raises(EdmHlocError, match=r"contradict the poses of \d of 7 photos"):
        refine(scene, path, tmp_path / "out")


@pytest.mark.parametrize(
    ("moved", "rotated", "said"),
    [(0.02, 2, ""), (0.3, 2, "moved"), (0.02, 90, "turned"), (0.3, 90, "turned and moved")],
)
def test_poses_that_change_by_a_large_share_are_doubtful(
    moved: float, rotated: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change = PoseChange("a.jpg", moved, rotated, 9, "refined")
    changes = (change, PoseChange("b.jpg", 0.4, 0.25, 9, "registered anew"))
    poses = PoseRefinementSummary(1.0, moved, moved, rotated, rotated, 4.0, False, changes)
    _print_poses(Mock(results={"poses": asdict(poses)}))
    printed = capsys.readouterr().out
    assert "b.jpg: its matches contradict its pose: moved by 40 %, turned by 0.25°" in printed
    warned = printed.partition("Doubtful    The cameras ")[2]
    assert warned.partition(" by far more")[0] == said


def test_photos_at_one_place_are_refused_before_they_are_matched(
    scene: Path, tmp_path: Path
) -> None:
    names = sorted(p.name for p in (scene / "images").iterdir())
    path = tmp_path / "poses.txt"
    path.write_text("".join(f"{name} 0.6 0 0.8 0 0 0 0\n" for name in names))
    known = {name: next(iter(read_model(scene / "truth").cameras.values())) for name in names}
    with pytest.raises(EdmHlocError, match=r"poses\.txt .* has all 7 photos at one place"):
        read_given_poses(path, PhotosAtHand(scene / "images", names), known)

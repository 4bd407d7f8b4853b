"""Evaluation of relative pose: metrics in closed form, file formats, and a run end to end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.evaluation.areas import SEEDS, area_under_curve
from edm_hloc.evaluation.colmap_features import COLMAPMatcher
from edm_hloc.evaluation.estimators import ESTIMATORS, PairMatches
from edm_hloc.evaluation.pose import (
    THRESHOLDS,
    PairResult,
    evaluate_pose,
    measure_pair,
    pose_error,
    summarise,
    table,
)
from edm_hloc.evaluation.pose_pairs import PosePair, read_pose_pairs, rotation_angle
from edm_hloc.evaluation.protocols import PoseProtocol
from edm_hloc.images.load import load_image
from edm_hloc.pairs.with_truth import PairWithPose, read_pairs_with_gt, write_pairs_with_gt
from edm_hloc.synthetic.conditions import CONDITIONS, write_condition
from edm_hloc.synthetic.textures import TextureBank
from tests.fakes import FakeMatcher
from tests.planar import COLMAP_OFFSET, PlanarPair
from tests.scenes import TruthMatcher

SIZES = ((471, 313), (320, 240))  # width, height


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    unit = np.array(axis) / np.linalg.norm(axis)
    return cv2.Rodrigues(unit * np.radians(degrees))[0]


K0 = np.array([[410.0, 0, 231.5], [0, 415.0, 160.25], [0, 0, 1]])
K1 = np.array([[300.0, 0, 158.0], [0, 298.0, 121.5], [0, 0, 1]])
T_0TO1 = np.eye(4)
T_0TO1[:3, :3] = rotation((0.2, 1, 0.1), 20.0)
T_0TO1[:3, 3] = (-1.2, 0.1, 0.3)


def write_photo(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0]), np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, noise)[1].tobytes())


def project(K: np.ndarray, points: np.ndarray) -> np.ndarray:
    seen = points @ K.T
    return seen[:, :2] / seen[:, 2:]


def true_matches(number: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of random points in both photos, in hloc's frame."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -1.5, 4), (2, 1.5, 9), (number, 3))
    return project(K0, points), project(K1, points @ T_0TO1[:3, :3].T + T_0TO1[:3, 3])


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    for i, size in enumerate(SIZES):
        write_photo(tmp_path / "photos" / f"{i}.png", size)
    write_pairs_with_gt(
        tmp_path / "pairs.txt", [PairWithPose("0.png", "1.png", 0, 0, K0, K1, T_0TO1)]
    )
    return tmp_path


# --- Metrics ---------------------------------------------------------------------------------


def test_auc_in_closed_form() -> None:
    assert area_under_curve([0.0, 0.0], THRESHOLDS) == [1.0, 1.0, 1.0]
    assert area_under_curve([np.inf, 30.0], THRESHOLDS) == [0.0, 0.0, 0.0]
    # Recall rises from 0 to 1 as the error goes to 4, and stays there: (2 + 1) / 5, (2 + 6) / 10, …
    np.testing.assert_allclose(area_under_curve([4.0], THRESHOLDS), [0.6, 0.8, 0.9])
    # Recall ½ at 2 and 1 at 8; between the last error below the threshold and the threshold it is
    # constant: 0.5 + (0.5 + 0.5) / 2 · 3 up to 5.
    np.testing.assert_allclose(area_under_curve([2.0, 8.0], (5.0,)), [(0.5 + 1.5) / 5])
    with pytest.raises(ValueError, match="no error"):
        area_under_curve([], THRESHOLDS)


def test_pose_error_is_the_larger_angle() -> None:
    turned = rotation((1, 0, 0), 3.0) @ T_0TO1[:3, :3]
    assert pose_error((turned, T_0TO1[:3, 3]), T_0TO1) == pytest.approx(3.0)
    t = rotation(tuple(np.cross(T_0TO1[:3, 3], (1, 0, 0))), 7.0) @ T_0TO1[:3, 3]
    assert pose_error((turned, 5 * t), T_0TO1) == pytest.approx(7.0)
    assert pose_error((T_0TO1[:3, :3], -T_0TO1[:3, 3]), T_0TO1) == pytest.approx(0.0, abs=1e-5)
    assert pose_error(None, T_0TO1) == np.inf
    assert rotation_angle(rotation((0, 0, 1), 1e-6)) == pytest.approx(1e-6)
    assert rotation_angle(rotation((0, 1, 1), 180.0)) == pytest.approx(180.0)
    several = np.array([rotation((1, 0, 2), degrees) for degrees in (1e-6, 30.0, 170.0)])
    assert rotation_angle(several) == pytest.approx([1e-6, 30.0, 170.0])


def test_true_matches_have_no_error_and_wrong_ones_do(listed: Path) -> None:
    (pair,) = read_pose_pairs(listed / "pairs.txt", listed / "photos", 1024)
    x0, x1 = true_matches()
    result = measure_pair(pair, x0, x1)
    assert result.matches == result.near == result.near_squared == 300
    assert set(result.errors) == {"colmap", "opencv", "poselib"}
    for errors in result.errors.values():
        assert len(errors) == len(SEEDS)
        assert max(errors) < 1e-3
    # A point moved by d px perpendicularly to its epipolar line has an error of d px there, and of
    # at most 2d px in the other photo, whose focal length is longer.
    for d, near in ((0.45, 300), (1.05, 0)):
        moved = x1 + d * normals(x0)
        assert measure_pair(pair, x0, moved).near == near
    nothing = np.empty((0, 2))
    none = measure_pair(pair, nothing, nothing)
    assert (none.matches, none.near) == (0, 0)
    assert set(none.errors.values()) == {(np.inf,) * len(SEEDS)}


def normals(x0: np.ndarray) -> np.ndarray:
    """Unit normals of the epipolar lines in image 1, whose focal length is the shorter one."""
    x, y, z = T_0TO1[:3, 3]
    E = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ T_0TO1[:3, :3]
    F = np.linalg.inv(K1).T @ E @ np.linalg.inv(K0)
    lines = np.column_stack([x0, np.ones(len(x0))]) @ F.T
    return lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)


def test_half_a_pixel_would_be_noticed(listed: Path) -> None:
    """Matches in hloc's frame give the exact pose; matches in COLMAP's frame do not."""
    (pair,) = read_pose_pairs(listed / "pairs.txt", listed / "photos", 1024)
    x0, x1 = true_matches()
    assert max(measure_pair(pair, x0, x1).errors["colmap"]) < 1e-3
    assert min(measure_pair(pair, x0 + 0.5, x1).errors["colmap"]) > 1e-2


def test_photos_are_measured_at_the_size_of_matching(listed: Path) -> None:
    """2 px in a photo of 471 px are 1 px where its longest side is 235."""
    x0, x1 = true_matches()
    moved = x1 + 1.4 * normals(x0)
    for resize, near in ((1024, 0), (160, 300)):
        (pair,) = read_pose_pairs(listed / "pairs.txt", listed / "photos", resize)
        assert max(pair.camera0.width, pair.camera1.width) == min(resize, 471)
        result = measure_pair(pair, x0, moved)
        assert result.near == near
        assert max(measure_pair(pair, x0, x1).errors["colmap"]) < 0.05  # sizes are whole pixels


def test_outliers_are_rejected(listed: Path) -> None:
    (pair,) = read_pose_pairs(listed / "pairs.txt", listed / "photos", 1024)
    x0, x1 = true_matches()
    x1[::3] = np.random.default_rng(1).uniform(0, 300, (100, 2))
    result = measure_pair(pair, x0, x1)
    assert 200 <= result.near < 215
    assert max(max(errors) for errors in result.errors.values()) < 0.5
    few = PairMatches(*(x[:4] for x in (x0, x1, x0, x1)))
    for _, estimate in ESTIMATORS.values():
        assert estimate(few, pair, 1.0, 0) is None
    noisy = measure_pair(pair, x0 + np.random.default_rng(2).normal(0, 0.3, x0.shape), x1)
    for errors in noisy.errors.values():
        assert len(set(errors)) > 1  # each seed draws otherwise


def test_summaries_by_rotation() -> None:
    def result(rotation: float, error: float, near: int = 5) -> PairResult:
        errors = {"colmap": (error, error / 2), "opencv": (np.inf,) * 2}
        return PairResult("a", "b", rotation, 10, near, near, errors)

    summaries = summarise("m", [result(0.0, 0.0), result(30.0, np.inf, 0), result(90.0, 4.0)])
    assert [(s.rotations, s.pairs) for s in summaries] == [
        ((0, 180), 3), ((0, 30), 2), ((60, 180), 1)
    ]  # fmt: skip
    assert summaries[0].precision == pytest.approx(1 / 3)
    # Errors of 4 degrees and of 2: at 5 degrees 60 and 80 %, each 10 from their mean.
    np.testing.assert_allclose(summaries[2].areas["colmap"], [70, 85, 92.5])
    assert summaries[2].spreads["colmap"] == pytest.approx(10)
    assert (summaries[2].areas["opencv"], summaries[2].spreads["opencv"]) == ((0, 0, 0), 0)
    protocol = PoseProtocol("ours", {"colmap": 1.5, "opencv": 0.5})
    assert "70.0 ± 10.0 / 85.0 / 92.5" in table(summaries, protocol).splitlines()[-1]
    assert len(summarise("m", [result(10.0, 1.0)])) == 1  # no second row for the same pairs


# --- Formats ---------------------------------------------------------------------------------


def same_pose(pair: PosePair) -> None:
    np.testing.assert_allclose(pair.T_0to1, T_0TO1, atol=1e-12)
    for camera, K, size in ((pair.camera0, K0, SIZES[0]), (pair.camera1, K1, SIZES[1])):
        assert (camera.width, camera.height) == size
        np.testing.assert_allclose(camera.calibration_matrix(), K + COLMAP_OFFSET, atol=1e-9)
    assert pair.rotation == pytest.approx(20.0)


def test_list_of_pairs(listed: Path) -> None:
    (pair,) = read_pose_pairs(listed / "pairs.txt", listed / "photos", 1024)
    same_pose(pair)
    (again,) = read_pairs_with_gt(listed / "pairs.txt")
    np.testing.assert_array_equal(again.T_0to1, T_0TO1)  # written to the last bit


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png b.png 0 0 1 2 3", "line 2"),
        ("0.png 1.png 0 0 " + " ".join(["nan"] * 34), "line 2"),
        ("0.png 1.png 1 0 " + " ".join(["1"] * 34), "EXIF rotation"),
        ("0.png gone.png 0 0 " + " ".join(["1"] * 34), "gone.png"),
    ],
)
def test_bad_lists_are_explained(listed: Path, line: str, message: str) -> None:
    with (listed / "pairs.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(EdmHlocError, match=message):
        read_pose_pairs(listed / "pairs.txt", listed / "photos", 1024)


def test_colmap_model(listed: Path) -> None:
    model = pycolmap.Reconstruction()
    poses = (np.eye(4), T_0TO1)
    for i, (K, (width, height)) in enumerate(zip((K0, K1), SIZES, strict=True), 1):
        params = [K[0, 0], K[1, 1], *(K + COLMAP_OFFSET)[:2, 2]]
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params, camera_id=i)
        )
        image = pycolmap.Image(name=f"{i - 1}.png", camera_id=i, image_id=i)
        R = pycolmap.Rotation3d(poses[i - 1][:3, :3])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(R, poses[i - 1][:3, 3]))
    (listed / "model").mkdir()
    model.write(listed / "model")
    (pair,) = read_pose_pairs(listed / "model", listed / "photos", 1024)
    same_pose(pair)
    (listed / "photos" / "1.png").unlink()
    with pytest.raises(EdmHlocError, match="fewer than two"):
        read_pose_pairs(listed / "model", listed / "photos", 1024)


def test_megadepth_index(listed: Path) -> None:
    """As LoFTR's `megadepth_test_1500_scene_info`: object arrays, cam_from_world, COLMAP's K."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation((1, 2, 3), 40.0), (3, 2, 1)
    info = np.empty(1, object)
    info[0] = ((0, 2), 0.3, np.zeros(4))
    index = listed / "index"
    index.mkdir()
    np.savez(
        index / "0015_0.1_0.3.npz",
        image_paths=np.array(["photos/0.png", None, "photos/1.png"], object),
        intrinsics=np.array([K0 + COLMAP_OFFSET, None, K1 + COLMAP_OFFSET], object),
        poses=np.array([world, None, T_0TO1 @ world], object),
        pair_infos=info,
    )
    (index / "._0015_0.1_0.3.npz").write_bytes(b"\0\5\26\7Mac OS X")
    for truth in (index, index / "0015_0.1_0.3.npz"):
        (pair,) = read_pose_pairs(truth, listed, 64)  # measured in photos as they are
        same_pose(pair)
        assert pair.name1 == "photos/1.png"
    (index / "0015_0.1_0.3.npz").write_bytes(b"junk")
    with pytest.raises(EdmHlocError, match="0015"):
        read_pose_pairs(index, listed, 64)


def test_principal_points_of_megadepth_are_the_photos_centres(tmp_path: Path) -> None:
    """Rows of LoFTR's index of scene 0015: COLMAP's cameras have the same principal point."""
    rows = {(1600, 1199): (800.0, 599.5), (1599, 1199): (799.5, 599.5), (1014, 599): (507.0, 299.5)}
    for i, size in enumerate(rows):
        write_photo(tmp_path / f"{i}.jpg", size)
    infos = np.empty(2, object)
    infos[:] = [((0, 1), 0.3, None), ((1, 2), 0.3, None)]
    np.savez(
        tmp_path / "0015.npz",
        image_paths=np.array([f"{i}.jpg" for i in range(3)], object),
        intrinsics=np.array(
            [[[1750, 0, cx], [0, 1750, cy], [0, 0, 1]] for cx, cy in rows.values()]
        ),
        poses=np.array([np.eye(4), T_0TO1, np.eye(4)]),
        pair_infos=infos,
    )
    cameras = {}
    for pair in read_pose_pairs(tmp_path / "0015.npz", tmp_path, 640):
        cameras |= {pair.name0: pair.camera0, pair.name1: pair.camera1}
    for (width, height), (_, camera) in zip(rows, sorted(cameras.items()), strict=True):
        assert (camera.width, camera.height) == (width, height)
        assert camera.principal_point_x == rows[width, height][0] == width / 2
        assert camera.principal_point_y == rows[width, height][1] == height / 2


@pytest.mark.parametrize("sizes", [((471, 313), (471, 313)), ((320, 240), (1599, 1199))])
def test_half_a_pixel_would_be_noticed_in_megadepth(
    tmp_path: Path, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    """Exact matches of a plane and points around it, by an index written as MegaDepth's."""
    planar = PlanarPair(*sizes)
    (pair,) = read_pose_pairs(planar.write_as_megadepth(tmp_path), tmp_path, 640)
    pixels = np.random.default_rng(0).uniform(0, np.array(sizes[0]) - 1, (300, 2))
    points = planar.plane_points(0, pixels) * np.random.default_rng(1).uniform(0.7, 1.4, (300, 1))
    x0, x1 = planar.project(0, points), planar.project(1, points)
    assert max(measure_pair(pair, x0, x1).errors["colmap"]) < 1e-3
    assert min(measure_pair(pair, x0 + 0.5, x1 + 0.5).errors["colmap"]) > 1e-2


def test_scannet_index(tmp_path: Path) -> None:
    """As LoFTR's `scannet_test_1500`: scaled intrinsics of colour cameras, world_from_cam."""
    scene = tmp_path / "scene0707_03"
    (scene / "pose").mkdir(parents=True)
    world_from_0 = np.eye(4)
    world_from_0[:3, :3] = rotation((1, 0, 1), 70.0)
    for frame, pose in ((15, world_from_0), (585, world_from_0 @ np.linalg.inv(T_0TO1))):
        np.savetxt(scene / "pose" / f"{frame}.txt", pose)
        write_photo(scene / "color" / f"{frame}.jpg", (1296, 968))
    index = tmp_path / "index"
    index.mkdir()
    np.savez(index / "test.npz", name=np.array([[707, 3, 15, 585]]))
    scale = np.array([640 / 1296, 480 / 968])
    scaled = K1.copy()  # the principal point times `scale` of the photo's
    scaled[:2, 2] = ((K1[:2, 2] + 0.5) / scale - 0.5) * scale
    np.savez(index / "intrinsics.npz", scene0707_03=scaled)
    (pair,) = read_pose_pairs(index, tmp_path, 640)
    np.testing.assert_allclose(pair.T_0to1, T_0TO1, atol=1e-9)
    assert (pair.camera0.width, pair.camera0.height, pair.size0) == (640, 480, (1296, 968))
    expected = K1 + COLMAP_OFFSET
    np.testing.assert_allclose(pair.camera0.calibration_matrix(), expected, atol=1e-9)
    # A pixel of the photo lies where the same point of the depth map does.
    x0 = project(K1, np.array([[0.1, 0.2, 3.0]] * 9))
    photo = (x0 + 0.5) * (1296 / 640, 968 / 480) - 0.5
    point = np.array([[0.1, 0.2, 3.0]] * 9) @ T_0TO1[:3, :3].T + T_0TO1[:3, 3]
    photo1 = (project(K1, point) + 0.5) * (1296 / 640, 968 / 480) - 0.5
    assert measure_pair(pair, photo, photo1).near == 9
    np.savetxt(scene / "pose" / "15.txt", np.full((4, 4), -np.inf))  # where ScanNet lost track
    with pytest.raises(EdmHlocError, match=r"15\.txt: it is not finite"):
        read_pose_pairs(index, tmp_path, 640)
    (scene / "pose" / "15.txt").unlink()
    with pytest.raises(EdmHlocError, match=r"15\.txt"):
        read_pose_pairs(index, tmp_path, 640)


def test_photos_that_are_not_there(tmp_path: Path) -> None:
    K, pose = "100 0 50 0 100 50 0 0 1", "1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1"
    truth = tmp_path / "pairs.txt"
    truth.write_text(f"a.png b.png 0 0 {K} {K} {pose}\n")
    with pytest.raises(EdmHlocError, match=r"2 of the photos of .*pairs\.txt are not in .*a\.png:"):
        read_pose_pairs(truth, tmp_path, 640)


def test_neither_model_nor_index(tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match="neither a COLMAP model"):
        read_pose_pairs(tmp_path, tmp_path, 640)
    with pytest.raises(EdmHlocError, match="no file or folder"):
        read_pose_pairs(tmp_path / "gone", tmp_path, 640)


# --- Whole runs ------------------------------------------------------------------------------


def test_evaluation_of_the_truth_and_of_sift(scene: Path, tmp_path: Path) -> None:
    """Exact matches give exact poses through files and formats; SIFT gives good ones."""
    pairs = read_pose_pairs(scene / "truth", scene / "images", 1024)[:4]
    matchers = {"truth": TruthMatcher(scene, noise=0.0, outliers=0.0), "sift": COLMAPMatcher()}
    summaries = evaluate_pose(pairs, scene / "images", matchers, tmp_path)
    truth, sift = (next(s for s in summaries if s.matcher == name) for name in matchers)
    assert truth.precision > 0.99
    assert truth.areas["colmap"][0] > 99
    assert truth.areas["opencv"][0] > 98
    assert sift.precision > 0.5
    assert sift.areas["colmap"][2] > 60
    assert sift.cpu_ms is not None
    assert sift.cpu_ms > 1
    content = json.loads((tmp_path / "pose.json").read_text())
    assert len(content["pairs"]["sift"]) == 4
    assert content["matchers"]["sift"]["max_features"] == 8192


def test_interrupted_evaluation_goes_on(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poses of finished matchers are not estimated again, unless the truth is another one."""
    pairs = read_pose_pairs(scene / "truth", scene / "images", 1024)[:2]
    truth = TruthMatcher(scene, noise=0.0, outliers=0.0)
    first = evaluate_pose(pairs, scene / "images", {"truth": truth}, tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edm_hloc.evaluation.pose.measure_pair", stop)
    again = evaluate_pose(pairs, scene / "images", {"truth": truth}, tmp_path)
    assert again == first
    with pytest.raises(KeyboardInterrupt):
        evaluate_pose(
            pairs, scene / "images", {"truth": truth}, tmp_path, PoseProtocol("ours", {"opencv": 2})
        )
    moved = dataclasses.replace(pairs[0], T_0to1=np.eye(4))
    with pytest.raises(KeyboardInterrupt):
        evaluate_pose([moved, pairs[1]], scene / "images", {"truth": truth}, tmp_path)


def test_pairs_from_one_place_are_counted(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = read_pose_pairs(scene / "truth", scene / "images", 1024)[:3]
    matchers = {"fake": FakeMatcher()}
    evaluate_pose(pairs, scene / "images", matchers, tmp_path)
    assert not caplog.messages
    turned = pairs[1].T_0to1.copy()
    turned[:3, 3] = 1e-16  # as the difference of two equal positions in a file is
    pairs[1] = dataclasses.replace(pairs[1], T_0to1=turned)
    evaluate_pose(pairs, scene / "images", matchers, tmp_path)
    assert f"1 of the 3 pairs have one true position for both photos, such as {pairs[1].name0}" in (
        caplog.text
    )


def test_a_repaired_photo_is_measured(scene: Path, tmp_path: Path) -> None:
    pairs = read_pose_pairs(scene / "truth", scene / "images", 1024)[:2]
    images, matchers = tmp_path / "images", {"fake": FakeMatcher()}
    shutil.copytree(scene / "images", images)
    (repaired,) = {pairs[1].name0, pairs[1].name1} - {pairs[0].name0, pairs[0].name1}
    (images / repaired).write_bytes(b"")
    assert evaluate_pose(pairs, images, matchers, tmp_path / "out")[0].matches == 1.5
    shutil.copy(scene / "images" / repaired, images)
    assert evaluate_pose(pairs, images, matchers, tmp_path / "out")[0].matches == 3


def test_sift_finds_a_shift_to_a_tenth_of_a_pixel(tmp_path: Path) -> None:
    """SIFT's pixel frame is hloc's, at full size and reduced."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.uniform(0, 255, (250, 330)).astype(np.float32), (0, 0), 2.5)
    image = cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    for name, part in (("0", image[:213, :311]), ("1", image[20:233, 10:321])):
        (tmp_path / f"{name}.png").write_bytes(cv2.imencode(".png", part)[1].tobytes())
    for resize in (None, 240):
        matcher = COLMAPMatcher("sift", resize)
        features = [
            matcher.encode(load_image(tmp_path / f"{i}.png", resize_max=resize, divisor=1))
            for i in (0, 1)
        ]
        found = matcher.match(*features)
        assert len(found.scores) > 50
        shift = np.median(found.keypoints0 - found.keypoints1, axis=0)
        np.testing.assert_allclose(shift, (10, 20), atol=0.1)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_are_what_they_say(condition: str, tmp_path: Path) -> None:
    textures = TextureBank.procedural(count=8, size=128)
    truth = write_condition(condition, tmp_path, 3, textures, seed=5, size=(128, 96))
    pairs = read_pairs_with_gt(truth)
    assert len(pairs) == 3
    images = [
        cv2.imread(str(tmp_path / "images" / name), cv2.IMREAD_GRAYSCALE).astype(float)
        for pair in pairs
        for name in (pair.name0, pair.name1)
    ]
    assert {image.shape for image in images} == {(96, 128)}
    zoom = np.median([pair.K0[0, 0] / pair.K1[0, 0] for pair in pairs])
    assert (zoom > 1.5) == (condition == "scale-2")
    # The angle of the image's upright direction between both cameras.
    rolls = [abs(np.degrees(np.arctan2(p.T_0to1[1, 0], p.T_0to1[0, 0]))) for p in pairs]
    low, high = {"roll": (14, 60), "turned": (60, 180)}.get(condition, (0, 14))
    assert low < np.median(rolls) < high
    if condition == "day-night":
        means = np.array([image.mean() for image in images]).reshape(-1, 2)
        assert (means[:, 1] < 0.8 * means[:, 0]).mean() > 0.5
    again = write_condition(condition, tmp_path / "again", 1, textures, seed=5, size=(128, 96))
    assert read_pairs_with_gt(again)[0].T_0to1.tobytes() == pairs[0].T_0to1.tobytes()


def test_command(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "pose", str(scene / "truth"), str(scene / "images")]
    options = ["--resize", "160", "--max-rotation", "20", "--beside", "network"]
    assert main([*arguments, str(tmp_path / "out"), *options]) == 0
    said = capsys.readouterr().out
    assert "| edm | 0–180 |" in said
    assert "| edm-network | 0–180 |" in said
    assert main(["evaluate", "pose", str(tmp_path), str(tmp_path), str(tmp_path / "o")]) == 1
    assert "neither a COLMAP model" in capsys.readouterr().err

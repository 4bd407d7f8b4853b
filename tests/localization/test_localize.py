"""Poses of queries: PnP, its log, submissions, and their evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.localization import evaluate, pose_errors, read_truth, table
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchWriter
from edm_hloc.localization.log import read_log
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints, write_model_keypoints
from edm_hloc.localization.poses import read_poses, to_numbers, to_rigid, write_poses
from edm_hloc.localization.queries import localize_queries, query_cameras
from edm_hloc.localization.results import QueryPose
from edm_hloc.localization.submission import check_submission

CAMERA = pycolmap.Camera(
    model="SIMPLE_RADIAL", width=471, height=313, params=[400.0, 235.5, 156.5, -0.05]
)
TRUTH = pycolmap.Rigid3d(
    pycolmap.Rotation3d(np.array([0.1, -0.2, 0.05, 0.97]) / np.linalg.norm([0.1, 0.2, 0.05, 0.97])),
    np.array([0.3, -0.2, 1.5]),
)


class Points:
    """Database images whose k-th keypoint is the k-th point of a cloud."""

    def __init__(self, cloud: np.ndarray, names: tuple[str, ...] = ("db/a.jpg", "db/b.jpg")):
        self.cloud, self._names = cloud, list(names)

    def names(self) -> list[str]:
        return self._names

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def points(self, name: str) -> np.ndarray:
        return self.cloud

    def pose(self, name: str) -> pycolmap.Rigid3d | None:
        return pycolmap.Rigid3d() if name in self._names else None

    def clusters(self, names: list[str]) -> list[list[str]]:
        return [[name] for name in names]


def seen(cloud: np.ndarray) -> np.ndarray:
    """(N, 2) pixels of the cloud in the query, hloc's frame."""
    return np.asarray(CAMERA.img_from_cam(TRUTH * cloud)) - 0.5


@pytest.fixture
def files(tmp_path: Path):
    """Writes keypoints and matches of queries; the first N keypoints match the first N points."""
    cloud = np.random.default_rng(0).uniform([-3, -2, 4], [3, 2, 9], (300, 3))

    def write(
        queries: dict[str, np.ndarray], images: tuple[str, ...] = ("db/a.jpg", "db/b.jpg")
    ) -> dict:
        with (
            FeatureWriter(tmp_path / "f.h5", {}) as features,
            MatchWriter(tmp_path / "m.h5", {}) as matches,
        ):
            for name, keypoints in queries.items():
                features.add(name, keypoints, np.ones(len(keypoints)))
                for image in images:
                    ids = np.arange(len(keypoints))
                    matches.add(name, image, ids, np.ones(len(keypoints)))
        return {
            "queries": list(queries),
            "cameras": dict.fromkeys(queries, CAMERA),
            "retrieval": {query: list(images) for query in queries},
            "features": tmp_path / "f.h5",
            "matches": tmp_path / "m.h5",
            "points": Points(cloud),
            "log": tmp_path / "log.jsonl",
        }

    return cloud, write


def test_pose_is_exact_to_the_half_pixel(files) -> None:
    cloud, write = files
    (answer,) = localize_queries(**write({"q/1.jpg": seen(cloud)}))
    position, rotation = pose_errors(answer.pose, TRUTH)
    assert position < 1e-4  # half a pixel off would be 0.01
    assert rotation < 1e-3
    assert answer.status == "localized"
    assert answer.confidence == "high"
    # the two images show the same points: equal correspondences count once
    assert (answer.matches, answer.correspondences, answer.inliers) == (600, 300, 300)
    assert answer.inliers_of == {"db/a.jpg": 300, "db/b.jpg": 300}


def test_same_answers_whatever_the_threads_and_order(files) -> None:
    cloud, write = files
    rng = np.random.default_rng(1)
    queries = {
        f"q/{k}.jpg": np.vstack(
            [seen(cloud[:150]) + rng.normal(0, 1, (150, 2)), rng.uniform(0, 300, (150, 2))]
        )
        for k in range(5)
    }
    job = write(queries)
    one = localize_queries(**job, options=PoseOptions(threads=1), fingerprint="1")
    three = localize_queries(**job, options=PoseOptions(threads=3), fingerprint="2")
    assert [a.cam_from_world for a in one] == [a.cam_from_world for a in three]
    job["queries"] = job["queries"][::-1]
    back = localize_queries(**job, options=PoseOptions(threads=1), fingerprint="3")
    assert [a.cam_from_world for a in back[::-1]] == [a.cam_from_world for a in one]
    assert all(0.5 < a.median_error < 2 and a.inliers >= 145 for a in one)


def test_failures_are_told_apart_and_never_fatal(files) -> None:
    cloud, write = files
    few = seen(cloud)[:9]
    noise = np.random.default_rng(2).uniform(0, 300, (200, 2))
    job = write(dict.fromkeys(("few", "none", "lost", "dark", "other"), few) | {"noise": noise})
    job["retrieval"]["none"] = []
    job["retrieval"]["other"] = ["db/unknown.jpg"]
    del job["cameras"]["lost"]
    answers = {
        a.query: a for a in localize_queries(**job, problems={"dark": "Cannot read image dark."})
    }
    assert {q: a.status for q, a in answers.items()} == {
        "few": "closest",
        "none": "failed",
        "lost": "closest",
        "dark": "closest",
        "other": "failed",
        "noise": "closest",
    }
    assert answers["few"].reason == "9 of 9 correspondences agree with a pose; 10 are needed."
    assert answers["none"].reason == "The retrieval lists no database image for it."
    assert answers["dark"].reason == "Cannot read image dark."
    assert "db/unknown.jpg" in answers["other"].reason
    assert pose_errors(answers["few"].pose, pycolmap.Rigid3d()) == (0, 0)
    assert answers["none"].pose is None
    assert {a.confidence for a in answers.values()} == {"none"}


def test_what_colmap_raises_for_one_query_does_not_end_the_others(files, monkeypatch) -> None:
    cloud, write = files
    job = write(dict.fromkeys(("q1", "odd", "q2"), seen(cloud)))
    job["cameras"]["odd"] = pycolmap.Camera(CAMERA.todict() | {"width": 1})
    estimate = pycolmap.estimate_and_refine_absolute_pose

    def sometimes(pixels, points, camera, *options):
        if camera.width == 1:
            raise ValueError("no such camera")
        return estimate(pixels, points, camera, *options)

    monkeypatch.setattr(pycolmap, "estimate_and_refine_absolute_pose", sometimes)
    answers = localize_queries(**job)
    assert [a.status for a in answers] == ["localized", "closest", "localized"]
    assert answers[1].reason == "ValueError: no such camera"
    assert [a.query for a in read_log(job["log"])] == ["q1", "odd", "q2"]


def test_confidence_needs_many_inliers_that_fix_the_pose() -> None:
    def confidence(**more) -> str:
        known = {"inliers": 200, "correspondences": 300, "rotation_deviation": 0.05}
        return QueryPose("q", "localized", **(known | more)).confidence

    assert confidence() == "high"
    assert confidence(inliers=99) == "low"
    assert confidence(correspondences=2100) == "low"
    assert confidence(rotation_deviation=0.5) == "low"
    assert confidence(rotation_deviation=None) == "low"


def test_pairs_with_few_matches_are_left_out(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)[:50]})
    (answer,) = localize_queries(**job, options=PoseOptions(min_matches=51))
    assert (answer.status, answer.matched, answer.matches) == ("closest", 0, 0)
    (answer,) = localize_queries(**job, options=PoseOptions(min_matches=50), fingerprint="b")
    assert (answer.status, answer.matched) == ("localized", 2)


def test_the_best_cluster_wins(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)}, images=("db/a.jpg", "db/b.jpg", "db/c.jpg"))

    class Elsewhere(Points):
        def points(self, name: str) -> np.ndarray:
            return self.cloud if name == "db/b.jpg" else self.cloud[::-1] + 100.0

    job["points"] = Elsewhere(cloud, ("db/a.jpg", "db/b.jpg", "db/c.jpg"))
    (answer,) = localize_queries(**job, options=PoseOptions(clusters=True))
    assert answer.inliers_of == {"db/b.jpg": 300}
    assert answer.correspondences == 300


def test_files_of_different_runs_are_refused(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)})
    job["points"] = Points(cloud[:100])
    with pytest.raises(EdmHlocError, match="of other keypoints than those at hand"):
        localize_queries(**job)


def test_an_interrupted_log_is_continued(files) -> None:
    cloud, write = files
    job = write({f"q{k}": seen(cloud) for k in range(4)})
    whole = localize_queries(**job, fingerprint="x")
    log: Path = job["log"]
    lines = log.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["seconds"] = 1234.0
    log.write_text("\n".join([lines[0], json.dumps(changed), lines[2][:50]]))  # killed in a line
    again = localize_queries(**job, fingerprint="x")
    assert [a.cam_from_world for a in again] == [a.cam_from_world for a in whole]
    assert again[0].seconds == 1234.0  # not done again
    assert [a.query for a in read_log(log)] == ["q0", "q1", "q2", "q3"]
    assert localize_queries(**job, fingerprint="y")[0].seconds != 1234.0


def test_deviations_are_those_of_repeated_measurements(files) -> None:
    cloud, write = files
    rng = np.random.default_rng(3)
    queries = {f"{k}": seen(cloud) + rng.normal(0, 0.7, (300, 2)) for k in range(60)}
    answers = localize_queries(**write(queries))
    errors = np.array([pose_errors(a.pose, TRUTH) for a in answers])
    measured = np.sqrt(np.mean(errors**2, axis=0))
    stated = np.median([(a.position_deviation, a.rotation_deviation) for a in answers], axis=0)
    np.testing.assert_allclose(stated, measured, rtol=0.25)


def test_unknown_focal_length_is_estimated(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)})
    guess = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 600, 471, 313)
    guess.has_prior_focal_length = False
    job["cameras"]["q"] = guess
    (answer,) = localize_queries(**job, uncalibrated=["q"])
    assert float(answer.camera.split()[3]) == pytest.approx(400, rel=0.01)
    assert guess.focal_length == 600  # the caller's is untouched
    assert pose_errors(answer.pose, TRUTH)[1] < 0.1


def test_queries_of_another_size_are_named(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((313, 471), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((300, 471), np.uint8))
    (tmp_path / "c.png").write_bytes(b"no image")
    exif = Image.Exif()
    exif[0x0112] = 6  # of a photo to be turned, of which Pillow turns the size
    Image.new("L", (471, 313)).save(tmp_path / "e.tif", exif=exif)
    names = ["a.png", "b.png", "c.png", "d.png", "e.tif"]
    cameras, problems = query_cameras(tmp_path, names, dict.fromkeys(names, CAMERA))
    assert list(cameras) == ["a.png", "e.tif"]
    assert "471 × 313 pixels, but" in problems["b.png"]
    assert "471 × 300" in problems["b.png"]
    assert "Cannot read image" in problems["c.png"]
    assert "d.png" in problems["d.png"]


# --------------------------------------------------------------------------- models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three images: a and b share points, c has its own; every other keypoint has a point."""
    built = pycolmap.Reconstruction()
    for number, name in enumerate(("a", "b", "c"), start=1):
        camera = pycolmap.Camera(CAMERA.todict())
        camera.camera_id = number
        built.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=f"{name}.jpg", camera_id=number, image_id=number)
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(np.array([10.0 * k + number, 20.0])) for k in range(6)]
        )
        built.add_image_with_trivial_frame(image, TRUTH)
    for k in (0, 2, 4):
        both = [pycolmap.TrackElement(1, k), pycolmap.TrackElement(2, k)]
        built.add_point3D(np.array([k, 0.0, 5.0]), pycolmap.Track(both))
        built.add_point3D(np.array([k, 1.0, 5.0]), pycolmap.Track([pycolmap.TrackElement(3, k)]))
    built.write(tmp_path)
    return tmp_path


def test_points_of_a_model_follow_its_keypoints(model: Path, tmp_path: Path) -> None:
    points = ModelPoints(model, prefix="database/")
    assert points.names() == ["database/a.jpg", "database/b.jpg", "database/c.jpg"]
    known = points.points("database/b.jpg")
    np.testing.assert_array_equal(known[::2], [[0, 0, 5], [2, 0, 5], [4, 0, 5]])
    assert np.isnan(known[1::2]).all()
    assert points.clusters([*points.names(), "database/x.jpg"]) == [
        ["database/a.jpg", "database/b.jpg"],
        ["database/c.jpg"],
    ]
    write_model_keypoints(points, ["database/b.jpg"], tmp_path / "k.h5")
    with FeatureReader(tmp_path / "k.h5") as reader:
        expected = [[10.0 * k + 1.5, 19.5] for k in range(6)]
        np.testing.assert_allclose(reader.keypoints("database/b.jpg"), expected)


def test_a_model_without_points_is_refused(tmp_path: Path) -> None:
    pycolmap.Reconstruction().write(tmp_path)
    with pytest.raises(EdmHlocError, match="no 3D points"):
        ModelPoints(tmp_path)


# --------------------------------------------------------------------------- files of poses


def test_poses_go_to_a_file_and_back(tmp_path: Path) -> None:
    turned = to_rigid([-2.0, 0.0, 0.0, 0.2, 1.0, 2.0, 3.0])  # neither of length 1 nor positive
    path = tmp_path / "out" / "poses.txt"
    write_poses(path, {"query/x/1.jpg": TRUTH, "query/y/2.jpg": turned}, basenames=True)
    assert path.read_text().startswith("1.jpg 0.9")
    back = read_poses(path)
    assert pose_errors(back["1.jpg"], TRUTH) == pytest.approx((0, 0), abs=1e-9)
    numbers = to_numbers(back["2.jpg"])
    assert numbers[0] > 0
    assert np.linalg.norm(numbers[:4]) == pytest.approx(1, abs=1e-12)
    assert numbers[4:] == (1, 2, 3)
    assert check_submission(path, ["a/1.jpg", "b/2.jpg"]) == []
    with pytest.raises(EdmHlocError, match=r"Two queries are called 1\.jpg"):
        write_poses(path, {"a/1.jpg": TRUTH, "b/1.jpg": TRUTH}, basenames=True)


def test_what_is_wrong_with_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text(
        "1.jpg 1 0 0 0 0 0 0\n1.jpg 1 0 0 0 0 0 0\nquery/2.jpg 1 0 0 0 0 0 0\n3.jpg 1 1 0 0 0 0 0\n"
        "4.jpg 1 0 0 0 0 0\n5.jpg 1 0 0 0 nan 0 0\n9.jpg 1 0 0 0 0 0 0\n"
    )
    queries = [f"query/{k}.jpg" for k in range(1, 7)]
    assert check_submission(path, queries) == [
        "line 2, 1.jpg: a second pose of the same query",
        "line 3, query/2.jpg: no such query; names go without folders",
        "line 4, 3.jpg: the quaternion's length is 1.41421",
        "line 5, 4.jpg: expected 'name qw qx qy qz tx ty tz'",
        "line 6, 5.jpg: not a pose: numbers must be finite and the quaternion not zero",
        "line 7, 9.jpg: no such query",
        "2 of 6 queries have no pose, e.g. query/2.jpg, query/6.jpg",
    ]
    with pytest.raises(EdmHlocError, match="line 5"):
        read_poses(path)


# --------------------------------------------------------------------------- evaluation


def moved(metres: float, degrees: float) -> pycolmap.Rigid3d:
    """The true pose with its centre moved and then turned about the centre."""
    axis_angle = np.radians(degrees) * np.array([0.6, 0.0, 0.8])
    R = pycolmap.Rotation3d(axis_angle) * TRUTH.rotation
    centre = TRUTH.inverse().translation + metres * np.array([0.0, 0.6, 0.8])
    return pycolmap.Rigid3d(R, -(R * centre))


def test_errors_and_recall(tmp_path: Path) -> None:
    assert pose_errors(moved(0.3, 7), TRUTH) == pytest.approx((0.3, 7.0))
    assert pose_errors(moved(0, 1e-5), TRUTH)[1] == pytest.approx(1e-5, rel=1e-4)
    poses = {
        "a.jpg": moved(0.1, 1),
        "b.jpg": moved(0.4, 1),
        "c.jpg": moved(0.1, 8),
        "n.jpg": moved(9, 90),
    }
    for group, names in (("day", "abcd"), ("night", "n")):
        truth = {f"query/{group}/{name}.jpg": TRUTH for name in names}
        write_poses(tmp_path / f"{group}.txt", truth)
    day, night = evaluate(poses, read_truth(tmp_path))
    assert (day.group, day.queries, day.answered) == ("day", 4, 3)
    assert day.recall == (0.25, 0.5, 0.75)  # the one without an answer counts
    assert (day.position_median, day.rotation_median) == pytest.approx((0.1, 1.0))
    assert night.recall == (0, 0, 0)
    assert "25.0 %" in table([day, night], ((0.25, 2.0), (0.5, 5.0), (1.0, 10.0)))
    with pytest.raises(EdmHlocError, match="names are like 'z"):
        evaluate({"z.jpg": TRUTH}, read_truth(tmp_path))


def test_query_pose_survives_json() -> None:
    pose = QueryPose("q", "localized", cam_from_world=to_numbers(TRUTH), inliers=5)
    assert pose_errors(pose.pose, TRUTH)[0] < 1e-12
    assert pose.confidence == "low"

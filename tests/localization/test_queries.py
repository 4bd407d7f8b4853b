"""Poses of queries by PnP, their failures, and the log that a run resumes from."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import camera_text
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import from_colmap
from edm_hloc.evaluation.localization import pose_errors
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.localization import queries as of_queries
from edm_hloc.localization.log import append_to_log, read_log
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.queries import Queries, localize_queries, query_cameras
from edm_hloc.localization.results import QueryPose
from tests.localization.queries import CAMERA, TRUTH, Points, seen


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
            "queries": Queries(
                list(queries),
                dict.fromkeys(queries, CAMERA),
                {query: list(images) for query in queries},
            ),
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
    one = localize_queries(**job, options=PoseOptions(threads=1))
    job["log"].unlink()
    three = localize_queries(**job, options=PoseOptions(threads=3))
    assert [a.cam_from_world for a in one] == [a.cam_from_world for a in three]
    job["log"].unlink()
    job["queries"] = replace(job["queries"], names=job["queries"].names[::-1])
    back = localize_queries(**job, options=PoseOptions(threads=1))
    assert [a.cam_from_world for a in back[::-1]] == [a.cam_from_world for a in one]
    assert all(0.5 < a.median_error < 2 and a.inliers >= 145 for a in one)


def test_failures_are_told_apart_and_never_fatal(files) -> None:
    cloud, write = files
    few = seen(cloud)[:9]
    noise = np.random.default_rng(2).uniform(0, 300, (200, 2))
    job = write(dict.fromkeys(("few", "none", "lost", "dark", "other"), few) | {"noise": noise})
    job["queries"].retrieved["none"] = []
    job["queries"].retrieved["other"] = ["db/unknown.jpg"]
    del job["queries"].cameras["lost"]
    job["queries"] = replace(job["queries"], problems={"dark": "Cannot read image dark."})
    answers = {a.query: a for a in localize_queries(**job)}
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
    job["queries"].cameras["odd"] = pycolmap.Camera(CAMERA.todict() | {"width": 1})
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
    assert confidence(position_deviation=0.02, distance=1.0) == "high"
    assert confidence(position_deviation=0.04, distance=1.0) == "low"
    assert confidence(position_deviation=None, distance=1.0) == "low"
    assert confidence(better_focal=500.0) == "low"
    assert confidence(elsewhere=90) == "low"


def test_pairs_with_few_matches_are_left_out(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)[:50]})
    (answer,) = localize_queries(**job, options=PoseOptions(min_matches=51))
    assert (answer.status, answer.matched, answer.matches) == ("closest", 0, 0)
    assert answer.reason == "None of its 2 retrieved images has 51 matches with it."
    (answer,) = localize_queries(**job, options=PoseOptions(min_matches=50))
    assert (answer.status, answer.matched) == ("localized", 2)
    job["points"] = Points(np.full_like(cloud, np.nan))  # holes of scans
    (answer,) = localize_queries(**job)
    assert answer.reason == "None of its 100 matches is of a known 3D point."
    (answer,) = localize_queries(**write({"q": seen(cloud)[:0]}))
    assert answer.reason == "None of its 2 retrieved images matches it."


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


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize(
    ("again", "off", "expected"),
    [(300, 20.0, "low"), (180, 20.0, "low"), (120, 20.0, "high"), (300, 0.1, "high")],
)
def test_a_query_that_may_as_well_be_elsewhere_is_doubtful(
    files, clusters: bool, again: int, off: float, expected: str
) -> None:
    """A part of the model is in it twice; copies beside their originals are of the same place."""
    cloud, write = files
    shift = np.array([1e6, 2e6, 100.0])  # as in the coordinates of a map

    class Twice(Points):
        def points(self, name: str) -> np.ndarray:
            copy = np.full_like(self.cloud, np.nan)
            copy[:again] = self.cloud[:again] + np.array([off, 0.0, 0.0])
            return shift + (copy if name == "db/b.jpg" else self.cloud)

    job = write({"q": seen(cloud)}) | {"points": Twice(cloud)}
    (answer,) = localize_queries(**job, options=PoseOptions(clusters=clusters, max_error=4.0))
    assert answer.confidence == expected
    assert answer.elsewhere == (again if expected == "low" else 0)


def test_a_look_alike_that_few_photos_of_the_model_show_is_one(files) -> None:
    """Three photos of one place have three times as many correspondences as one of the other."""
    cloud, write = files
    images = ("db/a.jpg", "db/b.jpg", "db/c.jpg", "db/d.jpg")

    class Uneven(Points):
        def points(self, name: str) -> np.ndarray:
            off = 20.0 if name == "db/b.jpg" else 1e-4 * images.index(name)
            return self.cloud + np.array([off, 0.0, 0.0])

    job = write({"q": seen(cloud)}, images) | {"points": Uneven(cloud, images)}
    (answer,) = localize_queries(**job, options=PoseOptions(max_error=4.0))
    assert (answer.inliers, answer.elsewhere, answer.confidence) == (900, 300, "low")


def test_files_of_different_runs_are_refused(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)})
    job["points"] = Points(cloud[:100])
    with pytest.raises(EdmHlocError, match="of other keypoints than those at hand"):
        localize_queries(**job)


def test_an_interrupted_log_is_continued(files) -> None:
    cloud, write = files
    job = write({f"q{k}": seen(cloud) for k in range(4)})
    whole = localize_queries(**job)
    log: Path = job["log"]
    lines = log.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["seconds"] = 1234.0
    log.write_text("\n".join([lines[0], json.dumps(changed), lines[2][:50]]))  # killed in a line
    again = localize_queries(**job)
    assert [a.cam_from_world for a in again] == [a.cam_from_world for a in whole]
    assert again[0].seconds == 1234.0  # not done again
    assert [a.query for a in read_log(log)] == ["q0", "q1", "q2", "q3"]


def test_each_answer_is_in_the_log_before_the_next_one_is_there(files, monkeypatch) -> None:
    cloud, write = files
    names = ["q0", "dark", "q2", "q3"]
    job = write(dict.fromkeys(names, seen(cloud)))
    job["queries"] = replace(job["queries"], problems={"dark": "Cannot read image dark."})
    estimate, logged = of_queries.estimate_pose, threading.Event()

    def append(log, pose) -> None:
        append_to_log(log, pose)
        if pose.query == "dark":
            logged.set()

    def slowly(query: str, *args, **options) -> QueryPose:
        if query == "q2" and not logged.wait(20):
            raise RuntimeError("the answers before it wait for this one")
        if query == "q3":
            raise KeyboardInterrupt
        return estimate(query, *args, **options)

    monkeypatch.setattr(of_queries, "estimate_pose", slowly)
    monkeypatch.setattr(of_queries, "append_to_log", append)
    with pytest.raises(KeyboardInterrupt):
        localize_queries(**job, options=PoseOptions(threads=1))
    statuses = ["localized", "closest", "localized"]
    logged_answers = {a.query: a.status for a in read_log(job["log"])}
    assert logged_answers == dict(zip(names[:3], statuses, strict=True))


def test_logs_of_earlier_versions_are_read(files) -> None:
    """They have no distance, and may hold what JSON has no numbers for."""
    cloud, write = files
    job = write({"q": seen(cloud)})
    (answer,) = localize_queries(**job)
    header, line = job["log"].read_text().splitlines()
    record = json.loads(line)
    assert record.pop("distance") == pytest.approx(8, abs=2)
    record["position_deviation"] = float("nan")
    job["log"].write_text(f"{header}\n{json.dumps(record)}\n")
    assert read_log(job["log"]) == [replace(answer, distance=None, position_deviation=None)]


@pytest.mark.parametrize(
    "changed",
    [
        "options",
        "camera",
        "focal length",
        "retrieved",
        "problem",
        "uncalibrated",
        "perhaps",
        "points",
    ],
)
def test_a_log_of_other_inputs_is_not_resumed(files, changed: str) -> None:
    cloud, write = files
    job = write({f"q{k}": seen(cloud) for k in range(2)})
    localize_queries(**job)
    pretend_done(job["log"])
    assert resumed(localize_queries(**job))
    assert resumed(localize_queries(**job, options=PoseOptions(threads=3)))
    queries = job["queries"]
    if changed == "options":
        job["options"] = PoseOptions(max_error=11.0)
    elif changed == "camera":
        queries.cameras["q0"] = pycolmap.Camera(CAMERA.todict() | {"params": [401, 235, 156, 0]})
    elif changed == "focal":
        queries.cameras["q0"] = pycolmap.Camera(CAMERA.todict())
        queries.cameras["q0"].has_prior_focal_length = True
    elif changed == "retrieved":
        queries.retrieved["q0"].reverse()
    elif changed == "problem":
        job["queries"] = replace(queries, problems={"q1": "Cannot read image q1."})
    elif changed == "uncalibrated":
        job["queries"] = replace(queries, uncalibrated=["q1"])
    elif changed == "perhaps":
        job["queries"] = replace(queries, perhaps={"q1": [CAMERA]})
    else:
        job["points"] = Points(cloud + 1.0)
    answers = localize_queries(**job)
    assert not resumed(answers)
    assert [a.query for a in read_log(job["log"])] == ["q0", "q1"]
    assert localize_queries(**job) == answers


def test_a_log_of_other_files_is_not_resumed(files) -> None:
    cloud, write = files
    job = write({"q": seen(cloud)})
    localize_queries(**job)
    pretend_done(job["log"])
    job = write({"q": seen(cloud)})  # written again
    assert not resumed(localize_queries(**job))
    (moved,) = localize_queries(**write({"q": seen(cloud) + 20.0}))
    assert pose_errors(moved.pose, TRUTH)[1] > 1


def pretend_done(log: Path) -> None:
    """Writes a time into every result of a log that no query takes."""
    header, *lines = log.read_text().splitlines()
    changed = [json.dumps(json.loads(line) | {"seconds": 1234.0}) for line in lines]
    log.write_text("\n".join([header, *changed]) + "\n")


def resumed(answers: list[QueryPose]) -> bool:
    """Whether all results are those that `pretend_done` changed."""
    return all(answer.seconds == 1234.0 for answer in answers)


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
    guess = guessed_camera()
    job["queries"].cameras["q"] = guess
    job["queries"] = replace(job["queries"], uncalibrated=["q"])
    (answer,) = localize_queries(**job)
    assert float(answer.camera.split()[3]) == pytest.approx(400, rel=0.01)
    assert guess.focal_length == 600  # the caller's is untouched
    assert pose_errors(answer.pose, TRUTH)[1] < 0.1


def guessed_camera() -> pycolmap.Camera:
    """Of a photo without EXIF data."""
    guess = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 600, 471, 313)
    guess.has_prior_focal_length = False
    return guess


def test_the_camera_of_the_database_is_taken_where_it_explains_a_query_as_well(files) -> None:
    cloud, write = files
    noise = np.random.default_rng(5).normal(0, 0.7, (20, 300, 2))
    job = write({f"q{k}": seen(cloud) + more for k, more in enumerate(noise)})
    names = job["queries"].names
    unknown = replace(
        job["queries"],
        cameras=dict.fromkeys(names, guessed_camera()),
        uncalibrated=names,
    )
    errors = []
    for perhaps in ({}, {name: [CAMERA] for name in names}):
        job["queries"] = replace(unknown, perhaps=perhaps)
        answers = localize_queries(**job)
        errors.append(np.median([pose_errors(a.pose, TRUTH)[0] for a in answers]))
        taken = [a.camera == camera_text(CAMERA) for a in answers]
        assert all(taken) if perhaps else not any(taken)
    assert errors[1] < 0.5 * errors[0]


def test_a_known_focal_length_that_is_wrong_is_questioned(files, caplog) -> None:
    cloud, write = files
    noise = np.random.default_rng(5).normal(0, 0.7, (3, 300, 2))
    job = write({f"q{k}": seen(cloud) + more for k, more in enumerate(noise)})
    wrong = pycolmap.Camera(CAMERA.todict() | {"params": [430, 235.5, 156.5, -0.05]})
    job["queries"].cameras["q1"] = wrong
    for _ in range(2):  # the second time from the log
        caplog.clear()
        answers = localize_queries(**job)
        assert [a.confidence for a in answers] == ["high", "low", "high"]
        assert answers[1].better_focal == pytest.approx(400, rel=0.01)
        assert answers[1].camera == camera_text(wrong)
        (message,) = caplog.messages
        assert "of 1 of 3 queries" in message
        assert re.search(r"better: q1 \(430 px is known, (399|40\d) px fits\)\. ", message)
        assert "Correct these intrinsics, or do without them where they can be estimated" in message


@pytest.mark.parametrize("params", [[430, 235.5, 156.5, -0.05], [400, 235.5, 156.5, 0.1]])
def test_a_camera_that_did_not_take_a_query_is_not_taken(files, params: list[float]) -> None:
    cloud, write = files
    job = write({"q": seen(cloud) + np.random.default_rng(5).normal(0, 0.7, (300, 2))})
    other = pycolmap.Camera(CAMERA.todict() | {"params": params})
    job["queries"] = replace(
        job["queries"], cameras={"q": guessed_camera()}, uncalibrated=["q"], perhaps={"q": [other]}
    )
    (answer,) = localize_queries(**job)
    assert answer.camera != camera_text(other)
    assert pose_errors(answer.pose, TRUTH)[1] < 0.5


def test_a_zoomed_photo_of_a_flat_scene_does_not_get_the_camera_of_the_database(
    tmp_path: Path,
) -> None:
    """The estimate has no principal point of its own, so that both explain the query alike."""
    rng = np.random.default_rng(7)
    cloud = np.column_stack([rng.uniform(-3, 3, (300, 2)), rng.uniform(6, 8, 300)])
    lens = {"params": [400 * 1.03, 235.5 - 25, 156.5 - 18, -0.05]}
    taken = pycolmap.Camera(CAMERA.todict() | lens)
    other = pycolmap.Camera(CAMERA.todict() | {"params": [400, *lens["params"][1:]]})
    pixels = from_colmap(taken.img_from_cam(TRUTH * cloud)) + rng.normal(0, 0.7, (300, 2))
    with (
        FeatureWriter(tmp_path / "f.h5", {}) as features,
        MatchWriter(tmp_path / "m.h5", {}) as matches,
    ):
        features.add("q", pixels, np.ones(300))
        matches.add("q", "db/a.jpg", np.arange(300), np.ones(300))
    for perhaps, expected in ((other, False), (taken, True)):
        queries = Queries(
            ["q"],
            {"q": guessed_camera()},
            {"q": ["db/a.jpg"]},
            uncalibrated=["q"],
            perhaps={"q": [other, taken][: 1 + expected]},
        )
        files = tmp_path / "f.h5", tmp_path / "m.h5"
        (answer,) = localize_queries(queries, *files, Points(cloud), tmp_path / "log")
        assert (answer.camera == camera_text(perhaps)) == expected


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

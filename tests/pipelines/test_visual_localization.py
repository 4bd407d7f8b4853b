"""Aachen and InLoc in miniature, and one's own photos, end to end with a perfect matcher."""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pycolmap
import pytest
from PIL import Image
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main, options
from edm_hloc.evaluation.localization import evaluate, pose_errors, read_truth
from edm_hloc.images.cameras import cameras_of_others, possible_cameras
from edm_hloc.localization.log import read_log
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.poses import read_poses
from edm_hloc.localization.scans import ScanPoints
from edm_hloc.localization.submission import check_submission
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.pairs.descriptors import DescriptorWriter
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines.aachen import AachenOptions, localize_aachen
from edm_hloc.pipelines.inloc import InLocOptions, localize_inloc, query_camera
from edm_hloc.pipelines.localize import LocalizationConfig, localize_photos
from edm_hloc.pipelines.reconstruct import triangulate_model
from edm_hloc.report.collect import collect
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.scenes import TruthMatcher, made_once

ALL = RetrievalOptions("edm", 50)  # more than there are, so that nothing is computed


@pytest.fixture(scope="session")
def aachen(small_aachen: Path) -> Path:
    return small_aachen


@pytest.fixture(scope="session")
def inloc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        make_inloc(folder, 24, 4, size=(320, 240), seed=3, depth_maps=True)

    return made_once(tmp_path_factory, "inloc", make)


def test_the_phone_of_the_queries() -> None:
    camera = query_camera(4032, 3024)
    np.testing.assert_allclose(camera.params, [4032 * 28 / 36, 2016, 1512])
    assert query_camera(3024, 4032).params[0] == camera.params[0]


def test_the_pose_of_a_cutout_comes_from_its_scan(inloc: Path, tmp_path: Path) -> None:
    truth = pycolmap.Reconstruction(inloc / "truth")
    cutouts = [image for image in truth.images.values() if image.name.startswith("database")]
    for image in cutouts[:3]:
        pose = ScanPoints(inloc, tmp_path, [image.name]).pose(image.name)
        position, rotation = pose_errors(pose, image.cam_from_world())
        assert position < 0.01
        assert rotation < 0.1


def test_equal_intrinsics_are_one_camera_of_the_truth(aachen: Path) -> None:
    truth = pycolmap.Reconstruction(aachen / "truth")
    assert (truth.num_images(), truth.num_cameras()) == (10, 3)


# --------------------------------------------------------------------------- end to end


def test_aachen(aachen: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "aachen"
    shutil.copytree(aachen, dataset)
    matcher = TruthMatcher(aachen, images="images_upright")
    options = AachenOptions(retrieval=ALL)
    run, answers, submission = localize_aachen(dataset, tmp_path / "out", matcher, options)
    assert check_submission(submission, [a.query for a in answers]) == []
    groups = evaluate(read_poses(submission), read_truth(dataset / "truth" / "queries"))
    assert [(g.group, g.queries, g.recall) for g in groups] == [
        ("day", 2, (1, 1, 1)),
        ("night", 2, (1, 1, 1)),
    ]
    # again: nothing is matched or mapped anew, and the answers are the same
    model = (tmp_path / "out/sfm/model/points3D.bin").stat().st_mtime_ns
    run, again, _ = localize_aachen(dataset, tmp_path / "out", matcher, options)
    assert run.results["matching"]["matched"] == 0
    assert (tmp_path / "out/sfm/model/points3D.bin").stat().st_mtime_ns == model
    assert again == answers == read_log(tmp_path / "out" / "queries.jsonl")

    # other points of the same keypoints: poses are found anew
    options = replace(options, mapping=MappingOptions(two_view_points=False))
    _, others, _ = localize_aachen(dataset, tmp_path / "out", matcher, options)
    assert all(a.correspondences < b.correspondences for a, b in zip(others, answers, strict=True))

    # with points that all photos agree on, and their keypoints
    options = AachenOptions(retrieval=ALL, refine_tracks=True)
    run, answers, submission = localize_aachen(dataset, tmp_path / "out", matcher, options)
    assert run.results["sfm"]["tracks"]["added"] > 0
    refined = pycolmap.Reconstruction(tmp_path / "out/sfm/model").find_image_with_name("db/1.jpg")
    with h5py.File(tmp_path / "out" / "model-keypoints.h5") as keypoints:
        assert len(keypoints["db/1.jpg/keypoints"]) == refined.num_points2D()
    groups = evaluate(read_poses(submission), read_truth(dataset / "truth" / "queries"))
    assert [g.recall for g in groups] == [(1, 1, 1), (1, 1, 1)]
    assert all(answer.aligned > 30 for answer in answers if "day" in answer.query)

    # a photo that cannot be read, a query that the retrieval forgot
    (dataset / "images_upright" / answers[0].query).write_bytes(b"")
    images = [f"db/{k}.jpg" for k in range(1, 7)]
    listed = tmp_path / "pairs-query-netvlad50.txt"
    listed.write_text("".join(f"{a.query} {i}\n" for a in answers[:3] for i in images))
    options = AachenOptions(retrieval=RetrievalOptions(str(listed), 50))
    _, answers, submission = localize_aachen(dataset, tmp_path / "out2", matcher, options)
    assert [a.status for a in answers] == ["closest", "localized", "localized", "failed"]
    assert "Cannot read image" in answers[0].reason
    assert "retrieval lists no database image" in answers[3].reason
    assert submission.name == "Aachen-v1.1_truth_netvlad50.txt"
    assert check_submission(submission, [a.query for a in answers]) == []


def test_inloc(inloc: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "inloc"
    shutil.copytree(inloc, dataset)
    matcher = TruthMatcher(inloc, images=".")
    options = InLocOptions(retrieval=ALL)
    missing = sorted(dataset.glob("database/cutouts/DUC1/024/*.mat"))[0]
    missing.rename(tmp_path / "away.mat")
    run, answers, submission = localize_inloc(dataset, tmp_path / "out", matcher, options)
    assert run.results["missing_scans"] == [missing.relative_to(dataset).as_posix()[:-4]]
    assert [a.status for a in answers] == ["localized"] * 4
    truth = read_truth(dataset / "truth" / "queries")
    groups = evaluate(read_poses(submission), truth, ((0.01, 0.1),))
    assert [(g.group, g.recall) for g in groups] == [("DUC1", (1,)), ("DUC2", (1,))]
    used = {name for a in answers for name in a.inliers_of}
    assert not used.intersection(run.results["missing_scans"])
    run, again, _ = localize_inloc(dataset, tmp_path / "out", matcher, options)
    assert again == answers
    assert len(run.results["missing_scans"]) == 1

    # the scan is found: it counts from now on
    (tmp_path / "away.mat").rename(missing)
    run, more, _ = localize_inloc(dataset, tmp_path / "out", matcher, options)
    assert run.results["missing_scans"] == []
    assert sum(a.correspondences for a in more) > sum(a.correspondences for a in answers)


def test_useless_files_are_told_before_a_run_begins(
    aachen: Path, inloc: Path, tmp_path: Path
) -> None:
    listed, descriptors = tmp_path / "pairs-query-netvlad2.txt", tmp_path / "global.h5"
    listed.write_text("query/z.jpg db/1.jpg\n")
    with DescriptorWriter(descriptors, {}) as writer:
        writer.add("db/1.jpg", np.ones(4))
    matcher, out = TruthMatcher(aachen, images="images_upright"), tmp_path / "out"
    images = aachen / "images_upright"
    for file, message in ((listed, "lists none of the"), (descriptors, "has no descriptors of")):
        retrieval = RetrievalOptions(str(file), 2)
        with pytest.raises(EdmHlocError, match=message):
            localize_aachen(aachen, out, matcher, AachenOptions(retrieval=retrieval))
        with pytest.raises(EdmHlocError, match=message):
            localize_inloc(inloc, out, matcher, InLocOptions(retrieval=retrieval))
        with pytest.raises(EdmHlocError, match=message):
            localize_photos(
                aachen / "3D-models/aachen_v_1_1",
                images,
                images / "query",
                out,
                matcher,
                LocalizationConfig(retrieval),
            )
    damaged = tmp_path / "aachen"
    shutil.copytree(aachen, damaged)
    file = next(damaged.glob("3D-models/aachen_v_1_1/images.*"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(EdmHlocError, match="aachen_v_1_1"):
        localize_aachen(damaged, out, matcher, AachenOptions(retrieval=ALL))
    assert not out.exists()


def _without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where most users may not make symbolic links."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)


def test_own_photos_calibrated_or_not(
    aachen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matcher = TruthMatcher(aachen, images="images_upright")
    options = AachenOptions(retrieval=ALL)
    localize_aachen(aachen, tmp_path / "a", matcher, options)
    images, queries = aachen / "images_upright", aachen / "images_upright/query/day"
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=320, height=240, params=[352, 160, 120])
    truth = {
        k.removeprefix("query/day/"): p
        for k, p in read_truth(aachen / "truth/queries/day.txt")["day"].items()
    }
    config = LocalizationConfig(known_cameras=dict.fromkeys(list(truth)[:1], camera))
    _without_links(monkeypatch)
    photo = tmp_path / "own" / "images" / "mine.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_text("a folder of somebody else")
    run, answers = localize_photos(
        tmp_path / "a/sfm/model", images, queries, tmp_path / "own", matcher, config
    )
    assert list(photo.parent.iterdir()) == [photo]
    assert {a.query for a in answers} == set(truth)
    found = read_poses(run.out / "poses.txt")
    errors = [pose_errors(found[name], pose)[0] for name, pose in truth.items()]
    assert errors[0] < 0.25
    assert errors[1] < 1.0  # its focal length was not known
    focal = float(answers[1].camera.split()[3])
    assert focal == pytest.approx(352, rel=0.05)
    with pytest.raises(EdmHlocError, match="None of the photos of"):
        localize_photos(tmp_path / "a/sfm/model", queries, queries, tmp_path / "x", matcher)
    assert not (tmp_path / "x").exists()

    # the page of the run finds the photos where they are, also when they have moved
    name = next(iter(truth))
    facts = collect(run.out)
    assert facts.photo_path(f"query/{name}") == queries / name
    assert facts.photo_path("database/db/1.jpg") == images / "db/1.jpg"
    assert facts.problems == []
    moved = tmp_path / "moved"
    shutil.copytree(images, moved / "database")
    shutil.copytree(queries, moved / "query")
    facts = collect(run.out, moved)
    assert facts.photo_path(f"query/{name}") == moved / "query" / name
    assert facts.photo_path("database/db/1.jpg") == moved / "database/db/1.jpg"


def test_queries_aligned_to_all_photos_of_a_point_are_more_exact(
    aachen: Path, tmp_path: Path
) -> None:
    matcher = TruthMatcher(aachen, images="images_upright")
    options = AachenOptions(retrieval=ALL, refine_tracks=True)
    localize_aachen(aachen, tmp_path / "a", matcher, options)
    images, queries = aachen / "images_upright", aachen / "images_upright/query/day"
    camera = pycolmap.Camera(model="SIMPLE_PINHOLE", width=320, height=240, params=[352, 160, 120])
    truth = {
        name.removeprefix("query/day/"): pose
        for name, pose in read_truth(aachen / "truth/queries/day.txt")["day"].items()
    }
    errors = {}
    for refined in (False, True):
        config = LocalizationConfig(
            known_cameras=dict.fromkeys(truth, camera), refine_tracks=refined
        )
        run, answers = localize_photos(
            tmp_path / "a/sfm/model", images, queries, tmp_path / f"{refined}", matcher, config
        )
        assert all((a.aligned > 30) is refined for a in answers)
        found = read_poses(run.out / "poses.txt")
        errors[refined] = np.array([pose_errors(found[n], pose) for n, pose in truth.items()])
    print(errors)
    assert (errors[True] < 0.5 * errors[False]).all()  # metres and degrees


def test_photos_of_another_size_than_the_model(aachen: Path, tmp_path: Path) -> None:
    """As with `images_2` beside a model of `images`; and with a photo that was turned."""
    matcher = TruthMatcher(aachen, images="images_upright")
    localize_aachen(aachen, tmp_path / "a", matcher, AachenOptions(retrieval=ALL))
    images, queries = aachen / "images_upright", aachen / "images_upright/query/day"
    model = read_model(tmp_path / "a/sfm/model")
    for camera in model.cameras.values():
        camera.rescale(2.0)
    for image in model.images.values():
        for point in image.points2D:
            point.xy = 2 * point.xy
    (tmp_path / "double").mkdir()
    model.write_binary(tmp_path / "double")
    known = pycolmap.Camera(model="SIMPLE_PINHOLE", width=640, height=480, params=[704, 320, 240])
    truth = read_truth(aachen / "truth/queries/day.txt")["day"]
    names = [name.removeprefix("query/day/") for name in truth]
    config = LocalizationConfig(known_cameras=dict.fromkeys(names, known))
    run, answers = localize_photos(
        tmp_path / "double", images, queries, tmp_path / "own", matcher, config
    )
    assert [a.status for a in answers] == ["localized"] * 2
    found = read_poses(run.out / "poses.txt")
    for name, pose in truth.items():
        assert pose_errors(found[name.removeprefix("query/day/")], pose)[0] < 0.25

    shutil.copytree(images, tmp_path / "turned")
    name = next(iter(model.images.values())).name
    with Image.open(images / name) as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned" / name)
    message = f"{name} has 240 × 320: one of the two was turned by 90°"
    with pytest.raises(EdmHlocError, match=message):
        localize_photos(tmp_path / "double", tmp_path / "turned", queries, tmp_path / "x", matcher)
    with pytest.raises(EdmHlocError, match=message):
        triangulate_model(tmp_path / "double", tmp_path / "turned", tmp_path / "x", [], matcher)
    assert not (tmp_path / "x").exists()


def test_photos_of_one_camera_share_its_intrinsics(tmp_path: Path) -> None:
    def take(name: str, size: tuple[int, int] = (64, 48), **tags: str) -> None:
        image, exif = Image.new("L", size), Image.Exif()
        for tag, value in tags.items():
            exif[getattr(ExifTag, tag)] = value
        image.save(tmp_path / f"{name}.jpg", exif=exif)

    phone = {"Make": "Maker", "Model": "One"}
    for name in ("a", "b", "c", "new"):
        take(name, **phone)
    take("other", Make="Maker", Model="Two")
    take("turned", (48, 64), **phone)
    take("bare")
    (tmp_path / "broken.jpg").write_bytes(b"")

    def camera(focal: float) -> pycolmap.Camera:
        return pycolmap.Camera(model="SIMPLE_PINHOLE", width=64, height=48, params=[focal, 32, 24])

    known = {"a.jpg": camera(60), "b.jpg": camera(70), "c.jpg": camera(70), "bare.jpg": camera(9)}
    new = ["new.jpg", "other.jpg", "turned.jpg", "bare.jpg", "broken.jpg", "missing.jpg"]
    found = cameras_of_others(tmp_path, new, known)
    assert {name: c.params[0] for name, c in found.items()} == {"new.jpg": 70}

    # Photos without EXIF data may be of the camera that took most photos of their size, and those
    # with the same EXIF data of the same camera, turned.
    def possible() -> dict[str, list[list[float]]]:
        found = possible_cameras(tmp_path, new, known)
        return {name: [c.params.tolist() for c in its] for name, its in found.items()}

    turned = {"turned.jpg": [[70, 24, 32]]}
    assert possible() == turned  # of the size of the bare one, two of four have one
    del known["bare.jpg"]
    assert possible() == {"bare.jpg": [[70, 32, 24]], **turned}
    known = {"a.jpg": camera(60)}
    assert possible() == {"turned.jpg": [[60, 24, 32]]}


def test_what_the_command_line_says(
    aachen: Path, inloc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["aachen", str(tmp_path / "none"), out]) == 1
    assert "No such folder" in capsys.readouterr().err
    assert main(["aachen", str(inloc), out, "--dry-run"]) == 1
    message = capsys.readouterr().err
    assert f"unpack images/database_and_query_images.zip in {inloc}." in message
    assert f"unpack aachen_v1_1.zip in {inloc}." in message
    assert "https://data.ciirc.cvut.cz" in message
    assert main(["aachen", str(aachen), out, "--dry-run"]) == 0
    assert main(["inloc", str(inloc), out, "--dry-run"]) == 0
    message = capsys.readouterr().out
    assert "has everything" in message
    assert "4 queries, 24 cutouts" in message
    one_list = tmp_path / "one_list"
    shutil.copytree(aachen, one_list)
    (one_list / "queries" / "night_time_queries_with_intrinsics.txt").unlink()
    (one_list / "images_upright" / "db" / "2.jpg").unlink()
    assert main(["aachen", str(one_list), out]) == 1
    assert "night_time_queries_with_intrinsics.txt is missing" in capsys.readouterr().err
    shutil.copytree(aachen / "queries", one_list / "queries", dirs_exist_ok=True)
    assert main(["aachen", str(one_list), out, "--dry-run"]) == 1
    assert "1 photos of the model or the queries\n  db/2.jpg" in capsys.readouterr().err
    assert not Path(out).exists()
    assert main(["inloc", str(inloc), out, "--max-error", "0"]) == 1
    message = "max_error is 0.0: it must be at least 0.1 and below 1,048,576."
    assert message in capsys.readouterr().err
    assert main(["aachen", str(aachen), out, "--retrieval", "none.txt"]) == 1
    assert "No such retrieval file: none.txt" in capsys.readouterr().err
    poses, queries = str(aachen / "truth/queries/day.txt"), str(aachen / "images_upright/query")
    assert main(["check-submission", poses, "--queries", queries]) == 1
    assert "names go without folders" in capsys.readouterr().err
    assert main(["evaluate-poses", poses, str(aachen / "truth/queries/day.txt")]) == 0
    assert "100.0 %" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["aachen_v1_1", "inloc"])
def test_pipelines_say_what_is_missing(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipeline = importlib.import_module(f"pipelines.{name}")
    data = request.getfixturevalue(name.split("_")[0])
    for arguments, wrong in ((["--dry-run"], data.parent), ([], tmp_path / "none")):
        out = ["--outputs", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", [name, "--dataset", str(wrong), *out, *arguments])
        with pytest.raises(SystemExit, match=f"(?s){wrong}.*visuallocalization"):
            pipeline.main()
    monkeypatch.setattr("sys.argv", [name, "--dataset", str(data), "--dry-run"])
    pipeline.main()


def test_pipelines_say_what_is_damaged(
    aachen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = importlib.import_module("pipelines.aachen_v1_1")
    shutil.copytree(aachen, tmp_path / "data")
    for file in (tmp_path / "data" / "3D-models" / "aachen_v_1_1").iterdir():
        file.write_bytes(b"damaged")
    monkeypatch.setattr("sys.argv", ["", "--dataset", str(tmp_path / "data"), "--dry-run"])
    with pytest.raises(SystemExit, match="aachen_v_1_1"):
        pipeline.main()


@pytest.mark.parametrize("name", ["aachen_v1_1", "inloc"])
def test_pipelines_without_any_pose_fail(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipeline = importlib.import_module(f"pipelines.{name}")
    data = request.getfixturevalue(name.split("_")[0])
    images = "." if name == "inloc" else "images_upright"
    monkeypatch.setattr(
        pipeline, "load_matcher", lambda *_, **__: TruthMatcher(data, images=images)
    )
    kind = "InLocOptions" if name == "inloc" else "AachenOptions"
    strict = partial(getattr(pipeline, kind), pose=PoseOptions(min_inliers=10**6))
    monkeypatch.setattr(pipeline, kind, strict)
    monkeypatch.setattr(
        "sys.argv", [name, "--dataset", str(data), "--outputs", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit, match="None of the 4 queries was localized"):
        pipeline.main()


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["aachen", "inloc"])
def test_the_shipped_weights_localize_well(benchmark: str, tmp_path: Path) -> None:
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    views = "12" if benchmark == "aachen" else "32"
    assert main(["synth", benchmark, data, "--views", views, "--queries", "4", "--seed", "4"]) == 0
    # InLoc's 48 px are meant for photos 4,032 px wide
    more = ["--covisible", "5"] if benchmark == "aachen" else ["--ransac", "8"]
    assert main([benchmark, data, out, "--retrieved", "5", *more]) == 0
    (submission,) = Path(out).glob(f"{benchmark[0].upper()}*.txt")
    groups = evaluate(read_poses(submission), read_truth(tmp_path / "data/truth/queries"))
    assert all(group.recall == (1, 1, 1) for group in groups)


def test_a_benchmark_without_any_pose_fails(
    inloc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its submission is written all the same, with the poses of database photos."""
    monkeypatch.setattr(options, "make_matcher", lambda args: TruthMatcher(inloc, images="."))
    out = tmp_path / "out"
    assert main(["inloc", str(inloc), str(out), "--min-inliers", str(10**6)]) == 1
    assert "None of the 4 queries was localized" in capsys.readouterr().err
    assert len(list(out.glob("InLoc*.txt"))) == 1

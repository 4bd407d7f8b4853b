"""The page of a run, finished or not: its content and its files. The browser and the findings have
tests of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import weakref
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

import edm_hloc.report.gallery as gallery_module
import edm_hloc.report.histograms as histograms_module
import edm_hloc.report.match_graph as match_graph_module
import edm_hloc.report.page as page_module
import edm_hloc.report.payload as payload_module
from edm_hloc import cli
from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.report.collect import collect
from edm_hloc.report.histograms import histogram
from edm_hloc.report.model_pictures import VIEWPOINTS, draw_model
from edm_hloc.report.page import environment, make_report
from edm_hloc.report.pair_matches import PairSource
from edm_hloc.report.scene import CameraView, Points, build_scene, camera_views
from edm_hloc.report.thumbnails import make_thumbnail, side_for
from tests.report_runs import HOSTILE, finished_run, localization_run


@pytest.fixture(scope="module")
def finished(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a complete run through the command line, with hostile names."""
    return finished_run(scene, tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def localized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return localization_run(tmp_path_factory.mktemp("localized"))


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may spoil."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


class _Page(HTMLParser):
    """Tags with their attributes, the text outside scripts, and the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.inside = "", [], ""
        self.feed(html)
        self.data = json.loads(self.scripts[0]) if self.scripts else {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data + " "


def read(out: Path) -> _Page:
    return _Page((out / "report.html").read_text("utf-8"))


def unpack(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


# --------------------------------------------------------------------------- complete runs


def test_the_page_is_one_file_that_needs_no_network(finished: Path) -> None:
    html = (finished / "report.html").read_text("utf-8")
    page = _Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in re.search(r"<style>(.*?)</style>", html, re.DOTALL)[1]  # type: ignore[index]
    # the policy lets exactly these scripts run
    policy = next(
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    allowed = re.search(r"script-src ([^;]*);", policy)[1].split()  # type: ignore[index]
    found = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert allowed == [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in found
    ]
    assert len(found) == 2


def test_numbers_of_the_page_are_those_of_the_run(finished: Path) -> None:
    page, record = read(finished), json.loads((finished / "run.json").read_text())
    data, model = page.data, read_model(finished / "model")
    assert "complete" in page.text
    assert f"{model.num_points3D():,}" in page.text
    assert len(data["photos"]) == 7
    for photo in data["photos"]:
        assert photo["size"] == [320, 240]
        assert photo["thumb"]
        assert photo["coverage"] > 0.5
        image = next(i for i in model.images.values() if i.name == photo["name"])
        assert photo["points"] == image.num_points3D
        # the link leads to the photo
        from urllib.parse import unquote

        assert (finished / unquote(photo["href"])).is_file()
    graph = data["graph"]
    pairs = unpack(graph["pairs"], "<u2").reshape(-1, 2)
    inliers, matches = unpack(graph["inliers"], "<i2"), unpack(graph["matches"], "<i2")
    assert len(pairs) == 21
    assert int(matches.sum()) == record["results"]["verified"]["matches"]
    assert int(inliers.sum()) == record["results"]["verified"]["inliers"]
    assert len(data["pairs"]) == 21
    for key, entry in data["pairs"].items():
        a, b = map(int, key.split("-"))
        row = np.flatnonzero((pairs == [a, b]).all(axis=1))[0]
        assert entry["inliers"] == inliers[row]
        lines = np.frombuffer(base64.b64decode(entry["lines"]), [("xy", "<u2", 4), ("score", "u1")])
        flags = lines["score"] & 1
        assert 0 < flags.sum() <= gallery_module.LINES
        assert (flags == 0).sum() <= gallery_module.REJECTED_LINES
        assert (np.diff(flags.astype(int)) >= 0).all()  # the verified on top
    titles = [group["title"] for group in data["gallery"]]
    assert titles[:2] == ["Best", "Borderline"]
    best = [data["pairs"][f"{a}-{b}"]["inliers"] for a, b in data["gallery"][0]["pairs"]]
    assert max(best) == inliers.max()
    for title in ("Track length", "Reprojection error", "Matches per pair", "Inlier ratio"):
        assert title in page.text
    for word in (
        "Matching",
        "Verification",
        "Mapping",
        "Peak memory by its end",
        "pycolmap",
        "matcher truth",
    ):
        assert word in page.text
    assert "mapping.min_inliers: 30" in page.text


def test_keypoints_of_few_photos_are_in_memory(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_points = PairSource.keypoints
    given: list[weakref.ref[np.ndarray]] = []
    most = 0

    def watched(source: PairSource, name: str) -> np.ndarray:
        nonlocal most
        points = read_points(source, name)
        given.append(weakref.ref(points))
        most = max(most, sum(ref() is not None for ref in given))
        return points

    monkeypatch.setattr(PairSource, "keypoints", watched)
    payload = payload_module.make_payload(collect(finished))
    assert all(photo.keypoints > 100 for photo in payload.photos.values())
    assert len(payload.photos) == 7
    assert most <= 3


def test_lines_lie_where_the_matches_are(finished: Path) -> None:
    """In the frame of the thumbnails: shares of the photo's sides, from its outer edges."""
    facts = collect(finished)
    with PairSource(facts) as source:
        matches = source.read(facts.names[0], facts.names[1])
    assert matches is not None
    assert matches.inliers is not None
    entry = read(finished).data["pairs"]["0-1"]
    lines = np.frombuffer(base64.b64decode(entry["lines"]), [("xy", "<u2", 4), ("score", "u1")])
    drawn = lines["xy"].astype(float) / 65535 * [320, 240, 320, 240] - 0.5
    both = np.hstack([matches.points0, matches.points1])
    distance = np.abs(drawn[:, None] - both[None]).max(axis=2)
    assert distance.min(axis=1).max() < 0.01
    flags = (lines["score"] & 1).astype(bool)
    assert (matches.inliers[distance.argmin(axis=1)] == flags).all()


def test_the_scene_is_the_model_moved_turned_and_scaled(finished: Path) -> None:
    data, model = read(finished).data["scene"], read_model(finished / "model")
    xyz = unpack(data["xyz"], "<i2").reshape(-1, 3) / 32767 * data["extent"]
    assert len(xyz) == data["count"] <= model.num_points3D()
    assert data["count"] > 0.9 * model.num_points3D()
    assert len(unpack(data["colors"], "u1")) == 3 * len(xyz)
    centres = {c["name"]: np.array(c["centre"]) for c in data["cameras"]}
    true = {i.name: i.cam_from_world().inverse().translation for i in model.images.values()}
    names = sorted(centres)
    drawn = np.array([[np.linalg.norm(centres[a] - centres[b]) for a in names] for b in names])
    real = np.array([[np.linalg.norm(true[a] - true[b]) for a in names] for b in names])
    scale = drawn.sum() / real.sum()
    np.testing.assert_allclose(drawn, real * scale, atol=1e-3)
    # the points project to where the photo sees them: rotations and points agree
    camera = data["cameras"][0]
    R = np.array(camera["rotation"]).reshape(3, 3)
    seen = (xyz - centres[camera["name"]]) @ R
    ahead = seen[seen[:, 2] > 0]
    inside = (np.abs(ahead[:, :2] / ahead[:, 2:]) < camera["size"]).all(axis=1)
    assert inside.mean() > 0.5
    # points that most photos see come first; the slider's table counts them
    tracks = np.sort([p.track.length() for p in model.points3D.values()])[::-1]
    assert data["tracks"][-1][1] == data["count"]
    assert data["tracks"][0][0] == tracks[0]
    assert [t for t, _ in data["tracks"]] == sorted((t for t, _ in data["tracks"]), reverse=True)


def test_hostile_names_are_only_text(finished: Path) -> None:
    html = (finished / "report.html").read_text("utf-8")
    assert {photo["name"] for photo in read(finished).data["photos"]} == set(HOSTILE)
    for tag, attributes in _Page(html).tags:
        assert tag not in ("b", "iframe", "object", "embed")
        assert tag != "img" or str(attributes["src"]).startswith("data:image/webp;base64,")
    assert html.count("<script") == 3  # the data, three.js, the page's own
    assert html.count("</script>") == 3


def test_hostile_texts_of_the_record_are_only_text(copy: Path) -> None:
    hostile = "</pre></script><script>hacked()</script>\"'&amp;{{ 7 * 7 }}{% endif %}{# x #}"
    record = json.loads((copy / "run.json").read_text())
    record["settings"][hostile] = hostile
    record["settings"]["matcher"] |= {"matcher": hostile, "weights_sha256": hostile}
    record["versions"] = {hostile: hostile}
    record["seconds"][hostile] = 1.0
    record["results"]["matching"] |= {"skipped": {hostile: hostile}, "rotated": [hostile]}
    record["error"] = hostile
    (copy / "run.json").write_text(json.dumps(record))
    html = make_report(copy).read_text("utf-8")
    page = _Page(html)
    assert html.count("<script") == html.count("</script>") == 3
    assert "49" not in re.findall(r"\d+", page.text.split("Findings")[1].split("Photos")[0])
    assert f"The run failed. {hostile}" in page.text
    assert f"matcher {hostile}" in page.text
    assert f"SHA-256  {hostile}" in page.text
    assert f"{hostile} {hostile}" in page.text  # a version
    assert page.text.count(hostile) >= 8


def test_localization(localized: Path) -> None:
    page = read(localized)
    data = page.data
    log = [json.loads(line) for line in (localized / "queries.jsonl").read_text().splitlines()[1:]]
    assert "Localization of Aachen Day-Night v1.1" in page.text
    assert len(data["queries"]) == len(log) == 4
    by_name = {data["photos"][q["photo"]]["name"]: q for q in data["queries"]}
    for answer in log:
        shown = by_name[answer["query"]]
        assert shown["status"] == answer["status"] == "localized"
        assert shown["inliers"] == answer["inliers"]
        best = data["photos"][shown["best"]]["name"]
        assert answer["inliers_of"][best] == max(answer["inliers_of"].values())
        entry = data["pairs"][f"{shown['photo']}-{shown['best']}"]
        # points that several matches of the pair share count once there, singly here
        assert 0.9 * answer["inliers_of"][best] <= entry["inliers"]
        assert entry["inliers"] <= entry["matches"]
        flags = unpack(entry["lines"], "u1")[8::9] & 1
        assert flags.mean() > 0.5
    kinds = [camera["kind"] for camera in data["scene"]["cameras"]]
    assert kinds.count("database") == 6
    assert sum(kind.startswith("query-") for kind in kinds) == 4
    assert data["graph"]["rows"] == 4
    assert not data["graph"]["symmetric"]
    assert "Inliers per query" in page.text
    assert "Database: triangulation" in page.text
    # the model's own page lies beside its run
    assert "Points for known poses" in read(localized / "sfm").text


# --------------------------------------------------------------------------- other runs


def test_failed_run(
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.report_runs import UnrelatedMatcher

    monkeypatch.setattr(cli.options, "make_matcher", lambda args: UnrelatedMatcher(scene))
    out = tmp_path / "out"
    assert cli.main(["reconstruct", str(scene / "images"), str(out)]) == 1
    said = capsys.readouterr()
    assert f"Report      {out / 'report.html'}" in said.out
    page = read(out)
    assert "failed" in page.text
    assert "No model could be made of the 7 photos" in page.text
    assert page.data["scene"] is None
    assert len(page.scripts) == 2  # without three.js
    assert page.data["gallery"][0]["title"] == "Rejected"
    # any time later
    (out / "report.html").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert "The run failed. No model could be made" in read(out).text
    # and when the same run succeeds at last
    from tests.scenes import TruthMatcher

    monkeypatch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))
    arguments = ["reconstruct", str(scene / "images"), str(out), "--overwrite"]
    assert cli.main([*arguments, "--camera-mode", "single"]) == 0
    assert "failed" not in read(out).text


def test_unfinished_run(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    shutil.rmtree(copy / "model")
    del record["done"]["model"], record["seconds"]["model"], record["results"]["mapped"]
    (copy / "run.json").write_text(json.dumps(record))
    page = read(make_report(copy).parent)
    assert "The run is not finished. There is no model yet." in page.text
    assert "Mapping" not in page.text
    assert page.data["scene"] is None
    assert len(page.data["pairs"]) == 21

    for path in (copy / "database.db", copy / "features.h5", copy / "matches.h5"):
        path.unlink()
    record["done"] = {}
    (copy / "run.json").write_text(json.dumps(record))
    page = read(make_report(copy).parent)
    for text in ("Keypoints were not made", "not verified yet", "no model yet"):
        assert text in page.text
    # raw matches alone: their counts, lines and the places they are at
    assert page.data["gallery"][0]["title"] == "Most matches"
    assert all(photo["keypoints"] > 100 for photo in page.data["photos"])
    assert (unpack(page.data["graph"]["inliers"], "<i2") == -1).all()

    shutil.rmtree(copy / "raw_matches")
    (copy / "pairs.txt").unlink()
    page = read(make_report(copy).parent)
    assert "Nothing was matched yet." in page.text


def test_unfinished_localization(localized: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(localized, out)
    log = out / "queries.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]))
    page = read(make_report(out).parent)
    assert "The run is not finished. 2 queries have been processed." in page.text
    assert len(page.data["queries"]) == 2
    graph, names = page.data["graph"], [photo["name"] for photo in page.data["photos"]]
    queries = sum(name.startswith("query/") for name in names)
    assert (graph["rows"], graph["offset"]) == (queries, queries)  # those not answered, too
    assert graph["columns"] == len(names) - queries
    log.unlink()
    page = read(make_report(out).parent)
    assert "No query has been processed yet." in page.text
    assert page.data["scene"] is not None  # the database's model
    shutil.rmtree(out / "sfm" / "model")
    assert "has no points yet" in read(make_report(out).parent).text


def test_half_matched_run(copy: Path) -> None:
    pairs = copy / "pairs.txt"
    pairs.write_text(pairs.read_text() + "one.jpg\ttwo.jpg\n")
    assert "21 of 22 pairs are matched." in read(make_report(copy).parent).text


def test_a_complete_run_may_lose_its_raw_matches(copy: Path) -> None:
    """Pairs without a match are not in the database; nothing else tells that they were matched."""
    with pycolmap.Database.open(copy / "database.db") as database:
        first, second = (database.read_all_images()[i].image_id for i in (0, 1))
        database.delete_matches(first, second)
        database.delete_two_view_geometry(first, second)
    shutil.rmtree(copy / "raw_matches")
    assert collect(copy).unfinished == []


def test_a_model_on_earth_that_is_gone(copy: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    residuals = {name: [0.1, 0.2, 0.3] for name in HOSTILE}
    record["results"]["georeferenced"] = PLACE | {"residuals": residuals}
    (copy / "run.json").write_text(json.dumps(record))
    assert "north is up" in read(make_report(copy).parent).text
    shutil.rmtree(copy / "model")
    page = read(make_report(copy).parent).text
    assert "47.000000°" in page
    assert "north is up" not in page
    record["results"]["georeferenced"] = PLACE | {"residuals": {}}  # a damaged record
    (copy / "run.json").write_text(json.dumps(record))
    assert "could not be read: On Earth" in read(make_report(copy).parent).text


PLACE = {
    "used": True,
    "origin": [47.0, 8.0, 400.0],
    "wrong": [],
    "median": 0.3,
    "largest": 0.4,
    "source": "their GPS",
    "scale_uncertainty": 0.01,
    "tilt_uncertainty": 0.1,
    "heights": True,
}


def test_damaged_files_are_named_and_the_rest_is_shown(copy: Path) -> None:
    (copy / "features.h5").write_bytes(b"no h5")
    (copy / "model" / "images.bin").write_bytes(b"")
    page = read(make_report(copy).parent)
    assert "could not be read: Keypoints" in page.text
    assert "could not be read: Model" in page.text
    assert page.data["graph"] is not None
    (copy / "run.json").write_text("{")
    with pytest.raises(EdmHlocError, match="Cannot read the run's record"):
        make_report(copy)
    (copy / "run.json").write_text(json.dumps({"settings": {}, "results": [1]}))
    with pytest.raises(EdmHlocError, match="is not the record of a run"):
        make_report(copy)


def test_photos_that_have_moved(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((copy / "run.json").read_text())
    photos = Path(record["settings"]["images"])
    record["settings"]["images"] = str(tmp_path / "gone")
    (copy / "run.json").write_text(json.dumps(record))
    assert cli.main(["report", str(copy)]) == 0
    page = read(copy)
    assert "--images FOLDER" in page.text
    assert all(photo["thumb"] is None and photo["href"] is None for photo in page.data["photos"])
    assert page.data["pairs"]["0-1"]["lines"]  # sizes are known from the cameras
    assert cli.main(["report", str(copy), "--images", str(photos)]) == 0
    assert all(photo["thumb"] for photo in read(copy).data["photos"])
    assert cli.main(["report", str(copy), "--images", str(tmp_path / "gone")]) == 1
    assert "No such folder of images" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "there is no run.json" in capsys.readouterr().err


def test_copies_of_another_size_show_matches_where_they_are(copy: Path, tmp_path: Path) -> None:
    before = read(make_report(copy).parent).data
    images = Path(json.loads((copy / "run.json").read_text())["settings"]["images"])
    for path in images.rglob("*.jpg"):
        half = tmp_path / "half" / path.relative_to(images)
        half.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as photo:
            photo.reduce(2).save(half)
    after = read(make_report(copy, tmp_path / "half").parent).data
    assert after["pairs"] == before["pairs"]
    same = ("size", "coverage", "grid")
    assert [[p[k] for k in same] for p in after["photos"]] == [
        [p[k] for k in same] for p in before["photos"]
    ]


def test_a_photo_that_can_not_be_read_any_more(copy: Path, tmp_path: Path) -> None:
    record = json.loads((copy / "run.json").read_text())
    shutil.copytree(record["settings"]["images"], tmp_path / "photos")
    plain = next(name for name in HOSTILE if name.startswith("plain"))
    (tmp_path / "photos" / plain).write_bytes(b"garbage")
    photos = read(make_report(copy, tmp_path / "photos").parent).data["photos"]
    spoiled = next(photo for photo in photos if photo["name"] == plain)
    assert "Cannot read image" in spoiled["problem"]
    assert sum(photo["thumb"] is None for photo in photos) == 1


@pytest.mark.slow
def test_a_report_that_fails_does_not_fail_the_run(
    scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tests.scenes import TruthMatcher

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(cli.options, "make_matcher", lambda args: TruthMatcher(scene))
    monkeypatch.setattr(page_module, "render", fail)
    arguments = ["reconstruct", str(scene / "images"), str(tmp_path / "out")]
    assert cli.main([*arguments, "--known", str(scene / "truth")]) == 0
    assert (tmp_path / "out" / "model" / "points3D.bin").is_file()
    assert not (tmp_path / "out" / "report.html").exists()
    assert "The report could not be made (MemoryError: no room)" in caplog.text


def test_wrong_arguments_leave_an_older_run_alone(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    for path in (copy / "run.json", copy / "report.html"):
        os.utime(path, (1e9, 1e9))
    before = (copy / "run.json").read_bytes()
    images = json.loads(before)["settings"]["images"]
    assert cli.main(["reconstruct", images, str(copy), "--weights", "nowhere.ckpt"]) == 1
    assert (copy / "run.json").read_bytes() == before
    assert (copy / "report.html").stat().st_mtime == 1e9
    (copy / "run.json").write_text("[]")
    assert cli.main(["reconstruct", images, str(copy), "--weights", "nowhere.ckpt"]) == 1
    assert "nowhere.ckpt" in capsys.readouterr().err


# --------------------------------------------------------------------------- large runs


def test_large_runs_are_cut_and_say_so(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "MAX_POINTS", 100)
    monkeypatch.setattr(gallery_module, "MAX_PAIRS", 5)
    monkeypatch.setattr(gallery_module, "MAX_BEST_PAIRS", 8)
    monkeypatch.setattr(match_graph_module, "MAX_CELLS", 3)
    monkeypatch.setattr(payload_module, "MAX_THUMBNAILS", 3)
    monkeypatch.setattr(gallery_module, "GROUP_SIZE", 1)
    page = read(make_report(copy).parent)
    data = page.data
    assert data["scene"]["count"] == 100
    assert "shows 100 of" in page.text
    best = np.array([p.track.length() for p in read_model(copy / "model").points3D.values()])
    assert data["scene"]["tracks"][0][0] == best.max()
    assert 2 <= len(data["pairs"]) <= 8
    assert sum(photo["thumb"] is not None for photo in data["photos"]) == 3
    assert "3 of 7 photos have a picture here" in page.text
    assert data["graph"]["joined"] == 3
    assert "stands for 3 × 3 photos" in page.text
    # each cell is the best of its pairs
    pairs = unpack(data["graph"]["pairs"], "<u2").reshape(-1, 2) // 3
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 5
    monkeypatch.undo()
    whole = read(make_report(copy).parent).data["graph"]
    all_pairs = unpack(whole["pairs"], "<u2").reshape(-1, 2) // 3
    inliers = unpack(whole["inliers"], "<i2")
    for cell, number in zip(pairs, unpack(data["graph"]["inliers"], "<i2"), strict=True):
        assert number == inliers[(all_pairs == cell).all(axis=1)].max()


def test_pictures_share_a_budget() -> None:
    sides = [side_for(number, 6_000_000) for number in (1, 100, 300, 1000, 2500, 10**6)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == 640
    assert sides[-1] == 160


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_thumbnails_are_upright(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((300, 800, 3), np.uint8)
    pixels[:, :100, 0] = 255  # red on the left of the stored pixels
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    thumbnail = make_thumbnail(path, 160)
    assert (thumbnail.photo_size, thumbnail.orientation) == ((800, 300), 6)
    (tmp_path / "t.webp").write_bytes(thumbnail.webp)
    with Image.open(tmp_path / "t.webp") as image:
        assert image.size == (60, 160)
        small = np.asarray(image.convert("RGB"))
    assert small[:15, :, 0].min() > 200  # a quarter turn clockwise brings the left to the top
    assert small[30:].max() < 60
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError, match="Cannot read image"):
        make_thumbnail(path, 160)


# --------------------------------------------------------------------------- parts


def test_the_scene_of_a_drone_on_earth_is_a_map_from_above() -> None:
    """Cameras that look straight down have their upper edges to the side, not upwards."""
    xyz = np.random.default_rng(0).uniform(-1, 1, (1000, 3)) * [2.0, 1.0, 0.1]
    points = Points(xyz, np.zeros((1000, 3), np.uint8), np.full(1000, 3), np.zeros(1000))
    R = np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, -1]])  # right is north, down in the photo is east
    views = [
        CameraView(f"{x}", pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ [x, 0, 5]), (0.6, 0.4))
        for x in (-1.0, 1.0)
    ]
    scene = build_scene(points, views, on_earth=True)
    east, north = scene.centres[1] - scene.centres[0], scene.rotations[0] @ [1.0, 0, 0]
    np.testing.assert_allclose(east / np.linalg.norm(east), [1, 0, 0], atol=1e-9)
    np.testing.assert_allclose(north, [0, 0, -1], atol=1e-9)  # ahead, which the top view has above
    assert np.ptp(scene.points.xyz, axis=0).argmin() == 1  # flat ground lies flat
    assert (scene.centres[:, 1] > scene.points.xyz[:, 1].max()).all()
    flat = build_scene(points, views)
    assert np.ptp(flat.points.xyz, axis=0).argmin() != 1  # which nothing else can tell


def test_scene_stands_upright_and_leaves_out_what_lies_far_off() -> None:
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (1000, 3)) * [2.0, 1.0, 3.0]
    xyz[:5] = [500, 0, 0]
    points = Points(xyz, np.zeros((1000, 3), np.uint8), np.full(1000, 3), np.zeros(1000))
    # a world whose z axis points up: cameras look along +y, their y axis points to −z
    R = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    rotation = pycolmap.Rotation3d(R)
    views = [
        CameraView(f"{x}", pycolmap.Rigid3d(rotation, -R @ [x, -8.0, 0.0]), (0.6, 0.4))
        for x in range(-2, 3)
    ]
    scene = build_scene(points, views)
    assert scene.hidden == 5
    np.testing.assert_allclose(scene.rotations[0], np.diag([1.0, -1.0, -1.0]), atol=1e-9)
    # z went up: the largest extent is along y
    extent = np.ptp(scene.points.xyz, axis=0)
    assert extent.argmax() == 1
    assert np.abs(scene.points.xyz).max() < 1.5
    assert (np.diff(scene.centres[:, 0]) > 0).all()
    assert (scene.centres[:, 2] > scene.points.xyz[:, 2].mean()).all()  # in front, towards the eye
    empty = build_scene(Points.none(), [])
    assert len(empty.points) == 0
    alone = build_scene(Points.none(), views[:1])
    assert np.isfinite(alone.centres).all()
    far = Points(xyz[:1] * 0 + 7, np.zeros((1, 3)), np.full(1, 2), np.zeros(1))
    assert np.isfinite(build_scene(far, []).points.xyz).all()


@pytest.mark.parametrize("viewpoint", sorted(VIEWPOINTS))
def test_pictures_of_a_model_are_filled_and_centred(viewpoint: str) -> None:
    """Cameras near the viewer, points far away and high up, as of a building behind a lawn."""
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (1000, 3)) * [2.0, 1.5, 0.5] + [1.0, -2.0, 0.0]  # y points down
    points = Points(xyz, np.zeros((1000, 3), np.uint8), np.full(1000, 3), np.zeros(1000))
    views = [
        CameraView(f"{x}", pycolmap.Rigid3d(pycolmap.Rotation3d(), [-x, 0.0, 8.0]), (0.6, 0.4))
        for x in range(-3, 4)
    ]
    size = np.array([320, 240])
    picture = draw_model(build_scene(points, views), viewpoint, (320, 240))
    drawn = np.argwhere((picture < 250).any(axis=2))[:, ::-1]  # (x, y)
    before, after = drawn.min(axis=0), size - 1 - drawn.max(axis=0)
    assert ((before >= 2) & (after >= 2)).all()  # all of it is seen
    assert (
        np.abs(before - after).max() < 0.1 * size.min()
    )  # points of 1 % on each side are left out
    assert ((before + after) / size).min() < 0.12  # and it fills the picture along one side


def test_scene_of_points_that_are_not_finite(finished: Path) -> None:
    model = read_model(finished / "model")
    points = Points.of(model)
    points.xyz[:3] = np.nan
    scene = build_scene(points, camera_views(model))
    assert scene.hidden >= 3
    assert np.isfinite(scene.points.xyz).all()


def test_photos_count_once_that_observe_a_point_several_times(
    finished: Path, tmp_path: Path
) -> None:
    """As in models of other programs."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before, model = collect(out), read_model(out / "model")
    for image in model.images.values():
        for keypoint in list(image.get_observation_points2D())[::2]:
            image.points2D.append(pycolmap.Point2D(keypoint.xy))
            element = pycolmap.TrackElement(image.image_id, len(image.points2D) - 1)
            model.add_observation(keypoint.point3D_id, element)
    model.write_binary(out / "model")
    after = collect(out)
    assert after.registered == before.registered
    assert np.array_equal(np.sort(after.points.tracks), np.sort(before.points.tracks))


def test_histograms_count_every_value() -> None:
    def drawn(title: str, values: Any, *, whole: bool) -> str:
        found = histogram(title, np.asarray(values), whole=whole)
        template = environment().get_template("histograms.html.j2")
        return template.render(histograms=[found], axis=histograms_module)

    def counts(html: str) -> list[int]:
        return [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)</title>", html)]

    rng = np.random.default_rng(0)
    for values, whole in (
        (rng.integers(2, 9, 500), True),
        (rng.lognormal(0, 2, 5000), False),
        (np.r_[rng.integers(0, 2000, 300), 10**6], True),
        (np.full(7, 3), True),
        (np.zeros(4), False),
        (rng.uniform(0, 1, 50), False),
    ):
        html = drawn("T <b>", values, whole=whole)
        assert sum(counts(html)) == len(values)
        assert len(counts(html)) <= 60
        assert "<b>" not in html
    assert "Median 4" in drawn("T", [2, 4, 6, np.nan], whole=True)
    assert histogram("T", np.array([1.0, 2.0])) is None


def test_three_js_is_the_one_its_readme_describes() -> None:
    script = files("edm_hloc.report").joinpath("static", "three.min.js").read_bytes()
    digest = "5648be4fdd44668cd7359b155562e30d11126eb516e5e5228b0a951a5bf34e6d"
    assert hashlib.sha256(script).hexdigest() == digest
    assert b"MIT" in script[:200]

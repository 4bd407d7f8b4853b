"""Findings of made-up runs: which appear, and what they say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.localization.results import QueryPose
from edm_hloc.report.facts import PhotoFacts, RunFacts
from edm_hloc.report.findings import findings
from edm_hloc.report.headline import headline
from edm_hloc.report.scene import CameraView, Points


def facts_of(inliers: dict[tuple[int, int], int], registered: str, **more: Any) -> RunFacts:
    """A run on photos a, b, c … of which some are registered."""
    names = sorted({i for pair in inliers for i in pair})
    facts = RunFacts(Path("out"), {"settings": {"mapping": {}}, "results": {}}, "reconstruction")
    facts.names = [chr(ord("a") + i) for i in names]
    facts.pairs = np.array(list(inliers))
    facts.inliers = np.array(list(inliers.values()))
    facts.matches = np.maximum(facts.inliers, 20) + 5
    facts.registered = dict.fromkeys(registered, 500)
    facts.points = Points(np.zeros((9, 3)), np.zeros((9, 3)), np.full(9, 4), np.full(9, 0.5))
    for key, value in more.items():
        setattr(facts, key, value)
    return facts


def photos_of(facts: RunFacts, coverage: float = 0.9) -> dict[str, PhotoFacts]:
    return {name: PhotoFacts((1000, 800), 2000, coverage) for name in facts.names}


def texts(facts: RunFacts, **more: Any) -> str:
    return "\n".join(
        f"{a.level}: {a.text} {list(a.photos)}" for a in findings(facts, photos_of(facts, **more))
    )


CHAIN = {(0, 1): 300, (1, 2): 300, (0, 2): 200}


def test_what_stays_and_what_only_turned_is_said() -> None:
    still = {"size": [640, 480], "box": [0, 400, 640, 480], "share": 0.31, "certain": True}
    facts = facts_of(CHAIN, "abc")
    imported = {"still": [still], "left_out": 4615}
    facts.record["results"] = {"imported": imported, "mapped": {"turned": ["d"]}}
    said = texts(facts)
    assert re.search(r"note: 31% .*same pixels \(x 0 to 640, y 400 to 480\).* 4,615 .*left", said)
    assert re.search(r"warning: 1 photo was taken from one place .*\['d'\]", said)
    still["certain"] = False
    assert re.search(r"warning: 31% .*They were kept, .*--masks", texts(facts))
    facts.record["results"]["imported"]["backdrop"] = {"photos": ["a", "b"], "matches": 1234}
    found = r"note: The background of 2 photos stays .* 1,234 matches .*left out. \['a', 'b'\]"
    assert re.search(found, texts(facts))
    kept = {"photos": [], "matches": 0, "kept": [["a", "c"]]}
    facts.record["results"] = {"background": kept}
    found = r"warning: In 1 pair of photos something has turned .*--masks.*\['a', 'c'\]"
    assert re.search(found, texts(facts))
    assert "The background of" not in texts(facts)


def test_lists_of_many_sizes_and_parts_stay_short() -> None:
    every = [
        {"size": [640, i], "box": [0, 0, 9, 9], "share": i / 100, "certain": True}
        for i in range(1, 21)
    ]
    facts = facts_of({**CHAIN, (3, 4): 300}, "abc")
    parts = {"components": [250, *[3] * 50], "elsewhere": ["d"]}
    facts.record["results"] = {"imported": {"still": every, "left_out": 5}, "mapped": parts}
    said = texts(facts)
    assert re.findall(r"note: (\d+)% of the matches stay", said) == ["20", "19", "18"]
    assert "note: The same holds, for fewer matches, in 17 groups of photos" in said
    assert re.search(r"separate ones of 250(, 3){11} photos and 39 more were found, as", said)


def test_photos_that_show_different_things_at_one_place_are_said() -> None:
    facts = facts_of(CHAIN, "abc")
    conflicts = {"pairs": [["a", "c"], ["a", "b"]], "compared": 12}
    facts.record["results"] = {"conflicts": conflicts}
    said = texts(facts)
    assert re.search(r"warning: 2 of 12 pairs of photos .*as a and c do.*\['a', 'c', 'b'\]", said)
    facts.record["results"] = {"conflicts": {"pairs": [], "compared": 12}}
    assert "different things" not in texts(facts)


def test_photos_whose_matches_contradict_the_model_are_said() -> None:
    facts = facts_of(CHAIN, "abc")
    facts.record["results"] = {"mapped": {"misplaced": ["b"]}}
    assert re.search(
        r"warning: The matches of 1 photo contradict their model.*\['b'\]", texts(facts)
    )
    facts.record["results"] = {"mapped": {"misplaced": []}}
    assert "contradict" not in texts(facts)


def test_photos_whose_connection_is_outvoted_are_contested() -> None:
    facts = facts_of(CHAIN, "abc")
    facts.record["results"] = {"mapped": {"contested": ["b", "c"]}}
    assert re.search(r"warning: 2 photos may be on the wrong side.*\['b', 'c'\]", texts(facts))
    facts.record["results"] = {"mapped": {}}  # of an earlier version
    assert "wrong side" not in texts(facts)


def test_a_model_that_few_matches_fit_is_doubted() -> None:
    facts = facts_of(CHAIN, "abc")
    facts.record["results"] = {"mapped": {"fitting": 0.524}}
    assert "warning: Only 52% of the verified matches fit the model" in texts(facts)
    for fine in ({"fitting": 0.92}, {}):  # of a run of an earlier version nothing is known
        facts.record["results"] = {"mapped": fine}
        assert "verified matches fit" not in texts(facts)


def test_a_good_run_has_a_single_good_finding() -> None:
    assert texts(facts_of(CHAIN, "abc")) == (
        "good: All 3 photos were registered in one model, and no problem was found. []"
    )


def test_findings_tell_why_photos_did_not_register() -> None:
    weak = texts(facts_of({**CHAIN, (2, 3): 8, (3, 4): 14}, "abc"))
    assert "2 photos did not register: they share fewer than 15 verified matches" in weak
    assert "['d', 'e']" in weak
    results = {"settings": {}, "results": {"mapped": {"components": [3, 2]}}}
    apart = facts_of({**CHAIN, (2, 3): 8, (3, 4): 140}, "abc", record=results)
    assert "match one another, but not enough any registered photo" in texts(apart)
    results["results"]["mapped"]["elsewhere"] = ["d", "e"]
    said = texts(facts_of({**CHAIN, (2, 3): 8, (3, 4): 140}, "abc", record=results))
    assert "2 photos are in other models: separate ones of 3, 2 photos were found" in said
    assert "did not register" not in said
    near = texts(facts_of({**CHAIN, (2, 3): 60}, "abc"))
    assert "1 photo did not register, though" in near
    assert "(up to 60)" in near
    skipped = texts(facts_of({**CHAIN, (2, 3): 0}, "abc", skipped={"d": "damaged"}))
    assert "did not register" not in skipped
    assert "1 photo could not be read and was left out" in skipped


def test_findings_on_quality() -> None:
    facts = facts_of(CHAIN, "abc")
    facts.registered["a"] = 40
    assert "1 photo observes fewer than 100 3D points" in texts(facts)
    facts = facts_of(CHAIN, "abc")
    facts.record["settings"]["matcher"] = {"resize_max": 500}
    facts.points.errors[:] = 2.0  # 1 px at the size that was matched
    assert "reprojection error" not in texts(facts)
    facts.points.errors[:] = 4.0
    assert "is 4.00 px, or 2.00 px at the size" in texts(facts)
    facts = facts_of({**CHAIN, (2, 3): 300, (3, 4): 300}, "abcde")
    facts.points.tracks[:] = 2
    assert "100% of the points are observed by only two photos" in texts(facts)
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=1000, height=800, params=[900, 500, 400, -1.2]
    )
    assert "a distortion of -1.20" in texts(facts_of(CHAIN, "abc", cameras={"a": camera}))
    for focal, odd in ((1918, False), (640, True)):  # a second coefficient, of a long lens and not
        radial = pycolmap.Camera(
            model="RADIAL", width=1280, height=961, params=[focal, 640, 480, 0.12, -0.56]
        )
        said = texts(facts_of(CHAIN, "abc", cameras={"a": radial}))
        assert ("a distortion of -0.56" in said) == odd
    camera.params = [9000, 500, 400, 0]
    assert "a field of view of 6°, right for a long telephoto lens only" in texts(
        facts_of(CHAIN, "abc", cameras={"a": camera})
    )
    told = facts_of(CHAIN, "abc", cameras={"a": camera}, prior_focal_lengths={1: 8000.0})
    camera.camera_id = 1
    assert "calibration" not in texts(told)
    told.prior_focal_lengths[1] = 4000.0
    assert "a field of view of 6°" in texts(told)
    if "EQUIRECTANGULAR" in pycolmap.CameraModelId.__members__:  # since pycolmap 4.2
        panorama = pycolmap.Camera.create_from_model_name(1, "EQUIRECTANGULAR", 1.0, 1000, 500)
        told = facts_of(CHAIN, "abc", cameras={"a": panorama}, prior_focal_lengths={1: 0.0})
        assert "calibration" not in texts(told)
    view = CameraView("a", pycolmap.Rigid3d(), (1.0, 1.0))
    assert "keypoints of 1 photo cover less than 25%" in texts(
        facts_of(CHAIN, "abc", views=[view]), coverage=0.1
    )
    low = facts_of(CHAIN, "abc")
    low.matches[:] = 1000
    assert "The median inlier ratio of the verified pairs is" in texts(low)
    record = {
        "settings": {},
        "results": {
            "imported": {"images": 3, "prior_focal": 1},
            "mapped": {"undistorted": True},
        },
    }
    said = texts(facts_of(CHAIN, "abc", record=record))
    assert "The focal length of 2 photos was estimated" in said
    assert "No believable model was found with lens distortion" in said
    record["results"]["imported"] = {"images": 3, "prior_focal": 0, "may_share_cameras": True}
    record["results"]["copies"] = {"c": "a"}
    said = texts(facts_of(CHAIN, "abc", record=record))
    assert "no camera was found to fit all of one size" in said
    assert "--camera-mode single is right" in said
    assert "Copies of other photos, byte by byte: 1 photo. They tell nothing new: leave" in said
    assert "was estimated" not in said
    lenses = [{"photos": n, "changed": 9.0, "sigma": 2.0} for n in (200, *[1] * 50)]
    record["results"]["tracks"] = {"lenses": lenses}
    said = texts(facts_of(CHAIN, "abc", record=record))
    assert said.count("The lens of 1 photo was calibrated by them") == 4
    assert "And 46 more of other photos in the same way." in said
    record["results"]["mapped"] = {
        "undistorted_photos": ["b"],
        "one_camera_photos": ["a", "c"],
        "shared_cameras": 2,
        "own_camera_photos": ["b"],
        "look_alikes": [["a", "b"], ["b", "c"]],
        "components": [2, 1],
    }
    said = texts(facts_of(CHAIN, "abc", record=record))
    assert re.search(r"No believable model of 1 photo was found with lens .*\['b'\]", said)
    assert re.search(r"2 photos share 2 cameras, as their EXIF.*\['a', 'c'\]", said)
    assert re.search(r"Each of 1 photo has a camera of its own: their EXIF .*\['b'\]", said)
    assert "--camera-mode single is right" not in said
    assert re.search(r"2 verified pairs of photos look alike.*as a and b.*\['a', 'b', 'c'\]", said)


def test_cameras_that_are_far_less_certain_are_said() -> None:
    facts = facts_of(CHAIN, "abc")
    tracks = {"uncertainty": [0.0012, 0.0018], "doubtful": {"b": 0.02, "c": 0.31}}
    facts.record["results"] = {"tracks": tracks}
    said = texts(facts)
    assert re.search(
        r"warning: .* of 2 photos is .* uncertain .*, of c 0\.31 %.*\['b', 'c'\]", said
    )
    figures = {figure.label: figure for figure in headline(facts, 0)}
    assert figures["Middle camera, 1 σ"][1:] == ("0.0012", " % of the extent, 0.0018°")


def test_sharing_intrinsics_is_advised_for_photos_of_one_size() -> None:
    def said(*sizes: tuple[int, int]) -> str:
        cameras = {
            chr(ord("a") + i): pycolmap.Camera(
                model="SIMPLE_RADIAL", width=w, height=h, params=[900, 500, 400, -1.2], camera_id=i
            )
            for i, (w, h) in enumerate(sizes)
        }
        return texts(facts_of(CHAIN, "abc", cameras=cameras))

    assert "--camera-mode single" in said((1000, 800), (1000, 800))
    assert "--camera-mode single" not in said((1000, 800), (800, 1000))
    assert "--camera-mode single" not in said((1000, 800))


def test_cameras_far_from_all_others_are_said() -> None:
    facts = facts_of(CHAIN, "abc")
    facts.record["results"] = {"mapped": {"statistics": {"far_from_all": ["b"]}}}
    assert re.search(r"warning: 1 camera is more than thirty times .*\['b'\]", texts(facts))


def test_findings_on_queries() -> None:
    def query(name: str, inliers: int, correspondences: int) -> QueryPose:
        status = "localized" if inliers >= 10 else "failed"
        return QueryPose(
            name,
            status,  # type: ignore[arg-type]
            inliers=inliers,
            correspondences=correspondences,
            rotation_deviation=0.05,
        )

    facts = facts_of(CHAIN, "", kind="localization", min_inliers=10)
    facts.queries = [query("a", 500, 600), query("b", 20, 600)]
    said = texts(facts)
    assert said == f"note: {said.split(': ', 1)[1]}"
    assert "1 query has a pose of low confidence" in said
    facts.queries += [query("c", 4, 80), query("d", 0, 0)]
    said = texts(facts)
    assert "1 query could not be localized although correspondences were found" in said
    assert "1 query had no correspondence at all" in said
    facts.queries = [query("a", 500, 600)]
    assert texts(facts).startswith("good: All 1 queries")
    facts.queries = [dataclasses.replace(facts.queries[0], elsewhere=400)]
    assert "warning: 1 query may as well be elsewhere" in texts(facts)

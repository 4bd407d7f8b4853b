"""Summaries of runs of hundreds of photos stay short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edm_hloc.base.log import warn_of_skipped
from edm_hloc.cli.earth import print_place
from edm_hloc.cli.summaries import print_localization, print_reconstruction
from edm_hloc.localization.results import LocalizationSummary, QueryPose
from edm_hloc.mapping.georeference import Georeference
from edm_hloc.pipelines.run import Run


def test_the_summary_of_500_photos_with_all_kinds_of_trouble(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"photo_{i:03}.jpg" for i in range(500)]
    still = {"share": 0.1, "box": (0, 0, 10, 10), "certain": True}
    statistics = {
        "registered": 250,
        "points": 100_000,
        "mean_track_length": 4.0,
        "mean_reprojection_error": 0.5,
        "far_from_all": names[:9],
    }
    results = {
        "pairs": {"rounds": [2500, 700], "connected": 2900},
        "matching": {
            "matched": 3200,
            "resumed": 800,
            "seconds": 1000.0,
            "encoded": 500,
            "skipped": {name: f"Cannot read image {name}: it is empty." for name in names[400:]},
            "skipped_pairs": 300,
            "rotated": names[:200],
        },
        "masks": {"photos": 500},
        "masked": {"hidden": names[30:130]},
        "copies": {"b.jpg": "a.jpg", "c.jpg": "a.jpg"},
        "copies_left_out": True,
        "keypoints": {"keypoints": 4_000_000, "images": 400, "matches": 5_000_000},
        "imported": {"still": [still] * 40, "left_out": 5, "may_share_cameras": True},
        "verified": {"verified_pairs": 3000, "pairs": 3200, "inliers": 9, "matches": 10},
        "mapped": {
            "statistics": statistics,
            "images": 400,
            "unregistered": names[250:400],
            "components": [250, *[3] * 50],
            "elsewhere": names[250:270],
            "turned": names[:30],
            "undistorted_photos": names[250:262],
            "look_alikes": [*[names[:2]] * 499, [names[0], names[399]]],
            "misplaced": names[7:90],
            "fitting": 0.524,
            "contested": names[20:24],
        },
        "tracks": {
            "before": statistics,
            "after": statistics,
            "kept": 0,
            "blurred": (),
            "unread": (),
            "lenses": [{"photos": n, "changed": 9.0, "sigma": 2.0} for n in (200, *[1] * 50)],
            "uncertainty": None,
        },
    }
    print_reconstruction(Run(tmp_path, {}, results=results), 1.0)
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 48
    assert all(len(line) <= 300 for line in said.splitlines())
    assert "and 95 more photos, see" in said
    assert "Lens        of 1 photo, calibrated by them: 9.0 ± 2.0 px off" in said
    assert "Lens        and 49 more of other photos" in said
    assert "Model       250 of 400 photos, " in said
    assert "Copies      2 of other photos byte by byte, e.g. b.jpg of a.jpg: left out" in said
    assert f"Far away    {names[0]}, " in said
    assert "and 4 more photos: more than thirty times as far" in said
    assert f"Missing     {names[270]}, " in said  # those in no model
    assert "and 125 more" in said
    assert f"leave less than 1 % of the matches of {names[30]}, " in said
    assert f"left at zero for 12 photos, e.g. {names[250]}" in said
    assert (
        f"500 verified pairs, probably of different places, e.g. {names[0]} and {names[1]}" in said
    )
    assert f"and with them 1 photo that no other pairs connect, e.g. {names[399]}" in said
    assert "Doubtful    only 52% of the verified matches fit the model" in said
    assert f"Contested   4 photos, e.g. {names[20]}: three times as many" in said
    assert f"Misplaced   83 photos, e.g. {names[7]}, or those beside them" in said
    assert "separate models of 250, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, and 39 more; others in" in said


def test_photos_of_a_known_model_without_points_are_not_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triangulation keeps the poses also of photos that are not there."""
    counts = dict.fromkeys(("matched", "resumed", "encoded", "skipped_pairs"), 1)
    statistics = dict.fromkeys(("points", "mean_track_length", "mean_reprojection_error"), 1)
    results = {
        "matching": {**counts, "seconds": 1.0, "skipped": {}, "rotated": []},
        "keypoints": dict.fromkeys(("keypoints", "images", "matches"), 1),
        "verified": dict.fromkeys(("verified_pairs", "pairs", "inliers", "matches"), 1),
        "mapped": {
            "statistics": {"registered": 11, **statistics},
            "images": 11,
            "unregistered": ["1.jpg", "2.jpg", "3.jpg"],
            "components": [11],
            "one_camera_photos": ["4.jpg", "5.jpg", "6.jpg"],
            "shared_cameras": 2,
            "own_camera_photos": ["7.jpg", "8.jpg"],
        },
    }
    print_reconstruction(Run(tmp_path, {}, results=results), 1.0)
    said = capsys.readouterr().out
    assert "Cameras     2 cameras shared by 3 photos, e.g. 4.jpg, as one for each" in said
    assert "Cameras     one for each of 2 photos, e.g. 7.jpg: their EXIF data are equal" in said
    assert "Model       8 of 11 photos, " in said
    assert "Missing     1.jpg, 2.jpg, 3.jpg" in said


def test_warnings_of_skipped_photos_are_few(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_skipped(f"photo {i} is empty" for i in range(3))
    assert caplog.messages == [f"Skipping a photo: photo {i} is empty" for i in range(3)]
    caplog.clear()
    warn_of_skipped(f"photo {i} is empty" for i in range(300))
    assert len(caplog.messages) == 6
    assert caplog.messages[-1] == "Skipping a photo: and 295 more photos"


def test_parts_without_positions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Georeference(used=False, why="there are 0 positions")
    some = Georeference(used=False, why="there are 3 positions", positions=3)
    parts = {str(k): some if k == 5 else nowhere for k in range(2, 40)}
    print_place(Georeference(used=False, why="there are 4 positions", positions=4, parts=parts))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[1].endswith("parts 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, and 25 more")
    assert said[2].endswith("part 5 keeps its own frame: there are 3 positions")


def test_doubtful_poses_are_named_those_with_fewest_inliers_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sure = QueryPose(
        "sure.jpg", "localized", correspondences=400, inliers=300, rotation_deviation=0.1
    )
    uncertain = replace(sure, query="wall.jpg", rotation_deviation=1.0)
    few = [replace(sure, query=f"few{i}.jpg", correspondences=77, inliers=12 + i) for i in range(6)]
    failed = QueryPose("none.jpg", "closest", "no match")

    def summary(*answers: QueryPose) -> list[str]:
        results = {"localized": vars(LocalizationSummary.of(answers))}
        print_localization(Run(tmp_path, {}, results=results), answers, 1.0)
        return capsys.readouterr().out.splitlines()

    assert not any("Doubtful" in line for line in summary(sure, failed))
    said = summary(sure, uncertain, *few, failed)
    assert said[0].startswith("Localized   8 of 9 queries")
    assert said[1].startswith("Doubtful    7 of these:")
    assert said[2].strip() == "few0.jpg: 12 inliers of 77; few inliers"
    assert said[6].strip() == "few4.jpg: 16 inliers of 77; few inliers"
    assert said[7].strip() == "and 2 more queries, see queries.jsonl"
    assert said[8].startswith("Not found   1 of 9")
    said = summary(replace(sure, elsewhere=160))
    assert said[2].strip() == "sure.jpg: 300 inliers of 400; 160 fit a pose elsewhere"
    said = summary(replace(sure, query="f.jpg", rotation_deviation=0.4, better_focal=448.2))
    assert said[2].endswith("; a focal length of 448 px fits far better, rotation ± 0.4°")

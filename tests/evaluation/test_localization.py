"""Errors and recall of camera poses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import main
from edm_hloc.evaluation.localization import (
    evaluate,
    pose_errors,
    poses_of_no_query,
    read_truth,
    table,
)
from edm_hloc.localization.poses import write_poses
from tests.localization.queries import TRUTH


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
    (tmp_path / "._day.txt").write_bytes(b"\0\5\26\7Mac OS X")
    day, night = evaluate(poses, read_truth(tmp_path))
    assert (day.group, day.queries, day.answered) == ("day", 4, 3)
    assert day.recall == (0.25, 0.5, 0.75)  # the one without an answer counts
    assert (day.position_median, day.rotation_median) == pytest.approx((0.1, 1.0))
    assert night.recall == (0, 0, 0)
    assert "25.0 %" in table([day, night], ((0.25, 2.0), (0.5, 5.0), (1.0, 10.0)))
    # the pose of a query at the root is none of a query of the same file name in a folder
    (both,) = evaluate({"a.jpg": TRUTH}, {"day": {"a.jpg": TRUTH, "folder/a.jpg": TRUTH}})
    assert (both.queries, both.answered) == (2, 1)
    with pytest.raises(EdmHlocError, match="names are like 'z"):
        evaluate({"z.jpg": TRUTH}, read_truth(tmp_path))


def test_lines_that_are_commented_out_count_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poses, truth = tmp_path / "poses.txt", tmp_path / "day.txt"
    names = [f"query/day/{number}.jpg" for number in range(4)]
    write_poses(truth, dict.fromkeys(names, TRUTH))
    whole = truth.read_text()
    for mark in ("# ", "#"):
        poses.write_text(mark + whole)
        truth.write_text(whole)
        assert main(["evaluate-poses", str(poses), str(truth)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["day", "4", "3"]
        poses.write_text(whole if mark == "#" else mark + whole)
        truth.write_text(mark + whole)
        assert main(["evaluate-poses", str(poses), str(truth)]) == 0
        assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["day", "3", "3"]
    names = ["#3 kitchen/1.jpg", "hall/2.jpg"]  # names may begin like a comment
    write_poses(truth, dict.fromkeys(names, TRUTH))
    truth.write_text(f"# name qw qx qy qz tx ty tz\n{truth.read_text()}")
    assert list(read_truth(truth, names)["day"]) == names


OTHER_FORMS: dict[str, Callable[[list[float], list[float], list[float]], list[float]]] = {
    "into the world: invert": lambda q, t, centre: [q[0], *(-x for x in q[1:]), *centre],
    "positions C in place of the translations: write -R C": lambda q, t, centre: [*q, *centre],
    "quaternions with qw last: write it first. ": lambda q, t, centre: [*q[1:], q[0], *t],
    "into the world, with qw last: write it first and invert": (
        lambda q, t, centre: [*(-x for x in q[1:]), q[0], *centre]
    ),
    "qw last, and the cameras' positions": lambda q, t, centre: [*q[1:], q[0], *centre],
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_poses_in_another_form_are_told_with_the_remedy(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their errors look like those of a localization that has failed."""
    right, other = tmp_path / "right.txt", tmp_path / "other.txt"
    poses = {f"{number}.jpg": moved(number, 20 * number) for number in range(3)}
    write_poses(right, {name: moved(n + 0.01, 20 * n + 0.1) for n, name in enumerate(poses)})
    assert main(["evaluate-poses", str(right), str(right)]) == 0
    lines = []
    for name, pose in poses.items():
        q, centre = np.roll(pose.rotation.quat, 1), pose.inverse().translation
        numbers = OTHER_FORMS[form](list(q), list(pose.translation), list(centre))
        lines.append(" ".join([name, *(repr(float(number)) for number in numbers)]))
    other.write_text("\n".join(lines))
    assert "seems to hold" not in capsys.readouterr().err
    assert main(["evaluate-poses", str(other), str(right)]) == 0
    told = capsys.readouterr().err
    assert re.search(rf"{other}( or {right})? seems to hold ", told)
    assert (form == "into the world: invert") == (" or " in told)  # the one as well as the other
    assert form in told
    truth = other.rename(tmp_path / "truth.txt")
    assert main(["evaluate-poses", str(right), str(truth)]) == 0
    assert re.search(rf"({right} or )?{truth} seems to hold ", capsys.readouterr().err)


def test_several_files_are_evaluated_and_checked_each_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a pattern of the shell gives them, after runs with other retrievals."""
    names = ["night/1.jpg", "day/2.jpg"]
    right, wrong, earlier = (
        tmp_path / f"Aachen-v1.1_edm_{end}.txt" for end in ("sift5", "netvlad50", "sift5_earlier")
    )
    write_poses(right, dict.fromkeys(names, TRUTH), basenames=True)
    write_poses(wrong, {"1.jpg": TRUTH})
    write_poses(earlier, {"2.jpg": moved(9, 90)})
    truth, queries = tmp_path / "truth.txt", tmp_path / "queries.txt"
    write_poses(truth, dict.fromkeys(names, TRUTH))
    queries.write_text("\n".join(names))
    files = [str(path) for path in (right, wrong, earlier)]
    assert main(["evaluate-poses", *files, str(truth)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert [line.rstrip(":") for line in lines if line.endswith(":")] == files
    assert [line.split()[2] for line in lines if line.startswith("truth")] == ["2", "1", "1"]
    assert said.err.count(" is of an earlier run") == 1
    assert f"{earlier} is of an earlier run" in said.err
    assert main(["check-submission", *files, "--queries", str(queries)]) == 1
    said = capsys.readouterr()
    assert f"{right} has one pose for each of 2 queries" in said.out
    assert f"{wrong}:\n1 of 2 queries have no pose, e.g. 'day/2.jpg'" in said.err
    assert f"{earlier}:\n1 of 2 queries have no pose, e.g. 'night/1.jpg'" in said.err


def test_poses_under_other_folders_count_where_their_file_names_are_unique(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = {"day": {f"query/day/{name}.jpg": TRUTH for name in "abc"}}
    poses = {"mine/a.jpg": TRUTH, "b.jpg": TRUTH, "x/c.jpg": TRUTH, "y/c.jpg": TRUTH}
    (day,) = evaluate(poses, truth)
    assert (day.answered, day.recall) == (2, (2 / 3,) * 3)
    assert poses_of_no_query(poses, truth) == ["x/c.jpg", "y/c.jpg"]  # either may be the one
    write_poses(tmp_path / "poses.txt", poses)
    write_poses(tmp_path / "day.txt", truth["day"])
    assert main(["evaluate-poses", str(tmp_path / "poses.txt"), str(tmp_path / "day.txt")]) == 0
    said = capsys.readouterr().err
    assert f"2 of the 4 poses in {tmp_path / 'poses.txt'} count for nothing" in said
    assert "such as 'x/c.jpg'" in said

"""Files of poses and submissions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.localization import pose_errors
from edm_hloc.localization.poses import read_poses, to_numbers, to_rigid, write_poses
from edm_hloc.localization.results import QueryPose
from edm_hloc.localization.submission import check_submission
from tests.localization.queries import TRUTH


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


def test_rounded_quaternions_turn_the_same_and_stretch_nothing(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    write_poses(path, {"1.jpg": TRUTH})
    name, *words = path.read_text().split()
    numbers = [float(word) for word in words]
    for factor in (0.999, -2.5):
        scaled = [*(factor * q for q in numbers[:4]), *numbers[4:]]
        path.write_text(" ".join([name, *map(repr, scaled)]))
        assert pose_errors(read_poses(path)[name], TRUTH) == pytest.approx((0, 0), abs=1e-9)


def test_a_photo_has_one_pose(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    write_poses(path, {"1.jpg": TRUTH, "2.jpg": TRUTH})
    lines = path.read_text()
    path.write_text(lines + lines)  # the same again
    assert list(read_poses(path)) == ["1.jpg", "2.jpg"]
    path.write_text(f"{lines}\n2.jpg 1 0 0 0 1 2 3\n")
    with pytest.raises(EdmHlocError, match=r"poses\.txt, line 4: 2\.jpg is there a second time"):
        read_poses(path)


def test_names_may_begin_like_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "poses.txt"
    write_poses(path, {"#3 kitchen/1.jpg": TRUTH, " hall/2.jpg": TRUTH})
    path.write_text(f"# name qw qx qy qz tx ty tz\n{path.read_text()}")
    assert list(read_poses(path)) == ["#3 kitchen/1.jpg", " hall/2.jpg"]


def test_what_is_wrong_with_a_submission(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text(
        "1.jpg 1 0 0 0 0 0 0\n1.jpg 1 0 0 0 0 0 0\nquery/2.jpg 1 0 0 0 0 0 0\n3.jpg 1 1 0 0 0 0 0\n"
        "4.jpg 1 0 0 0 0 0\n5.jpg 1 0 0 0 nan 0 0\n9.jpg 1 0 0 0 0 0 0\n"
        "6.jpg 7 8 9 1 0 0 0\n"
    )
    queries = [f"query/{k}.jpg" for k in range(1, 7)]
    assert check_submission(path, queries) == [
        "line 2, '1.jpg': a second pose of the same query",
        "line 3, 'query/2.jpg': no such query; names go without folders",
        "line 4, '3.jpg': the quaternion's length is 1.41421",
        "line 5, '4.jpg': expected 'name qw qx qy qz tx ty tz'",
        "line 6, '5.jpg': not a pose: numbers must be finite and the quaternion not zero",
        "line 7, '9.jpg': no such query",
        "line 8, '6.jpg': the quaternion comes last; expected 'name qw qx qy qz tx ty tz'",
        "1 of 6 queries have no pose, e.g. 'query/2.jpg'",
    ]
    with pytest.raises(EdmHlocError, match="line 5"):
        read_poses(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_submission_has_no_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text("1.jpg 1 0 0 0 0 0 0\n", encoding)
    (problem,) = check_submission(path, ["1.jpg"])
    assert "begins with a byte-order mark" in problem


def test_queries_of_one_name_have_no_right_submission(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text("1.jpg 1 0 0 0 0 0 0\n2.jpg 1 0 0 0 0 0 0\n")
    assert check_submission(path, ["a/1.jpg", "2.jpg", "a/1.jpg"]) == []  # in two lists
    (problem,) = check_submission(path, ["a/1.jpg", "b/1.jpg", "2.jpg"])
    assert problem.startswith("the queries 'a/1.jpg' and 'b/1.jpg' have one name")


def test_query_pose_survives_json() -> None:
    pose = QueryPose("q", "localized", cam_from_world=to_numbers(TRUTH), inliers=5)
    assert pose_errors(pose.pose, TRUTH)[0] < 1e-12
    assert pose.confidence == "low"

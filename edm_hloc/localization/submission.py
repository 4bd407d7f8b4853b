"""Checks a benchmark's submission file against the list of queries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edm_hloc.localization.poses import parse_pose, pose_lines


def check_submission(path: Path, queries: Iterable[str]) -> list[str]:
    """What is wrong with a submission: a sentence for each problem, none if it is right.

    Raises:
        EdmHlocError: the file cannot be read.
    """
    missing = {query.rpartition("/")[2]: query for query in queries}
    wanted, problems, seen = set(missing), [], set()
    for number, line in pose_lines(path):
        name, numbers, problem = parse_pose(line)
        where = f"line {number}, {name}: "
        if problem:
            problems.append(where + problem)
        elif abs(float(np.linalg.norm(numbers[:4])) - 1) > 1e-6:
            problems.append(f"{where}the quaternion's length is {np.linalg.norm(numbers[:4]):.6g}")
        if name in seen:
            problems.append(where + "a second pose of the same query")
        elif name not in wanted:
            short = name.rpartition("/")[2]
            hint = "; names go without folders" if short in wanted else ""
            problems.append(f"{where}no such query{hint}")
        seen.add(name)
        missing.pop(name, None)
    if missing:
        some = ", ".join(sorted(missing.values())[:5])
        problems.append(f"{len(missing)} of {len(wanted)} queries have no pose, e.g. {some}")
    return problems

"""Checks a benchmark's submission file against the list of its queries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edm_hloc.base.text import has_byte_order_mark
from edm_hloc.localization.poses import read_pose_lines

_UNIT_TOLERANCE = 1e-6  # of a quaternion's length


def check_submission(path: Path, queries: Iterable[str]) -> list[str]:
    """Problems of a submission, a sentence each; none if every query has exactly one pose.

    Args:
        path: text file with `basename qw qx qy qz tx ty tz` a line.
        queries: names of all queries, with or without folders; one that is named twice counts once.

    Raises:
        EdmHlocError: the file cannot be read.
    """
    missing: dict[str, str] = {}
    problems, seen = [], set()
    lines = read_pose_lines(path)
    if has_byte_order_mark(path):
        problems.append(
            "the file begins with a byte-order mark, which the benchmark may take for a part of "
            "the first name: save it as UTF-8 without one"
        )
    for query in dict.fromkeys(queries):
        other = missing.setdefault(query.rpartition("/")[2], query)
        if other != query:
            problems.append(
                f"the queries {other!r} and {query!r} have one name without folders, so that no "
                "file of this form can tell them apart"
            )
    expected = set(missing)
    for line in lines:
        where = f"line {line.number}, {line.name!r}: "
        length = float(np.linalg.norm(line.pose[:4]))
        if line.problem:
            problems.append(where + line.problem)
        elif abs(length - 1) > _UNIT_TOLERANCE:
            problems.append(f"{where}the quaternion's length is {length:.6g}")
        if line.name in seen:
            problems.append(where + "a second pose of the same query")
        elif line.name not in expected:
            basename = line.name.rpartition("/")[2]
            hint = "; names go without folders" if basename in expected else ""
            problems.append(f"{where}no such query{hint}")
        seen.add(line.name)
        missing.pop(line.name, None)
    if missing:
        examples = ", ".join(map(repr, sorted(missing.values())[:5]))
        problems.append(f"{len(missing)} of {len(expected)} queries have no pose, e.g. {examples}")
    return problems

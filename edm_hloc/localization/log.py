"""The log of a localization: one JSON object a query, from which an interrupted run resumes.

The first line holds the run's fingerprint, {"run": …}; every other line is a `QueryPose`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.localization.results import QueryPose


def read_log(path: Path) -> list[QueryPose]:
    """Reads the results in a log of `localize_queries`, in the file's order.

    Raises:
        EdmHlocError: the file cannot be read or is not such a log.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        return [parse_pose(line) for line in lines[1:]]
    except OSError as error:
        raise EdmHlocError(f"Cannot read the log {path}: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise EdmHlocError(f"Cannot read the log {path}: {error}.") from error


def resume_log(path: Path, fingerprint: str) -> dict[str, QueryPose]:
    """Reads the results of an earlier run by query, and prepares the log for appending to it.

    The results of a run with another fingerprint are removed, and so is a last line that was cut
    off when a run was killed.

    Raises:
        EdmHlocError: the log cannot be written.
    """
    done: dict[str, QueryPose] = {}
    header = json.dumps({"run": fingerprint})
    if path.is_file():
        lines = path.read_text("utf-8", errors="replace").splitlines()
        for line in lines[1:] if lines and lines[0] == header else []:
            try:
                pose = parse_pose(line)
            except (ValueError, TypeError, KeyError):
                break
            done[pose.query] = pose
    write_whole(path, "\n".join([header, *map(format_pose, done.values())]) + "\n")
    return done


def append_to_log(log: TextIO, pose: QueryPose) -> None:
    """Appends a result to an open log and flushes it."""
    log.write(format_pose(pose) + "\n")
    log.flush()


def format_pose(pose: QueryPose) -> str:
    """A result as a line of the log. Raises ValueError if a number of it is not finite."""
    return json.dumps(asdict(pose), allow_nan=False)


def parse_pose(line: str) -> QueryPose:
    """The result in a line. Raises ValueError, TypeError or KeyError if it is none."""
    record = json.loads(line, parse_constant=_no_number)  # which earlier versions wrote
    for field in ("cam_from_world", "lens_deviations"):
        if record.get(field) is not None:
            record[field] = tuple(record[field])
    return QueryPose(**record)


def _no_number(_: str) -> None:
    """What NaN and infinities stand for, which JSON does not have."""

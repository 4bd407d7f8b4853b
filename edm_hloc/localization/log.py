"""The log of a localization: one JSON object a query, from which an interrupted run resumes.

The first line holds the run's fingerprint, {"run": …}; every other line is a `QueryPose`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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
        return [_parse(line) for line in lines[1:]]
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
                pose = _parse(line)
            except (ValueError, TypeError, KeyError):
                break
            done[pose.query] = pose
    write_whole(path, "\n".join([header, *map(_format, done.values())]) + "\n")
    return done


def append_to_log(log: TextIO, poses: Iterable[QueryPose]) -> None:
    """Appends results to an open log and flushes it."""
    log.writelines(_format(pose) + "\n" for pose in poses)
    log.flush()


def _format(pose: QueryPose) -> str:
    return json.dumps(asdict(pose))


def _parse(line: str) -> QueryPose:
    record = json.loads(line)
    if record["cam_from_world"] is not None:
        record["cam_from_world"] = tuple(record["cam_from_world"])
    return QueryPose(**record)

"""The log of a localization: one JSON object a query, which an interrupted run resumes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.localization.results import QueryPose


def read_log(path: Path) -> list[QueryPose]:
    """The queries in a log of `localize_queries`.

    Raises:
        EdmHlocError: it cannot be read or is something else.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        return [_parse(line) for line in lines[1:]]
    except (OSError, ValueError, TypeError) as error:
        raise EdmHlocError(f"Cannot read the log {path}: {error}.") from error


def _parse(line: str) -> QueryPose:
    record = json.loads(line)
    if record["cam_from_world"] is not None:
        record["cam_from_world"] = tuple(record["cam_from_world"])
    return QueryPose(**record)


def resume(log: Path, fingerprint: str) -> dict[str, QueryPose]:
    """The queries that are done; leaves a log of whole lines that more can be appended to."""
    done: dict[str, QueryPose] = {}
    header = json.dumps({"run": fingerprint})
    if log.is_file():
        lines = log.read_text("utf-8", errors="replace").splitlines()
        for line in lines[1:] if lines and lines[0] == header else []:
            try:
                pose = _parse(line)
            except (ValueError, TypeError, KeyError):
                break  # cut off by a kill
            done[pose.query] = pose
    records = [json.dumps(asdict(pose)) for pose in done.values()]
    write_whole(log, "\n".join([header, *records]) + "\n")
    return done

"""What the last section of a page shows: time and memory of the stages, and all settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from edm_hloc.report.facts import RunFacts

_MAX_VALUE = 400  # characters of a setting
_STAGES = {
    "descriptors of edm": "Descriptors of EDM for retrieval",
    "descriptors of sift": "Descriptors of SIFT for retrieval",
    "descriptors of megaloc": "Descriptors of MegaLoc for retrieval",
    "pairs": "Choice of the pairs",
    "model keypoints": "Keypoints of the model",
    "matching": "Matching",
    "keypoints": "Keypoints",
    "database": "Verification",
    "model": "Mapping",
    "localization": "Poses",
}


class Stage(NamedTuple):
    """A finished stage of a run.

    Attributes:
        name: as shown to the user.
        seconds: how long it took.
        memory_mib: peak memory of the process by the end of the stage; None if not recorded.
    """

    name: str
    seconds: float
    memory_mib: float | None


def read_stages(facts: RunFacts) -> list[Stage]:
    """The finished stages in their order, those of the database's own run first."""
    records: list[tuple[str, Mapping[str, Any]]] = [("", facts.record)]
    database = facts.out / "sfm" / "run.json"
    if database.is_file():
        with facts.noting_errors("Stages of the database"):
            records.insert(0, ("Database: ", json.loads(database.read_text("utf-8"))))
    stages = []
    for prefix, record in records:
        memory = record.get("memory_mib") or {}
        seconds = record.get("seconds") or {}
        for stage in [*_STAGES, *(set(seconds) - set(_STAGES))]:
            if stage in seconds:
                name = _STAGES.get(stage, stage)
                if prefix:
                    name = prefix + ("triangulation" if stage == "model" else name.lower())
                stages.append(Stage(name, float(seconds[stage]), memory.get(stage)))
    return stages


def setting_lines(value: Any, prefix: str = "") -> str:
    """Nested settings as text, one `name.of.setting: value` a line; long values are cut."""
    if isinstance(value, dict) and value:
        return "\n".join(
            setting_lines(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()
        )
    text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > _MAX_VALUE:
        text = f"{text[:_MAX_VALUE]} …"
    return f"{prefix}: {text}"

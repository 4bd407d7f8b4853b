"""One finding of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "note", "warning", "bad"]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        level: how serious it is; "bad" is an error that ended the run.
        text: one to three sentences: what was found, and what can be done.
        photos: names of the photos concerned.
    """

    level: Level
    text: str
    photos: tuple[str, ...] = ()

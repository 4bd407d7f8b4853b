"""Fingerprints: short names of everything that a result was computed from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from edm_hloc.base.version import __version__


def fingerprint_of(depends_on: Any) -> str:
    """SHA-256 of a JSON-serialisable value and of this package's version, in hexadecimal.

    Args:
        depends_on: everything that decides the result. The order of a dict's keys does not count;
            what JSON does not know is taken by its `str`.
    """
    text = json.dumps(depends_on, sort_keys=True, default=str)
    return hashlib.sha256(f"{__version__} {text}".encode()).hexdigest()


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Size in bytes and time of modification in ns of a file, which tell whether it was written
    again; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns

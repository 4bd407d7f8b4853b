"""Facts of this process for records and messages: library versions, peak memory, durations."""

from __future__ import annotations

import sys

import h5py
import numpy
import pycolmap
import torch

from edm_hloc.base.version import __version__


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that results depend on."""
    return {
        "edm_hloc": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "pycolmap": pycolmap.__version__,
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
    }


def peak_memory_mib() -> float | None:
    """Maximum resident memory of this process so far, in MiB; None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # bytes or KiB


def format_duration(seconds: float) -> str:
    """A time for people: "3.1 s", "42 s", "2 min 0 s", "1 h 0 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""Facts of this process for records and messages: library versions, peak memory."""

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

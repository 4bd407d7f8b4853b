"""Keeps an array of each pair in a temporary file, so that memory does not grow with the pairs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from edm_hloc.base.errors import EdmHlocError


class PairSpool:
    """One array of each pair, in a temporary file; use it in a ``with`` block.

    Args:
        num_pairs: pairs are numbered below it.
        dtype: of all arrays, which have one dimension.
        directory: folder of the file; None is the system's folder of temporary files.
    """

    def __init__(self, num_pairs: int, dtype: np.dtype, directory: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed in __exit__)
        self._dtype = dtype
        self._offsets = np.full(num_pairs, -1, np.int64)
        self._lengths = np.zeros(num_pairs, np.int64)
        self._end = 0

    def put(self, pair: int, values: np.ndarray) -> None:
        """Stores the array of a pair. Raises EdmHlocError if it cannot be written."""
        try:
            self._file.seek(self._end)
            self._offsets[pair], self._lengths[pair] = self._end, len(values)
            self._end += self._file.write(values.tobytes())
        except OSError as error:
            raise EdmHlocError(
                f"Cannot write a temporary file ({error.strerror or error}): free disk space."
            ) from error

    def __contains__(self, pair: int) -> bool:
        return bool(self._offsets[pair] >= 0)

    def get(self, pair: int) -> np.ndarray:
        """The array stored for a pair (read-only)."""
        self._file.seek(int(self._offsets[pair]))
        size = int(self._lengths[pair]) * self._dtype.itemsize
        return np.frombuffer(self._file.read(size), self._dtype)

    def __enter__(self) -> PairSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

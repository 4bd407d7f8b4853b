"""Files of NumPy's arrays with objects in them, read without running code that they may hold."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from edm_hloc.base.pickles import DataUnpickler


def load_arrays(path: Path) -> dict[str, Any]:
    """The arrays by name of an ``.npz`` file, or the content of a pickled dictionary of them.

    Raises:
        Exception: of any kind; the file is damaged, or holds other objects than arrays, which are
            not made.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            return dict(DataUnpickler(file).load())
    with zipfile.ZipFile(path) as archive:
        return {
            name.removesuffix(".npy"): _read_array(archive.read(name))
            for name in archive.namelist()
        }


def _read_array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError:  # an array of objects, or a damaged one
        file.seek(0)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if not dtype.hasobject:
        raise ValueError("an array is damaged")
    array: np.ndarray = np.asarray(DataUnpickler(file).load(), dtype)
    return array.reshape(shape, order="F" if fortran else "C")

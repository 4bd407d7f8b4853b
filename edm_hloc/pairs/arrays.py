"""Files of NumPy's arrays with objects in them, read without running code that they may hold."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

# What pickles of arrays name: the array, its type, scalars, and the bytes of old protocols.
_NUMPY = {
    "numpy": ("ndarray", "dtype"),
    "multiarray": ("_reconstruct", "scalar"),
    "numeric": ("_frombuffer",),
}


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy's arrays and Python's plain types; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        package, _, last = module.rpartition(".")
        if package in ("numpy.core", "numpy._core", "") and name in _NUMPY.get(last, ()):
            if not package:
                return super().find_class(module, name)
            core = "numpy._core" if hasattr(np, "_core") else "numpy.core"
            return super().find_class(f"{core}.{last}", name)
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def load_arrays(path: Path) -> dict[str, Any]:
    """The arrays by name of an ``.npz`` file, or the content of a pickled dictionary of them.

    Raises:
        Exception: of any kind; the file is damaged, or holds other objects than arrays, which are
            not made.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open("rb") as file:
            return dict(_ArraysOnly(file).load())
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
    array: np.ndarray = np.asarray(_ArraysOnly(file).load(), dtype)
    return array.reshape(shape, order="F" if fortran else "C")

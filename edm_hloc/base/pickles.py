"""Pickles of arrays, numbers, texts and paths, read without running code that they may hold."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

_BUILTINS = ("builtins", "__builtin__")


class DataUnpickler(pickle.Unpickler):
    """Makes NumPy's arrays, Python's plain types and paths; refuses everything else.

    Raises an UnpicklingError that ends with "is not data" where it refuses something.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib") and name.endswith("Path"):
            return pathlib.PurePosixPath
        if module in _BUILTINS and name == "bytes":
            return _no_bytes
        if (module, name) == ("_codecs", "encode"):  # how Python 2's protocol writes bytes
            return lambda text, encoding: text.encode(encoding)
        try:
            return _parts_of_arrays()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not data") from None


def safe_globals() -> list[Any]:
    """The same for ``torch.serialization.safe_globals``."""
    paths = [pathlib.PosixPath, pathlib.PurePosixPath]
    empty = [(_no_bytes, f"{module}.bytes") for module in _BUILTINS]
    return [*_parts_of_arrays().values(), *paths, *empty]


def _no_bytes() -> bytes:
    """The content of an array of no numbers, as Python 2's protocol writes it."""
    return b""


def _parts_of_arrays() -> dict[tuple[str, str], Callable[..., Any] | type]:
    """What pickled arrays are made of, by module and name in old and new versions of NumPy."""
    core: Any = getattr(np, "_core", None) or np.core
    parts: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    for module in ("numpy.core", "numpy._core"):
        parts[f"{module}.multiarray", "_reconstruct"] = core.multiarray._reconstruct
        parts[f"{module}.multiarray", "scalar"] = core.multiarray.scalar
        parts[f"{module}.numeric", "_frombuffer"] = core.numeric._frombuffer
    for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?"):
        dtype: Any = type(np.dtype(kind))
        parts["numpy.dtypes", dtype.__name__] = dtype
    return parts

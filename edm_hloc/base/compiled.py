"""Loops, compiled by Numba for the processor they run on.

They are compiled at their first call, which takes some seconds, and kept on disk beside this file;
in the user's cache folder if that cannot be written, else for the process alone. They use the
thread that calls them and release the interpreter's lock.
"""

from __future__ import annotations

import functools
import pickle
import platform
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import binding
from numba.core import event

from edm_hloc.base.log import warn_once

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums may be taken in another order; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def inlined(function: Function) -> Function:
    """A part of a compiled loop in the same file, compiled with it.

    It is put into the loop by force: the process that compiles would else call the part as it was
    compiled alone, and round otherwise than all later ones, which read the loop from the disk.
    """
    jit = numba.njit(fastmath=_FAST, error_model="numpy", nogil=True, forceinline=True)
    return cast(Function, jit(function))


def cpu_features() -> dict[str, bool]:
    """The instruction sets that compiled loops may use, by LLVM's names for x86 CPUs.

    Empty on other CPUs, and where Numba was told of another CPU than this one.
    """
    told = any(getattr(numba.config, name, None) for name in ("CPU_NAME", "CPU_FEATURES"))
    if told or platform.machine() not in ("x86_64", "AMD64"):
        return {}
    return dict(binding.get_host_cpu_features())


def floats(values: np.ndarray) -> np.ndarray:
    """As compiled loops take them: float32, and one after the other in memory."""
    return np.ascontiguousarray(values, np.float32)


def compiled(function: Function) -> Function:
    """A compiled loop, for arguments of one choice of types.

    It may call `inlined` functions of its own file only: Numba notices when that file changes, and
    no other.
    """
    return cast(Function, functools.wraps(function)(_Compiled(function)))


class _Compiled:
    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._called = False
        try:
            self._compiled = _compile(function, cache=True)
        except RuntimeError:  # no folder for it can be written
            self._compiled = _compile(function, cache=False)

    def __call__(self, *arguments: Any) -> Any:
        if not self._called:
            self._prepare(arguments)
        return self._compiled(*arguments)

    def _prepare(self, arguments: tuple[Any, ...]) -> None:
        """Compiles for the types of these arguments, or reads that from the disk."""
        types = tuple(numba.typeof(argument) for argument in arguments)
        with event.install_listener("numba:compile", _Announcer(self._compiled)):
            try:
                self._compiled.compile(types)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                warn_once(
                    f"Compiled code is not kept between runs ({error}). NUMBA_CACHE_DIR may name "
                    "a folder that can be written."
                )
                self._compiled = _compile(self._function, cache=False)
        self._called = True


def _compile(function: Callable[..., Any], cache: bool) -> Any:
    return numba.njit(cache=cache, fastmath=_FAST, error_model="numpy", nogil=True)(function)


class _Announcer(event.Listener):
    """Says so when a loop is compiled rather than read from the disk."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def on_start(self, event: event.Event) -> None:
        if event.data["dispatcher"] is self._compiled:
            warn_once("Compiling loops for this processor, once: up to 20 seconds …")

    def on_end(self, event: event.Event) -> None:
        pass

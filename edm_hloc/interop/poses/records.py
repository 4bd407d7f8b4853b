"""Checked values of JSON files of other programs, and cameras that COLMAP has no model for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.log import warn_once

_LONGEST = 2**24  # pixels of a side, more than any photo has


def number(record: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    """A finite number, which may be written as text.

    Args:
        record: what has the number.
        key: its name.
        where: file and record, for the message.
        default: what is taken where there is none; None: there has to be one.

    Raises:
        EdmHlocError: it is missing, or something else.
    """
    if record.get(key) is None and default is not None:
        return default
    return numbers([record.get(key)], 1, key, where)[0]


def positive(record: Mapping[str, Any], key: str, where: str) -> float:
    """The same for a number above 0, such as a focal length or a size. Raises EdmHlocError."""
    value = number(record, key, where)
    if value <= 0:
        raise EdmHlocError(f"{where}: {key} is {value:g}; it must be a positive number.")
    return value


def numbers(values: object, count: int, what: str, where: str) -> list[float]:
    """A list of so many finite numbers, which may be written as text.

    Raises:
        EdmHlocError: it is something else, with `what` and `where` in the message.
    """
    try:
        if not isinstance(values, list) or len(values) != count:
            raise ValueError
        if not all(isinstance(v, int | float | str) and not isinstance(v, bool) for v in values):
            raise ValueError
        found = [float(value) for value in values]
        if not all(map(math.isfinite, found)):
            raise ValueError
    except (ValueError, OverflowError):
        shown = values[0] if count == 1 and isinstance(values, list) else values
        wanted = "a number" if count == 1 else f"{count} numbers"
        raise EdmHlocError(
            f"{where}: {what} {'is missing' if shown is None else f'is {str(shown)[:60]!r}'}; it "
            f"must be {wanted}. The file is damaged: export it again."
        ) from None
    return found


def objects(record: Mapping[str, Any], key: str, where: object) -> list[dict[str, Any]]:
    """The list of objects under a key; empty where there is none, or empty text as Boost writes it.

    Raises:
        EdmHlocError: there is something else.
    """
    found = record.get(key) or []
    if not isinstance(found, list) or not all(isinstance(value, dict) for value in found):
        raise EdmHlocError(f"{where}: {key} is no list of objects. Export the file again.")
    return found


def pixels(record: Mapping[str, Any], key: str, where: str) -> int:
    """The width or height of a photo. Raises EdmHlocError where it is none."""
    value = round(positive(record, key, where))
    if not 1 <= value <= _LONGEST:
        raise EdmHlocError(f"{where}: {key} is {value:g}, which is no photo's size in pixels.")
    return value


def checked_camera(
    model: str, size: Sequence[int], params: Sequence[float], where: str
) -> pycolmap.Camera:
    """A camera of COLMAP's.

    Args:
        model: its name.
        size: (width, height) in pixels.
        params: of the model, in COLMAP's pixel frame.
        where: file and camera, for the message.

    Raises:
        EdmHlocError: a parameter is beyond all numbers.
    """
    if not all(map(math.isfinite, params)):
        raise EdmHlocError(f"{where}: its values are no possible camera. Export the file again.")
    return pycolmap.Camera(model=model, width=size[0], height=size[1], params=list(params))


def report_not_in_colmap(path: Path, kinds: Counter[str], others: int) -> None:
    """Says how many photos are left out for their camera.

    Args:
        path: the file.
        kinds: number of photos by the kind of their camera.
        others: number of the other photos.

    Raises:
        EdmHlocError: there are no others.
    """
    if not kinds:
        return
    text = (
        f"{path}: COLMAP has no model for cameras of the kind {' or '.join(sorted(kinds))}, which "
        f"took {kinds.total():,} of the photos"
    )
    remedy = "undistort the photos in the program that made the file, and export their poses then"
    if not others:
        raise EdmHlocError(f"{text}: {remedy}.")
    warn_once(f"{text}. They are left out; to have all, {remedy}.")

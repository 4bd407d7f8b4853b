"""Coordinate reference systems of surveys, through pyproj."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.gps import Transform

_UTM = re.compile(r"WGS ?84 UTM (\d{1,2}) ?([NS])", re.IGNORECASE)


def _code(crs: str) -> str:
    """The EPSG code of what OpenDroneMap calls ``WGS84 UTM 32N``; others stay as they are."""
    utm = _UTM.fullmatch(crs.strip())
    if utm is None or not 1 <= int(utm[1]) <= 60:
        return crs
    return f"EPSG:{'326' if utm[2].upper() == 'N' else '327'}{int(utm[1]):02d}"


def _transformer(source: str | int, target: str | int) -> Any:
    try:
        import pyproj
    except ImportError as error:
        raise EdmHlocError(
            f"Reference systems need pyproj ({error}): pip install 'edm_hloc[geo]'."
        ) from None
    try:
        return pyproj.Transformer.from_crs(source, target, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise EdmHlocError(
            f"pyproj knows no reference system {source if target == 4979 else target!r}: give its "
            f"code, such as EPSG:25832 ({error})."
        ) from error


def to_earth_from(crs: str) -> Transform | None:
    """From x, y, z of a reference system to latitude, longitude and altitude; None for EPSG:4326.

    Raises:
        EdmHlocError: there is no such system, or pyproj is not installed.
    """
    if crs.strip().upper() in ("EPSG:4326", "WGS84", "WGS 84"):
        return None
    transformer = _transformer(_code(crs), 4979)

    def transform(x: float, y: float, z: float) -> tuple[float, float, float]:
        longitude, latitude, altitude = transformer.transform(x, y, z)
        return float(latitude), float(longitude), float(altitude)

    return transform


def from_earth_to(crs: str) -> Callable[[np.ndarray], np.ndarray]:
    """From (N, 3) latitudes, longitudes and altitudes to (N, 3) x, y, z of a reference system.

    Raises:
        EdmHlocError: there is no such system, or pyproj is not installed.
    """
    transformer = _transformer(4979, _code(crs))

    def transform(places: np.ndarray) -> np.ndarray:
        x, y, z = transformer.transform(places[:, 1], places[:, 0], places[:, 2])
        return np.column_stack([x, y, z])

    return transform

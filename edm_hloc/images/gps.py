"""Where on Earth photos were taken: GPS of EXIF data, XMP of drones, and lists of positions."""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

import numpy as np
from PIL import Image
from PIL.ExifTags import GPS, IFD

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import track
from edm_hloc.base.text import filled_lines, is_comment, read_lines
from edm_hloc.images.decode import open_header
from edm_hloc.images.listed import listed_names

_ONE_TAKE_OFF = 10.0  # m between GPS and barometric heights, above which there were several

Transform = Callable[[float, float, float], tuple[float, float, float]]
"""From x, y, z of a reference system to latitude, longitude (degrees, WGS 84) and altitude (m)."""


@dataclass(frozen=True)
class Fix:
    """A position on Earth.

    Attributes:
        latitude, longitude: degrees, WGS 84.
        altitude: metres; None where it is not known.
        accuracy: of the latitude and longitude, standard deviation in metres; None if not told.
        altitude_accuracy: of the altitude, likewise.
        relative_altitude: metres above where a drone took off, by its barometer.
    """

    latitude: float
    longitude: float
    altitude: float | None = None
    accuracy: float | None = None
    altitude_accuracy: float | None = None
    relative_altitude: float | None = None


def read_fix(path: Path) -> Fix | None:
    """The position in the header of a photo; None where there is none, or it is damaged."""
    try:
        with open_header(path) as image:
            return fix_of(image)
    except Exception:  # decoders raise almost anything; matching says what is wrong with a photo
        return None


def fix_of(image: Image.Image) -> Fix | None:
    """The position in the header of an opened photo; XMP of a drone goes before EXIF data.

    None where it is missing, damaged, or the zeros of no fix.
    """
    gps = dict(image.getexif().get_ifd(IFD.GPSInfo))
    xmp = _drone_values(image.info.get("xmp", b""))
    try:
        latitude = _degrees(gps[GPS.GPSLatitude])
        longitude = _degrees(gps[GPS.GPSLongitude])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    if str(gps.get(GPS.GPSLatitudeRef, "N")).upper().startswith("S"):
        latitude = -latitude
    if str(gps.get(GPS.GPSLongitudeRef, "E")).upper().startswith("W"):
        longitude = -longitude
    valid = abs(latitude) <= 90 and abs(longitude) <= 180 and (latitude, longitude) != (0.0, 0.0)
    if not valid:
        return None
    altitude = xmp.get("AbsoluteAltitude")
    if altitude is None and GPS.GPSAltitude in gps:
        altitude = _number(gps[GPS.GPSAltitude])
        if altitude is not None and gps.get(GPS.GPSAltitudeRef) in (1, b"\x01"):  # below sea level
            altitude = -altitude
    spread = [xmp[key] for key in ("RtkStdLat", "RtkStdLon") if xmp.get(key, 0) > 0]
    accuracy = max(spread) if spread else _number(gps.get(GPS.GPSHPositioningError))
    upward = xmp.get("RtkStdHgt", 0.0)
    return Fix(
        latitude,
        longitude,
        altitude,
        accuracy or None,
        upward if upward > 0 else None,
        xmp.get("RelativeAltitude"),
    )


def _drone_values(xmp: bytes | str) -> dict[str, float]:
    """The numbers of DJI's part of XMP data, written as attributes or as elements."""
    text = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    found = re.findall(r"drone-dji:(\w+)\s*(?:=\s*[\"']|>)\s*([-+]?[\d.]+)", text)
    values = {key: _number(value) for key, value in found}
    return {key: value for key, value in values.items() if value is not None}


def _number(value: object) -> float | None:
    with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
        number = float(value)  # type: ignore[arg-type]
        return number if math.isfinite(number) else None
    return None


def _degrees(parts: object) -> float:
    """Degrees from degrees, minutes and seconds."""
    degrees, minutes, seconds = (float(part) for part in parts)  # type: ignore[attr-defined]
    return degrees + minutes / 60 + seconds / 3600


def read_fixes(root: Path, names: Iterable[str]) -> dict[str, Fix]:
    """Positions by the photo's name, from the headers of photos; of a drone's with good heights.

    A barometer gives the heights of one flight to each other better than GPS, which gives their
    level. Where all photos have both, and the two agree but for one shift, the heights are the
    barometer's; but not where photos tell how accurate their altitudes are, as with RTK: those are
    better than a barometer, and another height would not have that accuracy.
    """
    found = {
        name: fix
        for name in track(list(names), "Reading positions", "photo")
        if (fix := read_fix(Path(root) / name)) is not None
    }
    if any(fix.altitude_accuracy is not None for fix in found.values()):
        return found
    both = [
        fix.altitude - fix.relative_altitude
        for fix in found.values()
        if fix.altitude is not None and fix.relative_altitude is not None
    ]
    if not found or len(both) < len(found) or max(both) - min(both) > _ONE_TAKE_OFF:
        return found
    level = float(np.median(both))
    return {
        name: replace(fix, altitude=level + (fix.relative_altitude or 0.0))
        for name, fix in found.items()
    }


# --------------------------------------------------------------------------- lists

_NAME = ("name", "image", "photo", "file", "filename", "image_name", "label")
_COLUMNS = {
    "latitude": ("latitude", "lat", "gpslatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude"),
    "x": ("x", "easting", "east", "e"),
    "y": ("y", "northing", "north", "n"),
    "z": ("altitude", "alt", "height", "elevation", "z", "up", "gpsaltitude"),
    "accuracy": ("accuracy", "std", "sigma", "accuracy_m", "horizontal_accuracy"),
    "altitude_accuracy": ("altitude_accuracy", "vertical_accuracy", "std_z", "sigma_z"),
}
_PLAIN_NUMBERS = "numbers are written with a point, and degrees as 47.37174"
_EXAMPLE = "name,latitude,longitude,altitude"


class _NoFixError(ValueError):
    """Why a line is no position."""


def read_positions(
    path: Path, to_earth: Transform | None = None, names: Collection[str] = ()
) -> dict[str, Fix]:
    """Positions by the photo's name, from a table whose first line names the columns.

    Columns are separated by commas, semicolons or tabs, in any order: the name, latitude and
    longitude in degrees (or x and y of another reference system), and where known the altitude and
    the accuracies in metres.

    Args:
        path: the table.
        to_earth: of the system that x, y and z are in, where there is no latitude.
        names: of the photos; those that begin with "#" are known by it from comments.

    Raises:
        EdmHlocError: the file cannot be read, or a column or number is missing.
    """
    lines = read_lines(path, "list of positions")
    if not lines:
        raise EdmHlocError(f"{path} is empty: it must begin with {_EXAMPLE}.")
    separator = max(",;\t", key=lines[0][1].count)
    head = [word.strip().lower() for word in next(csv.reader([lines[0][1]], delimiter=separator))]
    place = {
        column: next((head.index(word) for word in words if word in head), None)
        for column, words in {"name": _NAME, **_COLUMNS}.items()
    }
    if place["latitude"] is not None and place["longitude"] is not None:
        to_earth = None
    wanted = ("latitude", "longitude") if to_earth is None else ("x", "y")
    missing = [column for column in ("name", *wanted) if place[column] is None]
    if missing:
        crs = ""
        if to_earth is None and place["x"] is not None and place["y"] is not None:
            crs = (
                " Give latitude and longitude, or bring the finished model to x and y: edm-hloc "
                f"georeference MODEL PLACED --positions {quote(str(path))} --crs EPSG:…."
            )
        raise EdmHlocError(
            f"{path}, line {lines[0][0]}: no column {missing[0]!r}. The first line names the "
            f"columns, such as {_EXAMPLE}.{crs}"
        )
    fixes: dict[str, Fix] = {}
    for number, line in filled_lines(path, "list of positions"):
        line = line.strip()
        fields = next(csv.reader([line], delimiter=separator))
        name = (fields + [""] * len(head))[place["name"] or 0].strip()
        if number <= lines[0][0] or is_comment(line, name, names):
            continue

        def value(column: str, fields: list[str] = fields) -> float | None:
            i = place[column]
            text = fields[i].strip() if i is not None and i < len(fields) else ""
            return float(text) if text else None

        try:
            first, second, height = value(wanted[0]), value(wanted[1]), value("z")
            accuracies = value("accuracy"), value("altitude_accuracy")
            if first is None or second is None:
                raise _NoFixError("there is no position")
            fix = _fix(first, second, height, accuracies, to_earth)
        except (ValueError, IndexError) as error:
            why = str(error) if isinstance(error, _NoFixError) else _PLAIN_NUMBERS
            raise EdmHlocError(
                f"{path}, line {number}: expected {separator.join(head)}; found {line[:100]!r}: "
                f"{why}."
            ) from error
        if fixes.setdefault(name, fix) != fix:
            raise EdmHlocError(
                f"{path}, line {number}: {name} is there a second time, at another place: remove "
                "one of the lines."
            )
    return fixes


def _fix(
    first: float,
    second: float,
    height: float | None,
    accuracies: tuple[float | None, float | None],
    to_earth: Transform | None,
) -> Fix:
    """Raises _NoFixError for what is not on Earth."""
    altitude = height
    if to_earth is not None:
        first, second, altitude = to_earth(first, second, height or 0.0)
        altitude = None if height is None else altitude
    numbers = (first, second, altitude or 0.0, *(a or 0.0 for a in accuracies))
    if not all(map(math.isfinite, numbers)) or abs(first) > 90 or abs(second) > 180:
        raise _NoFixError(
            "latitudes go from -90 to 90 and longitudes from -180 to 180: they may be swapped"
        )
    if min(a or 0.0 for a in accuracies) < 0:
        raise _NoFixError("an accuracy is negative")
    level, upward = (a or None for a in accuracies)
    return Fix(first, second, altitude, level, upward)


@dataclass(frozen=True)
class Mark:
    """A ground control point in a photo.

    Attributes:
        point: the point's name.
        photo: the photo's name.
        xy: pixels, the corner of the top-left pixel at (0, 0), as COLMAP's.
    """

    point: str
    photo: str
    xy: tuple[float, float]


def read_control_points(
    path: Path, to_earth: Callable[[str], Transform | None]
) -> tuple[dict[str, Fix], list[Mark]]:
    """Ground control points and their marks, from a list in the form of OpenDroneMap's.

    The first line names the reference system, such as ``EPSG:4326`` or ``WGS84 UTM 32N``; each
    other line holds ``x y z pixel_x pixel_y photo`` and where there is one the point's name,
    separated by white space or commas. x is the longitude in EPSG:4326, or else the easting. The
    centre of the top-left pixel is at (0, 0).

    Args:
        path: the list.
        to_earth: gives the transform of a reference system; None for EPSG:4326.

    Raises:
        EdmHlocError: the list cannot be read, or a line is something else.
    """
    lines = read_lines(path, "list of control points")
    if not lines or re.match(r"[-+\d.]+[\s,]", lines[0][1]):
        raise EdmHlocError(
            f"{path}: the first line must name the reference system, such as EPSG:4326 or "
            "EPSG:25832; the others hold x y z pixel_x pixel_y photo point."
        )
    transform = to_earth(lines[0][1])
    fixes: dict[str, Fix] = {}
    marks = []
    for number, line in lines[1:]:
        fields = [word for word in re.split(r"[\s,;]+", line) if word]
        try:
            x, y, z, px, py = map(float, fields[:5])
            photo = fields[5]
            point = fields[6] if len(fields) > 6 else f"{fields[0]} {fields[1]} {fields[2]}"
            first, second = (y, x) if transform is None else (x, y)
            fix = _fix(first, second, z, (None, None), transform)
            if not (math.isfinite(px) and math.isfinite(py)):
                raise ValueError("no pixel")
        except (ValueError, IndexError) as error:
            why = f": {error}" if isinstance(error, _NoFixError) else ""
            raise EdmHlocError(
                f"{path}, line {number}: expected x y z pixel_x pixel_y photo point; found "
                f"{line[:100]!r}{why}."
            ) from error
        if fixes.setdefault(point, fix) != fix:
            raise EdmHlocError(
                f"{path}, line {number}: the point {point} was elsewhere in a line above: give "
                "each point one x y z."
            )
        # OpenDroneMap, as OpenSfM, has the centre of the top-left pixel at (0, 0)
        marks.append(Mark(point, photo, (px + 0.5, py + 0.5)))
    return fixes, marks


def matching_names(fixes: Mapping[str, Fix], names: Sequence[str], path: Path) -> dict[str, Fix]:
    """Positions under the photos' own names, which a list may shorten (see `listed_names`).

    Raises:
        EdmHlocError: the list, read from `path`, has none of the photos.
    """
    by_name = {name: fixes[listed] for name, listed in listed_names(fixes, names).items()}
    if not by_name:
        raise EdmHlocError(
            f"{path} has positions for none of the {len(names)} photos: it names "
            f"{', '.join(list(fixes)[:2]) or 'nothing'}, the photos are called "
            f"{', '.join(names[:2])}."
        )
    return by_name

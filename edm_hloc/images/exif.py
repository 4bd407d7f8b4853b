"""What the header of a photo says of the camera: size, maker, model and focal length (EXIF)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from PIL.ExifTags import IFD
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import ImageError
from edm_hloc.base.log import warn_once
from edm_hloc.images.decode import (
    check_not_mirrored,
    exif_orientation,
    open_header,
    stored_size,
)

_CAMERA_TAGS = (ExifTag.Make, ExifTag.Model)
_FOCAL_TAGS = (ExifTag.FocalLength, ExifTag.FocalLengthIn35mmFilm)
_SENSOR_TAGS = (ExifTag.FocalPlaneXResolution, ExifTag.FocalPlaneResolutionUnit)
_SIZE_TAGS = (ExifTag.ExifImageWidth, ExifTag.ExifImageHeight)
_FILM = 36, 24  # mm, to which FocalLengthIn35mmFilm refers
_UNITS = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # mm, by FocalPlaneResolutionUnit
_FIELD_OF_VIEW = 3.0, 150.0  # degrees, of real lenses
_SAME_FOCAL = 1e-3  # relative difference by which the tags of the focal plane are recognized


@dataclass(frozen=True)
class PhotoHeader:
    """What the header of a photo says.

    Attributes:
        size: (width, height) in pixels as stored, before any EXIF rotation.
        exif: camera, lens setting, digital zoom, the size before a crop and that of the photo,
            equal for photos that can share intrinsics; None without such EXIF data. The last two
            entries are `size`.
        names_camera: whether the EXIF data name the camera's maker or model.
        has_focal_length: whether they have the focal length, in mm or as a 35 mm equivalent that
            a lens can have.
    """

    size: tuple[int, int]
    exif: tuple[object, ...] | None = None
    names_camera: bool = False
    has_focal_length: bool = False

    @property
    def tells_camera(self) -> bool:
        """Whether the EXIF data say which camera took the photo, or with which focal length."""
        return self.names_camera or self.has_focal_length


def read_header(path: Path) -> PhotoHeader:
    """Reads the header of a photo, not its pixels. Damaged EXIF data count as none.

    Raises:
        ImageError: the photo cannot be opened, or its EXIF orientation mirrors it.
    """
    with open_header(path) as image:
        size = image.size
        check_not_mirrored(path, exif_orientation(image))
        try:
            exif = image.getexif()
            size = stored_size(image)
            lens = exif.get_ifd(IFD.Exif)
            camera = [exif.get(tag) for tag in _CAMERA_TAGS]
            focal, sensor = ([lens.get(t) for t in tags] for tags in (_FOCAL_TAGS, _SENSOR_TAGS))
        except Exception:  # damaged EXIF data is no reason to do without the photo
            return PhotoHeader(size)
    if not any(tag is not None for tag in (*camera, *focal, *sensor)):
        return PhotoHeader(size)
    tags = map(str, (*camera, *focal, *sensor))
    zoom = max(1.0, _number(lens, ExifTag.DigitalZoomRatio))  # 0: not used
    # another shape tells of a crop; a size of the same shape may be that before a reduction
    cropped = [_number(lens, t) for t in _SIZE_TAGS] if _reduced_by(lens, size) is None else ()
    on_film = _number(lens, ExifTag.FocalLengthIn35mmFilm)
    told = bool(_number(lens, ExifTag.FocalLength)) or _is_plausible(on_film, _FILM)
    return PhotoHeader(size, (*tags, zoom, tuple(sorted(cropped)), *size), any(camera), told)


def tells_camera(path: Path) -> bool:
    """Whether the EXIF data of a photo tell its camera or its focal length; so if it is damaged."""
    try:
        return read_header(path).tells_camera
    except ImageError:
        return True


def exif_focal_length(path: Path) -> float | None:
    """The focal length of a photo in pixels, from its EXIF data; None if they lack it.

    COLMAP's reader is used, which knows the sensor sizes of many cameras; it decodes the photo.
    For formats that COLMAP does not read (WebP, HEIC, AVIF) the 35 mm equivalent is used, or else
    the pixels of the sensor (FocalPlaneXResolution). What cannot be is replaced by what the other
    EXIF data say, or not used, with a warning: pixels of the sensor where the photo was reduced
    since, and fields of view of no lens.

    Raises:
        ImageError: the photo cannot be opened.
    """
    with open_header(path) as image:
        try:
            size = stored_size(image)
            lens = image.getexif().get_ifd(IFD.Exif)
        except Exception:  # damaged EXIF data is no reason to do without the photo
            size, lens = image.size, {}
    with quiet_colmap():
        bitmap = pycolmap.Bitmap.read(path, as_rgb=False)
    of_sensor, factor = _sensor_focal_length(lens), _reduced_by(lens, size)
    if bitmap is not None:
        told: float | None = bitmap.exif_focal_length()
    else:
        film = _number(lens, ExifTag.FocalLengthIn35mmFilm)
        told = film * float(np.hypot(*size) / np.hypot(*_FILM)) if film else of_sensor
    if told is None:
        return None
    found, why = told, "which no lens has in a photo of this size"
    if of_sensor and abs(told / of_sensor - 1) < _SAME_FOCAL and factor != 1:
        found, why = told * (factor or 0), "which is of the photo before its size was changed"
    if of_sensor and factor and not _is_plausible(found, size):
        found = of_sensor * factor
    if not _is_plausible(found, size):
        warn_once(
            f"The EXIF data of {path} give a focal length of {told:,.0f} px, {why}: it is not used "
            "for it nor for other photos with the same data. Give intrinsics by --known if you can."
        )
        return None
    if found != told:
        warn_once(
            f"The EXIF data of {path} give a focal length of {told:,.0f} px, {why}: {found:,.0f} "
            "px is taken for it and for other photos with the same data."
        )
    return found


def _number(tags: Mapping[int, object], tag: ExifTag) -> float:
    """A positive number of the EXIF data; 0 where there is none."""
    try:
        value = float(tags.get(tag) or 0)  # type: ignore[arg-type]
    except Exception:  # damaged EXIF data is no reason to do without the photo
        return 0.0
    return value if 0 < value < np.inf else 0.0


def _sensor_focal_length(lens: Mapping[int, object]) -> float | None:
    """The focal length in pixels of the sensor, by the tags of the focal plane."""
    focal = _number(lens, ExifTag.FocalLength)
    resolution = _number(lens, ExifTag.FocalPlaneXResolution)
    unit = _UNITS.get(int(_number(lens, ExifTag.FocalPlaneResolutionUnit)), _UNITS[2])
    return focal * resolution / unit if focal and resolution else None


def _reduced_by(lens: Mapping[int, object], size: tuple[int, int]) -> float | None:
    """Factor from the photo's size in the EXIF data to its own, whichever side is up.

    1 where the EXIF data have none; None where no single factor explains the sizes.
    """
    exif_size = [_number(lens, tag) for tag in _SIZE_TAGS]
    if not all(exif_size):
        width = max(exif_size)
        return 1.0 if not width or not exif_size[0] else size[0] / width
    factors = [side / was for side, was in zip(sorted(size), sorted(exif_size), strict=True)]
    # 2 px on the shorter side: programs round
    if abs(factors[0] - factors[1]) * min(exif_size) > 2:
        return None
    return factors[1]


def _is_plausible(focal: float, size: tuple[int, int]) -> bool:
    """Whether a lens has such a focal length in pixels: by the field of view of the longer side."""
    angle = 2 * float(np.degrees(np.arctan2(max(size) / 2, focal)))  # 180 where it is 0
    return bool(_FIELD_OF_VIEW[0] <= angle <= _FIELD_OF_VIEW[1])

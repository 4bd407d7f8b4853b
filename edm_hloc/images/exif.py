"""What the header of a photo says of the camera: size, maker, model and focal length (EXIF)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from PIL.ExifTags import IFD
from PIL.ExifTags import Base as ExifTag

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.images.decode import open_header, stored_size

_CAMERA_TAGS = (ExifTag.Make, ExifTag.Model)
_FOCAL_TAGS = (ExifTag.FocalLength, ExifTag.FocalLengthIn35mmFilm)
_SENSOR_TAGS = (ExifTag.FocalPlaneXResolution, ExifTag.FocalPlaneResolutionUnit)
_FILM = 36, 24  # mm, to which FocalLengthIn35mmFilm refers


@dataclass(frozen=True)
class PhotoHeader:
    """What the header of a photo says.

    Attributes:
        size: (width, height) in pixels as stored, before any EXIF rotation.
        exif: camera, lens setting and size, equal for photos that can share intrinsics; None
            without such EXIF data. The last two entries are `size`.
        names_camera: whether the EXIF data name the camera's maker or model.
        has_focal_length: whether they have the focal length.
    """

    size: tuple[int, int]
    exif: tuple[object, ...] | None = None
    names_camera: bool = False
    has_focal_length: bool = False


def read_header(path: Path) -> PhotoHeader:
    """Reads the header of a photo, not its pixels. Damaged EXIF data count as none.

    Raises:
        ImageError: the photo cannot be opened.
    """
    with open_header(path) as image:
        size = image.size
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
    return PhotoHeader(size, (*tags, *size), any(camera), any(focal))


def exif_focal_length(path: Path) -> float | None:
    """The focal length of a photo in pixels, from its EXIF data; None if they lack it.

    COLMAP's reader is used, which knows the sensor sizes of many cameras; it decodes the photo.
    For formats that COLMAP does not read (WebP, HEIC) the 35 mm equivalent is used.

    Raises:
        ImageError: the photo cannot be opened.
    """
    with quiet_colmap():
        bitmap = pycolmap.Bitmap.read(path, as_rgb=False)
    if bitmap is not None:
        found: float | None = bitmap.exif_focal_length()
        return found
    with open_header(path) as image:
        try:
            focal = float(image.getexif().get_ifd(IFD.Exif).get(ExifTag.FocalLengthIn35mmFilm) or 0)
        except Exception:  # damaged EXIF data is no reason to do without the photo
            focal = 0.0
        return focal * float(np.hypot(*image.size) / np.hypot(*_FILM)) if focal > 0 else None

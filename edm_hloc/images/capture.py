"""When and where a photo was taken, as its EXIF data say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from PIL.ExifTags import IFD
from PIL.ExifTags import Base as ExifTag

from edm_hloc.images.decode import open_header
from edm_hloc.images.gps import fix_of

_TIMES = (ExifTag.DateTimeOriginal, ExifTag.DateTimeDigitized, ExifTag.DateTime)


@dataclass(frozen=True)
class Capture:
    """When and where a photo was taken.

    Attributes:
        camera: maker and model; empty where the EXIF data name none.
        seconds: on the camera's clock, from 1970 on; None where it is not known.
        place: (latitude, longitude) in degrees; None where it is not known.
    """

    camera: str = ""
    seconds: float | None = None
    place: tuple[float, float] | None = None


def read_capture(path: Path) -> Capture:
    """Reads the header of a photo; one that cannot be read, or is damaged, says nothing."""
    try:
        with open_header(path) as image:
            exif = image.getexif()
            tags = {**exif, **exif.get_ifd(IFD.Exif)}
            fix = fix_of(image)
    except Exception:  # decoders raise almost anything; matching says what is wrong with a photo
        return Capture()
    camera = " ".join(str(tags.get(tag, "")).strip("\0 ") for tag in (ExifTag.Make, ExifTag.Model))
    place = None if fix is None else (fix.latitude, fix.longitude)
    return Capture(camera.strip(), _seconds(tags), place)


def _seconds(tags: Mapping[int, object]) -> float | None:
    for tag in _TIMES:
        try:
            text = str(tags.get(tag, "")).strip("\0 ")
            time = datetime.strptime(text, "%Y:%m:%d %H:%M:%S").replace(tzinfo=timezone.utc)
            fraction = str(tags.get(ExifTag.SubsecTimeOriginal, "")).strip("\0 ")
            return time.timestamp() + float(f"0.{fraction}" if fraction.isdecimal() else 0)
        except (ValueError, OverflowError):
            continue
    return None

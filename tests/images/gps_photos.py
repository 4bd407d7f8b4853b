"""Photos with positions in their headers."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import IFDRational

DJI = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:drone-dji="http://www.dji.com/" '
    b"%s/></x:xmpmeta>"
)


def exif_with(latitude: float, longitude: float, altitude: float | None) -> Image.Exif:
    def parts(value: float) -> tuple[IFDRational, ...]:
        whole = abs(value)
        minutes = (whole % 1) * 60
        return (
            IFDRational(int(whole)),
            IFDRational(int(minutes)),
            IFDRational(round((minutes % 1) * 60 * 10**7), 10**7),
        )

    exif = Image.Exif()
    gps = {1: "N" if latitude >= 0 else "S", 2: parts(latitude)}
    gps |= {3: "E" if longitude >= 0 else "W", 4: parts(longitude)}
    if altitude is not None:
        gps |= {5: bytes([altitude < 0]), 6: IFDRational(round(abs(altitude) * 1000), 1000)}
    exif.get_ifd(0x8825).update(gps)
    return exif


def add_position(photo: Path, latitude: float, longitude: float, altitude: float | None) -> None:
    """Puts a position into a JPEG, whose pixels stay."""
    data = exif_with(latitude, longitude, altitude).tobytes()
    segment = b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data
    jpeg = photo.read_bytes()
    photo.write_bytes(jpeg[:2] + segment + jpeg[2:])

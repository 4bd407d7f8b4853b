"""Perspective views of panoramas of all directions, as photos that the rest of the program takes.

A panorama shows longitudes from left to right and latitudes from top to bottom (equirectangular).
Its views, of 90° across and up, look at the horizon in evenly spaced directions from one place:
they are the cameras of a rig, whose poses in it are known. `rig_config.json` beside them says so in
COLMAP's format.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag
from scipy.spatial.transform import Rotation

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import holds_more_than, make_folder, write_whole
from edm_hloc.base.frames import turned_upright
from edm_hloc.base.log import warn_of_skipped
from edm_hloc.base.progress import StepProgress
from edm_hloc.base.text import read_json_object
from edm_hloc.images.decode import exif_orientation, open_header, photo_size
from edm_hloc.images.find import image_stamps
from edm_hloc.images.load import stored_pixels

logger = logging.getLogger(__name__)

RIG = "rig_config.json"
_CUT_FROM = "panoramas.json"  # size and modification time of the panoramas that views are of
_ASPECT = 2.0
_SAME_ASPECT = 0.01  # relative difference up to which a picture counts as twice as wide as high
_LARGEST = 32_000  # px of a side, of what OpenCV maps
_QUALITY = 95  # of JPEG
_PLACE_AND_TIME = (
    *(ExifTag.Make, ExifTag.Model, ExifTag.DateTime, ExifTag.GPSInfo),
    *(ExifTag.DateTimeOriginal, ExifTag.SubsecTimeOriginal),
)
"""EXIF data that hold for the views of a panorama as well."""


@dataclass(frozen=True)
class PanoramaViews:
    """The views that were cut.

    Attributes:
        names: of the panoramas, relative to their folder.
        views: folders of the views, one for each direction.
        side: of the square views, pixels.
        skipped: panoramas without views, with the reason.
    """

    names: tuple[str, ...]
    views: tuple[str, ...]
    side: int
    skipped: dict[str, str]

    @property
    def intrinsics(self) -> str:
        """Of all views, as COLMAP writes a camera: model, width, height, focal length, middle."""
        return " ".join(map(str, ["SIMPLE_PINHOLE", self.side, self.side, *_parameters(self.side)]))


def cut_panoramas(
    root: Path, names: Sequence[str], out: Path, directions: int = 6
) -> PanoramaViews:
    """Writes views of panoramas to `out/yaw_060/NAME.jpg`, …, and the file of their rig beside.

    Panoramas are cut upright, as their EXIF orientation says. Neighbouring views overlap where
    there are more than four. In its middle a view has as many pixels to a degree as the panoramas
    have, most of which have one size. Views that are there are left as they are, unless their
    panorama has another size or time than `out/panoramas.json` tells; or is younger, where it tells
    none, as in folders of older versions.

    Args:
        root: folder of the panoramas.
        names: relative to it.
        out: folder, empty or of an earlier call.
        directions: number of the views of a panorama, three or more.

    Raises:
        EdmHlocError: `out` holds other things, or none of the photos is a panorama that can be
            read.
    """
    sizes, skipped = _sizes(root, names)
    if not sizes:
        name, reason = next(iter(skipped.items()))
        raise EdmHlocError(
            f"None of the {len(names)} photos in {root} is a panorama: {name} {reason}."
        )
    yaws = [360 * k / directions for k in range(directions)]
    folders = tuple(f"yaw_{round(yaw):03d}" for yaw in yaws)
    usual = Counter(width for width, _ in sizes.values()).most_common(1)[0][0]
    side = 2 * round(usual / (2 * math.pi))  # of 90° across and up
    rig = [_sensor(folder, yaw, side) for folder, yaw in zip(folders, yaws, strict=True)]
    _claim(out, json.dumps([{"cameras": rig}], indent=1) + "\n", folders)
    files, written = _view_names(list(sizes)), []
    cut_from = _read_cut_from(out)
    stamps = {name: list(stamp) for name, stamp in image_stamps(root, sizes).items()}
    with StepProgress("Cutting views", "panorama", len(sizes)) as progress, _kept(out, cut_from):
        for name, size in sizes.items():
            paths = [out / folder / files[name] for folder in folders]
            same = cut_from.get(name) in (None, stamps.get(name))
            is_cut = all(map(Path.is_file, paths)) and same
            try:
                if not is_cut or (name not in cut_from and _is_younger(root / name, paths)):
                    cut_from.pop(name, None)
                    _cut(root / name, size, side, dict(zip(paths, yaws, strict=True)))
                written.append(name)
                cut_from[name] = stamps.get(name)
            except ImageError as error:
                skipped[name] = f"cannot be read: {error}"
            progress.update(1)
    if not written:
        name, reason = next(iter(skipped.items()))
        raise EdmHlocError(f"None of the panoramas in {root} has views: {name} {reason}")
    warn_of_skipped(f"{name}: it {reason}" for name, reason in skipped.items())
    _warn_of_others(out, folders, {*files.values()}, root)
    return PanoramaViews(tuple(written), folders, side, skipped)


def view_rotation(yaw: float) -> np.ndarray:
    """(3, 3) cam_from_rig of a view.

    The rig looks along the panorama's middle, with x to the right and y down.

    Args:
        yaw: of the view, degrees to the right of the middle.
    """
    rotation: np.ndarray = Rotation.from_euler("y", -yaw, degrees=True).as_matrix()
    return rotation


def panorama_pixels(directions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where an equirectangular panorama shows directions.

    Args:
        directions: (…, 3) in the rig's frame, of any length.
        size: (width, height) of the panorama.

    Returns:
        (…, 2) pixels; the centre of the top-left pixel is (0, 0).
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    longitude, latitude = np.arctan2(x, z), np.arctan2(-y, np.hypot(x, z))
    width, height = size
    column = (longitude / (2 * np.pi) + 0.5) * width - 0.5
    row = (0.5 - latitude / np.pi) * height - 0.5
    return np.stack([column, row], axis=-1)


def _sizes(root: Path, names: Sequence[str]) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """(width, height) of the panoramas, and why others are none."""
    sizes, skipped = {}, {}
    for name in names:
        try:
            width, height = _upright_size(root / name)
        except ImageError as error:
            skipped[name] = f"cannot be read: {error}"
            continue
        if abs(width / height / _ASPECT - 1) > _SAME_ASPECT:
            skipped[name] = (
                f"is {width} × {height} px, and a panorama of all directions is twice as wide as "
                "high"
            )
        elif width > _LARGEST:
            skipped[name] = f"is {width} px wide: reduce it to {_LARGEST} px"
        else:
            sizes[name] = width, height
    return sizes, skipped


def _upright_size(path: Path) -> tuple[int, int]:
    """(width, height) as the EXIF orientation shows it. Raises ImageError."""
    width, height = photo_size(path)
    with open_header(path) as image:
        return (height, width) if exif_orientation(image) >= 5 else (width, height)


def _view_names(names: Sequence[str]) -> dict[str, str]:
    """Names of the views by the panorama's: they end in .jpg, and in all of it where two would be
    the same."""
    stems = Counter(name.rpartition(".")[0] for name in names)
    return {
        name: f"{stem if stems[stem := name.rpartition('.')[0]] == 1 else name}.jpg"
        for name in names
    }


def _parameters(side: int) -> list[float]:
    """Focal length and middle of a view, pixels in COLMAP's frame: of 90°, they are all equal."""
    return [side / 2] * 3


def _sensor(folder: str, yaw: float, side: int) -> dict[str, Any]:
    """A view's entry in COLMAP's `rig_config.json`."""
    entry: dict[str, Any] = {"image_prefix": f"{folder}/"}
    if yaw:
        x, y, z, w = Rotation.from_matrix(view_rotation(yaw)).as_quat().tolist()
        entry |= {"cam_from_rig_rotation": [w, x, y, z], "cam_from_rig_translation": [0, 0, 0]}
    else:
        entry |= {"ref_sensor": True}
    return entry | {"camera_model_name": "SIMPLE_PINHOLE", "camera_params": _parameters(side)}


def _claim(out: Path, rig: str, folders: Sequence[str]) -> None:
    """Makes the folder. Raises EdmHlocError if it holds anything but views of such a rig."""
    make_folder(out)
    there = out / RIG
    if there.is_file():
        if there.read_bytes() != rig.encode():
            raise EdmHlocError(
                f"{out} holds views of other directions or sizes, by its {RIG}: choose a new "
                "folder."
            )
    elif holds_more_than(out, RIG):
        raise EdmHlocError(f"{out} is there already and holds other things: choose a new folder.")
    write_whole(there, rig)
    for folder in folders:
        make_folder(out / folder)


def _warn_of_others(out: Path, folders: Sequence[str], files: Collection[str], root: Path) -> None:
    """Says which views are of panoramas that are not there, as they would be reconstructed too."""
    others = [
        path
        for folder in folders
        for path in sorted((out / folder).rglob("[!.]*.jpg"))
        if path.relative_to(out / folder).as_posix() not in files
    ]
    if others:
        logger.warning(
            "%d views in %s are of no panorama in %s, such as %s: delete them, or choose a new "
            "folder, as they are taken for photos too.",
            *(len(others), out, root, others[0].relative_to(out).as_posix()),
        )


def _read_cut_from(out: Path) -> dict[str, Any]:
    """[size, modification time] of the panoramas of the views in `out`, where they are known."""
    if not (out / _CUT_FROM).is_file():
        return {}
    return read_json_object(out / _CUT_FROM, "record of the panoramas")


@contextlib.contextmanager
def _kept(out: Path, cut_from: Mapping[str, Any]) -> Iterator[None]:
    """Records what `_read_cut_from` reads at the end, also where the block is interrupted."""
    try:
        yield
    finally:
        write_whole(out / _CUT_FROM, json.dumps(cut_from, indent=1) + "\n")


def _is_younger(panorama: Path, views: Sequence[Path]) -> bool:
    return panorama.stat().st_mtime_ns > min(view.stat().st_mtime_ns for view in views)


def _cut(panorama: Path, size: tuple[int, int], side: int, yaws: dict[Path, float]) -> None:
    """Writes the views of one panorama.

    Raises:
        ImageError: it cannot be read.
    """
    pixels = stored_pixels(panorama)
    if pixels.dtype != np.uint8:  # of a file with more bits
        pixels = np.rint(pixels).astype(np.uint8)
    with open_header(panorama) as image:
        exif = _exif_of_view(image)
        pixels = np.ascontiguousarray(turned_upright(pixels, exif_orientation(image)))
    place = (np.arange(side) + 0.5) / (side / 2) - 1
    rays = np.stack(np.broadcast_arrays(place, place[:, None], 1.0), axis=-1)
    for path, yaw in yaws.items():
        where = panorama_pixels(rays @ view_rotation(yaw), size).astype(np.float32)
        x, y = np.moveaxis(where, -1, 0)
        view = cv2.remap(pixels, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        file = io.BytesIO()
        Image.fromarray(view).save(file, "JPEG", quality=_QUALITY, exif=exif)
        make_folder(path.parent)
        write_whole(path, file.getvalue())


def _exif_of_view(image: Image.Image) -> Image.Exif:
    """What the EXIF data of a panorama say of place and time, which holds for its views."""
    kept = Image.Exif()
    try:
        exif = image.getexif()
        for tag in _PLACE_AND_TIME:
            value = exif.get_ifd(tag) if tag == ExifTag.GPSInfo else exif.get(tag)
            if value:
                kept[tag] = value
        kept.tobytes()
    except Exception:  # damaged EXIF data is no reason to do without the photo
        return Image.Exif()
    return kept

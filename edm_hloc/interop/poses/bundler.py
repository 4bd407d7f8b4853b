"""Bundler's `bundle.out`, which other programs write too, and the list of its photos beside it."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import require_file
from edm_hloc.base.log import warn_once
from edm_hloc.base.progress import say
from edm_hloc.base.text import filled_lines, is_comment, plural
from edm_hloc.interop.poses.given import OPENGL, GivenPose, PhotosAtHand, pose_from_world
from edm_hloc.pairs.names import NameFinder
from edm_hloc.pairs.rules import in_natural_order

_NUMBERS = 15  # of a camera: f, k1, k2, nine of the rotation, three of the translation
_VERSIONS = ("0.2", "0.3")  # those with f, k1, k2 and all cameras before the points
_MOST_LISTS = 100  # text files to look into, in a folder with one for each photo
_LONGEST_LINE = 1000  # bytes of a name, on average
_AFTER_NAME = re.compile(r"(?:\s+[-+.\deE]+){1,2}\s*$")  # "0 1234.5" or "1234.5" in Bundler's lists


def read_bundler(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of the cameras with a focal length; one of 0 was not registered.

    A camera has f in pixels, k1 and k2 in normalized coordinates, and the rotation and translation
    of the world into the camera, which looks along −z with y up. The principal point is the middle
    of the photo. The photos' names are in a text file beside it, a line for each camera.

    Raises:
        EdmHlocError: the file is damaged or another, or which photos it is of cannot be told.
    """
    cameras = _cameras(path)
    registered = [number for number, values in enumerate(cameras) if values[0] != 0]
    if not registered:
        raise EdmHlocError(f"{path}: none of its {len(cameras)} cameras has a focal length.")
    listed = _listed_photos(path, len(cameras), photos)
    given = []
    names = photos.find([listed[number] for number in registered])
    for number, name in zip(registered, names, strict=True):
        where = f"{path}, camera {number} ({listed[number]})"
        if not np.isfinite(cameras[number]).all():
            raise EdmHlocError(f"{where}: it holds a number that is not finite.")
        f, k1, k2 = cameras[number][:3]
        if f < 0:
            raise EdmHlocError(f"{where}: its focal length is {f:g}; it must be positive.")
        R, t = cameras[number][3:12].reshape(3, 3), cameras[number][12:]
        pose = pose_from_world(np.column_stack([(OPENGL @ R).T, -R.T @ t]), where)
        if name is None:
            continue
        try:
            width, height = photos.size(name)
        except ImageError as error:
            warn_once(f"Skipping a photo: {error}")
            continue
        params = [f, width / 2, height / 2, k1, k2]
        camera = pycolmap.Camera(model="RADIAL", width=width, height=height, params=params)
        given.append(GivenPose(name, pose, camera))
    return given


def _cameras(path: Path) -> np.ndarray:
    """(N, 15) numbers of the cameras. The points, most of the file, are not read."""
    require_file(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = next(file, "")
            found = re.match(r"#\s*Bundle file v([\d.]+)\s*$", header)
            if found is None:
                raise EdmHlocError(
                    f"{path} is not Bundler's file of cameras: its first line is "
                    f"{header.strip()[:60]!r}, not '# Bundle file v0.3'."
                )
            if found[1] not in _VERSIONS:
                raise EdmHlocError(
                    f"{path} is of version {found[1]} of Bundler's format, which is not known: "
                    "export it as v0.3."
                )
            counts = next(file, "").split()
            if len(counts) != 2 or not all(re.fullmatch(r"[0-9]{1,12}", count) for count in counts):
                raise EdmHlocError(
                    f"{path}, line 2: expected the numbers of cameras and of points; found "
                    f"{' '.join(counts)[:60]!r}."
                )
            values: list[float] = []
            needed = int(counts[0]) * _NUMBERS
            for number, line in enumerate(file, start=3):
                if len(values) >= needed:
                    break
                try:
                    values += map(float, line.split())
                except ValueError:
                    raise EdmHlocError(
                        f"{path}, line {number}: expected numbers of a camera; found "
                        f"{line.strip()[:100]!r}."
                    ) from None
    except OSError as error:
        raise EdmHlocError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise EdmHlocError(f"{path} is not Bundler's file of cameras: it is no text.") from error
    if len(values) < needed:
        raise EdmHlocError(
            f"{path} was cut off: it ends in camera {len(values) // _NUMBERS} of the {counts[0]} "
            "that its second line promises. Copy or export it again."
        )
    return np.reshape(values[:needed], (-1, _NUMBERS))


def _listed_photos(path: Path, count: int, photos: PhotosAtHand) -> list[str]:
    """Names of the cameras' photos: of a list beside the file, or else of all photos in order."""
    lengths = {}
    for name in _usual_lists(path):
        if (path.parent / name).is_file():
            names = _names_in(path.parent / name, photos)
            if len(names) == count:
                return names
            lengths[name] = len(names)
    others = _other_lists(path, count, photos)
    if others:
        lists = list(others.values())
        if any(names != lists[0] for names in lists):
            raise EdmHlocError(
                f"{path}: {' and '.join(map(str, others))} beside it name {count} photos each, in "
                "another order: copy the right one as list.txt there."
            )
        say(f"Poses: the photos of {path} are named by {next(iter(others))} beside it.")
        return lists[0]
    wanted = "put it there as list.txt, with the name of a photo for each camera, in their order"
    if lengths:
        name, length = next(iter(lengths.items()))
        raise EdmHlocError(
            f"{path} has {plural(count, 'camera')}, but {name} beside it names "
            f"{plural(length, 'photo')}: it is another's. Find the list of these cameras, and "
            f"{wanted}."
        )
    ordered = in_natural_order(photos.names)
    if len(ordered) != count or ordered != sorted(photos.names):
        same = "several orders of their names are possible" if len(ordered) == count else ""
        have = same or f"{photos.root} has {plural(len(ordered), 'photo')}"
        raise EdmHlocError(
            f"{path} has {plural(count, 'camera')} without names, no list of them lies beside it, "
            f"and {have}: {wanted}."
        )
    warn_once(
        f"{path} has no list of its photos beside it: its {count} cameras are taken for the {count}"
        f" photos in {photos.root} in the order of their names. If the poses look wrong, {wanted}."
    )
    return ordered


def _usual_lists(path: Path) -> list[str]:
    """What Bundler, COLMAP, OpenSfM, 1DSfM and others call the list that belongs to a file."""
    stem = path.stem  # bundle, bundle.rd, bundle_r000, gt_bundle, bundler, or of any other name
    renamed = re.sub("bundler?", "list", stem)
    own = [f"{renamed}.txt"] if renamed != stem else []
    own += [f"{stem}{mark}list.txt" for mark in (".", "-", "_")]
    return list(dict.fromkeys([*own, f"{path.name}.list.txt", "list.txt"]))


def _names_in(path: Path, photos: PhotosAtHand) -> list[str]:
    """The names in a list, without focal lengths, and without a first line with their number."""
    lines = [
        line.strip()
        for _, line in filled_lines(path, "list of photos")
        if not is_comment(line, line.strip(), photos.names)
    ]
    names = [line if line in photos.names else _AFTER_NAME.sub("", line) for line in lines]
    if len(names) > 1 and names[0] == str(len(names) - 1):
        del names[0]
    return names


def _other_lists(path: Path, count: int, photos: PhotosAtHand) -> dict[str, list[str]]:
    """Further text files beside the file with so many names, most of them of photos at hand."""
    found = {}
    for other in sorted(islice(path.parent.glob("*.txt"), _MOST_LISTS)):
        try:
            if not other.is_file() or other.stat().st_size > _LONGEST_LINE * (count + 1):
                continue
            names = _names_in(other, photos)
        except (EdmHlocError, OSError):  # of another kind
            continue
        if len(names) != count or any(" " in n and n not in photos.names for n in names):
            continue
        finder = NameFinder(photos.names)
        known = {finder.find_path(name) for name in names} - {None}
        if 2 * len(known) > min(count, len(photos.names)):
            found[other.name] = names
    return found

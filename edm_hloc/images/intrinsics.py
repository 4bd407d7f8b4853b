"""Known intrinsics: cameras by image name, from a COLMAP model or a list as hloc reads them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pycolmap

from edm_hloc.base.colmap import camera_text, is_model, read_model
from edm_hloc.base.errors import EdmHlocError, NotInColmapError
from edm_hloc.base.log import warn_once
from edm_hloc.base.text import filled_lines, is_comment, read_lines, read_text
from edm_hloc.base.text_models import lens_fault
from edm_hloc.images.calibration import SUFFIXES, read_calibration
from edm_hloc.images.find import HEIC_SUFFIXES, IMAGE_SUFFIXES
from edm_hloc.images.listed import listed_names

logger = logging.getLogger(__name__)

_PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "RADIAL", "SIMPLE_RADIAL")  # nerfstudio's
_OTHER_LENSES = ("ftheta_p0", "latlong", "equirectangular", "orthographic")  # instant-ngp's keys


def load_intrinsics(path: Path, names: Sequence[str]) -> dict[str, pycolmap.Camera]:
    """Known cameras of images, from any of the usual files.

    Args:
        path: a folder with a COLMAP model (images are found by name); or a COLMAP ``cameras.txt``
            or ``.bin`` in such a folder; or a text with a single camera, which is taken for all
            images, or the folder that holds only this as ``cameras.txt``; or a list as hloc's (see
            `read_intrinsics_list`); or the text of one camera for all images, as
            "SIMPLE_RADIAL 1600 1200 1500 800 600 0"; or nerfstudio's ``transforms.json``; or the
            file of a calibration tool (see `calibration.read_calibration`), whose cameras are for
            the images in the folders of their names, or for all if there is one only.
        names: images to find cameras for; the file may name them with other folders in front, see
            `listed_names`.

    Returns:
        Cameras by image name; images without a known camera are left out, with a warning.

    Raises:
        EdmHlocError: the file cannot be read, or has a camera for none of the images.
    """
    words = str(path).split()
    if len(words) > 1 and _is_model_name(words[0]) and not Path(path).exists():
        return dict.fromkeys(names, parse_camera(words, "--known"))
    path = Path(path)
    if path.is_dir() and (path / "cameras.txt").is_file() and not is_model(path):
        path = path / "cameras.txt"
    if path.is_dir() or (is_model(path.parent) and path.stem == "cameras"):
        model = read_model(path if path.is_dir() else path.parent)
        cameras = {image.name: model.cameras[image.camera_id] for image in model.images.values()}
    elif path.name == "cameras.bin":
        raise EdmHlocError(f"{path} needs the rest of its model beside it to tell whose cameras.")
    elif path.suffix.lower() == ".json" and _is_transforms(path):
        cameras = _read_transforms(path)
    elif path.suffix.lower() in SUFFIXES:
        return _of_folders(path, read_calibration(path), names)
    elif (camera := _only_camera(path, names)) is not None:
        return dict.fromkeys(names, camera)
    else:
        cameras = read_intrinsics_list(path, names)
    found = {name: cameras[listed] for name, listed in listed_names(cameras, names).items()}
    if not cameras:
        raise EdmHlocError(f"{path} holds no intrinsics: it names no image.")
    if not found:
        raise EdmHlocError(
            f"{path} has intrinsics for none of the {len(names)} images; its names are like "
            f"{next(iter(cameras))!r}, those of the images like {names[0] if names else ''!r}."
        )
    for name, camera in found.items():
        if not len(camera.focal_length_idxs()):
            raise EdmHlocError(
                f"{path}: the camera of {name} is {camera.model.name}, which has no focal length: "
                "photos of all directions are cut into perspective views first (edm-hloc views)."
            )
    if len(found) < len(set(names)):
        missing = next(name for name in names if name not in found)
        message = "%s has intrinsics for %d of %d images, and for one, %s, none."
        logger.warning(message, path, len(found), len(set(names)), missing)
    return found


def _only_camera(path: Path, names: Sequence[str]) -> pycolmap.Camera | None:
    """The camera in a text with a single one, with or without COLMAP's id of it in front.

    None for a list, which names images.

    Raises:
        EdmHlocError: the text cannot be read, or has several cameras and names no image.
    """
    lines = [re.sub("[,;]", " ", line).split() for _, line in read_lines(path, "intrinsics")]
    cameras = [words[1:] if words and words[0].isdecimal() else words for words in lines]
    if not cameras or not all(words and _is_model_name(words[0]) for words in cameras):
        return None
    if path.name != "cameras.txt" and listed_names({words[0] for words in lines}, names):
        return None  # "1 PINHOLE …" is of 1.jpg
    if len(cameras) > 1:
        raise EdmHlocError(
            f"{path} holds {len(cameras)} cameras and does not tell whose: write 'name MODEL width "
            "height parameters' a line, or put the images.txt of the model beside it."
        )
    return parse_camera(cameras[0], f"{path}")


def _of_folders(
    path: Path, cameras: Mapping[str, pycolmap.Camera], names: Sequence[str]
) -> dict[str, pycolmap.Camera]:
    """The camera of each image: the only one, or that of the folder with its name."""
    if "" in cameras:
        return dict.fromkeys(names, cameras[""])
    found = {
        name: cameras[label] for name in names for label in name.split("/")[:-1] if label in cameras
    }
    if len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise EdmHlocError(
            f"{path} holds the cameras {', '.join(cameras)}, and {missing} is in no folder of such "
            "a name. Give the file of one camera, or a list with 'name MODEL width height "
            "parameters' a line."
        )
    return found


def read_intrinsics_list(path: Path, names: Collection[str] = ()) -> dict[str, pycolmap.Camera]:
    """Cameras by image name from a list as hloc's, one image a line.

    A line holds the image's name, COLMAP's name of the camera model, width, height and the model's
    parameters, in COLMAP's pixel frame, separated by white space, commas or semicolons. Equal
    cameras are one object.

    Args:
        path: the list.
        names: of the images; those that begin with "#" are known by it from comments.

    Raises:
        EdmHlocError: the list cannot be read, a line holds something else, or an image has two
            cameras.
    """
    cameras: dict[str, pycolmap.Camera] = {}
    same: dict[str, pycolmap.Camera] = {}
    for _, line in filled_lines(path, "intrinsics"):
        name, words = listed_camera(line)
        if is_comment(line, name, names):
            continue
        if not words:
            raise EdmHlocError(
                f"{path}: expected 'name MODEL width height parameters', got {line.strip()!r}."
            )
        text = " ".join(words)
        same.setdefault(text, parse_camera(words, f"{path}, {name}"))
        _add(cameras, name, same[text], path)
    return cameras


def _add(
    cameras: dict[str, pycolmap.Camera], name: str, camera: pycolmap.Camera, path: Path
) -> None:
    """Adds the camera of an image. Raises EdmHlocError if it has another one already."""
    if camera_text(cameras.setdefault(name, camera)) != camera_text(camera):
        raise EdmHlocError(
            f"{path}: {name} is there a second time, with another camera: remove one of the two."
        )


def listed_camera(line: str) -> tuple[str, list[str]]:
    """The name in a line of a list, and the words of its camera; no words where there is none."""
    words = line.split()
    if not any(map(_is_model_name, words[1:])):
        line = re.sub("[,;]", " ", line)
        words = line.split()
    # the last one, since a name may hold spaces and even the name of a camera model
    place = max((i for i, word in enumerate(words) if _is_model_name(word)), default=0)
    if not place:
        return "", []
    return line[: line.rindex(words[place])].strip(), words[place:]


def listed_name(line: str) -> str:
    """The name in a line of a list of images, behind which there may be a camera or more words.

    A name may hold spaces: it is what stands before a camera, or the whole line where this ends as
    the names of images do, or else the first word.
    """
    line = line.strip()
    name, _ = listed_camera(line)
    if name or line.lower().endswith((*IMAGE_SUFFIXES, *HEIC_SUFFIXES)):
        return name or line
    return line.split()[0]


def _is_transforms(path: Path) -> bool:
    """Whether a JSON file is nerfstudio's, not a calibration tool's."""
    return path.name == "transforms.json" or '"frames"' in read_text(path, "intrinsics")


def _read_transforms(path: Path) -> dict[str, pycolmap.Camera]:
    """Cameras by image name from nerfstudio's ``transforms.json``, for all frames or for each.

    Raises:
        EdmHlocError: the file cannot be read, has no such cameras, or two of an image.
    """
    cameras: dict[str, pycolmap.Camera] = {}
    not_in_colmap = set()
    try:
        record = json.loads(read_text(path, "intrinsics"))
        for frame in record["frames"]:
            name = str(frame["file_path"]).removeprefix("./").removeprefix("images/")
            try:
                camera = transforms_camera(record | frame, f"{path}, {name}")
                _add(cameras, name, camera, path)
            except NotInColmapError as error:
                not_in_colmap.add(str(error))
    except (ValueError, TypeError, KeyError) as error:
        raise EdmHlocError(
            f"{path} is not a transforms.json of nerfstudio with w, h, fl_x, fl_y, cx, cy: {error}."
        ) from error
    if not_in_colmap:
        kinds = " or ".join(sorted(not_in_colmap))
        text = f"{path}: COLMAP has no model for cameras of the kind {kinds}"
        if not cameras:
            raise EdmHlocError(f"{text}: undistort the photos, and give the intrinsics of these.")
        warn_once(f"{text}: the intrinsics of their photos are left out.")
    return cameras


def is_fisheye(own: Mapping[str, Any]) -> bool:
    """Whether a frame of a ``transforms.json`` is of a fisheye lens, not of a perspective one.

    nerfstudio names the camera model, OPENCV if it does not; instant-ngp has a key for each lens.

    Raises:
        NotInColmapError: it is of a third kind.
    """
    model = str(own.get("camera_model") or "OPENCV")
    if model not in (*_PERSPECTIVE, "OPENCV_FISHEYE"):
        raise NotInColmapError(model)
    for lens in _OTHER_LENSES:
        if own.get(lens) is not None and own[lens] is not False:
            raise NotInColmapError("f-theta" if lens == "ftheta_p0" else lens)
    return model == "OPENCV_FISHEYE" or bool(own.get("is_fisheye"))


def transforms_camera(own: Mapping[str, Any], where: str) -> pycolmap.Camera:
    """The camera of a frame of nerfstudio's ``transforms.json``, in COLMAP's pixel frame.

    Args:
        own: what the file says of the frame, or of all: w, h, fl_x, fl_y, cx, cy and distortion,
            as k1 to k4, p1 and p2 or as distortion_params in this order.
        where: file and frame, for the message.

    Raises:
        NotInColmapError: the camera is neither a fisheye nor perspective.
        EdmHlocError: the values are no possible camera.
        KeyError: one of the six is missing.
    """
    fisheye = is_fisheye(own)
    numbers = [own[key] for key in ("w", "h", "fl_x", "fl_y", "cx", "cy")]
    names = ("k1", "k2", "k3", "k4", "p1", "p2")
    given = own.get("distortion_params", [own.get(name, 0.0) for name in names])
    try:
        k1, k2, k3, k4, p1, p2 = map(float, given)
    except (TypeError, ValueError):
        raise EdmHlocError(
            f"{where}: the distortion {given!r} is not six numbers ({', '.join(names)})."
        ) from None
    if fisheye:
        model, distortion = "OPENCV_FISHEYE", [k1, k2, k3, k4]
    else:
        model, distortion = brown_model(k1, k2, p1, p2, k3)
        if model == "PINHOLE":  # what the file leaves out can be refined
            model, distortion = "OPENCV", [0.0] * 4
        if k4:
            warn_once(
                "transforms.json: k4 of cameras that are no fisheyes is not in COLMAP's models and "
                "is left out."
            )
    return parse_camera([model, *map(str, (*numbers, *distortion))], where)


def brown_model(k1: float, k2: float, p1: float, p2: float, k3: float) -> tuple[str, list[float]]:
    """COLMAP's smallest camera model with Brown's distortion, and the parameters of that.

    Args:
        k1, k2, p1, p2, k3: OpenCV's first five coefficients.

    Returns:
        PINHOLE, OPENCV or FULL_OPENCV, and what follows the focal lengths and the principal point.
    """
    if k3:
        return "FULL_OPENCV", [k1, k2, p1, p2, k3, 0.0, 0.0, 0.0]
    distortion = [k1, k2, p1, p2]
    return ("OPENCV", distortion) if any(distortion) else ("PINHOLE", [])


def _is_model_name(word: str) -> bool:
    """Whether a word is COLMAP's name of a camera model, in upper or lower case."""
    return word.upper() in pycolmap.CameraModelId.__members__


def _whole(word: str) -> int:
    """A whole number, also written as "512.0". Raises ValueError for another."""
    value = float(word)
    if value != int(value):
        raise ValueError(f"not a whole number: {word}")
    return int(value)


def parse_camera(words: Sequence[str], where: str) -> pycolmap.Camera:
    """A camera from the words of COLMAP's text format: model, width, height, parameters.

    Args:
        words: without the camera's id.
        where: file and image, for the error message.

    Raises:
        EdmHlocError: no such model, the wrong number of parameters, or impossible values.
    """
    try:
        camera = pycolmap.Camera(
            model=words[0].upper(),
            width=_whole(words[1]),
            height=_whole(words[2]),
            params=[float(word) for word in words[3:]],
        )
        reason = lens_fault(camera)
        if not reason and not len(camera.focal_length_idxs()):
            reason = "a camera of all directions has no focal length"
    except Exception:  # pycolmap raises almost anything
        reason = "expected MODEL WIDTH HEIGHT PARAMETERS"
    if reason:
        text = " ".join(words)
        raise EdmHlocError(f"{where}: not a camera in COLMAP's form: {text!r}: {reason}.")
    return camera

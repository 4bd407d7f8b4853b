"""Which photos share a camera, and what is known about it: intrinsics files and EXIF data."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pycolmap
from PIL.ExifTags import IFD
from PIL.ExifTags import Base as ExifTag
from tqdm import tqdm

from edm_hloc.base.colmap import is_model, quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.images.decode import open_header, stored_size

logger = logging.getLogger(__name__)

CameraMode = Literal["auto", "single", "per-folder", "per-image"]


@dataclass(frozen=True)
class CameraOptions:
    """Which photos share a camera and what is known about it.

    Attributes:
        mode: "auto" one camera for all photos whose EXIF data name the same camera (or none),
            focal length and size, else one each; "single" one for all; "per-folder"; "per-image".
            Photos of different sizes never share one.
        model: COLMAP's name of the camera model of photos that are not in `known`.
        known: cameras by image name (see `load_intrinsics`), which are not refined.
    """

    mode: CameraMode = "auto"
    model: str = "SIMPLE_RADIAL"
    known: Mapping[str, pycolmap.Camera] | None = None


def load_intrinsics(path: Path, names: Sequence[str]) -> dict[str, pycolmap.Camera]:
    """Known cameras of the images `names`, from whatever form they come in.

    Args:
        path: a folder with a COLMAP model (images are found by name); a COLMAP ``cameras.txt`` or
            ``.bin`` that lies in such a folder or holds a single camera, which is then everyone's;
            or a text file as hloc's, one image a line: name, camera model, width, height,
            parameters.
        names: images to find cameras for. A name that is not there is looked up without its
            folders, if that is unambiguous.

    Raises:
        EdmHlocError: nothing can be read, or it has a camera for none of the images.
    """
    path = Path(path)
    if path.is_dir() or (is_model(path.parent) and path.stem == "cameras"):
        model = read_model(path if path.is_dir() else path.parent)
        cameras = {image.name: model.cameras[image.camera_id] for image in model.images.values()}
    elif path.name in ("cameras.txt", "cameras.bin"):
        return dict.fromkeys(names, _only_camera(path))
    else:
        cameras = read_intrinsics_list(path)
    by_file = defaultdict(list)
    for name in cameras:
        by_file[name.rpartition("/")[2]].append(name)
    found = {}
    for name in names:
        same_file = by_file[name.rpartition("/")[2]]
        if name in cameras:
            found[name] = cameras[name]
        elif len(same_file) == 1:
            found[name] = cameras[same_file[0]]
    if not found:
        raise EdmHlocError(
            f"{path} has intrinsics for none of the {len(names)} images; its names are like "
            f"{next(iter(cameras), 'nothing')!r}."
        )
    if len(found) < len(set(names)):
        logger.warning("%s has intrinsics for %d of %d images.", path, len(found), len(names))
    return found


def _only_camera(path: Path) -> pycolmap.Camera:
    if path.suffix == ".bin":
        raise EdmHlocError(f"{path} needs the rest of its model beside it to tell whose cameras.")
    lines = [line.split() for line in _read_lines(path) if not line.startswith("#")]
    if len(lines) != 1:
        raise EdmHlocError(
            f"{path} holds {len(lines)} cameras and no images.txt lies beside it to tell whose."
        )
    return parse_camera(lines[0][1:], f"{path}")


def read_intrinsics_list(path: Path) -> dict[str, pycolmap.Camera]:
    """Cameras by image name from a list as hloc's: name, model, width, height, parameters.

    Raises:
        EdmHlocError: it cannot be read, or a line is something else.
    """
    cameras: dict[str, pycolmap.Camera] = {}
    same: dict[str, pycolmap.Camera] = {}
    for line in _read_lines(path):
        if line.startswith("#"):
            continue
        words = line.split()
        places = [i for i, w in enumerate(words) if w in pycolmap.CameraModelId.__members__ and i]
        if not places:
            raise EdmHlocError(
                f"{path}: expected 'name MODEL width height parameters', got {line!r}."
            )
        # the last one, since a name may hold spaces and even such a word
        name = line[: line.rindex(words[places[-1]])].strip()
        text = " ".join(words[places[-1] :])
        same.setdefault(text, parse_camera(words[places[-1] :], f"{path}, {name}"))
        cameras[name] = same[text]
    return cameras


def _read_lines(path: Path) -> list[str]:
    try:
        return [s for line in path.read_text("utf-8-sig").split("\n") if (s := line.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise EdmHlocError(f"Cannot read intrinsics from {path}: {error}.") from error


def parse_camera(words: Sequence[str], where: str) -> pycolmap.Camera:
    """From model, width, height and parameters, as COLMAP's texts. Raises EdmHlocError if wrong."""
    try:
        camera = pycolmap.Camera(
            model=words[0],
            width=int(words[1]),
            height=int(words[2]),
            params=[float(word) for word in words[3:]],
        )
        focal = camera.mean_focal_length()
        valid = camera.verify_params() and focal > 0 and np.isfinite(camera.params).all()
    except Exception:  # pycolmap raises almost anything
        valid = False
    if not valid:
        raise EdmHlocError(f"{where}: not a camera in COLMAP's form: {' '.join(words)!r}.")
    return camera


_EXIF_CAMERA = (ExifTag.Make, ExifTag.Model)
_EXIF_FOCAL = (ExifTag.FocalLength, ExifTag.FocalLengthIn35mmFilm)
_EXIF_SENSOR = (ExifTag.FocalPlaneXResolution, ExifTag.FocalPlaneResolutionUnit)


@dataclass(frozen=True)
class _Photo:
    """What the header of a photo says.

    Attributes:
        size: pixels.
        exif: camera, lens setting and size; None without EXIF data.
        names_camera: EXIF data tell the camera's maker or model.
        tells_focal: they tell the focal length.
    """

    size: tuple[int, int]
    exif: tuple[object, ...] | None = None
    names_camera: bool = False
    tells_focal: bool = False


def _read_photo(path: Path) -> _Photo:
    with open_header(path) as image:
        size = image.size
        try:
            exif = image.getexif()
            size = stored_size(image)
            lens = exif.get_ifd(IFD.Exif)
            camera = [exif.get(tag) for tag in _EXIF_CAMERA]
            focal, sensor = ([lens.get(t) for t in tags] for tags in (_EXIF_FOCAL, _EXIF_SENSOR))
        except Exception:  # damaged EXIF data is no reason to do without the photo
            return _Photo(size)
    if not any(tag is not None for tag in (*camera, *focal, *sensor)):
        return _Photo(size)
    tags = map(str, (*camera, *focal, *sensor))
    return _Photo(size, (*tags, *size), any(camera), any(focal))


def _exif_focal(path: Path) -> float | None:
    """The focal length in pixels by the EXIF data, if they tell it.

    Decodes the photo; COLMAP knows many cameras' sensors, so that it finds more than the data say.
    """
    with quiet_colmap():
        bitmap = pycolmap.Bitmap.read(path, as_rgb=False)
    if bitmap is not None:
        found: float | None = bitmap.exif_focal_length()
        return found
    # a format that COLMAP does not read, such as WebP and HEIC
    with open_header(path) as image:
        try:
            focal = float(image.getexif().get_ifd(IFD.Exif).get(ExifTag.FocalLengthIn35mmFilm) or 0)
        except Exception:
            focal = 0.0
        return focal * float(np.hypot(*image.size) / np.hypot(36, 24)) if focal > 0 else None


class _Groups(NamedTuple):
    """Images by the camera that took them.

    Attributes:
        images: names by how the camera is told ("known" or the mode), what tells it, and the size.
        focals: of images without known intrinsics, by the EXIF data.
        skipped: images that cannot be read, with the reason.
    """

    images: dict[tuple[str, object, tuple[int, int]], list[str]]
    focals: dict[str, float | None]
    skipped: dict[str, str]

    def focal(self, members: Sequence[str]) -> float | None:
        return next((focal for name in members if (focal := self.focals[name])), None)


def _group(root: Path, names: Collection[str], options: CameraOptions) -> _Groups:
    """Reads the headers of images. Raises as `photo_cameras`."""
    if options.model not in pycolmap.CameraModelId.__members__ or options.model == "INVALID":
        models = sorted(set(pycolmap.CameraModelId.__members__) - {"INVALID"})
        raise EdmHlocError(f"No camera model {options.model!r}. There are {', '.join(models)}.")
    groups = _Groups(defaultdict(list), {}, {})
    exif_focals: dict[tuple[object, ...], float | None] = {}
    known = options.known or {}
    off = None if names else True
    for name in tqdm(names, desc="Reading photo headers", unit="photo", disable=off):
        try:
            photo = _read_photo(root / name)
        except ImageError as error:
            groups.skipped[name] = str(error)
            continue
        if name in known:
            camera = known[name]
            if photo.size != (camera.width, camera.height):
                raise EdmHlocError(
                    f"The known intrinsics of {name} are for {camera.width} × {camera.height} "
                    f"pixels, but {root / name} has {photo.size[0]} × {photo.size[1]}. "
                    "Take the photos they were made for, or scale them."
                )
            same = camera.model_name, tuple(camera.params)
            groups.images["known", same, photo.size].append(name)
            continue
        if photo.exif is not None and photo.exif not in exif_focals:
            exif_focals[photo.exif] = _exif_focal(root / name)
        groups.focals[name] = exif_focals.get(photo.exif or ())
        shared_by: object = {
            "auto": photo.exif if photo.tells_focal else name,
            "single": "",
            "per-folder": name.rpartition("/")[0],
            "per-image": name,
        }[options.mode]
        groups.images[options.mode, shared_by, photo.size].append(name)
    return groups


def check_cameras(root: Path, names: Iterable[str], options: CameraOptions) -> None:
    """Raises EdmHlocError if no model can be made with such cameras; reads no more than it needs.

    Photos that cannot be read are passed over.
    """
    fisheye = "FISHEYE" in options.model
    known = options.known or {}
    groups = _group(root, [name for name in names if fisheye or name in known], options)
    for (told_by, *_), members in groups.images.items():
        # COLMAP takes all pairs of such a camera for degenerate
        if told_by != "known" and not groups.focal(members):
            raise EdmHlocError(
                f"The camera model {options.model} needs a focal length, and none is known of "
                f"{members[0]}: its EXIF data do not tell it. Give the intrinsics by --known, or "
                "take another camera model."
            )


def photo_cameras(
    root: Path, names: Collection[str], options: CameraOptions
) -> tuple[dict[str, pycolmap.Camera], dict[str, str]]:
    """The camera of each image (shared ones are one object, ids from 1), and the images skipped.

    Raises:
        EdmHlocError: no such camera model, or known intrinsics are for photos of another size.
    """
    groups = _group(root, names, options)
    if options.mode in ("single", "per-folder"):
        split = Counter(group[1] for group in groups.images if group[0] != "known")
        for folder, number in split.items():
            if number > 1:
                logger.warning(
                    "Photos%s come in %d sizes: each size gets a camera of its own.",
                    f" in {folder}" if folder else "",
                    number,
                )
    cameras = {}
    known = options.known or {}
    for camera_id, ((told_by, _, size), members) in enumerate(groups.images.items(), start=1):
        if told_by == "known":
            camera = pycolmap.Camera(known[members[0]].todict())
            camera.camera_id, camera.has_prior_focal_length = camera_id, True
        else:
            width, height = size
            focal = groups.focal(members)
            camera = pycolmap.Camera.create_from_model_name(
                camera_id, options.model, focal or 1.2 * max(width, height), width, height
            )
            camera.has_prior_focal_length = focal is not None
        cameras.update(dict.fromkeys(members, camera))
    return dict(sorted(cameras.items())), groups.skipped


def cameras_by_exif(
    root: Path, names: Iterable[str], known: Mapping[str, pycolmap.Camera]
) -> dict[str, pycolmap.Camera]:
    """Cameras of images taken by the same ones as others, by their EXIF data.

    Args:
        root: folder of all images.
        names: images to find cameras for.
        known: cameras of other images. Of those with the same maker, model, lens setting and size
            the one that most have is taken.
    """

    def camera_in(name: str) -> tuple[object, ...] | None:
        try:
            photo = _read_photo(root / name)
        except ImageError:
            return None
        return photo.exif if photo.names_camera or photo.tells_focal else None

    wanted = {name: exif for name in names if (exif := camera_in(name)) is not None}
    if not wanted:
        return {}
    found: dict[tuple[object, ...], list[pycolmap.Camera]] = defaultdict(list)
    for name, camera in known.items():
        of_photo = camera_in(name)
        if of_photo is not None and of_photo[-2:] == (camera.width, camera.height):
            found[of_photo].append(camera)
    best = {}
    for of_photo, cameras in found.items():
        number = Counter(camera.params_to_string() for camera in cameras)
        best[of_photo] = max(cameras, key=lambda c: number[c.params_to_string()])
    return {name: best[exif] for name, exif in wanted.items() if exif in best}

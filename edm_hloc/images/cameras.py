"""Cameras of photos: which photos share one, and what is known of its intrinsics."""

from __future__ import annotations

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.progress import track
from edm_hloc.images.exif import exif_focal_length, read_header
from edm_hloc.images.lenses import image_circle, is_panorama, most_of
from edm_hloc.images.roots import ImageRoot
from edm_hloc.images.sizes import Scaled, camera_for_size, warn_of_scaled

logger = logging.getLogger(__name__)

CameraMode = Literal["auto", "single", "per-folder", "per-image"]
_DEFAULT_FOCAL = 1.2  # of the longer side, as COLMAP assumes where the focal length is unknown
_FISHEYE_ANGLE = math.radians(190)  # across the image circle; lenses have 180° to 220°
_LOOKED_AT = 5  # photos of a camera, for an image circle
_FEWEST_SHARING = 3  # photos of one size that may be of one camera
_RADIAL = (
    *("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL"),
    *("SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "OPENCV_FISHEYE"),
)
"""Camera models whose distortion has no direction."""
_TANGENTIAL = {"OPENCV": (6, 7), "FULL_OPENCV": (6, 7)}  # indices of p1, p2
_VIEWS = "edm-hloc views PANORAMAS VIEWS"
_SHARING = 0.25  # of all photos, for which a second mapping is worth its time


@dataclass(frozen=True)
class CameraOptions:
    """Which photos share a camera and what is known of it.

    Attributes:
        mode: "auto": photos share a camera if their EXIF data have the same maker, model, lens
            setting and size; a photo without a focal length in its EXIF data has its own.
            With a fisheye model such photos share one with those of their folder. "single": one
            camera for all photos; "per-folder": one for each folder; "per-image". Photos of
            different sizes never share a camera.
        model: COLMAP's name of the camera model of photos that are not in `known`.
        known: known cameras by image name (see `load_intrinsics`); they are not refined. For photos
            that are stored in another size they are scaled, with a warning.
        lenses: where refined tracks tell more of a SIMPLE_RADIAL camera than that has room for, it
            becomes RADIAL with a principal point of its own (see `tracks/lens.py`).
    """

    mode: CameraMode = "auto"
    model: str = "SIMPLE_RADIAL"
    known: Mapping[str, pycolmap.Camera] | None = None
    lenses: bool = True

    @property
    def fisheye(self) -> bool:
        """Whether `model` is that of a fisheye lens."""
        return "FISHEYE" in self.model


def photo_cameras(
    root: Path, names: Collection[str], options: CameraOptions
) -> tuple[dict[str, pycolmap.Camera], dict[str, str]]:
    """The cameras of photos, with focal lengths from the EXIF data or COLMAP's default.

    With a fisheye model a focal length that the EXIF data do not tell follows from the diameter of
    the image circle, of which 190° are assumed.

    Args:
        root: folder of the photos.
        names: of the photos, relative to `root`.
        options: which of them share a camera.

    Returns:
        The camera of each photo, by name (a shared one is one object; ids count from 1), and the
        photos that were skipped because they cannot be read, with the reason.

    Raises:
        EdmHlocError: no such camera model, or known intrinsics are for another photo (see
            `images.sizes.camera_for_size`).
    """
    groups = _group(root, names, options)
    if options.mode in ("single", "per-folder"):
        sizes = Counter(group[1] for group in groups.images if group[0] != "known")
        for folder, number in sizes.items():
            if number > 1:
                logger.warning(
                    "Photos%s come in %d sizes: each size gets a camera of its own.",
                    f" in {folder}" if folder else "",
                    number,
                )
    cameras = {}
    for camera_id, ((source, _, size), members) in enumerate(groups.images.items(), start=1):
        if source == "known":
            camera = pycolmap.Camera(groups.known[members[0]].todict())
            camera.camera_id, camera.has_prior_focal_length = camera_id, True
        else:
            width, height = size
            focal = groups.focal_length(members)
            if focal is None and options.fisheye:
                focal = _focal_of_image_circle(root, members)
            camera = pycolmap.Camera.create_from_model_name(
                camera_id,
                options.model,
                focal or _DEFAULT_FOCAL * max(width, height),
                width,
                height,
            )
            camera.has_prior_focal_length = focal is not None
        cameras.update(dict.fromkeys(members, camera))
    return dict(sorted(cameras.items())), groups.skipped


def may_share_cameras(cameras: Mapping[str, pycolmap.Camera]) -> list[list[str]]:
    """Photos that have a camera each and may be of one: of one size, with nothing else known.

    Args:
        cameras: of all photos, see `photo_cameras`. Photos of both orientations are of one size.

    Returns:
        Names of the photos of each size, three or more. None where these are but a few among
        others, so that it matters little for the model of them all.
    """
    photos = Counter(camera.camera_id for camera in cameras.values())
    of_size: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name, camera in cameras.items():
        if photos[camera.camera_id] == 1 and not camera.has_prior_focal_length:
            shorter, longer = sorted((camera.width, camera.height))
            of_size[shorter, longer].append(name)
    groups = [names for names in of_size.values() if len(names) >= _FEWEST_SHARING]
    return groups if sum(map(len, groups)) >= _SHARING * len(cameras) else []


def check_cameras(root: Path, names: Iterable[str], options: CameraOptions) -> list[str]:
    """Checks that a model can be made with such cameras, reading as few photos as possible.

    Photos that cannot be read are passed over.

    Args:
        root: folder of the photos.
        names: of the photos, relative to `root`.
        options: which of them share a camera.

    Returns:
        Photos that a fisheye lens seems to have taken where no fisheye model is asked for, of which
        a warning tells; none otherwise.

    Raises:
        EdmHlocError: as `photo_cameras`; a fisheye model is asked for photos without a focal
            length; or the photos are panoramas of all directions.
    """
    names, known = list(names), options.known or {}
    groups = _group(root, [name for name in names if options.fisheye or name in known], options)
    for (source, *_), members in groups.images.items():
        # COLMAP finds all pairs of such a camera degenerate
        if source != "known" and not (
            groups.focal_length(members) or _focal_of_image_circle(root, members)
        ):
            raise EdmHlocError(
                f"The camera model {options.model} needs a focal length, and none is known of "
                f"{members[0]}: neither its EXIF data nor a disc before black tell it. Give the "
                "intrinsics by --known, or take another camera model."
            )
    if options.fisheye:
        return []
    unknown = [name for name in names if name not in known]
    panoramas = most_of(root, unknown, is_panorama)
    if panoramas:
        raise EdmHlocError(
            f"Photos are panoramas of all directions, as {panoramas[0]} is, which no camera model "
            f"here describes. Cut them into perspective views first: {_VIEWS}"
        )
    circular = most_of(root, unknown, image_circle)
    if circular:
        logger.warning(
            "Photos show a bright disc before black, as %s does. If a fisheye lens has drawn it, "
            "the model of them will be wrong without --camera-model OPENCV_FISHEYE.",
            circular[0],
        )
    return circular


def _focal_of_image_circle(root: Path, names: Sequence[str]) -> float | None:
    """Focal length of a fisheye lens by the first of a few photos that shows an image circle."""
    for name in names[:_LOOKED_AT]:
        try:
            diameter = image_circle(root / name)
        except ImageError:
            continue
        if diameter is not None:
            return diameter / _FISHEYE_ANGLE
    return None


class _Groups(NamedTuple):
    """Images grouped by camera.

    Attributes:
        images: names by ("known" or the mode, what the photos have in common, size).
        focal_lengths: of images without known intrinsics, pixels, from the EXIF data.
        known: known cameras, scaled to the photos' sizes.
        skipped: images that cannot be read, with the reason.
    """

    images: dict[tuple[str, object, tuple[int, int]], list[str]]
    focal_lengths: dict[str, float | None]
    known: dict[str, pycolmap.Camera]
    skipped: dict[str, str]

    def focal_length(self, members: Sequence[str]) -> float | None:
        """The first known focal length of a group's members."""
        return next((focal for name in members if (focal := self.focal_lengths[name])), None)


def _group(root: Path, names: Collection[str], options: CameraOptions) -> _Groups:
    """Groups images by the headers of the files. Raises as `photo_cameras`."""
    if options.model == "EQUIRECTANGULAR":
        raise EdmHlocError(
            "Models are made of photos with a focal length, not of panoramas of all directions "
            f"({options.model}). Cut these into perspective views first: {_VIEWS}"
        )
    models = pycolmap.CameraModelId.__members__.keys() - {"INVALID", "EQUIRECTANGULAR"}
    if options.model not in models:
        listed = ", ".join(sorted(models))
        raise EdmHlocError(f"No camera model {options.model!r}. There are {listed}.")
    groups = _Groups(defaultdict(list), {}, {}, {})
    focal_length_by_exif: dict[tuple[object, ...], float | None] = {}
    known = options.known or {}
    scaled = []
    for name in track(names, "Reading photo headers", "photo"):
        try:
            photo = read_header(root / name)
        except ImageError as error:
            groups.skipped[name] = str(error)
            continue
        if name in known:
            camera = camera_for_size(known[name], photo.size, root / name, "the known intrinsics")
            if camera is not known[name]:
                scaled.append(Scaled(name, known[name], camera))
            groups.known[name] = camera
            same = camera.model_name, tuple(camera.params)
            groups.images["known", same, photo.size].append(name)
            continue
        if photo.exif is not None and photo.exif not in focal_length_by_exif:
            focal_length_by_exif[photo.exif] = exif_focal_length(root / name)
        groups.focal_lengths[name] = focal_length_by_exif.get(photo.exif or ())
        folder = name.rpartition("/")[0]
        alone = folder if options.fisheye else name
        in_common: object = {
            "auto": photo.exif if photo.has_focal_length else alone,
            "single": "",
            "per-folder": folder,
            "per-image": name,
        }[options.mode]
        groups.images[options.mode, in_common, photo.size].append(name)
    warn_of_scaled(scaled, "the known intrinsics")
    return groups


def cameras_of_others(
    root: ImageRoot, names: Iterable[str], known: Mapping[str, pycolmap.Camera]
) -> dict[str, pycolmap.Camera]:
    """Cameras of images that were taken by the same camera as others.

    The EXIF data tell it. An image without them that shows an image circle gets the camera of a
    fisheye lens, if others of its size have one: no other camera describes it.

    Args:
        root: of all images.
        names: images to find cameras for.
        known: cameras of other images. Of those with the same maker, model, lens setting and size
            the most frequent one is taken.

    Returns:
        Cameras by image name; images for which there is none are left out.
    """
    names = list(names)
    wanted = {name: exif for name in names if (exif := _exif_of(root / name)) is not None}
    chosen = _cameras_by_exif(root, wanted.values(), known)
    others = [name for name in names if name not in wanted]
    return _fisheye_cameras(root, others, known) | {
        name: chosen[exif] for name, exif in wanted.items() if exif in chosen
    }


def _exif_of(path: Path) -> tuple[object, ...] | None:
    """Camera, lens setting and size of an image; None where its EXIF data tell no camera."""
    try:
        photo = read_header(path)
    except ImageError:
        return None
    return photo.exif if photo.tells_camera else None


def _cameras_by_exif(
    root: ImageRoot,
    wanted: Collection[tuple[object, ...]],
    known: Mapping[str, pycolmap.Camera],
) -> dict[tuple[object, ...], pycolmap.Camera]:
    """The most frequent camera of the images with each of the wanted EXIF data."""
    sizes = {exif[-2:] for exif in wanted}
    found: dict[tuple[object, ...], list[pycolmap.Camera]] = defaultdict(list)
    for name, camera in known.items():
        if (size := (camera.width, camera.height)) in sizes:
            exif = _exif_of(root / name)
            if exif is not None and exif[-2:] == size:
                found[exif].append(camera)
    return {exif: _most_frequent(cameras) for exif, cameras in found.items()}


def _fisheye_cameras(
    root: ImageRoot, names: Iterable[str], known: Mapping[str, pycolmap.Camera]
) -> dict[str, pycolmap.Camera]:
    """Cameras of images with an image circle: that of most fisheye lenses of their size."""
    lenses: dict[tuple[int, int], list[pycolmap.Camera]] = defaultdict(list)
    for camera in known.values():
        if "FISHEYE" in camera.model_name:
            lenses[camera.width, camera.height].append(camera)
    found = {}
    for name in names if lenses else ():
        try:
            size = read_header(root / name).size
            if size in lenses and image_circle(root / name) is not None:
                found[name] = _most_frequent(lenses[size])
        except ImageError:
            continue
    return found


def possible_cameras(
    root: ImageRoot, names: Iterable[str], known: Mapping[str, pycolmap.Camera]
) -> dict[str, list[pycolmap.Camera]]:
    """Cameras that may have taken images, where `cameras_of_others` has none for them.

    Args:
        root: folder of the images.
        names: images to find cameras for.
        known: cameras of other images. One that more than half of those of its size have, and at
            least two, may have taken images of this size without EXIF data, such as frames of a
            film. Turned by 90°, as of a phone held upright, it may have taken those of the same
            sides as well, unless some other images have these. An image with EXIF data may be of
            the camera of the others with the same ones but exchanged sides.

    Returns:
        Cameras by image name; images for which there is none are left out.
    """
    of_size: dict[tuple[int, int], list[pycolmap.Camera]] = defaultdict(list)
    for camera in known.values():
        of_size[camera.width, camera.height].append(camera)
    usual: dict[tuple[int, int], list[pycolmap.Camera]] = {}
    for size, cameras in of_size.items():
        chosen = _most_frequent(cameras)
        same = [c for c in cameras if c.params_to_string() == chosen.params_to_string()]
        if len(same) >= 2 and 2 * len(same) > len(cameras):
            usual[size] = [chosen]
    for (width, height), (camera,) in list(usual.items()):
        if (height, width) not in of_size and (turned := turned_cameras(camera)):
            usual[height, width] = turned
    found, turned_exif = {}, {}
    for name in names:
        try:
            photo = read_header(root / name)
        except ImageError:
            continue
        if photo.exif and photo.tells_camera:
            turned_exif[name] = (*photo.exif[:-2], *photo.size[::-1])
        elif photo.size in usual:
            found[name] = usual[photo.size]
    of_exif = _cameras_by_exif(root, turned_exif.values(), known)
    of_turned = {
        name: turned_cameras(of_exif[e]) for name, e in turned_exif.items() if e in of_exif
    }
    return found | {name: cameras for name, cameras in of_turned.items() if cameras}


def turned_cameras(camera: pycolmap.Camera) -> list[pycolmap.Camera]:
    """Cameras of photos that were turned by 90°, first the way in which phones turn theirs.

    This is clockwise from landscape to portrait. None of camera models whose distortion has
    directions that are not known here.
    """
    if camera.model_name not in (*_RADIAL, *_TANGENTIAL):
        return []
    clockwise = camera.width > camera.height
    turned = [_turned(camera, clockwise), _turned(camera, not clockwise)]
    return turned[: len({each.params_to_string() for each in turned})]


def panorama_in(model: pycolmap.Reconstruction) -> tuple[str, str] | None:
    """A posed image whose camera has no focal length, as COLMAP's of panoramas, by its name, and
    the name of its camera model; None where all have one."""
    for name, image in posed_images(model).items():
        camera = model.cameras[image.camera_id]
        if not len(camera.focal_length_idxs()):
            return name, camera.model_name
    return None


def refuse_panoramas(model: pycolmap.Reconstruction, why: str) -> None:
    """Raises EdmHlocError if a posed image is a panorama.

    Args:
        model: with the image.
        why: what is not done with it, as "which cannot be undistorted".
    """
    if panorama := panorama_in(model):
        raise EdmHlocError(
            f"{panorama[0]} is a panorama ({panorama[1]}), {why}: cut the panoramas into views by "
            "edm-hloc views, and reconstruct these."
        )


def _turned(camera: pycolmap.Camera, clockwise: bool) -> pycolmap.Camera:
    parameters = list(camera.params)
    focal, middle = list(camera.focal_length_idxs()), list(camera.principal_point_idxs())
    for i, j in zip(focal, reversed(focal), strict=True):
        parameters[i] = camera.params[j]
    cx, cy = (camera.params[i] for i in middle)
    parameters[middle[0]] = camera.height - cy if clockwise else cy
    parameters[middle[1]] = cx if clockwise else camera.width - cx
    if camera.model_name in _TANGENTIAL:
        i, j = _TANGENTIAL[camera.model_name]
        p1, p2 = camera.params[i], camera.params[j]
        parameters[i], parameters[j] = (p2, -p1) if clockwise else (-p2, p1)
    return pycolmap.Camera(
        model=camera.model_name,
        width=camera.height,
        height=camera.width,
        params=parameters,
        has_prior_focal_length=camera.has_prior_focal_length,
    )


def _most_frequent(cameras: Sequence[pycolmap.Camera]) -> pycolmap.Camera:
    number = Counter(camera.params_to_string() for camera in cameras)
    return max(cameras, key=lambda camera: number[camera.params_to_string()])

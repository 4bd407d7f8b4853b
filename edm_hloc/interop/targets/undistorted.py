"""A model and its photos without lens distortion, as programs for splats and meshes take them.

COLMAP's own functions undistort, one photo after the other. A folder that was left half done is
gone on with: photos that are there and were made from the same photo, camera and mask stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pycolmap
from PIL import Image

from edm_hloc.base.colmap import camera_text, posed_images, quiet_colmap
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import holds_more_than, make_folder, write_whole
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.log import warn_of_skipped
from edm_hloc.base.progress import track
from edm_hloc.base.text import read_json_object
from edm_hloc.images.cameras import refuse_panoramas
from edm_hloc.images.find import image_stamps
from edm_hloc.images.load import stored_pixels
from edm_hloc.images.masks import find_masks, mask_pixels
from edm_hloc.images.sizes import fit_model

logger = logging.getLogger(__name__)

RECORD = "export.json"
_MADE_BY = "edm-hloc export-model"
_LOSSLESS = (".png", ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tga")
_QUALITY = 97  # of JPEG: no loss that can be seen in a splat
_LONGEST = 180  # bytes of a name without its endings, of 255 that file systems take
_MOST_CUT = 0.25  # of a side, to have the principal point in the middle


@dataclass(frozen=True)
class Undistorted:
    """What was written, for the files of another program beside it.

    Attributes:
        model: cameras of COLMAP's model PINHOLE; the names of the photos are those of `photos`.
        out: the folder.
        photos: folder of the photos, relative to `out`.
        masks: folder of the masks, relative to `out`; None where no photo has one. Each photo NAME
            then has its NAME.png in it, black where it is masked.
        copies: the factors by which there are smaller copies, in `photos`_2 and so on.
    """

    model: pycolmap.Reconstruction
    out: Path
    photos: str
    masks: str | None
    copies: tuple[int, ...]


@dataclass(frozen=True)
class PhotosOfModel:
    """Where the photos of a model are, and what is made of them.

    Attributes:
        images: their folder.
        masks: folder of masks, or one mask for all photos; None for none (see `images/masks.py`).
        copies: factors of smaller copies, such as (2, 4, 8).
    """

    images: Path
    masks: Path | None = None
    copies: tuple[int, ...] = ()


def undistort(
    model: pycolmap.Reconstruction, source: PhotosOfModel, out: Path, photos: str, target: str
) -> Undistorted:
    """Writes the photos of a model without lens distortion, and their masks and smaller copies.

    Photos get plain names, `a/b c.jpg` becomes `a_b_c.jpg`, since many programs know neither
    folders nor spaces. JPEG and what is as lossy are written as JPEG, others as PNG, always without
    EXIF data: the pixels stay as they are stored, and no reader must turn them.

    Args:
        model: changed in place; its photos may be stored at another size than its cameras have.
        source: the photos.
        out: folder to write, empty or of an earlier export.
        photos: folder of the photos in `out`.
        target: the program that they are for, recorded in ``export.json``.

    Raises:
        EdmHlocError: the folder holds other things or cannot be written, no photo can be read, a
            photo or mask does not fit its camera, or photos are panoramas.
    """
    if not posed_images(model):
        raise EdmHlocError("The model has no posed images, so that there is nothing to export.")
    refuse_panoramas(model, "which cannot be undistorted")
    model, _ = fit_model(model, source.images, "the model")
    posed = posed_images(model)
    masks = find_masks(source.masks, list(posed), source.images)
    stamps = image_stamps(source.images, posed)
    made_of = {
        name: fingerprint_of(
            [
                camera_text(model.cameras[image.camera_id]),
                stamps.get(name),
                _stamp(masks.get(name)),
                bool(masks),
            ]
        )
        for name, image in posed.items()
    }
    names = plain_names(posed)
    layout = Undistorted(model, out, photos, "masks" if masks else None, source.copies)
    _begin(layout, names, made_of, target)
    skipped = {}
    for name, image in track(posed.items(), "Undistorting", "photo"):
        try:
            camera = model.cameras[image.camera_id]
            _write_photo(layout, source.images / name, names[name], camera, masks.get(name))
        except ImageError as error:
            skipped[name] = str(error)
    warn_of_skipped(skipped.values())
    if len(skipped) == len(posed):
        raise EdmHlocError(
            f"None of the {len(posed)} photos of the model can be read in {source.images}: give "
            "their folder by --images."
        )
    if skipped:
        _take_rigs_apart(model)  # the other photos of a frame stay
    for name in skipped:
        model.deregister_frame(posed[name].frame_id)
    _undistort_model(model)
    for name, plain in names.items():
        posed[name].name = plain
    return layout


def plain_names(names: Sequence[str] | Mapping[str, object]) -> dict[str, str]:
    """A name of letters, digits, "_" and "-" and one dot for each photo, all different.

    Args:
        names: paths relative to the folder of the photos.
    """
    plain: dict[str, str] = {}
    taken = set()
    for name in sorted(names):
        path = PurePosixPath(name)
        suffix = ".png" if path.suffix.lower() in _LOSSLESS else ".jpg"
        stem = re.sub(r"[^\w-]", "_", path.with_suffix("").as_posix())
        if len(stem.encode()) > _LONGEST:
            digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:8]
            stem = f"{stem.encode()[9 - _LONGEST :].decode(errors='ignore')}_{digest}"
        free, number = stem, 2
        while free.lower() in taken:  # some file systems take a.jpg for A.jpg
            free, number = f"{stem}_{number}", number + 1
        taken.add(free.lower())
        plain[name] = f"{free}{suffix}"
    return plain


def _stamp(mask: Path | None) -> tuple[str, int, int] | None:
    if mask is None:
        return None
    status = mask.stat()
    return str(mask), status.st_size, status.st_mtime_ns


def _begin(
    layout: Undistorted, names: Mapping[str, str], made_of: Mapping[str, str], target: str
) -> None:
    """Makes the folder, removes photos that are not to be kept, and writes the record.

    Raises:
        EdmHlocError: the folder holds things that no export has made.
    """
    record = layout.out / RECORD
    earlier: dict[str, dict[str, str]] = {}
    if record.is_file():
        content = read_json_object(record, "record of an export")
        if content.get("made_by") != _MADE_BY:
            raise EdmHlocError(f"{record} is of another program: choose a new folder.")
        if content.get("for") != target:
            raise EdmHlocError(
                f"{layout.out} holds what was exported for {content.get('for')}: choose another "
                "folder."
            )
        earlier = {str(k): v for k, v in content.get("photos", {}).items() if isinstance(v, dict)}
    elif layout.out.is_file() or (layout.out.is_dir() and holds_more_than(layout.out, RECORD)):
        raise EdmHlocError(
            f"{layout.out} is there already and holds other things than an export: choose a new "
            "folder."
        )
    make_folder(layout.out)
    now = {name: {"file": names[name], "made_of": made_of[name]} for name in names}
    for name, was in earlier.items():
        if now.get(name) != was:
            for path in _files_of(layout, str(was.get("file"))):
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # others are in it, or there is none
                    path.parent.rmdir()
    write_whole(record, json.dumps({"made_by": _MADE_BY, "for": target, "photos": now}, indent=1))


def _files_of(layout: Undistorted, plain: str) -> list[Path]:
    """The photo, its mask, and their copies of any factor that an export has made."""
    folders = [layout.out / layout.photos, layout.out / "masks"]
    copies = [c for f in folders for c in f.parent.glob(f"{f.name}_[0-9]*") if c.is_dir()]
    name = PurePosixPath(plain).name
    return [folder / end for folder in (*folders, *copies) for end in (name, f"{name}.png")]


def _write_photo(
    layout: Undistorted, photo: Path, plain: str, camera: pycolmap.Camera, mask: Path | None
) -> None:
    """Writes what is not there yet of a photo, its mask and their copies. Raises ImageError."""
    folders = [("", 1), *((f"_{factor}", factor) for factor in layout.copies)]
    wanted = [(layout.out / f"{layout.photos}{end}" / plain, factor) for end, factor in folders]
    if any(not path.is_file() for path, _ in wanted):
        pixels = np.clip(np.rint(stored_pixels(photo)), 0, 255).astype(np.uint8)
        undistorted = _undistorted(pixels, camera)
        for path, factor in wanted:
            write_whole(path, _encoded(_reduced(undistorted, factor), path.suffix))
    if layout.masks is None:
        return
    wanted = [
        (layout.out / f"{layout.masks}{end}" / f"{plain}.png", factor) for end, factor in folders
    ]
    if all(path.is_file() for path, _ in wanted):
        return
    size = camera.width, camera.height
    white = np.full(size[::-1], 255, np.uint8)
    if mask is not None:
        white = cv2.resize(mask_pixels(mask), size, interpolation=cv2.INTER_NEAREST)
    undistorted = _undistorted(white, camera)
    for path, factor in wanted:
        # what mixes masked and visible pixels is masked
        whole = np.where(_reduced(undistorted, factor) == 255, np.uint8(255), np.uint8(0))
        write_whole(path, _encoded(whole, ".png"))


def _undistorted(pixels: np.ndarray, camera: pycolmap.Camera) -> np.ndarray:
    """(h, w) or (h, w, 3) uint8, of the size of `pinhole_of(camera)`."""
    with quiet_colmap():
        bitmap, _ = pycolmap.undistort_image(
            pycolmap.UndistortCameraOptions(),
            pycolmap.Bitmap.from_array(np.ascontiguousarray(pixels)),
            camera,
        )
    pinhole, (left, top) = pinhole_of(camera)
    whole = np.asarray(bitmap.to_array())
    return np.ascontiguousarray(whole[top : top + pinhole.height, left : left + pinhole.width])


def pinhole_of(camera: pycolmap.Camera) -> tuple[pycolmap.Camera, tuple[int, int]]:
    """The camera of an undistorted photo, PINHOLE with its principal point in the middle.

    Several programs take it to be there, whatever the file says. Columns and rows on one side of
    the photo that COLMAP undistorts are cut off for that, so that it is within half a pixel; but
    not more than a quarter of a side: where it is farther off, it stays there.

    Returns:
        The camera, and the columns and rows that are cut off at the left and above.
    """
    pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    pinhole.camera_id = camera.camera_id
    beyond_x = _to_cut(pinhole.principal_point_x, pinhole.width)
    beyond_y = _to_cut(pinhole.principal_point_y, pinhole.height)
    left, top = max(0, beyond_x), max(0, beyond_y)
    pinhole.width, pinhole.height = pinhole.width - abs(beyond_x), pinhole.height - abs(beyond_y)
    pinhole.principal_point_x -= left
    pinhole.principal_point_y -= top
    return pinhole, (left, top)


def _to_cut(place: float, side: int) -> int:
    """Pixels to cut off a side for its place to be in the middle; negative: off its end."""
    beyond = round(2 * place) - side
    return beyond if abs(beyond) <= side * _MOST_CUT else 0


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """The mean of each square of `factor` pixels; what is left at the right and below is cut."""
    height, width = (max(factor, side // factor * factor) for side in pixels.shape[:2])
    size = width // factor, height // factor
    return cv2.resize(pixels[:height, :width], size, interpolation=cv2.INTER_AREA)


def _encoded(pixels: np.ndarray, suffix: str) -> bytes:
    file = io.BytesIO()
    options = {"quality": _QUALITY} if suffix == ".jpg" else {}
    Image.fromarray(pixels).save(file, "JPEG" if suffix == ".jpg" else "PNG", **options)
    return file.getvalue()


def _take_rigs_apart(model: pycolmap.Reconstruction) -> None:
    """Gives each image of a model a frame of its own."""
    rigs, frames = [], []
    for camera in model.cameras.values():
        rig = pycolmap.Rig(rig_id=camera.camera_id)
        rig.add_ref_sensor(camera.sensor_id)
        rigs.append(rig)
    for image in model.images.values():
        frame = pycolmap.Frame(frame_id=image.image_id, rig_id=image.camera_id)
        frame.add_data_id(image.data_id)
        if image.has_pose:
            frame.rig_from_world = image.cam_from_world()
        frames.append(frame)
    model.set_rigs_and_frames(rigs, frames)


def _undistort_model(model: pycolmap.Reconstruction) -> None:
    """Gives all cameras of a model the camera model PINHOLE, and moves the keypoints."""
    before = {camera_id: pycolmap.Camera(c.todict()) for camera_id, c in model.cameras.items()}
    for camera_id, camera in before.items():
        model.cameras[camera_id], _ = pinhole_of(camera)
    for image in posed_images(model).values():
        if not image.num_points2D():
            continue
        xy = np.array([point.xy for point in image.points2D])
        rays = np.asarray(before[image.camera_id].cam_from_img(xy), float).reshape(-1, 2)
        moved = model.cameras[image.camera_id].img_from_cam(np.c_[rays, np.ones(len(rays))])
        for point, place in zip(image.points2D, np.asarray(moved), strict=True):
            point.xy = place

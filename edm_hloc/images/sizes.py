"""Cameras of one size of photo, brought to photos that are stored in another size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pycolmap

from edm_hloc.base.colmap import posed_images, with_cameras
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.log import warn_once
from edm_hloc.base.progress import track
from edm_hloc.base.text_models import lens_fault
from edm_hloc.images.decode import photo_size

FAR_FROM_MIDDLE = 0.15  # of a side; a principal point is nearer in all but cropped photos
_ROUNDING = 1.0  # px by which a side may miss the common factor: programs round, cut or fill up


def camera_for_size(
    camera: pycolmap.Camera, size: tuple[int, int], photo: Path, source: str
) -> pycolmap.Camera:
    """A camera for a photo that may be reduced or enlarged.

    Args:
        camera: intrinsics for a photo of `camera.width` × `camera.height` pixels; both are 0 if
            that is not known.
        size: (width, height) of the photo as stored.
        photo: the file, for the error message.
        source: where the camera comes from, as "the model sparse/0" or "the known intrinsics".

    Returns:
        The camera itself for a photo of its size; a scaled copy for one whose width and height
        differ by one factor.

    Raises:
        EdmHlocError: the photo was turned or cropped: the sizes differ otherwise; or a camera of
            unknown size looks past the middle of the photo; or the camera cannot be.
    """
    if reason := lens_fault(camera):
        raise EdmHlocError(f"The camera of {photo.name} in {source} cannot be: {reason}.")
    width, height = size
    if not camera.width:
        return _of_unknown_size(camera, size, photo)
    if size == (camera.width, camera.height):
        return camera
    if _one_factor(camera, width, height):
        scaled = pycolmap.Camera(camera.todict())
        scaled.rescale(width, height)
        return scaled
    sizes = (
        f"The camera of {photo.name} in {source} is for {camera.width} × {camera.height} pixels, "
        f"but {photo} has {width} × {height}"
    )
    if _one_factor(camera, height, width):
        raise EdmHlocError(
            f"{sizes}: one of the two was turned by 90°. Take the photo as it was when these "
            "intrinsics were made, often by not applying its EXIF orientation, or leave it out."
        )
    raise EdmHlocError(
        f"{sizes}, which no single factor explains: it was cropped, or is another photo. Take the "
        "photo that these intrinsics were made for, or a copy reduced as a whole, or leave it out."
    )


def camera_for_network(
    camera: pycolmap.Camera, size: tuple[int, int], photo: Path, source: str
) -> pycolmap.Camera:
    """`camera_for_size`, also for what feed-forward networks did to a photo to read it.

    Those with patches of 14 px squeeze the shorter side to a multiple of 14 (VGGT: 518 × 392), and
    those of 16 px cut it to one (DUSt3R, MASt3R: 512 × 336), the same on both sides.

    Args:
        camera, size, photo, source: as for `camera_for_size`.

    Raises:
        EdmHlocError: as `camera_for_size`.
    """
    width, height = size
    if not camera.width or _one_factor(camera, width, height):
        return camera_for_size(camera, size, photo, source)
    factor = max(size) / max(camera.width, camera.height)
    missing = width / factor - camera.width, height / factor - camera.height
    for patch, cut in ((14, False), (16, True)):
        fits = camera.width % patch == 0 and camera.height % patch == 0
        if not fits or max(map(abs, missing)) > (patch if cut else patch / 2) + _ROUNDING:
            continue
        changed = pycolmap.Camera(camera.todict())
        if cut:
            changed.width, changed.height = (round(side / factor) for side in size)
            changed.principal_point_x += missing[0] / 2
            changed.principal_point_y += missing[1] / 2
        elif changed.model_name == "SIMPLE_PINHOLE":  # a second focal length for the other side
            focal, *centre = camera.params
            changed.model = pycolmap.CameraModelId.PINHOLE
            changed.params = [focal, focal, *centre]
        changed.rescale(width, height)
        return changed
    return camera_for_size(camera, size, photo, source)  # says what does not fit


def _of_unknown_size(
    camera: pycolmap.Camera, size: tuple[int, int], photo: Path
) -> pycolmap.Camera:
    """The camera for a photo of `size`, of which its principal point must be near the middle."""
    centre = camera.principal_point_x, camera.principal_point_y
    if any(abs(c / side - 0.5) > FAR_FROM_MIDDLE for c, side in zip(centre, size, strict=True)):
        raise EdmHlocError(
            "The known intrinsics do not tell the size of the photos that they are for, and "
            f"{photo} has {size[0]} × {size[1]} pixels, far from whose middle their principal "
            f"point is ({centre[0]:.0f}, {centre[1]:.0f}). Add the size to their file: "
            "image_width: W and image_height: H."
        )
    sized = pycolmap.Camera(camera.todict())
    sized.width, sized.height = size
    return sized


def _one_factor(camera: pycolmap.Camera, width: int, height: int) -> bool:
    """Whether one factor brings the camera's size to this one, but for rounding."""
    sides = ((width, camera.width), (height, camera.height))
    least = max((side - _ROUNDING) / max(1, own) for side, own in sides)
    most = min((side + _ROUNDING) / max(1, own) for side, own in sides)
    return least < most


class Scaled(NamedTuple):
    """A camera that was scaled: the photo's name, the camera before, and after."""

    name: str
    before: pycolmap.Camera
    after: pycolmap.Camera


def warn_of_scaled(scaled: Iterable[Scaled], source: str) -> None:
    """Says which cameras were scaled, with one warning for each two sizes, once."""
    names = defaultdict(list)
    for name, before, after in scaled:
        names[before.width, before.height, after.width, after.height].append(name)
    for (width, height, new_width, new_height), of_size in names.items():
        more = f" and {len(of_size) - 1} more" if len(of_size) > 1 else ""
        has = "have" if source.endswith("intrinsics") else "has"
        if not width:
            warn_once(
                f"{source[0].upper()}{source[1:]} do not tell the size of their photos: they are "
                f"taken to be for {new_width} × {new_height} pixels, as {of_size[0]}{more} "
                f"{'have' if more else 'has'}."
            )
            continue
        warn_once(
            f"{source[0].upper()}{source[1:]} {has} cameras for {width} × {height} pixels, but "
            f"{of_size[0]}{more} {'have' if more else 'has'} {new_width} × {new_height}: the "
            f"cameras were scaled by {max(new_width, new_height) / max(width, height):.4g}."
        )


def cameras_for_photos(
    root: Path, cameras: Mapping[str, pycolmap.Camera], source: str
) -> dict[str, pycolmap.Camera]:
    """Cameras for the photos as they are stored, scaled where they need it, with a warning.

    Args:
        root: folder of the photos, of which only the headers are read.
        cameras: by the photo's name. A shared one is one object, and so is what becomes of it.
        source: where they come from, see `camera_for_size`.

    Returns:
        Cameras by name; photos that are missing or cannot be read are left out.

    Raises:
        EdmHlocError: a photo does not fit its camera, see `camera_for_size`.
    """
    fitted: dict[str, pycolmap.Camera] = {}
    of_size: dict[tuple[int, tuple[int, int]], pycolmap.Camera] = {}
    for name, camera in track(cameras.items(), "Reading photo sizes", "photo"):
        try:
            size = photo_size(Path(root) / name)
        except ImageError:
            continue
        key = id(camera), size
        if key not in of_size:
            of_size[key] = camera_for_size(camera, size, Path(root) / name, source)
        fitted[name] = of_size[key]
    scaled = [Scaled(n, cameras[n], c) for n, c in fitted.items() if c is not cameras[n]]
    warn_of_scaled(scaled, source)
    return fitted


def fit_model(
    model: pycolmap.Reconstruction, root: Path, source: str
) -> tuple[pycolmap.Reconstruction, dict[str, tuple[int, int]]]:
    """A model for its photos as they are stored: cameras and keypoints scaled where needed.

    Args:
        model: changed in place, unless photos of one camera come in several sizes.
        root: folder of its photos. Those that are missing or cannot be read count as unchanged; in
            a model with rigs, which cannot be taken apart for them, as their camera's others.
        source: where it comes from, see `camera_for_size`.

    Returns:
        The model, and by name the (width, height) of the photos whose camera was scaled.

    Raises:
        EdmHlocError: a photo does not fit its camera, see `camera_for_size`; or cameras in a rig
            took photos of several sizes.
    """
    posed = posed_images(model)
    before = {name: model.cameras[image.camera_id] for name, image in posed.items()}
    found = cameras_for_photos(root, before, source)
    after = before | found
    if _has_rigs(model):
        of_camera = {posed[name].camera_id: camera for name, camera in found.items()}
        for name in before.keys() - found.keys():
            after[name] = of_camera.get(posed[name].camera_id, before[name])
    scaled = {n: (c.width, c.height) for n, c in after.items() if c is not before[n]}
    if not scaled:
        return model, {}
    needed: dict[int, dict[tuple[int, int], pycolmap.Camera]] = defaultdict(dict)
    for name, camera in after.items():
        needed[posed[name].camera_id][camera.width, camera.height] = camera
    for name, (width, height) in scaled.items():
        factors = width / before[name].width, height / before[name].height
        for point in posed[name].points2D:
            point.xy = point.xy * factors
    if any(len(cameras) > 1 for cameras in needed.values()):
        size_of = {name: (camera.width, camera.height) for name, camera in after.items()}
        return _with_more_cameras(model, needed, size_of, source), scaled
    for camera_id, cameras in needed.items():
        (size,) = cameras
        model.cameras[camera_id].rescale(*size)
    return model, scaled


def _has_rigs(model: pycolmap.Reconstruction) -> bool:
    return any(rig.num_sensors() > 1 for rig in model.rigs.values())


def _with_more_cameras(
    model: pycolmap.Reconstruction,
    needed: Mapping[int, Mapping[tuple[int, int], pycolmap.Camera]],
    size_of: Mapping[str, tuple[int, int]],
    source: str,
) -> pycolmap.Reconstruction:
    """A model's posed images and points with a camera for each size of photo.

    Args:
        model: its keypoints are those of the photos already.
        needed: cameras by id in the model and size; the first of each keeps the id.
        size_of: (width, height) of each posed image, by name.
        source: for the error message.

    Raises:
        EdmHlocError: several cameras are in one rig, which would have to be taken apart.
    """
    if _has_rigs(model):
        raise EdmHlocError(
            f"{source[0].upper()}{source[1:]} has cameras in rigs, and its photos come in several "
            "sizes for one camera: bring all photos of a camera to one size."
        )
    next_id, copies = max(model.cameras) + 1, []
    ids = {}
    for camera_id, cameras in needed.items():
        for number, (size, camera) in enumerate(cameras.items()):
            copy = pycolmap.Camera(camera.todict())
            copy.camera_id = camera_id if number == 0 else next_id
            next_id += number > 0
            ids[camera_id, size] = copy.camera_id
            copies.append(copy)
    posed = posed_images(model)
    camera_of = {i.image_id: ids[i.camera_id, size_of[name]] for name, i in posed.items()}
    return with_cameras(model, copies, camera_of)

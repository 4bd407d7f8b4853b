"""COLMAP's models, with or without points."""

from __future__ import annotations

import shutil
from pathlib import Path

from edm_hloc.base.colmap import is_model, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import scratch_folder
from edm_hloc.base.log import warn_once
from edm_hloc.interop.poses.given import GivenPose, PhotosAtHand

_PARTS = ("cameras", "images")
_NO_POINTS = {".txt": b"", ".bin": bytes(8)}  # points3D of none


def colmap_folder(path: Path) -> Path | None:
    """The folder of a COLMAP model that may lack its points; None if it is none."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and (path.stem not in _PARTS or path.suffix not in _NO_POINTS):
        return None
    has_images = any((folder / f"images{end}").is_file() for end in _NO_POINTS)
    return folder if has_images else None


def read_colmap(path: Path, photos: PhotosAtHand) -> list[GivenPose]:
    """Poses and intrinsics of a model; its points are not read where a file of them is missing.

    Raises:
        EdmHlocError: the model is damaged, or cameras are missing.
    """
    folder = colmap_folder(path)
    assert folder is not None
    if is_model(folder):
        return _of_model(folder, photos)
    suffix = next(end for end in _NO_POINTS if (folder / f"images{end}").is_file())
    if not (folder / f"cameras{suffix}").is_file():
        raise EdmHlocError(
            f"{folder} has images{suffix} but no cameras{suffix}: put the cameras of the same "
            "model beside it."
        )
    with scratch_folder() as scratch:
        for part in _PARTS:
            shutil.copyfile(folder / f"{part}{suffix}", scratch / f"{part}{suffix}")
        (scratch / f"points3D{suffix}").write_bytes(_NO_POINTS[suffix])
        try:
            return _of_model(scratch, photos)
        except EdmHlocError as error:
            raise EdmHlocError(str(error).replace(str(scratch), str(folder))) from error


def _of_model(folder: Path, photos: PhotosAtHand) -> list[GivenPose]:
    model = read_model(folder)
    if any(rig.num_sensors() > 1 for rig in model.rigs.values()):
        warn_once(
            f"{folder} holds cameras in rigs, which are taken apart: each photo gets a pose of its "
            "own. edm-hloc triangulate … --tracks refine keeps the rigs, and so does refine-model."
        )
    cameras = dict(model.cameras)
    posed = posed_images(model)
    return [
        GivenPose(name, image.cam_from_world(), cameras[image.camera_id])
        for name, image in zip(photos.find(list(posed)), posed.values(), strict=True)
        if name is not None
    ]

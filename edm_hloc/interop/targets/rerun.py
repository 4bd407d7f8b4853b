"""A recording for the rerun viewer: points, cameras and photos."""

from __future__ import annotations

from pathlib import PurePosixPath
from types import ModuleType

import numpy as np

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import refuse_other_kinds
from edm_hloc.interop.targets.undistorted import Undistorted

NAME = "scene.rrd"


def load_rerun() -> ModuleType:
    """The module of rerun's SDK. Raises EdmHlocError where it is not installed."""
    try:
        import rerun
    except ImportError as error:
        raise EdmHlocError(
            f"Recordings for rerun need rerun-sdk ({error}): pip install 'edm_hloc[rerun]'."
        ) from None
    return rerun


def write_rerun(undistorted: Undistorted) -> None:
    """Writes scene.rrd; x of COLMAP's cameras points right, y down and z ahead, as rerun is told.

    Raises:
        EdmHlocError: rerun-sdk is not installed, or scene.rrd is a folder, device or pipe.
    """
    rr = load_rerun()
    recording = rr.RecordingStream("edm_hloc")
    path = undistorted.out / NAME
    try:
        refuse_other_kinds(path)
    except OSError as error:
        raise EdmHlocError(f"Cannot write {path}: {error.strerror}.") from error
    temporary = path.with_name(f".{NAME}")
    recording.save(temporary)
    model = undistorted.model
    points = list(model.points3D.values())
    if points:
        xyz = np.array([point.xyz for point in points])
        colours = np.array([point.color for point in points])
        recording.log("world/points", rr.Points3D(xyz, colors=colours), static=True)
    for name, image in posed_images(model).items():
        camera, pose = model.cameras[image.camera_id], image.cam_from_world().inverse()
        entity = f"world/cameras/{PurePosixPath(name).stem}"
        recording.log(
            entity,
            rr.Transform3D(translation=pose.translation, mat3x3=pose.rotation.matrix()),
            static=True,
        )
        lens = rr.Pinhole(
            image_from_camera=camera.calibration_matrix(),
            resolution=[camera.width, camera.height],
            camera_xyz=rr.ViewCoordinates.RDF,
        )
        recording.log(entity, lens, static=True)
        photo = undistorted.out / undistorted.photos / name
        recording.log(entity, rr.EncodedImage(path=photo), static=True)
    recording.flush()
    recording.disconnect()
    temporary.replace(path)

"""COLMAP models and databases: checked reading, statistics, and COLMAP's own log."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from edm_hloc.base.binary_models import check_binary_model
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import scratch_folder
from edm_hloc.base.geometry import far_from_all
from edm_hloc.base.text import has_byte_order_mark, read_text
from edm_hloc.base.text_models import (
    camera_fault,
    check_text_model,
    check_written_text,
    images_txt_in_order,
)

logger = logging.getLogger(__name__)

_PARTS = ("cameras", "images", "points3D")  # the files of a model
_FATAL_ONLY = 3  # COLMAP's log level
_levels: list[int] = []  # of the process' log, before each block that keeps it silent
_levels_lock = threading.Lock()
# COLMAP's errors where a part of a model is missing, some of them only a place in its source
_UNCLEAR = re.compile(r"\[[\w.]+:\d+\]|key was not found|\w+ with ID|vector::|_Map_base|\w+::at")


@contextlib.contextmanager
def quiet_colmap() -> Iterator[None]:
    """Silences COLMAP's own log in a ``with`` block, unless this package logs at DEBUG.

    Blocks of several threads may overlap: the log is back when the last of them has ended.
    """
    with _levels_lock:
        _levels.append(pycolmap.logging.minloglevel)
        if not logger.isEnabledFor(logging.DEBUG):
            pycolmap.logging.minloglevel = _FATAL_ONLY
    try:
        yield
    finally:
        with _levels_lock:
            first = _levels[0]
            _levels.pop()
            if not _levels:
                pycolmap.logging.minloglevel = first


def is_model(path: Path) -> bool:
    """Whether a folder holds a COLMAP model, binary or text."""
    return any(
        all((path / f"{part}{end}").is_file() for part in _PARTS) for end in (".bin", ".txt")
    )


def check_model(path: Path) -> None:
    """Raises EdmHlocError if a folder holds no COLMAP model, without reading the files."""
    path = Path(path)
    if not is_model(path):
        images = (file for file in sorted(path.glob("*/images.*")) if is_model(file.parent))
        largest = max(images, key=lambda file: file.stat().st_size, default=None)
        hint = f" Did you mean {largest.parent}?" if largest else ""
        earlier = path.parent / f".{path.name}.old"
        if not path.exists() and is_model(earlier):  # killed between two renames of a replacement
            hint = f" A command that was killed has left it as {earlier}: rename that to {path}."
        raise EdmHlocError(
            f"No COLMAP model in {path}: cameras, images and points3D, all .bin or all .txt, are "
            f"expected.{hint}"
        )


def read_model(path: Path) -> pycolmap.Reconstruction:
    """Reads a COLMAP model, binary or text, with or without rigs and frames.

    Raises:
        EdmHlocError: the folder holds no model or a damaged one.
    """
    check_model(path)
    path = Path(path)
    binary = all((path / f"{part}.bin").is_file() for part in _PARTS)
    if binary:
        check_binary_model(path)
        model = _load(path, path)
    else:
        model = _read_text_model(path)
    _check_numbers(path, model)
    return model


def _load(folder: Path, path: Path) -> pycolmap.Reconstruction:
    """The model in `folder`, which a message calls `path`."""
    with quiet_colmap():
        try:
            return pycolmap.Reconstruction(folder)
        # pycolmap raises almost anything on damaged files
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            if _UNCLEAR.match(reason):
                reason = (
                    "its files do not fit together, such as an image whose camera is missing "
                    f"({reason}). Copy all of them again, or make the model again."
                )
            raise EdmHlocError(f"The COLMAP model in {path} is damaged: {reason}") from error


def _read_text_model(path: Path) -> pycolmap.Reconstruction:
    """Reads a text model, with its files put in order where they were written by hand.

    COLMAP reads no byte-order mark nor UTF-16, as editors on Windows may write them, and cuts names
    at the first space.
    """
    check_text_model(path)
    images, names = images_txt_in_order(path / "images.txt")
    files = [path / f"{part}.txt" for part in (*_PARTS, "rigs", "frames")]
    with scratch_folder() as scratch:
        folder = path
        try:
            marked = [file for file in files if file.is_file() and has_byte_order_mark(file)]
            if images is not None or marked:
                folder = scratch
                for file in filter(Path.is_file, files):
                    shutil.copyfile(file, folder / file.name)
                for file in marked:
                    text = read_text(file, "part of the model")
                    (folder / file.name).write_text(text, "utf-8")
                if images is not None:
                    (folder / "images.txt").write_text(images, "utf-8")
        except OSError as error:
            raise EdmHlocError(f"Cannot copy {path}: {error.strerror or error}.") from error
        model = _load(folder, path)
    for image_id, image_name in names.items():
        model.images[image_id].name = image_name
    return model


def write_model_files(
    model: pycolmap.Reconstruction, folder: Path, *, text: bool = False, out: Path | None = None
) -> None:
    """Writes COLMAP's files of a model, and looks whether they are whole, as COLMAP does not.

    Args:
        model: the model.
        folder: which exists; files of a model in it are written over.
        text: in COLMAP's text format instead of binary.
        out: what a message calls the folder.

    Raises:
        NoRoomError: the files cannot be written, or are not whole.
    """
    try:
        with quiet_colmap():
            model.write_text(folder) if text else model.write_binary(folder)
        check_written_text(folder) if text else check_binary_model(folder)
    except (EdmHlocError, OSError, RuntimeError, ValueError) as error:
        raise NoRoomError(
            f"Cannot write {out or folder}: COLMAP could not write all of the model, as on a full "
            "disk. Free disk space, then run again: what is already stored is kept."
        ) from error


def _check_numbers(path: Path, model: pycolmap.Reconstruction) -> None:
    """Makes all quaternions have length 1.

    Raises:
        EdmHlocError: a camera or a pose cannot be, or a posed image has no pose in its rig.
    """
    for camera in model.cameras.values():
        reason = camera_fault(camera)
        if reason:
            raise EdmHlocError(
                f"The COLMAP model in {path} is damaged: {reason} (camera {camera.camera_id})."
            )
    for frame in model.frames.values():
        if not frame.has_pose():
            continue
        pose = _with_unit_quaternion(given := frame.rig_from_world)
        if pose is None:
            names = [model.images[d.id].name for d in frame.image_ids if d.id in model.images]
            raise EdmHlocError(
                f"The COLMAP model in {path} is damaged: the pose of {names[0] if names else frame}"
                " is no finite rotation and position."
            )
        if pose is not given:
            frame.rig_from_world = pose
    for rig in model.rigs.values():
        for sensor, given in rig.non_ref_sensors.items():
            if given is None:
                continue
            pose = _with_unit_quaternion(given)
            if pose is None:
                raise EdmHlocError(
                    f"The COLMAP model in {path} is damaged: the pose of the sensor {sensor.id} in "
                    f"the rig {rig.rig_id} is no finite rotation and position."
                )
            if pose is not given:
                rig.set_sensor_from_rig(sensor, pose)
    for name, image in posed_images(model).items():
        rig = model.rigs[model.frames[image.frame_id].rig_id]
        sensor = model.cameras[image.camera_id].sensor_id
        if not rig.is_ref_sensor(sensor) and rig.non_ref_sensors[sensor] is None:
            raise EdmHlocError(
                f"The COLMAP model in {path} is incomplete: the rig {rig.rig_id} does not tell the "
                f"pose of its sensor {sensor.id}, the camera of {name}. Add it to the rigs; or "
                "remove the files rigs and frames, then each image has the pose in the file images."
            )


def _with_unit_quaternion(pose: pycolmap.Rigid3d) -> pycolmap.Rigid3d | None:
    """The pose itself, if it has one, or a copy that has; None if that is not possible."""
    length = float(np.linalg.norm(pose.rotation.quat))
    if not (np.isfinite(pose.translation).all() and np.isfinite(length) and length > 1e-6):
        return None
    if abs(length - 1) <= 1e-12:
        return pose
    return pycolmap.Rigid3d(pycolmap.Rotation3d(pose.rotation.quat / length), pose.translation)


@contextlib.contextmanager
def open_database(path: Path) -> Iterator[pycolmap.Database]:
    """Opens an existing COLMAP database for a ``with`` block.

    Raises:
        EdmHlocError: there is no such file, or it is damaged; as a `NoRoomError`: the disk is full.
    """
    if not path.is_file():
        raise EdmHlocError(f"No COLMAP database {path}.")
    try:
        with quiet_colmap():
            database = pycolmap.Database.open(path)
        try:
            yield database
        finally:
            database.close()
    except RuntimeError as error:
        if not is_of_sqlite(error):
            raise
        if _is_whole(path):
            raise NoRoomError(
                f"The COLMAP database {path} is whole, but cannot be opened: the disk or a quota "
                "is full, or its folder cannot be written, as COLMAP has to. Free some disk space, "
                "then run again."
            ) from error
        raise EdmHlocError(
            f"The COLMAP database {path} is damaged ({error}): delete it, and the same command "
            "makes it anew."
        ) from error


def is_of_sqlite(error: RuntimeError) -> bool:
    """Whether an error of COLMAP's is about reading or writing a database."""
    return any(words in str(error).lower() for words in ("sqlite", "database factory"))


def _is_whole(database: Path) -> bool:
    """Whether SQLite can read a database from beginning to end, without writing beside it."""
    uri = f"{database.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.Error:
        return False


def unposed_model(
    db: pycolmap.Database, min_num_matches: int
) -> tuple[pycolmap.Reconstruction, pycolmap.DatabaseCache]:
    """The cameras, images and keypoints of a database as a model without poses, and its matches.

    Args:
        db: database with verified pairs.
        min_num_matches: pairs with fewer verified matches are left out.
    """
    options = pycolmap.DatabaseCacheOptions()
    options.min_num_matches = min_num_matches
    cache = pycolmap.DatabaseCache.create(db, options)
    model = pycolmap.Reconstruction()
    model.load(cache)
    return model, cache


def take_poses(model: pycolmap.Reconstruction, source: pycolmap.Reconstruction) -> None:
    """Registers the frames of another model, with its poses; those that are registered stay.

    Args:
        model: changed in place.
        source: of frames with the same ids.
    """
    for frame_id in sorted(set(source.reg_frame_ids()) - set(model.reg_frame_ids())):
        model.frames[frame_id].rig_from_world = source.frames[frame_id].rig_from_world
        model.register_frame(frame_id)


def take_intrinsics(camera: pycolmap.Camera, source: pycolmap.Camera) -> None:
    """Gives a camera the camera model and the parameters of another one of the same size."""
    camera.model, camera.params = source.model, list(source.params)


def verified_pairs(db: pycolmap.Database, least: int = 0) -> dict[tuple[int, int], int]:
    """By the ids of their images, the inliers of the pairs that have at least so many."""
    ids, inliers = db.read_two_view_geometry_num_inliers()
    return {
        pycolmap.pair_id_to_image_pair(pair): int(number)
        for pair, number in zip(ids, inliers, strict=True)
        if number >= least
    }


def posed_images(model: pycolmap.Reconstruction) -> dict[str, pycolmap.Image]:
    """The registered images of a model (those with a pose) by name, sorted by name."""
    images = {image.name: image for image in model.images.values() if image.has_pose}
    return dict(sorted(images.items()))


def with_cameras(
    model: pycolmap.Reconstruction,
    cameras: Iterable[pycolmap.Camera],
    camera_of: Mapping[int, int],
) -> pycolmap.Reconstruction:
    """The posed images and the points of a model with other cameras, which are in no rigs.

    Args:
        model: stays as it is.
        cameras: with ids that no two have.
        camera_of: ids of the cameras by those of the images.
    """
    changed = pycolmap.Reconstruction()
    for camera in cameras:
        changed.add_camera_with_trivial_rig(camera)
    for name, image in posed_images(model).items():
        bare = pycolmap.Image(name=name, image_id=image.image_id)
        bare.camera_id = camera_of[image.image_id]
        bare.points2D = image.points2D
        changed.add_image_with_trivial_frame(bare, image.cam_from_world())
    for point_id, point in model.points3D.items():
        changed.add_point3D_with_id(point_id, point)
    return changed


def adjust_all_images(
    model: pycolmap.Reconstruction, constant: Iterable[int] = ()
) -> pycolmap.BundleAdjustmentConfig:
    """The configuration that adjusts all registered images of a model, without a fixed gauge.

    Args:
        model: the model.
        constant: ids of cameras whose intrinsics stay; those that are not in it do not count.
    """
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(model.reg_image_ids()):
        config.add_image(image_id)
    for camera_id in set(constant) & set(model.cameras):
        config.set_constant_cam_intrinsics(camera_id)
    return config


def drop_pointless(model: pycolmap.Reconstruction) -> set[int]:
    """Takes the poses from images that see no point of a model, whose points they do not fit.

    COLMAP's mapper leaves them in models of fewer than 20 photos. Those of a rig stay while one of
    their frame sees a point.

    Returns:
        The ids of the images.
    """
    seeing = {image.frame_id for image in model.images.values() if image.num_points3D}
    without = [i for i in model.reg_image_ids() if model.images[i].frame_id not in seeing]
    for frame_id in sorted({model.images[i].frame_id for i in without}):
        model.deregister_frame(frame_id)
    return set(without)


def centres_of(images: Iterable[pycolmap.Image]) -> np.ndarray:
    """The projection centres (N, 3) of registered images, in the model's frame."""
    return np.array([image.projection_center() for image in images]).reshape(-1, 3)


@dataclass(frozen=True)
class ModelStatistics:
    """Size and accuracy of a model.

    Attributes:
        registered: number of registered images.
        points: number of 3D points.
        mean_track_length: mean number of observations of a point; 0 without points.
        mean_reprojection_error: mean over the points, in pixels of the original photos; 0 without
            points.
        far_from_all: names of the images whose cameras are far from all others, where some are
            wrong and some stood there (`geometry.far_from_all`).
    """

    registered: int
    points: int
    mean_track_length: float
    mean_reprojection_error: float
    far_from_all: Sequence[str] = ()

    @staticmethod
    def of(model: pycolmap.Reconstruction) -> ModelStatistics:
        """Measures a model, whose points' reprojection errors are updated.

        The error of a point is the mean over its observations.
        """
        points = model.num_points3D()
        if points:
            model.update_point_3d_errors()
        posed = posed_images(model)
        far = far_from_all(centres_of(posed.values()))
        return ModelStatistics(
            registered=len(posed),
            points=points,
            mean_track_length=model.compute_mean_track_length() if points else 0.0,
            mean_reprojection_error=model.compute_mean_reprojection_error() if points else 0.0,
            far_from_all=tuple(compress(posed, far)),
        )


def camera_text(camera: pycolmap.Camera) -> str:
    """COLMAP's camera model, width, height and parameters, as in a line of cameras.txt."""
    parameters = (repr(float(parameter)) for parameter in camera.params)
    return " ".join([camera.model_name, str(camera.width), str(camera.height), *parameters])


def camera_to_json(camera: pycolmap.Camera) -> dict[str, Any]:
    """All of a camera in values that JSON knows, without a loss."""
    return {
        "model": camera.model_name,
        "width": camera.width,
        "height": camera.height,
        "params": [float(parameter) for parameter in camera.params],
        "camera_id": camera.camera_id,
        "has_prior_focal_length": camera.has_prior_focal_length,
    }


def camera_from_json(values: Mapping[str, Any]) -> pycolmap.Camera:
    """The camera of `camera_to_json`."""
    return pycolmap.Camera(dict(values))

"""Cameras that are fixed to each other: the photos of a model put into rigs, as COLMAP has them.

A file in the format of COLMAP's `rig_config.json` says which folders of photos are of one rig.
Photos of equal names in these are of one moment, a frame. The file may also give the cameras' poses
in the rig and their intrinsics; what it does not give is taken from the model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, quiet_colmap, with_cameras
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import require_file, scratch_folder
from edm_hloc.base.geometry import largest_distance
from edm_hloc.mapping.triangulation import write_reference

logger = logging.getLogger(__name__)

_SMALLEST_BASELINE = 1e-9  # below which a translation in the rig is none


@dataclass(frozen=True)
class Rigs:
    """What became of the photos of a model.

    Attributes:
        photos: number of those in a frame with others.
        frames: number of these frames.
        given: ids of the cameras whose pose in the rig the file gives.
        calibrated: ids of the cameras whose intrinsics the file gives.
        rotation, position: how far the photos were off their rig, medians: degrees, and % of the
            extent of the cameras.
        scale: by which the model was scaled, as the distances in the file ask; 1 without any.
    """

    photos: int
    frames: int
    given: frozenset[int]
    calibrated: frozenset[int]
    rotation: float
    position: float
    scale: float


def put_in_rigs(model: pycolmap.Reconstruction, file: Path) -> tuple[pycolmap.Reconstruction, Rigs]:
    """Gives the photos of a model the frames of rigs, in which cameras have one pose for all.

    Where the file gives no pose of a camera it is the mean over the frames; a frame's own pose is
    that which its photos have on average. Photos that the file does not name stay as they are.

    Args:
        model: stays as it is.
        file: in the format of COLMAP's `rig_config.json`.

    Returns:
        The model with rigs, and what became of its photos. Points stay where they are.

    Raises:
        EdmHlocError: the file is damaged, or no two photos of the model are of one frame.
    """
    configs = _read(file)
    of_prefix = _photos_by_prefix(model, configs, file)
    model = _with_own_cameras(model, of_prefix)
    before = {name: image.cam_from_world() for name, image in posed_images(model).items()}
    scale = _scale_by_baselines(model, configs, file)
    if scale != 1:
        model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(), np.zeros(3)))
        before = {name: image.cam_from_world() for name, image in posed_images(model).items()}
    _apply(model, configs, file)
    frames = [frame for frame in model.frames.values() if len(frame.data_ids) > 1]
    together = sorted(i.id for frame in frames for i in frame.data_ids)
    if not frames:
        raise EdmHlocError(
            f"No two photos of the model are of one frame of {file}: photos of one moment need the "
            f"same name behind their prefix ({', '.join([*of_prefix][:3])} …)."
        )
    sensors = [c for config in configs for c in config.cameras]
    ids = {
        prefix: {model.images[i].camera_id for i in photos} for prefix, photos in of_prefix.items()
    }
    rotation, position = _moved(model, before, together)
    return model, Rigs(
        photos=len(together),
        frames=len(frames),
        given=frozenset().union(*(ids[c.image_prefix] for c in sensors if c.cam_from_rig)),
        calibrated=frozenset().union(*(ids[c.image_prefix] for c in sensors if c.camera)),
        rotation=rotation,
        position=position,
        scale=scale,
    )


def _read(file: Path) -> list[pycolmap.RigConfig]:
    try:
        require_file(file)
        with quiet_colmap():
            configs = pycolmap.read_rig_config(file)
    except OSError as error:
        raise EdmHlocError(f"Cannot read {file}: {error.strerror or error}.") from error
    except Exception as error:  # COLMAP raises almost anything
        raise EdmHlocError(
            f'{file} is damaged or no configuration of rigs: a list of objects with "cameras", '
            f'each with an "image_prefix", one of them the "ref_sensor" ({error}).'
        ) from error
    if not configs:
        raise EdmHlocError(f"{file} describes no rig.")
    return list(configs)


def _photos_by_prefix(
    model: pycolmap.Reconstruction, configs: Sequence[pycolmap.RigConfig], file: Path
) -> dict[str, list[int]]:
    """Ids of the registered images by the prefix of their name, each once.

    Cameras of which the model has no photo are taken out of the configurations, with a warning.
    """
    prefixes = [camera.image_prefix for config in configs for camera in config.cameras]
    found: dict[str, list[int]] = {prefix: [] for prefix in prefixes}
    for name, image in posed_images(model).items():
        fits = [prefix for prefix in prefixes if name.startswith(prefix)]
        if fits:
            found[max(fits, key=len)].append(image.image_id)
    for config in configs:
        empty = [c.image_prefix for c in config.cameras if not found[c.image_prefix]]
        reference = next(c.image_prefix for c in config.cameras if c.ref_sensor)
        if reference in empty:
            first = next(iter(posed_images(model)), "none")
            raise EdmHlocError(
                f"No photo of the model is named {reference}…, as {file} says of the reference "
                f"camera; the first is {first!r}. Names are relative to the folder of the photos."
            )
        for prefix in empty:
            logger.warning("No photo of the model is named %s…, as %s says.", prefix, file)
        config.cameras = [c for c in config.cameras if c.image_prefix not in empty]
    return {prefix: photos for prefix, photos in found.items() if photos}


def _with_own_cameras(
    model: pycolmap.Reconstruction, of_prefix: Mapping[str, Sequence[int]]
) -> pycolmap.Reconstruction:
    """The model with a camera for each of a rig, which other photos do not have."""
    camera_of = {image.image_id: image.camera_id for image in posed_images(model).values()}
    in_rigs = {i for photos in of_prefix.values() for i in photos}
    cameras = {c: pycolmap.Camera(model.cameras[c].todict()) for c in set(camera_of.values())}
    taken = {c for i, c in camera_of.items() if i not in in_rigs}
    for photos in of_prefix.values():
        own = camera_of[photos[0]]
        if own in taken:
            copy = pycolmap.Camera(cameras[own].todict())
            copy.camera_id = own = max(cameras) + 1
            cameras[own] = copy
        taken.add(own)
        camera_of |= dict.fromkeys(photos, own)
    used = set(camera_of.values())
    return with_cameras(model, [c for i, c in sorted(cameras.items()) if i in used], camera_of)


def _scale_by_baselines(
    model: pycolmap.Reconstruction, configs: Sequence[pycolmap.RigConfig], file: Path
) -> float:
    """By what the model is to be scaled for the distances in the rigs that the file gives."""
    given = {
        camera.image_prefix: float(np.linalg.norm(camera.cam_from_rig.translation))
        for config in configs
        for camera in config.cameras
        if camera.cam_from_rig
    }
    if max(given.values(), default=0.0) < _SMALLEST_BASELINE:
        return 1.0
    derived = pycolmap.Reconstruction(model)
    free = [pycolmap.RigConfig(config.todict()) for config in configs]
    for config in free:
        for camera in config.cameras:
            camera.cam_from_rig = None
    _apply(derived, free, file)
    lengths = {
        sensor.id: float(np.linalg.norm(pose.translation))
        for rig in derived.rigs.values()
        for sensor, pose in rig.non_ref_sensors.items()
        if pose
    }
    found = {
        prefix: lengths.get(image.camera_id, 0.0)
        for image in posed_images(derived).values()
        for prefix in given
        if image.name.startswith(prefix)
    }
    there = [(given[p], found.get(p, 0.0)) for p in given if given[p] >= _SMALLEST_BASELINE]
    ratios = [told / length for told, length in there if length > 0]
    return float(np.median(ratios)) if ratios else 1.0


def _apply(
    model: pycolmap.Reconstruction, configs: Sequence[pycolmap.RigConfig], file: Path
) -> None:
    """COLMAP's own application of rigs to a model, which wants a database beside it."""
    with (
        scratch_folder() as folder,
        quiet_colmap(),
        pycolmap.Database.open(folder / "database.db") as db,
    ):
        write_reference(db, model)
        try:
            pycolmap.apply_rig_config(configs, db, model)
        except Exception as error:  # COLMAP raises almost anything
            raise EdmHlocError(f"{file} does not fit the model: {error}.") from error


def _moved(
    model: pycolmap.Reconstruction, before: dict[str, pycolmap.Rigid3d], which: Sequence[int]
) -> tuple[float, float]:
    """Median rotation in degrees and distance in % of the extent by which photos were moved."""
    extent = largest_distance(np.array([p.inverse().translation for p in before.values()]))
    rotations, distances = [], []
    for i in which:
        image = model.images[i]
        change = image.cam_from_world() * before[image.name].inverse()
        rotations.append(np.degrees(change.rotation.angle()))
        distances.append(
            np.linalg.norm(image.projection_center() - before[image.name].inverse().translation)
        )
    return float(np.median(rotations)), float(100 * np.median(distances) / max(extent, 1e-300))

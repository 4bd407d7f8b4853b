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
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import posed_images, quiet_colmap, with_cameras
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import scratch_folder
from edm_hloc.base.geometry import largest_distance
from edm_hloc.images.sizes import FAR_FROM_MIDDLE
from edm_hloc.mapping.rig_files import read_rigs
from edm_hloc.mapping.triangulation import write_reference

logger = logging.getLogger(__name__)

_SMALLEST_BASELINE = 1e-9  # below which a translation in the rig is none
_IMPOSSIBLE = 10.0  # degrees off their rig, of most photos


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
        residuals: median reprojection errors of the same observations in pixels, before and after
            the model was adjusted in its rigs (see `tracks.adjustment.in_rigs`).
        off: names of the photos that agree far worse with the others than without their rig.
    """

    photos: int
    frames: int
    given: frozenset[int]
    calibrated: frozenset[int]
    rotation: float
    position: float
    scale: float
    residuals: tuple[float, float] = (0.0, 0.0)
    off: tuple[str, ...] = ()


def put_in_rigs(model: pycolmap.Reconstruction, file: Path) -> tuple[pycolmap.Reconstruction, Rigs]:
    """Gives the photos of a model the frames of rigs, in which cameras have one pose for all.

    Where the file gives no pose of a camera it is the mean over the frames; a frame's own pose is
    that which its photos have on average. Photos that the file does not name stay as they are, but
    in no rig.

    Args:
        model: stays as it is.
        file: in the format of COLMAP's `rig_config.json`.

    Returns:
        The model with rigs, and what became of its photos. Points stay where they are.

    Raises:
        EdmHlocError: the file is damaged, or no two photos of the model are of one frame, or they
            contradict the file.
    """
    configs = read_rigs(file)
    of_prefix = _photos_by_prefix(model, configs, file)
    _warn_of_other_rigs(model, of_prefix, file)
    model = _with_own_cameras(model, of_prefix, file)
    frames = [_frames(model, config, of_prefix) for config in configs]
    _check_frames(configs, frames, file)
    scale = _scale_by_baselines(model, configs, frames, file)
    if scale != 1:
        larger = pycolmap.Sim3d()
        larger.scale = scale
        model.transform(larger)
    before = {name: image.cam_from_world() for name, image in posed_images(model).items()}
    _apply(model, configs, frames, file)
    together = [f for of_rig in frames for f in of_rig if len(f) > 1]
    sensors = [c for config in configs for c in config.cameras]
    ids = {prefix: model.images[photos[0]].camera_id for prefix, photos in of_prefix.items()}
    calibrated = {c.image_prefix: ids[c.image_prefix] for c in sensors if c.camera}
    _check_intrinsics(model, calibrated, file)
    _average_frames(model, before, together)
    rotation, position = _moved(model, before, [i for f in together for i in f.values()])
    if rotation > _IMPOSSIBLE:
        raise EdmHlocError(
            f"The photos of the model are {rotation:.0f}° (median) off the rigs of {file}: its "
            "poses have to be cam_from_rig, not their inverses, and photos of one moment have to "
            "have the same name behind their prefix. Or the model is wrong."
        )
    return model, Rigs(
        photos=sum(map(len, together)),
        frames=len(together),
        given=frozenset(ids[c.image_prefix] for c in sensors if c.cam_from_rig),
        calibrated=frozenset(calibrated.values()),
        rotation=rotation,
        position=position,
        scale=scale,
    )


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


def _warn_of_other_rigs(
    model: pycolmap.Reconstruction, of_prefix: Mapping[str, Sequence[int]], file: Path
) -> None:
    """Says which photos lose a rig that they have in the model."""
    named = {i for photos in of_prefix.values() for i in photos}
    lost = [
        name
        for name, image in posed_images(model).items()
        if image.image_id not in named and len(model.frames[image.frame_id].data_ids) > 1
    ]
    if lost:
        logger.warning(
            "The model has %d photos in rigs that %s does not describe, such as %s: these rigs are "
            "taken apart. Describe all rigs in one file to keep them.",
            *(len(lost), file, lost[0]),
        )


def _with_own_cameras(
    model: pycolmap.Reconstruction, of_prefix: Mapping[str, Sequence[int]], file: Path
) -> pycolmap.Reconstruction:
    """The model with a camera for each of a rig, which other photos do not have.

    Of several that its photos have in the model it is the one with the median focal length.
    """
    camera_of = {image.image_id: image.camera_id for image in posed_images(model).values()}
    in_rigs = {i for photos in of_prefix.values() for i in photos}
    cameras = {c: pycolmap.Camera(model.cameras[c].todict()) for c in set(camera_of.values())}
    taken = {c for i, c in camera_of.items() if i not in in_rigs}
    for prefix, photos in of_prefix.items():
        its = sorted((cameras[camera_of[i]] for i in photos), key=pycolmap.Camera.mean_focal_length)
        sizes = sorted({(camera.width, camera.height) for camera in its})
        if len(sizes) > 1:
            text = ", ".join(f"{width} × {height}" for width, height in sizes[:3])
            raise EdmHlocError(
                f"The photos {prefix}… are of one camera of a rig, as {file} says, but have "
                f"several sizes ({text} px): bring them to one size, or leave some out."
            )
        own = its[len(its) // 2].camera_id
        if own in taken:
            copy = pycolmap.Camera(cameras[own].todict())
            copy.camera_id = own = max(cameras) + 1
            cameras[own] = copy
        taken.add(own)
        camera_of |= dict.fromkeys(photos, own)
    used = set(camera_of.values())
    return with_cameras(model, [c for i, c in sorted(cameras.items()) if i in used], camera_of)


def _frames(
    model: pycolmap.Reconstruction,
    config: pycolmap.RigConfig,
    of_prefix: Mapping[str, Sequence[int]],
) -> list[dict[str, int]]:
    """Of each frame of a rig, the ids of its photos by prefix."""
    frames: dict[str, dict[str, int]] = {}
    for prefix in (camera.image_prefix for camera in config.cameras):
        for i in of_prefix[prefix]:
            frames.setdefault(model.images[i].name.removeprefix(prefix), {})[prefix] = i
    return list(frames.values())


def _check_frames(
    configs: Sequence[pycolmap.RigConfig], frames: Sequence[Sequence[dict[str, int]]], file: Path
) -> None:
    """Raises EdmHlocError where the photos do not tell the pose of a camera that has none."""
    if not any(len(frame) > 1 for of_rig in frames for frame in of_rig):
        prefixes = [camera.image_prefix for config in configs for camera in config.cameras]
        raise EdmHlocError(
            f"No two photos of the model are of one frame of {file}: photos of one moment need the "
            f"same name behind their prefix ({', '.join(prefixes[:3])} …)."
        )
    for config, of_rig in zip(configs, frames, strict=True):
        reference = next(c.image_prefix for c in config.cameras if c.ref_sensor)
        for camera in config.cameras:
            prefix = camera.image_prefix
            if camera.ref_sensor or camera.cam_from_rig or len(config.cameras) == 1:
                continue
            if not any(prefix in frame and reference in frame for frame in of_rig):
                raise EdmHlocError(
                    f"The model has no two photos of one frame named {reference}… and {prefix}…, "
                    f"from which the pose of the latter could be found: give it in {file}, or make "
                    "another camera the reference."
                )


def _scale_by_baselines(
    model: pycolmap.Reconstruction,
    configs: Sequence[pycolmap.RigConfig],
    frames: Sequence[Sequence[dict[str, int]]],
    file: Path,
) -> float:
    """By what the model is to be scaled for the distances in the rigs that the file gives.

    The median over the frames, in each of which the model's distances are measured along those of
    the file, so that errors of the cameras do not lengthen them.
    """
    found = []
    for config, of_rig in zip(configs, frames, strict=True):
        poses = {c.image_prefix: c.cam_from_rig for c in config.cameras if c.cam_from_rig}
        poses |= {c.image_prefix: pycolmap.Rigid3d() for c in config.cameras if c.ref_sensor}
        for frame in of_rig:
            squared = along = 0.0
            known = sorted(poses.keys() & frame.keys())
            for n, a in enumerate(known):
                for b in known[:n]:
                    told = (poses[b] * poses[a].inverse()).inverse().translation
                    own = [model.images[frame[i]].cam_from_world() for i in (a, b)]
                    squared += float(told @ told)
                    along += float(told @ (own[1] * own[0].inverse()).inverse().translation)
            if squared > _SMALLEST_BASELINE**2:
                found.append(along / squared)
    if not found:
        return 1.0
    measured = float(np.median(found))
    if measured <= 0:
        raise EdmHlocError(
            f"The poses of cameras in {file} contradict the model: it has them on the other side "
            "of each other. They have to be cam_from_rig, not their inverses."
        )
    return 1 / measured


def _apply(
    model: pycolmap.Reconstruction,
    configs: Sequence[pycolmap.RigConfig],
    frames: Sequence[Sequence[dict[str, int]]],
    file: Path,
) -> None:
    """COLMAP's own application of rigs to a model, which wants a database beside it.

    COLMAP takes the first prefix with which a name begins, and looks for it in the rest as well:
    names that tell camera and frame alone stand in for the photos' own.
    """
    names = {image.image_id: image.name for image in model.images.values()}
    numbered = [pycolmap.RigConfig(config.todict()) for config in configs]
    for image in model.images.values():
        image.name = f"{image.image_id}"
    for r, (config, of_rig) in enumerate(zip(numbered, frames, strict=True)):
        cameras = list(config.cameras)
        for c, camera in enumerate(cameras):
            prefix, camera.image_prefix = camera.image_prefix, f"{r}-{c}:"
            for f, frame in enumerate(of_rig):
                if prefix in frame:
                    model.images[frame[prefix]].name = f"{camera.image_prefix}{f}"
        config.cameras = cameras
    with (
        scratch_folder() as folder,
        quiet_colmap(),
        pycolmap.Database.open(folder / "database.db") as db,
    ):
        write_reference(db, model)
        try:
            pycolmap.apply_rig_config(numbered, db, model)
        except Exception as error:  # COLMAP raises almost anything
            raise EdmHlocError(f"{file} does not fit the model: {error}.") from error
    for image in model.images.values():
        image.name = names[image.image_id]


def _check_intrinsics(
    model: pycolmap.Reconstruction, calibrated: Mapping[str, int], file: Path
) -> None:
    """Raises EdmHlocError if intrinsics of the file are for photos of another size."""
    for prefix, i in calibrated.items():
        camera = model.cameras[i]
        x, y, w, h = camera.principal_point_x, camera.principal_point_y, camera.width, camera.height
        if max(abs(x / w - 0.5), abs(y / h - 0.5)) > FAR_FROM_MIDDLE:
            raise EdmHlocError(
                f"The camera_params of {prefix} in {file} are for photos of another size: their "
                f"principal point ({x:.0f}, {y:.0f}) is far from the middle of {w} × {h} pixels. "
                "Give those of these photos, or leave out camera_model_name and camera_params."
            )


def _average_frames(
    model: pycolmap.Reconstruction,
    before: Mapping[str, pycolmap.Rigid3d],
    frames: Sequence[Mapping[str, int]],
) -> None:
    """Gives frames the mean of the poses that their photos had; COLMAP takes that of the last."""
    for images in ([model.images[i] for i in frame.values()] for frame in frames):
        frame = model.frames[images[0].frame_id]
        world_from_rig = (frame.rig_from_world or pycolmap.Rigid3d()).inverse()
        poses = [before[i.name].inverse() * i.cam_from_world() * world_from_rig for i in images]
        rotation = Rotation.from_matrix([p.rotation.matrix() for p in poses]).mean()
        place = np.mean([p.translation for p in poses], axis=0)
        pose = np.column_stack([rotation.as_matrix(), place])
        frame.rig_from_world = pycolmap.Rigid3d(pose).inverse()


def _moved(
    model: pycolmap.Reconstruction, before: dict[str, pycolmap.Rigid3d], which: Sequence[int]
) -> tuple[float, float]:
    """Median rotation in degrees and distance in % of the extent by which photos were moved."""
    world_from_cam = {name: pose.inverse() for name, pose in before.items()}
    extent = largest_distance(np.array([pose.translation for pose in world_from_cam.values()]))
    rotations, distances = [], []
    for image in (model.images[i] for i in which):
        was = world_from_cam[image.name]
        rotations.append(np.degrees((image.cam_from_world() * was).rotation.angle()))
        distances.append(np.linalg.norm(image.projection_center() - was.translation))
    return float(np.median(rotations)), float(100 * np.median(distances) / max(extent, 1e-300))

"""Photos that the mapper did not take, tried once more against a model that has become better."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import open_database, posed_images, take_intrinsics, unposed_model
from edm_hloc.base.files import scratch_folder
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.completion import register_next_images
from edm_hloc.mapping.parts import part_cameras, share_cameras
from edm_hloc.mapping.plausible import allow_cameras, is_bogus


@dataclass(frozen=True)
class LeftOut:
    """Photos that are in no model.

    Attributes:
        database: COLMAP database with verified pairs, of which the model was made.
        names: of the photos.
        known: names of those whose intrinsics stay.
    """

    database: Path
    names: frozenset[str]
    known: frozenset[str] = frozenset()


def register_left_out(
    model: pycolmap.Reconstruction,
    left_out: LeftOut,
    colmap: pycolmap.IncrementalPipelineOptions,
) -> list[str]:
    """Registers photos into a model whose cameras and points stay as they are.

    A photo comes in as in the mapping: by the pose that most of its matches with points of the
    model agree with. It sees those points then; no new ones are made. One whose focal length or
    distortion no lens has stays out.

    Args:
        model: changed; its images and keypoints have the numbers of those of the database.
        left_out: the photos.
        colmap: options of the mapper, those of the model.

    Returns:
        The names of the photos that came in, sorted.
    """
    with scratch_folder() as folder:
        database = _of_its_cameras(model, left_out.database, folder / "database.db")
        with open_database(database) as db:
            whole, cache = unposed_model(db, colmap.min_num_matches)
    of_rigs = {i for f in whole.frames.values() if len(f.data_ids) > 1 for i in _images_of(f)}
    tried = {
        image.image_id
        for image in whole.images.values()
        if image.name in left_out.names and image.image_id not in of_rigs
    }
    if not tried:
        return []
    _take_over(whole, model)
    for camera_id, camera in whole.cameras.items():  # COLMAP refuses other camera models
        take_intrinsics(cache.cameras[camera_id], camera)
    registered = {whole.images[i].camera_id for i in whole.reg_image_ids()}
    known = {whole.images[i].camera_id for i in tried if whole.images[i].name in left_out.known}
    colmap.fix_existing_frames, colmap.constant_cameras = True, registered | known
    allow_cameras(colmap, [whole.cameras[i] for i in sorted(registered | known)])
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(whole)
    with StepProgress("Trying photos that are in no model"):
        register_next_images(mapper, colmap, tried)
    mapper.end_reconstruction(False)
    found = [
        i
        for i in sorted(tried & set(whole.reg_image_ids()))
        if not is_bogus(whole.cameras[whole.images[i].camera_id], colmap)
    ]
    return sorted(_put_in(model, whole, i) for i in found)


def add_image(
    model: pycolmap.Reconstruction, image: pycolmap.Image, camera: pycolmap.Camera
) -> None:
    """Adds a copy of another model's registered image, with its keypoints, which see no point.

    Its camera is added, too, unless the model has one of that id.
    """
    if camera.camera_id not in model.cameras:
        model.add_camera_with_trivial_rig(camera)
    fresh = pycolmap.Image(name=image.name, camera_id=camera.camera_id, image_id=image.image_id)
    fresh.points2D = pycolmap.Point2DList([pycolmap.Point2D(point.xy) for point in image.points2D])
    model.add_image_with_trivial_frame(fresh, image.cam_from_world())


def _images_of(frame: pycolmap.Frame) -> list[int]:
    return [data.id for data in frame.data_ids]


def _of_its_cameras(model: pycolmap.Reconstruction, database: Path, copy: Path) -> Path:
    """The database; a copy where photos share a camera, or do not, if so it is in the model."""
    posed = {image.image_id: image for image in posed_images(model).values()}
    with open_database(database) as db:
        given = {i.image_id: i.camera_id for i in db.read_all_images() if i.image_id in posed}
    in_model: dict[int, list[str]] = defaultdict(list)
    cameras: dict[int, set[int]] = defaultdict(set)
    for image_id, camera_id in given.items():
        in_model[camera_id].append(posed[image_id].name)
        cameras[camera_id].add(posed[image_id].camera_id)
    # of fewer cameras than photos each may have several, those of a rig
    apart = {
        name for i, names in in_model.items() if 1 < len(names) == len(cameras[i]) for name in names
    }
    own = copy.with_name(f"own-{copy.name}")
    if part_cameras(database, own, apart):
        database = own
    ids = {image.camera_id for image in posed.values()}
    number = sum(len(cameras[i]) for i in cameras)
    return copy if len(ids) < number and share_cameras(database, copy) else database


def _take_over(whole: pycolmap.Reconstruction, model: pycolmap.Reconstruction) -> None:
    """Gives the images of a database the poses, cameras, keypoints and points of a model."""
    keypoints, own = {}, {}
    for image_id in sorted(set(model.reg_image_ids()) & set(whole.images)):
        image, same = model.images[image_id], whole.images[image_id]
        take_intrinsics(whole.cameras[same.camera_id], model.cameras[image.camera_id])
        whole.frames[same.frame_id].rig_from_world = image.cam_from_world()
        whole.register_frame(same.frame_id)
        keypoints[image_id], own[image_id] = image.points2D, same.points2D
    for point_id in sorted(model.point3D_ids()):
        point, track = model.points3D[point_id], pycolmap.Track()
        for element in point.track.elements:
            image_id, index = element.image_id, element.point2D_idx
            if index < len(own.get(image_id, ())):
                own[image_id][index].xy = keypoints[image_id][index].xy
                track.add_element(image_id, index)
        if track.length() > 1:
            whole.add_point3D_with_id(
                point_id, pycolmap.Point3D(xyz=point.xyz, color=point.color, track=track)
            )


def _put_in(model: pycolmap.Reconstruction, whole: pycolmap.Reconstruction, image_id: int) -> str:
    """Puts an image into the model, with what it sees of the model's points; gives its name."""
    image = whole.images[image_id]
    like = [i for i in model.reg_image_ids() if i in whole.images]
    of_camera = [i for i in like if whole.images[i].camera_id == image.camera_id]
    camera = whole.cameras[image.camera_id]
    if of_camera:
        camera = model.cameras[model.images[of_camera[0]].camera_id]
    add_image(model, image, camera)
    seen: set[int] = set()
    for index, keypoint in enumerate(image.points2D):
        if keypoint.has_point3D():
            # points may have become one in `whole`, so they are known by what sees them
            elements = whole.points3D[keypoint.point3D_id].track.elements
            point_id = _point_of(model, [(e.image_id, e.point2D_idx) for e in elements])
            if point_id is not None and point_id not in seen:
                model.add_observation(point_id, pycolmap.TrackElement(image_id, index))
                seen.add(point_id)
    return str(image.name)


def _point_of(model: pycolmap.Reconstruction, elements: Collection[tuple[int, int]]) -> int | None:
    """The first point of a model that one of the keypoints sees."""
    for image_id, index in elements:
        if image_id in model.images:
            keypoint = model.images[image_id].points2D[index]
            if keypoint.has_point3D():
                return int(keypoint.point3D_id)
    return None

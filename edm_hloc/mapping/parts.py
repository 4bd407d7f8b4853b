"""Copies of a database for the mapper: of each place alone, with cameras shared or apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edm_hloc.base.colmap import open_database, verified_pairs
from edm_hloc.images.cameras import may_share_cameras
from edm_hloc.mapping.database_reading import IdPair, cameras_by_id

MIN_PART = 3
"""Photos of a model that is written beside a larger one."""


@dataclass(frozen=True)
class Part:
    """Photos that verified pairs connect.

    Attributes:
        database: a COLMAP database that holds these photos; their ids are those of the whole one.
        images: their number.
    """

    database: Path
    images: int


def split_database(database: Path, folder: Path, min_inliers: int) -> list[Part]:
    """Copies each part of a database whose photos verified pairs connect, the largest first.

    What is decided of one place, such as whether its photos determine lens distortion, then does
    not depend on the other places that lie in the same folder of photos.

    Args:
        database: COLMAP database with verified pairs.
        folder: for the copies.
        min_inliers: pairs with fewer verified matches connect nothing and are left out.

    Returns:
        The parts of at least `MIN_PART` photos. Where there is one, or none, nothing is copied and
        the database itself is the only part.
    """
    with open_database(database) as db:
        groups = _connected_images(db, min_inliers)
        large = [group for group in groups if len(group) >= MIN_PART]
        if len(large) < 2:
            return [Part(database, max(map(len, groups), default=0))]
        part_of = {image_id: k for k, group in enumerate(large) for image_id in group}
        parts = [Part(folder / f"part{k}.db", len(group)) for k, group in enumerate(large)]
        pairs = [list[IdPair]() for _ in large]
        for pair in verified_pairs(db, max(1, min_inliers)):
            if pair[0] in part_of:
                pairs[part_of[pair[0]]].append(pair)
        for part, group, its in zip(parts, large, pairs, strict=True):
            copy_images(db, part.database, set(group), its)
    return parts


def _connected_images(db: pycolmap.Database, min_inliers: int) -> list[list[int]]:
    """Ids of the images that verified pairs or common frames connect, the largest group first."""
    images = sorted(db.read_all_images(), key=lambda image: image.image_id)
    frame = {image.image_id: image.frame_id for image in images}
    frames = sorted(set(frame.values()))
    number = {frame_id: k for k, frame_id in enumerate(frames)}
    edges = [
        [number[frame[image_id]] for image_id in pair]
        for pair in verified_pairs(db, max(1, min_inliers))
    ]
    if not edges:
        return []
    rows, columns = np.array(edges).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(frames), len(frames)))
    label = connected_components(graph, directed=False)[1]
    groups: dict[int, list[int]] = {}
    for image_id, frame_id in frame.items():
        groups.setdefault(int(label[number[frame_id]]), []).append(image_id)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def share_cameras(
    database: Path, out: Path, beside: Collection[str] | None = None
) -> tuple[str, ...]:
    """Copies a database such that photos of one size share a camera, where they may be of one.

    Args:
        database: COLMAP database with verified pairs.
        out: the file to write.
        beside: only photos of the size of some of these share a camera; None for all.

    Returns:
        Names of the photos that share one now, see `images.cameras.may_share_cameras`; where there
        are none, nothing is written.
    """
    with open_database(database) as db:
        cameras = cameras_by_id(db)
        images = {image.image_id: image for image in db.read_all_images()}
        groups = may_share_cameras({i.name: cameras[i.camera_id] for i in images.values()})
        if beside is not None:
            groups = [names for names in groups if not set(beside).isdisjoint(names)]
        sharing = {name for names in groups for name in names}
        if not sharing or any(len(frame.data_ids) != 1 for frame in db.read_all_frames()):
            return ()  # no such photos, or photos of a rig
        of_size: dict[tuple[int, int], pycolmap.Camera] = {}
        instead = {}
        for image_id in sorted(i for i, image in images.items() if image.name in sharing):
            camera = cameras[images[image_id].camera_id]
            instead[image_id] = of_size.setdefault((camera.width, camera.height), camera)
        copy_images(db, out, set(images), list(verified_pairs(db)), instead)
    return tuple(sorted(sharing))


def part_cameras(database: Path, out: Path, beside: Collection[str]) -> tuple[str, ...]:
    """Copies a database such that photos that share a camera get one each.

    Args:
        database: COLMAP database with verified pairs.
        out: the file to write.
        beside: only photos that share a camera with some of these get their own.

    Returns:
        Names of the photos that have their own now; where there are none, nothing is written.
    """
    with open_database(database) as db:
        cameras = cameras_by_id(db)
        images = db.read_all_images()
        photos = Counter(image.camera_id for image in images)
        shared = {i.camera_id for i in images if i.name in beside and photos[i.camera_id] > 1}
        if not shared or any(len(frame.data_ids) != 1 for frame in db.read_all_frames()):
            return ()
        instead = {}
        top = max(*cameras, *(rig.rig_id for rig in db.read_all_rigs()))
        for image in images:
            if image.camera_id in shared:
                camera = pycolmap.Camera(cameras[image.camera_id].todict())
                # the same in the copy of a part as in that of the whole
                camera.camera_id = top + image.image_id
                instead[image.image_id] = camera
        ids = {image.image_id for image in images}
        copy_images(db, out, ids, list(verified_pairs(db)), instead)
    return tuple(sorted(image.name for image in images if image.image_id in instead))


def copy_images(
    db: pycolmap.Database,
    out: Path,
    ids: Collection[int],
    pairs: Sequence[IdPair],
    instead: Mapping[int, pycolmap.Camera] | None = None,
) -> None:
    """Writes some images of a database, and some verified pairs of them, into another one.

    Args:
        db: COLMAP database with verified pairs.
        out: the file to write; an older one is replaced.
        ids: of the images.
        pairs: ids of the images of the pairs.
        instead: cameras that images get instead of theirs, by the images' ids; then no frame may
            have two images.
    """
    out.unlink(missing_ok=True)
    instead = instead or {}
    images = {i.image_id: i for i in db.read_all_images() if i.image_id in ids}
    frames = {image.frame_id for image in images.values()}
    rigs = {rig.ref_sensor_id.id: rig for rig in db.read_all_rigs()}
    cameras = cameras_by_id(db)
    for camera in instead.values():
        if camera.camera_id not in cameras:
            cameras[camera.camera_id] = camera
            rigs[camera.camera_id] = pycolmap.Rig(rig_id=camera.camera_id)
            rigs[camera.camera_id].add_ref_sensor(camera.sensor_id)
    data_ids = {}
    part = pycolmap.Database.open(out)
    try:
        with pycolmap.DatabaseTransaction(part):
            for camera in cameras.values():
                part.write_camera(camera, use_camera_id=True)
            for rig in rigs.values():
                part.write_rig(rig, use_rig_id=True)
            for image_id, image in images.items():
                camera_id = instead[image_id].camera_id if image_id in instead else image.camera_id
                bare = pycolmap.Image(name=image.name, image_id=image_id, camera_id=camera_id)
                part.write_image(bare, use_image_id=True)
                data_ids[image_id] = bare.data_id
                if db.exists_keypoints(image_id):
                    part.write_keypoints(image_id, db.read_keypoints(image_id))
            for frame in db.read_all_frames():
                if frame.frame_id not in frames:
                    continue
                if instead:
                    (image_id,) = (data_id.id for data_id in frame.data_ids)
                    rig_id = rigs[data_ids[image_id].sensor_id.id].rig_id
                    frame = pycolmap.Frame(frame_id=frame.frame_id, rig_id=rig_id)
                    frame.add_data_id(data_ids[image_id])
                part.write_frame(frame, use_frame_id=True)
            for prior in db.read_all_pose_priors():
                if prior.corr_data_id.id in ids:
                    prior.corr_data_id = data_ids[prior.corr_data_id.id]
                    part.write_pose_prior(prior, use_pose_prior_id=True)
            for a, b in pairs:
                part.write_two_view_geometry(a, b, db.read_two_view_geometry(a, b))
    finally:
        part.close()

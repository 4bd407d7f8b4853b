"""What the steps of the mapping read of a COLMAP database, by the ids of its cameras and images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import pycolmap

from edm_hloc.base.geometry import homogeneous

IdPair = tuple[int, int]
"""The ids of two images."""

CACHED_IMAGES = 256
"""Images whose keypoints or viewing rays stay in memory, 24 bytes a keypoint."""


def cameras_by_id(db: pycolmap.Database) -> dict[int, pycolmap.Camera]:
    """All cameras of a database."""
    return {camera.camera_id: camera for camera in db.read_all_cameras()}


def cameras_by_image(db: pycolmap.Database) -> dict[int, pycolmap.Camera]:
    """The camera of each image of a database, by the image's id."""
    cameras = cameras_by_id(db)
    return {image.image_id: cameras[image.camera_id] for image in db.read_all_images()}


def keypoints_of(db: pycolmap.Database, image_id: int) -> np.ndarray:
    """(N, 2) float64 keypoints of an image, in COLMAP's pixel frame."""
    return db.read_keypoints(image_id)[:, :2].astype(np.float64)


def ray_reader(
    db: pycolmap.Database, camera_of: Mapping[int, pycolmap.Camera]
) -> Callable[[int], np.ndarray]:
    """A function of an image's id that gives the viewing rays (N, 3) of its keypoints, of depth 1.

    Args:
        db: database with the keypoints; it has to stay open.
        camera_of: by the image's id.
    """

    @lru_cache(CACHED_IMAGES)
    def rays_of(image_id: int) -> np.ndarray:
        points = camera_of[image_id].cam_from_img(keypoints_of(db, image_id))
        return homogeneous(np.asarray(points))

    return rays_of

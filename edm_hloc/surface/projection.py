"""Where points of the world are in a photo; what lies outside of its field of view is nowhere."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pycolmap

from edm_hloc.base.frames import from_colmap, inside

Array = np.ndarray

_DIRECTIONS = 16  # from the optical axis, in which a lens is followed outwards
# tangents of the angle to the axis there
_OUTWARDS = np.concatenate([np.linspace(0, 3, 601), np.geomspace(3, 100, 200)[1:]])


class Projected(NamedTuple):
    """Points of the world in a photo.

    Attributes:
        pixels: (N, 2) in hloc's frame, of the photo as it is stored; NaN where it does not show the
            point, whatever hides it.
        depths: (N,) along the optical axis.
        rays: (N, 3) from the camera to the points, in the frame of the world.
    """

    pixels: Array
    depths: Array
    rays: Array

    @classmethod
    def of(cls, points: Array, camera: pycolmap.Camera, image: pycolmap.Image) -> Projected:
        """Those of points (N, 3), by a camera for the photo as it is stored."""
        pose = image.cam_from_world()
        rotation = pose.rotation.matrix()
        local = points @ rotation.T + pose.translation
        across, depths = np.hypot(local[:, 0], local[:, 1]), local[:, 2]
        ahead = (depths > 0) & (across < depths * field_of_view(camera))
        found = from_colmap(np.asarray(camera.img_from_cam(local[ahead])).reshape(-1, 2))
        found[~inside(found, camera.width, camera.height)] = np.nan
        pixels = np.full((len(points), 2), np.nan)
        pixels[ahead] = found
        return cls(pixels, depths, local @ rotation)


def field_of_view(camera: pycolmap.Camera) -> float:
    """The tangent of the angle to the optical axis up to which a lens is described.

    The polynomials of barrel distortion turn back farther outside: there they show points in the
    photo that the lens does not see.
    """
    angles = np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS)
    across = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None] * _OUTWARDS[:, None]
    rays: Array = np.concatenate([across, np.ones((*across.shape[:2], 1))], axis=2).reshape(-1, 3)
    pixels = np.asarray(camera.img_from_cam(rays)).reshape(*across.shape)
    from_axis = np.linalg.norm(pixels - pixels[:, :1], axis=2)
    outwards = np.diff(from_axis, axis=1) > 0  # False for NaN
    turns = np.where(outwards.all(axis=1), len(_OUTWARDS) - 1, outwards.argmin(axis=1))
    last = int(turns.min())
    return np.inf if last == len(_OUTWARDS) - 1 else float(_OUTWARDS[last])

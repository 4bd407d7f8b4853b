"""A COLMAP model made ready to look at: upright, centred, of unit size, without far-off points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images

_BORDER = 1.0  # points farther outside the bulk than this many times its size are left out
_BULK = (2.0, 98.0)  # percentiles
_ENOUGH = 300  # points with long tracks that tell the extent


@dataclass(frozen=True)
class Points:
    """3D points in any frame.

    Attributes:
        xyz: (N, 3).
        colors: (N, 3) uint8 RGB.
        tracks: (N,) how many images see each point.
        errors: (N,) mean reprojection error, pixels of the original photos; NaN where unknown.
    """

    xyz: np.ndarray
    colors: np.ndarray
    tracks: np.ndarray
    errors: np.ndarray

    @staticmethod
    def of(model: pycolmap.Reconstruction) -> Points:
        """Those of a COLMAP model."""
        if not model.num_points3D():
            return Points.none()
        model.update_point_3d_errors()
        number = model.num_points3D()
        points = Points(
            np.empty((number, 3)),
            np.empty((number, 3), np.uint8),
            np.empty(number, np.int64),
            np.empty(number),
        )
        # one by one: a list of millions of Python objects would take gigabytes
        for i, point in enumerate(model.points3D.values()):
            points.xyz[i], points.colors[i] = point.xyz, point.color
            points.tracks[i], points.errors[i] = point.track.length(), point.error
        return points

    @staticmethod
    def none() -> Points:
        return Points(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0, int), np.zeros(0))

    def __getitem__(self, which: np.ndarray) -> Points:
        return Points(self.xyz[which], self.colors[which], self.tracks[which], self.errors[which])

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class View:
    """A camera to draw.

    Attributes:
        name: of its image.
        cam_from_world: its pose.
        size: (half width, half height) of its picture at depth 1.
        kind: what it is to the reader, such as "registered"; the drawing chooses the colour by it.
    """

    name: str
    cam_from_world: pycolmap.Rigid3d
    size: tuple[float, float]
    kind: str = "registered"


def views_of(model: pycolmap.Reconstruction, kind: str = "registered") -> list[View]:
    """The cameras of all posed images of a model, sorted by name."""
    return [
        View(name, image.cam_from_world(), picture_size(model.cameras[image.camera_id]), kind)
        for name, image in posed_images(model).items()
    ]


def picture_size(camera: pycolmap.Camera) -> tuple[float, float]:
    """(half width, half height) of a camera's picture at depth 1, distortion left aside."""
    focal = camera.mean_focal_length() if camera.params.size else 0.0
    if not focal > 0:
        focal = float(max(camera.width, camera.height, 1))
    return camera.width / 2 / focal, camera.height / 2 / focal


@dataclass(frozen=True)
class Scene:
    """What a viewer draws: y is up, most of it lies within the unit sphere around the origin.

    Attributes:
        points: in the scene's frame.
        hidden: points that lie too far off to be shown.
        names, kinds: of the C cameras.
        centres: (C, 3).
        rotations: (C, 3, 3) scene from camera (x right, y down, z ahead).
        sizes: (C, 2) half width and height of the pictures at depth 1.
        frustum: depth at which a camera's picture is drawn.
        scale: scene units per unit of the model.
    """

    points: Points
    hidden: int
    names: list[str]
    kinds: list[str]
    centres: np.ndarray
    rotations: np.ndarray
    sizes: np.ndarray
    frustum: float
    scale: float


def build_scene(points: Points, views: Sequence[View]) -> Scene:
    """Turns points and cameras upright, centres and scales them.

    Up is where the cameras' upper edges point on average, the front is where they look.
    """
    rotations = np.array([v.cam_from_world.rotation.matrix().T for v in views]).reshape(-1, 3, 3)
    centres = np.array([v.cam_from_world.inverse().translation for v in views]).reshape(-1, 3)
    finite = np.isfinite(points.xyz).all(axis=1)
    points = points[finite]
    R = _upright(rotations, points.xyz)
    xyz, centres = points.xyz @ R.T, centres @ R.T
    rotations = R @ rotations

    keep, low, high = _bulk(points, xyz, centres)
    centre = (low + high) / 2
    radius = float(np.linalg.norm(high - low)) / 2
    scale = 1.0 / radius if radius > 0 else 1.0
    shown = points[keep]
    centres = (centres - centre) * scale
    return Scene(
        points=Points((xyz[keep] - centre) * scale, shown.colors, shown.tracks, shown.errors),
        hidden=int((~finite).sum() + (~keep).sum()),
        names=[view.name for view in views],
        kinds=[view.kind for view in views],
        centres=centres,
        rotations=rotations,
        sizes=np.array([view.size for view in views]).reshape(-1, 2),
        frustum=_frustum(centres),
        scale=scale,
    )


def _upright(rotations: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(3, 3) rotation to the frame with y up and the cameras looking along −z."""
    if not len(rotations):
        return np.diag([1.0, -1.0, -1.0])
    up = -rotations[:, :, 1].mean(axis=0)
    if np.linalg.norm(up) < 0.3 and len(xyz) > 3:
        # cameras held in all ways: the direction in which the points extend least
        spread = np.cov((xyz - np.median(xyz, axis=0)).T)
        least = np.linalg.eigh(spread)[1][:, 0]
        up = least if least @ up >= 0 else -least
    up /= max(float(np.linalg.norm(up)), 1e-12)
    ahead = rotations[:, :, 2].mean(axis=0)
    ahead = ahead - up * (up @ ahead)
    if np.linalg.norm(ahead) < 0.2:  # they look all around
        ahead = rotations[0, :, 2] - up * (up @ rotations[0, :, 2])
    if np.linalg.norm(ahead) < 1e-6:
        ahead = np.cross(up, [1.0, 0.0, 0.0] if abs(up[0]) < 0.9 else [0.0, 1.0, 0.0])
    back = -ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(up, back), up, back])


def _bulk(
    points: Points, xyz: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which points are shown, and the two corners of what the viewer should frame."""
    keep = np.ones(len(xyz), bool)
    corners = [centres]
    if len(xyz):
        sure = xyz[points.tracks >= 3]
        telling = sure if len(sure) >= _ENOUGH else xyz
        low, high = np.percentile(telling, _BULK, axis=0)
        margin = _BORDER * max(float((high - low).max()), 1e-12)
        keep = ((xyz >= low - margin) & (xyz <= high + margin)).all(axis=1)
        corners += [low[None], high[None]]
    everything = np.concatenate(corners)
    if not len(everything):
        return keep, -np.ones(3), np.ones(3)
    if len(xyz) and len(centres) > 10:
        # one stray camera must not make everything small
        low_c, high_c = np.percentile(centres, _BULK, axis=0)
        everything = np.concatenate([low_c[None], high_c[None], *corners[1:]])
    return keep, everything.min(axis=0), everything.max(axis=0)


def _frustum(centres: np.ndarray) -> float:
    """Depth of a drawn camera: frusta of neighbours should hardly touch."""
    if len(centres) < 2:
        return 0.08
    some = centres[:: max(1, len(centres) // 500)]
    distance = np.linalg.norm(some[:, None] - centres[None], axis=2)
    distance[distance == 0] = np.inf
    near = distance.min(axis=1)
    near = near[np.isfinite(near)]
    return float(np.clip(0.5 * np.median(near), 0.006, 0.08)) if len(near) else 0.08

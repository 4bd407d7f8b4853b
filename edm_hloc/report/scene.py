"""A COLMAP model prepared for drawing: upright, centred, of unit size, without far outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.frames import upright_axes, upright_size
from edm_hloc.images.decode import photo_orientation

# The extent of the points is that between these percentiles of each coordinate.
_EXTENT_PERCENTILES = (2.0, 98.0)
# It is taken from the points with at least 3 observations if there are this many of them: points
# with two observations may lie anywhere along the rays.
_MIN_LONG_TRACKS = 300
# Points farther outside the extent than this, as a multiple of its largest side, are left out.
_MARGIN = 1.0
_LOOK_DOWN = 0.2  # length of the mean horizontal direction of view, below which there is none
_IN_COMMON = 0.3  # length of the median of directions, below which there is none
_LYING = 0.2  # by which that of the photos' right edges is longer where all lie on their side
_SAMPLES = 2000  # points
_LEAST_AROUND = 8  # cameras that go around something,
_PARALLEL = 1e3  # condition, from which on their optical axes meet nowhere,
_FACED = 0.95  # median cosine of the angle between them and the direction of the place they meet,
_AROUND = 0.5  # length of the mean of these directions, and
_NEAR = 1.5  # of the median distance, up to which points belong to it
_LEVEL = 0.05  # sine of the angle of a photo's side to the horizon, up to which it counts fully
_KEPT_UP = 0.01  # weight of the photos' upper edges beside that of their horizontal sides


@dataclass(frozen=True)
class Points:
    """N 3D points.

    Attributes:
        xyz: (N, 3) in the world's or the scene's frame.
        colors: (N, 3) uint8, RGB.
        tracks: (N,) track length, the number of images that observe each point.
        errors: (N,) mean reprojection error, pixels of the original photos; NaN where unknown.
    """

    xyz: np.ndarray
    colors: np.ndarray
    tracks: np.ndarray
    errors: np.ndarray

    @staticmethod
    def of(model: pycolmap.Reconstruction) -> Points:
        """The points of a COLMAP model."""
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
            # models of others may have several observations of a point in one image
            points.tracks[i] = len({element.image_id for element in point.track.elements})
            points.errors[i] = point.error
        return points

    @staticmethod
    def none() -> Points:
        """No points, N = 0."""
        return Points(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), np.zeros(0, int), np.zeros(0))

    def __getitem__(self, which: np.ndarray) -> Points:
        """Some of the points, by mask or indices."""
        return Points(self.xyz[which], self.colors[which], self.tracks[which], self.errors[which])

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class CameraView:
    """A posed camera to draw.

    Attributes:
        name: name of its image.
        cam_from_world: its pose.
        half_size: (half width, half height) of its image plane at depth 1.
        kind: "registered", "database", "query-high" or "query-low"; chooses the colour.
        orientation: EXIF's, 1 (stored upright) to 8; the camera is drawn with its photo upright.
    """

    name: str
    cam_from_world: pycolmap.Rigid3d
    half_size: tuple[float, float]
    kind: str = "registered"
    orientation: int = 1

    @property
    def centre(self) -> np.ndarray:
        """(3,) projection centre in the world."""
        return self.cam_from_world.inverse().translation


def camera_views(model: pycolmap.Reconstruction, kind: str = "registered") -> list[CameraView]:
    """The cameras of all registered images of a model, sorted by name."""
    return [
        CameraView(
            name, image.cam_from_world(), image_half_size(model.cameras[image.camera_id]), kind
        )
        for name, image in posed_images(model).items()
    ]


def upright_views(model: pycolmap.Reconstruction, photos: Path) -> list[CameraView]:
    """`camera_views` of photos in a folder, which are upright as their EXIF data say."""
    return [
        replace(view, orientation=photo_orientation(photos / view.name))
        for view in camera_views(model)
    ]


def image_half_size(camera: pycolmap.Camera) -> tuple[float, float]:
    """(half width, half height) of a camera's image plane at depth 1, without distortion.

    A camera without a focal length counts as one whose focal length is its longer side.
    """
    focal = camera.mean_focal_length() if camera.params.size else 0.0
    if not focal > 0:
        focal = float(max(camera.width, camera.height, 1))
    return camera.width / 2 / focal, camera.height / 2 / focal


@dataclass(frozen=True)
class Scene:
    """Points and C cameras in the scene's frame: y up, the cameras looking along −z on average,
    most points within the unit sphere around the origin.

    Attributes:
        points: the points to draw.
        hidden: number of points that were left out: too far outside the extent, or not finite.
        names: names of the cameras' images.
        kinds: what each camera is, as in `CameraView`.
        centres: (C, 3) projection centres.
        rotations: (C, 3, 3) scene from camera (x right, y down in the upright photo, z ahead); a
            reflection where the EXIF orientation mirrors the photo.
        sizes: (C, 2) half width and half height of the image planes at depth 1.
        frustum: depth at which the image planes are drawn.
        scale: scene units per unit of the model.
        framed: (N,) bool, the points that a picture of all is fitted to: those near what the
            cameras go around, where they do, and all others as well where they do not.
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
    framed: np.ndarray


def build_scene(points: Points, views: Sequence[CameraView], *, on_earth: bool = False) -> Scene:
    """Rotates, centres and scales points and cameras into the scene's frame.

    Up is where the upper image edges of most cameras are, the front is where they look.

    Args:
        points: to draw.
        views: cameras to draw.
        on_earth: the z axis of the world points up and its y axis to the north. Where the cameras
            look down, north is ahead: the scene from above is a map.
    """
    rotations = _rotations(views)
    centres = np.array([v.centre for v in views]).reshape(-1, 3)
    finite = np.isfinite(points.xyz).all(axis=1)
    points = points[finite]
    R = upright(views, points.xyz, on_earth=on_earth)
    xyz, centres = points.xyz @ R.T, centres @ R.T
    rotations = R @ rotations

    keep, low, high = _extent(points, xyz, centres)
    centre = (low + high) / 2
    radius = float(np.linalg.norm(high - low)) / 2
    scale = 1.0 / radius if radius > 0 else 1.0
    shown = points[keep]
    centres, xyz = (centres - centre) * scale, (xyz[keep] - centre) * scale
    return Scene(
        points=Points(xyz, shown.colors, shown.tracks, shown.errors),
        hidden=int((~finite).sum() + (~keep).sum()),
        names=[view.name for view in views],
        kinds=[view.kind for view in views],
        centres=centres,
        rotations=rotations,
        sizes=np.array([upright_size(v.half_size, v.orientation) for v in views]).reshape(-1, 2),
        frustum=_frustum_depth(centres),
        scale=scale,
        framed=_framed(xyz, centres, rotations),
    )


def _rotations(views: Sequence[CameraView]) -> np.ndarray:
    """(C, 3, 3) world from the camera of each photo as it is upright."""
    return np.array(
        [v.cam_from_world.rotation.matrix().T @ upright_axes(v.orientation) for v in views]
    ).reshape(-1, 3, 3)


def upright(views: Sequence[CameraView], xyz: np.ndarray, *, on_earth: bool) -> np.ndarray:
    """(3, 3) rotation of the world into a frame with y up and the cameras looking along −z.

    Args:
        views: the cameras.
        xyz: (N, 3) points.
        on_earth: see `build_scene`.
    """
    rotations = _rotations(views)
    if on_earth:
        up, ahead = np.array([0.0, 0.0, 1.0]), np.zeros(3)
        if len(rotations):
            ahead = rotations[:, :, 2].mean(axis=0) * [1.0, 1.0, 0.0]
        if np.linalg.norm(ahead) < _LOOK_DOWN:  # or in all directions
            ahead = np.array([0.0, 1.0, 0.0])
        back = -ahead / np.linalg.norm(ahead)
        return np.stack([np.cross(up, back), up, back])
    if not len(rotations):
        return np.diag([1.0, -1.0, -1.0])
    up = _up(views, rotations, xyz)
    ahead = rotations[:, :, 2].mean(axis=0)
    ahead = ahead - up * (up @ ahead)
    if np.linalg.norm(ahead) < _LOOK_DOWN:  # the cameras look in all directions: take the first
        ahead = rotations[0, :, 2] - up * (up @ rotations[0, :, 2])
    if np.linalg.norm(ahead) < 1e-6:
        ahead = np.cross(up, [1.0, 0.0, 0.0] if abs(up[0]) < 0.9 else [0.0, 1.0, 0.0])
    back = -ahead / np.linalg.norm(ahead)
    return np.stack([np.cross(up, back), up, back])


def _up(views: Sequence[CameraView], rotations: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(3,) unit vector that is up in most photos.

    Of photos around an object that all lie on one side, the right edges have a direction in common
    and the upper edges have none. It is up or down: the scene is farther away towards the sky.
    """
    up, right = _median(-rotations[:, :, 1]), _median(rotations[:, :, 0])
    if np.linalg.norm(right) > np.linalg.norm(up) + _LYING:
        up = right if _farther_right(views, rotations, xyz) else -right
    elif np.linalg.norm(up) < _IN_COMMON:  # the photos have no common up
        return _flattest(up, xyz)
    return _levelled(up / np.linalg.norm(up), rotations)


def _flattest(up: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(3,) the direction in which points extend least, of two opposite ones that nearer to `up`."""
    if len(xyz) < 4:
        return up / np.linalg.norm(up) if up.any() else np.array([0.0, 0.0, 1.0])
    least = np.linalg.eigh(np.cov((xyz - np.median(xyz, axis=0)).T))[1][:, 0]
    return np.asarray(least if least @ up >= 0 else -least)


def _levelled(up: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """(3,) the direction near `up` for which most photos have a horizontal side.

    A camera that looks down is held level as well, but its upper edge is not up. Where the photos
    look in one direction only, their sides leave open how far it is down, and `up` decides.
    """
    level = up
    for _ in range(30):  # least squares, reweighted
        x, y = rotations[:, :, 0], rotations[:, :, 1]
        sides = np.where((abs(x @ level) <= abs(y @ level))[:, None], x, y)
        weights = 1 / np.maximum(abs(sides @ level), _LEVEL)
        squares = (weights[:, None] * sides).T @ sides / weights.sum()
        least = np.linalg.eigh(squares + _KEPT_UP * (np.eye(3) - np.outer(up, up)))[1][:, 0]
        level = least if least @ up >= 0 else -least
    return np.asarray(level)


def _median(directions: np.ndarray) -> np.ndarray:
    """(3,) geometric median of unit vectors, which a few rotated photos do not tilt."""
    median = directions.mean(axis=0)
    for _ in range(100):  # Weiszfeld's iterations
        weights = 1 / np.maximum(np.linalg.norm(directions - median, axis=1), 1e-6)
        median = weights @ directions / weights.sum()
    return np.asarray(median)


def _farther_right(views: Sequence[CameraView], rotations: np.ndarray, xyz: np.ndarray) -> bool:
    """Whether points in the photos' right parts are farther away than those in the left parts."""
    some = xyz[:: max(1, len(xyz) // _SAMPLES)]
    slopes = []
    for view, rotation in zip(views, rotations, strict=True):
        x, y, depth = ((some - view.centre) @ rotation).T
        half_width, half_height = upright_size(view.half_size, view.orientation)
        seen = (depth > 0) & (abs(x) < half_width * depth) & (abs(y) < half_height * depth)
        if np.count_nonzero(seen) > 3:
            slopes.append(np.cov(x[seen] / depth[seen], np.log(depth[seen]))[0, 1])
    return float(np.sum(slopes)) > 0


def _extent(
    points: Points, xyz: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounding box of most points and cameras.

    Returns:
        (N,) bool, the points to draw; two opposite corners (3,) of the box.
    """
    keep = np.ones(len(xyz), bool)
    corners = [centres]
    if len(xyz):
        long_tracks = xyz[points.tracks >= 3]
        measured = long_tracks if len(long_tracks) >= _MIN_LONG_TRACKS else xyz
        low, high = np.percentile(measured, _EXTENT_PERCENTILES, axis=0)
        margin = _MARGIN * max(float((high - low).max()), 1e-12)
        keep = ((xyz >= low - margin) & (xyz <= high + margin)).all(axis=1)
        corners += [low[None], high[None]]
    everything = np.concatenate(corners)
    if not len(everything):
        return keep, -np.ones(3), np.ones(3)
    if len(xyz) and len(centres) > 10:
        # a single outlier among the cameras must not shrink everything else
        low_c, high_c = np.percentile(centres, _EXTENT_PERCENTILES, axis=0)
        everything = np.concatenate([low_c[None], high_c[None], *corners[1:]])
    return keep, everything.min(axis=0), everything.max(axis=0)


def _framed(xyz: np.ndarray, centres: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """(N,) bool, see `Scene`. The buildings behind a statue would make it a speck."""
    everything = np.ones(len(xyz), bool)
    if len(centres) < _LEAST_AROUND:
        return everything
    ahead = rotations[:, :, 2]
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None, :]
    squares = across.sum(axis=0)
    if np.linalg.cond(squares) > _PARALLEL:
        return everything
    # the point nearest to all optical axes
    middle = np.linalg.solve(squares, np.einsum("nij,nj->i", across, centres))
    towards = middle - centres
    distances = np.maximum(np.linalg.norm(towards, axis=1), 1e-12)
    directions = towards / distances[:, None]
    faced = np.median(np.sum(directions * ahead, axis=1)) > _FACED
    around = np.linalg.norm(directions.mean(axis=0)) < _AROUND
    near = np.linalg.norm(xyz - middle, axis=1) < _NEAR * np.median(distances)
    return near if faced and around and near.any() else everything


def _frustum_depth(centres: np.ndarray) -> float:
    """Half the median distance between neighbouring cameras, so that frusta hardly overlap."""
    if len(centres) < 2:
        return 0.08
    some = centres[:: max(1, len(centres) // 500)]
    distance = np.linalg.norm(some[:, None] - centres[None], axis=2)
    distance[distance == 0] = np.inf
    near = distance.min(axis=1)
    near = near[np.isfinite(near)]
    return float(np.clip(0.5 * np.median(near), 0.006, 0.08)) if len(near) else 0.08

"""Pictures of a model drawn without a display: shaded points, cameras as frusta."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edm_hloc.report.scene import Scene

# Directions from the scene to the viewer, in the scene's frame (y up, cameras look along −z).
VIEWPOINTS = {
    "overview": (0.55, 0.5, 1.0),
    "front": (0.0, 0.08, 1.0),
    "side": (1.0, 0.12, 0.15),
    "top": (0.0, 1.0, 0.001),
}
_FIELD_OF_VIEW = 40.0  # degrees, along the shorter side
_SUPERSAMPLING = 2  # per axis; the picture is reduced at the end
_SHADING = 25.0  # strength of eye-dome lighting
_CAMERA_COLOUR = (214, 76, 38)  # RGB
_BACKGROUND = 255


@dataclass(frozen=True)
class _Viewer:
    """The pinhole camera that takes the picture.

    Attributes:
        R: (3, 3) rotation from the scene's frame to the viewer's: x right, y down, z ahead.
        position: (3,) projection centre in the scene's frame.
        focal: focal length in pixels.
        size: (width, height) of the picture in pixels; the principal point is its centre.
    """

    R: np.ndarray
    position: np.ndarray
    focal: float
    size: tuple[int, int]

    def project(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) pixels and (N,) depths of (N, 3) points; undefined behind the viewer."""
        seen = (xyz - self.position) @ self.R.T
        depth = seen[:, 2]
        safe = np.where(depth > 1e-6, depth, 1.0)
        centre = np.array(self.size) / 2
        return seen[:, :2] / safe[:, None] * self.focal + centre, depth


def draw_model(
    scene: Scene,
    viewpoint: str,
    size: tuple[int, int] = (1600, 1200),
    *,
    cameras: bool = True,
) -> np.ndarray:
    """Draws a scene on a white background.

    Args:
        scene: points and cameras.
        viewpoint: a key of `VIEWPOINTS`.
        size: (width, height) of the picture in pixels.
        cameras: whether cameras are drawn.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    width, height = (side * _SUPERSAMPLING for side in size)
    viewer = _place_viewer(scene, np.array(VIEWPOINTS[viewpoint]), (width, height), cameras)
    picture, depth = _splat(scene, viewer)
    picture = _shade(picture, depth)
    if cameras:
        _draw_cameras(picture, scene, viewer)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _place_viewer(
    scene: Scene, direction: np.ndarray, size: tuple[int, int], with_cameras: bool
) -> _Viewer:
    """The viewer in this direction, as near as the points and the cameras fit into the picture.

    The outermost 1% of the points on each side of each axis are left aside.
    """
    back = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    R = np.stack([right, -np.cross(back, right), -back])
    focal = min(size) / 2 / np.tan(np.radians(_FIELD_OF_VIEW / 2))
    xyz = scene.points.xyz[scene.framed]
    if len(xyz) > 20_000:
        xyz = xyz[:: len(xyz) // 20_000]
    rotated = xyz @ R.T
    if len(rotated):
        low, high = np.percentile(rotated, [1, 99], axis=0)
        inside = ((rotated >= low) & (rotated <= high)).all(axis=1)
        rotated = rotated[inside]
    cameras = _frusta(scene).reshape(-1, 3) @ R.T
    shown = np.concatenate([rotated, cameras]) if with_cameras or not len(rotated) else rotated
    if not len(shown):
        shown = np.eye(3)
    # the viewer is at (x, y, −d): every point must satisfy |x − x0| ≤ tan · (z + d)
    half = np.array(size) / 2 / focal * 0.94
    distance = 0.1 - float(shown[:, 2].min())
    for axis in (0, 1):
        a = (shown[:, axis] - half[axis] * shown[:, 2]).max()
        b = (shown[:, axis] + half[axis] * shown[:, 2]).min()
        distance = max(distance, (a - b) / 2 / half[axis])
    shift = [_middle(shown[:, axis], shown[:, 2] + distance) for axis in (0, 1)]
    position = np.array([*shift, -distance]) @ R
    return _Viewer(R, position, float(focal), size)


def _middle(values: np.ndarray, depths: np.ndarray) -> float:
    """Where the viewer stands along an axis for the same margin on both sides of its picture."""
    low, high = float(values.min()), float(values.max())
    for _ in range(30):  # bisection
        place = (low + high) / 2
        seen = (values - place) / depths
        if seen.max() + seen.min() > 0:
            low = place
        else:
            high = place
    return low


def _frusta(scene: Scene) -> np.ndarray:
    """(C, 5, 3) projection centres of the cameras and the corners of their image planes."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    sides = corners * scene.sizes[:, None]
    inside = np.concatenate([sides, np.ones((*sides.shape[:2], 1))], axis=2) * scene.frustum
    turned = inside @ scene.rotations.transpose(0, 2, 1)
    return np.concatenate([scene.centres[:, None], scene.centres[:, None] + turned], axis=1)


def _splat(scene: Scene, viewer: _Viewer) -> tuple[np.ndarray, np.ndarray]:
    """Points as discs: colours (H, W, 3) uint8 and depths (H, W), inf on the background."""
    width, height = viewer.size
    pixels, depth = viewer.project(scene.points.xyz)
    seen = depth > 1e-3
    seen &= (pixels > -20).all(axis=1) & (pixels < [width + 20, height + 20]).all(axis=1)
    place, z = np.rint(pixels[seen]).astype(np.int64), depth[seen]
    colors = scene.points.colors[seen]
    # fewer points get larger discs, of at least a pixel in the final picture
    fill = np.sqrt(width * height / max(1, len(z)))
    radius = float(np.clip(0.24 * fill, 1.2, 6.0)) * _SUPERSAMPLING / 2
    far_first = np.argsort(-z)
    place, z, colors = place[far_first], z[far_first], colors[far_first]

    border = int(np.ceil(radius)) + 21
    stride = width + 2 * border
    zbuffer = np.full((height + 2 * border) * stride, np.inf)
    image = np.full((zbuffer.size, 3), _BACKGROUND, np.uint8)
    flat = (place[:, 1] + border) * stride + place[:, 0] + border
    reach = int(radius)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy > radius * radius:
                continue
            target = flat + dy * stride + dx
            nearer = z < zbuffer[target]
            # of several points on a pixel the nearest is written last
            zbuffer[target[nearer]] = z[nearer]
            image[target[nearer]] = colors[nearer]
    shape = (height + 2 * border, stride)
    inner = (slice(border, border + height), slice(border, border + width))
    return image.reshape(*shape, 3)[inner].copy(), zbuffer.reshape(shape)[inner].copy()


def _shade(picture: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Eye-dome lighting: darkens pixels whose neighbours are nearer, so that surfaces show."""
    known = np.isfinite(depth)
    log_depth = np.full(depth.shape, np.inf, np.float32)
    np.log2(depth, out=log_depth, where=known, casting="same_kind")
    shade = np.zeros_like(log_depth)
    reach = _SUPERSAMPLING
    with np.errstate(invalid="ignore"):  # of the background, whose shade is not looked at
        for dy, dx in ((0, reach), (0, -reach), (reach, 0), (-reach, 0)):
            step = log_depth - np.roll(log_depth, (dy, dx), (0, 1))
            shade += np.clip(step, 0, 0.05, out=step)
    factor = np.exp(shade * np.float32(-_SHADING / 4))
    factor[~known] = 1.0
    return cv2.multiply(picture, cv2.merge([factor] * 3), dtype=cv2.CV_8U)


def _draw_cameras(picture: np.ndarray, scene: Scene, viewer: _Viewer) -> None:
    line = max(1, round(min(viewer.size) / 1100))
    for frustum in _frusta(scene):
        pixels, depth = viewer.project(frustum)
        if depth.min() < 1e-3:
            continue
        apex, *rest = (tuple(int(v) for v in np.rint(p * 16)) for p in np.clip(pixels, -1e4, 1e4))
        for a, b in [(apex, c) for c in rest] + list(zip(rest, rest[1:] + rest[:1], strict=True)):
            cv2.line(picture, a, b, _CAMERA_COLOUR, line, cv2.LINE_AA, shift=4)

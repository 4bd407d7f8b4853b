"""Pictures of a model without a display: points with depth shading, cameras as frusta."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edm_hloc.report.scene import Scene

# Where the viewer stands, in the scene's frame (y up, cameras look along −z).
VIEWPOINTS = {
    "overview": (0.55, 0.5, 1.0),
    "front": (0.0, 0.08, 1.0),
    "side": (1.0, 0.12, 0.15),
    "top": (0.0, 1.0, 0.001),
}
_FIELD_OF_VIEW = 40.0  # degrees, of the shorter side
_SUPERSAMPLING = 2
_SHADING = 25.0  # of edges in depth
_CAMERA = (214, 76, 38)
_PAPER = 255


@dataclass(frozen=True)
class _Eye:
    """A pinhole that looks at the scene."""

    R: np.ndarray  # (3, 3) eye from scene; x right, y down, z ahead
    position: np.ndarray
    focal: float
    size: tuple[int, int]

    def project(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) pixels and (N,) depths; pixels of points behind the eye mean nothing."""
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
    """A picture of a scene on white.

    Args:
        scene: what to draw.
        viewpoint: one of `VIEWPOINTS`.
        size: (width, height) of the picture.
        cameras: draw them too.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    width, height = (side * _SUPERSAMPLING for side in size)
    eye = _look(scene, np.array(VIEWPOINTS[viewpoint]), (width, height), cameras)
    picture, depth = _splat(scene, eye)
    picture = _shade(picture, depth)
    if cameras:
        _draw_cameras(picture, scene, eye)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _look(scene: Scene, direction: np.ndarray, size: tuple[int, int], with_cameras: bool) -> _Eye:
    """An eye in this direction, as near as the bulk of points and the cameras allow."""
    back = direction / np.linalg.norm(direction)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    R = np.stack([right, -np.cross(back, right), -back])
    focal = min(size) / 2 / np.tan(np.radians(_FIELD_OF_VIEW / 2))
    xyz = scene.points.xyz
    if len(xyz) > 20_000:
        xyz = xyz[:: len(xyz) // 20_000]
    turned = xyz @ R.T
    if len(turned):
        low, high = np.percentile(turned, [1, 99], axis=0)
        inside = ((turned >= low) & (turned <= high)).all(axis=1)
        turned = turned[inside]
    # a camera a little larger than its centre
    cameras = np.concatenate([scene.centres + d for d in _cube(1.5 * scene.frustum)]) @ R.T
    shown = np.concatenate([turned, cameras]) if with_cameras or not len(turned) else turned
    if not len(shown):
        shown = np.eye(3)
    # the eye is at (x, y, −d): every point must satisfy |x − x0| ≤ tan · (z + d)
    half = np.array(size) / 2 / focal * 0.94
    distance, shift = 0.0, np.zeros(2)
    for axis in (0, 1):
        a = (shown[:, axis] - half[axis] * shown[:, 2]).max()
        b = (shown[:, axis] + half[axis] * shown[:, 2]).min()
        shift[axis] = (a + b) / 2
        distance = max(distance, (a - b) / 2 / half[axis])
    distance = max(distance, 0.1 - float(shown[:, 2].min()))
    position = np.array([*shift, -distance]) @ R
    return _Eye(R, position, float(focal), size)


def _cube(r: float) -> list[np.ndarray]:
    return [np.array([x, y, z]) for x in (-r, r) for y in (-r, r) for z in (-r, r)]


def _splat(scene: Scene, eye: _Eye) -> tuple[np.ndarray, np.ndarray]:
    """Points as discs: colours (H, W, 3) on white and depths (H, W), inf where there is nothing."""
    width, height = eye.size
    pixels, depth = eye.project(scene.points.xyz)
    seen = depth > 1e-3
    seen &= (pixels > -20).all(axis=1) & (pixels < [width + 20, height + 20]).all(axis=1)
    place, z = np.rint(pixels[seen]).astype(np.int64), depth[seen]
    colors = scene.points.colors[seen]
    # the fewer points the larger they are; at least a pixel of the final picture
    fill = np.sqrt(width * height / max(1, len(z)))
    radius = float(np.clip(0.24 * fill, 1.2, 6.0)) * _SUPERSAMPLING / 2
    far_first = np.argsort(-z)
    place, z, colors = place[far_first], z[far_first], colors[far_first]

    border = int(np.ceil(radius)) + 21
    stride = width + 2 * border
    zbuffer = np.full((height + 2 * border) * stride, np.inf)
    image = np.full((zbuffer.size, 3), _PAPER, np.uint8)
    flat = (place[:, 1] + border) * stride + place[:, 0] + border
    reach = int(radius)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy > radius * radius:
                continue
            target = flat + dy * stride + dx
            nearer = z < zbuffer[target]
            # of several points on a pixel the last, the nearest, stays
            zbuffer[target[nearer]] = z[nearer]
            image[target[nearer]] = colors[nearer]
    shape = (height + 2 * border, stride)
    inner = (slice(border, border + height), slice(border, border + width))
    return image.reshape(*shape, 3)[inner].copy(), zbuffer.reshape(shape)[inner].copy()


def _shade(picture: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Darkens pixels whose neighbours are nearer (eye-dome lighting): gives points a surface."""
    known = np.isfinite(depth)
    log_depth = np.where(known, np.log2(np.where(known, depth, 1.0)), np.inf)
    shade = np.zeros(depth.shape)
    reach = _SUPERSAMPLING
    for dy, dx in ((0, reach), (0, -reach), (reach, 0), (-reach, 0)):
        neighbour = np.roll(log_depth, (dy, dx), (0, 1))
        both = known & np.isfinite(neighbour)
        shade += np.where(both, np.clip(log_depth - np.where(both, neighbour, 0), 0, 0.05), 0)
    factor = np.where(known, np.exp(-_SHADING * shade / 4), 1.0)
    return (picture * factor[..., None]).round().astype(np.uint8)


def _draw_cameras(picture: np.ndarray, scene: Scene, eye: _Eye) -> None:
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    line = max(1, round(min(eye.size) / 1100))
    for centre, R, size in zip(scene.centres, scene.rotations, scene.sizes, strict=True):
        inside = np.column_stack([corners * size, np.ones(4)]) * scene.frustum
        pixels, depth = eye.project(np.concatenate([centre[None], centre + inside @ R.T]))
        if depth.min() < 1e-3:
            continue
        apex, *rest = (tuple(int(v) for v in np.rint(p * 16)) for p in np.clip(pixels, -1e4, 1e4))
        for a, b in [(apex, c) for c in rest] + list(zip(rest, rest[1:] + rest[:1], strict=True)):
            cv2.line(picture, a, b, _CAMERA, line, cv2.LINE_AA, shift=4)

"""What a photo tells of its lens: the disc of a circular fisheye lens, or that it is a panorama."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from edm_hloc.base.errors import ImageError
from edm_hloc.base.grid import evenly
from edm_hloc.images.load import load_image

_SIDE = 256  # pixels of the longer side of what is looked at
_DARK = 24 / 255  # grey values that count as black
_CORNER = 1 / 16  # of the sides: must be black
_RAYS = 360
_MOST_OFF = 0.02  # of the radius: how far a ray leaves the disc from the circle
_LEAST_RIM = 0.6  # of the rays that leave the disc inside the photo must do so on the circle
_LEAST_RAYS = 90
_CENTRED = 0.15  # of the longer side: largest distance between the middles of disc and photo
_METADATA = 1 << 18  # bytes at the beginning of a file that are searched
_PANORAMA = re.compile(rb"GPano:ProjectionType(=[\"']|>)\s*equirectangular", re.IGNORECASE)
_LOOKED_AT = 8


def image_circle(path: Path) -> float | None:
    """Diameter of the disc outside which a photo is black.

    Args:
        path: of the photo.

    Returns:
        The diameter in pixels of the stored photo; None if there is no such disc. It may reach
        beyond the photo, but not over its corners.

    Raises:
        ImageError: the photo cannot be read.
    """
    photo = load_image(path, resize_max=_SIDE, divisor=1)
    grey = photo.tensor[0].numpy()
    height, width = grey.shape
    h, w = max(1, round(_CORNER * height)), max(1, round(_CORNER * width))
    corners = [
        grey[r, c].ravel() for r in (slice(h), slice(-h, None)) for c in (slice(w), slice(-w, None))
    ]
    if np.quantile(np.concatenate(corners), 0.95) > _DARK:
        return None
    rim = _rim(cv2.medianBlur(grey, 3) > _DARK)
    if len(rim) < _LEAST_RAYS:
        return None
    on = np.ones(len(rim), bool)
    for _ in range(8):  # least squares; what is farthest off is left out step by step
        centre, radius = _circle_through(rim[on])
        off = np.abs(np.linalg.norm(rim - centre, axis=1) - radius)
        on = off <= max(_MOST_OFF * radius, float(np.quantile(off, _LEAST_RIM)))
    middle = np.array([width - 1, height - 1]) / 2
    if (
        (off <= _MOST_OFF * radius).mean() < _LEAST_RIM
        or np.linalg.norm(centre - middle) > _CENTRED * max(width, height)
        or radius > np.hypot(width, height) / 2
    ):
        return None
    return 2 * radius * max(photo.transform.scale)


def is_panorama(path: Path) -> bool:
    """Whether a photo says that it shows all directions, its columns being longitudes.

    Cameras and programs that make such panoramas write it into the metadata
    (`GPano:ProjectionType`).

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            metadata = file.read(_METADATA)
    except OSError as error:
        raise ImageError(f"Cannot read image {path}: {error.strerror or error}.") from error
    return _PANORAMA.search(metadata) is not None


def most_of(root: Path, names: Sequence[str], shows: Callable[[Path], object]) -> list[str]:
    """Which of up to eight photos, drawn evenly from a list, show something; none if not most."""
    found, read = [], 0
    for name in evenly(names, _LOOKED_AT):
        try:
            found += [name] if shows(root / name) else []
        except ImageError:
            continue
        read += 1
    return found if 2 * len(found) > read else []


def _rim(bright: np.ndarray) -> np.ndarray:
    """(N, 2) last bright pixels (x, y) on rays outwards, without those at the photo's border."""
    height, width = bright.shape
    y, x = np.nonzero(bright)
    if not len(x):
        return np.empty((0, 2))
    steps = np.arange(int(np.hypot(width, height)) + 1)
    angle = np.linspace(0, 2 * np.pi, _RAYS, endpoint=False)
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None] * steps[:, None]
    place = along + np.array([x.mean(), y.mean()])  # (rays, steps, 2)
    column, row = np.rint(place).astype(int).transpose(2, 0, 1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    lit = inside & bright[row.clip(0, height - 1), column.clip(0, width - 1)]
    last = len(steps) - 1 - lit[:, ::-1].argmax(axis=1)
    ends = place[np.arange(_RAYS), last]
    room = np.minimum(ends, [width - 1, height - 1] - ends).min(axis=1)
    return ends[lit.any(axis=1) & (room > 1.5)]


def _circle_through(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (2,) and radius of the circle nearest to points (N, 2), by Kåsa's linear fit."""
    system = np.column_stack([2 * points, np.ones(len(points))])
    x, y, rest = np.linalg.lstsq(system, (points**2).sum(axis=1), rcond=None)[0]
    return np.array([x, y]), float(np.sqrt(max(rest + x * x + y * y, 0.0)))

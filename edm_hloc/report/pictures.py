"""Pictures of matches."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from edm_hloc.errors import EdmHlocError
from edm_hloc.images import NetworkImage, PixelTransform, load_image

HEIGHT_MAX = 720  # px of the picture; photos are shrunk to fit, never enlarged
GAP = 8


def draw_matches(
    path0: Path,
    path1: Path,
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    scores: np.ndarray,
    *,
    lines: int = 300,
) -> np.ndarray:
    """Two photos side by side with their matches, from red (least sure) over yellow to green.

    Args:
        path0, path1: the photos.
        keypoints0, keypoints1: (M, 2), pixels of the original images, hloc's frame.
        scores: (M,) in [0, 1].
        lines: at most this many matches get a line, spread over the whole range of scores; all
            get their two dots.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: a photo cannot be read.
    """
    shown = [load_image(path, resize_max=1024, grayscale=False) for path in (path0, path1)]
    scale = min(1.0, HEIGHT_MAX / max(image.tensor.shape[1] for image in shown))
    panels, points = [], []
    for image, keypoints in zip(shown, (keypoints0, keypoints1), strict=True):
        panel, transform = _panel(image, scale)
        panels.append(panel)
        points.append(transform.to_network(np.asarray(keypoints, np.float64)))
    height = max(panel.shape[0] for panel in panels)
    width = sum(panel.shape[1] for panel in panels) + GAP
    canvas = np.full((height, width, 3), 255, np.uint8)
    left = panels[0].shape[1] + GAP
    canvas[: panels[0].shape[0], : panels[0].shape[1]] = panels[0]
    canvas[: panels[1].shape[0], left:] = panels[1]
    points[1] = points[1] + [left, 0]

    order = np.argsort(scores, kind="stable")  # the surest are drawn last, on top
    with_line = (
        set(order[np.unique(np.linspace(0, len(order) - 1, lines).astype(int))])
        if len(order)
        else set()
    )
    overlay = canvas.copy()
    for index in order:
        a, b = (_subpixel(p[index]) for p in points)
        colour = _colour(float(scores[index]))
        if index in with_line:
            cv2.line(overlay, a, b, colour, 1, cv2.LINE_AA, shift=_SHIFT)
        for end in (a, b):
            cv2.circle(overlay, end, 2 << _SHIFT, colour, -1, cv2.LINE_AA, shift=_SHIFT)
    return cv2.addWeighted(overlay, 0.8, canvas, 0.2, 0)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB to a PNG or JPEG file.

    Raises:
        EdmHlocError: unknown suffix or a folder that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ok, data = cv2.imencode(path.suffix, picture[..., ::-1])
        if ok:
            path.write_bytes(data.tobytes())
    except (OSError, cv2.error) as error:
        raise EdmHlocError(
            f"Cannot write the picture {path} ({str(error).strip()}): give it a name ending in "
            ".png or .jpg in a folder you may write to."
        ) from error


_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def _subpixel(point: np.ndarray) -> tuple[int, int]:
    x, y = np.rint(point * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


def _colour(score: float) -> tuple[int, int, int]:
    score = min(max(score, 0.0), 1.0)
    return int(255 * min(1.0, 2 - 2 * score)), int(255 * min(1.0, 2 * score)), 40


def _panel(image: NetworkImage, scale: float) -> tuple[np.ndarray, PixelTransform]:
    """The photo at the picture's size, with its true aspect, and where its pixels went."""
    width, height = image.original_size
    shrink = scale * min(1.0, image.tensor.shape[1] / height)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    pixels = (image.tensor * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    panel = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return panel, PixelTransform((width / size[0], height / size[1]))

"""Pictures of matches as in a paper: two photos, lines coloured by score, and a legend."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.frames import PixelTransform, upright_size
from edm_hloc.base.matches import Matches
from edm_hloc.images.drawn import refuse_other_pictures, with_mark
from edm_hloc.images.load import load_image

HEIGHT = 720  # px of the photos in the picture; smaller photos are not enlarged
_GAP, _STRIP = 10, 52  # px between the photos, and height of the legend below them
_INK = (40, 44, 48)  # colour of text
# Colours from the lowest to the highest score, all light enough for dark and bright photos.
_RAMP = np.array([(176, 120, 255), (110, 150, 255), (60, 200, 230), (90, 230, 150), (255, 238, 80)])
_SCALE = 2  # the picture is drawn larger by this factor, then reduced, for smooth lines
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


def draw_matches(path0: Path, path1: Path, matches: Matches, *, lines: int = 200) -> np.ndarray:
    """Two upright photos side by side with their matches, from violet (low score) to yellow (high).

    Args:
        path0, path1: the photos.
        matches: between them, in pixels of the photos as stored.
        lines: maximum number of matches drawn with a line, spread evenly over the first photo; the
            others are drawn as two dots.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ImageError: a photo cannot be read.
    """
    keypoints0, keypoints1, scores = matches.keypoints0, matches.keypoints1, matches.scores
    shown = [
        load_image(path, resize_max=2 * HEIGHT, divisor=1, grayscale=False)
        for path in (path0, path1)
    ]
    upright_height = (upright_size(i.original_size, i.exif_orientation)[1] for i in shown)
    height = min(HEIGHT, max(upright_height)) * _SCALE
    panels, points, left = [], [], 0
    for image, keypoints in zip(shown, (keypoints0, keypoints1), strict=True):
        pixels = (image.tensor.numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
        width, full = upright_size(image.original_size, image.exif_orientation)
        size = max(_SCALE, round(width * height / full / _SCALE) * _SCALE), height
        panels.append(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
        scale = width / size[0], full / size[1]
        transform = PixelTransform(scale, image.exif_orientation, image.original_size)
        points.append(transform.to_network(np.asarray(keypoints, np.float64)) + np.array([left, 0]))
        left += size[0] + _GAP * _SCALE
    gap = np.full((height, _GAP * _SCALE, 3), 255, np.uint8)
    canvas = np.ascontiguousarray(np.hstack([panels[0], gap, panels[1]]))

    low, high = _span(scores)
    colours = ramp((scores - low) / (high - low))
    with_line = set(_spread(keypoints0, scores, lines))
    canvas = _draw(canvas, points, colours, np.argsort(scores, kind="stable"), with_line)
    picture = cv2.resize(
        canvas, (canvas.shape[1] // _SCALE, height // _SCALE), interpolation=cv2.INTER_AREA
    )
    strip = _legend(picture.shape[1], len(scores), len(with_line), low, high)
    return np.vstack([picture, strip])


def ramp(share: np.ndarray) -> np.ndarray:
    """Colours of match lines: (N,) in [0, 1] → (N, 3) uint8 RGB."""
    place = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    known = np.arange(len(_RAMP))
    channels = [np.interp(place, known, _RAMP[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def check_picture(path: Path) -> None:
    """Raises EdmHlocError if a picture's name is no PNG's or JPEG's, or is that of another file."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise EdmHlocError(f"Cannot write a picture {path}: give it a name ending in .png or .jpg.")
    refuse_other_pictures(path)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 RGB to a file, PNG or JPEG by its suffix.

    Raises:
        EdmHlocError: see `check_picture`, or the file cannot be written.
    """
    check_picture(path)
    _, data = cv2.imencode(path.suffix, picture[..., ::-1])
    write_whole(path, with_mark(data.tobytes()))


def _span(scores: np.ndarray) -> tuple[float, float]:
    """The scores at both ends of the colours: the 2nd and the 98th percentile, ≥ 0.05 apart."""
    if not len(scores):
        return 0.0, 1.0
    low, high = np.percentile(scores, [2, 98])
    if high - low < 0.05:
        low, high = max(0.0, high - 0.05), max(0.05, high)
    return float(low), float(high)


def _spread(keypoints: np.ndarray, scores: np.ndarray, number: int) -> list[int]:
    """Indices of at most `number` matches, spread evenly over the photo.

    They are drawn at random, in turn from each cell of a 12 × 12 grid.
    """
    if len(scores) <= number:
        return list(range(len(scores)))
    order = np.random.default_rng(0).permutation(len(scores))
    low, high = keypoints.min(axis=0), keypoints.max(axis=0)
    cells = ((keypoints - low) / np.maximum(high - low, 1e-9) * 11.999).astype(int)
    cell = (cells[:, 1] * 12 + cells[:, 0])[order]
    by_cell = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[by_cell], cell[by_cell])
    turn = np.empty(len(order), int)
    turn[by_cell] = np.arange(len(order)) - first  # how many of its cell come before it
    return [int(i) for i in order[np.argsort(turn, kind="stable")[:number]]]


def _draw(
    canvas: np.ndarray,
    points: list[np.ndarray],
    colours: np.ndarray,
    order: np.ndarray,
    with_line: set[int],
) -> np.ndarray:
    """Draws dots and lines, the highest scores on top, with dark edges for contrast."""
    ends = [np.rint(p * (1 << _SHIFT)).astype(int) for p in points]
    starts, stops = ([(int(x), int(y)) for x, y in e] for e in ends)
    edges = canvas.copy()
    for i in order:
        if int(i) in with_line:
            cv2.line(edges, starts[i], stops[i], (0, 0, 0), 2 * _SCALE, cv2.LINE_AA, shift=_SHIFT)
    canvas = cv2.addWeighted(edges, 0.35, canvas, 0.65, 0)
    overlay = canvas.copy()
    for i in order:
        colour = tuple(int(c) for c in colours[i])
        if int(i) in with_line:
            cv2.line(overlay, starts[i], stops[i], colour, _SCALE, cv2.LINE_AA, shift=_SHIFT)
            for end in (starts[i], stops[i]):
                radius = int(2.6 * _SCALE * (1 << _SHIFT))
                cv2.circle(overlay, end, radius, (0, 0, 0), -1, cv2.LINE_AA, shift=_SHIFT)
        for end in (starts[i], stops[i]):
            radius = int((2.0 if int(i) in with_line else 1.1) * _SCALE * (1 << _SHIFT))
            cv2.circle(overlay, end, radius, colour, -1, cv2.LINE_AA, shift=_SHIFT)
    return cv2.addWeighted(overlay, 0.85, canvas, 0.15, 0)


def _legend(width: int, matches: int, lines: int, low: float, high: float) -> np.ndarray:
    """The strip below the photos, (_STRIP, width, 3): number of matches and scale of colours."""
    strip = Image.new("RGB", (width, _STRIP), "white")
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(22)
    middle = _STRIP // 2 + 2
    text = f"{matches:,} matches"
    if 0 < lines < matches:
        text += f", {lines:,} with a line"
    draw.text((2, middle), text, fill=_INK, font=font, anchor="lm")
    bar = min(220, width // 5)
    right = f"{high:.2f}"
    x = width - 2 - draw.textlength(right, font)
    if matches and x - bar > width / 2:
        draw.text((x, middle), right, fill=_INK, font=font, anchor="lm")
        start = int(x) - 10 - bar
        colours = np.tile(ramp(np.linspace(0, 1, bar)), (14, 1, 1))
        strip.paste(Image.fromarray(colours), (start, middle - 8))
        left = f"confidence  {low:.2f}"
        draw.text((start - 10, middle), left, fill=_INK, font=font, anchor="rm")
    return np.asarray(strip)

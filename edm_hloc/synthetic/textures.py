"""Grey textures for rendered scenes, from photos or procedural, in one mip-mapped tensor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError, ImageError

_BITS = 12  # of the fixed-point texel coordinates' fraction

logger = logging.getLogger(__name__)

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})


def read_grey(path: Path) -> np.ndarray:
    """(H, W) uint8 as stored, whatever its EXIF orientation; ImageError if unreadable."""
    try:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        photo = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except (OSError, cv2.error) as error:
        raise ImageError(f"cannot read {path}: {error}") from error
    if photo is None:
        raise ImageError(f"cannot read {path}: not an image")
    return photo


class TextureBank:
    """N square grey textures with their mip pyramids, sampled by texture number and texel.

    All levels of all textures lie in one flat uint8 tensor, so that a lookup with a level per
    sample is four gathers. Outside a texture its mirror image continues, so that any window is
    valid.

    textures: (N, S, S) uint8. weights: (N,) chance of being drawn, larger for those rich in detail.
    """

    def __init__(self, textures: Tensor) -> None:
        """Build the pyramids of `textures`, (N, S, S) uint8 with S a power of two."""
        if textures.ndim != 3 or textures.shape[1] != textures.shape[2]:
            raise ValueError(f"textures must be (N, S, S), not {tuple(textures.shape)}")
        self.size = int(textures.shape[1])
        if self.size & (self.size - 1):
            raise ValueError(f"the texture size must be a power of two, not {self.size}")
        self.textures = textures
        count, device = len(textures), textures.device
        sides = [self.size >> level for level in range(self.size.bit_length())]
        # One more row and column (their mirror image) lets the right and lower taps exist.
        areas = [(side + 1) ** 2 for side in sides]
        self._stride = sum(areas)
        if count * self._stride >= 2**31:
            raise ValueError(f"{count} textures of {self.size} px are too many: int32 indices end")
        self._starts = torch.tensor(np.cumsum([0, *areas[:-1]]), dtype=torch.int32, device=device)
        flat = torch.empty(count, self._stride, dtype=torch.uint8, device=device)
        detail = []
        for block in torch.arange(count, device=device).split(64):
            level = textures[block].float()
            detail.append(
                level.diff(dim=1).abs().mean((1, 2)) + level.diff(dim=2).abs().mean((1, 2))
            )
            for start, side, area in zip(self._starts.tolist(), sides, areas, strict=True):
                padded = torch.cat([level, level[:, -1:]], 1)
                padded = torch.cat([padded, padded[:, :, -1:]], 2)
                flat[block, start : start + area] = padded.add(0.5).to(torch.uint8).flatten(1)
                if side > 1:
                    level = torch.nn.functional.avg_pool2d(level[:, None], 2)[:, 0]
        self._flat = flat.flatten()
        # Skies and blurred backgrounds teach nothing: textures below 4 grey levels a pixel are
        # rare.
        self.weights = (torch.cat(detail) / 4).clamp(0.05, 1)

    def __len__(self) -> int:
        return len(self.textures)

    @property
    def device(self) -> torch.device:
        return self._flat.device

    @property
    def num_levels(self) -> int:
        return len(self._starts)

    def to(self, device: torch.device | str) -> TextureBank:
        """Give the same bank on another device."""
        textures = self.textures.to(device)
        return self if textures.device == self.device else TextureBank(textures)

    def sample(self, texture: Tensor, x: Tensor, y: Tensor, area: Tensor) -> Tensor:
        """Look up grey values in [0, 1], bilinear in one mip level.

        Any values are safe: NaN and infinite ones give some texel.

        Args:
            texture: int32, number of the texture; broadcasts with the others.
            x, y: float, in texels of level 0; the texture covers [0, S], mirrored outside.
            area: float, texels² of level 0 that one sample stands for.
        """
        # The exponent of a float is its floored log2; the level is log4(area), floored, for the
        # bilinear filter blurs as well. Integers and fixed point are much faster on a CPU than
        # log2, remainder, comparisons and where.
        level = area.view(torch.int32) >> 23
        level = (level.sub_(127) >> 1).clamp_(0, self.num_levels - 1)
        column, fx = self._fold(x, level)
        row, fy = self._fold(y, level)
        index = column.add_(texture * self._stride)
        index += self._starts.index_select(0, level.view(-1)).view_as(level)
        side = torch.bitwise_right_shift(self.size, level).add_(1)
        index += row.mul_(side)
        above = torch.lerp(self._at(index), self._at(index + 1), fx)
        index += side
        below = torch.lerp(self._at(index), self._at(index.add(1)), fx)
        return torch.lerp(above, below, fy).mul_(1 / 255)

    def _fold(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Mirror coordinates into the texture: the texel before them at `level`, the way past."""
        period = 2 * self.size << _BITS
        fixed = x.mul(1 << _BITS).to(torch.int32).bitwise_and_(period - 1)
        fixed = torch.minimum(fixed, period - 1 - fixed)
        fixed = (fixed >> level).sub_(1 << _BITS - 1).clamp_(min=0)
        weight = fixed.bitwise_and((1 << _BITS) - 1).to(torch.float32).mul_(2.0**-_BITS)
        return fixed >> _BITS, weight

    def _at(self, index: Tensor) -> Tensor:
        return self._flat.index_select(0, index.view(-1)).view_as(index).float()

    def save(self, path: Path, quality: int = 90) -> None:
        """Write the textures as JPEGs in one file: about 50 KiB for one of 512 px."""
        blobs = []
        for texture in self.textures.cpu().numpy():
            _, blob = cv2.imencode(".jpg", texture, [cv2.IMWRITE_JPEG_QUALITY, quality])
            blobs.append(blob.ravel())
        lengths = np.array([len(blob) for blob in blobs], np.int64)
        with path.open("wb") as file:  # given a path, np.savez would add .npz to it
            np.savez(file, jpegs=np.concatenate(blobs), lengths=lengths)

    @classmethod
    def load(
        cls, path: Path, limit: int | None = None, device: torch.device | str = "cpu"
    ) -> TextureBank:
        """Read a pack written by `save`, or `limit` evenly spaced textures of it.

        Raises:
            EdmHlocError: the file is no such pack.
        """
        try:
            with np.load(path, allow_pickle=False) as pack:
                jpegs, lengths = pack["jpegs"], pack["lengths"]
            blobs = _some(np.split(jpegs, np.cumsum(lengths)[:-1]), limit)
            decoded: list[Any] = [cv2.imdecode(blob, cv2.IMREAD_GRAYSCALE) for blob in blobs]
            textures = torch.from_numpy(np.stack(decoded))
        except (OSError, KeyError, ValueError, TypeError, cv2.error) as error:
            raise EdmHlocError(
                f"{path} is no texture pack ({error}); write one with TextureBank.save"
            ) from error
        return cls(textures.to(device))

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        size: int = 512,
        limit: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> TextureBank:
        """Cut square grey textures from the photos under `folder`.

        A photo gives ceil(long side / short side) squares of its whole short side (at most 3),
        spread evenly, resized to `size`. To every six of them comes one of repeated pieces (see
        `repeated`). Photos whose short side is below `size` / 2 are left out; unreadable ones too,
        with a warning. `limit` takes so many photos, evenly spaced in name order. A texture takes
        1.4·size² bytes.

        Raises:
            EdmHlocError: no usable photo in the folder.
        """
        paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
        textures: list[np.ndarray] = []
        for path in tqdm(_some(paths, limit), desc="textures", unit="photo", disable=None):
            try:
                photo = read_grey(path)
            except ImageError as error:
                logger.warning("left out of the textures: %s", error)
                continue
            if min(photo.shape) >= size // 2:
                textures.extend(_squares(photo, size))
        if not textures:
            raise EdmHlocError(
                f"no photo with both sides of at least {size // 2} px under {folder}; "
                "name another folder, or none for procedural textures"
            )
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(textures), -(-len(textures) // 6), replace=False)
        textures += [repeated(textures[i], rng) for i in chosen]
        return cls(torch.from_numpy(np.stack(textures)).to(device))

    @classmethod
    def procedural(
        cls, count: int = 64, size: int = 512, seed: int = 0, device: torch.device | str = "cpu"
    ) -> TextureBank:
        """Make textures as natural images have them: dead leaves, façades, repeated pieces."""
        textures = []
        for number, sequence in enumerate(np.random.SeedSequence(seed).spawn(count)):
            rng = np.random.default_rng(sequence)
            if number % 4 == 1:
                texture = facade(size, rng)
            elif number % 4 == 3:
                texture = repeated(dead_leaves(size, rng), rng)
            else:
                texture = dead_leaves(size, rng)
            textures.append(texture)
        return cls(torch.from_numpy(np.stack(textures)).to(device))

    @classmethod
    def dead_leaves(
        cls, count: int = 64, size: int = 512, seed: int = 0, device: torch.device | str = "cpu"
    ) -> TextureBank:
        """Make textures of dead leaves only (see `dead_leaves`)."""
        sequences = np.random.SeedSequence(seed).spawn(count)
        textures = [dead_leaves(size, np.random.default_rng(s)) for s in sequences]
        return cls(torch.from_numpy(np.stack(textures)).to(device))


def dead_leaves(size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint one (size, size) uint8 texture of overlapping ellipses and polygons, radii ~ 1/r³.

    That law makes it scale-invariant: amplitude falls as 1/f, edges and occlusions at all sizes,
    as in photographs. Some 1/f shading over it keeps any area from being entirely flat.
    """
    smallest, largest = 2.0, size / 3
    # The mean area of a leaf for the density 1/r³; twice the canvas leaves few gaps.
    mean_area = 2 * np.pi * smallest**2 * np.log(largest / smallest)
    count = int(2.2 * size**2 / mean_area)
    radii = rng.uniform(largest**-2, smallest**-2, count) ** -0.5
    greys = 255 * rng.beta(1.3, 1.5, count)
    # Corners out of 24 around an ellipse: triangles to hexagons, and all of them, which looks
    # round.
    outlines = [np.arange(0, 24, 8), np.arange(0, 24, 6), np.array([0, 5, 10, 14, 19])]
    outlines += [np.arange(0, 24, 4), np.arange(24)]
    outline = np.full(count, 1) if rng.random() < 0.4 else rng.integers(0, 4, count)
    outline[rng.random(count) < rng.uniform(0.2, 0.8)] = 4
    turn = rng.uniform(0, 2 * np.pi, (count, 1))
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y = np.cos(around), 0.75 * np.sin(around)
    leaves: Any = np.stack(
        [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1
    )
    leaves = leaves * radii[:, None, None] + rng.uniform(0, size, (count, 1, 2))
    leaves = np.int32(16 * leaves)  # in 1/16 px
    canvas = np.full((size, size), rng.uniform(60, 190), np.float32)
    for leaf, kind, grey in zip(leaves, outline, greys, strict=True):
        cv2.fillConvexPoly(canvas, leaf[outlines[kind]], float(grey), cv2.LINE_AA, 4)
    canvas += rng.uniform(6, 20) * pink_noise(size, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def facade(size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint one (size, size) uint8 wall of stones or bricks with rows of windows."""
    wall = rng.uniform(90, 200)
    canvas: Any = np.full((size, size), wall, np.float32)
    stone_height = int(rng.integers(6, 26))
    stone_width = int(stone_height * rng.uniform(1.5, 3.5))
    contrast = rng.uniform(4, 18)
    for row, top in enumerate(range(0, size, stone_height)):
        for left in range(-(row % 2) * stone_width // 2, size, stone_width):
            value = wall + contrast * rng.standard_normal()
            corner = (left + stone_width - 2, top + stone_height - 2)
            cv2.rectangle(canvas, (left, top), corner, float(value), -1)
    columns, rows = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    pitch = np.array([size / columns, size / rows])
    window = np.maximum(pitch * rng.uniform(0.3, 0.7, 2), 2)
    frame = max(int(size * rng.uniform(0.006, 0.015)), 1)
    light, dark = wall + rng.uniform(15, 55), rng.uniform(15, 70)
    panes = rng.integers(1, 4, 2)
    arched = rng.random() < 0.4
    for i in range(columns):
        for j in range(rows):
            corner = (np.array([i, j]) + 0.5) * pitch - window / 2
            (x0, y0), (x1, y1) = (
                np.round(p).astype(int).tolist() for p in (corner, corner + window)
            )
            cv2.rectangle(canvas, (x0 - frame, y0 - frame), (x1 + frame, y1 + frame), light, -1)
            glass = dark + 18 * rng.standard_normal()
            cv2.rectangle(canvas, (x0, y0), (x1, y1), glass, -1)
            if rng.random() < 0.5:  # what is behind the glass
                leaves = dead_leaves(64, rng).astype(np.float32)
                inside = cv2.resize(leaves, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
                canvas[y0:y1, x0:x1] = 0.7 * glass + 0.3 * inside
            for k in range(1, panes[0]):
                x = x0 + (x1 - x0) * k // int(panes[0])
                cv2.line(canvas, (x, y0), (x, y1), light, max(frame // 2, 1))
            for k in range(1, panes[1]):
                y = y0 + (y1 - y0) * k // int(panes[1])
                cv2.line(canvas, (x0, y), (x1, y), light, max(frame // 2, 1))
            if arched:
                centre = ((x0 + x1) // 2, y0)
                axes = ((x1 - x0) // 2, (x1 - x0) // 3)
                cv2.ellipse(canvas, centre, axes, 0, 180, 360, light, frame)
            cv2.rectangle(
                canvas, (x0 - 2 * frame, y1 + frame), (x1 + 2 * frame, y1 + 3 * frame), light, -1
            )
    # Weather and grain: without them all windows would be alike.
    grain = cv2.resize(dead_leaves(size // 2, rng), (size, size)).astype(np.float32) - 127
    canvas += rng.uniform(0.05, 0.16) * grain + rng.uniform(5, 14) * pink_noise(size, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def repeated(texture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat a piece of a texture in rows and columns, with small differences, as façades do."""
    size = len(texture)
    side = int(size * rng.uniform(0.35, 1.0))
    x, y = rng.integers(0, size - side + 1, 2)
    columns = int(rng.integers(2, 7))
    rows = int(np.clip(columns + rng.integers(-2, 3), 1, 6))
    shape = (-(-size // columns), -(-size // rows))
    piece: Any = texture[y : y + side, x : x + side].astype(np.float32)
    piece = cv2.resize(piece, shape, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.3:
        piece = np.concatenate([piece[:, ::2], piece[:, ::-2]], 1)
    canvas: Any = np.tile(piece, (rows, columns + 1))[:size, :size]
    canvas = canvas + rng.uniform(6, 22) * pink_noise(size, rng)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def pink_noise(size: int, rng: np.random.Generator) -> np.ndarray:
    """Make (size, size) float32 noise of amplitude 1/f, mean 0 and standard deviation 1."""
    fy = np.fft.fftfreq(size)[:, None]
    fx = np.fft.rfftfreq(size)[None]
    frequency = np.hypot(fx, fy)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) / frequency
    noise = np.fft.irfft2(spectrum, (size, size))
    return (noise / noise.std()).astype(np.float32)


def _some(items: list, limit: int | None) -> list:
    """Take `limit` evenly spaced items."""
    if limit is None or len(items) <= limit:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).round().astype(int)]


def _squares(photo: np.ndarray, size: int) -> list[np.ndarray]:
    short, long = min(photo.shape), max(photo.shape)
    offsets = np.linspace(0, long - short, min(-(-long // short), 3)).round().astype(int)
    upright = photo.shape[0] > photo.shape[1]
    crops = [photo[o : o + short, :] if upright else photo[:, o : o + short] for o in offsets]
    interpolation = cv2.INTER_AREA if short > size else cv2.INTER_CUBIC
    return [cv2.resize(crop, (size, size), interpolation=interpolation) for crop in crops]

"""Grey textures of rendered scenes, from photos or procedural, in one mip-mapped tensor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.progress import track
from edm_hloc.synthetic.painted_textures import dead_leaves, facade, repeated

FRACTION_BITS = 12
"""Bits of the fraction in fixed-point texel coordinates."""

logger = logging.getLogger(__name__)

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
"""Of the files that `TextureBank.from_folder` reads, in lower case."""


def read_grey(path: Path) -> np.ndarray:
    """The grey values of a photo as stored, whatever its EXIF orientation: (H, W) uint8.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        photo = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except (OSError, cv2.error) as error:
        raise ImageError(f"Cannot read image {path}: {error}.") from error
    if photo is None:
        raise ImageError(f"Cannot read image {path}: it is not an image.")
    return photo


class TextureBank:
    """N square grey textures with their mip pyramids, sampled by texture number and texel.

    All levels of all textures lie in one flat uint8 tensor, so that a bilinear lookup, with a level
    of its own for each sample, is four gathers. Outside a texture its mirror image continues, so
    any window is valid. A texture takes about 1.4·S² bytes.

    Args:
        textures: (N, S, S) uint8, S a power of two.

    Attributes:
        textures: those given.
        size: S.
        weights: (N,) relative probabilities of being drawn, in [0.05, 1]; larger for textures with
            more detail.

    Raises:
        ValueError: another shape, or too many textures for 32-bit indices.
    """

    def __init__(self, textures: Tensor) -> None:
        if textures.ndim != 3 or textures.shape[1] != textures.shape[2]:
            raise ValueError(f"textures must have the shape (N, S, S), not {tuple(textures.shape)}")
        self.size = int(textures.shape[1])
        if self.size & (self.size - 1):
            raise ValueError(f"the texture size must be a power of two, not {self.size}")
        self.textures = textures
        count, device = len(textures), textures.device
        sides = [self.size >> level for level in range(self.size.bit_length())]
        # One more row and column, the mirror image, for the bilinear lookup at the last texels.
        areas = [(side + 1) ** 2 for side in sides]
        self._stride = sum(areas)
        if count * self._stride >= 2**31:
            raise ValueError(f"{count} textures of {self.size} px are too many for 32-bit indices")
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
        # Smooth textures, such as skies and blurred backgrounds, are of no use for training: below
        # a mean gradient of 4 grey levels per pixel the weight falls.
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
        """The same bank on another device, or itself if it is there."""
        textures = self.textures.to(device)
        return self if textures.device == self.device else TextureBank(textures)

    def sample(self, texture: Tensor, x: Tensor, y: Tensor, area: Tensor) -> Tensor:
        """Look up grey values in [0, 1], bilinearly in one mip level.

        Any values of x, y and area are safe: NaN and infinity give some texel.

        Args:
            texture: int32, numbers of the textures; broadcasts with the others.
            x, y: float32, in texels of level 0; the texture covers [0, S] and is mirrored outside.
            area: float32, texels² of level 0 that one sample stands for.

        Returns:
            float32, of the shape of x and y.
        """
        # The exponent of a float is its log2, rounded down; the level is log4(area), rounded down,
        # since the bilinear filter blurs as well. Integers and fixed point are much faster on a CPU
        # than log2, remainder, comparisons and where.
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
        """Mirror coordinates into the texture: the texel before them at `level`, the fraction."""
        period = 2 * self.size << FRACTION_BITS
        fixed = x.mul(1 << FRACTION_BITS).to(torch.int32).bitwise_and_(period - 1)
        fixed = torch.minimum(fixed, period - 1 - fixed)
        fixed = (fixed >> level).sub_(1 << FRACTION_BITS - 1).clamp_(min=0)
        weight = (
            fixed.bitwise_and((1 << FRACTION_BITS) - 1).to(torch.float32).mul_(2.0**-FRACTION_BITS)
        )
        return fixed >> FRACTION_BITS, weight

    def _at(self, index: Tensor) -> Tensor:
        return self._flat.index_select(0, index.view(-1)).view_as(index).float()

    def save(self, path: Path, quality: int = 90) -> None:
        """Write the textures as JPEGs into one file; a texture of 512 px takes about 50 KiB.

        Args:
            path: the file.
            quality: of the JPEGs, 1 to 100.
        """
        blobs = []
        for texture in self.textures.cpu().numpy():
            _, blob = cv2.imencode(".jpg", texture, [cv2.IMWRITE_JPEG_QUALITY, quality])
            blobs.append(blob.ravel())
        lengths = np.array([len(blob) for blob in blobs], np.int64)
        with path.open("wb") as file:  # given a path, np.savez would add .npz to it
            np.savez(file, jpegs=np.concatenate(blobs), lengths=lengths)

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> TextureBank:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            device: where the bank lies.

        Raises:
            EdmHlocError: there is no such file, or it is no such pack.
        """
        if not path.is_file():
            raise EdmHlocError(f"There is no folder of photos and no pack of textures {path}.")
        try:
            with np.load(path, allow_pickle=False) as pack:
                jpegs, lengths = pack["jpegs"], pack["lengths"]
            blobs = np.split(jpegs, np.cumsum(lengths)[:-1])
            decoded: list[Any] = [cv2.imdecode(blob, cv2.IMREAD_GRAYSCALE) for blob in blobs]
            textures = torch.from_numpy(np.stack(decoded))
        except (OSError, KeyError, ValueError, TypeError, cv2.error) as error:
            raise EdmHlocError(
                f"{path} is no pack of textures ({error}): write one with TextureBank.save."
            ) from error
        return cls(textures.to(device))

    @classmethod
    def from_folder(
        cls, folder: Path, size: int = 512, device: torch.device | str = "cpu"
    ) -> TextureBank:
        """Cut square grey textures from the photos below a folder.

        A photo gives ceil(long side / short side) squares of its whole short side, at most 3,
        spread evenly and resized to `size`. For every six squares, rounded up, one texture of
        repeated pieces is added (see `repeated`). Photos whose short side is below `size` / 2 are
        left out, and so are unreadable ones, with a warning.

        Args:
            folder: searched with its subfolders.
            size: side of the textures, a power of two.
            device: where the bank lies.

        Raises:
            EdmHlocError: no usable photo in the folder.
        """
        paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
        textures: list[np.ndarray] = []
        for path in track(paths, "Textures", "photo"):
            try:
                photo = read_grey(path)
            except ImageError as error:
                logger.warning("Left out of the textures: %s", error)
                continue
            if min(photo.shape) >= size // 2:
                textures.extend(_squares(photo, size))
        if not textures:
            raise EdmHlocError(
                f"No photo below {folder} has both sides of at least {size // 2} px: name another "
                "folder, or none for procedural textures."
            )
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(textures), -(-len(textures) // 6), replace=False)
        textures += [repeated(textures[i], rng) for i in chosen]
        return cls(torch.from_numpy(np.stack(textures)).to(device))

    @classmethod
    def procedural(
        cls, count: int = 64, size: int = 512, seed: int = 0, device: torch.device | str = "cpu"
    ) -> TextureBank:
        """Paint textures: half dead leaves, a quarter façades, a quarter repeated pieces."""
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

    def of_tiles(self, count: int = 96, seed: int = 0) -> TextureBank:
        """Another bank: a third painted façades, two thirds repeated pieces of these textures.

        Args:
            count: of its textures.
            seed: of the random numbers.
        """
        tiles = []
        for number, sequence in enumerate(np.random.SeedSequence(seed).spawn(count)):
            rng = np.random.default_rng(sequence)
            if number % 3 == 0:
                tiles.append(facade(self.size, rng))
            else:
                chosen = self.textures[int(rng.integers(len(self)))]
                tiles.append(repeated(chosen.cpu().numpy(), rng))
        return TextureBank(torch.from_numpy(np.stack(tiles)).to(self.device))

    @classmethod
    def dead_leaves(
        cls, count: int = 64, size: int = 512, seed: int = 0, device: torch.device | str = "cpu"
    ) -> TextureBank:
        """Paint textures of dead leaves only (see the function `dead_leaves`)."""
        sequences = np.random.SeedSequence(seed).spawn(count)
        textures = [dead_leaves(size, np.random.default_rng(s)) for s in sequences]
        return cls(torch.from_numpy(np.stack(textures)).to(device))


def _squares(photo: np.ndarray, size: int) -> list[np.ndarray]:
    """One to three squares that cover a photo (H, W), each resized to (size, size)."""
    short, long = min(photo.shape), max(photo.shape)
    offsets = np.linspace(0, long - short, min(-(-long // short), 3)).round().astype(int)
    upright = photo.shape[0] > photo.shape[1]
    crops = [photo[o : o + short, :] if upright else photo[:, o : o + short] for o in offsets]
    interpolation = cv2.INTER_AREA if short > size else cv2.INTER_CUBIC
    return [cv2.resize(crop, (size, size), interpolation=interpolation) for crop in crops]

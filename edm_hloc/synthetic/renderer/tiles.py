"""Images cut into tiles of 8 × 8 pixels: where they are sampled, functions on them, their lists.

Everything the renderer evaluates per sample is linear in the pixel (x, y): a coefficient triple
(c0, cx, cy) stands for c0 + cx·x + cy·y. Pixels are in the frame where the centre of the top-left
pixel is (0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 8  # pixels along each side of a tile


@dataclass(frozen=True)
class TileGrid:
    """I images of one size, cut into ny × nx tiles each; the last ones may reach beyond the image.

    Attributes:
        images: I.
        height, width: of the images, in pixels.
        device: of all tensors.
    """

    images: int
    height: int
    width: int
    device: torch.device

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles (ny, nx) in an image."""
        return -(-self.height // TILE), -(-self.width // TILE)

    @property
    def tile_centres(self) -> Tensor:
        """(3, ny·nx) homogeneous pixels (1, x, y) of the tiles' centres, in row order."""
        ny, nx = self.tiles
        centres = homogeneous_grid(ny, nx, TILE, self.device).flatten(1)
        centres[1:] += TILE / 2
        return centres

    @property
    def image_centre(self) -> Tensor:
        """(3, 1) homogeneous pixel (1, x, y) of the image's centre."""
        return torch.tensor(
            [[1.0], [(self.width - 1) / 2], [(self.height - 1) / 2]], device=self.device
        )

    def pixel_functions(self, rows: Tensor, K: Tensor) -> Tensor:
        """Turn linear functions of the ray (x, y, 1) into linear functions of the pixel.

        Args:
            rows: (I, ..., 3) factors of the ray's coordinates.
            K: (I, 3, 3) intrinsics.

        Returns:
            (I, ..., 3) factors of (1, x, y).
        """
        K = K.view(len(K), *[1] * (rows.ndim - 2), 3, 3)
        gx = rows[..., 0] / K[..., 0, 0]
        gy = rows[..., 1] / K[..., 1, 1]
        g0 = rows[..., 2] - gx * K[..., 0, 2] - gy * K[..., 1, 2]
        return torch.stack([g0, gx, gy], -1)

    def untile(self, values: Tensor) -> Tensor:
        """(I·ny·nx, 64) values of the pixels in the order of the tiles → (I, H, W)."""
        ny, nx = self.tiles
        grid = values.view(self.images, ny, nx, TILE, TILE).transpose(2, 3)
        return grid.reshape(self.images, ny * TILE, nx * TILE)[:, : self.height, : self.width]


def homogeneous_grid(rows: int, columns: int, step: float, device: torch.device) -> Tensor:
    """(3, rows, columns) of (1, x, y) every `step` pixels from (-0.5, -0.5) on."""
    y = torch.arange(rows, device=device, dtype=torch.float32) * step - 0.5
    x = torch.arange(columns, device=device, dtype=torch.float32) * step - 0.5
    yy, xx = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([torch.ones_like(xx), xx, yy])


@dataclass(frozen=True)
class Samples:
    """Where a tile is sampled: the 64 pixel centres and, for antialiasing, the 81 pixel corners.

    Attributes:
        basis: (3, n) of (1, x, y) relative to the tile's first pixel, the pixel centres first;
            n = 64 without and 64 + 88 with the corners.
    """

    basis: Tensor

    @classmethod
    def at_centres(cls, device: torch.device) -> Samples:
        """One sample per pixel."""
        basis = homogeneous_grid(TILE, TILE, 1, device).flatten(1)
        basis[1:] += 0.5
        return cls(basis)

    @classmethod
    def with_corners(cls, device: torch.device) -> Samples:
        """Five samples per pixel, of which the corners are shared between neighbours."""
        corners = homogeneous_grid(TILE + 1, TILE + 1, 1, device).flatten(1)
        # Seven of them twice, since products of matrices are fastest for multiples of eight.
        return cls(torch.cat([cls.at_centres(device).basis, corners, corners[:, :7]], 1))

    @property
    def count(self) -> int:
        """Number of samples n."""
        return self.basis.shape[1]

    @property
    def area(self) -> float:
        """Area that one sample stands for, in square pixels."""
        return 1.0 if self.count == TILE**2 else 0.5

    def filtered(self, values: Tensor) -> Tensor:
        """Average sample values (t, n) to pixels (t, 64): half the centre, an eighth per corner."""
        if self.count == TILE**2:
            return values
        corners = values[:, TILE**2 : -7].reshape(-1, TILE + 1, TILE + 1)
        rows = corners[:, :-1] + corners[:, 1:]
        total = (rows[:, :, :-1] + rows[:, :, 1:]).flatten(1)
        return torch.add(values[:, : TILE**2] * 0.5, total, alpha=0.125)


@dataclass(frozen=True)
class TileChunk:
    """t tiles that are evaluated together.

    Attributes:
        tiles: (t,) numbers of the tiles, counted over all images.
        image: (t,) numbers of their images.
        x, y: (t,) each tile's first pixel.
        samples: where they are sampled.
    """

    tiles: Tensor
    image: Tensor
    x: Tensor
    y: Tensor
    samples: Samples

    @classmethod
    def of(cls, tiles: Tensor, grid: TileGrid, samples: Samples) -> TileChunk:
        """The chunk of the tiles with the given numbers (t,)."""
        ny, nx = grid.tiles
        within = tiles % (ny * nx)
        x, y = within % nx * TILE, within // nx * TILE
        return cls(tiles, tiles // (ny * nx), x, y, samples)

    def part(self, index: Tensor) -> TileChunk:
        """Some of the tiles, by their positions in the chunk."""
        return TileChunk(
            self.tiles[index], self.image[index], self.x[index], self.y[index], self.samples
        )

    def evaluate(self, linear: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the linear functions of each tile's candidates at its samples.

        Args:
            linear: (I, N, f, 3) coefficients of f functions of each of N primitives.
            item: (t, k) numbers of the primitives.

        Returns:
            The coefficients relative to each tile's first pixel, (t, k, f, 3), and the values,
            (t, k, f, samples).
        """
        c = linear.flatten(0, 1).index_select(
            0, (self.image[:, None] * linear.shape[1] + item).view(-1)
        )
        c = c.view(*item.shape, -1, 3)
        c[..., 0] += c[..., 1] * self.x[:, None, None] + c[..., 2] * self.y[:, None, None]
        return c, (c.view(-1, 3) @ self.samples.basis).view(*c.shape[:3], -1)


@dataclass(frozen=True)
class CandidateLists:
    """The primitives that may be visible in each tile.

    Attributes:
        length: (tiles,) how many there are.
        item: (tiles, longest) their numbers, padded with 0; longest is at least 1.
    """

    length: Tensor
    item: Tensor

    @classmethod
    def of(cls, possible: Tensor) -> CandidateLists:
        """The lists from a mask (tiles, N) of the primitives that may be visible."""
        length = possible.sum(1)
        tile, primitive = possible.nonzero().unbind(1)
        rank = torch.arange(len(tile), device=tile.device) - (length.cumsum(0) - length)[tile]
        most = int(length.max())
        item = torch.zeros(len(length), max(most, 1), dtype=torch.int64, device=tile.device)
        item[tile, rank] = primitive
        return cls(length, item)


def bounds_over_tiles(
    linear: Tensor, centres: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Bounds of linear functions over tiles: the value at the centre ± a spread.

    Args:
        linear: (..., 3) coefficients.
        centres: (3, T) homogeneous pixels (1, x, y) of the tiles' centres.
        size: (width, height) of a tile in pixels.

    Returns:
        Values (..., T) at the centres and spreads (..., 1).
    """
    values = (linear.reshape(-1, 3) @ centres).view(*linear.shape[:-1], -1)
    spread = linear[..., 1].abs() * (size[0] / 2) + linear[..., 2].abs() * (size[1] / 2)
    return values, spread[..., None]


def max_elements(device: torch.device) -> int:
    """Elements in an array that is worked on at once.

    On a CPU it should stay in the cache; a GPU is fastest with large kernels.
    """
    return 1 << 18 if device.type == "cpu" else 1 << 25

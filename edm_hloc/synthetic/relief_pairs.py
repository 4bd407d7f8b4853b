"""Random pairs of views of photos that became reliefs: real textures on real-looking geometry."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.pairs import RenderedPairs
from edm_hloc.synthetic.photometric_effects import photograph
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.random_views import (
    CANDIDATES,
    Standpoints,
    candidate_cameras,
    choose_second,
    low_resolution,
    usual_overlap,
)
from edm_hloc.synthetic.reliefs import Relief, cast, grey_values, lift
from edm_hloc.synthetic.textures import TextureBank

RELIEF_TOLERANCE = 0.015
"""Relative difference of depths above which a point of a relief is hidden: its steps are low."""


class ReliefSampler:
    """Renders random pairs of reliefs, as `PairSampler` does scenes.

    Where there is no relief, beyond the borders of a photo, each image shows some other photo, and
    its depth is 0.

    Args:
        textures: the photos; moved to `device` if they are elsewhere.
        difficulty: in [0, 1]; as of `PairSampler`.
        device: on which to render.
        seed: of the random numbers.
        photometric_effects: add the effects of cameras and hours (see `photograph`).
    """

    REGIONS = 6
    """Reliefs and first cameras that are drawn at once for a pair, and where they look."""
    ROUNDS = 100
    """Times that cameras are drawn for a relief before it is an error that no two overlap."""
    SEEN = 0.8
    """Least share of a view that is relief."""

    def __init__(
        self,
        textures: TextureBank,
        difficulty: float = 0.5,
        device: torch.device | str = "cpu",
        seed: int = 0,
        photometric_effects: bool = True,
    ) -> None:
        self.textures = textures.to(device)
        self.difficulty = difficulty
        self.random = Random(seed, device)
        self.photometric_effects = photometric_effects

    @torch.no_grad()
    def sample(self, batch: int, height: int, width: int) -> RenderedPairs:
        """Render `batch` pairs of (height, width) pixels.

        Raises:
            EdmHlocError: no cameras with enough overlap were found.
        """
        images, depths, cameras, overlaps = [], [], [], []
        for _ in range(batch):
            relief = self._draw_relief(max(height, width))
            pair, overlap = self._draw_cameras(relief, height, width)
            depth, uv = cast(relief, pair, height, width)
            image = grey_values(relief, self.textures, uv, depth)
            self._show_backdrops(image, depth)
            images.append(image)
            depths.append(depth)
            cameras.append(pair)
            overlaps.append(overlap)
        image, depth = torch.cat(images), torch.stack(depths)
        if self.photometric_effects:
            image = photograph(image, depth.flatten(0, 1), self.random, self.difficulty)
        K = torch.stack([pair.K[:, 0] for pair in cameras])
        T = torch.stack([pair.cam_from_world[:, 0] for pair in cameras])
        return RenderedPairs.of(image, depth, Cameras(K, T), torch.stack(overlaps))

    def _draw_textures(self, count: int) -> Tensor:
        weights, generator = self.textures.weights, self.random.generator
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def _draw_relief(self, pixels: int) -> Relief:
        """A relief between a wall and the ground, of four photos where one has too few texels."""
        rng = self.random
        many = 0.8 if pixels > 0.9 * self.textures.size else 0.2
        k = 2 if bool(rng.chance(1, p=many)) else 1
        angle = float(rng.uniform(1, high=math.radians(80)))
        c, s = math.cos(angle), math.sin(angle)
        frame = torch.stack([rng.values(1, 0, 0), rng.values(0, -s, -c), rng.values(0, -c, s)], 1)
        return lift(self.textures, self._draw_textures(k * k).view(k, k), frame, rng)

    def _draw_cameras(self, relief: Relief, height: int, width: int) -> tuple[Cameras, Tensor]:
        """Two cameras, (2, 1), that overlap as asked, and their overlap."""
        low, overlap = low_resolution(height, width), usual_overlap(self.difficulty)
        for _ in range(self.ROUNDS):
            cameras = candidate_cameras(
                self._standpoints(relief), self.random, CANDIDATES, self.difficulty, height, width
            )
            small = cameras.at_size((height, width), low)
            flat = Cameras(
                small.K.flatten(0, 1)[:, None], small.cam_from_world.flatten(0, 1)[:, None]
            )
            depth, _ = cast(relief, flat, *low)
            depth = depth.view(*small.K.shape[:2], *low)
            good, second, share = choose_second(depth, small, overlap, self.random, self.SEEN)
            if good.any():
                i = int(good.to(torch.uint8).argmax())
                views = torch.stack([torch.zeros_like(second[i]), second[i]])
                return Cameras(
                    cameras.K[i, views][:, None], cameras.cam_from_world[i, views][:, None]
                ), share[i]
        raise EdmHlocError(f"no two views of a relief overlap by {overlap[0]:.2f} to {overlap[1]}")

    def _standpoints(self, relief: Relief) -> Standpoints:
        """Where photos of a relief are taken from, the more obliquely the flatter it lies."""
        rng, n = self.random, self.REGIONS
        u, v, h = relief.frame.unbind(1)
        lying = h[2]  # 0 for a wall, 1 for the ground
        aside = rng.normal(n, 1) * 0.35
        towards = rng.normal(n, 1) * 0.25 + lying * rng.uniform(n, 1, high=1.4)
        direction = h + aside * u + towards * v
        direction = direction / direction.norm(dim=1, keepdim=True)
        place = rng.uniform(n, 2, low=-0.3, high=0.3)
        anchor = place[:, :1] * u + place[:, 1:] * v
        eye = anchor + direction * rng.log_uniform(n, 1, low=0.35, high=1.0)
        corner = torch.full_like(eye, 10.0)
        return Standpoints(eye, anchor, -corner, corner)

    def _show_backdrops(self, images: Tensor, depth: Tensor) -> None:
        """Show another photo, turned, shifted and scaled, where an image (V, H, W) has no depth."""
        rng, textures, views = self.random, self.textures, len(images)
        angle, scale = rng.uniform(views, high=6.3), rng.log_uniform(views, low=0.5, high=2)
        shift = rng.uniform(2, views) * textures.size
        texture = self._draw_textures(views).to(torch.int32)
        bare = (depth <= 0).nonzero(as_tuple=True)
        view, y, x = bare
        c, s = (angle.cos() * scale)[view], (angle.sin() * scale)[view]
        column, row = x * c - y * s + shift[0][view], x * s + y * c + shift[1][view]
        images[bare] = textures.sample(texture[view], column, row, scale.square()[view])

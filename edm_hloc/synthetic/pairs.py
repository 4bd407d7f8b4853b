"""Random pairs of overlapping views with exact depth and pose: training data for a matcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.appearance import Appearance, random_lights, random_materials
from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.layouts import LAYOUTS, Layout
from edm_hloc.synthetic.photometric_effects import photograph
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.random_views import (
    CANDIDATES,
    candidate_cameras,
    choose_second,
    low_resolution,
    usual_overlap,
)
from edm_hloc.synthetic.renderer.render import render, render_depth
from edm_hloc.synthetic.shapes import Shapes, concatenate
from edm_hloc.synthetic.textures import TextureBank


@dataclass(frozen=True)
class RenderedPairs:
    """B pairs of views.

    Attributes:
        image0, image1: (B, 1, H, W) float32 grey values in [0, 1].
        depth0, depth1: (B, H, W) float32, metres along the optical axis of the ray through each
            pixel's centre; 0 where there is none (sky).
        K0, K1: (B, 3, 3) intrinsics in pixels; the centre of the top-left pixel is (0, 0).
        T_0to1: (B, 4, 4) from camera 0 to camera 1.
        overlap: (B,) share of an image's pixels that are visible in the other one: the geometric
            mean of both directions, measured at low resolution (see `pair_overlap`).
    """

    image0: Tensor
    image1: Tensor
    depth0: Tensor
    depth1: Tensor
    K0: Tensor
    K1: Tensor
    T_0to1: Tensor
    overlap: Tensor

    @classmethod
    def of(cls, images: Tensor, depth: Tensor, cameras: Cameras, overlap: Tensor) -> RenderedPairs:
        """The pairs of the images (2B, H, W), depth maps (B, 2, H, W) and cameras (B, 2)."""
        image = images.unflatten(0, (-1, 2))[:, :, None]
        K, T = cameras.K, cameras.cam_from_world
        return cls(
            image[:, 0],
            image[:, 1],
            depth[:, 0],
            depth[:, 1],
            K[:, 0],
            K[:, 1],
            T[:, 1] @ torch.linalg.inv(T[:, 0]),
            overlap,
        )


@dataclass(frozen=True)
class PairOptions:
    """Which pairs a `PairSampler` draws.

    Attributes:
        layouts: kinds of scenes (names of `LAYOUTS`), drawn with equal probability.
        overlap: smallest and largest overlap of a pair; None: from 0.45 at difficulty 0 or 0.08 at
            difficulty 1, up to 0.95.
        photometric_effects: add the effects of cameras and hours (see `photograph`); without them
            the two images of a pair agree but for the light.
        change_cameras: changes the cameras that were drawn, (n, 1 + candidates), before their
            overlap is measured; the random numbers are the sampler's.
    """

    layouts: tuple[str, ...] = tuple(LAYOUTS)
    overlap: tuple[float, float] | None = None
    photometric_effects: bool = True
    change_cameras: Callable[[Cameras, Random], Cameras] | None = None


TILED = PairOptions(("posters", "masonry", "facade", "room"), overlap=(0.1, 0.45))
"""Scenes with large walls and little overlap: with a bank of tiles (`TextureBank.of_tiles`), many
points have a twin in the other image and are not seen there themselves."""


@dataclass(frozen=True)
class PairScenes:
    """B scenes with two cameras each.

    Attributes:
        shapes: geometry of the scenes.
        cameras: (B, 2).
        overlap: (B,) as in `RenderedPairs`.
        span: (B,) length in metres that fills the longer side of the view at its nearest fifth, in
            the view where it is smaller.
    """

    shapes: Shapes
    cameras: Cameras
    overlap: Tensor
    span: Tensor

    def select(self, index: Tensor) -> PairScenes:
        """Some of the scenes, by indices."""
        shapes, cameras = self.shapes.select(index), self.cameras.select(index)
        return PairScenes(shapes, cameras, self.overlap[index], self.span[index])


class PairSampler:
    """Renders random pairs; the same seed on the same device gives the same sequence of batches.

    `difficulty` and `random` may be set anew at any time.

    Args:
        textures: moved to `device` if they are elsewhere.
        difficulty: in [0, 1]; widens baselines, scale changes, roll and photometric differences,
            weakens textures, and lowers the smallest overlap.
        device: on which to render.
        seed: of the random numbers.
        options: which pairs to draw.

    Raises:
        KeyError: unknown kind of scene.
    """

    ROUNDS = 50
    """Batches of candidates that are drawn before it is an error that too few overlap as asked."""

    def __init__(
        self,
        textures: TextureBank,
        difficulty: float = 0.5,
        device: torch.device | str = "cpu",
        seed: int = 0,
        options: PairOptions | None = None,
    ) -> None:
        self.textures = textures.to(device)
        self.difficulty = difficulty
        self.random = Random(seed, device)
        self.options = options or PairOptions()
        self._layouts = [LAYOUTS[name] for name in self.options.layouts]

    @property
    def overlap_range(self) -> tuple[float, float]:
        """Smallest and largest overlap of a pair, at the present difficulty."""
        if self.options.overlap is not None:
            return self.options.overlap
        return usual_overlap(self.difficulty)

    @torch.no_grad()
    def sample(self, batch: int, height: int, width: int) -> RenderedPairs:
        """Render `batch` pairs of (height, width) pixels.

        Raises:
            EdmHlocError: no pairs with such an overlap were found.
        """
        scenes = self.draw_scenes(batch, height, width)
        rng, textures = self.random, self.textures
        materials = random_materials(
            scenes.shapes, scenes.span, max(height, width), textures, rng, self.difficulty
        )
        lights = random_lights(rng, batch, 2, self.difficulty)
        cameras = scenes.cameras
        appearance = Appearance(materials, lights, textures)
        out = render(scenes.shapes, appearance, cameras, height, width)
        images = out.image.flatten(0, 1)
        if self.options.photometric_effects:
            images = photograph(images, out.depth.flatten(0, 1), rng, self.difficulty)
        return RenderedPairs.of(images, out.depth, cameras, scenes.overlap)

    def draw_scenes(self, batch: int, height: int, width: int) -> PairScenes:
        """Draw scenes and pairs of cameras until `batch` of them overlap as asked.

        Raises:
            EdmHlocError: too few of them did.
        """
        kept: list[PairScenes] = []
        missing = batch
        for _ in range(self.ROUNDS):
            layout = self._draw_layouts(int(missing * 1.15) + 2)
            cameras = candidate_cameras(
                layout, self.random, CANDIDATES, self.difficulty, height, width
            )
            if self.options.change_cameras is not None:
                cameras = self.options.change_cameras(cameras, self.random)
            good, scenes = self._choose(layout.shapes, cameras, height, width)
            kept.append(scenes.select(good.nonzero()[:missing, 0]))
            missing -= len(kept[-1].overlap)
            if not missing:
                break
        else:
            least, most = self.overlap_range
            raise EdmHlocError(
                f"Only {batch - missing} of {batch} pairs with an overlap in [{least}, {most}] "
                "were found: ask for a wider range."
            )
        return PairScenes(
            concatenate([scenes.shapes for scenes in kept]),
            Cameras(
                torch.cat([scenes.cameras.K for scenes in kept]),
                torch.cat([scenes.cameras.cam_from_world for scenes in kept]),
            ),
            torch.cat([scenes.overlap for scenes in kept]),
            torch.cat([scenes.span for scenes in kept]),
        )

    def _draw_layouts(self, number: int) -> Layout:
        kinds = len(self._layouts)
        drawn = self.random.integers(number, low=0, high=kinds)
        counts = torch.bincount(drawn, minlength=kinds).tolist()
        parts = [make(self.random, n) for make, n in zip(self._layouts, counts, strict=True) if n]
        # The first ones that overlap are kept: shuffle, so that every kind has the same chance.
        order = torch.randperm(number, generator=self.random.generator, device=self.random.device)
        shapes = concatenate([part.shapes for part in parts]).select(order)
        points = {
            name: torch.cat([getattr(part, name) for part in parts])[order]
            for name in ("eye", "anchor", "camera_low", "camera_high")
        }
        return Layout(shapes=shapes, **points)

    def _choose(
        self, shapes: Shapes, cameras: Cameras, height: int, width: int
    ) -> tuple[Tensor, PairScenes]:
        """Choose one of the candidates for the second camera by its overlap at low resolution.

        Args:
            shapes: n scenes.
            cameras: (n, 1 + candidates), the first cameras first.
            height, width: of the images that the cameras are for.

        Returns:
            Which scenes have a candidate that overlaps as asked (n,), and the scenes with the
            chosen ones.
        """
        low = low_resolution(height, width)
        small = cameras.at_size((height, width), low)
        depth = render_depth(shapes, small, *low)
        good, second, share = choose_second(depth, small, self.overlap_range, self.random)
        row = torch.arange(len(second), device=second.device)
        pair = Cameras(
            torch.stack([cameras.K[:, 0], cameras.K[row, second]], 1),
            torch.stack([cameras.cam_from_world[:, 0], cameras.cam_from_world[row, second]], 1),
        )
        near = torch.where(depth > 0, depth, torch.inf).flatten(2)
        near = near.kthvalue(near.shape[2] // 5, 2).values
        span = near.clamp(max=1e6) * max(height, width) / cameras.K[..., 0, 0]
        span = torch.minimum(span[:, 0], span[row, second])
        return good, PairScenes(shapes, pair, share, span)

"""Random pairs of overlapping views with exact depth and pose: the training data of a matcher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.dressing import random_lights, random_materials
from edm_hloc.synthetic.layouts import LAYOUTS, Layout
from edm_hloc.synthetic.photometric import photograph
from edm_hloc.synthetic.render import render, render_depth
from edm_hloc.synthetic.scene import (
    Cameras,
    Random,
    Shapes,
    concatenate,
    intrinsics,
    look_at,
    rotation,
)
from edm_hloc.synthetic.textures import TextureBank


@dataclass(frozen=True)
class RenderedPairs:
    """B pairs of views.

    image0, image1: (B, 1, H, W) float grey in [0, 1].
    depth0, depth1: (B, H, W) float, along the optical axis, of the ray through each pixel's
    centre; 0 where there is none (sky).
    K0, K1: (B, 3, 3) where the top-left pixel's centre is (0, 0).
    T_0to1: (B, 4, 4) from camera 0 to camera 1.
    overlap: (B,) share of an image's pixels seen in the other one: the geometric mean of the two
    directions, measured at low resolution. A photo's middle half, enlarged, overlaps it by 0.5.
    """

    image0: Tensor
    image1: Tensor
    depth0: Tensor
    depth1: Tensor
    K0: Tensor
    K1: Tensor
    T_0to1: Tensor
    overlap: Tensor

    def to(self, device: torch.device | str) -> RenderedPairs:
        return RenderedPairs(*(getattr(self, f.name).to(device) for f in fields(self)))


# layout, random numbers, number of second cameras, difficulty, height, width → n × (1 + number)
DrawCameras = Callable[[Layout, Random, int, float, int, int], Cameras]


class PairSampler:
    """Renders random pairs; the same seed on the same device gives the same sequence of batches.

    `difficulty` in [0, 1] may be changed at any time: it widens baselines, scale changes, roll and
    photometric differences, weakens textures, and lowers the overlap asked for.
    """

    CANDIDATES = 5
    LOW_RESOLUTION = 24
    ROUNDS = 50

    def __init__(
        self,
        textures: TextureBank,
        difficulty: float = 0.5,
        device: torch.device | str = "cpu",
        seed: int = 0,
        *,
        layouts: Iterable[str] = tuple(LAYOUTS),
        overlap: tuple[float, float] | None = None,
        photometric: bool = True,
        draw_cameras: DrawCameras | None = None,
    ) -> None:
        """Prepare to sample.

        Args:
            textures: moved to `device` if it is elsewhere.
            layouts: kinds of scene, drawn with equal chance.
            overlap: least and largest overlap of a pair; None sets it by the difficulty.
            photometric: whether to add what cameras and hours do; without, images agree with the
            scene.
            draw_cameras: in place of `candidate_cameras`.
        """
        self.textures = textures.to(device)
        self.difficulty = difficulty
        self.random = Random(seed, device)
        self.layouts = [LAYOUTS[name] for name in layouts]
        self._overlap = overlap
        self.photometric = photometric
        self.draw_cameras = draw_cameras or candidate_cameras

    @property
    def overlap_range(self) -> tuple[float, float]:
        if self._overlap is not None:
            return self._overlap
        d = self.difficulty
        return 0.45 - 0.37 * d, 0.95

    @torch.no_grad()
    def sample(self, batch: int, height: int, width: int) -> RenderedPairs:
        """Render `batch` pairs of (height, width)."""
        shapes, cameras, overlap, span = self._scenes(batch, height, width)
        rng = self.random
        materials = random_materials(
            shapes, span, max(height, width), self.textures, rng, self.difficulty
        )
        lights = random_lights(rng, batch, 2, self.difficulty)
        out = render(shapes, materials, cameras, lights, self.textures, height, width)
        images = out.image.flatten(0, 1)
        if self.photometric:
            images = photograph(images, out.depth.flatten(0, 1), rng, self.difficulty)
        images = images.view(batch, 2, 1, height, width)
        T = cameras.cam_from_world
        return RenderedPairs(
            images[:, 0],
            images[:, 1],
            out.depth[:, 0],
            out.depth[:, 1],
            cameras.K[:, 0],
            cameras.K[:, 1],
            T[:, 1] @ torch.linalg.inv(T[:, 0]),
            overlap,
        )

    def _scenes(
        self, batch: int, height: int, width: int
    ) -> tuple[Shapes, Cameras, Tensor, Tensor]:
        """Draw scenes and pairs of cameras until `batch` of them overlap as asked.

        Gives the scenes, their two cameras, the overlap and the length that spans the view near by.
        """
        kept: list[tuple[Shapes, Cameras, Tensor, Tensor]] = []
        missing = batch
        for _ in range(self.ROUNDS):
            layout = self._draw_layouts(int(missing * 1.15) + 2)
            cameras = self.draw_cameras(
                layout, self.random, self.CANDIDATES, self.difficulty, height, width
            )
            good, pair, overlap, span = self._choose(layout.shapes, cameras, height, width)
            number = good.nonzero()[:missing, 0]
            shapes = layout.shapes.select(number)
            kept.append((shapes, pair.select(number), overlap[number], span[number]))
            missing -= len(number)
            if not missing:
                break
        else:
            least, most = self.overlap_range
            raise EdmHlocError(
                f"found {batch - missing} of {batch} pairs with an overlap in [{least}, {most}]; "
                "ask for a wider range"
            )
        shapes_, cameras_, overlaps, spans = zip(*kept, strict=True)
        return (
            concatenate(shapes_),
            Cameras(
                torch.cat([pair.K for pair in cameras_]),
                torch.cat([pair.cam_from_world for pair in cameras_]),
            ),
            torch.cat(overlaps),
            torch.cat(spans),
        )

    def _draw_layouts(self, number: int) -> Layout:
        kinds = len(self.layouts)
        drawn = self.random.integers(number, low=0, high=kinds)
        counts = torch.bincount(drawn, minlength=kinds).tolist()
        parts = [make(self.random, n) for make, n in zip(self.layouts, counts, strict=True) if n]
        # Rejection takes the first good ones: shuffle, so that every kind has its chance.
        order = torch.randperm(number, generator=self.random.generator, device=self.random.device)
        shapes = concatenate([part.shapes for part in parts]).select(order)
        rest = (
            torch.cat([getattr(part, name) for part in parts])[order]
            for name in ("eye", "anchor", "camera_low", "camera_high")
        )
        return Layout(shapes, *rest)

    def _choose(
        self, shapes: Shapes, cameras: Cameras, height: int, width: int
    ) -> tuple[Tensor, Cameras, Tensor, Tensor]:
        """Choose for the first camera one of the candidates by overlap, seen at low resolution.

        Gives which scenes have a good one (n,), the two cameras, their overlap (n,), and the length
        (n,) that spans the view at its nearest fifth, the smaller of the two.
        """
        shrink = self.LOW_RESOLUTION / max(height, width)
        low = (max(round(height * shrink), 8), max(round(width * shrink), 8))
        small = cameras.at_size((height, width), low)
        depth = render_depth(shapes, small, *low)
        share = pair_overlap(depth, small)
        least, most = self.overlap_range
        usable = _well_placed(depth)
        good = usable[:, :1] & usable[:, 1:] & (share >= least) & (share <= most)
        wish = self.random.uniform(*share.shape) * good
        choice = wish.argmax(1)
        row = torch.arange(len(choice), device=choice.device)
        second = choice + 1
        pair = Cameras(
            torch.stack([cameras.K[:, 0], cameras.K[row, second]], 1),
            torch.stack([cameras.cam_from_world[:, 0], cameras.cam_from_world[row, second]], 1),
        )
        near = torch.where(depth > 0, depth, torch.inf).flatten(2)
        near = near.kthvalue(near.shape[2] // 5, 2).values
        span = near.clamp(max=1e6) * max(height, width) / cameras.K[..., 0, 0]
        span = torch.minimum(span[:, 0], span[row, second])
        return good.any(1), pair, share[row, choice], span


def candidate_cameras(
    layout: Layout, rng: Random, count: int, difficulty: float, height: int, width: int
) -> Cameras:
    """Draw one first camera per scene and `count` second ones, the last of them moved the most."""
    n = len(layout.eye)
    views = count + 1
    span = max(height, width)
    step = torch.linspace(0, 1, views, device=rng.device)  # 0 is the first camera itself

    # Walk around the anchor and towards or away from it.
    offset = (layout.eye - layout.anchor)[:, None]
    most = 0.35 + 0.85 * difficulty
    angles = rng.uniform(n, views, 3, low=0.5) * rng.sign(n, views, 3) * step[:, None] * most
    angles[..., 0] *= 0.35
    angles[..., 1] *= 0.35
    scale = 1.3 + 1.5 * difficulty
    closer = (rng.uniform(n, views, low=-1) * step * math.log(scale)).exp()
    moved = (rotation(angles) @ offset[..., None])[..., 0] * closer[..., None]
    centre = layout.anchor[:, None] + moved
    centre = centre.clamp(layout.camera_low[:, None], layout.camera_high[:, None])
    distance = offset.norm(dim=-1, keepdim=True)
    target = layout.anchor[:, None] + rng.normal(n, views, 3) * distance * (
        0.05 + 0.08 * step[:, None]
    )

    upright = rng.chance(n, 1, p=0.6)
    roll = rng.normal(n, 1) * torch.where(upright, 0.06, 0.2 + 0.4 * difficulty)
    change = rng.normal(n, views) * torch.where(
        rng.chance(n, 1, p=0.5), 0.06, 0.1 + 0.7 * difficulty
    )
    roll = (roll + change * (step > 0)).clamp(-1.6, 1.6)
    focal = rng.log_uniform(n, 1, low=0.65, high=1.6) * span
    zoom = (rng.uniform(n, views, low=-1) * math.log(1.2 + 2.3 * difficulty)).exp()
    other_camera = rng.chance(n, 1, p=0.7)
    focal = focal * torch.where(other_camera & (step > 0), zoom, 1.0)
    return Cameras(intrinsics(focal, height, width), look_at(centre, target, roll))


def warp(depth: Tensor, K0: Tensor, T0: Tensor, K1: Tensor, T1: Tensor) -> tuple[Tensor, Tensor]:
    """Move pixels by their depth (..., H, W) in camera 0 to camera 1; T0, T1: cam_from_world.

    Gives (..., H, W, 2) positions x, y, NaN where there is no depth or the point lies behind
    camera 1, and (..., H, W) depths there, 0 where `depth` is.
    """
    height, width = depth.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=depth.device, dtype=depth.dtype),
        torch.arange(width, device=depth.device, dtype=depth.dtype),
        indexing="ij",
    )
    ray = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    T = T1 @ torch.linalg.inv(T0)
    M = K1 @ T[..., :3, :3] @ torch.linalg.inv(K0)
    moved = ray @ M.mT * depth.flatten(-2)[..., None] + (K1 @ T[..., :3, 3:]).mT
    moved = moved.view(*depth.shape, 3)
    z = torch.where(depth > 0, moved[..., 2], 0.0)
    xy = moved[..., :2] / torch.where(z > 0, z, torch.nan)[..., None]
    return xy, z


def covisible(depth0: Tensor, xy: Tensor, z: Tensor, depth1: Tensor, tolerance: float) -> Tensor:
    """Mask (..., H, W) of the pixels whose warped point is the one that image 1 shows there.

    It is where z agrees with the depth of the nearest pixel, or with 1/z interpolated, which is
    linear on planes, however slanted; to `tolerance` as a share.
    """
    height, width = depth1.shape[-2:]
    size = torch.tensor([width, height], device=xy.device)
    position = (xy.nan_to_num(-1e6).clamp(-1e6, 1e6) + 0.5) / size  # in 0..1
    inside = (depth0 > 0) & (z > 0) & ((position >= 0) & (position < 1)).all(-1)
    q = torch.where(depth1 > 0, 1 / depth1.clamp(min=1e-12), 0.0).reshape(-1, 1, height, width)
    grid = (position * 2 - 1).reshape(-1, *xy.shape[-3:])
    agrees = torch.zeros_like(inside)
    for mode in ("nearest", "bilinear"):
        found = F.grid_sample(q, grid, mode, padding_mode="border", align_corners=False)
        agrees |= (found.view(z.shape) * z - 1).abs() < tolerance
    return inside & agrees


def pair_overlap(depth: Tensor, cameras: Cameras) -> Tensor:
    """(B, V-1) overlap of view 0 with each other view: the mean share of covisible pixels.

    It is the geometric mean of both directions, so that a change of scale lowers it by its factor
    and not by its square.
    """
    views = depth.shape[1]
    first = depth[:, :1].expand(-1, views - 1, -1, -1)
    K0, T0 = cameras.K[:, :1], cameras.cam_from_world[:, :1]
    K1, T1 = cameras.K[:, 1:], cameras.cam_from_world[:, 1:]
    there = covisible(first, *warp(first, K0, T0, K1, T1), depth[:, 1:], 0.06)
    back = covisible(depth[:, 1:], *warp(depth[:, 1:], K1, T1, K0, T0), first, 0.06)
    return (there.float().mean((2, 3)) * back.float().mean((2, 3))).sqrt()


def _well_placed(depth: Tensor) -> Tensor:
    """(B, V) bool: enough of the view is no sky, and little is right before the lens."""
    flat = depth.flatten(2)
    seen = flat > 0
    middle = flat.masked_fill(~seen, torch.nan).nanmedian(2, keepdim=True).values
    close = (seen & (flat < 0.2 * middle)).float().mean(2)
    return (seen.float().mean(2) > 0.6) & (close < 0.08)

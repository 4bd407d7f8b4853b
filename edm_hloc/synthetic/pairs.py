"""Random pairs of overlapping views with exact depth and pose: the training data of a matcher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.layouts import LAYOUTS, Layout
from edm_hloc.synthetic.photometric import photograph
from edm_hloc.synthetic.render import Lights, render, render_depth
from edm_hloc.synthetic.scene import (
    Cameras,
    Materials,
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
    depth0, depth1: (B, H, W) float, along the optical axis, of the ray through each pixel's centre; 0
    where there is none (sky).
    K0, K1: (B, 3, 3) where the top-left pixel's centre is (0, 0).
    T_0to1: (B, 4, 4) from camera 0 to camera 1.
    overlap: (B,) share of an image's pixels seen in the other one, the smaller of the two directions,
    measured at low resolution.
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


class PairSampler:
    """Renders random pairs; the same seed on the same device gives the same sequence of batches.

    `difficulty` in [0, 1] may be changed at any time: it widens baselines, scale changes, roll and
    photometric differences, weakens textures, and lowers the overlap asked for.
    """

    CANDIDATES = 5
    LOW_RESOLUTION = 24

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
    ) -> None:
        """Prepare to sample.

        Args:
            textures: moved to `device` if it is elsewhere.
            layouts: kinds of scene, drawn with equal chance.
            overlap: least and largest overlap of a pair; None sets it by the difficulty.
            photometric: whether to add what cameras and hours do; without, images agree with the scene.
        """
        self.textures = textures.to(device)
        self.difficulty = difficulty
        self.random = Random(seed, device)
        self.layouts = [LAYOUTS[name] for name in layouts]
        self._overlap = overlap
        self.photometric = photometric

    @property
    def overlap_range(self) -> tuple[float, float]:
        if self._overlap is not None:
            return self._overlap
        d = self.difficulty
        return 0.45 - 0.37 * d, 0.95

    @torch.no_grad()
    def sample(self, batch: int, height: int, width: int) -> RenderedPairs:
        """Render `batch` pairs of (height, width)."""
        shapes, cameras, overlap, size = self._scenes(batch, height, width)
        rng = self.random
        materials = random_materials(shapes, size, self.textures, rng, self.difficulty)
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

    def _scenes(self, batch: int, height: int, width: int) -> tuple[Shapes, Cameras, Tensor, Tensor]:
        """Draw scenes and pairs of cameras until `batch` of them overlap as asked.

        Gives the scenes, their two cameras, the overlap and the length that spans the view near by.
        """
        kept: list[tuple[Shapes, Cameras, Tensor, Tensor]] = []
        missing = batch
        while missing > 0:
            layout = self._draw_layouts(int(missing * 1.5) + 4)
            cameras = candidate_cameras(
                layout, self.random, self.CANDIDATES, self.difficulty, height, width
            )
            good, pair, overlap, size = self._choose(layout.shapes, cameras, height, width)
            number = good.nonzero()[:missing, 0]
            shapes = layout.shapes.select(number)
            kept.append((shapes, pair.select(number), overlap[number], size[number]))
            missing -= len(number)
        shapes_, cameras_, overlaps, sizes = zip(*kept, strict=True)
        return (
            concatenate(shapes_),
            Cameras(
                torch.cat([pair.K for pair in cameras_]),
                torch.cat([pair.cam_from_world for pair in cameras_]),
            ),
            torch.cat(overlaps),
            torch.cat(sizes),
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
        size = near.clamp(max=1e6) * max(height, width) / cameras.K[..., 0, 0]
        size = torch.minimum(size[:, 0], size[row, second])
        return good.any(1), pair, share[row, choice], size


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
    closer = (rng.uniform(n, views, low=-1) * step * torch.tensor(scale).log()).exp()
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
        rng.chance(n, 1, p=0.6), 0.06, 0.1 + 0.6 * difficulty
    )
    roll = (roll + change * (step > 0)).clamp(-1.6, 1.6)
    focal = rng.log_uniform(n, 1, low=0.65, high=1.6) * span
    zoom = (rng.uniform(n, views, low=-1) * step * torch.tensor(scale).log() * 0.6).exp()
    other_camera = rng.chance(n, 1, p=0.7)
    focal = focal * torch.where(other_camera, zoom, 1.0)
    return Cameras(intrinsics(focal, height, width), look_at(centre, target, roll))


def random_materials(
    shapes: Shapes, size: Tensor, bank: TextureBank, rng: Random, difficulty: float
) -> Materials:
    """Dress scenes: one texture per group, its scale such that a photo or more spans the view.

    size: (B,) length that spans the view near by.
    """
    n, quads = shapes.quad_present.shape
    rounds = shapes.round_present.shape[1]
    device = shapes.quads.device
    sky = quads + rounds
    group = torch.cat([shapes.quad_group, shapes.round_group], 1)
    groups = int(group.max()) + 2
    group = F.pad(group, (0, 1), value=groups - 1)

    length = shapes.quads[..., 1:, :].norm(dim=-1)
    # Round things: their window covers about half their girth.
    girth = 3 * shapes.round_axes.square().sum(-2).prod(-1) ** (1 / 6)
    length = torch.cat([length, girth[..., None].expand(-1, -1, 2)], 1)
    length = F.pad(length, (0, 0, 0, 1))

    def per_group(values: Tensor) -> Tensor:
        return values.gather(1, group)

    density = rng.log_uniform(n, 1, low=350, high=1200) / size[:, None]
    density = density * per_group(rng.log_uniform(n, groups, low=0.6, high=1.6))
    texture = torch.multinomial(
        bank.weights, n * groups, replacement=True, generator=rng.generator
    ).view(n, groups)
    weak = rng.chance(n, groups, p=0.03 + 0.2 * difficulty)
    gain = rng.log_uniform(n, groups, low=0.7, high=1.3)
    gain = torch.where(weak, rng.log_uniform(n, groups, low=0.1, high=0.4), gain)
    blur = torch.where(weak, rng.uniform(n, groups, low=0, high=3), 0.0)
    offset = rng.uniform(n, groups, low=0.4, high=0.75)
    gain, blur, offset = per_group(gain), per_group(blur), per_group(offset)
    width = length[..., 0] * density * rng.sign(n, sky + 1)
    height = length[..., 1] * density
    corner = rng.uniform(2, n, sky + 1) * bank.size
    width[:, sky] = height[:, sky] = bank.size
    gain[:, sky] = rng.uniform(n, low=0.05, high=0.5)
    offset[:, sky] = rng.uniform(n, low=0.55, high=0.95)
    blur[:, sky] = rng.uniform(n, low=2.5, high=6)
    return Materials(
        per_group(texture), corner[0], corner[1], width, height, gain, offset, blur
    )


def random_lights(rng: Random, n: int, views: int, difficulty: float) -> Lights:
    """Draw a sun per scene which moves between the views of some: another hour."""
    first = rng.normal(n, 1, 3)
    other = rng.chance(n, 1, 1, p=0.3 + 0.4 * difficulty)
    direction = first + torch.where(other, 1.0, 0.05) * rng.normal(n, views, 3)
    direction[..., 2] = direction[..., 2].abs() + 0.2
    direction = F.normalize(direction, dim=-1)
    diffuse = rng.uniform(n, 1, low=0, high=0.8).expand(n, views)
    diffuse = diffuse * torch.where(other[..., 0], rng.uniform(n, views, low=0.2, high=1.2), 1.0)
    return Lights(direction, 1.05 - 0.7 * diffuse, diffuse)


def warp(depth: Tensor, K0: Tensor, T0: Tensor, K1: Tensor, T1: Tensor) -> tuple[Tensor, Tensor]:
    """Move pixels by depth and pose: (..., H, W) depth of camera 0 to pixels in camera 1.

    Gives (..., H, W, 2) positions x, y (NaN or outside where not seen) and (..., H, W) depths there;
    the depth is 0 where `depth` is.
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
    """Mask (..., H, W) of the pixels of image 0 whose warped point image 1 shows, by its nearest depth."""
    height, width = depth1.shape[-2:]
    x, y = xy.nan_to_num(-1e6).round().clamp(-1e6, 1e6).unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > 0)
    index = (y * width + x).where(inside, 0.0).long()
    found = depth1.flatten(-2).gather(-1, index.flatten(-2)).view(z.shape)
    return inside & (depth0 > 0) & ((z - found).abs() < tolerance * found)


def pair_overlap(depth: Tensor, cameras: Cameras) -> Tensor:
    """(B, V-1) overlap of view 0 with each other view: the smaller share of covisible pixels."""
    views = depth.shape[1]
    first = depth[:, :1].expand(-1, views - 1, -1, -1)
    K0, T0 = cameras.K[:, :1], cameras.cam_from_world[:, :1]
    K1, T1 = cameras.K[:, 1:], cameras.cam_from_world[:, 1:]
    there = covisible(first, *warp(first, K0, T0, K1, T1), depth[:, 1:], 0.06)
    back = covisible(depth[:, 1:], *warp(depth[:, 1:], K1, T1, K0, T0), first, 0.06)
    return torch.minimum(there.float().mean((2, 3)), back.float().mean((2, 3)))


def _well_placed(depth: Tensor) -> Tensor:
    """(B, V) bool: enough of the view is no sky, and little is right before the lens."""
    flat = depth.flatten(2)
    seen = flat > 0
    middle = flat.masked_fill(~seen, torch.nan).nanmedian(2, keepdim=True).values
    close = (seen & (flat < 0.2 * middle)).float().mean(2)
    return (seen.float().mean(2) > 0.6) & (close < 0.08)

"""Reliefs lifted from photos: a plausible height for each point of a flat photo, and rays to it.

A relief is a square of one metre in the plane h = 0 with its photo, u to the right and v down in
the photo from -1/2 to 1/2, and heights h(u, v) towards the viewer. Beyond its borders it continues
at the height of the border, but has no photo there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.textures import TextureBank

CELLS = 256
"""Rows and columns of a map of heights."""
_COARSE = 4  # px along the side of the blocks whose first crossing is searched from top to bottom
_SEARCH_STEPS = 48
_NEAR_STEPS = 16
_REFINEMENTS = 3
_CLOSE = 1e-4  # m above or below the relief at which a crossing counts as found
_GRAZING = 0.03  # smallest descent of a ray to the plane, by its length
_TAPS = 4  # samples along the longer axis of a pixel's footprint in the photo


@dataclass(frozen=True)
class Relief:
    """The relief of a photo, or of a square of photos side by side.

    Attributes:
        textures: numbers in the bank of the photos, (k, k) int64.
        heights: (CELLS, CELLS) in metres, the centre of the first cell at u = v = -1/2 + 1/512.
        frame: (3, 3) with the columns u, v and h in the world's coordinates, of the same origin.
    """

    textures: Tensor
    heights: Tensor
    frame: Tensor


def lift(bank: TextureBank, textures: Tensor, frame: Tensor, rng: Random) -> Relief:
    """Make a relief whose steps follow the edges in its photos.

    The heights are a random mixture of smooth noise of several octaves, of the photo without its
    fine structure (bright is high or low), of what is brighter or darker than some grey value, and
    of some regions with borders along the photo's edges. No slope is so steep that it tears.

    Args:
        bank: the photos.
        textures, frame: see `Relief`.
        rng: the random numbers.
    """
    side = CELLS // len(textures)
    photos = bank.textures[textures.flatten()].float()[:, None] / 255
    photos = F.interpolate(photos, (side, side), mode="area").view(*textures.shape, side, side)
    photo = photos.permute(0, 2, 1, 3).reshape(1, 1, side * len(textures), -1)
    photo = F.interpolate(photo, (CELLS, CELLS), mode="bilinear", align_corners=False)

    radius = int(rng.integers(1, low=4, high=13))
    smooth = _standard(_follow_edges(photo, photo, radius, 0.01))
    level, softness = rng.normal(1) * 0.7, rng.log_uniform(1, low=0.05, high=0.4)
    plateau = _standard(torch.sigmoid((smooth - level) / softness))
    blobs = _noise(rng, 2, 4, 0.3)
    regions = torch.sigmoid((blobs - rng.uniform(1, low=0.3, high=1.3)) / 0.15)
    regions = _standard(_follow_edges(photo, regions, radius, 0.002))
    rough = _noise(rng, 0, 6, float(rng.uniform(1, low=0.7, high=1.5)))

    parts = torch.cat([rough, smooth, plateau, regions], 1)
    weights = rng.uniform(4, low=0.1) * rng.chance(4, p=0.7) * rng.sign(4)
    weights[0] = weights[0] + 0.2
    heights = (parts * weights[:, None, None]).sum(1, keepdim=True)
    heights = _blurred(heights, float(rng.log_uniform(1, low=0.8, high=3.0)))[0, 0]
    steep = torch.cat([heights.diff(dim=0).flatten(), heights.diff(dim=1).flatten()]).abs() * CELLS
    steep = steep.kthvalue(math.ceil(0.995 * len(steep))).values
    slope = rng.uniform(1, low=0.5, high=1.8) / steep.clamp(min=1e-6)
    extent = rng.log_uniform(1, low=0.03, high=0.25) / (heights.max() - heights.min()).clamp(1e-6)
    return Relief(textures, (heights - heights.mean()) * torch.minimum(slope, extent), frame)


def cast(relief: Relief, cameras: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the ray through the centre of each pixel first meets the relief.

    Args:
        relief: one relief.
        cameras: (V, 1); those not above the relief see nothing.
        height, width: of their images, in pixels.

    Returns:
        (V, H, W) depths along the optical axis in metres, 0 where the ray meets nothing or what is
        beyond the photo's border; and (V, H, W, 2) with u and v there, arbitrary without a depth.
    """
    rays, descent, eye = _rays(relief, cameras, height, width)
    top, bottom = relief.heights.max() + 1e-3, relief.heights.min() - 1e-3
    middles = (
        torch.arange(_COARSE // 2, n + _COARSE // 2, _COARSE, device=descent.device).clamp(
            max=n - 1
        )
        for n in (height, width)
    )
    blocks = rays.part((slice(None), *torch.meshgrid(*middles, indexing="ij")))
    above, below = blocks.search(relief, top, bottom, _SEARCH_STEPS)
    margin = (top - bottom) / _SEARCH_STEPS
    around = F.max_pool2d(torch.stack([above, -below], 1), 3, 1, 1) + margin
    around = around.repeat_interleave(_COARSE, 2).repeat_interleave(_COARSE, 3)
    above, below = around[:, :, :height, :width].unbind(1)
    high, low = torch.minimum(above, top), torch.maximum(-below, bottom)
    wide = (high - low > 6 * margin).nonzero(as_tuple=True)  # at steps, behind which relief hides
    high[wide], low[wide] = rays.part(wide).search(relief, high[wide], low[wide], _NEAR_STEPS)
    h = rays.refine(relief, high, low)
    missed = (rays.above(relief, h).abs() > _CLOSE) & (descent > 0)
    some = missed.nonzero(as_tuple=True)
    h[some] = rays.part(some).fully(relief, top, bottom)
    uv = rays.at(h)
    found = rays.above(relief, h).abs() < _CLOSE
    seen = found & (uv.abs() < 0.5).all(-1) & (descent > 0) & (eye > top)
    return torch.where(seen, (eye - h) / descent.clamp(min=1e-6), 0.0), uv


def grey_values(relief: Relief, bank: TextureBank, uv: Tensor, depth: Tensor) -> Tensor:
    """What the photo shows at the points that `cast` has found, filtered where it is minified.

    The footprint of a pixel is the parallelogram between its neighbours' points; samples along its
    longer axis are averaged, each of them as wide as the shorter one.

    Args:
        relief: one relief.
        bank: the photos.
        uv, depth: from `cast`.

    Returns:
        (V, H, W) in [0, 1], arbitrary where there is no depth.
    """
    rows = len(relief.textures)
    texels = (uv + 0.5) * (rows * bank.size)
    right, down = (_nearer_difference(texels, depth, axis) for axis in (2, 1))
    # Axes of the ellipse J·Jᵀ, with the columns `right` and `down` of J.
    a, b = right.square().add(down.square()).unbind(-1)
    c = (right[..., 0] * right[..., 1]).add(down[..., 0] * down[..., 1])
    mean, spread = (a + b) / 2, (((a - b) / 2).square() + c.square()).sqrt()
    long = mean + spread
    grey = _sampled(relief, bank, texels, torch.ones_like(long))
    many = (long > 2).nonzero(as_tuple=True)
    a, b, c, long, centre = a[many], b[many], c[many], long[many], texels[many]
    angle = 0.5 * torch.atan2(2 * c, a - b)
    axis = torch.stack([angle.cos(), angle.sin()], -1) * long.sqrt()[:, None]
    area = torch.maximum((mean - spread)[many], long / _TAPS**2)
    places = ((tap + 0.5) / _TAPS - 0.5 for tap in range(_TAPS))
    taps = [_sampled(relief, bank, centre + axis * place, area) for place in places]
    grey[many] = torch.stack(taps).mean(0)
    return grey


def _sampled(relief: Relief, bank: TextureBank, texels: Tensor, area: Tensor) -> Tensor:
    """Grey values (...) at the texels (..., 2) of all its photos, each as wide as `area` (...)."""
    photo = (texels / bank.size).floor_().clamp_(0, len(relief.textures) - 1)
    number = relief.textures.to(torch.int32)[photo[..., 1].long(), photo[..., 0].long()]
    x, y = (texels - photo * bank.size).unbind(-1)
    return bank.sample(number, x.contiguous(), y.contiguous(), area)


def _rays(
    relief: Relief, cameras: Cameras, height: int, width: int
) -> tuple[_Rays, Tensor, Tensor]:
    """The rays of V views.

    Returns:
        The rays; (V, H, W) loss of height by depth along the optical axis, 0 where a ray hardly
        descends; and (V, 1, 1) the heights of the cameras.
    """
    K, T = cameras.K[:, 0], cameras.cam_from_world[:, 0]
    y, x = torch.meshgrid(
        torch.arange(height, device=K.device, dtype=K.dtype),
        torch.arange(width, device=K.device, dtype=K.dtype),
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    local = T[:, :3, :3] @ relief.frame  # columns: u, v, h in the camera's coordinates
    directions = (pixels @ (local.mT @ torch.linalg.inv(K)).mT).view(-1, height, width, 3)
    eye = -(local.mT @ T[:, :3, 3:])[:, None, None, :, 0]
    least = _GRAZING * directions.norm(dim=-1)
    descent = torch.maximum(-directions[..., 2], least)
    drift = -directions[..., :2] / descent[..., None]
    rays = _Rays(eye[..., :2] - eye[..., 2:] * drift, drift)
    return rays, torch.where(descent > least, descent, 0.0), eye[..., 2]


@dataclass(frozen=True)
class _Rays:
    """Rays in the relief's coordinates, by the height h above the plane.

    Attributes:
        foot: (..., 2) u and v where the ray meets h = 0.
        drift: (..., 2) change of u and v by h.
    """

    foot: Tensor
    drift: Tensor

    def part(self, index: tuple) -> _Rays:
        """Some of the rays."""
        return _Rays(self.foot[index], self.drift[index])

    def at(self, h: Tensor) -> Tensor:
        """u and v (..., 2) where the rays are at the heights h (...)."""
        return torch.addcmul(self.foot, h[..., None], self.drift)

    def above(self, relief: Relief, h: Tensor) -> Tensor:
        """How far above the relief the rays are at the heights h (...), in metres."""
        return h - _heights_at(relief, self.at(h))

    def search(
        self, relief: Relief, high: Tensor, low: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        """Heights (...) between which the rays first meet the relief on their way down.

        Args:
            relief: the relief.
            high, low: between which heights to search; broadcast to (...).
            steps: equal parts of the way, one of which is the result; the last one if no part's
                lower end is below the relief.
        """
        share = torch.linspace(0, 1, steps + 1, device=self.foot.device)
        share = share.view(-1, *[1] * (self.foot.ndim - 1))
        h = (high + (low - high) * share).expand(-1, *self.foot.shape[:-1])
        # argmax is slow on a CPU
        left = torch.arange(steps, 0, -1, dtype=torch.uint8, device=h.device).view_as(share[1:])
        first = (left * (self.above(relief, h[1:]) <= 0)).amax(0, keepdim=True).clamp_(min=1)
        end = (steps + 1) - first.long()
        return h.gather(0, end - 1)[0], h.gather(0, end)[0]

    def fully(self, relief: Relief, top: Tensor, bottom: Tensor) -> Tensor:
        """Heights (...) at which the rays first meet the relief."""
        return self.refine(relief, *self.search(relief, top, bottom, 2 * _SEARCH_STEPS))

    def refine(self, relief: Relief, high: Tensor, low: Tensor) -> Tensor:
        """Heights (...) at which the rays meet the relief between two heights (...)."""
        h0, h1 = high, low
        gap0, gap1 = self.above(relief, h0), self.above(relief, h1)
        middle = h1
        for _ in range(_REFINEMENTS):  # regula falsi, by the Illinois rule
            change = gap1 - gap0
            middle = torch.lerp(h1, h0, gap1 / torch.where(change == 0, 1.0, change))
            found = self.above(relief, middle)
            same = (found > 0) == (gap1 > 0)
            h0, gap0 = torch.where(same, h0, h1), torch.where(same, gap0 / 2, gap1)
            h1, gap1 = middle, found
        return middle


def _heights_at(relief: Relief, uv: Tensor) -> Tensor:
    """Heights (...) at the points uv (..., 2), bilinearly interpolated."""
    grid = (uv * 2).reshape(1, 1, -1, 2)
    heights = relief.heights[None, None]
    found = F.grid_sample(heights, grid, "bilinear", "border", align_corners=False)
    return found.view(uv.shape[:-1])


def _nearer_difference(texels: Tensor, depth: Tensor, axis: int) -> Tensor:
    """Difference of neighbours' texels along an axis, on the side where the depth changes less."""
    n = texels.shape[axis]
    step = texels.diff(dim=axis)
    jump = depth.diff(dim=axis).abs()
    ahead = torch.cat([step, step.narrow(axis, n - 2, 1)], axis)
    behind = torch.cat([step.narrow(axis, 0, 1), step], axis)
    jump_ahead = torch.cat([jump, jump.narrow(axis, n - 2, 1)], axis)
    jump_behind = torch.cat([jump.narrow(axis, 0, 1), jump], axis)
    return torch.where((jump_ahead < jump_behind)[..., None], ahead, behind)


def _standard(field: Tensor) -> Tensor:
    """A field with the mean 0 and the standard deviation 1, or less if it is nearly flat."""
    return (field - field.mean()) / field.std().clamp(min=1e-3)


def _enlarged(field: Tensor, side: int) -> Tensor:
    return F.interpolate(field, (side, side), mode="bicubic", align_corners=True)


def _noise(rng: Random, first: int, last: int, roughness: float) -> Tensor:
    """(1, 1, CELLS, CELLS) smooth noise of the octaves first to last - 1, the first of 2 waves.

    Args:
        rng: the random numbers.
        first, last: octaves, of 2^(octave + 1) waves along a side.
        roughness: the amplitude falls by 2^-roughness from octave to octave.
    """
    total = rng.zeros(1, 1, 2, 2)
    for octave in range(first, last):
        field = rng.normal(1, 1, *[2 ** (octave + 1) + 1] * 2) * 2.0 ** (-roughness * octave)
        total = field + _enlarged(total, len(field[0, 0]))
    total = _enlarged(total, CELLS)
    return _standard(total)


def _follow_edges(guide: Tensor, field: Tensor, radius: int, smoothness: float) -> Tensor:
    """A field smoothed so that its borders follow the edges of a guide: the guided filter.

    Args:
        guide, field: (1, 1, N, N).
        radius: of the windows in which the result is linear in the guide, in cells.
        smoothness: variance of the guide below which it has no edge.
    """

    def mean(values: Tensor) -> Tensor:
        width = 2 * radius + 1
        total = F.pad(values, [radius + 1, radius] * 2, mode="replicate")
        for axis in (2, 3):
            total = total.cumsum(axis)
            n = total.shape[axis] - width
            total = total.narrow(axis, width, n) - total.narrow(axis, 0, n)
        return total / width**2

    of_guide, of_field = mean(guide), mean(field)
    covariance = mean(guide * field) - of_guide * of_field
    variance = mean(guide * guide) - of_guide * of_guide
    slope = covariance / (variance + smoothness)
    return mean(slope) * guide + mean(of_field - slope * of_guide)


def _blurred(field: Tensor, sigma: float) -> Tensor:
    """A field (1, 1, N, N) after a Gaussian filter of sigma cells."""
    radius = math.ceil(3 * sigma)
    offset = torch.arange(-radius, radius + 1, device=field.device, dtype=field.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(field, [radius] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])

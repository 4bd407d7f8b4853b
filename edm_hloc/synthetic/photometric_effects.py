"""Photometric effects on rendered images: haze, shadows, lamps, blur, exposure, noise, JPEG.

All work on N grey images (N, H, W), float32 in [0, 1] unless said otherwise, and give new ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from edm_hloc.synthetic.random_numbers import Random

# The luminance quantisation table of the JPEG standard (ITU-T T.81, table K.1).
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 "
    "14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 "
    "49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)


def photograph(images: Tensor, depth: Tensor, rng: Random, difficulty: float) -> Tensor:
    """Make rendered images look like photos by N different cameras at different hours.

    Args:
        images: (N, H, W) in [0, 1].
        depth: (N, H, W), 0 for the sky.
        rng: the random numbers.
        difficulty: in [0, 1]; raises the probability and the strength of the effects.

    Returns:
        (N, H, W) in [0, 1].
    """
    n, d = len(images), difficulty
    images = images.clone()

    def some(p: float) -> Tensor:
        """Indices of the images that get an effect of probability p."""
        return rng.chance(n, p=p).nonzero()[:, 0]

    i = some(0.05 + 0.15 * d)
    images[i] = haze(images[i], depth[i], rng.uniform(len(i)))
    i = some(0.1 + 0.3 * d)
    images[i] = cast_shadows(images[i], rng, rng.uniform(len(i), high=0.7))
    images = uneven_light(images, rng, (0.15 + 0.5 * d) * rng.normal(n).abs())
    night = some(0.03 + 0.1 * d)
    images[night] = lamplight(images[night], depth[night], rng)
    i = some(0.15 + 0.3 * d)
    images[i] = blur(images[i], rng, 0.6 + 1.2 * d)
    dark = torch.ones(n, device=images.device)
    dark[night] = 0.55
    images = expose(images, rng, dark, d)
    photons = rng.log_uniform(n, low=3000 - 2600 * d, high=30000) * dark
    images = noise(images, rng, photons, rng.log_uniform(n, low=0.001, high=0.003 + 0.02 * d))
    i = some(0.5)
    images[i] = jpeg(images[i], rng, rng.uniform(len(i), low=90 - 60 * d, high=98))
    return images.clamp_(0, 1)


def haze(images: Tensor, depth: Tensor, density: Tensor) -> Tensor:
    """Blend images with light grey, by the transmission exp(-density · depth / median depth).

    Args:
        images: (N, H, W).
        depth: (N, H, W); the sky, where it is 0, counts as 4 medians away.
        density: (N,) ≥ 0.
    """
    middle = depth[:, ::4, ::4].flatten(1).median(1).values.clamp(min=1e-6)[:, None, None]
    distance = torch.where(depth > 0, depth / middle, 4.0).clamp_(max=8)
    clear = (-density[:, None, None] * distance).exp_()
    return torch.lerp(torch.full_like(images, 0.8), images, clear)


def cast_shadows(images: Tensor, rng: Random, strength: Tensor) -> Tensor:
    """Darken one side of two wavy lines, sharply or softly, like shadows of things out of view.

    Args:
        images: (N, H, W).
        rng: the random numbers.
        strength: (N,) share of the light that each shadow takes away, in [0, 1].
    """
    n = len(images)
    x, y = _coordinates(images)
    light = torch.ones_like(images)
    for _ in range(2):
        angle = rng.uniform(n, 1, 1, high=2 * math.pi)
        across, along = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        wave = rng.uniform(n, 1, 1, high=0.3) * torch.sin(
            rng.uniform(n, 1, 1, low=1, high=9) * along + rng.uniform(n, 1, 1, high=6)
        )
        edge = rng.log_uniform(n, 1, 1, low=0.01, high=0.5)
        inside = torch.sigmoid((across + wave + rng.uniform(n, 1, 1, low=-0.8, high=0.8)) / edge)
        light = light * (1 - strength[:, None, None] * inside)
    return images * light


def uneven_light(images: Tensor, rng: Random, strength: Tensor) -> Tensor:
    """Brighten one side and darken the other, and darken the corners (vignetting).

    Args:
        images: (N, H, W).
        rng: the random numbers.
        strength: (N,) logarithm of the brightness at the side over that in the middle.
    """
    n = len(images)
    x, y = _coordinates(images)
    angle = rng.uniform(n, 1, 1, high=2 * math.pi)
    slope = (x * angle.cos() + y * angle.sin()) * strength[:, None, None]
    corners = (
        (x * x + y * y) * rng.uniform(n, 1, 1, high=0.6) * strength.clamp(max=1)[:, None, None]
    )
    return images * (slope - corners).exp_()


def lamplight(images: Tensor, depth: Tensor, rng: Random) -> Tensor:
    """Turn day into night: a dark sky, up to four pools of lamplight, and glare of the lamps.

    Args:
        images: (N, H, W).
        depth: (N, H, W), 0 for the sky.
        rng: the random numbers.

    Returns:
        (N, H, W); lamps exceed 1.
    """
    n = len(images)
    x, y = _coordinates(images)
    light = rng.uniform(n, 1, 1, low=0.03, high=0.25).expand_as(images)
    glare = torch.zeros_like(images)
    for _ in range(4):
        away = (x - rng.uniform(n, 1, 1, low=-1, high=1)).square()
        away = away + (y - rng.uniform(n, 1, 1, low=-1, high=1)).square()
        lit = rng.uniform(n, 1, 1) * rng.chance(n, 1, 1, p=0.7)
        light = light + lit / (1 + away * rng.log_uniform(n, 1, 1, low=2, high=30))
        glare = glare + lit * rng.chance(n, 1, 1, p=0.5) / (1 + away * 3000)
    return images * torch.where(depth > 0, light, 0.1) + glare


def blur(images: Tensor, rng: Random, most: float) -> Tensor:
    """Blur by defocus (a Gaussian) or motion (an elongated one), with a random σ.

    Args:
        images: (N, H, W).
        rng: the random numbers.
        most: largest σ of defocus, in pixels; the σ along the line of a motion is 1.2 times as
            large, plus 0.3.
    """
    n, radius = len(images), 5
    if not n:
        return images
    offset = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    angle = rng.uniform(n, 1, 1, high=math.pi)
    along = offset * angle.cos() + offset[:, None] * angle.sin()
    across = offset[:, None] * angle.cos() - offset * angle.sin()
    sigma = rng.uniform(n, 1, 1, low=0.3, high=most)
    moved = rng.chance(n, 1, 1, p=0.4)
    length = torch.where(moved, 1.2 * sigma + 0.3, sigma)
    width = torch.where(moved, 0.4, sigma)
    kernel = (-0.5 * ((along / length).square() + (across / width).square())).exp_()
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    padded = F.pad(images[None], [radius] * 4, mode="replicate")
    return F.conv2d(padded, kernel[:, None], groups=n)[0]


def expose(images: Tensor, rng: Random, dark: Tensor, difficulty: float) -> Tensor:
    """Expose by the mean and the spread of the grey values, with a random contrast and gamma.

    Highlights and shadows are clipped.

    Args:
        images: (N, H, W) ≥ 0.
        rng: the random numbers.
        dark: (N,) factor of the mean grey value aimed at and of the contrast, 1 by day.
        difficulty: in [0, 1]; widens the spread of exposure, contrast and gamma.
    """
    n = len(images)
    small = images[:, ::2, ::2].flatten(1)
    mean, spread = small.mean(1), small.std(1).clamp(min=1e-3)
    wanted = 0.44 * dark * (rng.normal(n) * (0.08 + 0.22 * difficulty)).exp()
    contrast = (0.2 / spread).clamp(0.6, 2.5) * dark
    contrast = contrast * (rng.normal(n) * (0.05 + 0.25 * difficulty)).exp()
    shift = wanted - mean * contrast
    images = torch.addcmul(shift[:, None, None], images, contrast[:, None, None])
    gamma = (rng.normal(n) * (0.05 + 0.2 * difficulty)).exp()[:, None, None]
    return images.clamp_(1e-3, 1).log_().mul_(gamma).exp_()


def noise(images: Tensor, rng: Random, photons: Tensor, read: Tensor) -> Tensor:
    """Add shot noise and read noise; the result is not clipped.

    Args:
        images: (N, H, W) ≥ 0.
        rng: the random numbers.
        photons: (N,) that a white pixel counts.
        read: (N,) standard deviation of the read noise, in grey values.
    """
    variance = images / photons[:, None, None] + read.square()[:, None, None]
    return images + variance.sqrt_() * rng.normal(*images.shape)


def jpeg(images: Tensor, rng: Random, quality: Tensor) -> Tensor:
    """Quantise the cosine coefficients of 8 × 8 blocks, as JPEG compression does.

    The grid of blocks has a random offset, since photos are cropped after they were stored.

    Args:
        images: (N, H, W).
        rng: the random numbers.
        quality: (N,) from 1 to 100, as of the reference implementation (libjpeg).

    Returns:
        (N, H, W); not clipped.
    """
    if not len(images):
        return images
    height, width = images.shape[1:]
    top, left = rng.integers(2, low=0, high=8).tolist()
    bottom, right = -(height + top) % 8, -(width + left) % 8
    padded = F.pad(images[None] - 0.5, [left, right, top, bottom], mode="replicate")[0]
    rows, columns = padded.shape[1] // 8, padded.shape[2] // 8
    blocks = padded.view(-1, rows, 8, columns, 8).transpose(2, 3).reshape(-1, rows * columns, 64)
    transform = _cosine_transform(images.device)
    table = torch.tensor([float(v) for v in _LUMINANCE.split()], device=images.device)
    quality = quality.clamp(1, 100)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    step = (table * scale[:, None]).clamp(min=1)[:, None] / 255
    coefficients = (blocks @ transform.T / step).round_() * step
    blocks = (coefficients @ transform).view(-1, rows, columns, 8, 8).transpose(2, 3)
    return blocks.reshape(padded.shape)[:, top : top + height, left : left + width] + 0.5


def _cosine_transform(device: torch.device) -> Tensor:
    """(64, 64) orthonormal two-dimensional cosine transform of flattened 8 × 8 blocks."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi * k[:, None] * (2 * k + 1) / 16) / 2
    basis[0] /= math.sqrt(2)
    return torch.kron(basis, basis)


def _coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """x (1, 1, W) and y (1, H, 1) of the pixels, from -1 to 1 along the longer side."""
    height, width = images.shape[1:]
    span = max(height, width) / 2
    x = (torch.arange(width, device=images.device) - (width - 1) / 2) / span
    y = (torch.arange(height, device=images.device) - (height - 1) / 2) / span
    return x[None, None], y[None, :, None]

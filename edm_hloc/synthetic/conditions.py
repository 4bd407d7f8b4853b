"""Test pairs with known pose, difficult in one respect each: texture, night, scale, roll, tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor

from edm_hloc.base.files import make_folder
from edm_hloc.base.progress import track
from edm_hloc.pairs.with_truth import PairWithPose, write_pairs_with_gt
from edm_hloc.synthetic.cameras import Cameras
from edm_hloc.synthetic.pairs import TILED, PairOptions, PairSampler
from edm_hloc.synthetic.photometric_effects import expose, lamplight, noise, photograph
from edm_hloc.synthetic.random_numbers import Random
from edm_hloc.synthetic.shapes import turn_about_z
from edm_hloc.synthetic.textures import TextureBank

Condition = Literal["plain", "low-texture", "day-night", "scale-2", "roll", "turned", "tiles"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

DIFFICULTY = 0.2
"""Difficulty of everything but the condition, in [0, 1]."""
LOW_CONTRAST = 0.12
"""Contrast of the textures under "low-texture", as a share of what it was."""
ROLL = (15.0, 45.0)
"""Smallest and largest roll under "roll", in degrees, either way."""
TURNED = (75.0, 180.0)
"""Smallest and largest roll under "turned", in degrees, either way."""


def write_condition(
    condition: Condition,
    folder: Path,
    pairs: int,
    textures: TextureBank,
    seed: int = 0,
    size: tuple[int, int] = (640, 480),
) -> Path:
    """Render pairs into `folder/images`, with a list of their poses and intrinsics.

    All conditions start from the same kind of pairs with moderate baselines ("plain").
    "low-texture" leaves an eighth of the textures' contrast, with the same noise. "day-night" takes
    the second photo by lamplight. "scale-2" gives the cameras focal lengths by which the first
    image shows everything about twice as large as the second. "roll" rolls the second camera by 15
    to 45 degrees, "turned" by 75 to 180. "tiles" has repeated façades and tiles on all surfaces,
    and photos that overlap little.

    Args:
        condition: what is difficult.
        folder: where to write; made if necessary.
        pairs: their number.
        textures: of the surfaces.
        seed: of the random numbers.
        size: (width, height) of the images, in pixels.

    Returns:
        `folder/pairs_with_gt.txt`, in SuperGlue's format.
    """
    if condition == "low-texture":
        textures = TextureBank(_low_contrast(textures.textures))
    options = PairOptions(
        overlap=(0.2, 0.55) if condition == "scale-2" else (0.35, 0.9),
        photometric_effects=condition != "day-night",
        change_cameras=_CHANGE_CAMERAS.get(condition),
    )
    if condition == "tiles":
        textures, options = textures.of_tiles(), TILED
    sampler = PairSampler(textures, DIFFICULTY, seed=seed, options=options)
    make_folder(folder / "images")
    listed = []
    for number in track(range(pairs), f"Rendering ({condition})", "pair"):
        rendered = sampler.sample(1, size[1], size[0])
        images = torch.cat([rendered.image0, rendered.image1])[:, 0]
        if condition == "day-night":
            depth = torch.cat([rendered.depth0, rendered.depth1])
            images = torch.cat(
                [
                    photograph(images[:1], depth[:1], sampler.random, DIFFICULTY),
                    _at_night(images[1:], depth[1:], sampler.random),
                ]
            )
        names = f"{number:04d}_0.png", f"{number:04d}_1.png"
        for name, image in zip(names, images, strict=True):
            pixels = image.mul(255).round().to(torch.uint8).cpu().numpy()
            encoded = cv2.imencode(".png", pixels)[1]
            (folder / "images" / name).write_bytes(encoded.tobytes())
        K0, K1, T = (
            m[0].double().cpu().numpy() for m in (rendered.K0, rendered.K1, rendered.T_0to1)
        )
        listed.append(PairWithPose(*names, 0, 0, K0, K1, T))
    path = folder / "pairs_with_gt.txt"
    write_pairs_with_gt(path, listed)
    return path


def _low_contrast(textures: Tensor) -> Tensor:
    """Textures (N, S, S) uint8 with `LOW_CONTRAST` about their mean grey values."""
    values = textures.float()
    mean = values.mean(dim=(1, 2), keepdim=True)
    return (mean + LOW_CONTRAST * (values - mean)).round().to(torch.uint8)


def _at_night(images: Tensor, depth: Tensor, rng: Random) -> Tensor:
    """Images (n, H, W) by lamplight, as `photograph` makes them."""
    n = len(images)
    dark = torch.full((n,), 0.55, device=images.device)
    images = expose(lamplight(images, depth, rng), rng, dark, DIFFICULTY)
    photons = rng.log_uniform(n, low=1000, high=5000)
    return noise(images, rng, photons, rng.log_uniform(n, low=0.002, high=0.01)).clamp(0, 1)


def _zoom(cameras: Cameras, rng: Random) -> Cameras:
    """Lengthen the focal length of the first camera and shorten that of the others, by √2 each."""
    K = cameras.K.clone()
    K[:, :1, :2, :2] *= math.sqrt(2)
    K[:, 1:, :2, :2] /= math.sqrt(2)
    return Cameras(K, cameras.cam_from_world)


def _roll(cameras: Cameras, rng: Random, degrees: tuple[float, float]) -> Cameras:
    """Roll all cameras but the first by random angles between two bounds, either way."""
    n, views = cameras.K.shape[:2]
    low, high = np.radians(degrees)
    angle = rng.uniform(n, views, low=float(low), high=float(high)) * rng.sign(n, views)
    angle[:, 0] = 0
    turn = torch.eye(4, device=angle.device).repeat(n, views, 1, 1)
    turn[..., :3, :3] = turn_about_z(angle)
    return Cameras(cameras.K, turn @ cameras.cam_from_world)


_CHANGE_CAMERAS: dict[str, Callable[[Cameras, Random], Cameras]] = {
    "scale-2": _zoom,
    "roll": partial(_roll, degrees=ROLL),
    "turned": partial(_roll, degrees=TURNED),
}

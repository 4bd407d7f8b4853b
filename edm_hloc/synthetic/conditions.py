"""Test pairs that are hard in one respect each: texture, night, scale, roll."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edm_hloc.pairs.with_truth import PairWithPose, write_pairs_with_gt
from edm_hloc.synthetic.layouts import Layout
from edm_hloc.synthetic.pairs import DrawCameras, PairSampler, candidate_cameras
from edm_hloc.synthetic.photometric import expose, lamps, noise, photograph
from edm_hloc.synthetic.scene import Cameras, Random
from edm_hloc.synthetic.textures import TextureBank

Condition = Literal["plain", "low-texture", "day-night", "scale-2", "roll", "turned"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)

DIFFICULTY = 0.2  # of everything but the condition
LOW_CONTRAST = 0.12  # of textures, to what they were
ROLL = (15.0, 45.0)  # degrees, either way
TURNED = (75.0, 180.0)


def write_condition(
    condition: Condition,
    folder: Path,
    pairs: int,
    textures: TextureBank,
    *,
    seed: int = 0,
    height: int = 480,
    width: int = 640,
) -> Path:
    """Render pairs into `folder/images`; gives `folder/pairs_with_gt.txt` (SuperGlue's format).

    All conditions start from the same kind of pairs, moderately wide apart ("plain"):
    "low-texture" leaves an eighth of the textures' contrast, with the same noise; "day-night" takes
    the second photo by lamplight; "scale-2" zooms the first camera in until it shows everything
    about twice as large as the second; "roll" turns the second camera by 15 to 45 degrees, "turned"
    by 75 to 180.
    """
    if condition == "low-texture":
        textures = TextureBank(_fade(textures.textures))
    sampler = PairSampler(
        textures,
        DIFFICULTY,
        seed=seed,
        overlap=(0.2, 0.55) if condition == "scale-2" else (0.35, 0.9),
        photometric=condition != "day-night",
        draw_cameras=_DRAW.get(condition),
    )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    listed = []
    for number in tqdm(range(pairs), desc=f"Rendering ({condition})", unit="pair", disable=None):
        rendered = sampler.sample(1, height, width)
        images = torch.cat([rendered.image0, rendered.image1])[:, 0]
        if condition == "day-night":
            depth = torch.cat([rendered.depth0, rendered.depth1])
            images = torch.cat(
                [
                    photograph(images[:1], depth[:1], sampler.random, DIFFICULTY),
                    _night(images[1:], depth[1:], sampler.random),
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


def _fade(textures: Tensor) -> Tensor:
    values = textures.float()
    mean = values.mean(dim=(1, 2), keepdim=True)
    return (mean + LOW_CONTRAST * (values - mean)).round().to(torch.uint8)


def _night(images: Tensor, depth: Tensor, rng: Random) -> Tensor:
    """As `photograph` makes its nights."""
    n = len(images)
    dark = torch.full((n,), 0.55, device=images.device)
    images = expose(lamps(images, depth, rng), rng, dark, DIFFICULTY)
    photons = rng.log_uniform(n, low=1000, high=5000)
    return noise(images, rng, photons, rng.log_uniform(n, low=0.002, high=0.01)).clamp(0, 1)


def _zoomed(
    layout: Layout, rng: Random, count: int, difficulty: float, height: int, width: int
) -> Cameras:
    cameras = candidate_cameras(layout, rng, count, difficulty, height, width)
    K = cameras.K.clone()
    K[:, :1, :2, :2] *= math.sqrt(2)
    K[:, 1:, :2, :2] /= math.sqrt(2)
    return Cameras(K, cameras.cam_from_world)


def _rolled(
    layout: Layout,
    rng: Random,
    count: int,
    difficulty: float,
    height: int,
    width: int,
    degrees: tuple[float, float] = ROLL,
) -> Cameras:
    cameras = candidate_cameras(layout, rng, count, difficulty, height, width)
    n, views = cameras.K.shape[:2]
    low, high = np.radians(degrees)
    angle = rng.uniform(n, views, low=float(low), high=float(high)) * rng.sign(n, views)
    angle[:, 0] = 0
    turn = torch.eye(4, device=angle.device).repeat(n, views, 1, 1)
    turn[..., 0, 0] = turn[..., 1, 1] = angle.cos()
    turn[..., 1, 0], turn[..., 0, 1] = angle.sin(), -angle.sin()
    return Cameras(cameras.K, turn @ cameras.cam_from_world)


_DRAW: dict[str, DrawCameras] = {
    "scale-2": _zoomed,
    "roll": _rolled,
    "turned": partial(_rolled, degrees=TURNED),
}

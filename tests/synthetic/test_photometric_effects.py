"""Photometric effects: ranges, and agreement with closed forms and OpenCV."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edm_hloc.synthetic import photometric_effects
from edm_hloc.synthetic.painted_textures import dead_leaves
from edm_hloc.synthetic.random_numbers import Random


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_photographs_are_images(difficulty: float) -> None:
    images = torch.rand(24, 41, 59, generator=torch.manual_seed(0))
    images[0], images[1] = 0, 1  # all black, all white
    depth = torch.rand(24, 41, 59, generator=torch.manual_seed(1)) * 9
    depth[2] = 0  # nothing but sky
    before = images.clone()
    out = photometric_effects.photograph(images, depth, Random(0), difficulty)
    assert out.shape == images.shape
    assert out.isfinite().all()
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(images, before)
    assert not torch.equal(out, images)


def test_haze() -> None:
    images = torch.full((2, 8, 8), 0.2)
    depth = torch.full((2, 8, 8), 5.0)
    out = photometric_effects.haze(images, depth, torch.tensor([0.0, 0.7]))
    assert torch.allclose(out[0], images[0])
    clear = math.exp(-0.7)
    assert torch.allclose(out[1], torch.tensor(0.2 * clear + 0.8 * (1 - clear)), atol=1e-6)


def test_noise_has_the_deviation_asked_for() -> None:
    images = torch.full((2, 200, 200), 0.5)
    noisy = photometric_effects.noise(
        images, Random(0), torch.tensor([1000.0, 1e9]), torch.tensor([0.0, 0.02])
    )
    expected = [math.sqrt(0.5 / 1000), 0.02]
    assert noisy.std((1, 2)).tolist() == pytest.approx(expected, rel=0.02)
    assert (noisy - images).mean().abs() < 5e-4


def test_blur_keeps_the_mean_and_smooths() -> None:
    images = torch.rand(6, 64, 64, generator=torch.manual_seed(0))
    blurred = photometric_effects.blur(images, Random(0), 1.5)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    assert (blurred[inner].mean((1, 2)) - images[inner].mean((1, 2))).abs().max() < 0.02
    assert (blurred.std((1, 2)) < 0.97 * images.std((1, 2))).all()
    flat = torch.full((2, 30, 40), 0.3)
    assert torch.allclose(photometric_effects.blur(flat, Random(1), 1.5), flat, atol=1e-5)


def test_jpeg_is_like_the_library() -> None:
    """Quality for quality, the error is that of OpenCV's encoder."""
    image = torch.from_numpy(dead_leaves(128, np.random.default_rng(0))).float() / 255
    image = F.avg_pool2d(image[None, None], 2)[0]
    errors = []
    for quality in (20, 50, 90):
        mine = photometric_effects.jpeg(image, Random(0), torch.tensor([float(quality)]))
        grey = (image[0] * 255).round().to(torch.uint8).numpy()
        _, blob = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])
        theirs = torch.from_numpy(cv2.imdecode(blob, cv2.IMREAD_GRAYSCALE)).float() / 255
        ours, other = (float((v - image[0]).square().mean().sqrt()) for v in (mine[0], theirs))
        assert ours == pytest.approx(other, rel=0.15)
        errors.append(ours)
    assert errors[0] > errors[1] > errors[2]

"""Cameras: poses and intrinsics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.synthetic.cameras import look_at
from tests.synthetic.simple_scenes import HEIGHT, WIDTH, camera


@given(st.floats(-3, 3), st.floats(-1.2, 1.2), st.floats(-3, 3))
@settings(max_examples=20, deadline=None)
def test_look_at(azimuth: float, elevation: float, roll: float) -> None:
    eye = 4 * torch.tensor(
        [
            math.cos(azimuth) * math.cos(elevation),
            math.sin(azimuth) * math.cos(elevation),
            math.sin(elevation),
        ]
    )
    target = torch.tensor([0.1, -0.2, 0.05])
    T = look_at(eye, target, torch.tensor(roll))
    R, t = T[:3, :3], T[:3, 3]
    assert torch.allclose(R @ R.T, torch.eye(3), atol=1e-5)
    assert torch.linalg.det(R) > 0
    assert torch.allclose(R @ eye + t, torch.zeros(3), atol=1e-5)
    seen = R @ target + t
    assert torch.allclose(seen, torch.tensor([0, 0, float(seen.norm())]), atol=1e-5)
    up = R @ torch.tensor([0.0, 0.0, 1.0])  # turned the other way in the image
    angle = math.atan2(float(up[0]), -float(up[1]))
    assert abs(math.remainder(angle + roll, 2 * math.pi)) < 1e-4


def test_cameras_at_another_size_keep_the_contract_of_resizing() -> None:
    cameras = camera()
    other = cameras.at_size((HEIGHT, WIDTH), (31, 200))
    point = torch.tensor([0.3, -0.2, 2.0])
    x, y = ((cameras.K[0, 0] @ point) / point[2])[:2].tolist()
    x1, y1 = ((other.K[0, 0] @ point) / point[2])[:2].tolist()
    assert x1 == pytest.approx((x + 0.5) * 200 / WIDTH - 0.5, abs=1e-4)
    assert y1 == pytest.approx((y + 0.5) * 31 / HEIGHT - 0.5, abs=1e-4)

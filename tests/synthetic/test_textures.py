"""Textures: painted ones, look-ups, packs and folders of photos."""

from __future__ import annotations

import itertools
import logging
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.synthetic.painted_textures import dead_leaves, facade, repeated
from edm_hloc.synthetic.textures import TextureBank


def test_dead_leaves_have_the_spectrum_of_nature() -> None:
    slopes = []
    for seed in range(3):
        texture = dead_leaves(256, np.random.default_rng(seed)).astype(float)
        window = np.outer(np.hanning(256), np.hanning(256))
        spectrum = np.abs(np.fft.fft2((texture - texture.mean()) * window)) ** 2
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)) * 256
        bounds = np.geomspace(6, 90, 10)
        power = [
            spectrum[(frequency >= low) & (frequency < high)].mean()
            for low, high in itertools.pairwise(bounds)
        ]
        slopes.append(np.polyfit(np.log(bounds[:-1]), np.log(power), 1)[0])
    assert np.mean(slopes) == pytest.approx(-2, abs=0.4)


def test_painted_textures_fill_their_range() -> None:
    rng = np.random.default_rng(0)
    leaves = dead_leaves(64, rng)
    for texture in (leaves, facade(64, rng), repeated(leaves, rng)):
        assert texture.shape == (64, 64)
        assert texture.dtype == np.uint8
        assert texture.std() > 10


def test_texels_are_found_where_they_are() -> None:
    textures = torch.randint(0, 256, (3, 16, 16), generator=torch.manual_seed(0)).to(torch.uint8)
    bank = TextureBank(textures)
    number = torch.arange(3, dtype=torch.int32).repeat_interleave(256)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    x, y = (v.flatten().repeat(3) + 0.5 for v in (x, y))
    one = torch.ones_like(x)
    expected = textures.flatten().float() / 255
    assert torch.allclose(bank.sample(number, x, y, one), expected, atol=1e-6)
    # Outside the texture its mirror image continues.
    assert torch.allclose(bank.sample(number, -x, y, one), expected, atol=1e-3)
    assert torch.allclose(bank.sample(number, 32 - x, y + 64, one), expected, atol=1e-3)
    # Halfway between two texels it is their mean; for a footprint of all texels, the mean of all.
    left = bank.sample(number, x, y, one).view(3, 16, 16)
    between = bank.sample(number, x + 0.5, y, one).view(3, 16, 16)
    assert torch.allclose(between[:, :, :-1], (left[:, :, :-1] + left[:, :, 1:]) / 2, atol=1e-6)
    whole = bank.sample(number, x, y, one * 256)
    assert torch.allclose(whole, expected.view(3, -1).mean(1).repeat_interleave(256), atol=0.02)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 1e30])
    assert bank.sample(number[:4], wild, wild, wild).isfinite().all()


def test_tiles_repeat() -> None:
    """Two in three tiles agree with themselves moved by a period, and dead leaves do not."""

    def likeness(bank: TextureBank) -> list[float]:
        found = []
        for texture in bank.textures.double():
            spectrum = torch.fft.fft2(texture - texture.mean())
            correlation = torch.fft.ifft2(spectrum.abs().square()).real
            correlation = correlation / correlation[0, 0]
            found.append(float(correlation[16:113, :].max()))  # moved down by an eighth or more
        return found

    leaves = TextureBank.dead_leaves(6, 128, seed=2)
    tiles = leaves.of_tiles(12, seed=1)
    assert (len(tiles), tiles.size) == (12, 128)
    assert np.median(likeness(tiles)) > 0.5 > max(likeness(leaves))


def test_pack_is_read_back(tmp_path: Path) -> None:
    bank = TextureBank.procedural(4, 64, seed=3)
    path = tmp_path / "pack of textures"
    bank.save(path, quality=95)
    again = TextureBank.load(path)
    assert len(again) == 4
    assert again.size == 64
    assert (again.textures.float() - bank.textures.float()).abs().mean() < 4
    (tmp_path / "no.npz").write_bytes(b"nothing")
    with pytest.raises(EdmHlocError, match=r"no\.npz"):
        TextureBank.load(tmp_path / "no.npz")


def test_folder_of_photos(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EdmHlocError, match="procedural"):
        TextureBank.from_folder(tmp_path, size=64)
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 256, (100, 150, 3), np.uint8)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "wide.png"), wide)
    cv2.imwrite(str(tmp_path / "small.png"), wide[:20, :20])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "empty.jpg").touch()
    with caplog.at_level(logging.WARNING):
        bank = TextureBank.from_folder(tmp_path, size=64)
    assert "broken.jpg" in caplog.text
    assert "empty.jpg" in caplog.text
    assert bank.textures.shape == (3, 64, 64)  # two squares and one of repeated pieces
    grey = cv2.cvtColor(wide, cv2.COLOR_BGR2GRAY)
    expected = cv2.resize(grey[:, :100], (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(bank.textures[0].numpy().astype(int) - expected).max() <= 2


def test_bad_textures_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        TextureBank(torch.zeros(1, 48, 48, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(N, S, S\)"):
        TextureBank(torch.zeros(1, 64, 32, dtype=torch.uint8))

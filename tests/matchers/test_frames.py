"""Pixel frames of the matchers: a photo against its copy at ×0.75 tells a shift of half a pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edm_hloc.images.load import load_image
from edm_hloc.matchers.base import Features, MatcherConfig, NetworkMatcher
from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig
from edm_hloc.matchers.eloftr import ELoFTRMatcher
from edm_hloc.matchers.loftr import ORIGINS, LoFTRMatcher
from edm_hloc.models.weights import REGISTRY
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.synthetic.textures import TextureBank

SCALE = 0.75
Pair = tuple[Features, Features]


@pytest.fixture(scope="module")
def edm() -> EDMMatcher:
    return EDMMatcher(EDMMatcherConfig(weights="edm_s", device="cpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """Photos of 640 × 512 and their copies of 480 × 384, so that the network resizes neither."""
    folder = tmp_path_factory.mktemp("photos")
    bank = TextureBank.procedural(3, size=1024, seed=1)
    pairs = []
    for number in range(3):
        photo = bank.textures[number, :512, :640].numpy()
        copy = cv2.resize(photo, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_AREA)
        paths = folder / f"{number}.png", folder / f"{number}_copy.png"
        for path, pixels in zip(paths, (photo, copy), strict=True):
            assert cv2.imwrite(str(path), pixels)
        pairs.append(paths)
    return pairs


def mean_residual(matcher: NetworkMatcher | RefinedMatcher, photos: list[tuple[Path, Path]]):
    """(x, y) in pixels of the copies, over the matches that are right to 4 px."""
    residuals = []
    for paths in photos:
        found = matcher.match(*(matcher.encode(load_image(path)) for path in paths))
        expected = (found.keypoints0.astype(np.float64) + 0.5) * SCALE - 0.5
        residual = found.keypoints1 - expected
        residuals.append(residual[np.linalg.norm(residual, axis=1) < 4])
    together = np.concatenate(residuals)
    assert len(together) > 3000
    return together.mean(axis=0)


@pytest.mark.slow
def test_weights_in_the_centre_frame(edm: EDMMatcher, photos: list[tuple[Path, Path]]) -> None:
    assert edm.origin == "centre"
    assert np.abs(mean_residual(edm, photos)).max() < 0.05
    refined = RefinedMatcher(edm, RefinementConfig())
    assert np.abs(mean_residual(refined, photos)).max() < 0.02


def test_the_wrong_frame_would_be_noticed(
    edm: EDMMatcher, photos: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edm, "origin", "corner")
    np.testing.assert_allclose(mean_residual(edm, photos), -0.125, atol=0.05)


def test_the_corner_frame_is_shifted_once(
    edm: EDMMatcher, photos: list[tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By half a pixel of the network, which is a whole pixel of a photo of twice the size."""
    features = [edm.encode(load_image(path, resize_max=320)) for path in photos[0]]
    centre = edm.match(*features)
    monkeypatch.setattr(edm, "origin", "corner")
    corner = edm.match(*features)
    np.testing.assert_array_equal(centre.scores, corner.scores)
    np.testing.assert_allclose(centre.keypoints0 - corner.keypoints0, 1.0, atol=1e-4)
    np.testing.assert_allclose(centre.keypoints1 - corner.keypoints1, 0.75, atol=1e-4)


def test_the_frame_of_every_entry() -> None:
    """MegaDepth's K has cx = w / 2, ScanNet's depth cameras have cx = (w − 1) / 2."""
    assert {name: entry.origin for name, entry in REGISTRY.items()} == {
        "edm-outdoor": "corner",
        "edm_s": "centre",
    }
    assert ELoFTRMatcher.origin == "corner"
    assert ORIGINS == {"outdoor": "corner", "indoor": "centre", "indoor_new": "centre"}


@pytest.mark.parametrize(
    ("name", "origin", "corrected"),
    [
        ("indoor_ds_new", "centre", True),
        ("loftr_indoor", "centre", False),
        ("loftr_outdoor", "corner", False),
        ("mine", "corner", False),
    ],
)
def test_published_files_of_loftr_are_recognised(
    name: str, origin: str, corrected: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loftr = pytest.importorskip("kornia.feature", reason="LoFTR needs kornia")
    path = tmp_path / f"{name}.ckpt"
    torch.save({"state_dict": loftr.LoFTR(None).state_dict()}, path)
    matcher = LoFTRMatcher(MatcherConfig(weights=path, device="cpu"))
    assert matcher.origin == origin
    assert matcher.model.config["coarse"]["temp_bug_fix"] == corrected
    assert ("position encoding" in caplog.text) == (name == "mine")

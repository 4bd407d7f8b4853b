"""Masked parts of photos give no matches."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.images.masks import find_masks
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.matching.masked import MaskedMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import names_in
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from tests.scenes import TruthMatcher

SIZES = {"a.jpg": (313, 471), "sub/b.jpg": (2600, 1301), "c.png": (64, 64)}
PAIRS = [("a.jpg", "sub/b.jpg"), ("c.png", "a.jpg")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, size in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(path)
    return tmp_path


def save_mask(folder: Path, name: str, counts: np.ndarray, mode: str = "L") -> Path:
    path = folder / "masks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(counts, 255, 0).astype(np.uint8)).convert(mode).save(path)
    return path


def read(folder: Path, matches: Matches, pair: tuple[str, str]) -> Matches:
    with RawMatchWriter(folder / "raw", {"weights": "abc"}) as writer:
        writer.add("a.jpg", "sub/b.jpg", matches)
    masks = find_masks(folder / "masks", names_in(PAIRS), folder / "images")
    with MaskedMatchReader(folder / "raw", masks, folder / "images") as reader:
        assert reader.provenance == {"weights": "abc"}
        assert ("sub/b.jpg", "a.jpg") in reader
        return reader.read(*pair)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P"])
@pytest.mark.parametrize("swapped", [False, True])
def test_matches_where_either_mask_is_black_are_left_out(
    photos: Path, mode: str, swapped: bool
) -> None:
    (w0, h0), (w1, h1) = SIZES["a.jpg"], SIZES["sub/b.jpg"]
    left = np.zeros((h0, w0), bool)
    left[:, :157] = True
    save_mask(photos, "a.jpg.png", left, mode)
    # a mask of a fifth of the photo's size, by the other way to name it
    upper = np.zeros((260, 520), bool)
    upper[:100] = True
    save_mask(photos, "sub/b.png", upper, mode)
    rng = np.random.default_rng(0)
    points0 = rng.uniform(-0.5, [w0 - 0.5, h0 - 0.5], (500, 2)).astype(np.float32)
    points1 = rng.uniform(-0.5, [w1 - 0.5, h1 - 0.5], (500, 2)).astype(np.float32)
    corners = np.array([[-0.5, -0.5], [156, 470], [157, 0], [312, 470]], np.float32)
    points0 = np.concatenate([points0, corners])
    points1 = np.concatenate(
        [points1, np.array([[0, 0], [2599, 0], [0, 0], [0, 1300]], np.float32)]
    )
    matches = Matches(points0, points1, rng.random(504, np.float32))
    pair = ("sub/b.jpg", "a.jpg") if swapped else ("a.jpg", "sub/b.jpg")
    found = read(photos, matches, pair)
    expected = (points0[:, 0] < 156.5) & (points1[:, 1] < 100 * 1301 / 260 - 0.5)
    assert 50 < expected.sum() < 450
    found = found.swapped() if swapped else found
    for mine, all_of_them in zip(found.arrays().values(), matches.arrays().values(), strict=True):
        np.testing.assert_array_equal(mine, all_of_them[expected])


def test_large_masks_are_black_wherever_they_are_in_part(photos: Path) -> None:
    w1, h1 = SIZES["sub/b.jpg"]
    spots = np.ones((h1, w1), bool)
    black = np.array([[1000, 600], [2, 3], [2599, 1300]])
    spots[black[:, 1], black[:, 0]] = False
    save_mask(photos, "sub/b.jpg.png", spots)
    points = np.concatenate([black, [[1010, 600], [1000, 620], [20, 20]]]).astype(np.float32)
    matches = Matches(np.ones((6, 2), np.float32), points, np.arange(6, dtype=np.float32))
    found = read(photos, matches, ("a.jpg", "sub/b.jpg"))
    assert found.scores.tolist() == [3, 4, 5]


def test_a_mask_that_is_cut_off_is_named(photos: Path) -> None:
    ones = np.ones((1, 2), np.float32)
    matches = Matches(ones, ones, np.ones(1, np.float32))
    mask = save_mask(photos, "a.jpg.png", np.ones((471, 313), bool))
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(EdmHlocError, match=r"Cannot read image .*a\.jpg\.png.*this mask again"):
        read(photos, matches, ("a.jpg", "sub/b.jpg"))


def test_photos_whose_masks_leave_hardly_a_match_are_named(photos: Path) -> None:
    points = np.stack([np.arange(300.0), np.arange(300.0)], 1)
    save_mask(photos, "a.jpg.png", np.arange(313) < 2 * np.ones((471, 1)))
    save_mask(photos, "sub/b.jpg.png", np.arange(2600) < 100 * np.ones((1301, 1)))
    with RawMatchWriter(photos / "raw", {}) as writer:
        writer.add("a.jpg", "sub/b.jpg", Matches(points, points, np.ones(300, np.float32)))
    masks = find_masks(photos / "masks", names_in(PAIRS), photos / "images")
    with MaskedMatchReader(photos / "raw", masks, photos / "images") as reader:
        assert not reader.summary().hidden
        assert len(reader.read("a.jpg", "sub/b.jpg")) == 2
        assert reader.summary().hidden == ("a.jpg",)


def test_masks_that_leave_nothing_are_named(scene: Path, tmp_path: Path) -> None:
    names = find_images(scene / "images")
    for name in names:
        save_mask(tmp_path, f"{name}.png", np.zeros((240, 320), bool))
    pairs = list(itertools.pairwise(names))
    for _ in range(2):  # also where everything is matched already
        with pytest.raises(EdmHlocError, match="masks leave none of the matches"):
            reconstruct(
                scene / "images",
                tmp_path / "out",
                pairs,
                TruthMatcher(scene),
                ReconstructionConfig(masks=tmp_path / "masks"),
            )


@pytest.mark.slow
def test_a_reconstruction_without_the_left_half(scene: Path, tmp_path: Path) -> None:
    names = find_images(scene / "images")
    pairs = list(itertools.combinations(names, 2))

    def run(masks: Path | None) -> dict[str, np.ndarray]:
        done = reconstruct(
            scene / "images",
            tmp_path / "out",
            pairs,
            TruthMatcher(scene),
            ReconstructionConfig(
                cameras=CameraOptions(mode="single", model="SIMPLE_PINHOLE"), masks=masks
            ),
        )
        assert done.results["mapped"]["statistics"]["registered"] == len(names)
        assert done.results["matching"]["matched"] == (len(pairs) if masks else 0)
        assert ("masks" in done.results) == (masks is not None)
        with FeatureReader(tmp_path / "out" / "features.h5") as reader:
            return {name: reader.keypoints(name) for name in names}

    width, height = Image.open(scene / "images" / names[0]).size
    right = np.arange(width) >= width // 2
    save_mask(tmp_path, f"{names[0]}.png", np.broadcast_to(right, (height, width)))
    masked, whole = run(tmp_path / "masks"), run(None)
    assert masked[names[0]][:, 0].min() > width // 2 - 1
    assert whole[names[0]][:, 0].min() < width // 4
    assert masked[names[1]][:, 0].min() < width // 4

"""Photos that the network sees reduced: all matches are in the frame of the photo."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage, reduced
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matchers.registry import make_matcher
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corner_matches import align_to_corners
from edm_hloc.refinement.corners import Photo, strongest_corners
from edm_hloc.refinement.load import load_matcher
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig
from edm_hloc.synthetic.textures import TextureBank

WIDTH, HEIGHT = 704, 544


@functools.cache
def photo(seed: int = 0) -> np.ndarray:
    """(H, W) float32 in [0, 1], textured at all scales."""
    bank = TextureBank.procedural(1, size=1024, seed=seed)
    return bank.textures[0, :HEIGHT, :WIDTH].numpy().astype(np.float32) / 255


def image(pixels: np.ndarray) -> NetworkImage:
    height, width = pixels.shape
    return NetworkImage(torch.from_numpy(pixels)[None], PixelTransform((1.0, 1.0)), (width, height))


def shown(pixels: np.ndarray, warp: np.ndarray) -> NetworkImage:
    return image(cv2.warpAffine(pixels, warp[:2], (WIDTH, HEIGHT), flags=cv2.INTER_AREA))


def turned(degrees: float, scale: float = 1.0) -> np.ndarray:
    """(3, 3): about the middle of the photo."""
    middle = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return np.vstack([cv2.getRotationMatrix2D(middle, degrees, scale), [0, 0, 1]])


def errors(found: Matches, warp: np.ndarray) -> np.ndarray:
    mapped = found.keypoints0 @ warp[:2, :2].T + warp[:2, 2]
    return np.linalg.norm(mapped - found.keypoints1, axis=1)


class Given(Matcher):
    """Finds the four corner pixels of both images, as many times as asked."""

    provenance = {"matcher": "given"}  # noqa: RUF012

    def __init__(self, times: int) -> None:
        self.info = MatcherInfo("given", Preprocessing())
        self.times = times
        self.encoded: list[tuple[int, int]] = []

    def encode(self, image: NetworkImage) -> Features:
        size = image.tensor.shape[-1], image.tensor.shape[-2]
        self.encoded.append(size)
        return Features(size, image.transform, 0)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [
            Matches(corners(*a.data, self.times), corners(*b.data, self.times), ones(self.times))
            for a, b in pairs
        ]


def corners(width: int, height: int, times: int) -> np.ndarray:
    """The outer corners of the four corner pixels."""
    outer = [[x, y] for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)]
    return np.tile(np.array(outer, np.float32), (times, 1))


def ones(times: int) -> np.ndarray:
    return np.ones(4 * times, np.float32)


@pytest.mark.parametrize("look", [None, SecondLookConfig()])
def test_matches_are_in_pixels_of_the_photo(look: SecondLookConfig | None) -> None:
    network = Given(1)
    matcher = RefinedMatcher(network, None, look, network_size=320)
    first, second = (matcher.encode(one) for one in (image(photo()), image(photo()[:480, :640])))
    # 704 × 544 is reduced to 320 × 247, and 640 × 480 to 320 × 240; then to multiples of 32
    assert network.encoded[:2] == [(320, 256), (320, 256)]
    (found,) = matcher.match_pixels([(first, second)])
    np.testing.assert_allclose(found.keypoints0[:4], corners(WIDTH, HEIGHT, 1), atol=1e-3)
    np.testing.assert_allclose(found.keypoints1[:4], corners(640, 480, 1), atol=1e-3)


def test_small_photos_are_seen_as_they_are() -> None:
    small = image(photo())
    assert reduced(small, WIDTH, 32) is small
    network = Given(1)
    matcher = RefinedMatcher(network, network_size=WIDTH)
    features = matcher.encode(small)
    assert network.encoded == [(WIDTH, HEIGHT)]
    np.testing.assert_array_equal(features.data.views.whole.warp, np.eye(3))


def test_a_reduced_image_keeps_its_frame() -> None:
    """The centre of a bright square stays where it is, with scales that differ along the axes."""
    pixels = np.zeros((320, 480), np.float32)
    pixels[200:220, 300:330] = 1
    small = reduced(
        NetworkImage(torch.from_numpy(pixels)[None], PixelTransform((1.5, 1.5)), (720, 480)),
        256,
        32,
    )
    assert small.tensor.shape == (1, 160, 256)
    weights = small.tensor[0].numpy()
    rows, columns = np.indices(weights.shape)
    centre = np.array([[(columns * weights).sum(), (rows * weights).sum()]]) / weights.sum()
    original = small.transform.to_original(centre)
    np.testing.assert_allclose(original, [[315 * 1.5 - 0.5, 210 * 1.5 - 0.5]], atol=1e-3)


@pytest.fixture(scope="module")
def edm() -> Matcher:
    return make_matcher("edm", weights="edm_s", device="cpu")


WARPS = {
    "a step": np.array([[1, 0, 24.0], [0, 1, -17.0], [0, 0, 1]]),
    "a quarter turn": turned(90),
    "twice as near": turned(0, 2.0),
    "twice as far": turned(5, 0.5),
}


@pytest.mark.parametrize(
    ("name", "batched"),
    [
        *((name, False) for name in WARPS),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in WARPS),
    ],
)
def test_refined_matches_are_exact_in_the_photo(name: str, batched: bool, edm: Matcher) -> None:
    warp = WARPS[name]
    whole, half = (
        RefinedMatcher(edm, RefinementConfig(), SecondLookConfig(), batched, network_size=size)
        for size in (None, 480)
    )
    found = {}
    for matcher in (whole, half):
        photos = [matcher.encode(one) for one in (image(photo()), shown(photo(), warp))]
        (found[matcher],) = matcher.match_batch([(photos[0], photos[1])])
        away = errors(found[matcher], warp)
        # A photo on its side is matched a second time, turned back: fewer matches, less exact ones.
        turn = name == "a quarter turn"
        assert np.median(away) < (0.2 if turn else 0.15)
        assert (away < 1.0).mean() > (0.92 if turn else 0.95)
    assert len(found[half]) > 0.7 * len(found[whole])


def test_what_load_matcher_makes() -> None:
    default = load_matcher(weights="edm_s", device="cpu")
    assert default.provenance["network_size"] == 704
    assert load_matcher(weights="edm_s", device="cpu", network_size=512).network_size == 512
    alone = load_matcher(weights="edm_s", device="cpu", refine="none", network_size=512)
    assert "network_size" not in alone.provenance
    assert default.provenance["plenty"] == 1000
    assert "plenty" not in alone.provenance
    with pytest.raises(EdmHlocError, match="32 px"):
        load_matcher(weights="edm_s", device="cpu", network_size=31)


def test_a_match_leads_to_the_corners_of_all_cells_it_fills() -> None:
    """The network's cells are 12 px long: matches at all of them lead to all cells of 8 px."""
    shot = Photo(
        torch.from_numpy(photo())[None], strongest_corners(torch.from_numpy(photo())[None])
    )
    x, y = np.meshgrid(np.arange(0, WIDTH, 12.0), np.arange(0, HEIGHT, 12.0))
    points = np.column_stack([x.ravel(), y.ravel()]).astype(np.float32)
    cells = (WIDTH // 8) * (HEIGHT // 8)
    for reduction, expected in ((1.0, len(points)), (1.5, cells)):
        found = align_to_corners((shot, shot), points, points, RefinementConfig(), reduction)
        assert len(found.match) == pytest.approx(2 * expected, rel=0.03)
        # the corner of a cell that the match, or a quarter of the network's cell, lies in
        away = np.abs(found.points0 - points[found.match]).max(axis=1)
        assert away.max() <= 8.5 + 3.0 * (reduction > 1)
        np.testing.assert_allclose(found.points0, found.points1, atol=0.01)


@pytest.mark.slow
def test_pairs_of_a_batch_are_refined_alike(edm: Matcher) -> None:
    """As on a GPU, against the compiled loops."""
    found = []
    for batched in (False, True):
        matcher = RefinedMatcher(edm, RefinementConfig(), None, batched, network_size=480)
        photos = [matcher.encode(one) for one in (image(photo()), shown(photo(), WARPS["a step"]))]
        (matches,) = matcher.match_batch([(photos[0], photos[1])])
        found.append(np.hstack([matches.keypoints0, matches.keypoints1]))
    away, _ = KDTree(found[0]).query(found[1])
    assert len(found[0]) == pytest.approx(len(found[1]), rel=0.01)
    assert (away < 0.05).mean() > 0.98

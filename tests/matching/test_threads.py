"""What is matched does not depend on the number of threads, nor on where a run was interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from edm_hloc.matchers.base import Matcher
from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig
from tests.h5_files import assert_same

PAIRS = list(itertools.combinations([f"{i}.png" for i in range(5)], 2))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five crops of one picture, of three sizes, the last one turned."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(0, 256, (40, 60), np.uint8), (480, 320))
    for i in range(5):
        width, height = ((224, 160), (288, 160), (224, 192))[i % 3]
        crop = scene[10 * i : 10 * i + height, 20 * i : 20 * i + width]
        Image.fromarray(np.rot90(crop) if i == 4 else crop).save(root / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def matcher(threads: int, refined: bool) -> Matcher:
    torch.set_num_threads(threads)
    network = EDMMatcher(EDMMatcherConfig("edm_s", device="cpu"))
    assert network.info.threads == threads
    if not refined:
        return network
    return RefinedMatcher(network, RefinementConfig(), SecondLookConfig())


@pytest.mark.parametrize("refined", [pytest.param(False, marks=pytest.mark.slow), True])
def test_any_number_of_threads_gives_the_same_bits(
    refined: bool, photos: Path, tmp_path: Path
) -> None:
    match_pairs(photos, PAIRS, matcher(1, refined), tmp_path / "1")
    for threads in (2, 3):
        match_pairs(photos, PAIRS, matcher(threads, refined), tmp_path / f"{threads}")
    # interrupted, and continued on another computer with a small cache
    match_pairs(photos, PAIRS[::3], matcher(3, refined), tmp_path / "mixed")
    small = MatchingConfig(cache_bytes=1)
    summary = match_pairs(photos, PAIRS, matcher(1, refined), tmp_path / "mixed", small)
    assert (summary.resumed, summary.matched) == (4, 6)
    with RawMatchReader(tmp_path / "1") as expected:
        assert sum(len(expected.read(*pair)) for pair in PAIRS) > 500
        for name in ("2", "3", "mixed"):
            with RawMatchReader(tmp_path / name) as reader:
                for pair in PAIRS:
                    assert_same(reader.read(*pair), expected.read(*pair))


def test_each_image_is_encoded_once_and_ahead(photos: Path, tmp_path: Path) -> None:
    summary = match_pairs(photos, PAIRS, matcher(3, refined=False), tmp_path / "raw")
    assert (summary.encoded, summary.images) == (5, 5)

"""COLMAP's own features and matchers to compare with: SIFT; ALIKED and LoMa where it has ONNX.

They implement `Matcher`, so that they are measured on the same pixels as the dense matchers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pycolmap
import torch

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import from_colmap
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing

_MAX_FEATURES = 8192  # of SIFT, COLMAP's default


class _Kind(NamedTuple):
    """Names of COLMAP's feature extractor and matcher, and the number of channels they need."""

    extractor: str
    matcher: str
    grayscale: bool


COLMAP_KINDS: Mapping[str, _Kind] = {
    "sift": _Kind("SIFT", "SIFT_BRUTEFORCE", True),
    "colmap-sift+lightglue": _Kind("SIFT", "SIFT_LIGHTGLUE", True),
    "colmap-aliked+lightglue": _Kind("ALIKED_N16ROT", "ALIKED_LIGHTGLUE", False),
    "loma": _Kind("LOMA_B", "LOMA_B", False),
}
"""By the name in the results. All but the first need a pycolmap that was built with ONNX Runtime;
COLMAP downloads their networks when they are first used."""


class _Photo(NamedTuple):
    """Features of one image.

    Attributes:
        positions: (N, 2), pixels of the input, hloc's frame.
        points, descriptors: as COLMAP has them.
    """

    positions: np.ndarray
    points: pycolmap.FeatureKeypoints
    descriptors: pycolmap.FeatureDescriptors


class COLMAPMatcher(Matcher):
    """Features and a matcher of COLMAP on the CPU with COLMAP's defaults.

    SIFT's are ratio test at 0.8 and cross check: the matches of pycolmap's matcher, but not by it,
    because it prepares the descriptors of a photo for the search again with every pair, which
    takes ten times as long as COLMAP needs for a pair of many. All scores are 1, since COLMAP gives
    none.

    Args:
        name: one of `COLMAP_KINDS`.
        resize_max: longest side of the image in pixels; None for full size.

    Raises:
        EdmHlocError: pycolmap was built without what `name` needs, or cannot get its networks.
    """

    def __init__(self, name: str = "sift", resize_max: int | None = 1024) -> None:
        kind = COLMAP_KINDS[name]
        preprocessing = Preprocessing(resize_max, divisor=1, grayscale=kind.grayscale)
        self.info = MatcherInfo(name, preprocessing)
        extraction = pycolmap.FeatureExtractionOptions()
        matching = pycolmap.FeatureMatchingOptions()
        try:
            extraction.type = pycolmap.FeatureExtractorType.__members__[kind.extractor]
            matching.type = pycolmap.FeatureMatcherType.__members__[kind.matcher]
            extraction.sift.max_num_features = _MAX_FEATURES
            extraction.num_threads = matching.num_threads = 1
            with quiet_colmap():
                self._extractor = pycolmap.FeatureExtractor.create(extraction, pycolmap.Device.cpu)
                self._sift = matching.sift if name == "sift" else None
                if self._sift is None:
                    self._matcher = pycolmap.FeatureMatcher.create(matching, pycolmap.Device.cpu)
        except (KeyError, RuntimeError, ValueError) as error:
            raise EdmHlocError(
                f"pycolmap {pycolmap.__version__} cannot run {name} here ({error}): install one "
                "that was built with ONNX Runtime, let it download its networks once, or leave "
                f"{name} out."
            ) from None

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.info.name,
            "pycolmap": pycolmap.__version__,
            "max_features": _MAX_FEATURES,
            "resize_max": self.info.preprocessing.resize_max,
        }

    def encode(self, image: NetworkImage) -> Features:
        pixels = (image.tensor.numpy() * 255).round().astype(np.uint8)
        grey = self.info.preprocessing.grayscale
        array = pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        with quiet_colmap():
            points, descriptors = self._extractor.extract_from_uint8_array(array)
        positions = from_colmap(np.array([(p.x, p.y) for p in points], np.float32).reshape(-1, 2))
        held = len(points) * (128 + 32)
        return Features(_Photo(positions, points, descriptors), image.transform, held)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self._match(first.data, second.data) for first, second in pairs]

    def _match(self, a: _Photo, b: _Photo) -> Matches:
        index: np.ndarray
        if self._sift is not None:
            index = sift_matches(a.descriptors.data, b.descriptors.data, self._sift)
        else:
            with quiet_colmap():
                index = self._matcher.match(a.points, a.descriptors, b.points, b.descriptors)
        return Matches(
            a.positions[index[:, 0]], b.positions[index[:, 1]], np.ones(len(index), np.float32)
        )


def sift_matches(
    descriptors0: np.ndarray, descriptors1: np.ndarray, options: pycolmap.SiftMatchingOptions
) -> np.ndarray:
    """The matches (M, 2) of SIFT's descriptors (N, 128) uint8 by COLMAP's rules, exactly.

    A match is the nearest neighbour of each other by the angle between their descriptors, which is
    `options.max_distance` at most, and less than `options.max_ratio` times that of the second.
    """
    a, b = (torch.from_numpy(np.array(d, np.float32)) for d in (descriptors0, descriptors1))
    there, back = _nearest(a, b, options), _nearest(b, a, options)
    index = torch.nonzero(there >= 0)[:, 0]
    index = index[back[there[index]] == index]
    return torch.stack([index, there[index]], dim=1).numpy()


def _nearest(
    a: torch.Tensor, b: torch.Tensor, options: pycolmap.SiftMatchingOptions
) -> torch.Tensor:
    """(N,) the accepted neighbour in `b` of each descriptor of `a`; −1 where there is none."""
    if not len(a) or not len(b):
        return torch.full((len(a),), -1)
    # COLMAP's descriptors have the length 512; a photo's only one has a second at a right angle
    products = torch.nn.functional.pad(a @ b.T, (0, 1)) / 512.0**2
    best, column = products.topk(2, dim=1)
    angle = best.clamp(max=1.0).arccos()
    accepted = (angle[:, 0] <= options.max_distance) & (
        angle[:, 0] < options.max_ratio * angle[:, 1]
    )
    return torch.where(accepted, column[:, 0], -1)

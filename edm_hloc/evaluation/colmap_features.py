"""COLMAP's own features and matchers to compare with: SIFT; ALIKED and LoMa where it has ONNX.

They implement `Matcher`, so that they are measured on the same pixels as the dense matchers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pycolmap

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import from_colmap
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing


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


class COLMAPMatcher(Matcher):
    """Features and a matcher of COLMAP on the CPU with COLMAP's defaults.

    SIFT's are ratio test at 0.8 and cross check. All scores are 1, since COLMAP gives none.

    Args:
        name: one of `COLMAP_KINDS`.
        resize_max: longest side of the image in pixels; None for full size.
        max_features: largest number of SIFT features of an image.

    Raises:
        EdmHlocError: pycolmap was built without what `name` needs, or cannot get its networks.
    """

    def __init__(
        self, name: str = "sift", resize_max: int | None = 1024, max_features: int = 8192
    ) -> None:
        kind = COLMAP_KINDS[name]
        preprocessing = Preprocessing(resize_max, divisor=1, grayscale=kind.grayscale)
        self.info = MatcherInfo(name, preprocessing)
        self.max_features = max_features
        extraction = pycolmap.FeatureExtractionOptions()
        matching = pycolmap.FeatureMatchingOptions()
        try:
            extraction.type = pycolmap.FeatureExtractorType.__members__[kind.extractor]
            matching.type = pycolmap.FeatureMatcherType.__members__[kind.matcher]
            extraction.sift.max_num_features = max_features
            extraction.num_threads = matching.num_threads = 1
            with quiet_colmap():
                self._extractor = pycolmap.FeatureExtractor.create(extraction, pycolmap.Device.cpu)
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
            "max_features": self.max_features,
            "resize_max": self.info.preprocessing.resize_max,
        }

    def encode(self, image: NetworkImage) -> Features:
        pixels = (image.tensor.numpy() * 255).round().astype(np.uint8)
        grey = self.info.preprocessing.grayscale
        array = pixels[0] if grey else np.ascontiguousarray(pixels.transpose(1, 2, 0))
        with quiet_colmap():
            found = self._extractor.extract_from_uint8_array(array)
        return Features(found, image.transform, held=len(found[0]) * (128 + 32))

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        found = []
        for features0, features1 in pairs:
            (points0, descriptors0), (points1, descriptors1) = features0.data, features1.data
            with quiet_colmap():
                index: np.ndarray = self._matcher.match(
                    points0, descriptors0, points1, descriptors1
                )
            keypoints0 = from_colmap(_positions(points0)[index[:, 0]])
            keypoints1 = from_colmap(_positions(points1)[index[:, 1]])
            found.append(Matches(keypoints0, keypoints1, np.ones(len(index), np.float32)))
        return found


def _positions(points: pycolmap.FeatureKeypoints) -> np.ndarray:
    """(N, 2) float32 pixels in COLMAP's frame."""
    return np.array([(p.x, p.y) for p in points], np.float32).reshape(-1, 2)

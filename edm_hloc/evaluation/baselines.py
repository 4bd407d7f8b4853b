"""Keypoint matchers to compare with: COLMAP's SIFT, and kornia's ALIKED.

They implement `Matcher`, so that they are measured on the same pixels as the dense matchers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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


class SIFTMatcher(Matcher):
    """COLMAP's SIFT on the CPU with COLMAP's defaults: ratio test at 0.8 and cross check.

    All scores are 1, since COLMAP gives none.

    Args:
        resize_max: longest side of the image in pixels; None for full size.
        max_features: largest number of features of an image.
    """

    def __init__(self, resize_max: int | None = 1024, max_features: int = 8192) -> None:
        self.info = MatcherInfo("sift", Preprocessing(resize_max=resize_max, divisor=1))
        self.max_features = max_features
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.sift.max_num_features = max_features
        extraction.num_threads = 1
        matching = pycolmap.FeatureMatchingOptions()
        matching.num_threads = 1
        with quiet_colmap():
            self._extractor = pycolmap.FeatureExtractor.create(extraction, pycolmap.Device.cpu)
            self._matcher = pycolmap.FeatureMatcher.create(matching, pycolmap.Device.cpu)

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.info.name,
            "pycolmap": pycolmap.__version__,
            "max_features": self.max_features,
            "resize_max": self.info.preprocessing.resize_max,
        }

    def encode(self, image: NetworkImage) -> Features:
        pixels = (image.tensor[0].numpy() * 255).round().astype(np.uint8)
        with quiet_colmap():
            found = self._extractor.extract_from_uint8_array(pixels)
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


class _ALIKEDFeatures(NamedTuple):
    keypoints: torch.Tensor  # (N, 2), pixels of the network's input
    descriptors: torch.Tensor  # (N, C), of unit length


class ALIKEDMatcher(Matcher):
    """ALIKED-n16 (kornia), matched by mutual nearest neighbours.

    Args:
        weights: checkpoint of ALIKED-n16.
        resize_max: longest side of the image in pixels; None for full size.
        max_features: largest number of features of an image.
        detection_threshold: smallest score of a keypoint.
        min_cosine: smallest cosine similarity of the descriptors of a match.

    Raises:
        EdmHlocError: kornia is missing or too old, or the checkpoint does not fit the network.
    """

    def __init__(
        self,
        weights: Path,
        resize_max: int | None = 1024,
        max_features: int = 2048,
        detection_threshold: float = 0.05,
        min_cosine: float = 0.6,
    ) -> None:
        try:
            from kornia.feature import ALIKED
        except ImportError:
            raise EdmHlocError(
                "ALIKED needs a newer kornia: pip install -U 'edm_hloc[kornia]'."
            ) from None
        preprocessing = Preprocessing(resize_max=resize_max, grayscale=False)
        self.info = MatcherInfo("aliked", preprocessing, weights=weights)
        self.min_cosine = min_cosine
        self.max_features, self.detection_threshold = max_features, detection_threshold
        self.network = ALIKED("aliked-n16", max_features, detection_threshold).eval()
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            missing, unknown = self.network.load_state_dict(state, strict=False)
        except Exception as error:
            raise EdmHlocError(f"Cannot load ALIKED from {weights}: {error}.") from error
        if set(missing) - {"dkd.hw_grid"} or unknown:
            raise EdmHlocError(f"{weights} holds no weights of ALIKED-n16.")

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {
            "matcher": self.info.name,
            "weights": Path(self.info.weights).name,
            "max_features": self.max_features,
            "detection_threshold": self.detection_threshold,
            "min_cosine": self.min_cosine,
            "resize_max": self.info.preprocessing.resize_max,
        }

    @torch.inference_mode()
    def encode(self, image: NetworkImage) -> Features:
        found = self.network(image.tensor[None])[0]
        descriptors = torch.nn.functional.normalize(found.descriptors, dim=-1)
        data = _ALIKEDFeatures(found.keypoints, descriptors)
        return Features(data, image.transform, sum(t.nbytes for t in data))

    @torch.inference_mode()
    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self._match(first.data, second.data) for first, second in pairs]

    def _match(self, a: _ALIKEDFeatures, b: _ALIKEDFeatures) -> Matches:
        if not len(a.keypoints) or not len(b.keypoints):
            none = np.empty((0, 2), np.float32)
            return Matches(none, none, np.empty(0, np.float32))
        similarity = a.descriptors @ b.descriptors.T
        score, partner = similarity.max(dim=1)
        mutual = similarity.argmax(dim=0)[partner] == torch.arange(len(partner))
        kept = mutual & (score > self.min_cosine)
        return Matches(
            a.keypoints[kept].numpy(),
            b.keypoints[partner[kept]].numpy(),
            score[kept].numpy(),
        )

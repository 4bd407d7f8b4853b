"""A matcher without a network, for tests of what surrounds one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.refinement.load import MatcherRecipe


class FakeMatcher(Matcher):
    """Remembers an image's mean; matches are made from the two means, so order is noticed."""

    info = MatcherInfo("fake", Preprocessing(resize_max=64))
    recipe = MatcherRecipe()  # of another matcher; for plans of shards, which need one

    def __init__(self, nbytes: int = 100, setting: float = 1.0) -> None:
        self.nbytes = nbytes
        self.setting = setting
        self.encoded: list[float] = []
        self.matched: Counter[tuple[float, float]] = Counter()

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": self.info.name, "setting": self.setting}

    def encode(self, image: NetworkImage) -> Features:
        mean = round(float(image.tensor.mean()) * 255)
        self.encoded.append(mean)
        return Features(mean, image.transform, self.nbytes)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        raise NotImplementedError("its matches are in pixels of the original photos")

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self.find(*pair) for pair in pairs]

    def find(self, features0: Features, features1: Features) -> Matches:
        a, b = features0.data, features1.data
        self.matched[a, b] += 1
        points = np.arange(6, dtype=np.float32).reshape(3, 2)
        return Matches(points + a, points + b, np.array([0.9, 0.5, 0.3], np.float32))

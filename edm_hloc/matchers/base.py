"""The contract every matcher keeps: encode an image once, match any two encoded images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage


@dataclass(frozen=True)
class Preprocessing:
    """How photos become the network's input; the keywords of `images.load_image`."""

    resize_max: int | None = 1024
    divisor: int = 32
    grayscale: bool = True


@dataclass(frozen=True)
class Features:
    """What a matcher remembers of one image.

    Attributes:
        data: the matcher's own.
        transform: between the original image's pixels and the network's.
        nbytes: memory held by `data`.
    """

    data: Any
    transform: PixelTransform
    nbytes: int


class Matcher(ABC):
    """A dense matcher.

    Attributes:
        name: what `--matcher` takes.
        preprocessing: how images must be loaded for `encode`.
        batch_size: how many pairs `match_batch` likes at a time.
        weights: what `str` of names the network's weights to people.
        device: where the network runs.
        threads: how many threads may call `match_batch` at the same time, with one thread of
            torch's each: on a CPU pairs side by side are faster than cores that share a pair.
        confident: score from which a match counts by itself. Weaker ones are candidates, for
            `RefinedMatcher` to choose from; most matchers give none.
        topk: most matches a pair, where that was asked for.
    """

    name: str
    preprocessing: Preprocessing
    batch_size: int = 1
    weights: Any = "none"
    device: torch.device = torch.device("cpu")
    threads: int = 1
    confident: float = 0.0
    topk: int | None = None

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        """Everything that decides the matches of two given images."""

    @abstractmethod
    def encode(self, image: NetworkImage) -> Features:
        """Everything that depends on one image alone."""

    @abstractmethod
    def match(self, features0: Features, features1: Features) -> Matches:
        """Correspondences of two encoded images; empty arrays where there are none."""

    def to_host(self, features: Features) -> Features | None:
        """A copy in the host's memory, where `features` are held by a device with its own."""
        return None

    def from_host(self, features: Features) -> Features:
        """What `to_host` was given."""
        return features

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """`match` of each pair, all first images of one size and all second images of one size."""
        return [self.match(features0, features1) for features0, features1 in pairs]


class WrappingMatcher(Matcher):
    """A matcher that makes more of another one's matches, and is like it in all else."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher = matcher
        self.name = matcher.name
        self.preprocessing = matcher.preprocessing
        self.batch_size = matcher.batch_size
        self.threads = matcher.threads
        self.device = matcher.device
        self.confident = matcher.confident
        self.topk = matcher.topk
        self.weights = matcher.weights

    def match(self, features0: Features, features1: Features) -> Matches:
        return self.match_batch([(features0, features1)])[0]

    @abstractmethod
    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """As `Matcher.match_batch`."""

"""The contract every matcher keeps: encode a photo once, match any two encoded photos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_hloc.base.frames import Origin, PixelTransform, origin_shift
from edm_hloc.base.matches import Matches
from edm_hloc.base.settings import check_range
from edm_hloc.images.load import NetworkImage

DISTINCTNESS_STEP = 2
"""Cells of the network along each axis from one of `Matcher.distinctness` to the next."""


@dataclass(frozen=True)
class Preprocessing:
    """How photos become the network's input; the keywords of `images.load.load_image`.

    Attributes:
        resize_max: longest side in pixels; larger photos are reduced, smaller ones stay. None
            for no limit.
        divisor: both sides of the input are multiples of it; 32 is EDM's coarsest stride.
        grayscale: one channel rather than RGB.
    """

    resize_max: int | None = 1024
    divisor: int = 32
    grayscale: bool = True


@dataclass(frozen=True)
class MatcherConfig:
    """What every network behind this contract can be told.

    Attributes:
        weights: name or path; None for the matcher's default weights.
        preprocessing: how photos become the network's input.
        threshold: minimum coarse matching probability; None for what comes with the weights.
        topk: maximum number of matches per pair, highest score first; None for the network's own
            limit.
        device: "cuda", "mps" or "cpu"; None for the fastest on this computer.

    Raises:
        EdmHlocError: a value is out of its range.
    """

    weights: str | Path | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    threshold: float | None = None
    topk: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, 0, 1)
        check_range("topk", self.topk, 1)


@dataclass(frozen=True)
class MatcherInfo:
    """What the steps around a matcher need to know of it.

    Attributes:
        name: what `--matcher` takes.
        preprocessing: how photos must be loaded for `Matcher.encode`.
        weights: its `str` names the network's weights to people.
        device: where the network runs.
        batch_size: number of pairs that `Matcher.match_batch` handles best at a time.
        threads: number of threads that may call `Matcher.encode` and `Matcher.match_batch` at the
            same time, each with a single thread of torch's: on a CPU pairs side by side are faster
            than one pair spread over the cores, and the result does not depend on their number.
        confident: score from which a match is trusted by itself. Matches with lower scores are
            candidates, which refinement accepts or rejects; most matchers return none.
        topk: maximum number of matches per pair, where one was asked for.
        side: longest side of photos that the network sees in refinement, in pixels: about that of
            the photos that it was trained on.
    """

    name: str
    preprocessing: Preprocessing
    weights: Any = "none"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch_size: int = 1
    threads: int = 1
    confident: float = 0.0
    topk: int | None = None
    side: int = 832


@dataclass(frozen=True)
class Features:
    """What a matcher remembers of one photo.

    Attributes:
        data: the matcher's own.
        transform: between the pixels of the photo and those of the network's input.
        held: memory held by `data` from the beginning, in bytes.
    """

    data: Any
    transform: PixelTransform
    held: int

    @property
    def nbytes(self) -> int:
        """Memory held by `data` now, in bytes: more than `held` where `data` grows with use."""
        return self.held


class Matcher(ABC):
    """A dense matcher.

    Subclasses set `info` and define `provenance`, `encode` and `match_pixels`.

    Attributes:
        info: what others need to know of it.
        recipe: what other processes can make the same matcher from (see `refinement/load.py`); None
            where they cannot.
    """

    info: MatcherInfo
    recipe: Any = None

    def __repr__(self) -> str:
        info = self.info
        return f"{type(self).__name__} {info.name}, weights {info.weights}, on {info.device}"

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, str | int | float | bool | None]:
        """Everything that decides the matches of two given photos."""

    @abstractmethod
    def encode(self, image: NetworkImage) -> Features:
        """Everything that depends on one photo alone."""

    def encode_batch(self, images: Sequence[NetworkImage]) -> list[Features]:
        """`encode` for several photos, whose sizes may differ."""
        return [self.encode(image) for image in images]

    @abstractmethod
    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """The matches of each pair in pixels of the networks' inputs, hloc's frame.

        Args:
            pairs: all first photos have one input size, and all second photos have one.
        """

    def match_cells(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """`match_pixels` for those who need the confident matches only, and these to a cell of the
        network: faster where a matcher has a stage for the rest."""
        return self.match_pixels(pairs)

    def distinctness(self, features: Features) -> np.ndarray | None:
        """How clearly the network tells each place of a photo from all others of the same photo.

        Returns:
            (rows, columns) float32, for every `DISTINCTNESS_STEP`-th cell of 8 px of the network's
            input along each axis; near zero where the photo shows the same again elsewhere. None
            where the matcher cannot tell.
        """
        return None

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """The matches of each pair in pixels of the original photos; see `match_pixels`."""
        return [
            Matches(
                first.transform.to_original(found.keypoints0),
                second.transform.to_original(found.keypoints1),
                found.scores,
            )
            for (first, second), found in zip(pairs, self.match_pixels(pairs), strict=True)
        ]

    def match(self, features0: Features, features1: Features) -> Matches:
        """The matches of two encoded photos; empty arrays where there are none."""
        return self.match_batch([(features0, features1)])[0]

    def to_host(self, features: Features) -> Features | None:
        """A copy in the host's memory, where `features` are held by a device with its own."""
        return None

    def from_host(self, features: Features) -> Features:
        """What `to_host` was given."""
        return features


class NetworkMatcher(Matcher):
    """A matcher around one trained network, whose pixel frame belongs to its weights.

    Attributes:
        origin: where (0, 0) of the network's frame lies. Matches are shifted into hloc's frame
            once, in `match_pixels` and `match_cells`.
    """

    origin: Origin

    @abstractmethod
    def match_in_network_frame(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """The matches of each pair in the network's own pixel frame; see `Matcher.match_pixels`."""

    def cells_in_network_frame(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """The same for `Matcher.match_cells`."""
        return self.match_in_network_frame(pairs)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return self._shifted(self.match_in_network_frame(pairs))

    def match_cells(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return self._shifted(self.cells_in_network_frame(pairs))

    def _shifted(self, found: list[Matches]) -> list[Matches]:
        """Matches from the network's frame in hloc's."""
        shift = origin_shift(self.origin)
        if shift == 0.0:
            return found
        return [
            replace(m, keypoints0=m.keypoints0 - shift, keypoints1=m.keypoints1 - shift)
            for m in found
        ]

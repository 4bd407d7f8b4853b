"""Makes the matcher that all commands use by default: a network, a second look, refinement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.settings import check_type, check_types
from edm_hloc.matchers.base import Matcher, Preprocessing
from edm_hloc.matchers.registry import make_matcher
from edm_hloc.models.types import STRIDE
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig

Refinement = Literal["photometric", "none"]
_PLENTY = 1000
"""Matches of a pair from which on one direction of EDM's fine stage has to do: what is aligned
afterwards comes out the same (docs/speed.md)."""


def load_matcher(
    name: str = "edm",
    refine: Refinement = "photometric",
    network_size: int | None = None,
    **settings: Any,
) -> Matcher:
    """A matcher by name.

    Args:
        name: "edm", "eloftr" or "loftr".
        refine: "photometric" for a second look at pairs with few matches and for refinement by
            the photos; "none" for the network's own matches.
        network_size: with refinement, the longest side in pixels to which the network sees larger
            photos reduced; None for what suits it. Without refinement it sees them as loaded.
        settings: fields of the matcher's configuration, see `matchers.registry.make_matcher`.

    Raises:
        EdmHlocError: no such matcher, refinement or device, its library is not installed, no
            weights; `network_size` is below 32.
    """
    check_type("network_size", network_size, int | None)
    if network_size is not None and network_size < STRIDE:
        raise EdmHlocError(f"The network cannot see photos of less than {STRIDE} px.")
    if refine == "none":
        return make_matcher(name, **settings)
    if refine != "photometric":
        raise EdmHlocError(f"refine is {refine!r}: it must be 'photometric' or 'none'.")
    # Unless a threshold is asked for, refinement also sees EDM's less confident matches.
    settings.setdefault("candidates", settings.get("threshold") is None)
    if name == "edm":
        settings.setdefault("plenty", _PLENTY)
    network = make_matcher(name, **settings)
    size = network_size or network.info.side
    return RefinedMatcher(network, RefinementConfig(), SecondLookConfig(), network_size=size)


@dataclass(frozen=True)
class MatcherRecipe:
    """What a matcher is made from, in values that can be stored as JSON: for worker processes.

    Attributes:
        matcher, refine: see `load_matcher`.
        weights: name or path; None for the best on this computer.
        resize: longest side of the photos for matching, in pixels.
        threshold: minimum confidence of a match; None for that of the weights.
        topk: maximum number of matches per pair; None for one that depends on the size.
        onnx: folder of exported graphs; None for none.
        network_size: see `load_matcher`.
    """

    matcher: str = "edm"
    weights: str | None = None
    resize: int = 1024
    threshold: float | None = None
    topk: int | None = None
    refine: Refinement = "photometric"
    onnx: str | None = None
    network_size: int | None = None

    def load(self, device: str | None = None) -> Matcher:
        """The matcher, on a device; by default on the fastest available.

        Raises:
            EdmHlocError: `resize` is too small, a field is of another type, or see `load_matcher`.
        """
        check_types(self)
        if self.resize < 32:
            raise EdmHlocError("--resize must be at least 32 px.")
        matcher = load_matcher(
            self.matcher,
            self.refine,
            self.network_size,
            weights=self.weights,
            preprocessing=Preprocessing(resize_max=self.resize),
            threshold=self.threshold,
            topk=self.topk,
            device=device,
            onnx=None if self.onnx is None else Path(self.onnx),
        )
        matcher.recipe = self
        return matcher

    def anywhere(self) -> MatcherRecipe:
        """The same with absolute paths, for processes that start in another folder."""
        weights, onnx = self.weights, self.onnx
        # A folder is a path for EfficientLoFTR only; beside the other weights' names it is chance.
        is_path = Path.exists if self.matcher == "eloftr" else Path.is_file
        if weights is not None and is_path(Path(weights)):
            weights = str(Path(weights).resolve())
        if onnx is not None:
            onnx = str(Path(onnx).resolve())
        return replace(self, weights=weights, onnx=onnx)

"""Makes the matcher that all commands use by default: a network, a second look, refinement."""

from __future__ import annotations

from typing import Any, Literal

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.matchers.base import Matcher
from edm_hloc.matchers.registry import make_matcher
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig

Refinement = Literal["photometric", "none"]


def load_matcher(name: str = "edm", refine: Refinement = "photometric", **settings: Any) -> Matcher:
    """A matcher by name.

    Args:
        name: "edm", "eloftr" or "loftr".
        refine: "photometric" for a second look at pairs with few matches and for refinement by
            the photos; "none" for the network's own matches.
        settings: fields of the matcher's configuration, see `matchers.registry.make_matcher`.

    Raises:
        EdmHlocError: no such matcher, refinement or device, its library is not installed, no
            weights.
    """
    if refine == "none":
        return make_matcher(name, **settings)
    if refine != "photometric":
        raise EdmHlocError(f"refine is {refine!r}: it must be 'photometric' or 'none'.")
    # Unless a threshold is asked for, refinement also sees EDM's less confident matches.
    settings.setdefault("candidates", settings.get("threshold") is None)
    network = make_matcher(name, **settings)
    return RefinedMatcher(network, RefinementConfig(), SecondLookConfig())

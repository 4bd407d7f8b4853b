"""Matchers by name; each one's libraries are imported when it is made."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from edm_hloc.base.errors import EdmHlocError

if TYPE_CHECKING:
    from torch import nn

    from edm_hloc.matchers.base import Preprocessing
    from edm_hloc.matchers.edm import EDMMatcher
    from edm_hloc.matchers.eloftr import ELoFTRMatcher
    from edm_hloc.matchers.loftr import LoFTRMatcher
    from edm_hloc.refinement.photometric import RefinedMatcher

MatcherName = Literal["edm", "eloftr", "loftr"]
NAMES: tuple[MatcherName, ...] = get_args(MatcherName)


def make_matcher(
    name: MatcherName,
    *,
    weights: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    threshold: float | None = None,
    topk: int | None = None,
    device: str | None = None,
    onnx: Path | None = None,
    candidates: bool = False,
) -> EDMMatcher | ELoFTRMatcher | LoFTRMatcher:
    """The matcher called `name`, with what all of them can be told; see their configurations.

    Raises:
        EdmHlocError: no such matcher or device, its library is not installed, no weights.
    """
    if name not in NAMES:
        raise EdmHlocError(f"There is no matcher {name!r}; there are {', '.join(NAMES)}.")
    if device is not None:
        _check_device(device)
    if preprocessing is None:
        from edm_hloc.matchers.base import Preprocessing

        preprocessing = Preprocessing()
    if name == "edm":
        from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig

        return EDMMatcher(
            EDMMatcherConfig(
                weights,
                preprocessing,
                threshold,
                topk,
                device=device,
                onnx=onnx,
                candidates=candidates,
            )
        )
    if onnx is not None:
        raise EdmHlocError(f"ONNX graphs are of the matcher edm, not of {name}.")
    if name == "eloftr":
        from edm_hloc.matchers.eloftr import ELoFTRMatcher, ELoFTRMatcherConfig

        return ELoFTRMatcher(
            ELoFTRMatcherConfig(weights, preprocessing, threshold, topk, device=device)
        )
    from edm_hloc.matchers.loftr import LoFTRMatcher, LoFTRMatcherConfig

    return LoFTRMatcher(LoFTRMatcherConfig(weights, preprocessing, threshold, topk, device=device))


def make_refined_matcher(
    name: MatcherName, *, threshold: float | None = None, **settings: Any
) -> RefinedMatcher:
    """`make_matcher` with a second look at pairs with few matches, refined by the photos.

    Unless a threshold is given, EDM's less confident matches are looked at as well.
    """
    from edm_hloc.refinement.photometric import RefinedMatcher
    from edm_hloc.refinement.second_look import SecondLookMatcher

    matcher = make_matcher(name, threshold=threshold, candidates=threshold is None, **settings)
    return RefinedMatcher(SecondLookMatcher(matcher))


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EdmHlocError(
            f"There is no device {device!r} here ({reason}): leave --device out for the fastest "
            "there is, or give cpu."
        ) from None


def missing_library(matcher: str, error: ModuleNotFoundError, extra: str) -> EdmHlocError:
    """What to tell who asks for a matcher whose library is not installed."""
    return EdmHlocError(
        f"The matcher {matcher} needs {error.name}: pip install 'edm_hloc[{extra}]'."
    )


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over a network's parameters and buffers, for the provenance of loaded weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""What people would use instead, by name, to be measured in the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.colmap_features import COLMAP_KINDS, COLMAPMatcher
from edm_hloc.evaluation.keypoint_networks import KEYPOINT_NETWORKS, KeypointMatcher
from edm_hloc.matchers.base import Matcher, Preprocessing
from edm_hloc.matchers.registry import make_matcher
from edm_hloc.models.weights_file import WeightsError

DENSE = ("loftr", "eloftr")
RIVALS = (*COLMAP_KINDS, *KEYPOINT_NETWORKS, *DENSE)
"""All names that `make_rivals` knows."""

_DENSE_WEIGHTS = {"loftr": ("loftr_outdoor.ckpt", "outdoor_ds.ckpt"), "eloftr": ("efficientloftr",)}


def make_rivals(
    names: Sequence[str],
    weights: Path | None = None,
    resize_max: int = 1024,
    device: str | None = None,
) -> dict[str, Matcher]:
    """Matchers to compare with, all of them before the first is used.

    Args:
        names: some of `RIVALS`.
        weights: folder of their weights, see `KeypointMatcher`; for LoFTR with
            `loftr_outdoor.ckpt`, for EfficientLoFTR with the folder `efficientloftr` of a saved
            model. What it lacks of these two, and all where it is None, comes from their hubs.
        resize_max: longest side of the photos in pixels.
        device: of the networks; None for the fastest on this computer.

    Returns:
        By name, in the given order.

    Raises:
        EdmHlocError: a name is unknown, a library or weights are missing, or weights do not fit.
    """
    unknown = [name for name in names if name not in RIVALS]
    if unknown:
        raise EdmHlocError(
            f"There is no rival {unknown[0]!r} to evaluate beside; there are {', '.join(RIVALS)}."
        )
    if weights is not None and not weights.is_dir():
        raise EdmHlocError(f"There is no folder {weights} of weights.")
    return {name: _make(name, weights, resize_max, device) for name in dict.fromkeys(names)}


def _make(name: str, weights: Path | None, resize_max: int, device: str | None) -> Matcher:
    if name in COLMAP_KINDS:
        return COLMAPMatcher(name, resize_max)
    if name in KEYPOINT_NETWORKS:
        return KeypointMatcher(name, weights, resize_max, device)
    files = [weights / file for file in _DENSE_WEIGHTS[name]] if weights is not None else []
    given = next((file for file in files if file.exists()), None)
    preprocessing = Preprocessing(resize_max)
    try:
        return make_matcher(name, weights=given, preprocessing=preprocessing, device=device)
    except WeightsError as error:
        if given is not None:
            raise
        reason = str(error).partition(":")[0]
        raise WeightsError(
            f"{reason}: run once with network, or give --rival-weights a folder with "
            f"{_DENSE_WEIGHTS[name][0]}."
        ) from None

"""How relative poses are evaluated: as by LoFTR and its successors, as by JamMa, or as by us."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.estimators import ESTIMATORS, require_poselib
from edm_hloc.evaluation.input_sizes import InputSize
from edm_hloc.evaluation.pose_pairs import index_of

ProtocolName = Literal["ours", "loftr", "jamma"]
PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


@dataclass(frozen=True)
class PoseProtocol:
    """All that decides the figures of relative poses but the matcher and the pairs.

    Attributes:
        name: one of `PROTOCOLS`.
        estimators: the threshold of RANSAC in pixels by the name of the estimator.
        size: of the photos for the networks; None for the matcher's own.
        epipolar_squared: a match is correct below it: the sum of both images' squared epipolar
            errors, in normalised coordinates.
        threshold: minimum confidence of EDM's matches; None for that of the weights.
    """

    name: ProtocolName
    estimators: Mapping[str, float]
    size: InputSize | None = None
    epipolar_squared: float = 1e-4
    threshold: float | None = None

    def __str__(self) -> str:
        """All of it in one line."""
        estimators = ", ".join(
            f"{ESTIMATORS[name][0]} at {pixels:g} px" for name, pixels in self.estimators.items()
        )
        size = "" if self.size is None else f"; photos: {self.size}"
        threshold = "" if self.threshold is None else f"; confidence {self.threshold:g}"
        return (
            f"{self.name}: {estimators}{size}; correct below {self.epipolar_squared:.0e}{threshold}"
        )


def ours() -> PoseProtocol:
    """COLMAP's LO-RANSAC at 1.5 px and OpenCV's RANSAC at 0.5 px, in pixels of the resized photos;
    where it is installed PoseLib's LO-RANSAC, at its default of 1 px."""
    estimators = {"colmap": 1.5, "opencv": 0.5}
    with contextlib.suppress(EdmHlocError):
        require_poselib()
        estimators["poselib"] = 1.0
    return PoseProtocol("ours", estimators)


def pose_protocol(name: str, truth: Path, longer: int | None = None) -> PoseProtocol:
    """The protocol called `name` for the data set that an index belongs to.

    MegaDepth-1500 by "loftr": longer side 1,152 px padded to a square, as EfficientLoFTR and EDM,
    OpenCV's RANSAC at 0.5 px; by "jamma": longer side 832 px, PoseLib's LO-RANSAC at 0.5 px, as
    JamMa and Table 13 of EDM. The 0.5 px are of the photos at full size. ScanNet-1500: 640 × 480 px
    with the same estimators, EDM with a confidence of 0.2.

    Args:
        name: one of `PROTOCOLS`.
        truth: the known poses, as for `pose_pairs.read_pose_pairs`.
        longer: longer side of MegaDepth's photos in pixels in place of the protocol's, as in the
            papers' tables of image sizes; of no meaning to "ours".

    Raises:
        EdmHlocError: the protocol is one of a paper, but `truth` is not an index of LoFTR's, or is
            one of ScanNet, whose photos have one size; or PoseLib is not installed.
    """
    if name == "ours":
        return ours()
    data = index_of(truth)
    if data is None:
        raise EdmHlocError(
            f"--protocol {name} is for LoFTR's index files of MegaDepth or ScanNet (*.npz), which "
            f"{truth} is not: leave --protocol out for other pairs."
        )
    protocol: ProtocolName = "jamma" if name == "jamma" else "loftr"
    if protocol == "jamma":
        require_poselib()
    estimators = {"opencv": 0.5} if protocol == "loftr" else {"poselib": 0.5}
    if data == "scannet":
        if longer is not None:
            raise EdmHlocError(
                f"--protocol {name} matches ScanNet's photos at 640 × 480 px: leave --resize out."
            )
        size = InputSize(exact=(640, 480), smooth=False)
        return PoseProtocol(protocol, estimators, size, 5e-4, threshold=0.2)
    longer = longer or (1152 if protocol == "loftr" else 832)
    size = InputSize(longer=longer, padded=True, smooth=False)
    return PoseProtocol(protocol, estimators, size)

"""The result of localizing one query, and a summary over all queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pycolmap

from edm_hloc.localization.poses import to_rigid

Status = Literal["localized", "closest", "failed"]


_SURE_INLIERS, _SURE_RATIO = 100, 0.1
_SURE_ROTATION = 0.2  # degrees: inliers by chance lie in one place, or are far off


@dataclass(frozen=True)
class QueryPose:
    """What became of one query.

    Attributes:
        query: its name.
        status: "localized"; "closest": no pose was found and `cam_from_world` is that of the
            database image ranked first; "failed": there is not even that.
        reason: why it is not localized.
        cam_from_world: qw, qx, qy, qz, tx, ty, tz, COLMAP's convention.
        camera: model, width, height and parameters that the pose was found with.
        retrieved: database images asked for.
        matched: those with matches that count.
        matches: of all of them.
        correspondences: distinct pairs of a 2D and a 3D point.
        inliers: those that agree with the pose.
        median_error: of the inliers' reprojection, pixels.
        position_deviation: standard deviation of the position in the world's unit, from the
            inliers' residuals as if they were independent: a lower bound.
        rotation_deviation: degrees, likewise.
        inliers_of: how many inliers each database image gave.
        seconds: spent on RANSAC and refinement.
    """

    query: str
    status: Status
    reason: str = ""
    cam_from_world: tuple[float, ...] | None = None
    camera: str = ""
    retrieved: int = 0
    matched: int = 0
    matches: int = 0
    correspondences: int = 0
    inliers: int = 0
    median_error: float | None = None
    position_deviation: float | None = None
    rotation_deviation: float | None = None
    inliers_of: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def confidence(self) -> str:
        """ "high", "low" or "none": high with 100 inliers that are a tenth of what was matched and
        that leave the rotation no more than 0.2° uncertain."""
        if self.status != "localized":
            return "none"
        enough = self.inliers >= max(_SURE_INLIERS, _SURE_RATIO * self.correspondences)
        known = self.rotation_deviation is not None and self.rotation_deviation <= _SURE_ROTATION
        return "high" if enough and known else "low"

    @property
    def pose(self) -> pycolmap.Rigid3d | None:
        return None if self.cam_from_world is None else to_rigid(self.cam_from_world)


@dataclass(frozen=True)
class LocalizationSummary:
    """How many queries ended how, and where the answers are thin.

    Attributes:
        queries, localized, closest, failed: numbers of queries.
        inliers_median: of the localized ones.
        problems: the reason of each query that was not localized.
    """

    queries: int
    localized: int
    closest: int
    failed: int
    inliers_median: float
    problems: dict[str, str]

    @staticmethod
    def of(poses: Iterable[QueryPose]) -> LocalizationSummary:
        poses = list(poses)
        number = Counter(pose.status for pose in poses)
        inliers = [pose.inliers for pose in poses if pose.status == "localized"]
        return LocalizationSummary(
            queries=len(poses),
            localized=number["localized"],
            closest=number["closest"],
            failed=number["failed"],
            inliers_median=float(np.median(inliers)) if inliers else 0.0,
            problems={pose.query: pose.reason for pose in poses if pose.status != "localized"},
        )

"""The result of localizing one query, and a summary over all queries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pycolmap

from edm_hloc.localization.poses import to_rigid

Status = Literal["localized", "closest", "failed"]

# Thresholds of a high confidence. A wrong pose has few inliers, or inliers that lie close together
# or far away, which leave its rotation uncertain. Where the intrinsics are not known, the distance
# can be uncertain while the rotation is not: of a wall that the camera looks squarely at.
_CONFIDENT_INLIERS = 100
_CONFIDENT_INLIER_RATIO = 0.1
_CONFIDENT_ROTATION = 0.2  # degrees, standard deviation
_CONFIDENT_POSITION = 0.03  # standard deviation, by the distance
# Farther off the middle is the principal point of strongly cropped photos only, or it makes up for
# what no camera does, as of photos that were squeezed
_FARTHEST_OFF = 0.2


@dataclass(frozen=True)
class QueryPose:
    """The pose of one query, or the reason why it has none.

    Attributes:
        query: name of the query.
        status: "localized": PnP found a pose. "closest": it did not, and `cam_from_world` is the
            pose of the highest-ranked database image that has one. "failed": there is no pose.
        reason: why the query is not localized; empty if it is.
        cam_from_world: qw, qx, qy, qz, tx, ty, tz in COLMAP's convention: a point of the world
            times this is in the camera's frame. None if `status` is "failed".
        camera: COLMAP's camera model, width, height and parameters of the pose, as refined.
        better_focal: focal length in pixels that explains the inliers far better than that of the
            known intrinsics, which are in doubt then; None if none does.
        retrieved: number of retrieved database images.
        matched: number of them with enough matches to the query (`PoseOptions.min_matches`).
        matches: number of matches to these images.
        correspondences: number of distinct 2D–3D correspondences among the matches.
        inliers: number of correspondences that agree with the pose.
        median_error: median reprojection error of the points that inliers see, each at the median
            of its inliers, pixels of the original photo; of the aligned points, if there are any.
        distance: median distance of these points from the camera, in the world's unit; None in logs
            of earlier versions.
        position_deviation: standard deviation of the camera's position, in the world's unit. It is
            computed from the inliers' residuals. The errors of the model and of known intrinsics
            come on top.
        rotation_deviation: standard deviation of the rotation in degrees, computed likewise.
        lens_deviations: how much of these two comes from the principal point, which is taken to be
            in the middle of the photo where the intrinsics are estimated and the matches do not
            tell it; None of others, and in logs of earlier versions.
        off_centre: distance of the principal point from the middle, by the longer side, where the
            intrinsics are estimated and the matches tell it; None of others.
        elsewhere: number of correspondences that fit another pose, as where places look alike, if
            it explains at least half as much of the photo as this one (see `rival`); else 0. Only
            asked where the confidence would be high.
        inliers_of: number of inliers from each database image that has any.
        aligned: number of points at which the photo was aligned to those of the database, from
            which the pose then comes; 0 where it comes from the matches.
        seconds: time spent in RANSAC and refinement.
    """

    query: str
    status: Status
    reason: str = ""
    cam_from_world: tuple[float, ...] | None = None
    camera: str = ""
    better_focal: float | None = None
    retrieved: int = 0
    matched: int = 0
    matches: int = 0
    correspondences: int = 0
    inliers: int = 0
    median_error: float | None = None
    distance: float | None = None
    position_deviation: float | None = None
    rotation_deviation: float | None = None
    lens_deviations: tuple[float, float] | None = None
    off_centre: float | None = None
    elsewhere: int = 0
    inliers_of: dict[str, int] = field(default_factory=dict)
    aligned: int = 0
    seconds: float = 0.0

    @property
    def confidence(self) -> Literal["high", "low", "none"]:
        """How far the pose can be relied on.

        "high": at least 100 inliers, which are at least a tenth of the correspondences, and
        standard deviations of at most 0.2° of the rotation and 3 % of the points' median distance
        of the position, without what comes from a principal point that is taken to be in the
        middle, by intrinsics that are not in doubt: estimated ones have the principal point within
        a fifth of the longer side from the middle. No other pose explains half as much of the
        photo. "low": any other localized query. "none": not localized.
        """
        if self.status != "localized":
            return "none"
        return "low" if self.doubts else "high"

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is wrong with the pose of a localized query, in words; nothing of "high" ones."""
        return tuple(self._doubts())

    def _doubts(self) -> Iterator[str]:
        of_lens = self.lens_deviations or (0.0, 0.0)
        position, rotation = (
            None if whole is None else math.sqrt(max(0.0, whole**2 - part**2))
            for whole, part in zip(
                (self.position_deviation, self.rotation_deviation), of_lens, strict=True
            )
        )
        if self.elsewhere:
            yield f"{self.elsewhere:,} fit a pose elsewhere"
        if self.inliers < _CONFIDENT_INLIERS:
            yield "few inliers"
        if self.inliers < _CONFIDENT_INLIER_RATIO * self.correspondences:
            yield "few of the correspondences"
        if self.better_focal is not None:
            yield f"a focal length of {self.better_focal:,.0f} px fits far better"
        if (self.off_centre or 0.0) > _FARTHEST_OFF:
            yield "a principal point far from the middle"
        if rotation is None:
            yield "the uncertainty is not known"
            return
        if rotation > _CONFIDENT_ROTATION:
            yield f"rotation ± {rotation:.2g}°"
        if self.distance is None:
            return
        if position is None or position > _CONFIDENT_POSITION * self.distance:
            if position is None or not self.distance:
                yield "the uncertainty of the position is not known"
            else:
                yield f"position ± {position / self.distance:.1%} of the distance"

    @property
    def pose(self) -> pycolmap.Rigid3d | None:
        """`cam_from_world` as an object of pycolmap."""
        return None if self.cam_from_world is None else to_rigid(self.cam_from_world)


@dataclass(frozen=True)
class LocalizationSummary:
    """Number of queries by status, and the reasons of those that were not localized.

    Attributes:
        queries: number of all queries.
        localized, closest, failed: number of queries with each status (see `QueryPose`).
        inliers_median: median number of inliers of the localized queries; 0 without any.
        problems: the reason of each query that was not localized, by name.
    """

    queries: int
    localized: int
    closest: int
    failed: int
    inliers_median: float
    problems: dict[str, str]

    @staticmethod
    def of(poses: Iterable[QueryPose]) -> LocalizationSummary:
        """Summarizes the results of a run."""
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

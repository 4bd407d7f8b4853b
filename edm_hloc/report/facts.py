"""The record of a run that `collect` fills from its folder and that the page is made of."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pycolmap

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.find import image_stamps
from edm_hloc.images.roots import ImageRoot
from edm_hloc.localization.points import PointSource
from edm_hloc.localization.results import QueryPose
from edm_hloc.report.scene import CameraView, Points

logger = logging.getLogger(__name__)

Kind = Literal["reconstruction", "triangulation", "matching", "localization"]
Status = Literal["complete", "unfinished", "failed"]


@dataclass(frozen=True)
class PhotoFacts:
    """Statistics of one photo.

    Attributes:
        size: (width, height) as stored, in pixels; None if neither the photo nor a camera of it is
            known.
        keypoints: number of keypoints.
        coverage: share of the cells of a 16 × 12 grid over the photo that hold a keypoint.
        orientation: EXIF's, 1 (stored upright) to 8; the page shows photos upright.
    """

    size: tuple[int, int] | None
    keypoints: int
    coverage: float
    orientation: int = 1


@dataclass
class RunFacts:
    """Everything the report knows about a run. Fields of missing or damaged files stay empty.

    Attributes:
        out: output folder of the run.
        record: content of run.json.
        kind: which pipeline wrote the run.
        dataset: name of the benchmark; empty for other data.
        status: "failed" if an error was recorded, "unfinished" if a step is missing.
        error: the recorded error, or why no model could be made.
        unfinished: what is missing, one sentence each.
        problems: what could not be read for this report, one sentence each.
        image_root: folder or folders of the photos; None if none was found.
        names: the photos of the run, sorted; in a localization the queries come first.
        query_count: number of queries among `names`, answered or not.
        skipped: photos that were left out, with the reason.
        pairs: (P, 2) int64 indices into `names`, of the matched pairs.
        matches: (P,) int64, number of matches of each pair.
        inliers: (P,) int64, number of verified matches of each pair; −1 if it was not verified.
        listed: number of pairs in pairs.txt, each counted once.
        points: 3D points of the model, or a sample of the scans.
        views: cameras of the model and of the localized queries.
        registered: number of 3D points that each registered image observes, by its name.
        min_inliers: minimum number of inliers of a verified pair, or of a localized query.
        queries: results of a localization.
        on_earth: whether a record beside the model tells that it is on Earth.
        cameras: intrinsics of registered images and localized queries, by name.
        sizes: (width, height) of photos as they were matched, by name; of database photos of a
            localization they are not known, as their model may be of another size.
        prior_focal_lengths: in pixels, of EXIF data or given, by the number of the camera.
        point_source: 3D points of the keypoints of database photos; localization only.
    """

    out: Path
    record: dict[str, Any]
    kind: Kind
    dataset: str = ""
    status: Status = "complete"
    error: str = ""
    unfinished: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    image_root: ImageRoot | None = None
    names: list[str] = field(default_factory=list)
    query_count: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    matches: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    inliers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    listed: int = 0
    points: Points = field(default_factory=Points.none)
    views: list[CameraView] = field(default_factory=list)
    registered: dict[str, int] = field(default_factory=dict)
    min_inliers: int = 15
    queries: list[QueryPose] = field(default_factory=list)
    on_earth: bool = False
    cameras: dict[str, pycolmap.Camera] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    prior_focal_lengths: dict[int, float] = field(default_factory=dict)
    point_source: PointSource | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in run.json."""
        return dict(self.record.get("settings", {}))

    @property
    def results(self) -> dict[str, Any]:
        """The results in run.json, by step."""
        return dict(self.record.get("results", {}))

    @property
    def verified(self) -> bool:
        """Whether any pair was verified, by its two-view geometry or by a query's pose."""
        return bool((self.inliers >= 0).any())

    def photo_path(self, name: str) -> Path | None:
        """The file of a photo; None if it does not exist."""
        if self.image_root is None or not image_stamps(self.image_root, [name]):
            return None
        return self.image_root / name

    @contextmanager
    def noting_errors(self, what: str) -> Iterator[None]:
        """Adds an error of the block to `problems` and swallows it: the rest is still shown.

        Args:
            what: the part of the run that the block reads, for the sentence in `problems`.
        """
        try:
            yield
        except EdmHlocError as error:
            self._note(f"{what}: {error}")
        except Exception as error:  # damaged files raise almost anything
            logger.debug("While reading %s", what, exc_info=True)
            self._note(f"{what}: {type(error).__name__}: {error}")

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

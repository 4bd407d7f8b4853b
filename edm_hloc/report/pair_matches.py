"""The matches of single pairs with their inliers, for the lines that a page draws."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database
from edm_hloc.base.frames import to_colmap
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.results import QueryPose
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.report.facts import RunFacts


class PairMatches(NamedTuple):
    """The matches of one pair.

    Attributes:
        points0, points1: (M, 2) pixels of the original photos, hloc's frame.
        scores: (M,) confidence in [0, 1].
        inliers: (M,) bool, inliers of the pair's two-view geometry or of the query's pose; None if
            the pair was not verified.
    """

    points0: np.ndarray
    points1: np.ndarray
    scores: np.ndarray
    inliers: np.ndarray | None


class PairSource:
    """Reads keypoints of single photos and matches of single pairs; use it in a ``with`` block.

    Files that are missing or damaged are left out; damage is noted in `facts.problems`.
    """

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._answers = {answer.query: answer for answer in facts.queries}
        self._ids: dict[str, int] = {}
        self._stack = ExitStack()
        self._features: FeatureReader | None = None
        self._model_features: FeatureReader | None = None
        self._matches: MatchReader | None = None
        self._raw: RawMatchReader | None = None
        self._database: pycolmap.Database | None = None

    def __enter__(self) -> PairSource:
        out, enter = self._facts.out, self._stack.enter_context
        for path in (out / "sfm" / "features.h5", out / "model-keypoints.h5"):
            with self._facts.noting_errors("Keypoints of the model"):
                if path.is_file():
                    self._model_features = enter(FeatureReader(path))
        with self._facts.noting_errors("Keypoints"):
            if (out / "matches.h5").is_file() and (out / "features.h5").is_file():
                self._features = enter(FeatureReader(out / "features.h5"))
                self._matches = enter(MatchReader(out / "matches.h5"))
        if (out / "raw_matches").is_dir() and any((out / "raw_matches").glob("*.h5")):
            self._raw = enter(RawMatchReader(out / "raw_matches"))
        if self._facts.kind != "localization" and (out / "database.db").is_file():
            self._database = enter(open_database(out / "database.db"))
            self._ids = {i.name: i.image_id for i in self._database.read_all_images()}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2) float64 keypoints of a photo in hloc's frame, from the model if no file has them.

        An unknown photo has none: (0, 2).
        """
        for features in (self._features, self._model_features):
            if features is not None and name in features:
                return np.asarray(features.keypoints(name), np.float64)
        source = self._facts.point_source
        if isinstance(source, ModelPoints) and name in source:
            return source.keypoints(name)
        return np.zeros((0, 2))

    def read(self, name0: str, name1: str) -> PairMatches | None:
        """The matches of a pair: those of the keypoints, else the raw ones, else None."""
        matches = self._matches
        if matches is not None and (name0, name1) in matches:
            index, scores = matches.matches(name0, name1)
            keypoints = self.keypoints(name0), self.keypoints(name1)
            if len(index) and any(index[:, side].max() >= len(keypoints[side]) for side in (0, 1)):
                return None
            points0, points1 = (keypoints[side][index[:, side]] for side in (0, 1))
            inliers = self._inliers(name0, name1, index, points0)
            return PairMatches(points0, points1, scores, inliers)
        if self._raw is not None and (name0, name1) in self._raw:
            raw = self._raw.read(name0, name1)
            return PairMatches(raw.keypoints0, raw.keypoints1, raw.scores, None)
        return None

    def _inliers(
        self, name0: str, name1: str, index: np.ndarray, points0: np.ndarray
    ) -> np.ndarray | None:
        if name0 in self._answers:
            return self._pose_inliers(self._answers[name0], name1, index, points0)
        if self._database is None or not {name0, name1} <= self._ids.keys():
            return None
        geometry = self._database.read_two_view_geometry(self._ids[name0], self._ids[name1])
        if geometry is None:
            return np.zeros(len(index), bool)
        found = {(int(a), int(b)) for a, b in geometry.inlier_matches}
        return np.array([(int(a), int(b)) in found for a, b in index], bool)

    def _pose_inliers(
        self, answer: QueryPose, image: str, index: np.ndarray, points0: np.ndarray
    ) -> np.ndarray | None:
        """(M,) which matches of a query with a database photo reproject within `max_error`."""
        source, pose = self._facts.point_source, answer.pose
        if source is None or image not in source:
            return None
        agree = np.zeros(len(index), bool)
        if answer.status != "localized" or pose is None:
            return agree
        settings = self._facts.settings
        options = settings.get("pose") or settings["options"]["pose"]
        world = source.points(image)[index[:, 1]]
        known = np.isfinite(world).all(axis=1)
        camera = self._facts.cameras[answer.query]
        seen = np.asarray(camera.img_from_cam(pose * world[known])).reshape(-1, 2)
        # in float32, as the pose was estimated
        error = np.linalg.norm(seen - to_colmap(points0.astype(np.float32))[known], axis=1)
        agree[known] = error <= options["max_error"]
        return agree

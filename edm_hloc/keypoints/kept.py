"""What is kept of an aggregation while it is at work, so that it goes on after it was killed."""

from __future__ import annotations

import numpy as np

from edm_hloc.base.journal import Journal
from edm_hloc.keypoints.adjustment import CONSTRAINT, PairConstraints
from edm_hloc.pairs.rules import Pair

_MATCH = np.dtype([("id0", "i4"), ("id1", "i4"), ("score", "f2")])


class KeptKeypoints:
    """Keypoints of images, and what the matches of pairs were merged into, in a journal.

    Args:
        journal: on the disk, so that memory does not grow with the number of pairs. Matches are
            put into it only if it outlives the process.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put_ids(self, pair: int, ids: np.ndarray) -> None:
        """Keeps the keypoints (M,) of a pair's points in one of its images, −1 for none."""
        self._journal.put(f"ids {pair}", ids.astype(np.int32))

    def ids(self, pair: int) -> np.ndarray:
        """(M,) int32, read-only."""
        return self._journal.array(f"ids {pair}", np.int32)

    def put_matches(self, pair: int, matches0: np.ndarray, scores0: np.ndarray) -> None:
        """Keeps the matches of a pair, as `unique_matches` gives them."""
        if self._journal.path is None:
            return
        matched = np.flatnonzero(matches0 != -1)
        rows = np.empty(len(matched), _MATCH)
        rows["id0"], rows["id1"], rows["score"] = matched, matches0[matched], scores0[matched]
        self._journal.put(f"matches {pair}", rows)

    def matches(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """matches0 (N0,) int32 and scores0 (N0,) float16 of a pair."""
        rows = self._journal.array(f"matches {pair}", _MATCH)
        length = int(rows["id0"].max(initial=-1)) + 1
        matches0, scores0 = np.full(length, -1, np.int32), np.zeros(length, np.float16)
        matches0[rows["id0"]], scores0[rows["id0"]] = rows["id1"], rows["score"]
        return matches0, scores0

    def put_constraints(self, pair: int, constraints: PairConstraints) -> None:
        """Keeps what a pair says of its keypoints."""
        affine = np.asarray(constraints.affine, np.float64)
        self._journal.put(f"constraints {pair}", affine.tobytes() + constraints.matches.tobytes())

    def constraints(self, pair: int, names: Pair) -> PairConstraints:
        """What a pair of images of these names says of its keypoints."""
        data = self._journal.get(f"constraints {pair}")
        affine = np.frombuffer(data, np.float64, 4).reshape(2, 2)
        return PairConstraints(*names, affine, np.frombuffer(data, CONSTRAINT, offset=32))

    def put_image(self, image: int, keypoints: np.ndarray, scores: np.ndarray | None) -> None:
        """Keeps an image and all that was put since the last one.

        Args:
            image: its place in the order of the work.
            keypoints: (N, 2) float32.
            scores: (N,) float32; None where the keypoints are fixed, which are not kept.
        """
        if scores is not None and self._journal.path is not None:
            rows = np.column_stack([keypoints, scores]).astype(np.float32)
            self._journal.put(f"image {image}", rows)
        self._journal.put(f"done {image}", b"")
        self._journal.commit()

    def has_image(self, image: int) -> bool:
        """Whether an image is done."""
        return f"done {image}" in self._journal

    def image(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) float32 keypoints and (N,) float32 scores of an image whose own they are."""
        rows = self._journal.array(f"image {image}", np.float32).reshape(-1, 3)
        return rows[:, :2].copy(), rows[:, 2].copy()

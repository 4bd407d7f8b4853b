"""Correspondences of one pair of images: what every matcher gives and every later step reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False, repr=False)
class Matches:
    """M correspondences between two images.

    Outside the matchers coordinates are pixels of the original images, in hloc's frame: (x, y),
    the centre of the top-left pixel at (0, 0).

    Attributes:
        keypoints0: (M, 2) float32, in image 0.
        keypoints1: (M, 2) float32, in image 1.
        scores: (M,) float32 in [0, 1].
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    scores: np.ndarray

    def __repr__(self) -> str:
        if not len(self):
            return "no matches"
        return (
            f"{len(self):,} matches with scores {self.scores.min():.2f} to {self.scores.max():.2f}"
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: np.ndarray | slice) -> Matches:
        """Some of the matches, by mask, indices or slice."""
        return replace(self, **{name: array[which] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """The three arrays by the names they have in H5 files."""
        return {
            "keypoints0": self.keypoints0,
            "keypoints1": self.keypoints1,
            "scores": self.scores,
        }

    def swapped(self) -> Matches:
        """The same matches with the two images exchanged."""
        return Matches(self.keypoints1, self.keypoints0, self.scores)

    def joined(self, others: Matches) -> Matches:
        """These matches, followed by others of the same pair."""
        return Matches(
            np.concatenate([self.keypoints0, others.keypoints0]),
            np.concatenate([self.keypoints1, others.keypoints1]),
            np.concatenate([self.scores, others.scores]),
        )

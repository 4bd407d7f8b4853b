"""Keypoint adjustment: moves keypoints to where the matches of all pairs agree.

A keypoint merges points that differ slightly from pair to pair, and so do the points they are
matched to: where a pair has the same corner half a pixel further right in one image, it also has it
half a pixel further right in the other. Merging loses this. Here each match says where one of its
keypoints should be given the other (an affine map of the pair's images, and a shift), and a robust
sum of squared residuals of all matches is minimised over the positions of all keypoints. This is
the keypoint adjustment of Lindenberger et al., "Pixel-Perfect Structure-from-Motion", ICCV 2021,
with matches in place of their deep features.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from edm_hloc.base.journal import Journal
from edm_hloc.base.matches import Matches
from edm_hloc.base.progress import StepProgress

_ITERATIONS = 15
_DAMPING = 0.7  # of each step; with full steps two keypoints can swap their errors for ever
_CAUCHY_SCALE = 1.0  # px, residual at which the weight of a match is halved
_PRIOR_WEIGHT = 0.05  # of a keypoint's original position; a match has its score, at most 1
_MIN_MATCHES_FOR_AFFINE = 10
_KEEP_EVERY = 20.0  # seconds
_KEPT = "adjusted"  # the entry in a journal

CONSTRAINT = np.dtype([("id0", "i4"), ("id1", "i4"), ("shift", "f4", 2), ("weight", "f4")])
"""One match: its two keypoints, its shift in pixels of image 1, and its weight."""


class PairConstraints(NamedTuple):
    """What the matches of a pair say of its keypoints: keypoint 1 = affine · keypoint 0 + shift.

    Attributes:
        name0, name1: the images.
        affine: (2, 2), the linear part of an affine map from image 0 to image 1, the same for all
            matches of the pair.
        matches: (L,) of dtype `CONSTRAINT`.
    """

    name0: str
    name1: str
    affine: np.ndarray
    matches: np.ndarray


def pair_constraints(
    pair: tuple[str, str], raw: Matches, ids0: np.ndarray, ids1: np.ndarray, used: np.ndarray
) -> PairConstraints:
    """The constraints of the matches of a pair.

    The affine map is fitted to the matches by least median of squares; with fewer than 10 of them,
    or if it degenerates, it is the identity.

    Args:
        pair: names of the two images.
        raw: M matches between them, in pixels.
        ids0, ids1: (M,) int, the keypoints in each image that the matched points were merged into.
        used: (L,) int, indices of the matches that become constraints.
    """
    points0, points1 = raw.keypoints0[used], raw.keypoints1[used]
    affine = np.eye(2)
    if len(used) >= _MIN_MATCHES_FOR_AFFINE:
        fitted, _ = cv2.estimateAffine2D(points0, points1, method=cv2.LMEDS)
        if fitted is not None and np.linalg.det(fitted[:, :2]) > 0.01:
            affine = fitted[:, :2]
    matches = np.empty(len(used), CONSTRAINT)
    matches["id0"], matches["id1"] = ids0[used], ids1[used]
    matches["shift"] = points1 - points0 @ affine.T
    matches["weight"] = raw.scores[used]
    return PairConstraints(*pair, affine, matches)


def adjust_keypoints(
    keypoints: Mapping[str, np.ndarray],
    constraints: Callable[[], Iterable[PairConstraints]],
    max_shift: float,
    fixed: Iterable[str] = (),
    *,
    journal: Journal | None = None,
) -> dict[str, np.ndarray]:
    """Minimises a robust sum of squared residuals of all constraints.

    Iteratively reweighted least squares with a Cauchy loss; all keypoints move at once in each of
    15 damped iterations, and are drawn weakly to their original positions.

    Args:
        keypoints: (N, 2) pixels by image name.
        constraints: gives the constraints of all pairs, one pair after the other; it is called in
            each iteration, so that they need not be held in memory.
        max_shift: how far a keypoint may move along each axis, in pixels. It also stays inside the
            bounding box of the keypoints of its image.
        fixed: names of images whose keypoints do not move.
        journal: keeps the positions after some of the iterations, from which the same call goes on
            after the process was killed; without it no progress is shown either.

    Returns:
        (N, 2) float32 pixels by image name, without the fixed images.
    """
    fixed = set(fixed)
    moving = [name for name in keypoints if name not in fixed]
    current = dict(keypoints)
    start, kept_at = 0, time.monotonic()
    if journal is not None and _KEPT in journal:
        start = _restore(journal.get(_KEPT), moving, current)
    show = journal is not None
    progress = StepProgress(
        "Adjusting keypoints", "iteration", _ITERATIONS, before=start, shown=show
    )
    with progress:
        for iteration in range(start, _ITERATIONS):
            weight, moment = _pulls(current, moving, constraints())
            for name in moving:
                original = keypoints[name]
                if len(original):
                    to_original = _PRIOR_WEIGHT * (original - current[name])
                    step = _DAMPING * (moment[name] + to_original) / weight[name][:, None]
                    moved = current[name] + step
                    moved = np.clip(moved, original - max_shift, original + max_shift)
                    box = original.min(axis=0), original.max(axis=0)
                    current[name] = np.clip(moved, *box).astype(np.float32)
            progress.update()
            if journal is not None and time.monotonic() - kept_at > _KEEP_EVERY:
                state = [np.int64(iteration + 1).tobytes()]
                state += [np.asarray(current[name], np.float32).tobytes() for name in moving]
                journal.put(_KEPT, b"".join(state))
                journal.commit()
                kept_at = time.monotonic()
    return {name: current[name] for name in moving}


def _pulls(
    current: Mapping[str, np.ndarray], moving: Iterable[str], constraints: Iterable[PairConstraints]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By image that moves, the sum of weights (N,) of each keypoint, that of its original position
    included, and the weighted sum (N, 2) of the steps that the constraints ask for."""
    weight = {n: np.full(len(current[n]), _PRIOR_WEIGHT, np.float32) for n in moving}
    moment = {n: np.zeros((len(current[n]), 2), np.float32) for n in weight}
    for name0, name1, affine, matches in constraints:
        id0, id1 = matches["id0"], matches["id1"]
        residual = current[name0][id0] @ affine.T + matches["shift"] - current[name1][id1]
        squared = np.einsum("nd,nd->n", residual, residual)
        robust = matches["weight"] / (1 + squared / _CAUCHY_SCALE**2)
        step0 = -residual @ np.linalg.inv(affine).T
        for name, ids, step in ((name0, id0, step0), (name1, id1, residual)):
            if name in weight:
                weight[name] += np.bincount(ids, robust, len(weight[name]))
                for d in (0, 1):
                    pull = np.bincount(ids, robust * step[:, d], len(weight[name]))
                    moment[name][:, d] += pull
    return weight, moment


def _restore(state: bytes, moving: Sequence[str], current: dict[str, np.ndarray]) -> int:
    """Sets the positions (N, 2) that were kept; gives the number of iterations they are after."""
    position = 8
    for name in moving:
        if len(current[name]):
            points = np.frombuffer(state, np.float32, current[name].size, position)
            current[name] = points.reshape(-1, 2)
            position += points.nbytes
    return int(np.frombuffer(state, np.int64, 1)[0])

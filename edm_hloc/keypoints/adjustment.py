"""Moves keypoints to where the matches of all their pairs agree.

A keypoint stands for points that different pairs put a little apart, and that are matched to
points which differ as well: if the same corner is found half a pixel to the right in one image,
its matches lie half a pixel to the right in the others. Merging them forgets that. Here each match
says where the one keypoint should be, given the other, and all are brought to agreement (keypoint
adjustment, Lindenberger et al., ICCV 2021, with matches in place of their deep features).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from edm_hloc.base.matches import Matches

_SWEEPS = 15
_STEP = 0.7  # of the way; a whole one lets two keypoints swap their errors for ever
_TOLERANCE = 1.0  # pixels from which on a match counts little
_PRIOR = 0.05  # what a keypoint's first place weighs, a sure match being 1
_ENOUGH = 10  # matches of a pair that tell how it is turned and scaled

LINK = np.dtype([("id0", "i4"), ("id1", "i4"), ("shift", "f4", 2), ("weight", "f4")])


class Links(NamedTuple):
    """What a pair's matches say of its keypoints: keypoint 1 = affine · keypoint 0 + shift.

    Attributes:
        name0, name1: the images.
        affine: (2, 2), how the surroundings of points change from image 0 to image 1.
        matches: (L,) of `LINK`: indices of the keypoints, the shift in pixels, and a weight.
    """

    name0: str
    name1: str
    affine: np.ndarray
    matches: np.ndarray


def links_between(
    pair: tuple[str, str], raw: Matches, ids0: np.ndarray, ids1: np.ndarray, kept: np.ndarray
) -> Links:
    """The links of a pair.

    Args:
        pair: image names.
        raw: (M,) matches between them, in pixels.
        ids0, ids1: (M,) the keypoints of either image that the matches' points belong to.
        kept: (L,) indices of the matches that count.
    """
    points0, points1 = raw.keypoints0[kept], raw.keypoints1[kept]
    affine = np.eye(2)
    if len(kept) >= _ENOUGH:
        rows, _ = cv2.estimateAffine2D(points0, points1, method=cv2.LMEDS)
        if rows is not None and np.linalg.det(rows[:, :2]) > 0.01:
            affine = rows[:, :2]
    matches = np.empty(len(kept), LINK)
    matches["id0"], matches["id1"] = ids0[kept], ids1[kept]
    matches["shift"] = points1 - points0 @ affine.T
    matches["weight"] = raw.scores[kept]
    return Links(*pair, affine, matches)


def adjust_keypoints(
    keypoints: Mapping[str, np.ndarray],
    links: Callable[[], Iterable[Links]],
    reach: float,
    fixed: Iterable[str] = (),
    *,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Keypoints that minimise a robust sum of squared disagreements with all links.

    Args:
        keypoints: (N, 2) pixels by image name; links are to indices of these.
        links: gives those of all pairs, one after the other; called several times.
        reach: pixels that a keypoint may move along each axis. It also stays between the outermost
            keypoints of its image.
        fixed: names of images whose keypoints are given and stay.
        progress: show a bar.

    Returns:
        (N, 2) float32 pixels by the names of the images that are not fixed.
    """
    fixed = set(fixed)
    moving = [name for name in keypoints if name not in fixed]
    now = dict(keypoints)
    shown = None if progress else True  # None: on a terminal
    for _ in tqdm(range(_SWEEPS), desc="adjusting keypoints", unit="sweep", disable=shown):
        weight = {n: np.full(len(keypoints[n]), _PRIOR, np.float32) for n in moving}
        moment = {n: np.zeros((len(keypoints[n]), 2), np.float32) for n in moving}
        for name0, name1, affine, matches in links():
            id0, id1 = matches["id0"], matches["id1"]
            away = now[name0][id0] @ affine.T + matches["shift"] - now[name1][id1]
            size = np.einsum("nd,nd->n", away, away)
            counts = matches["weight"] / (1 + size / _TOLERANCE**2)
            back = -away @ np.linalg.inv(affine).T
            for name, ids, move in ((name0, id0, back), (name1, id1, away)):
                if name in weight:
                    weight[name] += np.bincount(ids, counts, len(weight[name]))
                    for d in (0, 1):
                        moment[name][:, d] += np.bincount(
                            ids, counts * move[:, d], len(weight[name])
                        )
        for name in moving:
            first = keypoints[name]
            if len(first):
                pull = _PRIOR * (first - now[name])
                new = now[name] + _STEP * (moment[name] + pull) / weight[name][:, None]
                new = np.clip(new, first - reach, first + reach)
                now[name] = np.clip(new, first.min(axis=0), first.max(axis=0)).astype(np.float32)
    return {name: now[name] for name in moving}

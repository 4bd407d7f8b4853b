"""The similarity between positions in a model and on Earth, and how well they determine it.

It is one that most of the positions agree with, whatever the others say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycolmap
from scipy.special import fdtri

from edm_hloc.base.colmap import quiet_colmap

_TOLERANCES = (0.05, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # m, of the fixes that agree
_AGREEING = 2 / 3  # of the fixes: the least tolerance that so many meet is taken
LEAST_AGREEING = 0.5
# Errors of GPS have longer tails than normal ones: Student's t with so many degrees of freedom, in
# three directions. Only what one in a thousand of its errors exceeds counts as wrong.
_FREEDOM, _WRONG = 4.0, 1e-3
_PARAMETERS = 7  # of a similarity
_HALVINGS, _ROUNDS, _SETTLED = 12, 10, 1e-6


def moved(similarity: pycolmap.Sim3d, points: np.ndarray) -> np.ndarray:
    """(N, 3) points after a similarity."""
    return np.asarray(points @ similarity.matrix()[:, :3].T + similarity.matrix()[:, 3])


def weights_of(
    similarity: pycolmap.Sim3d, here: np.ndarray, there: np.ndarray, deviations: np.ndarray
) -> np.ndarray:
    """(N,) weights of positions, the inverse of their variances in m²; 0 of wrong ones.

    Deviations (N,) are relative to each other: their scale comes from the median distance.
    """
    off = np.linalg.norm(moved(similarity, here) - there, axis=1) / deviations
    middle, most = (np.sqrt(3 * fdtri(3, _FREEDOM, 1 - p)) for p in (0.5, _WRONG))
    scale = max(float(np.median(off)) / middle, 1e-3 / float(deviations.max()))
    tails = (_FREEDOM + 3) / (_FREEDOM + (off / scale) ** 2)
    return np.asarray(np.where(off <= most * scale, tails, 0.0) / (scale * deviations) ** 2)


def fit_similarity(
    here: np.ndarray, there: np.ndarray, deviations: np.ndarray
) -> tuple[pycolmap.Sim3d, np.ndarray]:
    """The similarity that most positions agree with, and the (N,) weights of the positions.

    By RANSAC with the least tolerance that two thirds of the positions meet, or half of them the
    largest; then by weighted least squares, as for errors of Student's distribution.
    """
    options = pycolmap.RANSACOptions()
    options.random_seed, options.max_num_trials = 0, 10_000
    found = None
    for tolerance in _TOLERANCES:
        options.max_error = tolerance
        with quiet_colmap():
            answer: Any = pycolmap.estimate_sim3d_robust(here, there, options)
        if answer is None:
            continue
        candidate = answer["tgt_from_src"]
        within = np.linalg.norm(moved(candidate, here) - there, axis=1) <= tolerance
        share = _AGREEING if tolerance < _TOLERANCES[-1] else LEAST_AGREEING
        if within.mean() >= share:
            found = candidate
            break
    if found is None:
        return pycolmap.Sim3d(), np.zeros(len(here))
    # from all alike to as told: a rough frame is too far off for the most accurate ones
    for floor in (*tolerance * 0.5 ** np.arange(_HALVINGS), 0.0):
        for _ in range(_ROUNDS):
            before, given = found, np.maximum(deviations, floor)
            found = _weighted_similarity(here, there, weights_of(found, here, there, given))
            if np.abs(found.matrix() - before.matrix()).max() <= _SETTLED * found.scale:
                break
    return found, weights_of(found, here, there, deviations)


def _weighted_similarity(
    here: np.ndarray, there: np.ndarray, weights: np.ndarray
) -> pycolmap.Sim3d:
    """The similarity with the least weighted sum of squared distances (Umeyama's)."""
    share = weights / weights.sum()
    middle, goal = share @ here, share @ there
    own, others = here - middle, there - goal
    u, spread, vt = np.linalg.svd((share[:, None] * others).T @ own)
    mirror = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(mirror) @ vt
    scale = float(spread @ mirror / (share @ (own**2).sum(axis=1)))
    return pycolmap.Sim3d(scale, pycolmap.Rotation3d(rotation), goal - scale * rotation @ middle)


def uncertainty_of(places: np.ndarray, weights: np.ndarray, fitted: bool) -> tuple[float, float]:
    """How well positions determine the scale (a share) and the direction (degrees) of a frame.

    Both are standard deviations. That of the direction is of the one that is known least, such as
    the vertical of a level flight: it turns about the two axes that the positions determine worst.

    Args:
        places: (N, 3) positions in the frame.
        weights: (N,) of them, see `weights_of`.
        fitted: whether the frame was found by these positions, which then are nearer to it than to
            the true one.
    """
    centred = places - (weights / max(float(weights.sum()), 1e-12)) @ places
    extents = np.linalg.svd(np.sqrt(weights)[:, None] * centred, compute_uv=False) ** 2
    # of Student's distribution, each position tells less than one of a normal one as wide
    variance = (_FREEDOM + 5) / (_FREEDOM + 3)
    if fitted:
        values = 3 * int(np.count_nonzero(weights))
        variance *= values / max(values - _PARAMETERS, 1)
    scale = np.sqrt(variance / max(float(extents.sum()), 1e-24))
    about = extents.sum() - extents[:2]  # the axes of the largest extents
    turn = np.sqrt(variance * (1 / np.maximum(about, 1e-24)).sum())
    return float(scale), float(np.degrees(np.arctan(turn)))

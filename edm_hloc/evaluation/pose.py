"""Relative pose estimation from matches: pose errors, their AUC and the precision of matches."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.geometry import epipolar_errors, essential_matrix
from edm_hloc.base.progress import track
from edm_hloc.evaluation.pose_pairs import PosePair, rotation_angle
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.reader import RawMatchReader

logger = logging.getLogger(__name__)

THRESHOLDS = (5.0, 10.0, 20.0)
"""Pose errors in degrees up to which the AUC is computed."""

EPIPOLAR_PX = 1.0
"""Largest epipolar error of a correct match, in pixels of the evaluation."""

EPIPOLAR_SQUARED = 1e-4
"""LoFTR's threshold for outdoor scenes: the sum of both images' squared epipolar errors, in
normalised coordinates."""

ROTATIONS = ((0.0, 30.0), (30.0, 60.0), (60.0, 180.0))
"""Ranges of the relative rotation (from, to, in degrees) of which there are separate summaries."""

SEEDS = range(5)
"""Seeds of RANSAC. One random draw changes an AUC by more than matchers differ."""

Pose = tuple[np.ndarray, np.ndarray]
"""R (3, 3) and t (3,), from the coordinates of camera 0 to those of camera 1."""


def pose_auc(errors: Sequence[float], thresholds: Sequence[float] = THRESHOLDS) -> list[float]:
    """Area under the cumulative curve (AUC) of the pose errors up to each threshold, in [0, 1].

    The curve of recall over error is interpolated linearly, as in SuperGlue's evaluation.

    Args:
        errors: one of each pair in degrees; infinite where no pose was found.
        thresholds: in degrees.

    Raises:
        ValueError: there is no error.
    """
    if not len(errors):
        raise ValueError("there is no error to average")
    ordered = np.concatenate([[0.0], np.sort(np.asarray(errors, float))])
    recall = np.arange(len(ordered)) / (len(ordered) - 1)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(ordered, threshold))
        x = np.append(ordered[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold))
    return areas


def pose_error(pose: Pose | None, T_0to1: np.ndarray) -> float:
    """The larger one of the angular errors of rotation and translation, in degrees.

    The sign of the translation is ignored, as in SuperGlue's and LoFTR's evaluation.

    Args:
        pose: the estimate; None gives an infinite error.
        T_0to1: (4, 4), the true relative pose.
    """
    if pose is None:
        return float("inf")
    R, t = pose
    true = T_0to1[:3, 3]
    lengths = float(np.linalg.norm(t) * np.linalg.norm(true))
    cosine = min(1.0, abs(float(t @ true)) / lengths) if lengths > 0 else 0.0
    rotation = float(rotation_angle(R @ T_0to1[:3, :3].T))
    return max(rotation, float(np.degrees(np.arccos(cosine))))


def estimate_opencv(x0: np.ndarray, x1: np.ndarray, pair: PosePair, seed: int) -> Pose | None:
    """Pose by OpenCV's RANSAC with LoFTR's threshold: 0.5 px over the mean focal length.

    Args:
        x0, x1: (M, 2) matches in normalised coordinates.
        pair: its cameras give the focal length.
        seed: of the order of the matches, since OpenCV's own draws are always the same.

    Returns:
        None if there are fewer than five matches, or no model is found.
    """
    if len(x0) < 5:
        return None
    focal = (pair.camera0.mean_focal_length() + pair.camera1.mean_focal_length()) / 2
    order = np.random.default_rng(seed).permutation(len(x0))
    x0, x1 = x0[order], x1[order]
    E, mask = cv2.findEssentialMat(
        x0, x1, np.eye(3), threshold=0.5 / focal, prob=0.99999, method=cv2.RANSAC
    )
    if E is None:
        return None
    best, pose = 0, None
    for candidate in np.split(E, len(E) // 3):
        number, R, t, _, _ = cv2.recoverPose(
            candidate, x0, x1, np.eye(3), distanceThresh=1e9, mask=mask.copy()
        )
        if number > best:
            best, pose = number, (R, t[:, 0])
    return pose


def estimate_colmap(x0: np.ndarray, x1: np.ndarray, pair: PosePair, seed: int) -> Pose | None:
    """Pose by COLMAP's LO-RANSAC with a threshold of 1.5 px, refined on the inliers.

    Args:
        x0, x1: (M, 2) matches in pixels of the pair's cameras, in COLMAP's frame.
        pair: its cameras are used.
        seed: of RANSAC.

    Returns:
        None if there are fewer than five matches, or no model is found.
    """
    if len(x0) < 5:
        return None
    options = pycolmap.RANSACOptions()
    options.max_error = 1.5
    options.random_seed = seed
    found = pycolmap.estimate_essential_matrix(x0, x1, pair.camera0, pair.camera1, options)
    if found is None:
        return None
    pose = found["cam2_from_cam1"]
    refined = pycolmap.refine_relative_pose(
        pose, pair.camera0, x0, pair.camera1, x1, found["inlier_mask"]
    )
    if refined is not None:
        pose = refined["cam2_from_cam1"]
    return pose.rotation.matrix(), pose.translation


@dataclass(frozen=True)
class PairResult:
    """Results of one matcher on one pair.

    Attributes:
        name0, name1: paths of the photos, relative to their folder.
        rotation: true relative rotation in degrees.
        matches: number of matches.
        near: number of matches with an epipolar error of at most `EPIPOLAR_PX` in both images.
        near_squared: number of matches below LoFTR's threshold, `EPIPOLAR_SQUARED`.
        colmap, opencv: pose errors in degrees by `estimate_colmap` and `estimate_opencv`, one for
            each of the `SEEDS`.
    """

    name0: str
    name1: str
    rotation: float
    matches: int
    near: int
    near_squared: int
    colmap: tuple[float, ...]
    opencv: tuple[float, ...]


@dataclass(frozen=True)
class PoseSummary:
    """Results of one matcher on all pairs in a range of relative rotations.

    Attributes:
        matcher: its name.
        rotations: the range (from, to) in degrees, the upper end included.
        pairs: number of pairs.
        matches: mean number of matches of a pair.
        precision: share of matches with an epipolar error of at most `EPIPOLAR_PX` in both images,
            mean over pairs; pairs without matches count as 0, as in LoFTR's evaluation.
        precision_squared: likewise below LoFTR's threshold, `EPIPOLAR_SQUARED`.
        colmap, opencv: AUC at 5, 10 and 20 degrees in %, mean over the `SEEDS`.
        colmap_spread, opencv_spread: standard deviation of the AUC at 5 degrees over the seeds.
    """

    matcher: str
    rotations: tuple[float, float]
    pairs: int
    matches: float
    precision: float
    precision_squared: float
    colmap: tuple[float, ...]
    colmap_spread: float
    opencv: tuple[float, ...]
    opencv_spread: float


def measure_pair(pair: PosePair, keypoints0: np.ndarray, keypoints1: np.ndarray) -> PairResult:
    """Estimates the relative pose of one pair from its matches, and counts the correct matches.

    Args:
        keypoints0, keypoints1: (M, 2) pixels of the photos at full size, in hloc's frame.
    """
    points0 = _to_camera_pixels(keypoints0, pair.size0, pair.camera0)
    points1 = _to_camera_pixels(keypoints1, pair.size1, pair.camera1)
    rays0, rays1 = pair.camera0.cam_from_img(points0), pair.camera1.cam_from_img(points1)
    # Distortion models cannot be inverted everywhere.
    finite = np.isfinite(np.hstack([rays0, rays1])).all(axis=1)
    points0, points1 = points0[finite], points1[finite]
    rays0, rays1 = rays0[finite], rays1[finite]
    x0, x1 = (np.column_stack([rays, np.ones(len(rays))]) for rays in (rays0, rays1))
    error0, error1 = epipolar_errors(x0, x1, essential_matrix(pair.T_0to1))
    focal0, focal1 = pair.camera0.mean_focal_length(), pair.camera1.mean_focal_length()
    pixels = np.maximum(error0 * focal0, error1 * focal1)
    return PairResult(
        pair.name0,
        pair.name1,
        pair.rotation,
        matches=len(keypoints0),
        near=int((pixels <= EPIPOLAR_PX).sum()),
        near_squared=int((error0**2 + error1**2 < EPIPOLAR_SQUARED).sum()),
        colmap=tuple(
            pose_error(estimate_colmap(points0, points1, pair, seed), pair.T_0to1) for seed in SEEDS
        ),
        opencv=tuple(
            pose_error(estimate_opencv(rays0, rays1, pair, seed), pair.T_0to1) for seed in SEEDS
        ),
    )


def _to_camera_pixels(
    keypoints: np.ndarray, size: tuple[int, int], camera: pycolmap.Camera
) -> np.ndarray:
    """(M, 2) pixels of a photo in hloc's frame → pixels of its camera in COLMAP's frame."""
    scale = camera.width / size[0], camera.height / size[1]
    pixels: np.ndarray = to_colmap(np.asarray(keypoints, np.float64).reshape(-1, 2)) * scale
    return pixels


def summarise(matcher: str, results: Sequence[PairResult]) -> list[PoseSummary]:
    """Summaries of all pairs, then of each of the `ROTATIONS` that has some of the pairs."""
    summaries = []
    whole = (ROTATIONS[0][0], ROTATIONS[-1][1])
    for low, high in (whole, *ROTATIONS):
        chosen = [r for r in results if low < r.rotation <= high or (low == r.rotation == 0)]
        if not chosen or ((low, high) != whole and len(chosen) == len(results)):
            continue
        colmap, colmap_spread = _mean_auc([r.colmap for r in chosen])
        opencv, opencv_spread = _mean_auc([r.opencv for r in chosen])
        summaries.append(
            PoseSummary(
                matcher=matcher,
                rotations=(low, high),
                pairs=len(chosen),
                matches=float(np.mean([r.matches for r in chosen])),
                precision=float(np.mean([r.near / max(1, r.matches) for r in chosen])),
                precision_squared=float(
                    np.mean([r.near_squared / max(1, r.matches) for r in chosen])
                ),
                colmap=colmap,
                colmap_spread=colmap_spread,
                opencv=opencv,
                opencv_spread=opencv_spread,
            )
        )
    return summaries


def _mean_auc(errors: Sequence[tuple[float, ...]]) -> tuple[tuple[float, ...], float]:
    """Mean of the AUCs over the seeds in %, and the standard deviation of the first of them.

    Args:
        errors: for each pair, one pose error for each seed.
    """
    areas = 100 * np.array([pose_auc(of_seed) for of_seed in zip(*errors, strict=True)])
    return tuple(map(float, areas.mean(axis=0))), float(areas[:, 0].std())


def evaluate_pose(
    pairs: Sequence[PosePair],
    images: Path,
    matchers: Mapping[str, Matcher],
    out: Path,
    dense: MatchingConfig | None = None,
) -> dict[str, list[PairResult]]:
    """Matches the pairs with every matcher, estimates the poses and measures their errors.

    Writes to `out` the folders `matches-NAME` of raw matches, from which an interrupted evaluation
    continues, and `pose.json` with the matchers' settings, the summaries and the results of all
    pairs. Pairs with an unreadable photo count as failures.

    Args:
        images: folder of the photos.
        matchers: by the name that they have in the results.
        out: folder of the output files.

    Returns:
        The results of all pairs by the matcher's name.

    Raises:
        EdmHlocError: there are no pairs, or matching failed; finished matches are kept.
    """
    if not pairs:
        raise EdmHlocError("There is no pair to evaluate.")
    make_folder(out)
    results = {}
    for name, matcher in matchers.items():
        raw = out / f"matches-{name}"
        match_pairs(images, [(p.name0, p.name1) for p in pairs], matcher, raw, dense)
        reader = RawMatchReader(raw)
        found = []
        with quiet_colmap():
            for pair in track(pairs, f"Poses ({name})", "pair"):
                if (pair.name0, pair.name1) not in reader:
                    nothing = np.empty((0, 2))
                    found.append(measure_pair(pair, nothing, nothing))
                    continue
                matches = reader.read(pair.name0, pair.name1)
                found.append(measure_pair(pair, matches.keypoints0, matches.keypoints1))
        results[name] = found
    content = {
        "images": str(images),
        "matchers": {name: dict(matcher.provenance) for name, matcher in matchers.items()},
        "summaries": [
            dataclasses.asdict(s) for name, found in results.items() for s in summarise(name, found)
        ],
        "pairs": {name: [_as_json(r) for r in found] for name, found in results.items()},
    }
    write_whole(out / "pose.json", json.dumps(content, indent=1) + "\n")
    return results


def _as_json(result: PairResult) -> dict[str, Any]:
    """The fields of a result; infinite errors become None, since JSON has no infinity."""
    written = dataclasses.asdict(result)
    for estimator in ("colmap", "opencv"):
        written[estimator] = [None if e == np.inf else e for e in written[estimator]]
    return written


COLUMNS = (
    "matcher", "rotation °", "pairs", "matches", "within 1 px %", "< 1e-4 %",
    "AUC@5/10/20 LO-RANSAC", "AUC@5/10/20 OpenCV",
)  # fmt: skip


def table(summaries: Sequence[PoseSummary]) -> str:
    """The summaries as a Markdown table."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for s in summaries:
        low, high = s.rotations
        rows.append(
            (
                s.matcher,
                f"{low:.0f}–{high:.0f}",
                str(s.pairs),
                f"{s.matches:,.0f}",
                f"{100 * s.precision:.1f}",
                f"{100 * s.precision_squared:.1f}",
                _areas(s.colmap, s.colmap_spread),
                _areas(s.opencv, s.opencv_spread),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _areas(areas: tuple[float, ...], spread: float) -> str:
    first, *others = (f"{a:.1f}" for a in areas)
    return " / ".join([f"{first} ± {spread:.1f}", *others])

"""Relative pose of photo pairs from matches, measured as the papers on matching do."""

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
from tqdm import tqdm

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.evaluation.pose_pairs import PosePair, rotation_angle
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.reader import RawMatchReader

logger = logging.getLogger(__name__)

THRESHOLDS = (5.0, 10.0, 20.0)  # degrees
EPIPOLAR_PX = 1.0
EPIPOLAR_SQUARED = 1e-4  # LoFTR's for outdoor scenes; its sum of squares on the image plane z = 1
# Pairs are also listed apart by the angle between their cameras: from, to (degrees).
ROTATIONS = ((0.0, 30.0), (30.0, 60.0), (60.0, 180.0))
# RANSAC draws at random, and one draw moves an AUC by more than matchers differ.
SEEDS = range(5)

Pose = tuple[np.ndarray, np.ndarray]  # R (3, 3), t (3,) from camera 0 to camera 1


def pose_auc(errors: Sequence[float], thresholds: Sequence[float] = THRESHOLDS) -> list[float]:
    """Area under the curve of recall over error up to each threshold, as a share of it.

    The curve runs straight between the errors, as in SuperGlue's evaluation.

    Args:
        errors: one a pair; infinite for none.
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
    """The larger of the angles of rotation and of direction of translation, in degrees.

    As in the papers a translation may point either way. Infinite without a pose.
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
    """OpenCV's RANSAC with LoFTR's settings: 0.5 px over the mean focal length.

    Args:
        x0, x1: (M, 2) points on the planes z = 1.
    """
    if len(x0) < 5:
        return None
    focal = (pair.camera0.mean_focal_length() + pair.camera1.mean_focal_length()) / 2
    order = np.random.default_rng(seed).permutation(len(x0))  # OpenCV always draws the same
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
    """COLMAP's LO-RANSAC at 1.5 px, and its refinement on the inliers.

    Args:
        x0, x1: (M, 2) pixels of the cameras' frames in COLMAP's convention.
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
    """One pair, matched by one matcher.

    Attributes:
        matches: number of them, right or wrong.
        near: of these, those whose symmetric distance from the epipolar lines is at most 1 px
            of the evaluation's frame (the larger of both images).
        near_squared: those whose sum of squared distances on the planes z = 1 is below 1e-4.
        colmap, opencv: pose errors in degrees, one a seed of RANSAC, see `estimate_colmap`,
            `estimate_opencv`.
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
    """Pairs of a range of rotations, matched by one matcher.

    Attributes:
        rotations: from, to (degrees); pairs of the upper end are included.
        matches: mean of a pair.
        precision: share of all matches within 1 px of the epipolar lines, mean over pairs;
            pairs without matches count 0, as in LoFTR's evaluation.
        precision_squared: likewise at LoFTR's threshold for outdoor scenes.
        colmap, opencv: AUC at 5, 10, 20 degrees in %, mean over the seeds.
        colmap_spread, opencv_spread: standard deviation of that at 5 degrees over the seeds.
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
    """Pose and precision of one pair.

    Args:
        keypoints0, keypoints1: (M, 2) pixels of the photos, the top-left pixel's centre at (0, 0).
    """
    points0 = _to_frame(keypoints0, pair.size0, pair.camera0)
    points1 = _to_frame(keypoints1, pair.size1, pair.camera1)
    rays0, rays1 = pair.camera0.cam_from_img(points0), pair.camera1.cam_from_img(points1)
    possible = np.isfinite(np.hstack([rays0, rays1])).all(axis=1)  # distortion has its limits
    points0, points1 = points0[possible], points1[possible]
    rays0, rays1 = rays0[possible], rays1[possible]
    squared0, squared1 = _epipolar_distances(rays0, rays1, pair.T_0to1)
    focal0, focal1 = pair.camera0.mean_focal_length(), pair.camera1.mean_focal_length()
    pixels = np.maximum(squared0 * focal0**2, squared1 * focal1**2)
    return PairResult(
        pair.name0,
        pair.name1,
        pair.rotation,
        matches=len(keypoints0),
        near=int((pixels <= EPIPOLAR_PX**2).sum()),
        near_squared=int((squared0 + squared1 < EPIPOLAR_SQUARED).sum()),
        colmap=tuple(
            pose_error(estimate_colmap(points0, points1, pair, seed), pair.T_0to1) for seed in SEEDS
        ),
        opencv=tuple(
            pose_error(estimate_opencv(rays0, rays1, pair, seed), pair.T_0to1) for seed in SEEDS
        ),
    )


def _to_frame(keypoints: np.ndarray, size: tuple[int, int], camera: pycolmap.Camera) -> np.ndarray:
    """(M, 2) pixels of a photo → its camera's, in COLMAP's convention (first centre at (½, ½))."""
    scale = camera.width / size[0], camera.height / size[1]
    return (np.asarray(keypoints, np.float64).reshape(-1, 2) + 0.5) * scale


def _epipolar_distances(
    x0: np.ndarray, x1: np.ndarray, T_0to1: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances from the epipolar lines on the planes z = 1 of both cameras, (M,) each."""
    x, y, z = T_0to1[:3, 3]
    E = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ T_0to1[:3, :3]
    x0, x1 = (np.column_stack([p, np.ones(len(p))]) for p in (x0, x1))
    line1, line0 = x0 @ E.T, x1 @ E
    squared = np.sum(x1 * line1, axis=1) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return (
            squared / np.sum(line0[:, :2] ** 2, axis=1),
            squared / np.sum(line1[:, :2] ** 2, axis=1),
        )


def summarise(matcher: str, results: Sequence[PairResult]) -> list[PoseSummary]:
    """All pairs, then those of each range of rotations that is not empty."""
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
    """Errors of the pairs, one a seed → mean over the seeds in %, spread of the first."""
    areas = 100 * np.array([pose_auc(of_seed) for of_seed in zip(*errors, strict=True)])
    return tuple(map(float, areas.mean(axis=0))), float(areas[:, 0].std())


def evaluate_pose(
    pairs: Sequence[PosePair],
    images: Path,
    matchers: Mapping[str, Matcher],
    out: Path,
    dense: MatchingConfig | None = None,
) -> dict[str, list[PairResult]]:
    """Match the pairs with every matcher and measure the poses.

    Writes to `out`: `matches-NAME/` (raw matches; an interrupted evaluation goes on from them)
    and `pose.json` (settings of the matchers, summaries, and all pairs). Pairs of photos that
    cannot be read count as failures.

    Raises:
        EdmHlocError: bad input; what was matched is kept.
    """
    if not pairs:
        raise EdmHlocError("There is no pair to evaluate.")
    out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, matcher in matchers.items():
        raw = out / f"matches-{name}"
        match_pairs(images, [(p.name0, p.name1) for p in pairs], matcher, raw, dense)
        reader = RawMatchReader(raw)
        found = []
        with quiet_colmap():
            for pair in tqdm(pairs, desc=f"Poses ({name})", unit="pair", disable=None):
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
    """JSON has no infinity: a pose that was not found is null."""
    written = dataclasses.asdict(result)
    for estimator in ("colmap", "opencv"):
        written[estimator] = [None if e == np.inf else e for e in written[estimator]]
    return written


COLUMNS = (
    "matcher", "rotation °", "pairs", "matches", "within 1 px %", "< 1e-4 %",
    "AUC@5/10/20 LO-RANSAC", "AUC@5/10/20 OpenCV",
)  # fmt: skip


def table(summaries: Sequence[PoseSummary]) -> str:
    """Summaries as a Markdown table."""
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

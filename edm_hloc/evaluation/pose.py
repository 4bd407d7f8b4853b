"""Relative pose estimation from matches: pose errors, their AUC and the precision of matches."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.frames import to_colmap
from edm_hloc.base.geometry import epipolar_errors, essential_matrix
from edm_hloc.base.progress import track
from edm_hloc.base.text import read_json_object
from edm_hloc.evaluation.areas import SEEDS, areas_text, as_json, markdown_table, mean_areas
from edm_hloc.evaluation.estimators import ESTIMATORS, PairMatches, Pose
from edm_hloc.evaluation.pose_pairs import PosePair, rotation_angle
from edm_hloc.evaluation.protocols import PoseProtocol, ours
from edm_hloc.evaluation.timed_matching import cpu_text, match_timed
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.matching.shards import shard_times

logger = logging.getLogger(__name__)

THRESHOLDS = (5.0, 10.0, 20.0)
"""Pose errors in degrees up to which the AUC is computed."""

EPIPOLAR_PX = 1.0
"""Largest epipolar error of a correct match, in pixels of the evaluation."""

ROTATIONS = ((0.0, 30.0), (30.0, 60.0), (60.0, 180.0))
"""Ranges of the relative rotation (from, to, in degrees) of which there are separate summaries."""

_ONE_PLACE = 1e-9  # distance of two cameras in one place, by the largest of all pairs: rounding


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


@dataclass(frozen=True)
class PairResult:
    """Results of one matcher on one pair.

    Attributes:
        name0, name1: paths of the photos, relative to their folder.
        rotation: true relative rotation in degrees.
        matches: number of matches.
        near: number of matches with an epipolar error of at most `EPIPOLAR_PX` in both images.
        near_squared: number of matches below the protocol's `epipolar_squared`.
        errors: by the name of the estimator, pose errors in degrees, one for each of the `SEEDS`.
    """

    name0: str
    name1: str
    rotation: float
    matches: int
    near: int
    near_squared: int
    errors: Mapping[str, tuple[float, ...]]


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
        precision_squared: likewise below the protocol's `epipolar_squared`.
        areas: by the name of the estimator, the AUC at 5, 10 and 20 degrees in %, mean over the
            `SEEDS`.
        spreads: by the same name, the standard deviation of the AUC at 5 degrees over the seeds.
        cpu_ms: CPU time of matching a pair in milliseconds; None where it is not known.
    """

    matcher: str
    rotations: tuple[float, float]
    pairs: int
    matches: float
    precision: float
    precision_squared: float
    areas: Mapping[str, tuple[float, ...]]
    spreads: Mapping[str, float]
    cpu_ms: float | None = None


def measure_pair(
    pair: PosePair,
    keypoints0: np.ndarray,
    keypoints1: np.ndarray,
    protocol: PoseProtocol | None = None,
) -> PairResult:
    """Estimates the relative pose of one pair from its matches, and counts the correct matches.

    Args:
        keypoints0, keypoints1: (M, 2) pixels of the photos at full size, in hloc's frame.
        protocol: None for `protocols.ours`.

    Raises:
        EdmHlocError: an estimator of the protocol is not installed.
    """
    protocol = protocol or ours()
    points0 = _to_camera_pixels(keypoints0, pair.size0, pair.camera0)
    points1 = _to_camera_pixels(keypoints1, pair.size1, pair.camera1)
    rays0, rays1 = pair.camera0.cam_from_img(points0), pair.camera1.cam_from_img(points1)
    # Distortion models cannot be inverted everywhere.
    finite = np.isfinite(np.hstack([rays0, rays1])).all(axis=1)
    seen = PairMatches(points0[finite], points1[finite], rays0[finite], rays1[finite])
    x0, x1 = (np.column_stack([rays, np.ones(len(rays))]) for rays in (seen.rays0, seen.rays1))
    error0, error1 = epipolar_errors(x0, x1, essential_matrix(pair.T_0to1))
    focal0, focal1 = pair.camera0.mean_focal_length(), pair.camera1.mean_focal_length()
    pixels = np.maximum(error0 * focal0, error1 * focal1)
    return PairResult(
        pair.name0,
        pair.name1,
        pair.rotation,
        matches=len(keypoints0),
        near=int((pixels <= EPIPOLAR_PX).sum()),
        near_squared=int((error0**2 + error1**2 < protocol.epipolar_squared).sum()),
        errors={
            name: tuple(
                pose_error(ESTIMATORS[name][1](seen, pair, threshold, seed), pair.T_0to1)
                for seed in SEEDS
            )
            for name, threshold in protocol.estimators.items()
        },
    )


def _to_camera_pixels(
    keypoints: np.ndarray, size: tuple[int, int], camera: pycolmap.Camera
) -> np.ndarray:
    """(M, 2) pixels of a photo in hloc's frame → pixels of its camera in COLMAP's frame."""
    scale = camera.width / size[0], camera.height / size[1]
    pixels: np.ndarray = to_colmap(np.asarray(keypoints, np.float64).reshape(-1, 2)) * scale
    return pixels


def summarise(
    matcher: str, results: Sequence[PairResult], cpu_ms: float | None = None
) -> list[PoseSummary]:
    """Summaries of all pairs, then of each of the `ROTATIONS` that has some of the pairs."""
    summaries = []
    whole = (ROTATIONS[0][0], ROTATIONS[-1][1])
    for low, high in (whole, *ROTATIONS):
        chosen = [r for r in results if low < r.rotation <= high or (low == r.rotation == 0)]
        if not chosen or ((low, high) != whole and len(chosen) == len(results)):
            continue
        areas = {
            name: mean_areas([r.errors[name] for r in chosen], THRESHOLDS)
            for name in chosen[0].errors
        }
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
                areas={name: mean for name, (mean, _) in areas.items()},
                spreads={name: spread for name, (_, spread) in areas.items()},
                cpu_ms=cpu_ms,
            )
        )
    return summaries


def evaluate_pose(
    pairs: Sequence[PosePair],
    images: Path,
    matchers: Mapping[str, Matcher],
    out: Path,
    protocol: PoseProtocol | None = None,
    dense: MatchingConfig | None = None,
) -> list[PoseSummary]:
    """Matches the pairs with every matcher, estimates the poses and measures their errors.

    Writes to `out` the folders `matches-NAME` of raw matches and the files `poses-NAME.json` of
    finished matchers, from which an interrupted evaluation continues, and `pose.json` with the
    protocol, the matchers' settings, the summaries and the results of all pairs. Pairs with an
    unreadable photo count as failures.

    Args:
        images: folder of the photos.
        matchers: by the name that they have in the results.
        out: folder of the output files.
        protocol: None for `protocols.ours`. The matchers are given photos of its size already.
        dense: memory and threads of matching.

    Returns:
        The summaries of all matchers, in their order.

    Raises:
        EdmHlocError: there are no pairs, or matching failed; finished matches are kept.
    """
    if not pairs:
        raise EdmHlocError("There is no pair to evaluate.")
    _warn_of_one_place(pairs)
    protocol = protocol or ours()
    make_folder(out)
    nothing = np.empty((0, 2))
    truth = [
        [p.name0, p.name1, p.T_0to1.tolist(), str(p.camera0.todict()), str(p.camera1.todict())]
        for p in pairs
    ]
    results, summaries = {}, []
    for name, matcher in matchers.items():
        names = [(p.name0, p.name1) for p in pairs]
        raw = out / f"matches-{name}"
        timed = match_timed(images, names, matcher, raw, dense)
        record = out / f"poses-{name}.json"
        # pairs of a photo that could not be read are matched once it can be
        shards = shard_times(raw)
        made_from = fingerprint_of([str(protocol), truth, dict(matcher.provenance), shards])
        found = _stored_results(record, made_from)
        if not found:
            with quiet_colmap():
                for pair in track(pairs, f"Poses ({name})", "pair"):
                    matches = timed.of((pair.name0, pair.name1))
                    points0 = nothing if matches is None else matches.keypoints0
                    points1 = nothing if matches is None else matches.keypoints1
                    found.append(measure_pair(pair, points0, points1, protocol))
            stored = {"made_from": made_from, "pairs": [as_json(r) for r in found]}
            write_whole(record, json.dumps(stored) + "\n")
        results[name] = found
        summaries += summarise(name, found, timed.cpu_ms)
    content = {
        "images": str(images),
        "protocol": str(protocol),
        "matchers": {name: dict(matcher.provenance) for name, matcher in matchers.items()},
        "summaries": [dataclasses.asdict(s) for s in summaries],
        "pairs": {name: [as_json(r) for r in found] for name, found in results.items()},
    }
    write_whole(out / "pose.json", json.dumps(content, indent=1) + "\n")
    return summaries


def _warn_of_one_place(pairs: Sequence[PosePair]) -> None:
    """Warns of pairs whose true translation has no direction that an estimate could be held to."""
    lengths = [float(np.linalg.norm(pair.T_0to1[:3, 3])) for pair in pairs]
    same = [p for p, x in zip(pairs, lengths, strict=True) if x <= _ONE_PLACE * max(lengths)]
    if same:
        logger.warning(
            "%d of the %d pairs have one true position for both photos, such as %s and %s: their "
            "translation has no direction, and counts as wrong by up to 90°. Leave them out.",
            len(same),
            len(pairs),
            same[0].name0,
            same[0].name1,
        )


def _stored_results(record: Path, made_from: str) -> list[PairResult]:
    """What an interrupted evaluation has finished of one matcher; nothing if it was of others."""
    if not record.is_file():
        return []
    with contextlib.suppress(EdmHlocError, KeyError, TypeError, AttributeError):
        stored = read_json_object(record, "record of poses")
        if stored["made_from"] == made_from:
            return [
                PairResult(
                    **{
                        **pair,
                        "errors": {
                            name: tuple(float("inf") if e is None else e for e in errors)
                            for name, errors in pair["errors"].items()
                        },
                    }
                )
                for pair in stored["pairs"]
            ]
    return []


def table(summaries: Sequence[PoseSummary], protocol: PoseProtocol | None = None) -> str:
    """The summaries as a Markdown table.

    Args:
        summaries: all by one protocol.
        protocol: which that is; None for `protocols.ours`.
    """
    protocol = protocol or ours()
    columns = (
        "matcher", "rotation °", "pairs", "matches", "within 1 px %",
        f"< {protocol.epipolar_squared:.0e} %", "CPU ms a pair",
        *(f"AUC@5/10/20 {ESTIMATORS[name][0]}" for name in protocol.estimators),
    )  # fmt: skip
    rows = [
        (
            s.matcher,
            f"{s.rotations[0]:.0f}–{s.rotations[1]:.0f}",
            str(s.pairs),
            f"{s.matches:,.0f}",
            f"{100 * s.precision:.1f}",
            f"{100 * s.precision_squared:.1f}",
            cpu_text(s.cpu_ms),
            *(areas_text(s.areas[name], s.spreads[name]) for name in protocol.estimators),
        )
        for s in summaries
    ]
    return markdown_table(columns, rows)

"""Localization of two photos that were left out of a model: EDM and COLMAP's SIFT.

    python benchmarks/left_out.py IMAGES --truth MODEL [--leave-out NAME NAME | --in-turn]

The other photos have their true cameras; points are triangulated from the matches of all pairs, and
the two photos are localized with their true intrinsics. With `--in-turn` all photos are left out,
two at a time that are half the list apart, since the errors of two say little; medians are printed
in the end. Both kinds of matches take the same steps
from the H5 files on: `triangulate`, then `localize_queries` with all other photos as its database;
and once more with `--tracks refine`: the points aligned in all photos, and each query to these.
Then without their intrinsics, as of photos without EXIF data: *estimated* with the pose, and *of
the model* where those of its photos explain a query as well.
Position errors are in % of the largest distance between two true camera centres, rotation errors in
degrees; seconds are those from the matches on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
from sift_files import write_sift

from edm_hloc.base.colmap import centres_of, posed_images, read_model
from edm_hloc.base.geometry import largest_distance
from edm_hloc.evaluation.localization import pose_errors
from edm_hloc.images.cameras import possible_cameras
from edm_hloc.keypoints.aggregation import KeypointFiles, ReferenceFiles, aggregate
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.queries import Queries, localize_queries
from edm_hloc.mapping.database import MatchedImages
from edm_hloc.mapping.triangulation import triangulate
from edm_hloc.matchers.base import Preprocessing
from edm_hloc.matching.engine import match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.rules import Pair, exhaustive
from edm_hloc.pipelines.localize import QUERY_KEYPOINTS
from edm_hloc.pipelines.reconstruct import RECONSTRUCTION_KEYPOINTS
from edm_hloc.refinement.load import load_matcher
from edm_hloc.tracks.adjustment import Kept
from edm_hloc.tracks.refine import refine_model

WriteMatches = Callable[[Path, list[Pair], list[Pair], Path], None]
"""Matches the pairs of the model and those of the queries: (image folder, pairs of the model, pairs
of the queries, output folder) → features.h5, matches.h5, query-features.h5, query-matches.h5. What
is the same whichever photos are left out is kept in the folder around it."""


KINDS = ("none", "refine", "none, estimated", "none, of the model")  # of tracks and intrinsics


def edm(weights: str | None, size: int) -> WriteMatches:
    preprocessing = Preprocessing(resize_max=size)
    matcher = load_matcher("edm", weights=weights, preprocessing=preprocessing)

    def write(images: Path, pairs: list[Pair], queries: list[Pair], out: Path) -> None:
        raw_matches = out.parent / "raw"
        if not raw_matches.exists():
            match_pairs(images, _every(pairs, queries), matcher, raw_matches)
        features, matches = out / "features.h5", out / "matches.h5"
        with RawMatchReader(raw_matches) as raw:
            aggregate(raw, pairs, KeypointFiles(features, matches), RECONSTRUCTION_KEYPOINTS)
            aggregate(
                raw,
                queries,
                KeypointFiles(out / "query-features.h5", out / "query-matches.h5"),
                QUERY_KEYPOINTS,
                ReferenceFiles((features,)),
            )

    return write


def sift(size: int) -> WriteMatches:
    def write(images: Path, pairs: list[Pair], queries: list[Pair], out: Path) -> None:
        features, matches = out.parent / "features.h5", out.parent / "matches.h5"
        if not matches.exists():
            write_sift(images, _every(pairs, queries), features, matches, size)
        for file in (features, matches):
            for name in (file.name, f"query-{file.name}"):
                (out / name).symlink_to(file)

    return write


def _every(pairs: list[Pair], queries: list[Pair]) -> list[Pair]:
    """All pairs of the photos, of which further turns leave out others."""
    return exhaustive(sorted({name for pair in [*pairs, *queries] for name in pair}))


def _guess(camera: pycolmap.Camera) -> pycolmap.Camera:
    """The camera of a photo of the same size of which nothing is known."""
    side = max(camera.width, camera.height)
    guess = pycolmap.Camera.create_from_model_name(
        camera.camera_id, "SIMPLE_RADIAL", 1.2 * side, camera.width, camera.height
    )
    guess.has_prior_focal_length = False
    return guess


def known_poses(truth: pycolmap.Reconstruction, names: list[str], folder: Path) -> None:
    """Writes a model with the true cameras of some of the images."""
    model = pycolmap.Reconstruction()
    posed = posed_images(truth)
    for number, name in enumerate(names, start=1):
        camera = pycolmap.Camera(truth.cameras[posed[name].camera_id].todict())
        camera.camera_id = number
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(name=name, camera_id=number, image_id=number)
        model.add_image_with_trivial_frame(image, posed[name].cam_from_world())
    folder.mkdir(parents=True)
    model.write_binary(folder)


def localize(
    images: Path,
    truth: pycolmap.Reconstruction,
    left_out: list[str],
    write: WriteMatches,
    out: Path,
) -> list[dict[str, object]]:
    """Localizes the photos left out; gives a row of the table for each, and for each refined."""
    posed = posed_images(truth)
    kept = [name for name in posed if name not in left_out]
    extent = largest_distance(centres_of(posed.values()))
    pairs = exhaustive(kept)
    query_pairs = [(query, name) for query in left_out for name in kept]
    known_poses(truth, kept, out / "known")
    write(images, pairs, query_pairs, out)
    start = time.monotonic()
    matched = MatchedImages(images, out / "features.h5", out / "matches.h5", pairs)
    mapped = triangulate(out / "known", matched, out / "database.db", out / "model")[1]
    cameras = {name: truth.cameras[posed[name].camera_id] for name in left_out}
    with_all = Queries(left_out, cameras, dict.fromkeys(left_out, kept))
    files = out / "query-features.h5", out / "query-matches.h5"
    points = ModelPoints(out / "model")
    answers = localize_queries(with_all, *files, points, out / "log.jsonl")
    seconds = time.monotonic() - start
    guesses = {name: _guess(camera) for name, camera in cameras.items()}
    unknown = replace(with_all, cameras=guesses, uncalibrated=left_out)
    perhaps = possible_cameras(images, left_out, points.cameras(kept))
    found = [
        *zip(["none"] * len(answers), answers, strict=True),
        *(
            (kind, answer)
            for kind, queries in (
                ("none, estimated", unknown),
                ("none, of the model", replace(unknown, perhaps=perhaps)),
            )
            for answer in localize_queries(queries, *files, points, out / f"{kind}.jsonl")
        ),
    ]
    start = time.monotonic()
    refined = refine_model(out / "model", images, out / "refined", Kept(poses=True))
    aligned = replace(with_all, photos={name: images / name for name in left_out})
    points = ModelPoints(out / "refined", image_root=images)
    answers = localize_queries(aligned, *files, points, out / "refined.jsonl")
    found += [("refine", answer) for answer in answers]
    more = time.monotonic() - start
    rows: list[dict[str, object]] = []
    for kind, answer in found:
        is_refined = kind == "refine"
        statistics = refined.after if is_refined else mapped.statistics
        position = rotation = float("nan")
        if answer.status == "localized" and answer.pose is not None:
            position, rotation = pose_errors(answer.pose, posed[answer.query].cam_from_world())
        rows.append(
            {
                "photo": answer.query,
                "tracks": kind,
                "points": statistics.points,
                "inliers": answer.inliers,
                "correspondences": answer.correspondences,
                "position_percent": 100 * position / float(extent),
                "rotation_degrees": rotation,
                "seconds": round(seconds + is_refined * more, 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("--truth", type=Path, required=True, help="COLMAP model, true cameras")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--leave-out", nargs="+", help="photos; default: at a third and two thirds")
    which.add_argument("--in-turn", action="store_true", help="leave out every photo in its turn")
    parser.add_argument("--weights", help="of EDM; default: the best on this computer")
    parser.add_argument("--max-size", type=int, default=1024, help="longest side, for both")
    args = parser.parse_args()
    truth = read_model(args.truth)
    names = list(posed_images(truth))
    turns = [args.leave_out or [names[len(names) // 3], names[2 * len(names) // 3]]]
    if args.in_turn:
        half = len(names) // 2
        turns = [names[k::half] for k in range(half)]
    methods = {"edm": edm(args.weights, args.max_size), "sift": sift(args.max_size)}
    print("| photo | matches | tracks | points | inliers | position % | rotation ° | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    results = {}
    for method, write in methods.items():
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            for turn, left_out in enumerate(turns):
                out = Path(folder) / str(turn)
                rows += localize(args.images, truth, left_out, write, out)
        for row in rows:
            print(
                f"| {row['photo']} | {method} | {row['tracks']} | {row['points']:,} | "
                f"{row['inliers']:,} of {row['correspondences']:,} | "
                f"{row['position_percent']:.4f} | {row['rotation_degrees']:.4f} | "
                f"{row['seconds']} |"
            )
        for tracks in KINDS:
            its = [row for row in rows if row["tracks"] == tracks]
            position, rotation = (
                np.median([row[of] for row in its])
                for of in ("position_percent", "rotation_degrees")
            )
            print(f"| median | {method} | {tracks} | | | {position:.4f} | {rotation:.4f} | |")
        results[method] = rows
    print(json.dumps(results))


if __name__ == "__main__":
    main()

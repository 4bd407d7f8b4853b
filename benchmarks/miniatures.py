"""Recall on miniatures of Aachen and InLoc: a perfect matcher, EDM and COLMAP's SIFT.

    python benchmarks/miniatures.py aachen|inloc [--seeds 101 102 103] [--methods truth edm sift]
    python benchmarks/miniatures.py aachen --methods edm edm-refined sift sift-refined

Each seed renders a dataset as `edm-hloc synth` does. All methods use the same image retrieval,
`--retrieval`. The perfect matcher (that of the tests, with 0.3 px of noise and 5 % outliers) and
EDM go through the pipeline of the dataset. SIFT takes the same steps from its H5 files on; its
keypoints need no quantization. `-refined`, of Aachen, is the same matches with `--tracks refine`:
points that all photos agree on, and queries that are aligned to these photos; its CPU time is what
comes on top of the method without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pycolmap
from sift_files import write_sift

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.evaluation.localization import (
    AACHEN_THRESHOLDS,
    INLOC_THRESHOLDS,
    evaluate,
    read_truth,
    table,
)
from edm_hloc.images.decode import photo_size
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints, PointSource
from edm_hloc.localization.poses import read_poses
from edm_hloc.localization.queries import Queries, localize_queries
from edm_hloc.localization.results import QueryPose
from edm_hloc.localization.scans import ScanPoints, write_scan_points
from edm_hloc.mapping.database import MatchedImages
from edm_hloc.mapping.triangulation import triangulate
from edm_hloc.matchers.base import Matcher
from edm_hloc.pairs.covisibility import from_covisibility
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines.aachen import AachenDataset, AachenOptions, localize_aachen
from edm_hloc.pipelines.inloc import InLocDataset, InLocOptions, localize_inloc, query_camera
from edm_hloc.pipelines.retrieval import retrieve
from edm_hloc.pipelines.run import Run
from edm_hloc.refinement.load import load_matcher
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from edm_hloc.tracks.adjustment import Kept
from edm_hloc.tracks.refine import refine_model
from tests.scenes import TruthMatcher

_REFINED = "-refined"

Found = tuple[Mapping[str, pycolmap.Rigid3d], Sequence[QueryPose]]
"""Poses by the query's name, and the log entry of each query."""


def by_pipeline(
    benchmark: str, data: Path, out: Path, method: str, args: argparse.Namespace
) -> Found:
    """Localize with the dataset's pipeline; the poses are those of the submission it writes."""
    images = "images_upright" if benchmark == "aachen" else "."
    matcher: Matcher
    if method == "truth":
        matcher = TruthMatcher(data, images=images)
    else:
        matcher = load_matcher("edm", weights=args.weights)
    retrieval = RetrievalOptions(args.retrieval, args.retrieved)
    if benchmark == "aachen":
        options = AachenOptions(
            args.covisible,
            retrieval,
            pose=pose_options(args),
            refine_tracks=method.endswith(_REFINED),
        )
        _, answers, submission = localize_aachen(data, out, matcher, options)
    else:
        settings = InLocOptions(retrieval, pose=pose_options(args))
        _, answers, submission = localize_inloc(data, out, matcher, settings)
    return read_poses(submission), answers


def by_sift(benchmark: str, data: Path, out: Path, method: str, args: argparse.Namespace) -> Found:
    """Localize with COLMAP's SIFT; only queries that are localized have a pose."""
    options = RetrievalOptions(args.retrieval, args.retrieved)
    run = Run(out, {})
    features, matches = out / "features.h5", out / "matches.h5"
    points: PointSource
    if benchmark == "aachen":
        dataset = AachenDataset(data)
        cameras = dataset.queries()
        images, queries = dataset.images, list(cameras)
        database = model_names(dataset.model)
        found = retrieve(run, options, RetrievalImages(images, queries, database))
        pairs = from_covisibility(dataset.model, args.covisible)
    else:
        rooms = InLocDataset(data)
        images, queries, database = data, rooms.queries(), rooms.database()
        cameras = {q: query_camera(*photo_size(data / q)) for q in queries}
        found = retrieve(run, options, RetrievalImages(images, queries, database))
        pairs = []
    query_pairs = [(query, image) for query, names in found.items() for image in names]
    if not features.is_file():
        write_sift(images, [*pairs, *query_pairs], features, matches)
    refined = method.endswith(_REFINED)
    if benchmark == "aachen":
        matched = MatchedImages(images, features, matches, pairs)
        written = (out / "database.db", out / "model")
        triangulate(dataset.model, matched, *written, AachenOptions().mapping)
        if refined:
            refine_model(out / "model", images, out / "model", Kept(poses=True))
        points = ModelPoints(out / "model", image_root=images)
    else:
        write_scan_points(data, features, database, out / "scans")
        points = ScanPoints(data, out / "scans", database)
    log, pose = out / "log.jsonl", pose_options(args)
    photos = {query: images / query for query in queries} if refined else {}
    answers = localize_queries(
        Queries(queries, cameras, found, photos=photos), features, matches, points, log, pose
    )
    return {a.query: a.pose for a in answers if a.status == "localized" and a.pose}, answers


def pose_options(args: argparse.Namespace) -> PoseOptions:
    """The benchmarks' defaults, with the threshold of inliers scaled to the size of the photos."""
    if args.benchmark == "aachen":
        return replace(AachenOptions().pose, max_error=12 * args.size[0] / 1600)
    return replace(InLocOptions().pose, max_error=48 * args.size[0] / 4032)


def model_names(folder: Path) -> list[str]:
    return sorted(image.name for image in pycolmap.Reconstruction(folder).images.values())


def key(seed: int, query: str) -> str:
    return f"{seed}:{query.rpartition('/')[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("benchmark", choices=("aachen", "inloc"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--methods", nargs="+", default=["truth", "edm", "sift"])
    parser.add_argument("--views", type=int, help="database photos; by default 24, for InLoc 48")
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480))
    parser.add_argument("--covisible", type=int, default=8)
    parser.add_argument("--retrieved", type=int, default=8)
    parser.add_argument("--retrieval", default="sift")
    parser.add_argument("--weights", help="weights of EDM; by default the best on this computer")
    args = parser.parse_args()
    half, size = args.queries // 2, (args.size[0], args.size[1])
    poses: dict[str, dict[str, pycolmap.Rigid3d]] = defaultdict(dict)
    truth: dict[str, dict[str, pycolmap.Rigid3d]] = defaultdict(dict)
    confidence: dict[str, dict[str, str]] = defaultdict(dict)
    seconds: dict[str, float] = defaultdict(float)
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            data = Path(name) / "data"
            if args.benchmark == "aachen":
                views = args.views or 24
                make_aachen(data, views, (args.queries - half, half), size, seed, depth_maps=True)
            else:
                make_inloc(data, args.views or 48, args.queries, size, seed, depth_maps=True)
            for group, true in read_truth(data / "truth" / "queries").items():
                truth[group] |= {key(seed, query): pose for query, pose in true.items()}
            for method in args.methods:
                start = time.process_time()
                out = Path(name) / method.removesuffix(_REFINED)
                if out.name == "sift":
                    found, answers = by_sift(args.benchmark, data, out, method, args)
                else:
                    found, answers = by_pipeline(args.benchmark, data, out, method, args)
                seconds[method] += time.process_time() - start
                poses[method] |= {key(seed, query): pose for query, pose in found.items()}
                confidence[method] |= {key(seed, a.query): a.confidence for a in answers}
    thresholds = AACHEN_THRESHOLDS if args.benchmark == "aachen" else INLOC_THRESHOLDS
    rows = []
    for method in args.methods:
        for errors in evaluate(poses[method], truth, thresholds):
            rows.append(replace(errors, group=f"{method}, {errors.group}"))
    print(table(rows, thresholds))
    everything = {query: pose for group in truth.values() for query, pose in group.items()}
    for method in args.methods:
        words = []
        for level in ("high", "low"):
            names = [query for query, c in confidence[method].items() if c == level]
            right = {query: everything[query] for query in names}
            recall = (
                evaluate(poses[method], {"": right}, thresholds[:1])[0].recall[0] if names else 0
            )
            words.append(f"{level}: {round(recall * len(names))} of {len(names)}")
        print(f"{method}: within {thresholds[0][0]} m of confidence {', '.join(words)}")
    print(
        json.dumps({method: round(value, 1) for method, value in seconds.items()}), "s of CPU time"
    )


if __name__ == "__main__":
    main()

"""Models of one folder of photos from the matches of several matchers, all mapped alike.

    python benchmarks/rivals_in_models.py IMAGES OUT --truth MODEL [--known MODEL] [--resize 1024]
           [--matchers edm,edm-network,sift,aliked+lightglue,…] [--rival-weights FOLDER]

All pairs of photos are matched. EDM's matches are merged into keypoints as by `edm-hloc
reconstruct`; the keypoints of the others are taken as they are. From there on everything is the
same: verification and mapping as by `edm-hloc reconstruct --tracks none`.

Prints a row of a Markdown table for each matcher; OUT keeps the matches, the models and a file of
results for each, so that the same call goes on after an interruption, or adds matchers. CPU seconds
are of the process; matching includes decoding and encoding the photos.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from reconstruct_rows import heading

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.evaluation.models import compare
from edm_hloc.evaluation.rivals import make_rivals
from edm_hloc.evaluation.timed_matching import match_timed
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.find import find_images
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.keypoints.aggregation import KeypointFiles, aggregate
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.mapping.database import MatchedImages, build_database
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.rules import Pair, exhaustive, names_in
from edm_hloc.pipelines.reconstruct import RECONSTRUCTION_KEYPOINTS
from edm_hloc.refinement.load import MatcherRecipe, Refinement

COLUMNS = (
    "matcher", "registered", "points", "track", "reproj. px", "rotation ° (max)",
    "position % (max)", "matching CPU s", "mapping CPU s",
)  # fmt: skip
OURS: dict[str, Refinement] = {"edm": "photometric", "edm-network": "none"}


@dataclass(frozen=True)
class Scene:
    """What all matchers are given.

    Attributes:
        images: folder of the photos.
        pairs: all pairs of them.
        truth: COLMAP model with the true cameras.
        cameras: known ones, or one camera for all photos.
        mapping: as for `edm-hloc reconstruct`.
    """

    images: Path
    pairs: Sequence[Pair]
    truth: Path
    cameras: CameraOptions
    mapping: MappingOptions


def keypoints_as_they_are(raw: RawMatchReader, pairs: Sequence[Pair], out: Path) -> KeypointFiles:
    """hloc's files of matches between keypoints that are the same in all pairs of a photo."""
    stored = [pair for pair in pairs if pair in raw]
    found = {pair: raw.read(*pair) for pair in stored}
    points: dict[str, list[np.ndarray]] = defaultdict(list)
    for (a, b), matches in found.items():
        points[a].append(matches.keypoints0)
        points[b].append(matches.keypoints1)
    files = KeypointFiles(out / "features.h5", out / "matches.h5")
    index: dict[str, list[np.ndarray]] = {}
    number: dict[str, int] = {}
    with FeatureWriter(files.features, raw.provenance) as writer:
        for name, parts in points.items():
            unique, which = np.unique(np.concatenate(parts), axis=0, return_inverse=True)
            ends = np.cumsum([len(part) for part in parts])[:-1]
            index[name], number[name] = np.split(which.ravel(), ends), len(unique)
            writer.add(name, unique, np.ones(len(unique)))
    with MatchWriter(files.matches, raw.provenance) as writer:
        for (a, b), matches in found.items():
            matches0, scores0 = np.full(number[a], -1), np.zeros(number[a])
            first = index[a].pop(0)
            matches0[first], scores0[first] = index[b].pop(0), matches.scores
            writer.add(a, b, matches0, scores0)
    return files


def reconstruct_with(name: str, matcher: Matcher, scene: Scene, out: Path) -> dict[str, Any]:
    """Makes the model of one matcher in `out`; gives its figures."""
    out.mkdir(parents=True, exist_ok=True)
    timed = match_timed(
        scene.images, scene.pairs, matcher, out / "raw", MatchingConfig(shown=False)
    )
    start = time.process_time()
    with RawMatchReader(out / "raw") as raw:
        if name in OURS:
            files = KeypointFiles(out / "features.h5", out / "matches.h5")
            aggregate(raw, scene.pairs, files, RECONSTRUCTION_KEYPOINTS)
        else:
            files = keypoints_as_they_are(raw, scene.pairs, out)
    matched = MatchedImages(scene.images, files.features, files.matches, scene.pairs)
    known: Mapping[str, Any] = scene.cameras.known or {}
    with quiet_colmap():
        build_database(out / "database.db", matched, scene.cameras, scene.mapping)
        map_database(out / "database.db", scene.images, out / "model", scene.mapping, known)
    mapping = time.process_time() - start
    matching = None if timed.cpu_ms is None else timed.cpu_ms * len(scene.pairs) / 1e3
    errors = asdict(compare(out / "model", scene.truth))
    return {**errors, "matching_cpu_s": matching, "mapping_cpu_s": mapping}


def row(name: str, found: Mapping[str, Any]) -> str:
    matching = found["matching_cpu_s"]
    cells = (
        name,
        f"{found['registered']} of {found['images']}",
        f"{found['points']:,}",
        f"{found['mean_track_length']:.2f}",
        f"{found['mean_reprojection_error']:.2f}",
        f"{found['rotation_median']:.3f} ({found['rotation_max']:.3f})",
        f"{found['position_median']:.4f} ({found['position_max']:.4f})",
        "–" if matching is None else f"{matching:.0f}",
        f"{found['mapping_cpu_s']:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--truth", type=Path, required=True, help="COLMAP model, true cameras")
    parser.add_argument("--known", type=Path, help="known intrinsics, as for edm-hloc reconstruct")
    parser.add_argument(
        "--matchers", default="edm,edm-network,sift", help="edm, edm-network, rivals"
    )
    parser.add_argument("--rival-weights", type=Path, help="as for edm-hloc evaluate pose")
    parser.add_argument("--weights", help="of EDM; a name or a path")
    parser.add_argument("--resize", type=int, default=1024, help="longest side of the photos")
    parser.add_argument("--device", help="by default the fastest there is")
    parser.add_argument("--threads", type=int, default=1, help="of verification and mapping")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    photos = find_images(args.images, [args.out])
    pairs = exhaustive(photos)
    known = None if args.known is None else load_intrinsics(args.known, names_in(pairs))
    scene = Scene(
        args.images,
        pairs,
        args.truth,
        CameraOptions("auto" if known else "single", known=known),
        MappingOptions(seed=args.seed, threads=args.threads),
    )
    names = args.matchers.split(",")
    rivals = make_rivals(
        [n for n in names if n not in OURS], args.rival_weights, args.resize, args.device
    )
    print(heading(COLUMNS), flush=True)
    for name in names:
        record = args.out / f"{name}.json"
        if not record.is_file():
            if name in OURS:
                recipe = MatcherRecipe(weights=args.weights, resize=args.resize, refine=OURS[name])
                matcher = recipe.load(args.device)
            else:
                matcher = rivals[name]
            found = reconstruct_with(name, matcher, scene, args.out / name)
            record.write_text(json.dumps(found, indent=1) + "\n")
        print(row(name, json.loads(record.read_text())), flush=True)


if __name__ == "__main__":
    main()

"""A folder of photos → a 3D model: matching, keypoints, verification and mapping, in order.

Every step leaves its files in the output folder and is done again only if something it depends
on has changed, so a run that was interrupted goes on, and another mapping reuses the matches:

    OUT/pairs.txt         the pairs, two names a line
    OUT/raw_matches/      what the matcher found, crash-safe
    OUT/features.h5       keypoints, as hloc writes them
    OUT/matches.h5        match indices, as hloc writes them
    OUT/database.db       COLMAP database with verified pairs
    OUT/model/            COLMAP model
    OUT/run.json          settings, versions, what was skipped, times and results
    OUT/report.html       all of it to look at (made by the command line)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import check_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions, check_cameras
from edm_hloc.images.masks import find_masks
from edm_hloc.keypoints.aggregation import aggregate
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.mapping.mappers import MappingOptions, check_known
from edm_hloc.mapping.sfm import build_database, map_database, triangulate
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.masked import MaskedMatchReader
from edm_hloc.pairs.from_retrieval import SimilarPhotos, similar_pairs
from edm_hloc.pairs.rules import Pair, names_in, write_pairs
from edm_hloc.pipelines.run import Run

# Merging within 2 px, the matches of all pairs in agreement: long tracks at a small error.
RECONSTRUCTION_KEYPOINTS = QuantizationConfig(
    max_error=2.0, cell_size=2.0, max_kps=8192, position="adjusted"
)


def match_and_quantize(
    run: Run,
    image_root: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    quantization: QuantizationConfig,
    dense: MatchingConfig | None = None,
    *,
    reference_features: Path | None = None,
    masks: Mapping[str, Path] | None = None,
    overwrite: bool = False,
) -> str:
    """Pairs of photos → `features.h5` and `matches.h5` in the run's folder; their fingerprint.

    Images of `reference_features`, an H5 file of keypoints, keep those: their matches are indices
    into them, and `features.h5` holds the other images only. Matches do not count where the
    mask of a photo is black (see `masks.py`).

    Raises:
        EdmHlocError: from any step; what was matched is kept.
    """
    out = run.out
    write_pairs(out / "pairs.txt", pairs)
    start = time.monotonic()
    summary = match_pairs(
        image_root, pairs, matcher, out / "raw_matches", dense, overwrite=overwrite
    )
    run.results["matching"] = asdict(summary)
    if summary.matched:
        run.measure("matching", start)
    run.write()

    features, matches = out / "features.h5", out / "matches.h5"

    def quantize() -> dict[str, Any]:
        raw = MaskedMatchReader(out / "raw_matches", masks or {}, image_root)
        with raw:
            summary = aggregate(
                raw, pairs, features, matches, quantization, reference_features=reference_features
            )
            if raw.any_masked and not raw.any_visible:
                raise EdmHlocError(
                    "The masks leave none of the matches: photos count where their masks are "
                    "white. Are these black there?"
                )
            return {"keypoints": summary}

    shards = sorted((p.name, p.stat().st_mtime_ns) for p in (out / "raw_matches").glob("*.h5"))
    depends_on: list[Any] = [shards, pairs, asdict(quantization)]
    if reference_features is not None:
        depends_on.append((str(reference_features), reference_features.stat().st_mtime_ns))
    run.results.pop("masks", None)
    if masks:
        depends_on.append({name: (str(m), m.stat().st_mtime_ns) for name, m in masks.items()})
        run.results["masks"] = {"photos": len(masks)}
    return run.step(
        "keypoints",
        depends_on,
        [features, matches],
        quantize,
    )


def names_of(pairs: Sequence[Pair] | SimilarPhotos) -> Sequence[str]:
    """The photos that pairs are of."""
    return pairs.names if isinstance(pairs, SimilarPhotos) else names_in(pairs)


def find_pairs(
    run: Run, pairs: Sequence[Pair] | SimilarPhotos, image_root: Path, matcher: Matcher
) -> Sequence[Pair]:
    """The pairs, which are looked for if they are not given. Raises EdmHlocError."""
    if isinstance(pairs, SimilarPhotos):
        return similar_pairs(run, pairs, image_root, matcher.device)
    return pairs


def reconstruct(
    image_root: Path,
    out: Path,
    pairs: Sequence[Pair] | SimilarPhotos,
    matcher: Matcher,
    *,
    quantization: QuantizationConfig = RECONSTRUCTION_KEYPOINTS,
    dense: MatchingConfig | None = None,
    cameras: CameraOptions | None = None,
    mapping: MappingOptions | None = None,
    masks: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Reconstruct the photos under `image_root` into `out`; see the module for its files.

    Args:
        image_root: folder of the photos.
        out: output folder; a run that is there already is continued.
        pairs: which photos to match; `SimilarPhotos` looks for those that look alike.
        matcher: with what.
        quantization: how points become keypoints.
        dense: memory and threads of the matching.
        cameras: which photos share a camera, and known intrinsics.
        mapping: options of the geometry.
        masks: folder of images that are black where photos do not count (see `masks.py`).
        overwrite: do everything again.

    Returns:
        The record of the run: `results["mapped"]["statistics"]` and so on.

    Raises:
        EdmHlocError: bad input, or no model, with the reason; what was computed is kept.
    """
    cameras, mapping = cameras or CameraOptions(), mapping or MappingOptions()
    known = {name: str(camera.todict()) for name, camera in (cameras.known or {}).items()}
    settings = {
        "command": "reconstruct",
        "images": str(image_root),
        "quantization": asdict(quantization),
        "cameras": {"mode": cameras.mode, "model": cameras.model, "known": len(known)},
        "mapping": asdict(mapping),
        "masks": None if masks is None else str(masks),
    }
    names = names_of(pairs)
    check_known(known, names, mapping)
    check_cameras(image_root, names, cameras)
    mask_of = find_masks(masks, names, image_root)
    with Run.begin(out, settings, matcher, overwrite=overwrite) as run:
        pairs = find_pairs(run, pairs, image_root, matcher)
        matched = match_and_quantize(
            run, image_root, pairs, matcher, quantization, dense, masks=mask_of, overwrite=overwrite
        )
        features, matches = out / "features.h5", out / "matches.h5"
        database, model = out / "database.db", out / "model"

        def verify() -> dict[str, Any]:
            imported, verified = build_database(
                database, image_root, features, matches, pairs, cameras, mapping
            )
            return {"imported": imported, "verified": verified}

        def map_photos() -> dict[str, Any]:
            return {"mapped": map_database(database, image_root, model, mapping, known=known)}

        verified = run.step(
            "database",
            [matched, cameras.mode, cameras.model, known, asdict(mapping)],
            [database],
            verify,
        )
        run.step("model", [verified], [model], map_photos)
        return run


def triangulate_model(
    reference: Path,
    image_root: Path,
    out: Path,
    pairs: Sequence[Pair] | SimilarPhotos,
    matcher: Matcher,
    *,
    quantization: QuantizationConfig = RECONSTRUCTION_KEYPOINTS,
    dense: MatchingConfig | None = None,
    mapping: MappingOptions | None = None,
    masks: Path | None = None,
    overwrite: bool = False,
) -> Run:
    """Match `pairs` and triangulate points with the poses of the COLMAP model `reference`.

    Files and record are those of `reconstruct`.

    Raises:
        EdmHlocError: bad input; what was computed is kept.
    """
    check_model(reference)
    mapping = mapping or MappingOptions()
    settings = {
        "command": "triangulate",
        "reference": str(reference),
        "images": str(image_root),
        "quantization": asdict(quantization),
        "mapping": asdict(mapping),
        "masks": None if masks is None else str(masks),
    }
    mask_of = find_masks(masks, names_of(pairs), image_root)
    with Run.begin(out, settings, matcher, overwrite=overwrite) as run:
        pairs = find_pairs(run, pairs, image_root, matcher)
        matched = match_and_quantize(
            run, image_root, pairs, matcher, quantization, dense, masks=mask_of, overwrite=overwrite
        )
        stamps = sorted((p.name, p.stat().st_mtime_ns) for p in reference.iterdir())
        features, matches = out / "features.h5", out / "matches.h5"
        database, model = out / "database.db", out / "model"

        def make_points() -> dict[str, Any]:
            verified, mapped = triangulate(
                reference, image_root, features, matches, pairs, database, model, mapping
            )
            return {"verified": verified, "mapped": mapped}

        depends_on = [matched, str(reference), stamps, asdict(mapping)]
        run.step("model", depends_on, [model, database], make_points)
        return run

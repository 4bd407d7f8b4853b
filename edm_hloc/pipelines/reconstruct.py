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
from dataclasses import asdict, dataclass, field
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
from edm_hloc.pairs.files import write_pairs
from edm_hloc.pairs.retrieval import SimilarPhotos
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.pipelines.retrieval import similar_pairs
from edm_hloc.pipelines.run import Run

# Points of all pairs are merged within 2 px and moved to where the matches agree: long tracks with
# a small reprojection error.
RECONSTRUCTION_KEYPOINTS = QuantizationConfig(
    max_error=2.0, cell_size=2.0, max_kps=8192, position="adjusted"
)


@dataclass(frozen=True)
class ReconstructionConfig:
    """Settings of `reconstruct` and `triangulate_model`.

    Attributes:
        keypoints: how matched points are merged into keypoints.
        matching: memory and threads of the matching; does not change the matches.
        cameras: which photos share a camera, and known intrinsics. `triangulate_model` takes the
            cameras of its reference model instead.
        mapping: thresholds of the geometry, and the mapper.
        masks: folder of mask images, black where matches do not count (see `images/masks.py`).
        overwrite: match and compute everything again, whatever the output folder holds.
    """

    keypoints: QuantizationConfig = RECONSTRUCTION_KEYPOINTS
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    cameras: CameraOptions = field(default_factory=CameraOptions)
    mapping: MappingOptions = field(default_factory=MappingOptions)
    masks: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class PairsToMatch:
    """The photos that `match_and_quantize` works on.

    Attributes:
        image_root: folder of the photos.
        pairs: names of the two photos of each pair, relative to `image_root`.
        masks: mask file of each photo that has one, black where matches do not count.
        reference_features: H5 file of keypoints. The images in it keep these keypoints: matches
            are indices into them, and `features.h5` holds the other images only.
    """

    image_root: Path
    pairs: Sequence[Pair]
    masks: Mapping[str, Path] = field(default_factory=dict)
    reference_features: Path | None = None


def match_and_quantize(
    run: Run,
    photos: PairsToMatch,
    matcher: Matcher,
    keypoints: QuantizationConfig,
    matching: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> str:
    """Matches pairs and writes `features.h5` and `matches.h5` in the run's folder.

    Returns:
        The fingerprint of the two files, for the steps that depend on them.

    Raises:
        EdmHlocError: from any step; pairs that were matched are kept.
    """
    image_root, pairs, masks = photos.image_root, photos.pairs, photos.masks
    reference_features = photos.reference_features
    out = run.out
    write_pairs(out / "pairs.txt", pairs)
    start = time.monotonic()
    summary = match_pairs(
        image_root, pairs, matcher, out / "raw_matches", matching, overwrite=overwrite
    )
    run.results["matching"] = asdict(summary)
    if summary.matched:
        run.measure("matching", start)
    run.write()

    features, matches = out / "features.h5", out / "matches.h5"

    def quantize() -> dict[str, Any]:
        with MaskedMatchReader(out / "raw_matches", masks, image_root) as raw:
            summary = aggregate(
                raw, pairs, features, matches, keypoints, reference_features=reference_features
            )
            if raw.any_masked and not raw.any_visible:
                raise EdmHlocError(
                    "The masks leave none of the matches: photos count where their masks are "
                    "white. Are these black there?"
                )
            return {"keypoints": summary}

    shards = sorted((p.name, p.stat().st_mtime_ns) for p in (out / "raw_matches").glob("*.h5"))
    depends_on: list[Any] = [shards, pairs, asdict(keypoints)]
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
        return similar_pairs(run, pairs, image_root, matcher)
    return pairs


def reconstruct(
    image_root: Path,
    out: Path,
    pairs: Sequence[Pair] | SimilarPhotos,
    matcher: Matcher,
    config: ReconstructionConfig | None = None,
) -> Run:
    """Reconstructs the photos under `image_root` into `out`; see the module for its files.

    Args:
        image_root: folder of the photos.
        out: output folder; a run that is there already is continued.
        pairs: which photos to match; `SimilarPhotos` looks for those that look alike.
        matcher: finds the matches of a pair.
        config: settings of every step.

    Returns:
        The record of the run: `results["mapped"]["statistics"]` and so on.

    Raises:
        EdmHlocError: bad input, or no model, with the reason; what was computed is kept.
    """
    config = config or ReconstructionConfig()
    cameras, mapping = config.cameras, config.mapping
    known = {name: str(camera.todict()) for name, camera in (cameras.known or {}).items()}
    settings = {
        "command": "reconstruct",
        "images": str(image_root),
        "quantization": asdict(config.keypoints),
        "cameras": {"mode": cameras.mode, "model": cameras.model, "known": len(known)},
        "mapping": asdict(mapping),
        "masks": None if config.masks is None else str(config.masks),
    }
    names = names_of(pairs)
    check_known(known, names, mapping)
    check_cameras(image_root, names, cameras)
    mask_of = find_masks(config.masks, names, image_root)
    with Run.begin(out, settings, matcher, overwrite=config.overwrite) as run:
        pairs = find_pairs(run, pairs, image_root, matcher)
        matched = match_and_quantize(
            run,
            PairsToMatch(image_root, pairs, mask_of),
            matcher,
            config.keypoints,
            config.matching,
            overwrite=config.overwrite,
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
    config: ReconstructionConfig | None = None,
) -> Run:
    """Matches `pairs` and triangulates points with the poses of the COLMAP model `reference`.

    Files, record and the other arguments are those of `reconstruct`.

    Raises:
        EdmHlocError: bad input; what was computed is kept.
    """
    check_model(reference)
    config = config or ReconstructionConfig()
    mapping = config.mapping
    settings = {
        "command": "triangulate",
        "reference": str(reference),
        "images": str(image_root),
        "quantization": asdict(config.keypoints),
        "mapping": asdict(mapping),
        "masks": None if config.masks is None else str(config.masks),
    }
    mask_of = find_masks(config.masks, names_of(pairs), image_root)
    with Run.begin(out, settings, matcher, overwrite=config.overwrite) as run:
        pairs = find_pairs(run, pairs, image_root, matcher)
        matched = match_and_quantize(
            run,
            PairsToMatch(image_root, pairs, mask_of),
            matcher,
            config.keypoints,
            config.matching,
            overwrite=config.overwrite,
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

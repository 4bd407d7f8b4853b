"""A folder of photos → a 3D model: matching, keypoints, verification and mapping, in order.

Every step writes its files into the output folder and is done again only if something it depends
on has changed. An interrupted run therefore continues where it stopped, another mapper or
triangulation angle reuses the verified pairs, and other thresholds reuse the matches:

    OUT/pairs.txt         the pairs, two names a line
    OUT/raw_matches/      matches as the matcher found them, kept when a run is interrupted
    OUT/features.h5       keypoints, in hloc's format
    OUT/matches.h5        match indices, in hloc's format
    OUT/database.db       COLMAP database with verified pairs
    OUT/model/            COLMAP model; the others are in OUT/model_parts/ if there are several
    OUT/model_uncertainty.json  how sure its cameras are, where its tracks were refined
    OUT/model_points_uncertainty.npz  the same of its points
    OUT/model_earlier/    model of an earlier run, if this one has failed or not come so far;
                          likewise the files beside it, such as georeference_earlier.json
    OUT/.*.part           what a step had done when it was interrupted, gone once it has ended
    OUT/georeference.json where the model lies on Earth, if its photos carry GPS
    OUT/cameras.geojson   the cameras on a map, if so
    OUT/run.json          settings, versions, skipped photos, times and results
    OUT/report.html       a page that shows all of this (made by the command line)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.images.cameras import CameraOptions, check_cameras
from edm_hloc.images.copies import warn_of_copies
from edm_hloc.images.gps import Fix
from edm_hloc.images.masks import find_masks
from edm_hloc.images.roots import root_text
from edm_hloc.images.sizes import fit_model
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.mapping.contradictions import find_contradictions
from edm_hloc.mapping.database import MatchedImages, build_database
from edm_hloc.mapping.georeference import CAMERAS, RECORD
from edm_hloc.mapping.look_alikes import find_conflicts
from edm_hloc.mapping.mappers import check_known
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary, part_folders, parts_folder
from edm_hloc.mapping.priors import PositionPriors
from edm_hloc.mapping.triangulation import triangulate
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig
from edm_hloc.pairs.automatic import AllOfFew
from edm_hloc.pairs.retrieval import SimilarPhotos
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.pipelines.extending import (
    PhotosToMap,
    map_and_refine,
    map_or_extend,
    refined_tracks,
)
from edm_hloc.pipelines.georeferencing import (
    find_fixes,
    keep_place_of,
    place_on_earth,
    priors_of,
)
from edm_hloc.pipelines.matching import MATCHING_FILES, match_and_quantize, names_of
from edm_hloc.pipelines.pair_rounds import PairRounds
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.spreading import spread_verification
from edm_hloc.tracks.adjustment import Kept
from edm_hloc.tracks.refine import uncertainty_files
from edm_hloc.tracks.rounds import BetweenRounds

_FILES = (
    *MATCHING_FILES,
    "database.db",
    "model",
    "model_parts",
    "model_uncertainty.json",
    "model_points_uncertainty.npz",
    "model_mapped",
    RECORD,
    CAMERAS,
)

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
        positions: where photos are on Earth: "gps" of their EXIF data, "none", or a table (see
            `images.gps.read_positions`). `triangulate_model` keeps the frame of its reference.
        position_priors: standard deviation in metres of positions that tell none; the mapper keeps
            the cameras near all of them (`reconstruct` only). None: positions only place the model.
        refine_tracks: align all photos of each point and adjust the model once more (see
            `tracks/refine.py`); `triangulate_model` keeps the poses. None: `reconstruct` does so,
            but not with `position_priors`, which the adjustment has no regard for, and
            `triangulate_model` does not.
        overwrite: match and compute everything again, whatever the output folder holds.
    """

    keypoints: QuantizationConfig = RECONSTRUCTION_KEYPOINTS
    matching: MatchingConfig = field(default_factory=MatchingConfig)
    cameras: CameraOptions = field(default_factory=CameraOptions)
    mapping: MappingOptions = field(default_factory=MappingOptions)
    masks: Path | None = None
    positions: str = "gps"
    position_priors: float | None = None
    refine_tracks: bool | None = None
    overwrite: bool = False


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
        pairs: the pairs to match; or `SimilarPhotos` for pairs by global descriptors,
            `AutomaticPairs` for pairs that are chosen while they are matched.
        matcher: finds the matches of a pair.
        config: settings of every step.

    Returns:
        The record of the run; `results["mapped"]["statistics"]` holds the size and the
        reprojection error of the model.

    Raises:
        EdmHlocError: invalid input, or no model, with the reason. Finished steps are kept.
    """
    config = config or ReconstructionConfig()
    cameras, mapping = config.cameras, config.mapping
    refine = (
        config.position_priors is None if config.refine_tracks is None else config.refine_tracks
    )
    mapping = replace(mapping, one_camera=mapping.one_camera and cameras.mode == "auto")
    known = {name: str(camera.todict()) for name, camera in (cameras.known or {}).items()}
    settings: dict[str, Any] = {
        "command": "reconstruct",
        "images": root_text(image_root),
        "quantization": asdict(config.keypoints),
        "cameras": {"mode": cameras.mode, "model": cameras.model, "known": len(known)},
        "mapping": asdict(mapping),
        "masks": None if config.masks is None else root_text(config.masks),
        "positions": config.positions,
        "tracks": refine,
    }
    if not cameras.lenses:
        settings["cameras"]["lenses"] = False
    if config.position_priors is not None:
        settings["position_priors"] = config.position_priors
    left_out = isinstance(pairs, SimilarPhotos | AllOfFew)
    copies = warn_of_copies(image_root, names_of(pairs), left_out=left_out)
    if copies:
        pairs = _without(pairs, copies)
    names = names_of(pairs)
    fixes = find_fixes(image_root, names, config.positions)
    priors = _priors(fixes, config)
    check_known(known, names, mapping)
    circular = check_cameras(image_root, names, cameras)
    masks = find_masks(config.masks, names, image_root)
    with Run.begin(
        out, settings, matcher, _FILES, overwrite=config.overwrite, shards=config.matching.shards
    ) as run:
        run.results["image_circles"] = circular
        run.results["copies"] = copies
        run.results["copies_left_out"] = left_out
        matched, fingerprint = match_photos(run, image_root, pairs, masks, matcher, config)
        database, model = out / "database.db", out / "model"

        def verify() -> dict[str, Any]:
            elsewhere = partial(spread_verification, run) if run.shards else None
            imported, verified = build_database(database, matched, cameras, mapping, elsewhere)
            return {"imported": imported, "verified": verified}

        photos = PhotosToMap(
            database, image_root, names_in(matched.pairs), known, priors, cameras.lenses, masks
        )
        of_cameras = [cameras.mode, cameras.model, asdict(config.keypoints)]
        if not cameras.lenses:
            of_cameras.append("lenses as given")

        depends_on = [fingerprint, cameras.mode, cameras.model, known, mapping.of_verification()]
        verified = run.step("database", depends_on, [database], verify)
        of_priors = [] if priors is None else [asdict(priors)]
        more = [*([] if cameras.lenses else ["lenses as given"]), *(["masks"] if masks else [])]
        refined = [refine, *more] if refine and more else refine
        of_mapping, of_model = (
            [verified, mapping.of_mapping(), each, *of_priors] for each in (False, refined)
        )

        def map_photos() -> dict[str, Any]:
            if refine:
                made_from = fingerprint_of(of_mapping)
                mapped = map_and_refine(run, photos, model, mapping, of_cameras, made_from)
            else:
                mapped = map_or_extend(run, photos, model, mapping, of_cameras)
            if "georeferenced" not in mapped:
                run.discard_aside("georeference")
            return _with_doubts(mapped, model, database, mapping.min_inliers)

        maybe = [parts_folder(model), *uncertainty_files(model)]
        mapped = run.step("model", of_model, [model], map_photos, maybe=maybe)
        place_on_earth(run, fixes, mapped)
        return run


def _with_doubts(
    mapped: Mapping[str, Any], model: Path, database: Path, min_inliers: int
) -> dict[str, Any]:
    """The results of a mapping, with what the verified matches say against its models."""
    summary: MappingSummary = mapped["mapped"]
    models = [read_model(folder) for folder in (model, *part_folders(model).values())]
    conflicts = [find_conflicts(each, database) for each in models]  # says so
    found = find_contradictions(models, database, min_inliers, summary.look_alikes)
    # Photos left out for their matches may as well be right, and those beside them wrong.
    misplaced = tuple(sorted({*found.misplaced, *summary.left_out}))
    summary = replace(
        summary, misplaced=misplaced, fitting=found.fitting, contested=found.contested
    )
    return {**mapped, "mapped": summary, "conflicts": conflicts[0]}


def _without(
    pairs: Sequence[Pair] | SimilarPhotos, copies: Mapping[str, str]
) -> Sequence[Pair] | SimilarPhotos:
    """Pairs that this program chooses, without those of copies; pairs that were asked for stay.

    Copies take time and the places of other partners, and tell nothing new.

    Raises:
        EdmHlocError: fewer than two photos are left.
    """
    if isinstance(pairs, SimilarPhotos):
        others = replace(pairs, names=tuple(name for name in pairs.names if name not in copies))
        others.check()
        return others
    if not isinstance(pairs, AllOfFew):
        return pairs
    left = [pair for pair in pairs if copies.keys().isdisjoint(pair)]
    if not left:
        raise EdmHlocError("There is no pair to match: all photos are copies of one, byte by byte.")
    return left


def _priors(fixes: Mapping[str, Fix], config: ReconstructionConfig) -> PositionPriors | None:
    """The positions that the mapping is to keep to; None if it is not asked to."""
    if config.position_priors is None:
        return None
    if config.mapping.mapper == "global" or config.refine_tracks:
        raise EdmHlocError(
            "--position-priors is for the incremental mapper with --tracks none, as the others "
            "have no regard for positions: leave one of them out."
        )
    return priors_of(fixes, config.position_priors)


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
        EdmHlocError: invalid input, such as photos that are not the reference's, or no point was
            found. Finished steps are kept.
    """
    fit_model(read_model(reference), image_root, f"the model {reference}")  # an error at the start
    config = config or ReconstructionConfig()
    mapping = config.mapping
    settings = {
        "command": "triangulate",
        "reference": str(reference),
        "images": root_text(image_root),
        "quantization": asdict(config.keypoints),
        "mapping": asdict(mapping),
        "masks": None if config.masks is None else root_text(config.masks),
        "tracks": bool(config.refine_tracks),
    }
    masks = find_masks(config.masks, names_of(pairs), image_root)
    with Run.begin(
        out, settings, matcher, _FILES, overwrite=config.overwrite, shards=config.matching.shards
    ) as run:
        matched, fingerprint = match_photos(run, image_root, pairs, masks, matcher, config)
        stamps = sorted((p.name, p.stat().st_mtime_ns) for p in reference.iterdir())
        database, model = out / "database.db", out / "model"

        def make_points() -> dict[str, Any]:
            verified, mapped = triangulate(reference, matched, database, model, mapping)
            results: dict[str, Any] = {"verified": verified, "mapped": mapped}
            if config.refine_tracks:
                kept, masked = Kept(poses=True), BetweenRounds(masks=masks)
                refined = refined_tracks(model, image_root, kept, mapping, masked)
                if refined is not None:
                    results["mapped"] = replace(mapped, statistics=refined.after)
                    results["tracks"] = refined
            return results

        depends_on = [fingerprint, str(reference), stamps, mapping.of_mapping()]
        if config.refine_tracks:
            depends_on += ["refined tracks", *(["masks"] if masks else [])]
        maybe = uncertainty_files(model)
        made = run.step("model", depends_on, [model, database], make_points, maybe=maybe)
        keep_place_of(run, reference, made)
        return run


def match_photos(
    run: Run,
    image_root: Path,
    pairs: Sequence[Pair] | SimilarPhotos,
    masks: Mapping[str, Path],
    matcher: Matcher,
    config: ReconstructionConfig,
) -> tuple[MatchedImages, str]:
    """Finds the pairs of a run that has begun, and matches them.

    Args:
        run: its folder gets the files of the matching.
        image_root, pairs, matcher, config: as for `reconstruct`.
        masks: mask of each photo that has one.

    Returns:
        The matched images, and the fingerprint of all that their matches depend on.
    """
    rounds = PairRounds(run, pairs, image_root, masks, matcher)
    to_match = rounds.find(config.matching, overwrite=config.overwrite)
    fingerprint = match_and_quantize(
        run,
        replace(to_match, turntable=True),
        matcher,
        config.keypoints,
        config.matching,
        overwrite=config.overwrite,
    )
    files = (run.out / "features.h5", run.out / "matches.h5")
    return MatchedImages(image_root, *files, to_match.pairs), fingerprint

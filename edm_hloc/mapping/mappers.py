"""Verified pairs → models, by COLMAP's mappers, and what is tried where they find none."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import ModelStatistics, open_database, posed_images, quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.journal import journal_path
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.chosen_tracks import ChosenTracks
from edm_hloc.mapping.forecast import say_forecast
from edm_hloc.mapping.incremental import (
    FoundModel,
    IncrementalMapping,
    cameras_of,
    refining_options,
    size_of,
    with_points,
)
from edm_hloc.mapping.no_model import explain_no_model, explain_turning
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import (
    MappingSummary,
    new_model_folder,
    number_of_cameras,
    only_elsewhere,
    parts_folder,
    write_model,
    write_parts,
)
from edm_hloc.mapping.parts import MIN_PART, part_cameras, split_database
from edm_hloc.mapping.plausible import allow_cameras
from edm_hloc.mapping.priors import PositionPriors, adjust_to_priors, with_priors
from edm_hloc.mapping.shared_cameras import photos_told_apart
from edm_hloc.mapping.snapshots import Snapshots, content_of, kept_snapshots
from edm_hloc.mapping.turning import only_turned, turned_groups
from edm_hloc.mapping.verification import VerificationSummary

logger = logging.getLogger(__name__)


def check_known(
    known: Collection[object], every: Collection[object], options: MappingOptions
) -> None:
    """Checks that the mapper can keep the known intrinsics.

    Args:
        known: names of images, or ids of cameras, with known intrinsics.
        every: names of all images, or ids of all cameras.
        options: `mapper` and `refine_intrinsics` count here.

    Raises:
        EdmHlocError: some but not all are known, and the global mapper would refine them.
    """
    some = not set(known).isdisjoint(every) and not set(known).issuperset(every)
    if some and options.mapper == "global" and options.refine_intrinsics:
        raise EdmHlocError(
            "Intrinsics are known of some of the photos only, and the global mapper adjusts those "
            "of all or none: give them for all photos, or take the incremental mapper."
        )


def map_database(
    database: Path,
    image_root: Path,
    out: Path,
    options: MappingOptions | None = None,
    known: Iterable[str] = (),
    priors: PositionPriors | None = None,
) -> MappingSummary:
    """Reconstructs poses and points and writes the largest connected model to `out`, binary.

    Where the photos fall into several models, the others are written to `parts_folder(out)`. While
    the incremental mapper is at work, unfinished models lie in `journal_path(out)`, from which the
    same call goes on after the process was killed.

    Args:
        database: COLMAP database with verified pairs (see `build_database`).
        image_root: folder of the photos, for the colours of the points.
        out: folder of the model, written on success only. A model that is there is replaced.
        options: mapper and thresholds.
        known: names of the images whose intrinsics are not refined.
        priors: positions that the cameras are kept near, by the incremental mapper; the model is
            then in their frame.

    Raises:
        EdmHlocError: no model was found, with the reason and what to try; the camera turned without
            moving; the mapper cannot keep the known intrinsics; `out` holds other files.
    """
    options, known = options or MappingOptions(), set(known)
    start = time.monotonic()
    database, image_root, out = Path(database), Path(image_root), Path(out)
    with open_database(database) as db:
        verified_pairs = VerificationSummary.of(db).verified_pairs
        images = {image.image_id: image for image in db.read_all_images()}
        constant = {image.camera_id for image in images.values() if image.name in known}
        if only_turned(db, constant):
            raise EdmHlocError(explain_turning(database))
        content = content_of(db)
    names = [image.name for image in images.values()]
    if not verified_pairs:
        raise EdmHlocError(explain_no_model(database))
    depends_on: list[object] = [content, options.of_mapping(), sorted(known)]
    if priors is not None:
        depends_on.append(asdict(priors))
    with (
        kept_snapshots(journal_path(out), fingerprint_of(depends_on)) as snapshots,
        new_model_folder(out) as temporary,
        quiet_colmap(),
    ):
        to_map = database
        if priors is not None:
            to_map = with_priors(database, temporary / "priors.db", priors)
        found = find_models(to_map, image_root, temporary, options, known, snapshots)
        if not found:
            raise EdmHlocError(explain_no_model(database))
        found, turned = _without_turned(database, found, constant)
        if not found:
            raise EdmHlocError(explain_turning(database))
        if priors is not None:
            refine = options.refine_intrinsics
            for each in found:  # the completion has no regard for them
                colmap = refining_options(options, refine, refine and not each.undistorted)
                adjust_to_priors(each.model, priors, colmap, constant)
        models = [each.model for each in found]
        write_model(models[0], image_root, temporary)
        write_parts(models[1:], image_root, parts_folder(out))
        statistics = ModelStatistics.of(models[0])
    components = tuple(model.num_reg_images() for model in models)
    if len(components) > 1:
        logger.warning(
            "The photos fall into %d separate models of %s images.",
            len(components),
            ", ".join(map(str, components)),
        )
    registered = posed_images(models[0])
    undistorted = {n for each in found if each.undistorted for n in posed_images(each.model)}
    shared = {n for each in found for n in posed_images(each.model) if n in each.one_camera}
    own = {n for each in found for n in posed_images(each.model) if n in each.own_cameras}
    return MappingSummary(
        statistics=statistics,
        images=len(names),
        unregistered=tuple(sorted(set(names) - registered.keys())),
        components=components,
        seconds=time.monotonic() - start,
        elsewhere=only_elsewhere(models[0], models[1:]),
        undistorted=found[0].undistorted,
        undistorted_photos=tuple(sorted(undistorted)),
        one_camera_photos=tuple(sorted(shared)),
        shared_cameras=sum(number_of_cameras(each.model, each.one_camera) for each in found),
        own_camera_photos=tuple(sorted(own)),
        look_alikes=tuple(pair for each in found for pair in each.look_alikes),
        turned=turned,
    )


def _without_turned(
    database: Path, models: Sequence[FoundModel], known: Collection[int]
) -> tuple[list[FoundModel], tuple[str, ...]]:
    """The models of photos from several places, and the names of those taken from one place."""
    kept, turned = [], set[str]()
    with open_database(database) as db:
        names = {image.image_id: image.name for image in db.read_all_images()}
        for found in models:
            posed = posed_images(found.model)
            # Of all photos it was asked before they were mapped.
            if len(posed) < len(names) and only_turned(
                db, known, {image.image_id for image in posed.values()}
            ):
                turned |= posed.keys()
            else:
                kept.append(found)
        posed_anywhere = {name for found in models for name in posed_images(found.model)}
        others = {image_id for image_id, name in names.items() if name not in posed_anywhere}
        turned |= {names[image_id] for image_id in turned_groups(db, known, others)}
    for found in kept:
        turned -= posed_images(found.model).keys()
    return kept, tuple(sorted(turned))


def find_models(
    database: Path,
    image_root: Path,
    folder: Path,
    options: MappingOptions,
    known: Iterable[str] = (),
    snapshots: Snapshots | None = None,
) -> list[FoundModel]:
    """Runs the mapper, several times where the incremental one finds no believable model.

    The incremental mapper maps each part of the photos that verified pairs connect by itself.

    Args:
        database: COLMAP database with verified pairs.
        image_root: folder of the photos.
        folder: for the files that the mapper writes.
        options: mapper and thresholds.
        known: names of the images whose intrinsics are not refined.
        snapshots: where the incremental mapper leaves unfinished models, and goes on from them.

    Returns:
        The models that have points and images of their own, the one with most images first.

    Raises:
        EdmHlocError: the mapper cannot keep the known intrinsics, see `check_known`.
    """
    known = set(known)
    with open_database(database) as db:
        images = db.read_all_images()
    constant = {image.camera_id for image in images if image.name in known}
    every = {image.camera_id for image in images}
    check_known(constant, every, options)
    refine = options.refine_intrinsics and not constant >= every
    if options.mapper == "global":

        def globally(of: Path) -> list[FoundModel]:
            return [FoundModel(m) for m in _map_globally(of, folder, refine, options)]

        found = globally(database)
        if not (refine and options.one_camera):
            return found
        adjustment = refining_options(options, True, True).get_global_bundle_adjustment()
        return _apart(found, database, folder, _told_apart(found, adjustment, constant), globally)
    begun = snapshots is not None and snapshots.begun
    parts = []
    for k, part in enumerate(split_database(database, folder, options.min_inliers)):
        mapping = IncrementalMapping(
            part.database, image_root, folder, constant, part.images, options, snapshots
        )
        parts.append(ChosenTracks.of(mapping, folder / f"thin{k}.db"))
    if not begun:
        say_forecast(sum(p.mapping.images for p in parts), sum(p.expected for p in parts))
    found = [each for part in parts for each in _models_of(part, refine)]
    large = [each for each in found if each.model.num_reg_images() >= MIN_PART]
    found = large if large and len(parts) > 1 else found
    return sorted(found, key=lambda each: size_of(each.model), reverse=True)


def _models_of(part: ChosenTracks, refine: bool) -> list[FoundModel]:
    """The models of a part, with cameras of their own where photos do not fit those they share."""
    found, mapping = part.models(refine), part.mapping
    if not (found and refine and mapping.options.one_camera):
        return found
    adjustment = mapping.adjustment(not found[0].undistorted)
    apart = _told_apart(found, adjustment, mapping.constant_cameras)

    def again(database: Path) -> list[FoundModel]:
        thin = database.with_name(f"thin-{database.name}")
        return ChosenTracks.of(replace(mapping, database=database), thin).models(refine)

    return _apart(found, mapping.database, mapping.folder, apart, again)


def _told_apart(
    found: Sequence[FoundModel],
    adjustment: pycolmap.BundleAdjustmentOptions,
    constant: Collection[int],
) -> set[str]:
    """Photos of the largest model that fit cameras of their own far better than the database's."""
    if not found:
        return set()
    return photos_told_apart(found[0].model, adjustment, constant, found[0].one_camera)


def _apart(
    found: list[FoundModel],
    database: Path,
    folder: Path,
    apart: Collection[str],
    again: Callable[[Path], list[FoundModel]],
) -> list[FoundModel]:
    """Models with a camera for each of some photos, if they hold as many photos.

    Args:
        found: models of the database.
        database: where photos share cameras.
        folder: for a copy where some do not.
        apart: photos that do not fit the cameras that they share.
        again: the mapper on such a copy.
    """
    copy = folder / f"apart-{database.name}"
    names = part_cameras(database, copy, apart)
    if not names:
        return found
    logger.info("Mapping once more, with a camera for each of %d photos.", len(names))
    with_own = again(copy)
    if with_own and with_own[0].model.num_reg_images() >= found[0].model.num_reg_images():
        return [replace(each, own_cameras=names) for each in with_own]
    logger.warning(
        "%d photos, such as %s, have the same EXIF data but do not fit one camera, as if some were "
        "cropped or zoomed. A model with a camera for each has fewer photos, so they share one: "
        "their poses may be wrong. To insist on a camera for each: --camera-mode per-image.",
        len(names),
        names[0],
    )
    return found


def _map_globally(
    database: Path, folder: Path, refine: bool, options: MappingOptions
) -> list[pycolmap.Reconstruction]:
    """The models that COLMAP's global mapper finds, on a copy of the database."""
    colmap = pycolmap.GlobalPipelineOptions()
    colmap.min_num_matches = options.min_inliers
    colmap.random_seed = options.seed
    colmap.num_threads = options.threads
    colmap.mapper.bundle_adjustment.refine_focal_length = refine
    colmap.mapper.bundle_adjustment.refine_extra_params = refine
    colmap.mapper.min_tri_angle_deg = options.min_tri_angle
    colmap.mapper.retriangulation.min_angle = options.min_tri_angle
    if not refine:
        allow_cameras(colmap.mapper.retriangulation, cameras_of(database).values())
    colmap.mapper.retriangulation.ignore_two_view_tracks = not options.two_view_points
    working = folder / "database.db"
    shutil.copyfile(database, working)
    if refine:
        # Writes focal lengths from fundamental matrices into the database; the mapper needs them.
        pycolmap.calibrate_view_graph(working)
    models = folder / "models"
    models.mkdir(exist_ok=True)  # of the mapping before, if it is done again
    with StepProgress("Mapping"):
        return with_points(pycolmap.global_mapping(working, folder, models, colmap).values())

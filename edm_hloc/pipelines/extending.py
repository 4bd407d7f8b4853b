"""The mapping step of a run: a new model, or the model that is there with more or fewer photos."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edm_hloc.base.colmap import ModelStatistics, posed_images, read_model
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.journal import journal_path
from edm_hloc.base.text import plural
from edm_hloc.images.known import KnownPhotos
from edm_hloc.mapping.extension import (
    EarlierModel,
    ExtensionSummary,
    compared_cameras,
    extend_model,
)
from edm_hloc.mapping.georeference import Georeference
from edm_hloc.mapping.left_out import LeftOut
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary, part_folders, parts_folder
from edm_hloc.mapping.priors import PositionPriors
from edm_hloc.pipelines.georeferencing import place_set_aside
from edm_hloc.pipelines.run import Run
from edm_hloc.tracks.adjustment import Kept
from edm_hloc.tracks.refine import TrackSummary, refine_model, uncertainty_files
from edm_hloc.tracks.rounds import BetweenRounds

logger = logging.getLogger(__name__)

_REFINED_PARTS = "refined_parts"


@dataclass(frozen=True)
class MappedFrom:
    """What a model was made of, recorded with it: photos that are added later extend it.

    Attributes:
        settings: fingerprint of the settings of cameras, keypoints and mapping.
        photos: of each photo what its pose depends on: the file's stamp and its known intrinsics.
    """

    settings: str
    photos: Mapping[str, Any]


@dataclass(frozen=True)
class PhotosToMap:
    """The input of `map_or_extend`.

    Attributes:
        database: COLMAP database with verified pairs.
        image_root: folder of the photos.
        names: of the photos.
        known: the intrinsics that are not refined, as text, by the photos' names.
        priors: positions that the cameras are kept near. A model with any is not extended, but
            mapped anew.
        lenses: see `CameraOptions`.
        masks: mask of each photo that has one; points are not looked for where they are black.
    """

    database: Path
    image_root: Path
    names: Sequence[str]
    known: Mapping[str, str]
    priors: PositionPriors | None = None
    lenses: bool = True
    masks: Mapping[str, Path] = field(default_factory=dict)


def map_or_extend(
    run: Run, photos: PhotosToMap, model: Path, options: MappingOptions, settings: Any
) -> dict[str, Any]:
    """Makes the model, for `Run.step`; extends that of an earlier run if only photos were added.

    Args:
        run: the run, which has set the earlier model aside.
        photos: what is mapped.
        model: folder of the model.
        options: mapper and thresholds.
        settings: of cameras and keypoints; a model of other settings is not extended.

    Raises:
        EdmHlocError: as `map_database`.
    """
    database, image_root, known = photos.database, photos.image_root, photos.known
    known_photos = KnownPhotos(run.out / "raw_matches")
    made_of = MappedFrom(
        fingerprint_of([settings, options.of_verification(), options.of_mapping()]),
        {
            name: [*stamp, known.get(name)]
            for name, stamp in known_photos.stamps(image_root, photos.names).items()
        },
    )
    extended, place = None, place_set_aside(run)
    earlier = _earlier_model(run, made_of)
    if earlier is not None and options.mapper == "incremental" and photos.priors is None:
        extended = extend_model(database, image_root, model, earlier, options, known)
        if extended is None:
            left = posed_images(earlier.model).keys() & made_of.photos.keys()
            changed = left - set(earlier.names)
            logger.warning(
                "The earlier model cannot be extended, as too little of it is left%s, its camera "
                "cannot be that of all photos, or photos that look alike had folded it: all are "
                "mapped anew, in a frame of their own.",
                f" ({plural(len(changed), 'photo')} of it changed since)" if changed else "",
            )
    if extended is None:
        mapped = map_database(database, image_root, model, options, known, photos.priors)
        return {"mapped": mapped, "mapped_from": made_of}
    return {"mapped": extended[0], "extended": extended[1], "mapped_from": made_of, **place}


def map_and_refine(
    run: Run,
    photos: PhotosToMap,
    model: Path,
    options: MappingOptions,
    settings: Any,
    made_from: str,
) -> dict[str, Any]:
    """As `map_or_extend`, with the tracks of the model refined.

    The model as it was mapped lies in a hidden folder until that is done: a run that was killed
    meanwhile goes on from it. An earlier run without refinement has left that model. Where the
    tracks cannot be refined, it is the result, with a warning.

    Args:
        run, photos, model, options, settings: as for `map_or_extend`.
        made_from: fingerprint of everything that the mapped model depends on; that of the step in a
            run without refinement.

    Returns:
        The results of the mapping, of the refined model, and the summary of the refinement.

    Raises:
        EdmHlocError: as `map_database`.
    """
    folder = mapped_folder(model)
    place, record = folder / model.name, folder / "mapped.json"
    try:
        results = _kept_results(record, made_from)
        if results is None:
            make_folder(folder)
            record.unlink(missing_ok=True)
            shutil.rmtree(folder / _REFINED_PARTS, ignore_errors=True)
            results = _of_run_without(run, place, made_from)
            results = results or map_or_extend(run, photos, place, options, settings)
            kept = {key: asdict(value) for key, value in results.items()}
            write_whole(record, json.dumps({"made_from": made_from, **kept}))
        mapped: MappingSummary = results["mapped"]
        refined = _refined(place, model, photos, options, mapped)
    except NoRoomError:
        raise
    except EdmHlocError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    parts = parts_folder(place)
    if refined is None:
        place.rename(model)
    elif parts.is_dir():
        parts = _refined_parts(place, photos, options, mapped)
    if parts.is_dir():
        parts.rename(parts_folder(model))
    shutil.rmtree(folder, ignore_errors=True)
    if refined is None:
        return results
    mapped = without_calibrated(_with_newcomers(mapped, refined), model)
    found = {**results, "mapped": mapped, "tracks": refined}
    aside = run.set_aside("model")
    if "extended" in results and aside is not None:
        extended: ExtensionSummary = results["extended"]
        same = _unchanged(aside[0].get("mapped_from", {}), results["mapped_from"])
        compared = compared_cameras(read_model(model), read_model(aside[1]["model"]), same)
        found["extended"] = replace(compared, removed=extended.removed, changed=extended.changed)
    return found


def mapped_folder(model: Path) -> Path:
    """Where a model as it was mapped lies until its tracks are refined."""
    return journal_path(model.with_name(f"{model.name}_mapped"))


def _refined(
    place: Path, model: Path, photos: PhotosToMap, options: MappingOptions, mapped: MappingSummary
) -> TrackSummary | None:
    """Refines the model in `place` into `model`, as `refined_tracks`.

    Photos that are in no model are tried once more; not those of a model that wrong pairs had
    folded, as the database still holds these.
    """
    known, every = frozenset(photos.known), not options.refine_intrinsics
    names = frozenset(mapped.unregistered) - set(mapped.elsewhere) - set(mapped.turned)
    left_out = None
    if names and not mapped.look_alikes:
        left_out = LeftOut(photos.database, names, names if every else names & known)
    cameras = Kept(known, every, mapped.undistorted, lenses=not photos.lenses)
    between = BetweenRounds(left_out=left_out, masks=photos.masks)
    return refined_tracks(place, photos.image_root, cameras, options, between, model)


def _refined_parts(
    place: Path, photos: PhotosToMap, options: MappingOptions, mapped: MappingSummary
) -> Path:
    """Refines the other models beside the one in `place`, too, into a folder of their own.

    Those that cannot be refined are copied, with a warning. No uncertainties are left.
    """
    refined = place.with_name(_REFINED_PARTS)
    make_folder(refined)
    for number, part in part_folders(place).items():
        new = refined / number
        if not new.is_dir():  # else a run that was killed has made it
            flat = not posed_images(read_model(part)).keys().isdisjoint(mapped.undistorted_photos)
            every = not options.refine_intrinsics
            kept = Kept(frozenset(photos.known), every, flat, lenses=not photos.lenses)
            masked = BetweenRounds(masks=photos.masks)
            if refined_tracks(part, photos.image_root, kept, options, masked, new) is None:
                shutil.copytree(part, new)
        for file in uncertainty_files(new):
            file.unlink(missing_ok=True)
    return refined


def _with_newcomers(mapped: MappingSummary, refined: TrackSummary) -> MappingSummary:
    """The summary of a model whose tracks were refined."""
    number, *others = mapped.components
    return replace(
        mapped,
        statistics=refined.after,
        unregistered=tuple(n for n in mapped.unregistered if n not in refined.registered),
        components=(number + len(refined.registered), *others),
    )


def without_calibrated(mapped: MappingSummary, model: Path) -> MappingSummary:
    """A summary that does not count photos as undistorted that have got a lens since.

    Args:
        mapped: of the models as they were mapped.
        model: the largest of them, with those beside it, after their tracks were refined.
    """
    flat = set(mapped.undistorted_photos)
    if not flat:
        return mapped
    largest, *parts = (read_model(m) for m in (model, *part_folders(model).values()))
    for each in (largest, *parts):
        for name, image in posed_images(each).items():
            camera = each.cameras[image.camera_id]
            if any(camera.params[i] for i in camera.extra_params_idxs()):
                flat.discard(name)
    undistorted = mapped.undistorted and not flat.isdisjoint(posed_images(largest))
    return replace(mapped, undistorted=undistorted, undistorted_photos=tuple(sorted(flat)))


def _of_run_without(run: Run, place: Path, made_from: str) -> dict[str, Any] | None:
    """Copies the model of a run without refinement, which has been set aside, to `place`.

    Returns:
        What `map_or_extend` had returned; None, with nothing copied, if there is no such model.
    """
    aside = run.set_aside("model", made_from)
    if aside is None:
        return None
    found, folders = aside
    try:
        results = {**_results_of(found), **place_set_aside(run)}
        for folder in (place, parts_folder(place)):
            if folder.name in folders:
                shutil.copytree(folders[folder.name], folder)
    except (KeyError, TypeError, OSError):
        for path in (place, parts_folder(place)):
            shutil.rmtree(path, ignore_errors=True)
        return None
    logger.warning("The model is there as it was mapped: only its tracks are refined.")
    return results


def _kept_results(record: Path, made_from: str) -> dict[str, Any] | None:
    """What `map_or_extend` has returned in a run that was killed afterwards; None if none was."""
    try:
        kept = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if kept.pop("made_from", None) != made_from:
        return None
    logger.warning("The model that an interrupted run has mapped is refined.")
    return _results_of(kept)


def _results_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `map_or_extend` had returned, of which a record was made."""
    statistics = ModelStatistics(**record["mapped"]["statistics"])
    mapped = {**record["mapped"], "statistics": statistics}
    mapped.pop("conflicts", None)  # of earlier versions; they are looked for anew
    results = {
        "mapped": MappingSummary(**mapped),
        "mapped_from": MappedFrom(**record["mapped_from"]),
    }
    if "extended" in record:
        results["extended"] = ExtensionSummary(**record["extended"])
    if "georeferenced" in record:
        results["georeferenced"] = Georeference.of(record["georeferenced"])
    return results


def refined_tracks(
    model: Path,
    image_root: Path,
    kept: Kept,
    options: MappingOptions,
    between: BetweenRounds,
    out: Path | None = None,
) -> TrackSummary | None:
    """Refines the tracks of the model in a folder that a run has just made.

    Args:
        model: folder of the model.
        image_root: folder of the photos.
        kept: what of the cameras stays as it is.
        options: those of the mapping.
        between: photos that are in no model and are tried once more, and masks.
        out: folder of the refined model; None replaces the model.

    Returns:
        The summary; None, with a warning, where they cannot be refined: nothing is written then.

    Raises:
        NoRoomError: the refined model cannot be written.
    """
    try:
        return refine_model(model, image_root, out or model, kept, options, between)
    except NoRoomError:
        raise
    except EdmHlocError as error:
        logger.warning("The model stays as it was mapped, its tracks are not refined: %s", error)
        return None


def _earlier_model(run: Run, made_of: MappedFrom) -> EarlierModel | None:
    """The model that was set aside, if it is of the same settings and of some other photos."""
    aside = run.set_aside("model")
    if aside is None:
        return None
    results, folders = aside
    recorded = results.get("mapped_from", {})
    photos = recorded.get("photos", {})
    if recorded.get("settings") != made_of.settings or photos == made_of.photos:
        return None
    try:
        model = read_model(folders["model"])
    except (KeyError, EdmHlocError):
        return None
    same = _unchanged(recorded, made_of)
    mapped = results.get("mapped", {})
    shared = posed_images(model).keys() & set(mapped.get("one_camera_photos", ()))
    own = posed_images(model).keys() & set(mapped.get("own_camera_photos", ()))
    flat, alike = bool(mapped.get("undistorted")), bool(mapped.get("look_alikes"))
    return EarlierModel(model, same, not flat, shared, own, alike)


def _unchanged(recorded: Mapping[str, Any], made_of: MappedFrom) -> set[str]:
    """Photos that are as they were for a model, of which `MappedFrom` is recorded."""
    photos = recorded.get("photos", {})
    return {name for name, of_photo in photos.items() if made_of.photos.get(name) == of_photo}

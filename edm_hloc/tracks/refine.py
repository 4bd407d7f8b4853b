"""A model → the same with its points seen sharply by all photos, and its cameras adjusted to them.

Each round aligns the photos of every track (see `alignment`), drops the observations that do not
agree, and adjusts all cameras and points. From the second round on, points are also looked for in
photos that were never matched there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import (
    ModelStatistics,
    open_database,
    posed_images,
    quiet_colmap,
    read_model,
)
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.fingerprint import file_stamp, fingerprint_of
from edm_hloc.base.journal import journal_path
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.find import image_stamps
from edm_hloc.images.sizes import fit_model
from edm_hloc.mapping.frames import frame_change, move_to_origin
from edm_hloc.mapping.georeference import keep_place
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import (
    check_replaceable,
    drop_repeats,
    is_coloured,
    new_model_folder,
    write_model,
)
from edm_hloc.mapping.rigs import Rigs
from edm_hloc.mapping.snapshots import content_of
from edm_hloc.tracks.adjustment import (
    Freedom,
    Kept,
    adjust,
    drop_observations,
    has_known_baseline,
    in_rigs,
    limits_of,
    with_telephotos_held,
)
from edm_hloc.tracks.alignment import Alignment, AlignmentSettings, align
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views, check_refinable
from edm_hloc.tracks.kept_points import put_back
from edm_hloc.tracks.lens import Lens, fit_lenses, unsure_cameras
from edm_hloc.tracks.lens_uncertainty import counting_lenses
from edm_hloc.tracks.more_photos import joined, possible_observations, repeated_points
from edm_hloc.tracks.newcomers import try_left_out, with_newcomers
from edm_hloc.tracks.photos import PhotoShelf
from edm_hloc.tracks.point_uncertainty import (
    deviations,
    point_covariances,
    point_uncertainty_file,
    write_point_uncertainties,
)
from edm_hloc.tracks.rounds import BetweenRounds, KeptRounds, Progress
from edm_hloc.tracks.uncertainty import (
    CameraUncertainty,
    camera_covariances,
    camera_uncertainties,
    median_uncertainty,
    most_uncertain,
    uncertainty_file,
    write_uncertainties,
)

# Share of the observations that agree, or else photos and model do not belong together
_LEAST_SHARE = 1 / 3
# A photo with fewer aligned observations keeps all as they were mapped, if these are most
_FEWEST = 50


@dataclass(frozen=True)
class TrackSummary:
    """What the refinement of tracks made of a model.

    Attributes:
        before, after: size and reprojection error of the model.
        rounds: number of rounds.
        added: observations in photos that were not matched there.
        repeated: points that were there twice, of which one is left.
        kept: points whose photos do not agree, which are as they were mapped.
        blurred: names of the photos that agree with others at hardly any point, which were
            registered by their points as they were mapped.
        unread: names of the photos that could not be read; their points stay as they were.
        seconds: wall-clock time.
        uncertainty: of the camera in the middle: its position in % of the cameras' extent, its
            rotation in degrees; None where it was not computed.
        doubtful: of the photos whose position is several times as uncertain, by name.
        point_uncertainty: of the point in the middle, along the direction in which it is least
            sure, in % of the cameras' extent; None where it was not computed.
        registered: names of the photos that came in after the first round.
        lenses: what became of the cameras of which the photos tell a lens, see `fit_lenses`.
        rigs: what became of the photos that a file put into rigs.
    """

    before: ModelStatistics
    after: ModelStatistics
    rounds: int
    added: int
    repeated: int
    kept: int
    blurred: tuple[str, ...]
    unread: tuple[str, ...]
    seconds: float
    uncertainty: tuple[float, float] | None
    doubtful: Mapping[str, float]
    point_uncertainty: float | None = None
    registered: tuple[str, ...] = ()
    lenses: tuple[Lens, ...] = ()
    rigs: Rigs | None = None


@dataclass(frozen=True)
class RefinedTracks:
    """What `refine_tracks` gives.

    Attributes:
        model: the refined model.
        summary: what became of it.
        cameras: standard deviations of its cameras by the photo's name, where they are known.
        ids: (T,) of its points.
        sigmas: (T, 3) standard deviations of these, see `point_uncertainty.deviations`.
    """

    model: pycolmap.Reconstruction
    summary: TrackSummary
    cameras: Mapping[str, CameraUncertainty]
    ids: np.ndarray
    sigmas: np.ndarray


def refine_tracks(
    model: pycolmap.Reconstruction,
    image_root: Path,
    freedom: Freedom,
    config: TrackConfig | None = None,
    options: MappingOptions | None = None,
    between: BetweenRounds | None = None,
) -> RefinedTracks:
    """Refines the points of a model in all photos that see them, and the model with them.

    Keypoints keep their numbers: those that move are moved in place, those that are dropped stay
    without a point, and new ones come after the last. The model stays in its frame, which is the
    one in which its cameras are nearest to where they were.

    Args:
        model: changed; its cameras are for the photos as they are stored, and no photo observes a
            point twice.
        image_root: folder of the photos.
        freedom: what changes besides the points.
        config: the settings.
        options: minimum angle of a point's rays, and threads.
        between: what comes in between the rounds, and where the model is kept then.

    Returns:
        The model, which is another object than `model` where rounds are kept, and what became of
        it.

    Raises:
        EdmHlocError: the model has no points, or none of its photos can be read, or they agree at
            few of its points; the model is then to be discarded.
    """
    config, options = config or TrackConfig(), options or MappingOptions()
    between = between or BetweenRounds()
    kept_rounds, left_out = between.kept, between.left_out
    begin = time.monotonic()
    check_refinable(model)
    before, mapped = ModelStatistics.of(model), pycolmap.Reconstruction(model)
    rounds = len(config.patch_radii)
    progress = kept_rounds.latest(rounds - 1) if kept_rounds else None
    progress = progress or Progress(model)
    shelf = PhotoShelf(image_root, tuple(posed_images(progress.model)), config.max_side)
    blurred: tuple[str, ...] = ()
    lenses: list[Lens] = []
    while progress.rounds < rounds:
        if left_out:
            freedom = with_newcomers(freedom, progress, left_out)
        freedom = with_telephotos_held(freedom, progress.model)
        if progress.rounds:  # a wrong lens hides points that the next round looks for
            progress.model, _, lenses = fit_lenses(progress.model, freedom, options)
        blurred = _one_round(progress, shelf, freedom, config, options, between.masks)
        tried = left_out if progress.rounds == 1 < rounds else None
        if tried and try_left_out(progress, mapped, tried, freedom, options):
            shelf = PhotoShelf(image_root, tuple(posed_images(progress.model)), config.max_side)
        if kept_rounds and progress.rounds < rounds:
            progress = kept_rounds.keep(progress)
    model, freedom, found = fit_lenses(progress.model, freedom, options)
    with at_work("Uncertainty of the cameras"):
        of_cameras = camera_covariances(model, freedom, config, options)
        told = found or lenses  # one that is less sure in the end stays
        of_cameras = counting_lenses(of_cameras, model, told, freedom, options)
        uncertainties = camera_uncertainties(of_cameras, Views.of(model))
    with StepProgress("Keeping points as they were mapped"):
        kept = put_back(model, mapped, progress.repeated, options, progress.late)
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    sigmas = deviations(point_covariances(tracks, views, kept, of_cameras, config), views)
    if freedom.poses:
        scaled = not has_known_baseline(model, freedom.rigid)
        model.transform(frame_change(model, mapped, posed_images(mapped), scaled=scaled))
    summary = TrackSummary(
        before=before,
        after=ModelStatistics.of(model),
        rounds=rounds,
        added=progress.added,
        repeated=len(progress.repeated),
        kept=len(kept),
        blurred=blurred,
        unread=tuple(np.array(views.names)[shelf.unread].tolist()),
        seconds=time.monotonic() - begin,
        uncertainty=median_uncertainty(uncertainties),
        doubtful=most_uncertain(uncertainties),
        point_uncertainty=_middle(sigmas[:, 0]),
        registered=tuple(progress.registered),
        lenses=tuple(told),
    )
    return RefinedTracks(model, summary, uncertainties, tracks.ids, sigmas)


def _middle(values: np.ndarray) -> float | None:
    """Median of those that are known."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _one_round(
    progress: Progress,
    shelf: PhotoShelf,
    freedom: Freedom,
    config: TrackConfig,
    options: MappingOptions,
    masks: Mapping[str, Path],
) -> tuple[str, ...]:
    """Aligns all tracks, adjusts the model to them, and gives the names of blurred photos."""
    model, number = progress.model, progress.rounds
    threads = options.threads if options.threads > 0 else os.cpu_count() or 1
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    voting = np.ones(len(tracks.view), bool)
    if number:
        more = possible_observations(tracks, views, config.max_photos, masks, shelf.root)
        tracks, voting = joined(tracks, more)
    how = AlignmentSettings(config.patch_radii[number], threads)
    found = align(tracks, voting, views, shelf, config, how)
    if shelf.unread.all():
        raise EdmHlocError(
            f"None of the {len(views.names)} photos of the model can be read in {shelf.root}: "
            "give the folder that their names are relative to."
        )
    aligned = _agreeing(tracks, voting, found, config)
    compared = voting & ~shelf.unread[tracks.view]
    photos = np.bincount(tracks.track[compared], minlength=len(tracks.ids))
    compared &= photos[tracks.track] > 1
    agree = np.bincount(tracks.view[aligned & compared], minlength=len(views.ids))
    of = np.bincount(tracks.view[compared], minlength=len(views.ids))
    blurred = (agree < _FEWEST) & (2 * agree < of)
    aligned &= ~blurred[tracks.view]
    as_mapped = voting & (~compared | blurred[tracks.view])
    keep = aligned | as_mapped
    share = np.count_nonzero(aligned & compared) / max(1, compared.sum())
    if share < _LEAST_SHARE:
        unread = f", and {np.count_nonzero(shelf.unread)} others of its photos cannot be read"
        raise EdmHlocError(
            f"The photos in {shelf.root} agree at only {share:.0%} of what the model sees in them"
            f"{unread if shelf.unread.any() else ''}: are they the ones that it was made of, and "
            "sharp?"
        )
    xy = np.where(aligned[:, None], found.xy, tracks.xy)
    moved = replace(tracks, xy=xy)
    again = repeated_points(moved.chosen(keep), views)
    keep &= ~again[tracks.track]
    written, added = _write(model, moved, views, keep, progress.dropped)
    progress.added += added
    progress.repeated.update(tracks.ids[again].tolist())
    with at_work("Adjusting to refined tracks"):
        last = number == len(config.patch_radii) - 1
        adjust(model, written, config.outlier, freedom, options, again=last)
    if not model.num_points3D():
        raise EdmHlocError(
            f"No point of the model is left once it is adjusted to the photos in {shelf.root}: are "
            "they the ones that it was made of, and taken from different places?"
        )
    progress.rounds += 1
    return tuple(np.array(views.names)[blurred].tolist())


def refine_model(
    reference: Path,
    image_root: Path,
    out: Path,
    kept: Kept | None = None,
    options: MappingOptions | None = None,
    between: BetweenRounds | None = None,
) -> TrackSummary:
    """Refines the tracks of a COLMAP model and writes the model to `out`, binary, in its old frame.

    While it is at work, the model after each round lies in a hidden folder beside `out`, from which
    the same call goes on if it was killed.

    Args:
        reference: folder of the model, COLMAP's own, hloc's or any other.
        image_root: folder of its photos.
        out: folder of the new model, written on success only; may be that of the reference. A model
            that is there is replaced. The uncertainties of cameras and points are written beside
            it, see `uncertainty_files`, and where on Earth its frame is, see `keep_place`.
        kept: what of the cameras stays as it is.
        options: limits of points, and threads; without, the limits are those that the points of
            the model meet (see `limits_of`).
        between: photos of the model's database that are tried once more, and masks.

    Raises:
        EdmHlocError: a model or folder cannot be read or written, or as `refine_tracks`.
    """
    begin = time.monotonic()
    check_replaceable(out)
    model, _ = fit_model(read_model(reference), image_root, f"the model {reference}")
    drop_repeats(model)  # observations of one photo would vouch for each other
    kept = kept or Kept()
    config, rigs, freedom = TrackConfig(), None, kept.freedom(model)
    posed, before = posed_images(model), ModelStatistics.of(model)
    if options is None:
        check_refinable(model)
        options = limits_of(model)
    elif options.one_camera:  # else the model, or a user, tells which photos share a camera
        freedom = replace(freedom, unsure=unsure_cameras(model, image_root))
    back = move_to_origin(model) if freedom.poses and posed else None
    made_from: list[object] = [
        [pycolmap.__version__, back is not None and back.translation.tolist()],
        sorted((p.name, file_stamp(p)) for p in reference.iterdir()),
        image_stamps(image_root, posed),
        [freedom.poses, sorted(freedom.constant), freedom.distortion, freedom.lenses],
        [asdict(config), options.of_mapping()],
    ]
    between = between or BetweenRounds()
    if left_out := between.left_out:
        with open_database(left_out.database) as db:
            made_from += [content_of(db), sorted(left_out.names), sorted(left_out.known)]
    if between.masks:
        made_from.append(sorted((n, file_stamp(mask)) for n, mask in between.masks.items()))
    if kept.rigs is not None:
        made_from.append(file_stamp(kept.rigs))
    with new_model_folder(out) as temporary, quiet_colmap():
        rounds = KeptRounds(rounds_folder(out), fingerprint_of(made_from))
        try:
            if kept.rigs is not None:
                model, rigs, freedom = in_rigs(model, kept, config, options)
            between = replace(between, kept=rounds)
            found = refine_tracks(model, image_root, freedom, config, options, between)
            if back:
                found.model.transform(back)
            write_model(found.model, image_root, temporary, recolour=not is_coloured(model))
        except NoRoomError:
            raise
        except EdmHlocError:
            rounds.remove()
            raise
    cameras, points = uncertainty_files(out)
    for file in (cameras, points):
        file.unlink(missing_ok=True)
    if found.cameras:
        write_uncertainties(cameras, found.cameras)
    write_point_uncertainties(points, found.ids, found.sigmas)
    keep_place(out, reference)
    rounds.remove()
    seconds = time.monotonic() - begin
    return replace(found.summary, before=before, rigs=rigs, seconds=seconds)


def rounds_folder(out: Path) -> Path:
    """Where the models between rounds lie while the model in `out` is being refined."""
    return journal_path(uncertainty_file(out))


def uncertainty_files(out: Path) -> tuple[Path, Path]:
    """The files beside a refined model that hold the uncertainties of its cameras and points."""
    return uncertainty_file(out), point_uncertainty_file(out)


def _agreeing(
    tracks: Tracks,
    voting: np.ndarray,
    found: Alignment,
    config: TrackConfig,
) -> np.ndarray:
    """Which observations (N,) agree with the others of their track."""
    least = np.where(voting, config.min_correlation, config.min_new_correlation)
    agrees = (found.correlation > least) & (found.texture[tracks.track] > config.min_texture)
    usual = found.moved[agrees & voting]
    bound = config.outlier * float(np.median(usual)) if len(usual) else 0.0
    return np.asarray(agrees & (found.moved <= bound))


def _write(
    model: pycolmap.Reconstruction,
    tracks: Tracks,
    views: Views,
    keep: np.ndarray,
    dropped: dict[tuple[int, int], int],
) -> tuple[Tracks, int]:
    """Puts observations into a model.

    Args:
        tracks: observations at their new places; of index −1 where the model does not have them.
        keep: (N,) which are in the model from now on.
        dropped: number of the keypoint of each observation that was dropped, by point and image:
            it is used again when the point is found there after all.

    Returns:
        What the model has from now on, and the number of observations that it did not have.
    """
    added = 0
    known, index = tracks.index >= 0, tracks.index.copy()
    ids = tracks.ids[tracks.track]
    for v, image_id in enumerate(views.ids.tolist()):
        points = model.images[image_id].points2D
        own = tracks.view == v
        there = own & keep & known
        for k, xy in zip(index[there].tolist(), tracks.xy[there], strict=True):
            points[k].xy = xy
        for n in np.flatnonzero(own & keep & ~known).tolist():
            k = dropped.pop((int(ids[n]), image_id), len(points))
            if k == len(points):
                points.append(pycolmap.Point2D(tracks.xy[n]))
                added += 1
            else:
                points[k].xy = tracks.xy[n]
            index[n] = k
            model.add_observation(int(ids[n]), pycolmap.TrackElement(image_id, k))
    lost = known & ~keep
    for n in np.flatnonzero(lost).tolist():
        dropped[int(ids[n]), int(views.ids[tracks.view[n]])] = int(index[n])
    drop_observations(model, tracks, views, lost)
    kept = replace(tracks, index=index).chosen(keep)
    return kept.part(np.flatnonzero(np.diff(kept.start) > 1))[0], added

"""A model → the same with its points seen sharply by all photos, and its cameras adjusted to them.

Each round aligns the photos of every track (see `alignment`), drops the observations that do not
agree, and adjusts all cameras and points. From the second round on, points are also looked for in
photos that were never matched there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import ModelStatistics, posed_images, quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.sizes import fit_model
from edm_hloc.mapping.extension import frame_change
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import new_model_folder, write_model
from edm_hloc.tracks.adjustment import Freedom, adjust, drop_observations
from edm_hloc.tracks.alignment import Alignment, align
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views
from edm_hloc.tracks.kept_points import put_back
from edm_hloc.tracks.more_photos import joined, possible_observations, repeated_points
from edm_hloc.tracks.photos import PhotoShelf
from edm_hloc.tracks.uncertainty import (
    CameraUncertainty,
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


@dataclass(frozen=True)
class Kept:
    """What of the cameras an adjustment leaves as it is.

    Attributes:
        names: of the photos whose intrinsics stay.
        intrinsics: all intrinsics stay.
        distortion: the distortion of all cameras stays.
        poses: all poses and intrinsics stay: only the points are refined.
    """

    names: frozenset[str] = frozenset()
    intrinsics: bool = False
    distortion: bool = False
    poses: bool = False


def refine_tracks(
    model: pycolmap.Reconstruction,
    image_root: Path,
    freedom: Freedom,
    config: TrackConfig | None = None,
    options: MappingOptions | None = None,
) -> tuple[TrackSummary, dict[str, CameraUncertainty]]:
    """Refines the points of a model in all photos that see them, and the model with them.

    Keypoints keep their numbers: those that move are moved in place, those that are dropped stay
    without a point, and new ones come after the last.

    Args:
        model: changed in place; its cameras are for the photos as they are stored.
        image_root: folder of the photos.
        freedom: what changes besides the points.
        config: the settings.
        options: minimum angle of a point's rays, and threads.

    Returns:
        What became of the model, and the uncertainties of its cameras by name, if they are known.

    Raises:
        EdmHlocError: the model has no points, or none of its photos can be read, or they agree at
            few of its points; the model is then to be discarded.
    """
    config, options = config or TrackConfig(), options or MappingOptions()
    begin = time.monotonic()
    if not model.num_points3D():
        raise EdmHlocError(
            "The model has no 3D points, so there are no tracks to refine. Make them first: "
            "edm-hloc triangulate MODEL IMAGES OUT"
        )
    before, mapped = ModelStatistics.of(model), pycolmap.Reconstruction(model)
    views = Views.of(model)
    shelf = PhotoShelf(image_root, views.names, config.max_side)
    threads = options.threads if options.threads > 0 else os.cpu_count() or 1
    dropped: dict[tuple[int, int], int] = {}
    added, repeated = 0, set[int]()
    for number, radius in enumerate(config.patch_radii):
        views = Views.of(model)
        tracks = Tracks.of(model, views)
        voting = np.ones(len(tracks.view), bool)
        if number:
            more = possible_observations(tracks, views, config.max_photos)
            tracks, voting = joined(tracks, more)
        found = align(tracks, voting, views, shelf, config, (radius, threads))
        if shelf.unread.all():
            raise EdmHlocError(
                f"None of the {len(views.names)} photos of the model can be read in {image_root}: "
                "give the folder that their names are relative to."
            )
        aligned = _agreeing(tracks, voting, found, config)
        agree, of = (
            np.bincount(tracks.view[which & voting], minlength=len(views.ids))
            for which in (aligned, voting)
        )
        blurred = (agree < _FEWEST) & (2 * agree < of) & ~shelf.unread
        aligned &= ~blurred[tracks.view]
        as_mapped = (shelf.unread | blurred)[tracks.view] & voting
        keep = aligned | as_mapped
        share = float((aligned | shelf.unread[tracks.view])[voting].mean())
        if share < _LEAST_SHARE:
            raise EdmHlocError(
                f"The photos in {image_root} agree at only {share:.0%} of what the model sees: are "
                "they the ones that it was made of, and sharp?"
            )
        xy = np.where(aligned[:, None], found.xy, tracks.xy)
        moved = Tracks(tracks.ids, tracks.xyz, tracks.start, tracks.view, tracks.index, xy)
        again = repeated_points(moved.chosen(keep), views)
        keep &= ~again[tracks.track]
        added += _write(model, moved, views, keep, dropped)
        repeated.update(tracks.ids[again].tolist())
        with StepProgress("Adjusting to refined tracks"):
            last = number == len(config.patch_radii) - 1
            adjust(model, config.outlier, freedom, options, again=last)
    with StepProgress("Uncertainty of the cameras"):
        uncertainties = camera_uncertainties(model, freedom, config, options)
    with StepProgress("Keeping points as they were mapped"):
        kept = put_back(model, mapped, repeated, options)
    model.update_point_3d_errors()
    summary = TrackSummary(
        before=before,
        after=ModelStatistics.of(model),
        rounds=len(config.patch_radii),
        added=added,
        repeated=len(repeated),
        kept=kept,
        blurred=tuple(np.array(views.names)[blurred].tolist()),
        unread=tuple(np.array(views.names)[shelf.unread].tolist()),
        seconds=time.monotonic() - begin,
        uncertainty=median_uncertainty(uncertainties),
        doubtful=most_uncertain(uncertainties),
    )
    return summary, uncertainties


def refine_model(
    reference: Path,
    image_root: Path,
    out: Path,
    kept: Kept | None = None,
    options: MappingOptions | None = None,
) -> TrackSummary:
    """Refines the tracks of a COLMAP model and writes the model to `out`, binary, in its old frame.

    Args:
        reference: folder of the model, COLMAP's own, hloc's or any other.
        image_root: folder of its photos.
        out: folder of the new model, written on success only; may be that of the reference. A model
            that is there is replaced. The cameras' uncertainties are written beside it, see
            `uncertainty.uncertainty_file`.
        kept: what of the cameras stays as it is.
        options: minimum angle of a point's rays, and threads.

    Raises:
        EdmHlocError: a model or folder cannot be read or written, or as `refine_tracks`.
    """
    model, _ = fit_model(read_model(reference), image_root, f"the model {reference}")
    kept = kept or Kept()
    constant = frozenset(
        image.camera_id
        for name, image in posed_images(model).items()
        if kept.intrinsics or name in kept.names
    )
    freedom = Freedom(not kept.poses, constant=constant, distortion=not kept.distortion)
    with new_model_folder(out) as temporary, quiet_colmap():
        summary, uncertainties = refine_tracks(model, image_root, freedom, options=options)
        if freedom.poses:
            before = read_model(reference)
            model.transform(frame_change(model, before, posed_images(before)))
        write_model(model, image_root, temporary)
    file = uncertainty_file(out)
    if uncertainties:
        write_uncertainties(file, uncertainties)
    else:
        file.unlink(missing_ok=True)
    return summary


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
) -> int:
    """Puts observations into a model.

    Args:
        tracks: observations at their new places; of index −1 where the model does not have them.
        keep: (N,) which are in the model from now on.
        dropped: number of the keypoint of each observation that was dropped, by point and image:
            it is used again when the point is found there after all.

    Returns:
        Number of observations that the model did not have.
    """
    added = 0
    known = tracks.index >= 0
    ids = tracks.ids[tracks.track]
    for v, image_id in enumerate(views.ids.tolist()):
        points = model.images[image_id].points2D
        its = np.flatnonzero((tracks.view == v) & keep)
        for n in its.tolist():
            if known[n]:
                points[int(tracks.index[n])].xy = tracks.xy[n]
                continue
            index = dropped.pop((int(ids[n]), image_id), len(points))
            if index == len(points):
                points.append(pycolmap.Point2D(tracks.xy[n]))
                added += 1
            else:
                points[index].xy = tracks.xy[n]
            model.add_observation(int(ids[n]), pycolmap.TrackElement(image_id, index))
    lost = known & ~keep
    for n in np.flatnonzero(lost).tolist():
        dropped[int(ids[n]), int(views.ids[tracks.view[n]])] = int(tracks.index[n])
    drop_observations(model, tracks, views, lost)
    return added
